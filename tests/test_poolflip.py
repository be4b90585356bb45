"""PoolFlip: rules, stealth, utilities, and lockstep with a plain reference."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax.games.poolflip import UTILITIES, PoolFlip
from envs_jax.spaces import Discrete
from envs_jax.testing import check_environment
from poolflip_reference import Reference

KEY = jax.random.key(0)
SLEEP, STATE_FIELDS = (
    0,
    ("owner", "last_flip", "believed_owner", "believed_opponent_flip", "knowledge_time", "held_since"),
)


def flip(resource: int) -> int:
    return 1 + 2 * resource


def check(resource: int) -> int:
    return 2 + 2 * resource


@functools.partial(jax.jit, static_argnums=0)
def rollout(env: PoolFlip, params, actions, key=KEY):
    """States and time steps after each of `actions` `[T, A]`."""

    def step(state, inputs):
        state, time_step = env.step(inputs[0], state, inputs[1], params)
        return state, (state, time_step)

    actions = jnp.asarray(actions, jnp.int32)
    return jax.lax.scan(step, env.reset(key, params)[0], (jax.random.split(key, len(actions)), actions))[1]


def random_actions(seed: int, num_resources: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 1 + 2 * num_resources, (*shape, 2)).astype(np.int32)


# Rules.


@pytest.mark.parametrize(
    "num_resources", [1, 3, 10, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4, 5, 6, 7, 8, 9))]
)
def test_actions_name_a_move_and_a_resource(num_resources):
    env = PoolFlip(num_resources, horizon=4)
    params = env.default_params
    num_actions = 1 + 2 * num_resources
    assert env.action_space(params) == Discrete(num_actions)

    @jax.jit
    @jax.vmap
    def outcome(action):
        state, _ = env.reset(KEY, params)
        state, time_step = env.step(KEY, state, jnp.stack([jnp.int32(SLEEP), action]), params)
        return state.owner, state.knowledge_time, time_step.info["num_flips"], time_step.info["num_checks"]

    owner, knowledge_time, num_flips, num_checks = outcome(jnp.arange(num_actions, dtype=jnp.int32))
    decoded = {SLEEP: None} | {move(r): (move, r) for move in (flip, check) for r in range(num_resources)}
    assert sorted(decoded) == list(range(num_actions))
    for action, meaning in decoded.items():
        touched = np.arange(num_resources) == (meaning[1] if meaning else -1)
        flipped = meaning is not None and meaning[0] is flip
        np.testing.assert_array_equal(owner[action], touched & flipped)
        np.testing.assert_array_equal(knowledge_time[action], [[-1] * num_resources, np.where(touched, 0, -1)])
        np.testing.assert_array_equal(num_flips[action], [0, flipped])
        np.testing.assert_array_equal(num_checks[action], [0, meaning is not None and not flipped])


# Blue, red; then what is true and believed after the tick: owner; per agent its own last flips, the owner it believes
# in, the last opponent's flip it knows of, and when it looked.
SCRIPT = [
    # Red takes resource 0 unseen.
    ((SLEEP, flip(0)), [1, 0], [[-1, -1], [0, -1]], [[0, 0], [1, 0]], [[-1, -1], [-1, -1]], [[-1, -1], [0, -1]]),
    # A tie on resource 1: the defender keeps it, both pay and both learn of the other's flip.
    ((flip(1), flip(1)), [1, 0], [[-1, 1], [0, 1]], [[0, 0], [1, 0]], [[-1, 1], [-1, 1]], [[-1, 1], [0, 1]]),
    # Blue checks resource 0 and learns of the flip of tick 0; red takes resource 1 unseen.
    ((check(0), flip(1)), [1, 1], [[-1, 1], [0, 2]], [[1, 0], [1, 1]], [[0, 1], [-1, 1]], [[2, 1], [0, 2]]),
    # Blue checks resource 1; red wastes a flip on resource 0.
    ((check(1), flip(0)), [1, 1], [[-1, 1], [3, 2]], [[1, 1], [1, 1]], [[0, 2], [-1, 1]], [[2, 3], [3, 2]]),
    # A check shows a flip of the same tick.
    ((check(0), flip(0)), [1, 1], [[-1, 1], [4, 2]], [[1, 1], [1, 1]], [[4, 2], [-1, 1]], [[4, 3], [4, 2]]),
    # Blue takes resource 0 back, red's check shows that.
    ((flip(0), check(0)), [0, 1], [[5, 1], [4, 2]], [[0, 1], [0, 1]], [[4, 2], [5, 1]], [[5, 3], [5, 2]]),
    # Blue wastes a flip.
    ((flip(0), check(1)), [0, 1], [[6, 1], [4, 2]], [[0, 1], [0, 1]], [[4, 2], [5, 1]], [[6, 3], [5, 6]]),
    ((SLEEP, SLEEP), [0, 1], [[6, 1], [4, 2]], [[0, 1], [0, 1]], [[4, 2], [5, 1]], [[6, 3], [5, 6]]),
]


def test_a_written_script():
    env = PoolFlip(2, horizon=8, utility="flipit")
    states, time_steps = rollout(env, env.default_params, np.array([row[0] for row in SCRIPT]))
    for tick, row in enumerate(SCRIPT):
        for field, expected in zip(STATE_FIELDS, row[1:], strict=False):
            np.testing.assert_array_equal(getattr(states, field)[tick], expected, f"{field} after tick {tick}")
    np.testing.assert_array_equal(
        time_steps.info["wasted_flips"], [[0, 0], [1, 0], [0, 0], [0, 1], [0, 1], [0, 0], [1, 0], [0, 0]]
    )
    np.testing.assert_allclose(time_steps.reward[:3], [[0.5, -1.5], [-1.5, -1.5], [-0.5, -1.0]])
    np.testing.assert_array_equal(time_steps.info["dwell"][6], [[2, 0], [0, 5]])
    np.testing.assert_array_equal(time_steps.truncated, np.arange(8) == 7)
    assert not time_steps.terminated.any()


@pytest.mark.parametrize(
    ("num_resources", "tie", "utility"),
    [(3, "defender", "ownership_margin"), (1, "incumbent", "flipit"), (4, "incumbent", "ownership_floor")],
)
def test_lockstep_with_the_reference(num_resources, tie, utility):
    """Jitted and vmapped: integers and observations are equal bit by bit, rewards to rounding."""
    num_episodes, horizon = 16, 40
    env = PoolFlip(num_resources, horizon, tie=tie, utility=utility)
    generator = np.random.default_rng(1)
    params = dataclasses.replace(  # type: ignore[type-var]
        env.default_params,
        flip_cost=jnp.asarray(generator.uniform(1, 5, (2, num_resources)), jnp.float32),
        check_cost=jnp.asarray(generator.uniform(0, 1, (2, num_resources)), jnp.float32),
        value=jnp.asarray(generator.uniform(1, 3, num_resources), jnp.float32),
    )
    actions = random_actions(2, num_resources, num_episodes, horizon)
    states, time_steps = jax.jit(jax.vmap(lambda a: rollout(env, params, a)))(actions)
    states, time_steps = jax.device_get((states, time_steps))
    costs = np.asarray(params.flip_cost, float), np.asarray(params.check_cost, float)
    for episode in range(num_episodes):
        reference = Reference(num_resources, horizon, tie, utility, *costs, np.asarray(params.value, float))
        ticks = [reference.step(moves) for moves in actions[episode].tolist()]
        expected = {name: np.array([tick[name] for tick in ticks]) for name in ticks[0]}
        for field in STATE_FIELDS:
            np.testing.assert_array_equal(getattr(states, field)[episode], expected.pop(field), field)
        np.testing.assert_array_equal(time_steps.observation[episode], expected.pop("observation"))
        np.testing.assert_allclose(time_steps.reward[episode], expected.pop("reward"), rtol=0, atol=1e-5)
        for name, values in expected.items():
            np.testing.assert_allclose(time_steps.info[name][episode], values, rtol=0, atol=1e-5, err_msg=name)


def test_stealth():
    """What blue sees does not depend on red's flips of a resource until blue flips or checks that resource."""
    env = PoolFlip(3, horizon=32)
    quiet = random_actions(3, 2, 32)  # both stay with resources 0 and 1
    quiet[20, 0] = check(2)
    loud = quiet.copy()
    loud[3, 1] = loud[9, 1] = flip(2)
    quiet[3, 1] = quiet[9, 1] = SLEEP
    (_, calm), (_, attacked) = (rollout(env, env.default_params, actions) for actions in (quiet, loud))
    for name in ("believed_own", "own_flip", "opponent_flip", "knowledge_time", "time"):
        np.testing.assert_array_equal(calm.info[name][:20, 0], attacked.info[name][:20, 0])
    np.testing.assert_array_equal(calm.observation[:20, 0], attacked.observation[:20, 0])
    assert not np.array_equal(calm.observation[20, 0], attacked.observation[20, 0])
    assert not np.array_equal(calm.reward[:20], attacked.reward[:20])


def test_utilities():
    env = PoolFlip(3, horizon=64)
    info = rollout(env, env.default_params, random_actions(4, 3, 64))[1].info
    np.testing.assert_allclose(info["own"].sum(axis=-1), 1.0, rtol=1e-6)
    (own, _), (cost, other_cost) = np.asarray(info["own"]).T, np.asarray(info["cost"]).T
    count = np.round(own * 3)
    expected = {
        "flipit": own - cost,
        "ownership": 2 * own - 1,
        "ownership_margin": 2 * own - 1 - cost + other_cost,
        "ownership_floor": own - cost - np.maximum(0, 0.5 - own),
        "ownership_any": (count >= 1) - cost,
        "ownership_all": (count == 3) - cost,
        "ownership_majority": (count >= 2) - cost,
    }
    assert set(expected) == set(UTILITIES)
    for utility, values in expected.items():
        env = PoolFlip(3, horizon=64, utility=utility)
        reward = jax.vmap(env.reward, (0, 0, 0, None))(info["own"], info["cost"], info["dwell"] > 0, env.default_params)
        np.testing.assert_allclose(reward[:, 0], values, atol=1e-6, err_msg=utility)
        assert env.zero_sum == (utility in ("ownership", "ownership_margin"))
        assert bool((reward.sum(axis=-1) == 0).all()) == env.zero_sum, utility


def test_permuted_resources_permute_observations():
    env = PoolFlip(4, horizon=32)
    order = np.array([2, 0, 3, 1])
    actions = random_actions(5, 4, 32)
    places = np.concatenate([[0]] + [[flip(new), check(new)] for new in np.argsort(order)])
    observation, permuted = (rollout(env, env.default_params, a)[1].observation for a in (actions, places[actions]))
    blocks = observation[..., :-1].reshape(32, 2, 4, 4)[..., order]
    np.testing.assert_array_equal(permuted[..., :-1], blocks.reshape(32, 2, -1))
    np.testing.assert_array_equal(permuted[..., -1], observation[..., -1])


# Chance.


def outcomes(env: PoolFlip, params, actions: list[tuple[int, int]], num_episodes: int = 4096):
    keys = jax.random.split(KEY, num_episodes)
    return jax.jit(jax.vmap(lambda key: rollout(env, params, np.array(actions), key)))(keys)


def test_random_ties():
    states, _ = outcomes(PoolFlip(1, tie="random"), PoolFlip(1).default_params, [(1, 1)])
    assert abs(states.owner.mean() - 0.5) < 4 * 0.5 / 64
    np.testing.assert_array_equal(states.last_flip, 0)


def test_incumbent_keeps_a_contested_resource():
    states, _ = outcomes(PoolFlip(1, tie="incumbent"), PoolFlip(1).default_params, [(1, 1), (0, 1), (1, 1)], 2)
    np.testing.assert_array_equal(states.owner[:, :, 0], [[0, 1, 1]] * 2)


def test_flips_that_fail_cost_and_reveal():
    env = PoolFlip(1, flip_success=(1.0, 0.3), utility="flipit")
    states, time_steps = outcomes(env, env.default_params, [(0, 1)])
    assert abs(states.owner.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 4096)
    np.testing.assert_array_equal(states.owner[:, 0, 0] == 1, states.last_flip[:, 0, 1, 0] == 0)
    np.testing.assert_array_equal(states.believed_owner[:, :, 1], states.owner)
    np.testing.assert_array_equal(time_steps.info["cost"], np.broadcast_to([0.0, 4.0], (4096, 1, 2)))


# Protocol.


def test_params_do_not_recompile_and_nothing_is_nan():
    names = [
        "sleep",
        "random(0)",
        "periodic(4)",
        "uniform(4,2)",
        "guard(2)",
        "burst(3,3)",
        "greedy_exp(.1)",
        "shadow(2,1)",
    ]
    env, params = envs_jax.make("poolflip-r3", horizon=16, role="blue", opponents=names)
    traces = []

    @jax.jit
    def run(params, key):
        traces.append(None)

        def step(loop, key):
            state, _ = loop
            return env.step(key, state, jnp.int32(1), params), None

        params = env.sample_params(key, params)
        return jax.lax.scan(step, env.reset(key, params), jax.random.split(key, 16))[0][1]

    with jax.debug_nans(True):
        for cost in (1.0, 2.0):
            game = params.game.replace(flip_cost=jnp.full((2, 3), cost), floor_penalty=jnp.float32(cost))
            time_step = run(params.replace(game=game), jax.random.key(int(cost)))
            assert np.isfinite(time_step.observation).all()
    assert len(traces) == 1


def test_costs_can_be_swept():
    env = PoolFlip(3, horizon=16, utility="flipit")
    sweep = jax.vmap(lambda cost: env.default_params.replace(flip_cost=jnp.full((2, 3), cost)))(jnp.array([0.0, 3.0]))  # type: ignore[attr-defined]
    rewards = jax.vmap(lambda params: rollout(env, params, np.ones((16, 2)))[1].reward)(sweep)
    np.testing.assert_allclose(rewards[0] - rewards[1], 1.0)


def test_masks_forbid_what_is_known_to_be_useless():
    env = PoolFlip(2, horizon=8, mask_known_flips=True)
    _, first = jax.jit(env.reset)(KEY, env.default_params)
    np.testing.assert_array_equal(first.legal_actions, [[1, 0, 1, 0, 1], [1, 1, 1, 1, 1]])
    _, time_steps = rollout(env, env.default_params, np.array([(SLEEP, flip(1)), (check(0), flip(1)), (SLEEP, SLEEP)]))
    np.testing.assert_array_equal(
        time_steps.legal_actions,
        [[[1, 1, 1, 1, 1], [1, 1, 1, 0, 1]], [[1, 0, 1, 1, 1], [1, 1, 1, 0, 1]], [[1] * 5, [1] * 5]],
    )


def test_checks_can_be_forbidden():
    env = PoolFlip(2, horizon=8, allow_checks=False)
    _, first = jax.jit(env.reset)(KEY, env.default_params)
    np.testing.assert_array_equal(first.legal_actions, [[1, 1, 0, 1, 0]] * 2)
    both = PoolFlip(2, horizon=8, allow_checks=False, mask_known_flips=True)
    _, first = jax.jit(both.reset)(KEY, both.default_params)
    np.testing.assert_array_equal(first.legal_actions, [[1, 0, 0, 0, 0], [1, 1, 0, 1, 0]])


@pytest.mark.slow
def test_protocol_with_all_options():
    options = {"observation_mode": "paper", "tie": "random", "mask_known_flips": True, "flip_success": 0.7}
    check_environment(*envs_jax.make("poolflip-r1", horizon=5, **options))


@pytest.mark.parametrize(("mode", "size"), [("full", 13), ("paper", 9)])
def test_observation_modes(mode, size):
    env = PoolFlip(3, horizon=16, observation_mode=mode)
    actions = random_actions(6, 3, 16)
    observation = rollout(env, env.default_params, actions)[1].observation
    assert observation.shape == (16, 2, size)
    full = PoolFlip(3, horizon=16)
    np.testing.assert_array_equal(observation, rollout(full, full.default_params, actions)[1].observation[..., :size])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_resources": 0}, "num_resources must be an integer of at least 1, got 0"),
        ({"horizon": 2.5}, "horizon must be an integer of at least 1, got 2.5"),
        ({"utility": "ownership_margn"}, "unknown utility 'ownership_margn'; did you mean 'ownership_margin'"),
        ({"tie": "red"}, "unknown tie 'red'"),
        ({"observation_mode": "ful"}, "did you mean 'full'"),
        ({"flip_success": 1.5}, "flip_success must be one probability or one per agent, got 1.5"),
        ({"flip_cots": 2.0}, "no option 'flip_cots'; did you mean 'flip_cost'"),
        ({"role": "green", "opponents": ["sleep"]}, "unknown role 'green'"),
        ({"role": "blue", "opponents": "sleep"}, "must be a list"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(ValueError, match=message):
        envs_jax.make("poolflip-r3", **options)


def test_render():
    env = PoolFlip(3, horizon=8)
    assert env.can_render
    states, _ = rollout(env, env.default_params, np.array([(SLEEP, flip(0)), (check(0), SLEEP)]))
    first, second = (env.render(jax.tree.map(lambda leaf, tick=tick: leaf[tick], states)) for tick in range(2))
    assert first.dtype == np.uint8
    assert first.shape == second.shape
    assert first.shape[2] == 3
    assert (first != second).any()
