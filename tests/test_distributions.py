"""Distributions over actions: closed forms, masks, sampling frequencies, and equality with distrax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from envs_jax.spaces import Box, Discrete, MultiDiscrete
from jaxrl.parts.distributions import (
    Categorical,
    DiagonalNormal,
    MultiCategorical,
    action_head,
    scale_to_bounds,
    to_distrax,
)

LOGITS = np.array([0.3, -1.0, 2.0, 0.0, 0.7], np.float32)
LEGAL = np.array([True, True, False, True, True])
SIZES = (2, 3)  # of the multi-discrete action over the same five logits
modes = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def softmax(logits, legal=True):
    weights = np.where(legal, np.exp(logits.astype(np.float64)), 0.0)
    return weights / weights.sum()


def multi(logits, legal=None):
    return action_head(MultiDiscrete(SIZES)).distribution(logits, None, legal)


@modes
@pytest.mark.parametrize("legal", [None, LEGAL], ids=["free", "masked"])
def test_categorical_by_hand(mode, legal):
    @mode
    def measure(logits):
        d = Categorical.from_logits(logits, legal)
        return jnp.exp(d.log_probs), d.log_prob(jnp.int32(4)), d.entropy(), d.mode()

    probs = softmax(LOGITS, True if legal is None else legal)
    measured, log_prob, entropy, best = measure(jnp.asarray(LOGITS))
    np.testing.assert_allclose(measured, probs, rtol=1e-6)
    np.testing.assert_allclose(log_prob, np.log(probs[4]), rtol=1e-6)
    np.testing.assert_allclose(entropy, stats.entropy(probs), rtol=1e-6)
    assert int(best) == probs.argmax()
    assert best.dtype == jnp.int32
    if legal is not None:
        assert not np.any(np.asarray(measured)[~legal])  # exactly 0, not small


def test_masking_is_absence():
    """What is illegal might as well not be there: the rest is distributed as if it were alone."""
    masked = Categorical.from_logits(jnp.asarray(LOGITS), LEGAL)
    alone = Categorical.from_logits(jnp.asarray(LOGITS[LEGAL]))
    np.testing.assert_allclose(masked.log_probs[LEGAL], alone.log_probs, rtol=1e-6)
    np.testing.assert_allclose(masked.entropy(), alone.entropy(), rtol=1e-6)


def test_sampling_frequencies():
    keys = jax.random.split(jax.random.key(0), 50_000)

    @jax.jit
    def draw(keys):
        free, masked = Categorical.from_logits(LOGITS), Categorical.from_logits(LOGITS, LEGAL)
        return tuple(jax.vmap(d.sample)(keys) for d in (free, masked, multi(LOGITS, LEGAL)))

    def check(drawn, probs):
        counts = np.bincount(drawn, minlength=len(probs))
        assert not counts[probs == 0].any()
        assert stats.chisquare(counts[probs > 0], len(drawn) * probs[probs > 0]).pvalue > 1e-3

    free, masked, parts = draw(keys)
    assert free.dtype == masked.dtype == parts.dtype == jnp.int32
    check(np.asarray(free), softmax(LOGITS))
    check(np.asarray(masked), softmax(LOGITS, LEGAL))
    first, second = np.asarray(parts).T
    check(first, softmax(LOGITS[:2], LEGAL[:2]))
    check(second, softmax(LOGITS[2:], LEGAL[2:]))


@pytest.mark.parametrize("num_actions", [6, 300])
def test_no_uniform_number_draws_an_illegal_action(num_actions, monkeypatch):
    """Also those that hardly ever come up: 0, the last below 1, and all beside a step of the cumulative sum.

    Over many actions the sum is computed in parallel, and is neither monotone nor flat where 0 is added.
    """
    generator, last = np.random.default_rng(0), np.float32(1 - 2**-23)

    def sample(logits, legal, uniform):
        with monkeypatch.context() as patch:
            patch.setattr(jax.random, "uniform", lambda key, shape: uniform)
            return Categorical.from_logits(logits, legal).sample(jax.random.key(0))

    draw = jax.jit(jax.vmap(sample, (None, None, 0)))
    cumulative_sum = jax.jit(
        lambda logits, legal: jnp.cumsum(jnp.exp(Categorical.from_logits(logits, legal).log_probs))
    )
    for _ in range(30):
        logits = generator.normal(size=num_actions).astype(np.float32)
        legal = generator.random(num_actions) < 0.5
        legal[generator.integers(num_actions)] = True
        steps = np.asarray(cumulative_sum(logits, legal))
        below, above = (np.nextafter(steps, np.float32(limit)) for limit in (0, 2))
        uniforms = np.concatenate([steps, below, above, [0.0, last]]).astype(np.float32)
        drawn = np.asarray(draw(logits, legal, np.minimum(uniforms, last)))
        assert legal[drawn].all()


def test_gradients_are_finite_and_zero_for_illegal_actions():
    def objective(logits, legal):
        d = Categorical.from_logits(logits, legal)
        return d.log_prob(jnp.int32(4)) + d.entropy()

    gradient = jax.jit(jax.grad(objective))
    for scale in (1.0, 1e3):  # with 1e3 the policy is deterministic: the entropy's 0 log 0
        slopes = np.asarray(gradient(scale * LOGITS, LEGAL))
        assert np.isfinite(slopes).all()
        assert not slopes[~LEGAL].any()
    only = np.arange(5) == 4
    np.testing.assert_array_equal(gradient(jnp.asarray(LOGITS), only), np.zeros(5))


def test_multi_categorical_is_the_product_of_its_parts():
    joint, action = multi(jnp.asarray(LOGITS), LEGAL), jnp.array([0, 2], jnp.int32)
    parts = [Categorical.from_logits(jnp.asarray(LOGITS[part]), LEGAL[part]) for part in (slice(0, 2), slice(2, 5))]
    assert isinstance(joint, MultiCategorical)
    np.testing.assert_allclose(joint.log_prob(action), parts[0].log_prob(action[0]) + parts[1].log_prob(action[1]))
    np.testing.assert_allclose(joint.entropy(), parts[0].entropy() + parts[1].entropy())
    np.testing.assert_array_equal(joint.mode(), [0, 2])


@modes
def test_diagonal_normal_against_scipy(mode):
    mean, log_std = np.array([0.5, -1.0], np.float32), np.array([-0.5, 0.3], np.float32)
    value = np.array([0.1, 0.7], np.float32)

    @mode
    def measure(mean, log_std, value):
        d = DiagonalNormal(mean, log_std)
        return d.log_prob(value), d.entropy(), d.mode()

    log_prob, entropy, best = measure(*map(jnp.asarray, (mean, log_std, value)))
    reference = stats.norm(mean, np.exp(log_std))
    np.testing.assert_allclose(log_prob, reference.logpdf(value).sum(), rtol=1e-5)
    np.testing.assert_allclose(entropy, reference.entropy().sum(), rtol=1e-5)
    np.testing.assert_array_equal(best, mean)


def test_diagonal_normal_samples():
    d = DiagonalNormal(jnp.array([0.5, -1.0]), jnp.array([-0.5, 0.3]))
    drawn = np.asarray(jax.jit(jax.vmap(d.sample))(jax.random.split(jax.random.key(0), 20_000)))
    for i, (mean, std) in enumerate(zip([0.5, -1.0], np.exp([-0.5, 0.3]))):
        assert stats.kstest(drawn[:, i], stats.norm(mean, std).cdf).pvalue > 1e-3
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.03


def test_actions_are_scaled_to_the_bounds_and_clipped():
    to_env = scale_to_bounds(Box([-2.0, 0.0], [2.0, 10.0], (2,)))
    np.testing.assert_allclose(to_env(jnp.array([0.5, -1.0])), [1.0, 0.0])
    np.testing.assert_allclose(to_env(jnp.array([-7.0, 7.0])), [-2.0, 10.0])
    free = scale_to_bounds(Box(-np.inf, np.inf, (2,)))
    np.testing.assert_allclose(free(jnp.array([-7.0, 7.0])), [-7.0, 7.0])
    half_bounded = scale_to_bounds(Box([0.0, -np.inf], np.inf, (2,)))
    np.testing.assert_allclose(half_bounded(jnp.array([-7.0, -7.0])), [0.0, -7.0])


def test_heads_fit_their_spaces():
    heads = [action_head(space) for space in (Discrete(5), MultiDiscrete(SIZES), Box(-1.0, 1.0, (3,)))]
    assert [(head.num_outputs, head.continuous) for head in heads] == [(5, False), (5, False), (3, True)]


@pytest.mark.parametrize("space", [Box(0, 255, (3,), jnp.uint8), Box(-1.0, 1.0, (2, 2)), Box(-1.0, 1.0)], ids=str)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="must be Discrete, MultiDiscrete or a Box of floats with one axis, got Box"):
        action_head(space)


@pytest.mark.slow  # importing distrax takes seconds
def test_equality_with_distrax():
    mean, log_std = jnp.array([0.5, -1.0, 0.0]), jnp.array([-0.5, 0.3, 0.0])
    cases = [
        (Categorical.from_logits(jnp.asarray(LOGITS)), jnp.int32(3)),
        (Categorical.from_logits(jnp.asarray(LOGITS), LEGAL), jnp.int32(4)),
        (multi(jnp.asarray(LOGITS)), jnp.array([1, 0], jnp.int32)),
        (DiagonalNormal(mean, log_std), jnp.array([0.3, -4.0, 0.2])),
    ]
    for ours, value in cases:
        theirs = to_distrax(ours)
        their_value = list(value) if isinstance(ours, MultiCategorical) else value
        np.testing.assert_allclose(ours.log_prob(value), theirs.log_prob(their_value), rtol=1e-5)
        np.testing.assert_allclose(ours.entropy(), theirs.entropy(), rtol=1e-5)
        np.testing.assert_array_equal(ours.mode(), jnp.stack(jax.tree.leaves(theirs.mode())).reshape(ours.mode().shape))
    with pytest.raises(TypeError, match="not a distribution of this module: int"):
        to_distrax(3)
