"""The tasks of LocalTools: stored plans find out all that is required, splits share no family, cheats do not pay."""

import collections

import pytest

from envs_jax.text.local_tools import SCHEMAS, SPLITS, LocalTools, generate_task, generate_tasks
from envs_jax.text.local_tools.planners import CHEATS, make_faulty, oracle, play
from envs_jax.text.local_tools.steps import STEPS
from envs_jax.text.requirements import completeness
from envs_jax.text.tool_calls import ToolCall, format_tool_calls


def calls(*named):
    return format_tool_calls([ToolCall(name, arguments) for name, arguments in named])


def replay(task):
    """The stored plan finds out all that is required, by the fewest calls, without an error; the answer is its last."""
    trajectory = play(LocalTools(), task, oracle)
    assert trajectory.stop == "answer"
    assert not [call for call in trajectory.calls if call.error]
    assert len(trajectory.calls) == task.num_needed == len(task.requirement.clauses)
    facts = set().union(*(call.facts for call in trajectory.events))
    assert all(facts.intersection(clause) for clause in task.requirement.clauses), task
    assert completeness(task.requirement, trajectory.events) == 1.0
    assert len(set(task.requirement.satisfied_by(trajectory.events))) == task.num_needed  # each call for one step
    last = trajectory.calls[-1]
    assert task.answer in (str(last.arguments.get("value")) if last.name == "write_note" else last.content)
    # Nothing is there for free: without its last call a plan is not complete.
    assert completeness(task.requirement, trajectory.events[:-1]) < 1.0


def test_stored_plans_replay():
    for split, count in (("train", 100), ("dev", 50), ("test", 50)):
        for task in generate_tasks(split, count):
            replay(task)


@pytest.mark.slow
def test_all_stored_plans_replay():
    for split in SPLITS:
        tasks = generate_tasks(split)
        assert len(tasks) == SPLITS[split]
        for task in tasks:
            replay(task)


def test_splits_share_no_family():
    tasks = {split: generate_tasks(split, 120) for split in SPLITS}
    families = {split: {task.family for task in part} for split, part in tasks.items()}
    assert not families["train"] & families["dev"]
    assert not families["train"] & families["test"]
    assert not families["dev"] & families["test"]
    assert all(len(part) >= 40 for part in families.values())
    for part in tasks.values():
        used = {call.name for task in part for turn in task.plan for call in turn}
        assert used >= set(SCHEMAS) - {"aggregate_table", "read_file"}
        sizes = collections.Counter(task.num_needed for task in part)
        assert set(sizes) >= {2, 3, 4, 5}
    again = generate_task("dev", 7)
    assert again == tasks["dev"][7]
    assert generate_task("dev", 7, seed=1) != again


def test_each_step_has_paraphrases():
    assert all(len(set(step.phrases)) >= 5 for step in STEPS.values())
    texts = collections.defaultdict(set)
    for task in generate_tasks("train", 300):
        texts[task.family].add(task.query)
    assert len(max(texts.values(), key=len)) >= 5


def test_either_tool_counts_for_a_table():
    tasks = generate_tasks("train", 40, tools=["sql_query", "aggregate_table"])
    task = next(task for task in tasks if task.family == "units_of_city(city)")
    (((name, arguments),),) = task.plan
    city = arguments["where_value"] if name == "aggregate_table" else arguments["query"].split("'")[1]
    table = {"path": "tables/orders.csv", "operation": "sum", "column": "quantity", "where_column": "city"}
    for call in (
        ("aggregate_table", {**table, "where_value": city}),
        ("sql_query", {"query": f"SELECT TOTAL(quantity) AS t FROM orders WHERE city LIKE '{city}'"}),
    ):
        env = LocalTools()
        env.reset(task)
        env.step(calls(call))
        assert completeness(task.requirement, env.trajectory.events) == 1.0


def test_a_step_in_the_head_counts_where_the_next_call_shows_it():
    tasks = generate_tasks("train", 100, tools=["find_route", "calculate"])
    task = next(task for task in tasks if task.family == "multiple(multiple(distance(city,city)))")
    (route,), _, (last,) = task.plan
    env = LocalTools()
    env.reset(task)
    env.step(calls(route))
    env.step(calls(last))
    assert completeness(task.requirement, env.trajectory.events) == 1.0


def test_cheats_are_far_from_complete():
    tasks = generate_tasks("train", 60)
    for name, planner in CHEATS.items():
        scores = [completeness(task.requirement, play(LocalTools(), task, planner).events) for task in tasks]
        assert sum(scores) / len(scores) <= 0.6, name
    faulty = [play(LocalTools(), task, make_faulty(0)) for task in tasks]
    scores = [completeness(task.requirement, trajectory.events) for task, trajectory in zip(tasks, faulty, strict=True)]
    assert 0.5 < sum(scores) / len(scores) < 0.95
