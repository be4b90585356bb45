"""The language model: cached passes equal the whole pass, whatever way it is computed; configurations and errors."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl import llm
from jaxrl.llm.config import FAMILIES, RopeScaling, preset
from jaxrl.llm.hf_config import from_hf, to_hf
from jaxrl.llm.model import TransformerLM, log_prob_and_entropy
from jaxrl.llm.parameters import flatten, num_parameters, unstack_layers
from llm_models import random_params, tiny

BATCH, LENGTH = 3, 12


@functools.cache
def model_and_inputs(family):
    model = TransformerLM(tiny(family))
    tokens = np.random.default_rng(2).integers(0, model.config.vocab_size, (BATCH, LENGTH), np.int32)
    return model, random_params(model.config, scale=0.2), jnp.asarray(tokens)


@functools.cache
def whole_pass(family):
    model, params, tokens = model_and_inputs(family)
    return jax.jit(model.apply)(params, tokens)[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_cached_blocks_equal_the_whole_pass(family):
    model, params, tokens = model_and_inputs(family)

    @jax.jit
    def in_blocks(params, tokens):
        params, cache, parts = unstack_layers(params), model.init_cache(BATCH, LENGTH + 3), []
        for start, end in ((0, 7), (7, 8), (8, 12)):
            logits, cache = model.apply(params, tokens[:, start:end], cache=cache)
            parts.append(logits)
        return jnp.concatenate(parts, axis=1)

    np.testing.assert_allclose(in_blocks(params, tokens), whole_pass(family), atol=1e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_padding_and_idle_sequences_change_nothing(ragged):
    """Sequences of different lengths, one of them paused for a block, in a cache with a common or an own index."""
    model, params, tokens = model_and_inputs("qwen3")
    padding = jnp.array([0, 3, 1])
    valid = jnp.arange(8)[None] >= padding[:, None]
    first = jnp.stack([jnp.roll(row[:8], shift) for row, shift in zip(tokens, padding)])
    moves = jnp.array([[True], [False], [True]])
    second = jnp.take_along_axis(tokens, (8 - padding)[:, None], axis=1)
    last = jnp.take_along_axis(tokens, (8 - padding)[:, None] + moves, axis=1)

    @jax.jit
    def run(params):
        cache = model.init_cache(BATCH, 16, ragged=ragged)
        block, cache = model.apply(params, first, cache=cache, valid=valid)
        _, cache = model.apply(params, second, cache=cache, valid=moves)
        return block, model.apply(params, last, cache=cache)[0], cache.index

    block, step, index = run(params)
    whole = whole_pass("qwen3")
    for row, shift in enumerate(padding.tolist()):
        np.testing.assert_allclose(block[row, shift:], whole[row, : 8 - shift], atol=1e-5)
        np.testing.assert_allclose(step[row, 0], whole[row, 8 - shift + int(moves[row, 0])], atol=1e-5)
    assert index.tolist() == ([9, 5, 8] if ragged else 9)


def test_packed_sequences_read_only_their_own():
    model, params, tokens = model_and_inputs("qwen3")
    row = jnp.concatenate([tokens[0, :5], tokens[1, :4], tokens[2, :3]])[None]
    segments = jnp.array([[1] * 5 + [2] * 4 + [3] * 3], jnp.int32)
    packed = jax.jit(model.apply)(params, row, valid=segments)[0][0]
    whole = whole_pass("qwen3")
    parts = jnp.concatenate([whole[0, :5], whole[1, :4], whole[2, :3]])
    np.testing.assert_allclose(packed, parts, atol=1e-5)


@pytest.mark.parametrize("changes", [{"scan_layers": False}, {"attention": "dot_product"}], ids=str)
def test_ways_to_compute_agree(changes):
    model, params, tokens = model_and_inputs("qwen3")
    logits = jax.jit(dataclasses.replace(model, **changes).apply)(params, tokens)[0]
    np.testing.assert_allclose(logits, whole_pass("qwen3"), atol=1e-5)


def test_what_is_computed_anew_changes_no_gradient():
    model, params, tokens = model_and_inputs("qwen3")

    def gradient(remat):
        other = dataclasses.replace(model, remat=remat)
        return jax.jit(jax.grad(lambda params: jnp.mean(jnp.square(other.apply(params, tokens)[0]))))(params)

    expected = gradient("none")
    for remat in ("block", "dots"):
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4), gradient(remat), expected)


def test_log_probs_in_chunks_equal_those_of_all_logits():
    model, params, tokens = model_and_inputs("qwen3")
    expected = jax.nn.log_softmax(whole_pass("qwen3")[:, :-1] / 0.7)
    chosen = jnp.take_along_axis(expected, tokens[:, 1:, None], axis=2)[..., 0]
    for size in (256, 4):
        chunked = dataclasses.replace(model, log_prob_chunk=size)
        log_probs, entropies = jax.jit(chunked.token_log_probs)(params, tokens, temperature=0.7)
        np.testing.assert_allclose(log_probs[:, 1:], chosen, atol=1e-5)
        np.testing.assert_allclose(entropies[:, 1:], -jnp.sum(jnp.exp(expected) * expected, axis=-1), atol=1e-5)
        assert not log_probs[:, 0].any()


def test_forbidden_tokens_leave_the_entropy_and_its_gradient_finite():
    logits = jnp.array([0.3, -jnp.inf, 0.1])
    entropy, slope = jax.value_and_grad(lambda x: log_prob_and_entropy(x, jnp.int32(0))[1])(logits)
    share = 1.0 / (1.0 + np.exp(-0.2))
    np.testing.assert_allclose(entropy, -share * np.log(share) - (1 - share) * np.log(1 - share), rtol=1e-6)
    assert jnp.isfinite(slope).all()


def test_bfloat16_keeps_float32_logits_and_stays_close():
    model, params, tokens = model_and_inputs("llama")
    half = dataclasses.replace(model, compute_dtype="bfloat16")
    logits = jax.jit(half.apply)(params, tokens)[0]
    assert logits.dtype == jnp.float32
    assert half.init_cache(2, 4).keys[0].dtype == jnp.bfloat16
    error = jnp.abs(logits - whole_pass("llama"))
    assert 0.0 < float(error.mean()) < 0.02 * float(jnp.abs(whole_pass("llama")).max())


def test_a_linear_scaling_equals_slower_positions():
    model, params, tokens = model_and_inputs("qwen2")
    scaled = TransformerLM(dataclasses.replace(model.config, rope_scaling=RopeScaling("linear", 4.0)))
    stretched = scaled.apply(params, tokens, positions=jnp.tile(4 * jnp.arange(LENGTH)[None], (BATCH, 1)))[0]
    np.testing.assert_allclose(stretched, whole_pass("qwen2"), atol=1e-4)


def test_sizes_of_presets():
    assert num_parameters(preset("tiny10m")) == 9_966_336
    assert num_parameters(preset("qwen3-0.6b")) == 596_049_920
    nano = preset("nano", vocab_size=16)
    params = TransformerLM(nano, param_dtype="bfloat16").init(jax.random.key(1))
    assert sum(leaf.size for leaf in flatten(params).values()) == num_parameters(nano)
    assert {leaf.dtype for leaf in flatten(params).values()} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("family", FAMILIES)
def test_config_json_round_trip(family):
    config = tiny(family, eos_ids=(3, 4), bos_id=1)
    assert from_hf(to_hf(config)) == config


def test_config_json_of_transformers_4():
    source = {
        "model_type": "llama",
        "vocab_size": 9,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 8,
        "torch_dtype": "bfloat16",
        "rope_theta": 5e5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "eos_token_id": 7,
    }
    config = from_hf(source)
    assert (config.num_kv_heads, config.head_dim, config.dtype, config.rope_theta) == (4, 8, "bfloat16", 5e5)
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.eos_ids == (7,)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "qwen4"}, "model_type.*'qwen3'"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, r"rope_parameters\.rope_type.*yarn"),
        ({"rope_parameters": {"rope_type": "linear"}}, "rope_parameters has no 'factor'"),
        ({"hidden_act": "relu"}, "activation.*relu"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types holds sliding_attention"),
        ({"use_sliding_window": True, "sliding_window": 8}, "sliding_window = 8"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"head_dim": None}, "no 'head_dim'"),
        ({"num_hidden_layers": None}, "no 'num_hidden_layers'"),
        ({"num_key_value_heads": 3}, "num_kv_heads must divide"),
    ],
)
def test_unsupported_configurations_are_named(changes, message):
    source = {**to_hf(tiny("qwen3")), **changes}
    with pytest.raises(ValueError, match=message):
        from_hf(source)


def test_public_names_are_found():
    assert all(getattr(llm, name) is not None for name in llm.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'generat'"):
        llm.generat  # noqa: B018


def test_settings_that_cannot_be_used_are_refused():
    with pytest.raises(ValueError, match="remat must be one of none, block, dots"):
        TransformerLM(tiny(), remat="all")
    with pytest.raises(ValueError, match="cannot express qk_norm"):
        to_hf(tiny("llama", qk_norm=True))
    with pytest.raises(ValueError, match="exceeds max_positions = 64"):
        TransformerLM(tiny("gpt2")).init_cache(1, 65)
    model, params, tokens = model_and_inputs("qwen3")
    with pytest.raises(ValueError, match="block of 12 tokens exceeds the cache's 8 slots"):
        model.apply(params, tokens, cache=model.init_cache(BATCH, 8))
