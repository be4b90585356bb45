"""The reward of tool use: each term by hand, cheats that do not pay, consensus, and neutral scores."""

import dataclasses

import pytest

from envs_jax.text.local_tools import Call, LocalTools, Task, Trajectory, Turn, generate_tasks
from envs_jax.text.local_tools.planners import CHEATS, oracle, play
from envs_jax.text.requirements import Requirement, completeness, signature
from envs_jax.text.tool_calls import ToolCall
from jaxrl.rewards.calibration import compare
from jaxrl.rewards.consensus import call_shares, consensus_requirement
from jaxrl.rewards.tool_use import ToolUseReward, count_calls, group_rewards, precision, rule_completeness

DEFAULT = ToolUseReward()
# Two goals, the second by way of a lookup, as in the table of golden rewards of the token-space environment.
PLAN = ((ToolCall("direct", {"x": 1}), ToolCall("lookup", {"x": 2})), (ToolCall("keyed", {"x": 3}),))
TASK = Task("?", Requirement((("direct",), ("keyed",))), PLAN)


def trajectory(*names, stop="answer", task=TASK):
    """A trajectory of one call per turn; "direct!" is one that fails, "direct:2" has another argument."""
    turns = []
    for text in names:
        name, _, argument = text.rstrip("!").partition(":")
        error, arguments = text.endswith("!"), {"x": int(argument or 1)}
        facts = frozenset() if error else frozenset({name, signature(name, arguments)})
        turns.append(Turn("", (Call(name, arguments, "error: no" if error else "7", error, facts),)))
    return Trajectory(task, {}, turns, stop)


@pytest.mark.parametrize(
    ("names", "stop", "reward"),
    [
        (["direct", "lookup", "keyed"], "answer", 1.0),
        (["direct"], "answer", 0.5),
        (["direct", "direct", "lookup", "keyed"], "answer", 0.9),
        (["direct", "keyed!", "lookup", "keyed"], "answer", 0.9),
        (["lookup"], "answer", 0.0),
        ([], "answer", 0.0),
        (["direct"], "bad_format", -1.0),
        (["direct", "lookup", "keyed", "a", "b", "c", "d"], "max_turns", 0.5),
        (["direct", "lookup", "keyed"], "max_tokens", 0.5),
        (["keyed!", "keyed!", "keyed"], "answer", 0.3),  # a retry is no repeat: only what succeeded counts
        (["direct"] * 9, "answer", 0.0),  # no more than five repeats are counted
        (["a!"] * 5 + ["b"] * 6, "max_turns", -1.0),
    ],
)
def test_golden_rewards(names, stop, reward):
    played = trajectory(*names, stop=stop)
    assert DEFAULT(played, rule_completeness(played)) == pytest.approx(reward)


def test_equal_arguments_are_a_repeat_however_written():
    again = trajectory("direct:2", "direct:2", "direct:3")
    again.turns[1].calls[0].arguments["x"] = 2.0
    counts = count_calls(again)
    assert (counts.calls, counts.repeats, counts.errors) == (3, 1, 0)


def test_length_and_precision():
    long = trajectory("direct", "lookup", "keyed", "a", "b")
    assert precision(long) == 2 / 5
    assert precision(trajectory("direct", "keyed")) == 1.0
    assert precision(trajectory()) == 0.0
    assert ToolUseReward(length_penalty=0.05)(long, 1.0) == pytest.approx(0.9)
    assert ToolUseReward(length_penalty=0.05)(trajectory("direct"), 0.5) == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeat_penalty": 0.2}, r"repeat_penalty must be below completeness_weight / max_needed = 0\.2.*got 0\.2"),
        ({"error_penalty": 0.15, "max_needed": 7}, "error_penalty must be below"),
        ({"completeness_weight": 0.4}, "repeat_penalty must be below"),
        ({"length_penalty": -0.1}, "length_penalty must be at least 0"),
        ({"max_needed": 0}, "max_needed must be at least 1"),
    ],
)
def test_penalties_that_could_pay_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ToolUseReward(**settings)


def test_what_has_no_reward():
    with pytest.raises(ValueError, match="only a finished trajectory"):
        DEFAULT(trajectory("direct", stop=""), 1.0)
    with pytest.raises(ValueError, match="no requirement"):
        rule_completeness(trajectory(task=Task("?")))
    with pytest.raises(ValueError, match="needs a task with a requirement"):
        precision(trajectory(task=Task("?")))


def test_cheats_earn_at_most_half_of_what_the_oracle_does():
    reward, tasks = ToolUseReward(length_penalty=0.05), generate_tasks("train", 80)

    def mean(planner):
        played = [play(LocalTools(), task, planner) for task in tasks]
        return sum(reward(one, rule_completeness(one)) for one in played) / len(played), played

    best, played = mean(oracle)
    assert best == 1.0
    assert all(precision(one) == 1.0 for one in played)
    assert all(mean(planner)[0] <= 0.5 * best for planner in CHEATS.values())


def test_leaving_out_the_last_call_costs():
    env = LocalTools()
    for task in generate_tasks("train", 30):
        lazy = dataclasses.replace(task, plan=(*task.plan[:-1], task.plan[-1][:-1]))
        played = play(env, dataclasses.replace(lazy, plan=tuple(filter(None, lazy.plan))), oracle)
        assert DEFAULT(played, rule_completeness(played)) <= 1.0 - 1.0 / task.num_needed + 1e-9


def test_no_score_is_neutral_within_its_group():
    played = [
        trajectory("direct"),
        trajectory(),
        trajectory("direct", "keyed"),
        trajectory("direct", stop="bad_format"),
    ]
    assert group_rewards(DEFAULT, played, [0.5, None, 1.0, None], 4) == pytest.approx([0.5, 1 / 6, 1.0, -1.0])
    assert group_rewards(DEFAULT, played, [0.5, None, None, None], 2) == pytest.approx([0.5, 0.5, -1.0, -1.0])
    assert group_rewards(DEFAULT, played[:2], [None, None], 2) == [0.0, 0.0]
    with pytest.raises(ValueError, match="4 trajectories and 3 scores make no groups of 2"):
        group_rewards(DEFAULT, played, [0.5, 1.0, 1.0], 2)


def test_consensus_is_what_most_plans_hold():
    plans = [trajectory("a", "b"), trajectory("b", "a", "a"), trajectory("a", "c", "b!"), trajectory("d")]
    assert call_shares(plans) == {'a({"x":1})': 0.75, 'b({"x":1})': 0.5, 'c({"x":1})': 0.25, 'd({"x":1})': 0.25}
    required = consensus_requirement(plans)
    assert required.clauses == (('a({"x":1})',), ('b({"x":1})',))
    assert completeness(required, trajectory("b").events) == 0.5
    with pytest.raises(ValueError, match="at least one plan"):
        call_shares([])
    with pytest.raises(ValueError, match=r"threshold must be in \(0, 1\], got 0"):
        consensus_requirement(plans, 0)


def test_consensus_of_good_plans_agrees_with_the_formula():
    """Where each step has one way to it, plans that lack something are told from those that do not."""
    verdicts, truth = [], []
    for task in generate_tasks("train", 120):
        if any(
            call.name in ("sql_query", "aggregate_table", "search", "calculate") for turn in task.plan for call in turn
        ):
            continue
        whole = play(LocalTools(), task, oracle)
        cut = Trajectory(task, whole.tools, whole.turns[1:], "answer")
        required = consensus_requirement([whole, whole, cut])
        for one in (whole, cut):
            verdicts.append(completeness(required, one.events) == 1.0)
            truth.append(rule_completeness(one) == 1.0)
    assert len(truth) >= 20
    assert compare(verdicts, truth).accuracy >= 0.7
