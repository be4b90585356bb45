"""Generation: two drivers, filters, stops, constraints; what was sampled is what training would see."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl.llm.generation import Constraint, generate
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.sampling import candidates, make_sampling, sample_token
from llm_models import random_params, tiny

BATCH, PROMPT, NEW = 4, 5, 10
MODEL = TransformerLM(tiny())
VOCAB = MODEL.config.vocab_size
SAMPLING = make_sampling(temperature=0.8)
whole = jax.jit(MODEL.token_log_probs)
traces = []


@functools.partial(jax.jit, static_argnames=("driver", "stop_ids"))
def run(params, tokens, valid, keys, sampling, driver="scan", stop_ids=()):
    traces.append(driver)
    return generate(
        *(MODEL, params, tokens, keys),
        max_new=NEW,
        sampling=sampling,
        valid=valid,
        stop_ids=stop_ids,
        pad_id=VOCAB - 1,
        driver=driver,
    )


@functools.cache
def inputs():
    tokens = np.random.default_rng(3).integers(0, VOCAB, (BATCH, PROMPT), np.int32)
    return random_params(MODEL.config, scale=0.2), tokens, np.ones((BATCH, PROMPT), bool), jax.random.key(5)


def test_sampled_log_probs_are_those_of_the_whole_pass():
    params, tokens, valid, key = inputs()
    result = run(params, tokens, valid, key, SAMPLING)
    rows = jnp.concatenate([tokens, result.tokens], axis=1)
    np.testing.assert_allclose(result.log_probs, whole(params, rows)[0][:, PROMPT:], atol=1e-5)
    warm = whole(params, rows, temperature=0.8)[0][:, PROMPT:]
    np.testing.assert_allclose(result.behaviour_log_probs, warm, atol=1e-5)
    assert result.mask.all()
    assert result.lengths.tolist() == [NEW] * BATCH


def test_drivers_agree_and_stop_tokens_end_a_sequence():
    params, tokens, valid, key = inputs()
    plain = run(params, tokens, valid, key, SAMPLING).tokens
    stop = int(plain[0, 3])
    scan, loop = (run(params, tokens, valid, key, SAMPLING, driver, (stop,)) for driver in ("scan", "while"))
    for row in range(BATCH):
        found = np.flatnonzero(plain[row] == stop)
        length = int(found[0]) + 1 if len(found) else NEW
        assert scan.lengths[row] == length
        np.testing.assert_array_equal(scan.tokens[row, :length], plain[row, :length])
        assert (scan.tokens[row, length:] == VOCAB - 1).all()
        assert scan.mask[row].tolist() == [True] * length + [False] * (NEW - length)
        assert not scan.log_probs[row, length:].any()
    np.testing.assert_array_equal(scan.tokens, loop.tokens)
    np.testing.assert_array_equal(scan.mask, loop.mask)
    np.testing.assert_array_equal(scan.lengths, loop.lengths)
    np.testing.assert_allclose(scan.log_probs, loop.log_probs, atol=1e-6)
    np.testing.assert_allclose(scan.behaviour_log_probs, loop.behaviour_log_probs, atol=1e-6)


def test_a_sequence_depends_on_its_own_key_alone():
    params, tokens, valid, key = inputs()
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(BATCH))
    order = np.array([2, 0, 3, 1])
    one, other = run(params, tokens, valid, keys, SAMPLING), run(params, tokens[order], valid, keys[order], SAMPLING)
    np.testing.assert_array_equal(one.tokens, run(params, tokens, valid, key, SAMPLING).tokens)
    np.testing.assert_array_equal(one.tokens[order], other.tokens)


def test_padding_on_the_left_changes_no_greedy_token():
    params, tokens, _, key = inputs()
    lengths = np.array([5, 3, 4, 1])
    valid = np.arange(PROMPT)[None] >= PROMPT - lengths[:, None]
    greedy = make_sampling(temperature=0.0)
    padded = run(params, np.where(valid, tokens, 0), valid, key, greedy)
    other = run(params, np.where(valid, tokens, 7), valid, key, greedy)
    np.testing.assert_array_equal(padded.tokens, other.tokens)
    assert not padded.behaviour_log_probs.any()
    # The same sequences without padding before them: every token is the most probable one after the others.
    starts = PROMPT - lengths
    rows = np.stack([np.roll(row, -start) for row, start in zip(np.hstack([tokens, padded.tokens]), starts)])
    best = np.argmax(jax.jit(MODEL.apply)(params, rows)[0], axis=-1)
    for row, length in enumerate(lengths):
        np.testing.assert_array_equal(padded.tokens[row], best[row, length - 1 : length - 1 + NEW])


def test_one_trace_per_shape():
    params, tokens, valid, key = inputs()
    run(params, tokens, valid, key, SAMPLING)
    count = len(traces)
    for seed in range(5):
        run(params, tokens + 0, valid, jax.random.key(seed), make_sampling(temperature=0.5 + seed))
    assert len(traces) == count


def test_forced_and_forbidden_tokens():
    """Odd tokens only; at places 2 and 3 a forced pair."""
    params, tokens, _, key = inputs()
    constraint = Constraint(
        start=jnp.zeros(BATCH, jnp.int32),
        advance=lambda state, token: state + 1,
        allow=lambda state: jnp.arange(VOCAB) % 2 == 1,
        force=lambda state: ((state == 2) | (state == 3), 10 + 2 * state),
    )
    result = jax.jit(
        lambda params, key: generate(
            *(MODEL, params, tokens, key), max_new=6, sampling=make_sampling(top_k=3), constraint=constraint
        )
    )(params, key)
    assert result.tokens[:, 2:4].tolist() == [[14, 16]] * BATCH
    free = np.array([0, 1, 4, 5])
    assert (result.tokens[:, free] % 2 == 1).all()
    np.testing.assert_array_equal(result.mask, np.tile(np.isin(np.arange(6), free), (BATCH, 1)))
    rows = jnp.concatenate([tokens, result.tokens], axis=1)
    # The tail repeats: six new tokens in rows as long as those of the other tests, one program for all.
    rows = jnp.concatenate([rows, rows[:, : NEW - 6]], axis=1)
    expected = whole(params, rows)[0][:, PROMPT : PROMPT + 6]
    np.testing.assert_allclose(result.log_probs, np.where(result.mask, expected, 0.0), atol=1e-5)
    # At most three candidates: each drawn one has more mass than under the model.
    assert (result.behaviour_log_probs[:, free] > result.log_probs[:, free]).all()


def filtered(logits, temperature=1.0, top_k=None, top_p=None, min_p=None):
    """The distribution that the filters leave, in plain NumPy."""
    probabilities = np.exp(logits / temperature) / np.exp(logits / temperature).sum()
    order = np.argsort(-probabilities, kind="stable")
    if top_k is not None:
        probabilities[order[top_k:]] = 0.0
        probabilities /= probabilities.sum()
    if top_p is not None:
        before = np.cumsum(probabilities[order]) - probabilities[order]
        probabilities[order[before > top_p]] = 0.0
    if min_p is not None:
        probabilities[probabilities < min_p * probabilities.max()] = 0.0
    return probabilities / probabilities.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.6},
        {"top_k": 3},
        {"top_p": 0.7},
        {"min_p": 0.2},
        {"temperature": 1.5, "top_k": 6, "top_p": 0.8, "min_p": 0.1},
    ],
    ids=str,
)
def test_frequencies_are_those_of_the_filtered_distribution(settings):
    logits = np.array(
        [0.3, 1.9, -0.7, 1.1, 1.1, -2.0, 0.0, 0.8], np.float32
    )  # two equal: the first one counts as larger
    expected = filtered(logits.astype(np.float64), **settings)
    sampling, draws = make_sampling(**settings), 200_000

    @jax.jit
    def draw(keys):
        return jax.vmap(lambda key: sample_token(jnp.asarray(logits), key, sampling))(keys)

    tokens, log_probs = draw(jax.random.split(jax.random.key(0), draws))
    counts = np.bincount(tokens, minlength=8)
    kept = expected > 0
    assert not counts[~kept].any()
    assert stats.chisquare(counts[kept], draws * expected[kept]).pvalue > 1e-4
    np.testing.assert_allclose(np.exp(log_probs), expected[tokens], rtol=1e-5)


def test_the_first_of_equal_tokens_is_kept():
    kept, tokens = candidates(jnp.array([1.0, 2.0, 2.0, 2.0]), make_sampling(top_k=2))
    assert tokens.tolist() == [1, 2]
    assert jnp.isfinite(kept).all()
    assert sample_token(jnp.array([0.0, 5.0, 5.0]), jax.random.key(0), make_sampling(temperature=0.0))[0] == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1.0}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
    ],
)
def test_unusable_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_sampling(**settings)


def test_unknown_driver_and_no_new_tokens_are_refused():
    params, tokens, _, key = inputs()
    with pytest.raises(ValueError, match="driver must be one of scan, while"):
        generate(MODEL, params, tokens, key, max_new=2, sampling=SAMPLING, driver="for")
    with pytest.raises(ValueError, match="max_new must be at least 1, got 0"):
        generate(MODEL, params, tokens, key, max_new=0, sampling=SAMPLING)
