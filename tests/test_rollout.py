"""`unroll` and `episodes`: what is kept, what starts anew, what is shared, what is equal."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.games.matrix_game import MatrixGame
from envs_jax.versus import Versus, versus_params
from jaxrl.rollout import any_of_all, episodes, start_rollout, unroll
from jaxrl.types import episode_metrics
from programs import compiled, equations
from small_worlds import BANK_SIZE, Counter

B, T = 4, 24


def start(policy_params, key):
    return {"age": jnp.zeros((), jnp.int32), "mark": jax.random.uniform(key)}


def act(policy_params, carry, time_step, key, deterministic):
    """Plays `policy_params`, or anything when not deterministic; remembers its age and a mark drawn at the start."""
    action = policy_params if deterministic else jax.random.randint(key, (), 0, 3, jnp.int32)
    return action, {**carry, "age": carry["age"] + 1}, dict(carry)


def to_numpy(tree):
    return jax.tree.map(np.asarray, tree)


# --- unroll


@pytest.fixture(scope="module")
def played():
    """Two calls of one program over environments that draw their episodes' lengths."""
    env = Counter(random_length=True)
    arguments = (env, (start, act), jnp.int32(0), env.default_params)
    first = compiled(lambda key: start_rollout(*arguments, key, B))(jax.random.key(0))
    play = compiled(lambda rollout, key: unroll(*arguments, rollout, key, T, discount=0.5))
    middle, batch_1 = play(first, jax.random.key(1))
    last, batch_2 = play(middle, jax.random.key(2))
    both = jax.tree.map(lambda a, b: np.concatenate([a, b]), batch_1.transitions, batch_2.transitions)
    return SimpleNamespace(first=first, middle=middle, last=last, batches=(batch_1, batch_2), steps=to_numpy(both))


def test_the_true_successor_is_kept_and_the_next_episode_starts_after_it(played):
    steps = played.steps
    count, successor, ended = steps.observation[..., 0], steps.next_observation[..., 0], steps.ended
    assert ended.sum() > 4 * B
    assert (~ended).sum() > 4 * B
    np.testing.assert_array_equal(successor, count + 1)  # also where the episode ended
    np.testing.assert_array_equal(successor[ended], steps.next_observation[ended][:, 1])
    np.testing.assert_array_equal(count[1:], np.where(ended[:-1], 0.0, successor[:-1]))  # also between the calls
    np.testing.assert_array_equal(played.last.time_step.observation[:, 0], np.where(ended[-1], 0.0, successor[-1]))


def test_termination_and_truncation_stay_apart(played):
    length = played.steps.observation[..., 1]
    np.testing.assert_array_equal(played.steps.terminated, played.steps.ended & (length % 2 == 0))
    np.testing.assert_array_equal(played.steps.truncated, played.steps.ended & (length % 2 == 1))
    assert played.steps.terminated.any()
    assert played.steps.truncated.any()


def test_the_carry_restarts_with_the_episode(played):
    extras = played.steps.extras
    np.testing.assert_array_equal(extras["age"], played.steps.observation[..., 0])
    same = extras["mark"][1:] == extras["mark"][:-1]
    np.testing.assert_array_equal(same, ~played.steps.ended[:-1])  # a fresh one at each start, the same within
    np.testing.assert_array_equal(played.batches[0].carry["age"], np.zeros(B))
    np.testing.assert_array_equal(played.batches[1].carry["age"], played.middle.carry["age"])


def test_drawn_parameters_change_at_resets_and_only_there(played):
    length, ended = played.steps.observation[..., 1], played.steps.ended
    changed = length[1:] != length[:-1]
    assert not changed[~ended[:-1]].any()
    assert changed[ended[:-1]].any()
    assert set(np.unique(length)) <= {2, 3, 4, 5}
    np.testing.assert_array_equal(played.last.drawn_params[0], played.last.time_step.observation[:, 1])


def test_what_is_not_drawn_is_not_copied(played):
    assert [leaf.shape for leaf in played.first.drawn_params] == [(B,)]
    for env in (Counter(), Counter(random_length=True)):
        arguments = (env, (start, act), jnp.int32(0), env.default_params)

        def play(key, arguments=arguments):
            return unroll(*arguments, start_rollout(*arguments, key, B), key, T)

        jaxpr, shapes = jax.make_jaxpr(play, return_shape=True)(jax.random.key(0))
        assert len(shapes[0].drawn_params) == env.random_length  # an unused hook carries nothing
        carried = {var.aval.shape for equation in equations(jaxpr.jaxpr) for var in equation.outvars}
        assert (BANK_SIZE,) in carried | {leaf.shape for leaf in jax.tree.leaves(env.default_params)}
        assert not any(BANK_SIZE in shape and len(shape) > 1 for shape in carried)


def test_statistics_of_finished_episodes(played):
    steps = played.steps
    returns, lengths, running, discounted = [], [], np.zeros((2, B)), np.zeros(B)
    totals = []
    for t in range(2 * T):
        if t % T == 0:  # what an earlier call left unfinished counts where it finishes
            np.testing.assert_allclose(played.batches[t // T].discounted_return, discounted, rtol=1e-6)
            totals.append((len(lengths), sum(returns), sum(lengths)))
        running += np.stack([steps.reward[t], np.ones(B)])
        discounted = 0.5 * discounted + steps.reward[t]
        for i in np.flatnonzero(steps.ended[t]):
            returns.append(running[0, i])
            lengths.append(running[1, i])
        running[:, steps.ended[t]], discounted[steps.ended[t]] = 0.0, 0.0
    totals.append((len(lengths), sum(returns), sum(lengths)))
    for batch, before, after in zip(played.batches, totals[:-1], totals[1:]):
        expected = np.subtract(after, before)
        stats = batch.stats
        np.testing.assert_allclose([stats.count, stats.return_sum, stats.length_sum], expected, rtol=1e-5)
        metrics = episode_metrics(stats)
        np.testing.assert_allclose(metrics["episode/return"], expected[1] / expected[0], rtol=1e-5)
        np.testing.assert_allclose(metrics["episode/length"], expected[2] / expected[0], rtol=1e-5)
        assert int(metrics["episode/count"]) == expected[0]
    np.testing.assert_allclose(played.last.episode_return, running[0], rtol=1e-6)
    np.testing.assert_array_equal(played.last.episode_length, running[1])


def test_permuting_the_environments_permutes_the_result():
    env = Counter()
    arguments = (env, (start, lambda *given: act(*given[:-1], True)), jnp.int32(2), env.default_params)
    order = np.array([2, 0, 3, 1])

    @compiled
    def play(counts):
        rollout = start_rollout(*arguments, jax.random.key(0), B)
        rollout = dataclasses.replace(rollout, env_state=counts)
        rollout, batch = unroll(*arguments, rollout, jax.random.key(1), 7)
        steps = batch.transitions
        return rollout.env_state, (steps.next_observation, steps.reward, steps.ended), batch.stats

    counts = jnp.array([0, 1, 2, 1], jnp.int32)
    (state, steps, stats), (other_state, other_steps, other_stats) = play(counts), play(counts[order])
    np.testing.assert_array_equal(state[order], other_state)
    for one, other in zip(steps, other_steps):
        np.testing.assert_array_equal(one[:, order], other)
    assert len({column.tobytes() for column in np.asarray(steps[1]).T}) == 3  # they do differ
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-6), stats, other_stats)


def test_a_sweep_asks_once_whether_any_episode_ended():
    """Of all members at once: only then does a step at which none ended compute no reset."""
    ended = jnp.array([[[False, False], [False, True]], [[False, False], [False, False]]])
    for mask, expected in ((ended, True), (jnp.zeros_like(ended), False)):
        found = jax.vmap(jax.vmap(any_of_all))(mask)
        np.testing.assert_array_equal(found, np.full((2, 2), expected))
    env = Counter()
    arguments = (env, (start, act), jnp.int32(0), env.default_params)

    def play(key):
        return unroll(*arguments, start_rollout(*arguments, key, B), key, T)

    jaxpr = jax.make_jaxpr(jax.vmap(play))(jax.random.split(jax.random.key(0), 3))
    conditions = [equation for equation in equations(jaxpr.jaxpr) if equation.primitive.name == "cond"]
    assert [equation.invars[0].aval.shape for equation in conditions] == [()]


# --- several agents


def cycle_start(offset, key):
    return jnp.zeros((), jnp.int32)


def cycle(offset, carry, time_step, key, deterministic):
    """Plays offset, offset + 1, ... from the start of each episode: it needs its memory."""
    return (offset + carry) % 3, carry + 1, {}


def test_versus_inside_unroll_for_both_roles_in_one_program():
    game = MatrixGame(num_rounds=3)
    opponents = jnp.arange(3, dtype=jnp.int32)
    env = Versus(game, cycle_start, cycle, versus_params(game.default_params, opponents))

    @compiled
    @jax.vmap
    def play(role):
        params = dataclasses.replace(env.default_params, role=role)
        arguments = (env, (start, act), jnp.int32(0), params)
        rollout = start_rollout(*arguments, jax.random.key(0), 8)
        return unroll(*arguments, rollout, jax.random.key(1), 12)

    rollout, batch = play(jnp.arange(2, dtype=jnp.int32))
    assert [leaf.shape for leaf in rollout.drawn_params] == [(2, 8)]  # the opponent's index alone, for each role
    action, reward, ended = map(
        np.asarray, (batch.transitions.action, batch.transitions.reward, batch.transitions.ended)
    )
    np.testing.assert_array_equal(ended[0].T, np.tile(np.arange(12) % 3 == 2, (8, 1)))
    # In this game an action and what it earned tell the opponent's action; symmetric, so for either role.
    opponent_action = (action - reward) % 3
    offset = (opponent_action - np.arange(12)[None, :, None] % 3) % 3  # constant within an episode: its index
    per_episode = offset.reshape(2, 4, 3, 8)
    np.testing.assert_array_equal(per_episode, np.broadcast_to(per_episode[:, :, :1], per_episode.shape))
    assert set(np.unique(per_episode)) == {0, 1, 2}
    np.testing.assert_array_equal(np.asarray(rollout.env_state.opponent_carry), np.zeros((2, 8)))


def both_act(actions, carry, time_step, key, deterministic):
    return actions, carry, {}


def test_several_agents_have_several_returns():
    game = MatrixGame("prisoners-dilemma", num_rounds=2)
    arguments = (game, (lambda params, key: (), both_act), jnp.array([0, 1], jnp.int32), game.default_params)

    @compiled
    def play(key):
        rollout = start_rollout(*arguments, key, B)
        keys = jax.random.split(key, 3)
        return unroll(*arguments, rollout, key, 5, discount=0.5), episodes(*arguments, keys, key, 10)

    (rollout, batch), result = play(jax.random.key(0))
    assert int(batch.stats.count) == 2 * B
    np.testing.assert_allclose(batch.stats.return_sum, [0.0, 2 * 2 * B * 5.0])  # (cooperate, defect) pays (0, 5)
    np.testing.assert_allclose(rollout.episode_return, np.tile([0.0, 5.0], (B, 1)))
    metrics = episode_metrics(batch.stats)
    assert {name: float(value) for name, value in metrics.items()} == {
        "episode/return": 5.0,
        "episode/return/0": 0.0,
        "episode/return/1": 10.0,
        "episode/length": 2.0,
        "episode/count": 2 * B,
    }
    np.testing.assert_allclose(result.episode_return, np.tile([0.0, 10.0], (3, 1)))
    np.testing.assert_allclose(result.info["active"], np.ones((3, 2)))
    np.testing.assert_array_equal(result.episode_length, [2, 2, 2])


# --- episodes

ENDLESS = 2**30  # a loop of so many steps would not return: play stops when the last episode has ended
RESET_KEYS = np.array([0, 0, 0, 1, 2, 3, 4, 5])  # which of the distinct keys each episode gets


def show(policy_params, reset_keys, max_steps, **options):
    """Episodes of the counter, which is NaN after the end."""
    env = Counter(random_length=True)
    return episodes(
        env, (start, act), policy_params, env.default_params, reset_keys, jax.random.key(7), max_steps, **options
    )


def keep(env_state, before, action, after, extras):
    return {"state": env_state, "before": before.observation, "action": action, "after": after, "age": extras["age"]}


@pytest.fixture(scope="module")
def reset_keys():
    return jax.random.split(jax.random.key(3), 6)[RESET_KEYS]


@pytest.fixture(scope="module")
def shown(reset_keys):
    """The same episodes played by the policies "always 0" and "always 2"."""
    play = compiled(lambda policy_params: show(policy_params, reset_keys, ENDLESS))
    return [to_numpy(play(jnp.int32(action))) for action in (0, 2)]


@pytest.fixture(scope="module")
def recorded(reset_keys):
    play = compiled(lambda policy_params: show(policy_params, reset_keys, 6, record=keep))
    return [to_numpy(play(jnp.int32(action))) for action in (0, 2)]


def test_one_episode_per_reset_key_to_its_end(shown):
    for action, result in zip((0, 2), shown):
        length = result.episode_length
        np.testing.assert_allclose(result.episode_return, length * (length + 1) / 2 + action * length / 100, rtol=1e-5)
        np.testing.assert_array_equal(result.terminated, length % 2 == 0)
        np.testing.assert_allclose(result.info["count"], (length + 1) / 2)
        np.testing.assert_array_equal(result.final["count"], length)
        assert set(result.info) == {"noise", "count"}  # scalars only
        assert result.record is None
        assert result.mask is None


def test_equal_reset_keys_give_equal_starts_but_noise_of_their_own(shown, recorded):
    length, starts, noise = shown[0].episode_length, recorded[0].record["before"][0], shown[0].info["noise"]
    for group in range(6):
        assert len(set(length[group == RESET_KEYS])) == 1
        assert len({row.tobytes() for row in starts[group == RESET_KEYS]}) == 1
    assert len(set(length)) > 1
    assert len(set(noise)) == len(noise)


def test_every_policy_meets_the_same_noise(shown, recorded):
    np.testing.assert_array_equal(shown[0].info["noise"], shown[1].info["noise"])
    np.testing.assert_array_equal(recorded[0].record["after"].info["noise"], recorded[1].record["after"].info["noise"])
    assert (recorded[0].record["action"] != recorded[1].record["action"]).all()


def test_a_record_with_its_mask_says_the_same_as_the_sums(shown, recorded):
    for plain, full in zip(shown, recorded):
        record, mask = full.record, full.mask
        for name in ("episode_return", "episode_length", "terminated"):
            np.testing.assert_array_equal(getattr(plain, name), getattr(full, name))
        np.testing.assert_array_equal(mask.sum(0), plain.episode_length)
        assert (np.diff(mask.astype(int), axis=0) <= 0).all()  # once over, always over
        rewards = np.where(mask, record["after"].reward, 0.0)
        np.testing.assert_allclose(rewards.sum(0), plain.episode_return, rtol=1e-6)
        noise = np.where(mask, record["after"].info["noise"], 0.0).sum(0) / mask.sum(0)
        np.testing.assert_allclose(plain.info["noise"], noise, rtol=1e-6)
        np.testing.assert_allclose(full.info["noise"], noise, rtol=1e-6)
        steps = np.arange(6)[:, None]
        np.testing.assert_array_equal(record["state"][mask], np.broadcast_to(steps, mask.shape)[mask])
        np.testing.assert_array_equal(record["age"][mask], np.broadcast_to(steps, mask.shape)[mask])


def test_episode_i_depends_on_its_own_key_and_number_alone(shown, reset_keys):
    first = compiled(lambda policy_params: show(policy_params, reset_keys[:2], ENDLESS))(jnp.int32(0))
    np.testing.assert_array_equal(first.info["noise"], shown[0].info["noise"][:2])
    np.testing.assert_array_equal(first.episode_return, shown[0].episode_return[:2])


def test_a_longer_episode_is_cut(shown, reset_keys):
    result = compiled(lambda keys: show(jnp.int32(0), keys, 3))(reset_keys)
    length = shown[0].episode_length
    np.testing.assert_array_equal(result.episode_length, np.minimum(length, 3))
    np.testing.assert_array_equal(result.terminated, length == 2)
    np.testing.assert_allclose(result.episode_return, np.where(length == 2, 3.0, 6.0))
    np.testing.assert_allclose(result.info["count"], np.where(length == 2, 1.5, 2.0))


def test_actions_are_drawn_where_asked(reset_keys):
    play = compiled(lambda keys: show(jnp.int32(0), keys, 6, deterministic=False, record=keep).record["action"])
    actions = np.asarray(play(reset_keys))
    assert set(np.unique(actions)) == {0, 1, 2}
    assert len({column.tobytes() for column in actions.T}) > len(set(RESET_KEYS))  # noise of their own here too
