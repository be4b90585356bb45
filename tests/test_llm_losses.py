"""Losses and advantages of language models: numbers from PyTorch, and what must hold whatever the numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torch_llm_losses
from jaxrl.llm import advantages as adv
from jaxrl.llm import losses
from jaxrl.llm.losses import PolicyLoss, aggregate, policy_loss, token_weights, weighted_sum
from jaxrl.llm.model import log_prob_and_entropy

N = torch_llm_losses.NUMBERS
GROUP = torch_llm_losses.GROUP
INPUTS = {name: jnp.asarray(value) for name, value in torch_llm_losses.make_inputs().items()}
MASK = INPUTS["mask"]


def chosen(logits):
    return log_prob_and_entropy(logits, INPUTS["tokens"])[0]


def policy_term(kind, log_probs, old, advantages, mask, dual_clip=None):
    one = functools.partial(policy_loss, PolicyLoss(kind, dual_clip), clip_low=N["low"], clip_high=N["high"])
    return jax.vmap(one)(log_probs, old, advantages, mask)


def all_losses(logits):
    """Every loss of the PyTorch file by name."""
    new, old, reference = (chosen(x) for x in (logits, INPUTS["old_logits"], INPUTS["reference_logits"]))
    terms = (new, old, INPUTS["advantages"], MASK)
    clip = policy_term("clip", *terms)
    tokens = {
        "clip": clip,
        "dual_clip": policy_term("clip", *terms, dual_clip=N["dual"]),
        "gspo": policy_term("gspo", *terms),
        "cispo": policy_term("cispo", *terms),
        **{kind: losses.kl_estimate(new, reference, kind) for kind in losses.KL_ESTIMATORS},
        "full_kl": losses.full_kl(logits, INPUTS["reference_logits"]),
        "sft": losses.token_loss(logits, INPUTS["tokens"], N["smoothing"], N["z"]),
    }
    result = {name: aggregate(values, MASK) for name, values in tokens.items()}
    for kind in ("sequence_mean", "sequence_sum", "sequence_sum_norm"):
        result[kind] = aggregate(clip, MASK, kind, N["length"])
    gains = jnp.sum(jnp.where(MASK, new - reference, 0.0), axis=1)
    margin = gains[0] - gains[1]
    return result | {
        "dpo": losses.preference_loss(margin, N["beta"], "sigmoid", N["smoothing"]),
        "ipo": losses.preference_loss(margin, N["beta"], "ipo"),
        "hinge": losses.preference_loss(margin, N["beta"], "hinge"),
    }


@functools.cache
def golden():
    with np.load(torch_llm_losses.GOLDEN) as file:
        return dict(file)


def test_losses_and_gradients_equal_those_of_pytorch():
    def both(logits):
        return jax.jacrev(lambda logits: (all_losses(logits),) * 2, has_aux=True)(logits)

    gradients, values = jax.jit(both)(INPUTS["logits"])
    assert {name for name in golden() if f"{name}/gradient" in golden()} == set(values)
    for name, value in values.items():
        np.testing.assert_allclose(value, golden()[name], rtol=1e-6, atol=1e-6, err_msg=name)
        expected = golden()[f"{name}/gradient"]
        np.testing.assert_allclose(gradients[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)


def test_advantages_equal_those_of_pytorch():
    @jax.jit
    def ours():
        new, old, reference = (chosen(INPUTS[name]) for name in ("logits", "old_logits", "reference_logits"))
        groups = INPUTS["rewards"].reshape(-1, GROUP)
        to_go = jax.vmap(adv.penalised_returns)(INPUTS["rewards"], -N["beta"] * (new - reference), MASK)
        last = MASK & (jnp.cumsum(MASK, axis=1) == jnp.sum(MASK, axis=1, keepdims=True))
        rewards = jnp.where(last, INPUTS["rewards"][:, None], 0.0)
        gae = functools.partial(adv.token_advantages, discount=0.9, gae_lambda=0.8)
        return {
            "grpo": jax.vmap(adv.group_advantages)(groups).reshape(-1),
            "dr_grpo": jax.vmap(functools.partial(adv.group_advantages, scale=False))(groups).reshape(-1),
            "rloo": jax.vmap(adv.leave_one_out_advantages)(groups).reshape(-1),
            "reinforce_plus_plus": adv.whiten(to_go, MASK),
            "gae": jax.vmap(gae)(rewards, INPUTS["values"], MASK),
            "cap": losses.importance_cap(old, reference, N["cap"]),
        }

    for name, value in ours().items():
        np.testing.assert_allclose(value, golden()[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("kind", losses.AGGREGATIONS)
def test_on_policy_the_clipped_loss_is_reinforce(kind):
    new = chosen(INPUTS["logits"])

    def loss(x):
        return aggregate(policy_term("clip", x, new, INPUTS["advantages"], MASK), MASK, kind)

    def reinforce(x):
        return aggregate(-INPUTS["advantages"] * x, MASK, kind)

    value, gradient = jax.jit(jax.value_and_grad(loss))(new)
    np.testing.assert_allclose(value, -aggregate(INPUTS["advantages"], MASK, kind), atol=1e-6)
    np.testing.assert_allclose(gradient, jax.grad(reinforce)(new), atol=1e-6)


def test_advantages_of_groups():
    rewards = jnp.array([1.0, 0.0])
    np.testing.assert_allclose(adv.group_advantages(rewards), [1.0, -1.0], atol=1e-5)
    np.testing.assert_allclose(adv.leave_one_out_advantages(rewards), [1.0, -1.0])
    np.testing.assert_allclose(adv.group_advantages(rewards, scale=False), [0.5, -0.5])
    for equal in (0.0, 0.3, -7.0):
        assert not adv.group_advantages(jnp.full(4, equal)).any()
    drawn = jnp.array([0.1, 0.9, -0.4, 0.3])
    expected = adv.group_advantages(drawn)
    np.testing.assert_allclose(adv.group_advantages(drawn + 5.0), expected, atol=1e-5)
    np.testing.assert_allclose(adv.group_advantages(drawn * 3.0), expected, atol=1e-5)
    np.testing.assert_allclose(
        adv.leave_one_out_advantages(drawn * 3.0), 3.0 * adv.leave_one_out_advantages(drawn), rtol=1e-5
    )
    with pytest.raises(ValueError, match="at least 2 answers"):
        adv.leave_one_out_advantages(jnp.ones(1))


def test_kl_estimators_have_the_mean_of_the_exact_kl():
    generator = np.random.default_rng(0)
    log_p, log_q = (jax.nn.log_softmax(jnp.asarray(generator.standard_normal(6), jnp.float32)) for _ in range(2))
    tokens = generator.choice(6, size=1_000_000, p=np.exp(np.asarray(log_p, np.float64)) / np.exp(log_p).sum())
    exact = float(losses.full_kl(log_p, log_q))
    assert exact > 0.1
    for kind in ("k1", "k3"):
        by_token = np.asarray(losses.kl_estimate(log_p, log_q, kind))
        drawn = by_token[tokens]
        assert abs(drawn.mean() - exact) < 3 * drawn.std() / 1000, kind
    assert (losses.kl_estimate(log_p, log_q) > 0).all()
    assert not losses.kl_estimate(log_p, log_p).any()


def test_dpo_at_the_reference():
    value, slope = jax.value_and_grad(lambda h: losses.preference_loss(h, 0.4))(0.0)
    np.testing.assert_allclose([value, slope], [np.log(2.0), -0.2], rtol=1e-6)
    np.testing.assert_allclose(losses.ranking_loss(jnp.float32(1.0), jnp.float32(1.0)), np.log(2.0), rtol=1e-6)


def test_tokens_of_others_are_skipped_by_advantages():
    mask = jnp.array([False, True, True, False, False, True, False])
    last = jnp.zeros(7).at[5].set(2.0)
    undiscounted = adv.token_advantages(last, jnp.zeros(7), mask, 1.0, 1.0)
    np.testing.assert_allclose(undiscounted, jnp.where(mask, 2.0, 0.0))
    # A reward that comes with an answer of the environment counts to the token before it; NaN values are not read.
    values = jnp.where(mask, 0.5, jnp.nan)
    found = adv.token_advantages(jnp.zeros(7).at[4].set(1.0), values, mask, 0.5, 0.0)
    np.testing.assert_allclose(found, [0.0, 0.5 * 0.5 - 0.5, 1.0 + 0.25 - 0.5, 0.0, 0.0, -0.5, 0.0])


@pytest.mark.parametrize("kind", losses.POLICY_LOSSES)
def test_what_is_masked_is_never_read(kind):
    new, old = chosen(INPUTS["logits"]), chosen(INPUTS["old_logits"])

    def loss(new, old, mask, advantages):
        return aggregate(policy_term(kind, new, old, advantages, mask), mask)

    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(new, old, MASK, INPUTS["advantages"])
    hidden = [jnp.where(MASK, x, jnp.nan) for x in (new, old, INPUTS["advantages"])]
    nan_value, nan_gradient = run(hidden[0], hidden[1], MASK, hidden[2])
    np.testing.assert_array_equal(value, nan_value)
    np.testing.assert_array_equal(gradient, nan_gradient)
    order = jnp.array([2, 0, 3, 1])
    moved, _ = run(new[order], old[order], MASK[order], INPUTS["advantages"][order])
    np.testing.assert_allclose(moved, value, atol=1e-6)


@pytest.mark.parametrize("kind", losses.AGGREGATIONS)
def test_padding_and_micro_batches_change_no_aggregate(kind):
    values = INPUTS["advantages"]
    whole = aggregate(values, MASK, kind, 16.0)
    padded = aggregate(jnp.pad(values, ((0, 2), (0, 3))), jnp.pad(MASK, ((0, 2), (0, 3))), kind, 16.0)
    np.testing.assert_allclose(padded, whole, atol=1e-6)
    weights = token_weights(MASK, kind, 16.0)
    parts = [weighted_sum(values[i : i + 2], weights[i : i + 2]) for i in (0, 2)]
    np.testing.assert_allclose(sum(parts), whole, atol=1e-6)


def test_where_the_clip_stops_the_gradient():
    slope = jax.grad(losses.clipped_policy_loss)
    assert slope(jnp.log(1.5), 1.0, 0.2, 0.28) == 0.0
    assert slope(jnp.log(1.5), -1.0, 0.2, 0.28) > 0.0
    assert slope(jnp.log(0.5), -1.0, 0.2, 0.28) == 0.0
    assert slope(jnp.log(1.25), 1.0, 0.2, 0.28) < 0.0  # beyond the lower bound's width, within the upper one's
    assert slope(jnp.log(4.0), -1.0, 0.2, 0.28, 3.0) == 0.0
    assert jax.grad(losses.cispo_loss)(-1.0, -2.0, 1.0, 0.2, 0.28) == pytest.approx(-1.28)


def test_gradients_by_finite_differences():
    """In double precision, where every loss is smooth: away from the edges of clipping."""
    with jax.enable_x64(True):
        generator = np.random.default_rng(4)
        logits, other = (jnp.asarray(generator.standard_normal((2, 3)), jnp.float64) for _ in range(2))
        tokens = jnp.array([0, 2])

        @jax.jit
        def every(logits):
            new, old = (log_prob_and_entropy(x, tokens)[0] for x in (logits, other))
            weight = jnp.array([0.7, -1.1], jnp.float64)
            return jnp.stack(
                [
                    jnp.sum(losses.clipped_policy_loss(new - old, weight, 50.0, 50.0)),
                    jnp.sum(losses.kl_estimate(new, old, "k2") + losses.kl_estimate(new, old, "k3")),
                    jnp.sum(losses.full_kl(other, logits) + losses.full_kl(logits, other)),
                    jnp.sum(losses.token_loss(logits, tokens, 0.1, 0.01)),
                    losses.preference_loss(new[0] - new[1], 0.3, "sigmoid", 0.1),
                    losses.preference_loss(new[0] - new[1], 0.3, "ipo"),
                    losses.ranking_loss(new[0], new[1]),
                    jnp.sum(losses.sparse_distillation_loss(logits, other[:, :2], jnp.array([[0, 2], [2, 1]]))),
                ]
            )

        exact = jax.jit(jax.jacrev(every))(logits)
        for place in np.ndindex(2, 3):
            step = jnp.zeros((2, 3)).at[place].set(1e-5)
            slope = (every(logits + step) - every(logits - step)) / 2e-5
            np.testing.assert_allclose(exact[:, *place], slope, atol=1e-8)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind must be one of clip, gspo, cispo"):
        PolicyLoss("ppo")
    with pytest.raises(ValueError, match="dual_clip must be above 1"):
        PolicyLoss(dual_clip=0.5)
    with pytest.raises(ValueError, match="'token_mean'"):
        aggregate(jnp.zeros((1, 1)), jnp.ones((1, 1), bool), "token-mean")
