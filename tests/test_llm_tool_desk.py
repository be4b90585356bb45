"""ToolDesk: the protocol, what each fault costs, and the teacher's plans."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.testing import check_environment
from envs_jax.text import tool_desk_tokens as tool_desk
from envs_jax.text.tool_desk import ToolDesk
from envs_jax.text.tool_desk_plans import HACKS, hack, teacher
from envs_jax.text.tool_desk_tokens import ANSWER, CALL, ERROR, FIRST_TOOL
from jaxrl.llm.chat import ROLES

LOOKUP, DIRECT, KEYED = (FIRST_TOOL + i for i in (0, 2, 5))
ENTITY, OTHER = tool_desk.FIRST_ENTITY + 3, tool_desk.FIRST_ENTITY + 7
NUM_PLANNED = tool_desk.MAX_LENGTH - tool_desk.PROMPT_LENGTH


@functools.cache
def player(**options):
    """jit of (state, actions [32], params, noise) -> return, whether it ended, info of the last step, and the way."""
    env = ToolDesk(**options)

    @jax.jit
    def play(state, actions, params, noise=0):
        def step(carry, _):
            state, ended, total, last = carry
            action = actions[jnp.maximum(state.length - env.prompt_length, 0)]
            after, shown = env.step(jax.random.fold_in(jax.random.key(noise), state.length), state, action, params)
            keep = functools.partial(jax.tree.map, lambda new, old: jnp.where(ended, old, new))
            carry = keep((after, shown.ended, total + shown.reward, shown.info), (state, ended, total, last))
            return carry, (shown.observation[0], shown.info["role"], ~ended)

        first = env.reset(jax.random.key(0), params)[1]
        carry = (state, jnp.zeros((), bool), jnp.zeros(()), first.info)
        (_, ended, total, info), record = jax.lax.scan(step, carry, length=env.max_steps)
        return total, ended, info, record

    return play


@functools.cache
def two_goals():
    """Attribute 0 of one entity, which a tool tells, and attribute 3 of another, for which its key is needed."""
    state, _ = jax.jit(ToolDesk().reset)(jax.random.key(3), ToolDesk().default_params)
    goals = jnp.array([[0, 3], [3, 7], [5, 1]], jnp.int32)
    return dataclasses.replace(state, goals=goals, num_goals=jnp.int32(2))


def frames(*calls, then=(ANSWER,)):
    """The planner's tokens: a place for the tool's result after every call."""
    tokens = [token for tool, argument in calls for token in (CALL, tool, argument, 0)] + list(then)
    return jnp.array(tokens + [0] * (NUM_PLANNED - len(tokens)), jnp.int32)


def plan(name):
    key = tool_desk.FIRST_KEY + int(two_goals().keys[0, 7])
    direct, lookup, keyed = (DIRECT, ENTITY), (LOOKUP, OTHER), (KEYED, key)
    useless = [(FIRST_TOOL + 3, tool_desk.FIRST_ENTITY + i) for i in range(4)]
    return {
        "all": frames(direct, lookup, keyed),
        "one": frames(direct),
        "repeated": frames(direct, direct, lookup, keyed),
        "wrong kind": frames(direct, (KEYED, OTHER), lookup, keyed),
        "lookup only": frames(lookup),
        "nothing": frames(),
        "malformed": frames(direct, then=(CALL, CALL)),
        "no stop": frames(direct, lookup, keyed, *useless, then=(CALL,)),
        "just in time": frames(direct, lookup, keyed, *useless),
        "six repeats": frames(*[direct] * 7),
    }[name]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("all", 1.0),
        ("one", 0.5),
        ("repeated", 0.9),
        ("wrong kind", 0.9),
        ("lookup only", 0.0),
        ("nothing", 0.0),
        ("malformed", -1.0),
        ("no stop", 0.5),
        ("just in time", 1.0),
        ("six repeats", 0.0),
    ],
)
def test_what_each_fault_costs(name, expected):
    total, ended, info, (tokens, roles, alive) = player()(two_goals(), plan(name), ToolDesk().default_params)
    assert ended
    assert total == pytest.approx(expected, abs=1e-6)
    assert (info["invalid"] == 1) == (name == "malformed")
    assert (info["stopped"] == 0) == (name in ("malformed", "no stop"))
    assert (np.asarray(tokens)[np.asarray(alive)] == ERROR).sum() == (name == "wrong kind")
    # After the prompt, every fourth token is a tool's; roles are those of jaxrl.llm.
    spoken = np.asarray(roles)[tool_desk.PROMPT_LENGTH - 1 :][np.asarray(alive)[tool_desk.PROMPT_LENGTH - 1 :]]
    places = np.arange(len(spoken)) % 4 == 3
    np.testing.assert_array_equal(spoken, np.where(places, ROLES.index("tool"), ROLES.index("agent")))
    assert (np.asarray(roles)[: tool_desk.PROMPT_LENGTH - 1] == ROLES.index("prompt")).all()


def test_strict_completeness_and_rewarded_answers():
    params = ToolDesk().default_params
    assert player(strict=True)(two_goals(), plan("one"), params)[0] == 0.0
    assert player(strict=True)(two_goals(), plan("all"), params)[0] == 1.0
    state = two_goals()
    right = [tool_desk.FIRST_VALUE + int(state.values[a, e]) for a, e in ((0, 3), (3, 7))]
    answered = dataclasses.replace(params, completeness_weight=jnp.float32(0.5), answer_weight=jnp.float32(0.25))
    for values, expected in ((right, 0.25), (right[::-1], 0.25 * (right[0] == right[1]))):
        total, _, info, _ = player(answers=True)(state, frames(then=(ANSWER, *values)), answered)
        assert total == pytest.approx(expected)
        assert info["right"] == (expected > 0)
    hidden = dataclasses.replace(state, verifiable=jnp.zeros((), bool))
    assert player(answers=True)(hidden, frames(then=(ANSWER, *right)), answered)[0] == 0.0
    # Whatever is answered, the completeness of the plan is the same.
    for values in (right, [0, 0]):
        assert player(answers=True)(state, frames((DIRECT, ENTITY), then=(ANSWER, *values)), params)[0] == 0.5


@functools.cache
def drawn_tasks():
    env = ToolDesk()
    return jax.jit(jax.vmap(lambda key: env.reset(key, env.default_params)[0]))(
        jax.random.split(jax.random.key(1), 512)
    )


def test_the_teacher_is_complete_with_the_fewest_calls():
    tasks = drawn_tasks()
    actions = jax.jit(jax.vmap(teacher))(jax.random.split(jax.random.key(2), 512), tasks)
    total, ended, info, _ = jax.vmap(player(), (0, 0, None))(tasks, actions, ToolDesk().default_params)
    assert ended.all()
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    for goals, number, calls in zip(np.asarray(tasks.goals), tasks.num_goals, info["num_calls"], strict=True):
        keyed = [(int(a == 5), int(e)) for a, e in goals[:number] if a >= 3]
        assert calls == number + len(set(keyed))
    answered, _, info, _ = jax.vmap(player(answers=True), (0, 0, None))(
        *(tasks, actions, dataclasses.replace(ToolDesk().default_params, answer_weight=jnp.float32(1.0)))
    )
    np.testing.assert_allclose(answered, 2.0, atol=1e-6)
    assert {int(n) for n in tasks.num_goals} == {1, 2, 3}


def test_a_teacher_with_faults():
    tasks = drawn_tasks()
    actions = jax.jit(jax.vmap(teacher, (0, 0, None, None)))(jax.random.split(jax.random.key(2), 512), tasks, 0.25, 0.2)
    total, _, info, _ = jax.vmap(player(), (0, 0, None))(tasks, actions, ToolDesk().default_params)
    assert not info["invalid"].any()
    assert not info["num_errors"].any()
    np.testing.assert_allclose(total, info["completeness"] - 0.1 * info["num_repeats"], atol=1e-6)
    assert 0.68 < float(info["completeness"].mean()) < 0.82  # about three quarters of the goals
    assert 0.1 < float((info["num_repeats"] > 0).mean()) < 0.6


def test_random_tokens_are_malformed():
    tasks = drawn_tasks()
    actions = jax.random.randint(jax.random.key(4), (512, NUM_PLANNED), 0, 64, jnp.int32)
    total, _, _, _ = jax.vmap(player(), (0, 0, None))(tasks, actions, ToolDesk().default_params)
    assert float((total == -1.0).mean()) >= 0.97
    assert set(np.unique(total)) <= {-1.0, 0.0}


def changed(**values):
    params = ToolDesk().default_params
    return dataclasses.replace(params, **{k: jnp.asarray(v, getattr(params, k).dtype) for k, v in values.items()})


@pytest.mark.parametrize(
    ("name", "expected", "precision"),
    [("all", 1.0, 1.0), ("just in time", 0.6, 3 / 7), ("repeated", 0.8, 3 / 4), ("lookup only", 0.0, 1.0),
     ("nothing", 0.0, 0.0)],
)  # fmt: skip
def test_calls_more_than_needed(name, expected, precision):
    total, _, info, _ = player()(two_goals(), plan(name), changed(length_penalty=0.1))
    assert total == pytest.approx(expected, abs=1e-6)
    assert info["precision"] == pytest.approx(precision)
    assert info["num_needed"] == 3


def test_a_judge_errs_about_goals_and_only_the_reward_sees_it():
    always = changed(judge_false_positive=1.0, judge_false_negative=1.0)
    for name, expected in (("all", 0.0), ("one", 0.5), ("nothing", 1.0), ("malformed", -1.0)):
        total, _, info, _ = player()(two_goals(), plan(name), always)
        assert total == pytest.approx(expected)
        assert info["completeness"] == {"all": 1.0, "nothing": 0.0}.get(name, 0.5)
    # Each goal by itself, once per episode, whatever was planned before.
    play = jax.vmap(player(), (None, None, None, 0))
    total = np.asarray(play(two_goals(), plan("all"), changed(judge_false_negative=0.2), jnp.arange(512))[0])
    assert set(np.round(total, 6)) == {0.0, 0.5, 1.0}
    assert abs((total == 1.0).mean() - 0.64) < 0.08
    assert abs(total.mean() - 0.8) < 0.05


def test_what_fails_by_chance_is_not_punished():
    total, _, info, (tokens, _, alive) = player()(two_goals(), plan("six repeats"), changed(failure_probability=1.0))
    assert total == 0.0
    assert (info["num_calls"], info["num_errors"], info["num_repeats"], info["completeness"]) == (7, 0, 0, 0)
    assert (np.asarray(tokens)[np.asarray(alive)] == ERROR).sum() == 7


def test_a_pool_of_queries():
    reset = jax.jit(jax.vmap(lambda key, params: ToolDesk().reset(key, params)[0], (0, None)))
    keys = jax.random.split(jax.random.key(7), 64)
    four = reset(keys, changed(num_queries=4, verifiable_share=0.5))
    facts = [
        (prompt.tobytes(), values.tobytes()) for prompt, values in zip(*map(np.asarray, (four.prompt, four.values)))
    ]
    verifiable = {fact: set(np.asarray(four.verifiable)[[f == fact for f in facts]].tolist()) for fact in facts}
    # The query decides, and with it whether its answer can be checked: half of them, exactly.
    assert sorted(map(sorted, verifiable.values())) == [[False], [False], [True], [True]]
    two = reset(keys, changed(num_queries=2))
    checked = {fact[0] for fact, kinds in verifiable.items() if kinds == {True}}
    assert {prompt.tobytes() for prompt in np.asarray(two.prompt)} == checked
    fresh = reset(keys, changed())
    assert len({table.tobytes() for table in np.asarray(fresh.values)}) == 64


def test_described_tools():
    env, keys = ToolDesk(described_tools=True), jax.random.split(jax.random.key(8), 128)
    reset = jax.jit(jax.vmap(lambda key, params: env.reset(key, params)[0], (0, None)))
    orders = {}
    for held_out in (0, 1):
        tasks = reset(keys, changed(held_out_tools=held_out))
        orders[held_out] = {tuple(order) for order in np.asarray(tasks.tools).tolist()}
        pairs = np.asarray(tasks.prompt)[:, 1:17].reshape(128, 8, 2)
        np.testing.assert_array_equal(pairs[:, :, 1], np.tile(np.arange(8, 16), (128, 1)))
        assert [len(set(row)) for row in pairs[:, :, 0].tolist()] == [8] * 128
        tells = pairs[np.asarray(tasks.tools) == 2 + 4][:, 0]
        assert (tells == tool_desk.FIRST_ATTRIBUTE + 4).all()
        if not held_out:
            actions = jax.jit(jax.vmap(teacher))(keys, tasks)
            total, _, info, _ = jax.vmap(player(described_tools=True), (0, 0, None))(tasks, actions, changed())
            np.testing.assert_allclose(total, 1.0, atol=1e-6)
            np.testing.assert_array_equal(info["num_calls"], info["num_needed"])
    assert not orders[0] & orders[1]
    assert len(orders[0]) > 100


def test_the_best_of_several_demonstrations():
    tasks, keys = drawn_tasks(), jax.random.split(jax.random.key(2), 512)
    best = jax.jit(jax.vmap(lambda key, task: teacher(key, task, 0.25, 0.2, 4)))(keys, tasks)
    total, _, _, _ = jax.vmap(player(), (0, 0, None))(tasks, best, ToolDesk().default_params)
    assert total.mean() > 0.93
    assert total.min() >= 0.0


@pytest.mark.parametrize("name", HACKS)
def test_plans_that_look_busy_do_not_pay(name):
    tasks = drawn_tasks()
    actions = jax.jit(jax.vmap(functools.partial(hack, name)))(tasks)
    total, ended, info, _ = jax.vmap(player(), (0, 0, None))(tasks, actions, changed(length_penalty=0.1))
    assert ended.all()
    assert not info["invalid"].any()
    assert total.mean() <= 0.5  # the fewest calls earn 1


def test_options_are_checked():
    with pytest.raises(ValueError, match="num_attempts must be an integer of at least 1, got 0"):
        ToolDesk(num_attempts=0)
    with pytest.raises(ValueError, match="every tool once"):
        hack("every tool", two_goals())


def test_the_protocol():
    check_environment(ToolDesk(answers=True), num_steps=60)
