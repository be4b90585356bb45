"""`jaxrl llm`: generate, chat, import and export, and what wrong files are answered with."""

import json

import jax
import numpy as np
import pytest
from typer.testing import CliRunner

from jaxrl import llm
from jaxrl.cli import app
from jaxrl.llm.checkpoints import WEIGHTS, load_hf, save_hf
from jaxrl.llm.tensor_files import read_tensors, write_tensors
from jaxrl.run.models import trained_model
from llm_models import random_params, tiny
from programs import bits

BYTES = tiny(vocab_size=259, num_layers=1, eos_ids=(258,), max_positions=2048)
TOOLS = tiny(vocab_size=64, num_layers=1)


def invoke(*arguments, text=None):
    return CliRunner().invoke(app, ["llm", *map(str, arguments)], input=text)


def succeed(*arguments, text=None):
    result = invoke(*arguments, text=text)
    assert result.exit_code == 0, result.output + str(result.exception)
    return result.stdout


def refuse(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output + str(result.exception)
    assert len(result.stderr.strip().splitlines()) == 1
    return result.stderr


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("llm") / "bytes"
    save_hf(path, BYTES, random_params(BYTES, scale=0.2))
    return path


def test_generate(folder):
    settings = (folder, "hello", "--tokenizer", "bytes", "--max-new", 8)
    greedy = succeed("generate", *settings, "--temperature", 0)
    assert greedy == succeed("generate", *settings, "--temperature", 0, "--seed", 1)
    model, tokens = llm.TransformerLM(BYTES), np.array([list(b"hello")], np.int32)
    expected = jax.jit(
        lambda params, key: llm.generate(
            *(model, params, tokens, key), max_new=8, sampling=llm.make_sampling(temperature=0.0)
        )
    )(load_hf(folder)[1], jax.random.key(0))
    assert greedy.removesuffix("\n") == llm.ByteTokenizer().decode(expected.tokens[0].tolist())
    drawn = {succeed("generate", *settings, "--top-k", 50, "--top-p", 0.9, "--seed", seed) for seed in (1, 1, 2)}
    assert len(drawn) == 2


def test_chat(folder):
    settings = (folder, "--tokenizer", "bytes", "--max-new", 4, "--temperature", 0)
    lines = succeed("chat", *settings, "--system", "Be brief.", text="hi\n\n/new\nhi\n/quit\nhi\n").splitlines()
    # The same question of a new conversation has the same answer; after /quit there is none.
    assert len(lines) % 2 == 0
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :]
    assert "no chat template" in refuse("chat", folder, "--tokenizer", "numbers")


def test_a_tokenizer_file(tmp_path):
    pytest.importorskip("tokenizers", reason="the extra hf is not installed")
    from jaxrl.llm.hf_tokenizers import train_bpe

    marks = ("<|pad|>", "<|im_start|>", "<|im_end|>")
    train_bpe(["to be or not to be"] * 4, tmp_path / "words.json", vocab_size=280, specials=marks)
    config = tiny(vocab_size=280, num_layers=1, eos_ids=(2,), pad_id=0, max_positions=2048)
    save_hf(tmp_path / "hf", config, random_params(config, scale=0.2))
    settings = ("--tokenizer", tmp_path / "words.json", "--max-new", 4, "--temperature", 0)
    assert succeed("generate", tmp_path / "hf", "to be", *settings)
    assert succeed("chat", tmp_path / "hf", *settings, text="to be\n")
    save_hf(tmp_path / "hf", tiny(vocab_size=280, eos_ids=(200,)), random_params(tiny(vocab_size=280)))
    assert "has no mark for the ends of a text" in refuse("generate", tmp_path / "hf", "to be", *settings)


def test_import_and_export_give_the_same_folder(tmp_path):
    save_hf(tmp_path / "hf", TOOLS, random_params(TOOLS))
    settings = (
        "num_updates=1",
        "config.batch_size=2",
        "evaluation.num_episodes=2",
        "log.every=1",
        "checkpoint.every=1",
    )
    out = succeed("import", tmp_path / "hf", "sft_tool_desk", *settings, "--out", tmp_path / "run")
    assert f"jaxrl train --resume {tmp_path / 'run'}" in out
    config, params = trained_model(tmp_path / "run")
    assert config == TOOLS
    assert bits(params) == bits(random_params(TOOLS))
    succeed("export", tmp_path / "run", "--out", tmp_path / "back")
    assert (tmp_path / "hf" / WEIGHTS).read_bytes() == (tmp_path / "back" / WEIGHTS).read_bytes()
    assert "already holds a run" in refuse("import", tmp_path / "hf", "sft_tool_desk", "--out", tmp_path / "run")


@pytest.mark.slow
def test_an_imported_run_trains(tmp_path):
    from test_cli import succeed as main

    save_hf(tmp_path / "hf", TOOLS, random_params(TOOLS))
    settings = (
        "num_updates=1",
        "config.batch_size=2",
        "evaluation.num_episodes=2",
        "log.every=1",
        "checkpoint.every=1",
    )
    succeed("import", tmp_path / "hf", "sft_tool_desk", *settings, "--out", tmp_path / "run")
    assert "update 1/1" in main("train", "--resume", tmp_path / "run")
    before, after = random_params(TOOLS), trained_model(tmp_path / "run")[1]
    assert 0 < np.abs(before["embed"] - after["embed"]).max() < 0.1


def test_wrong_folders_are_named(tmp_path, folder):
    generate = ("generate", tmp_path / "a", "hello", "--tokenizer", "bytes")
    assert "has no config.json" in refuse(*generate)
    save_hf(tmp_path / "a", BYTES, random_params(BYTES), max_shard_bytes=20_000)
    shard = min((tmp_path / "a").glob("*.safetensors"))
    shard.unlink()
    assert f"shards: {shard.name}" in refuse(*generate)
    save_hf(tmp_path / "a", BYTES, random_params(BYTES))
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(tmp_path / "a" / WEIGHTS).items()}
    write_tensors(tmp_path / "a" / WEIGHTS, tensors | {"model.norm.weight": np.ones(7, np.float32)})
    assert "wrong shape: model.norm.weight (7,) instead of (32,)" in refuse(*generate)
    source = json.loads((tmp_path / "a" / "config.json").read_text())
    for key, value in (("quantization_config", {"bits": 4}), ("model_type", "gemma"), ("hidden_act", "relu")):
        (tmp_path / "a" / "config.json").write_text(json.dumps(source | {key: value}))
        assert key.removeprefix("hidden_") in refuse(*generate)
    assert "vocab_size must be 64" in refuse("import", folder, "sft_tool_desk", "--out", tmp_path / "b")
    assert "trains no language model" in refuse("import", folder, "ppo_cartpole", "--out", tmp_path / "b")
    assert "holds no run" in refuse("export", folder / "x", "--out", tmp_path / "b")
    assert not (tmp_path / "b").exists()


def test_wrong_tokenizers_are_named(tmp_path, folder):
    assert "holds no tokenizer: name one with --tokenizer" in refuse("generate", folder, "hello")
    assert "--tokenizer must be bytes, numbers" in refuse("generate", folder, "hello", "--tokenizer", "byte")
    save_hf(tmp_path, TOOLS, random_params(TOOLS))
    assert "the tokenizer has 259 tokens, the model's vocab_size is 64" in refuse(
        "generate", tmp_path, "hello", "--tokenizer", "bytes"
    )
    assert "'64' is not in the vocabulary" in refuse("generate", tmp_path, "1 64", "--tokenizer", "numbers")
    assert "top_p must be in [0, 1]" in refuse("generate", tmp_path, "1", "--tokenizer", "numbers", "--top-p", 2)
    assert "--max-new must be at least 1" in refuse("generate", tmp_path, "1", "--tokenizer", "numbers", "--max-new", 0)
    assert "more than the model's 64" in refuse("generate", tmp_path, "1", "--tokenizer", "numbers", "--max-new", 64)
    assert "the prompt is empty" in refuse("generate", tmp_path, "", "--tokenizer", "numbers")
