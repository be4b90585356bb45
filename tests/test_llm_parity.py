"""The language model against transformers on PyTorch: frozen numbers always, everything where both are installed."""

import functools
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_llm
from jaxrl.llm.checkpoints import WEIGHTS, load_hf, save_hf, tensor_map
from jaxrl.llm.generation import generate
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.sampling import make_sampling
from jaxrl.llm.tensor_files import read_tensors, write_tensors

installed = all(importlib.util.find_spec(name) for name in ("torch", "transformers"))
GREEDY = make_sampling(temperature=0.0)
live = pytest.mark.skipif(not installed, reason="needs torch and transformers: pip install 'jaxrl[hf,torch]'")


def loss_of(model, params, tokens):
    log_probs, _ = model.token_log_probs(params, tokens)
    return -jnp.sum(log_probs) / (tokens.shape[0] * (tokens.shape[1] - 1))


@functools.cache
def forward(model):
    return jax.jit(lambda params, tokens: model.apply(params, tokens)[0])


def gradients_by_name(config, params, tokens, folder):
    """The loss and its gradient in the checkpoint's own names and layout."""
    model = TransformerLM(config)
    loss, gradient = jax.jit(jax.value_and_grad(functools.partial(loss_of, model)))(params, jnp.asarray(tokens))
    save_hf(folder, config, gradient)
    return loss, read_tensors(folder / WEIGHTS)


@pytest.mark.parametrize("name", torch_llm.FROZEN)
def test_frozen_logits_greedy_tokens_loss_and_gradients(name, tmp_path):
    with np.load(torch_llm.GOLDEN / f"{name}.npz") as golden:
        golden = dict(golden)
    weights = {key.removeprefix("weight/"): value for key, value in golden.items() if key.startswith("weight/")}
    write_tensors(tmp_path / WEIGHTS, {key: value.astype(np.float32) for key, value in weights.items()})
    (tmp_path / "config.json").write_text(str(golden["config"]))
    config, params = load_hf(tmp_path)
    assert len(weights) == len(tensor_map(config))
    run = forward(TransformerLM(config))
    np.testing.assert_allclose(run(params, golden["tokens"]), golden["logits"], atol=1e-4)
    long = run(params, golden["long_tokens"])[:, -torch_llm.TAIL :]
    np.testing.assert_allclose(long, golden["long_logits"], atol=1e-4)
    half = TransformerLM(config, compute_dtype="bfloat16").apply(params, golden["tokens"])[0]
    assert np.abs(half - golden["logits"]).mean() <= 1.5 * golden["bfloat16_error"]

    greedy = jax.jit(functools.partial(generate, TransformerLM(config), max_new=torch_llm.NEW_TOKENS, sampling=GREEDY))
    np.testing.assert_array_equal(greedy(params, golden["tokens"], jax.random.key(0)).tokens, golden["greedy"])

    loss, gradients = gradients_by_name(config, params, golden["tokens"], tmp_path / "gradient")
    np.testing.assert_allclose(loss, golden["loss"], rtol=1e-6)
    assert gradients.keys() == weights.keys()
    for key, gradient in gradients.items():
        norm = golden[f"norm/{key}"]
        np.testing.assert_allclose(np.linalg.norm(gradient), norm, rtol=1e-4, err_msg=key)
        np.testing.assert_allclose(
            torch_llm.sampled(gradient), golden[f"gradient/{key}"], atol=1e-4 * norm, err_msg=key
        )


@live
@pytest.mark.slow
@pytest.mark.parametrize("name", torch_llm.FAMILIES)
def test_everything_beside_transformers(name, tmp_path):
    """Logits, gradients, the round trip through jaxrl, and what every single tensor does."""
    import torch
    import transformers

    original = torch_llm.make_model(name)
    tokens, long_tokens = torch_llm.make_tokens()
    original.save_pretrained(tmp_path / "from_torch")
    config, params = load_hf(tmp_path / "from_torch")
    run = forward(TransformerLM(config))
    exact = torch_llm.logits_of(original, tokens)
    assert np.abs(run(params, tokens) - exact).max() < 1e-4
    assert np.abs(run(params, long_tokens) - torch_llm.logits_of(original, long_tokens)).max() < 1e-4

    save_hf(tmp_path / "from_jax", config, params)
    before, after = (read_tensors(tmp_path / folder / WEIGHTS) for folder in ("from_torch", "from_jax"))
    assert before.keys() == after.keys()
    assert all(before[key].tobytes() == after[key].tobytes() for key in before)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "from_jax").float().eval()
    np.testing.assert_array_equal(torch_llm.logits_of(again, tokens), exact)

    loss, gradient = torch_llm.gradients_of(original, tokens)
    our_loss, ours = gradients_by_name(config, params, tokens, tmp_path / "gradient")
    assert abs(loss - our_loss) < 1e-5
    for key, expected in gradient.items():
        flat, other = expected.reshape(-1).astype(np.float64), ours[key].reshape(-1).astype(np.float64)
        assert np.abs(other - flat).max() <= 1e-3 * np.abs(flat).max(), key
        assert flat @ other >= 0.99999 * np.linalg.norm(flat) * np.linalg.norm(other), key

    # A tensor that is read from the wrong place, or not at all, changes other logits than PyTorch's.
    generator = np.random.default_rng(3)
    named = dict(original.named_parameters())
    tensors = {key: np.array(tensor) for key, tensor in before.items()}
    for key, tensor in tensors.items():
        place = tuple(generator.integers(0, length) for length in tensor.shape)
        if "embed_tokens" in key or "wte" in key:
            place = (int(tokens[0, 0]), place[1])  # a row that is looked up
        if "wpe" in key:
            place = (int(generator.integers(0, tokens.shape[1])), place[1])
        tensor[place] += 0.5
        write_tensors(tmp_path / "from_torch" / WEIGHTS, tensors)
        with torch.no_grad():
            named[key][place] += 0.5
            expected = torch_llm.logits_of(original, tokens)
            named[key][place] -= 0.5
        changed = run(load_hf(tmp_path / "from_torch")[1], tokens)
        tensor[place] -= 0.5
        assert np.abs(expected - exact).max() > 1e-3, f"{key} has no effect"
        np.testing.assert_allclose(changed, expected, atol=1e-4, err_msg=key)


def test_fixtures_are_small():
    size = sum(path.stat().st_size for path in Path(torch_llm.GOLDEN).iterdir())
    assert size < 300_000
    for name in torch_llm.FROZEN:
        with np.load(torch_llm.GOLDEN / f"{name}.npz") as golden:
            assert json.loads(str(golden["config"]))["model_type"] == name
