"""Hugging Face's tokenizers: a tokenizer.json or a checkpoint folder. The libraries come with the extra `hf`."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl.llm.tokenizers import Message, Rendered


class FastTokenizer(Rendered):
    """A tokenizer.json, by the library `tokenizers`."""

    def __init__(self, path: str | Path, pad: str, eos: Sequence[str], template: str | None = "chatml"):
        """Reads `path`; `pad` and `eos` are marks in it, `template` one of jaxrl's own."""
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no {path}")
        self.tokenizer = _library("tokenizers").Tokenizer.from_file(str(path))
        self.template = template
        numbers = {mark: self.tokenizer.token_to_id(mark) for mark in (pad, *eos)}
        missing = [mark for mark, number in numbers.items() if number is None]
        if missing:
            raise ValueError(f"{path} has no token {', '.join(missing)}")
        self.pad_id = numbers[pad]
        self.eos_ids = tuple(numbers[mark] for mark in eos)

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.get_vocab_size()

    def encode(self, text: str, specials: bool = False) -> list[int]:
        self.tokenizer.encode_special_tokens = not specials  # the library's True: spell them out as letters
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False)


class HFTokenizer:
    """The tokenizer of a checkpoint folder with its own chat template, by the library `transformers`."""

    def __init__(self, folder: str | Path):
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
        self.tokenizer = _library("transformers").AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        if self.tokenizer.eos_token_id is None:
            raise ValueError(f"the tokenizer in {folder} names no end of a text (eos_token)")
        self.eos_ids = (self.tokenizer.eos_token_id,)
        pad = self.tokenizer.pad_token_id
        self.pad_id = self.eos_ids[0] if pad is None else pad

    @property
    def vocab_size(self) -> int:
        return len(self.tokenizer)

    @property
    def has_template(self) -> bool:
        return self.tokenizer.chat_template is not None

    def encode(self, text: str, specials: bool = False) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=not specials)

    def decode(self, tokens: Iterable[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def chat_text(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> str:
        """The conversation as the folder's template writes it."""
        if not self.has_template:
            raise ValueError("the checkpoint's tokenizer has no chat template")
        return self.tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **settings,
        )

    def apply_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **settings: Any,
    ) -> list[int]:
        return self.encode(self.chat_text(messages, tools, add_generation_prompt, **settings), specials=True)

    def appended(self, messages: Sequence[Message], by_agent: bool, **settings: Any) -> list[int]:
        """The tokens that `messages` add to a conversation: its rendering less that of a fixed beginning.

        Args:
            messages: one message, or several results of tools that share a turn.
            by_agent: they continue the generation prompt, which is then part of the beginning.
            settings: for the template.

        Raises:
            ValueError: the template rewrites what came before, so that nothing can be appended.
        """
        beginning = [{"role": "user", "content": "a"}]
        if not by_agent:
            beginning.append({"role": "assistant", "content": "b"})
        before = self.chat_text(beginning, add_generation_prompt=by_agent, **settings)
        after = self.chat_text([*beginning, *messages], add_generation_prompt=False, **settings)
        if not after.startswith(before):
            raise ValueError("the chat template rewrites earlier messages: nothing can be appended to a conversation")
        return self.encode(after[len(before) :], specials=True)


def train_bpe(
    texts: Iterable[str], path: str | Path, vocab_size: int = 4096, specials: Sequence[str] = ("<|pad|>",)
) -> None:
    """Trains a byte-level BPE of `vocab_size` tokens on `texts` and writes its tokenizer.json; needs the extra `hf`."""
    library = _library("tokenizers")
    tokenizer = library.Tokenizer(library.models.BPE())
    tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(specials),
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def _library(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(f"this tokenizer needs the library {name}: pip install 'jaxrl[hf]'") from error
