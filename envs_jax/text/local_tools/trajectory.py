"""What a planner did: turns of calls and what they returned, and why it ended. Rewards and judges read nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from envs_jax.text.requirements import Requirement, canonical, signature
from envs_jax.text.tool_calls import ToolCall

SUMMARISER = """Answer the question from the results below alone. If they do not suffice, say what is missing.

# Question
{query}

# Calls that were made, with their results
{calls}"""
STOPS = ("answer", "max_turns", "max_tokens", "bad_format")


@dataclass(frozen=True)
class Task:
    """A query and what it takes to answer it."""

    query: str
    requirement: Requirement | None = None  # None: unknown, only a judge can tell
    plan: tuple[tuple[ToolCall, ...], ...] = ()  # the fewest calls, by turns
    answer: str = ""  # read by end-to-end baselines and evaluation only
    world: int = 0  # seed of the data that the tools read
    notes: Mapping[str, str] = field(default_factory=dict)  # that the user left beforehand
    family: str = ""  # the shape of the hidden plan

    @property
    def num_needed(self) -> int:
        """Calls of the shortest plan."""
        return sum(len(turn) for turn in self.plan)


@dataclass(frozen=True)
class Call:
    """A call that was made, and its observation."""

    name: str
    arguments: Mapping[str, Any]
    content: str  # what the planner was shown
    error: bool
    facts: frozenset[str]  # what it provides; empty for an error

    @property
    def signature(self) -> str:
        return signature(self.name, self.arguments)


@dataclass(frozen=True)
class Turn:
    thought: str  # what the planner said beside its calls
    calls: tuple[Call, ...]


@dataclass
class Trajectory:
    """One episode of planning."""

    task: Task
    tools: Mapping[str, str] = field(default_factory=dict)  # name -> one line about it
    turns: list[Turn] = field(default_factory=list)
    stop: str = ""  # one of STOPS once it is over
    fault: str = ""  # what was wrong with the format

    @property
    def query(self) -> str:
        return self.task.query

    @property
    def calls(self) -> list[Call]:
        """All calls in order; the planner's call number i + 1 is entry i."""
        return [call for turn in self.turns for call in turn.calls]

    @property
    def events(self) -> list[Call]:
        """The calls that succeeded: what requirements read."""
        return [call for call in self.calls if not call.error]


def numbered_calls(trajectory: Trajectory, max_content: int) -> str:
    """The calls of a trajectory by number, each with its result cut to `max_content` characters; for models to read."""
    lines = []
    for number, call in enumerate(trajectory.calls, 1):
        text = " ".join(call.content.split())
        shown = text if len(text) <= max_content else f"{text[: max_content - 6]} (...)"
        kind = "error" if call.error else "result"
        lines.append(f"{number}. {call.name}({canonical(call.arguments)})\n   {kind}: {shown}")
    return "\n".join(lines) or "(none)"


def summary_messages(trajectory: Trajectory) -> list[dict[str, str]]:
    """What a summariser is told of a finished plan: the query and what was gathered. It is no part of the plan."""
    calls = numbered_calls(trajectory, 1000)
    return [{"role": "user", "content": SUMMARISER.format(query=trajectory.query, calls=calls)}]
