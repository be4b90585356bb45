"""Adapters: nothing at first, the same merged or beside the weights, and PEFT's files."""

import functools
import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_llm
from jaxrl.llm.checkpoints import load_hf
from jaxrl.llm.lora import LoraConfig, adapted_paths, attach, init_adapters, load_peft, merge, save_peft
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.tensor_files import read_tensors, write_tensors
from llm_models import random_params, tiny

MODEL = TransformerLM(tiny())
LORA = LoraConfig(rank=3, alpha=6.0, targets=("attn.[qkvo]", "mlp.*"))
TOKENS = np.random.default_rng(0).integers(0, MODEL.config.vocab_size, (2, 6), np.int32)
installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers", "peft"))


@functools.cache
def base():
    return random_params(MODEL.config, scale=0.2)


@functools.cache
def adapters():
    """A as drawn, B as after some training."""
    generator = np.random.default_rng(1)
    return {
        path: {"a": pair["a"], "b": jnp.asarray(0.1 * generator.standard_normal(pair["b"].shape, np.float32))}
        for path, pair in init_adapters(MODEL.config, LORA, jax.random.key(0)).items()
    }


@jax.jit
def with_adapters(params, adapters, scale):
    return MODEL.apply(attach(params, adapters, scale), TOKENS)[0]


@functools.cache
def base_logits():
    return jax.jit(MODEL.apply)(base(), TOKENS)[0]


def test_fresh_adapters_and_scale_zero_are_the_base_exactly():
    fresh = init_adapters(MODEL.config, LORA, jax.random.key(0))
    np.testing.assert_array_equal(with_adapters(base(), fresh, LORA.scale), base_logits())
    np.testing.assert_array_equal(with_adapters(base(), adapters(), 0.0), base_logits())
    assert sum(leaf.size for leaf in jax.tree.leaves(fresh)) == 2 * 3 * sum(
        sum(sizes) for sizes in adapted_paths(MODEL.config, LORA).values()
    )


def test_merged_equals_attached_and_unmerging_restores():
    merged = merge(base(), adapters(), LORA.scale)
    attached = with_adapters(base(), adapters(), LORA.scale)
    assert np.abs(attached - base_logits()).max() > 0.1
    np.testing.assert_allclose(jax.jit(MODEL.apply)(merged, TOKENS)[0], attached, atol=1e-5)
    restored = merge(merged, adapters(), -LORA.scale)
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-6), restored, base())


def test_at_first_only_b_has_a_gradient():
    fresh = init_adapters(MODEL.config, LORA, jax.random.key(0))
    slopes = jax.jit(jax.grad(lambda fresh: jnp.mean(jnp.square(with_adapters(base(), fresh, LORA.scale)))))(fresh)
    for path, pair in slopes.items():
        assert not pair["a"].any(), path
        assert pair["b"].any(), path


def test_full_rank_reaches_every_update():
    """With r = 4, A B of a 4 x 4 matrix spans all directions: the derivative has rank 16 at a generic point."""
    generator = np.random.default_rng(2)
    a, b = (jnp.asarray(generator.standard_normal((4, 4)), jnp.float32) for _ in range(2))
    derivative = jax.jacobian(lambda a, b: (a @ b).reshape(-1), (0, 1))(a, b)
    assert np.linalg.matrix_rank(np.hstack([np.reshape(part, (16, 16)) for part in derivative])) == 16
    thin = jax.jacobian(lambda a, b: (a @ b).reshape(-1), (0, 1))(a[:, :1], b[:1])
    assert np.linalg.matrix_rank(np.hstack([np.reshape(part, (16, -1)) for part in thin])) == 7


@pytest.mark.parametrize(
    ("family", "targets"), [("llama", ("attn.[qv]", "mlp.down")), ("qwen2", ("*",)), ("gpt2", ("attn.o", "mlp.*"))]
)
def test_peft_round_trip(family, targets, tmp_path):
    config = tiny(family)
    lora = LoraConfig(rank=2, alpha=3.0, targets=targets, rank_stabilised=True)
    generator = np.random.default_rng(3)
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(generator.standard_normal(leaf.shape, np.float32)),
        init_adapters(config, lora, jax.random.key(0)),
    )
    save_peft(tmp_path, config, lora, drawn, base="a/base")
    read, tensors = load_peft(tmp_path, config)
    assert (read.rank, read.scale) == (2, pytest.approx(3.0 / 2**0.5))
    assert tensors.keys() == drawn.keys()
    jax.tree.map(np.testing.assert_array_equal, tensors, {path: drawn[path] for path in tensors})
    names = read_tensors(tmp_path / "adapter_model.safetensors")
    if family == "llama":
        name = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"
        np.testing.assert_array_equal(names[name], drawn["attn.q"]["a"][1].T)
        assert json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"] == [
            *("down_proj", "q_proj", "v_proj")
        ]


def test_adapters_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"targets: 'attn\.w' fits none of attn\.q"):
        adapted_paths(MODEL.config, LoraConfig(targets=("attn.w",)))
    with pytest.raises(ValueError, match="rank must be at least 1"):
        LoraConfig(rank=0)
    gpt2 = tiny("gpt2")
    for targets in (("attn.q",), ("attn.k",)):
        lora = LoraConfig(targets=targets)
        with pytest.raises(ValueError, match="fused module in gpt2"):
            save_peft(tmp_path, gpt2, lora, init_adapters(gpt2, lora, jax.random.key(0)))
    with pytest.raises(FileNotFoundError, match=r"has no adapter_config\.json"):
        load_peft(tmp_path / "nothing", gpt2)
    save_peft(tmp_path, MODEL.config, LORA, adapters())
    path = tmp_path / "adapter_model.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path).items()}
    first = next(iter(tensors))
    write_tensors(path, {name: tensor for name, tensor in tensors.items() if name != first})
    with pytest.raises(ValueError, match=r"A of attn\.q in layer 0 is missing"):
        load_peft(tmp_path, MODEL.config)
    write_tensors(path, tensors | {"base_model.model.lm_head.lora_A.weight": tensors[first]})
    with pytest.raises(ValueError, match=r"no adapter of this model: base_model\.model\.lm_head"):
        load_peft(tmp_path, MODEL.config)
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings | {"use_dora": True}))
    with pytest.raises(ValueError, match="use_dora = True is not supported"):
        load_peft(tmp_path, MODEL.config)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT reads what transformers has deprecated
@pytest.mark.skipif(not installed, reason="needs torch, transformers and peft")
@pytest.mark.parametrize("name", ["qwen3", "llama_biases", "gpt2"])
def test_beside_peft(name, tmp_path):
    """An adapter written here gives PEFT's model the same logits, and the other way round."""
    import peft
    import torch

    original = torch_llm.make_model(name)
    original.save_pretrained(tmp_path / "base")
    config, params = load_hf(tmp_path / "base")
    lora = LoraConfig(rank=2, alpha=3.0, targets=("attn.o", "mlp.*") if name == "gpt2" else ("attn.*", "mlp.*"))
    generator = np.random.default_rng(5)
    drawn = jax.tree.map(
        lambda leaf: jnp.asarray(0.1 * generator.standard_normal(leaf.shape, np.float32)),
        init_adapters(config, lora, jax.random.key(0)),
    )
    save_peft(tmp_path / "ours", config, lora, drawn)
    theirs = peft.PeftModel.from_pretrained(original, tmp_path / "ours").eval()
    tokens, _ = torch_llm.make_tokens()
    run = jax.jit(lambda params: TransformerLM(config).apply(params, jnp.asarray(tokens))[0])
    np.testing.assert_allclose(run(attach(params, drawn, lora.scale)), torch_llm.logits_of(theirs, tokens), atol=1e-4)
    with torch.no_grad():
        for key, parameter in theirs.named_parameters():
            if "lora_" in key:
                parameter.add_(0.05)
    theirs.save_pretrained(tmp_path / "theirs")
    read, tensors = load_peft(tmp_path / "theirs", config)
    np.testing.assert_allclose(run(attach(params, tensors, read.scale)), torch_llm.logits_of(theirs, tokens), atol=1e-4)
