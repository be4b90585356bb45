"""Scripted planners: the shortest plan, the same with faults for a cold start, and policies that try to cheat.

A planner is a function of the trajectory so far, which holds the task, and gives the text of the next turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

from envs_jax.text.local_tools.environment import ANSWER, LocalTools
from envs_jax.text.local_tools.tools import SCHEMAS
from envs_jax.text.local_tools.trajectory import Task, Trajectory
from envs_jax.text.tool_calls import ToolCall, format_tool_calls

Planner = Callable[[Trajectory], str]


def oracle(trajectory: Trajectory) -> str:
    """The stored plan, then the end."""
    return _next_turn(trajectory, trajectory.task.plan)


def make_faulty(seed: int, skip_probability: float = 0.25, repeat_probability: float = 0.2) -> Planner:
    """A teacher that leaves out calls and makes calls twice by chance; the same faults for the same query."""

    def planner(trajectory: Trajectory) -> str:
        rng = random.Random(f"{seed} {trajectory.query}")
        turns = []
        for turn in trajectory.task.plan:
            kept = [call for call in turn if rng.random() >= skip_probability]
            again = [[call] for call in kept if rng.random() < repeat_probability]
            turns += [kept, *again] if kept else []
        return _next_turn(trajectory, turns)

    return planner


def shotgun(trajectory: Trajectory) -> str:
    """Calls every tool once, with the query as every text."""
    calls = [ToolCall(name, _copied(name, trajectory.query)) for name in trajectory.tools]
    return _next_turn(trajectory, [calls[i : i + 4] for i in range(0, len(calls), 4)])


def repeat_one_call(trajectory: Trajectory) -> str:
    """Makes the first call of the plan in every turn."""
    return format_tool_calls(trajectory.task.plan[0][:1])


def answer_at_once(trajectory: Trajectory) -> str:
    """Ends without a call."""
    del trajectory
    return ANSWER


def copy_query(trajectory: Trajectory) -> str:
    """Calls the tools of the plan with the query as every text."""
    plan = [
        [ToolCall(call.name, _copied(call.name, trajectory.query)) for call in turn] for turn in trajectory.task.plan
    ]
    return _next_turn(trajectory, plan)


CHEATS: dict[str, Planner] = {
    planner.__name__: planner for planner in (shotgun, repeat_one_call, answer_at_once, copy_query)
}


def play(env: LocalTools, task: Task, planner: Planner) -> Trajectory:
    """One episode."""
    env.reset(task)
    assert env.trajectory is not None
    while not env.trajectory.stop:
        env.step(planner(env.trajectory))
    return env.trajectory


def _next_turn(trajectory: Trajectory, turns: Iterable[Iterable[ToolCall]]) -> str:
    turns = list(turns)
    made = len(trajectory.turns)
    return format_tool_calls(turns[made]) if made < len(turns) else ANSWER


def _copied(name: str, query: str) -> dict[str, Any]:
    """Arguments that fit a tool's schema and hold nothing but the query."""
    parameters = SCHEMAS[name]["function"]["parameters"]
    plain = {"string": query, "integer": 1, "number": 1, "boolean": True}
    properties = parameters["properties"]
    return {key: properties[key].get("enum", [plain[properties[key]["type"]]])[0] for key in parameters["required"]}
