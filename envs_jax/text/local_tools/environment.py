"""LocalTools: a planner calls real tools by text, turn by turn, until it has what the answer to a query needs.

A turn of the planner is an optional thought and one or more tool calls, or `<answer/>` with nothing after it. The
answer itself is not its business.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from envs_jax.registry import nearest
from envs_jax.text.local_tools.schema import check_arguments
from envs_jax.text.local_tools.tasks import generate_task
from envs_jax.text.local_tools.tools import MAX_CONTENT, SCHEMAS, TIME_LIMIT, Desk, run_tool
from envs_jax.text.local_tools.trajectory import Call, Task, Trajectory, Turn
from envs_jax.text.local_tools.world import make_world
from envs_jax.text.tool_calls import STYLES, ToolCall, parse_tool_calls

ANSWER = "<answer/>"
INSTRUCTIONS = f"""You plan. Call tools until everything is known that the user's question needs; do not answer it.
A message is a short thought, if any, and one or more tool calls. Calls that need no result of each other go together.
When nothing is missing any more, write {ANSWER} and nothing after it."""

Message = dict[str, str]


class TextStep(NamedTuple):
    messages: list[Message]  # the results, one message of role "tool" per call, in order
    done: bool
    info: dict[str, Any]  # "stop", "fault", "num_calls", "num_errors"


class LocalTools:
    """One planner, one episode at a time; everything random follows from the task.

    Ends with `<answer/>` ("answer"); after the last turn ("max_turns"); at the first ill-formed turn ("bad_format"): a
    malformed call, an unknown tool, a missing argument, arguments against the schema, text after `<answer/>`, a call
    beside it, or neither; or when whoever plays the episode cuts it ("max_tokens"). No call of an ill-formed turn is
    made. Calls beyond `max_calls` of a turn are answered by an error.

    Args:
        tools: names of the tools that are offered; None: all.
        max_turns: turns of the planner.
        max_calls: calls that a turn may make.
        time_limit: seconds of a call.
        style: how calls are written, one of `envs_jax.text.tool_calls.STYLES`.
        instructions: the system message.
    """

    def __init__(
        self,
        tools: Sequence[str] | None = None,
        *,
        max_turns: int = 8,
        max_calls: int = 4,
        time_limit: float = TIME_LIMIT,
        max_content: int = MAX_CONTENT,
        style: str = "hermes",
        instructions: str = INSTRUCTIONS,
    ):
        offered = tuple(SCHEMAS if tools is None else tools)
        for name in offered:
            if name not in SCHEMAS:
                raise ValueError(f"unknown tool {name!r}{nearest(name, SCHEMAS)} Known: {', '.join(SCHEMAS)}")
        if style not in STYLES:
            raise ValueError(f"style must be one of {', '.join(STYLES)}, got {style!r}{nearest(style, STYLES)}")
        for setting, value in (("max_turns", max_turns), ("max_calls", max_calls), ("max_content", max_content - 99)):
            if value < 1:
                raise ValueError(f"{setting} is too small, got {value}")
        self.schemas = {name: SCHEMAS[name] for name in offered}
        self.max_turns, self.max_calls, self.max_content = max_turns, max_calls, max_content
        self.time_limit, self.style, self.instructions = time_limit, style, instructions
        self.trajectory: Trajectory | None = None

    def reset(self, task: Task | int) -> tuple[list[Message], list[dict[str, Any]]]:
        """Starts an episode.

        Args:
            task: from `generate_tasks` or of your own; a number is that of a training task.

        Returns:
            The messages so far and the schemas of the tools.
        """
        task = generate_task("train", task, tools=tuple(self.schemas)) if isinstance(task, int) else task
        self._desk = Desk(make_world(task.world), task.notes, self.time_limit)
        about = {name: schema["function"]["description"] for name, schema in self.schemas.items()}
        self.trajectory = Trajectory(task, about)
        messages = [{"role": "system", "content": self.instructions}, {"role": "user", "content": task.query}]
        return messages, list(self.schemas.values())

    def step(self, text: str) -> TextStep:
        """Plays one turn of the planner: its message, without the mark that ends it.

        Raises:
            ValueError: there is no episode, or it is over.
        """
        trajectory = self._running()
        thought, calls, fault = self._read(text)
        if fault or not calls:
            trajectory.turns.append(Turn(thought, ()))
            return self._end("bad_format" if fault else "answer", fault)
        made = tuple(self._call(call, i) for i, call in enumerate(calls))
        trajectory.turns.append(Turn(thought, made))
        messages = [{"role": "tool", "name": call.name, "content": call.content} for call in made]
        if len(trajectory.turns) == self.max_turns:
            return self._end("max_turns")._replace(messages=messages)
        return TextStep(messages, False, self._info())

    def cut(self) -> TextStep:
        """Ends the episode because the planner has no tokens left."""
        self._running()
        return self._end("max_tokens")

    def _running(self) -> Trajectory:
        if self.trajectory is None or self.trajectory.stop:
            raise ValueError("call reset before step: " + ("the episode is over" if self.trajectory else "none began"))
        return self.trajectory

    def _read(self, text: str) -> tuple[str, list[ToolCall], str]:
        """The thought, the calls (none: the planner is finished) and what is wrong with a turn."""
        hidden, _, said = text.rpartition("</think>")  # a thought may mention anything
        parsed = parse_tool_calls(said, self.style)
        content, answered, rest = parsed.content.partition(ANSWER)
        thought = f"{hidden}\n{content}".strip()
        if parsed.errors:
            return thought, [], parsed.errors[0]
        if rest.strip():
            return thought, [], f"text after {ANSWER}"
        if answered:
            return thought, [], f"calls beside {ANSWER}" if parsed.calls else ""
        if not parsed.calls:
            return thought, [], f"neither a call nor {ANSWER}"
        for call in parsed.calls:
            if call.name not in self.schemas:
                return thought, [], f"unknown tool {call.name[:50]!r}"
            try:
                check_arguments(self.schemas[call.name], call.arguments)
            except ValueError as error:
                return thought, [], str(error)
        return thought, parsed.calls, ""

    def _call(self, call: ToolCall, place: int) -> Call:
        if place >= self.max_calls:
            content = f"error: a turn may make {self.max_calls} calls"
            return Call(call.name, call.arguments, content, True, frozenset())
        outcome = run_tool(self._desk, call.name, call.arguments, self.max_content)
        return Call(call.name, call.arguments, *outcome)

    def _end(self, stop: str, fault: str = "") -> TextStep:
        assert self.trajectory is not None
        self.trajectory.stop, self.trajectory.fault = stop, fault
        return TextStep([], True, self._info())

    def _info(self) -> dict[str, Any]:
        assert self.trajectory is not None
        calls = self.trajectory.calls
        return {
            "stop": self.trajectory.stop,
            "fault": self.trajectory.fault,
            "num_calls": len(calls),
            "num_errors": sum(call.error for call in calls),
        }
