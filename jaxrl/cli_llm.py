"""`jaxrl llm`: language models on the command line; let them go on with a text, talk to them, change their format."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jaxrl.terminal import compilation_cache, errors

if TYPE_CHECKING:
    from jaxrl.llm.config import LMConfig
    from jaxrl.llm.tokenizers import Tokenizer

app = typer.Typer(help="Language models: generate, chat, import, export.", no_args_is_help=True)

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A Hugging Face folder, or a run folder.")]
Words = Annotated[
    str,
    typer.Option(
        "--tokenizer",
        help="bytes, numbers, a tokenizer.json or a folder with one; by default what lies beside the weights.",
    ),
]
MaxNew = Annotated[int, typer.Option(help="Tokens, at most.")]
Temperature = Annotated[float, typer.Option(help="0 takes the most probable token.")]
TopK = Annotated[int | None, typer.Option(help="Only so many of the most probable tokens.")]
TopP = Annotated[float | None, typer.Option(help="Only the most probable tokens of so much mass.")]
MinP = Annotated[float | None, typer.Option(help="Only tokens at least so probable as the most probable one.")]
Seed = Annotated[int, typer.Option(help="Of the sampling.")]
BLOCK = 64  # prompts are padded to multiples of so many tokens, so that few lengths are compiled


@app.command()
def generate(
    checkpoint: Checkpoint,
    prompt: Annotated[str, typer.Argument(help="The text to go on with; - reads it from the standard input.")],
    tokenizer: Words = "",
    max_new: MaxNew = 64,
    temperature: Temperature = 1.0,
    top_k: TopK = None,
    top_p: TopP = None,
    min_p: MinP = None,
    seed: Seed = 0,
) -> None:
    """Continue a text."""
    with errors(), compilation_cache(), _mendable():
        speaker = Speaker(checkpoint, tokenizer, max_new, (temperature, top_k, top_p, min_p), seed)
        text = sys.stdin.read() if prompt == "-" else prompt
        tokens = speaker.tokenizer.encode(text)
        if not tokens:
            raise ValueError("the prompt is empty")
        begin = time.perf_counter()
        new = speaker.say(tokens)
        print(speaker.text(new))
        print(f"{len(new)} tokens in {time.perf_counter() - begin:.1f} s, compiling included", file=sys.stderr)


@app.command()
def chat(
    checkpoint: Checkpoint,
    tokenizer: Words = "",
    system: Annotated[str, typer.Option(help="What the model is told before the conversation.")] = "",
    max_new: MaxNew = 256,
    temperature: Temperature = 0.7,
    top_k: TopK = None,
    top_p: TopP = 0.95,
    min_p: MinP = None,
    seed: Seed = 0,
) -> None:
    """Talk to a model, one line at a time: /new starts again, /quit or the end of the input leaves."""
    with errors(), compilation_cache(), _mendable():
        speaker = Speaker(checkpoint, tokenizer, max_new, (temperature, top_k, top_p, min_p), seed)
        if not speaker.tokenizer.has_template:
            raise ValueError("this tokenizer has no chat template: use `jaxrl llm generate`")
        first = [{"role": "system", "content": system}] if system else []
        messages, interactive = list(first), sys.stdin.isatty()
        while True:
            if interactive:
                print("> ", end="", flush=True)
            line = sys.stdin.readline()
            words = line.strip()
            if not line or words == "/quit":
                return
            if words == "/new":
                messages = list(first)
            elif words:
                messages.append({"role": "user", "content": words})
                answer = speaker.text(speaker.say(speaker.tokenizer.apply_chat(messages)))
                messages.append({"role": "assistant", "content": answer})
                print(answer, flush=True)


@app.command(name="import")
def import_(
    folder: Annotated[Path, typer.Argument(help="A Hugging Face folder: config.json and safetensors files.")],
    config: Annotated[str, typer.Argument(help="What to train it by: a TOML file or a shipped name.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to change.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run folder; runs/NAME by default.")] = None,
) -> None:
    """Make a run, not yet trained, of a checkpoint: for `train --resume`, `train --init-from` and `[data] base`."""
    with errors(), compilation_cache(), _mendable():
        import jaxrl
        from jaxrl.run.models import import_model

        run = jaxrl.load_config(config, overrides or [])
        path = out or Path("runs") / run.name
        size = import_model(folder, run, path)
        print(f"run folder: {path}, {size:,} parameters   (next: jaxrl train --resume {path})")


@app.command()
def export(
    run_dir: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder, or one of its checkpoints.")],
    out: Annotated[Path, typer.Option(help="A folder; made where it is missing.")],
) -> None:
    """Write a trained model as a Hugging Face folder, adapters merged into its weights."""
    with errors(), compilation_cache(), _mendable():
        from jaxrl.llm.checkpoints import save_hf
        from jaxrl.run.models import trained_model

        files = save_hf(out, *trained_model(run_dir))
        print(f"{out}: {', '.join(file.name for file in files)}")


class Speaker:
    """A model with its tokenizer, ready to go on with tokens."""

    def __init__(self, checkpoint: Path, tokenizer: str, max_new: int, filters: tuple[Any, ...], seed: int):
        import jax

        from jaxrl.llm.model import TransformerLM
        from jaxrl.llm.sampling import make_sampling
        from jaxrl.llm.tokenizers import check_tokenizer
        from jaxrl.run.models import load_model

        if max_new < 1:
            raise ValueError(f"--max-new must be at least 1, got {max_new}")
        self.sampling, self.max_new, self.key = make_sampling(*filters), max_new, jax.random.key(seed)
        config, self.params = load_model(checkpoint)
        self.tokenizer = find_tokenizer(tokenizer, checkpoint, config)
        check_tokenizer(self.tokenizer, config)
        wide = self.params["embed"].dtype.name
        self.model = TransformerLM(config, param_dtype=wide, compute_dtype=wide)
        self.stops = tuple(dict.fromkeys((*config.eos_ids, *self.tokenizer.eos_ids)))
        self._continue = jax.jit(self._generate)

    def say(self, tokens: list[int]) -> list[int]:
        """What follows `tokens`, the stop token left out."""
        import jax
        import numpy as np

        config = self.model.config
        outside = [token for token in tokens if not 0 <= token < config.vocab_size]
        if outside:
            raise ValueError(f"the model has tokens 0 to {config.vocab_size - 1}, the prompt holds {outside[0]}")
        length = -(-len(tokens) // BLOCK) * BLOCK
        if length + self.max_new > config.max_positions:
            length = len(tokens)
        if length + self.max_new > config.max_positions:
            raise ValueError(
                f"{len(tokens)} tokens and {self.max_new} new ones are more than the model's {config.max_positions}"
            )
        padding = length - len(tokens)
        row, valid = np.array([[0] * padding + tokens], np.int32), np.arange(length)[None] >= padding
        self.key, key = jax.random.split(self.key)
        result = self._continue(self.params, row, valid, key, self.sampling)
        new = result.tokens[0, : int(result.lengths[0])].tolist()
        return new[:-1] if new and new[-1] in self.stops else new

    def text(self, tokens: list[int]) -> str:
        return self.tokenizer.decode(tokens)

    def _generate(self, params: Any, tokens: Any, valid: Any, key: Any, sampling: Any) -> Any:
        from jaxrl.llm.generation import generate

        settings = {"max_new": self.max_new, "sampling": sampling, "valid": valid, "stop_ids": self.stops}
        return generate(self.model, params, tokens, key, driver="while", **settings)


def find_tokenizer(name: str, checkpoint: Path, config: LMConfig) -> Tokenizer:
    """The tokenizer that `--tokenizer` names."""
    from jaxrl.llm.hf_tokenizers import FastTokenizer, HFTokenizer
    from jaxrl.llm.tokenizers import ByteTokenizer, TableTokenizer

    if name == "bytes":
        return ByteTokenizer()
    if name == "numbers":
        ends = tuple(str(number) for number in config.eos_ids)
        return TableTokenizer([str(number) for number in range(config.vocab_size)], str(config.pad_id or 0), ends)
    path = Path(name) if name else checkpoint
    if path.is_dir() and any((path / file).is_file() for file in ("tokenizer.json", "tokenizer_config.json")):
        return HFTokenizer(path)
    if not name:
        raise ValueError(
            f"{checkpoint} holds no tokenizer: name one with --tokenizer (bytes, numbers, a file, a folder)"
        )
    if not path.is_file():
        raise ValueError(f"--tokenizer must be bytes, numbers, a tokenizer.json or a folder with one, got {name!r}")
    marks = _marks(path)
    ends = [marks[number] for number in config.eos_ids if number in marks]
    if not ends:
        raise ValueError(f"{path} has no mark for the ends of a text that the model names, {config.eos_ids}")
    pad = ends[0] if config.pad_id is None else marks.get(config.pad_id, ends[0])
    return FastTokenizer(path, pad, ends, "chatml" if "<|im_start|>" in marks.values() else None)


def _marks(path: Path) -> dict[int, str]:
    """The marks of a tokenizer.json by their numbers."""
    import json

    content = json.loads(path.read_text())
    return {token["id"]: token["content"] for token in content.get("added_tokens") or ()}


@contextlib.contextmanager
def _mendable() -> Iterator[None]:
    """What the parts below say of wrong files and settings becomes one line."""
    from jaxrl.run.config import ConfigError

    try:
        yield
    except (ValueError, FileNotFoundError, ImportError) as error:
        if hasattr(error, "exit_status"):
            raise
        raise ConfigError(str(error)) from error
