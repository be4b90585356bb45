"""What a plan must have found out: a formula over facts, in conjunctive normal form, and how much of it is fulfilled.

A fact is a string that a successful call provides. A clause is a choice of facts, or of patterns that a successful
call matches; the formula is all of its clauses. Plain Python: no arrays, no tools.
"""

from __future__ import annotations

import datetime
import graphlib
import itertools
import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from envs_jax.registry import nearest

MODES = ("fraction", "strict", "weighted")
MATCHES = ("exact", "subset", "normalised")
_DATE_FORMS = ("%Y-%m-%d", "%Y/%m/%d", "%d.%m.%Y", "%d %B %Y", "%d %b %Y", "%B %d, %Y", "%b %d, %Y", "%B %d %Y")


class Event(Protocol):
    """What a formula reads of a successful call."""

    @property
    def name(self) -> str: ...

    @property
    def arguments(self) -> Mapping[str, Any]: ...

    @property
    def facts(self) -> Collection[str]: ...


@dataclass(frozen=True)
class CallPattern:
    """Calls of one tool whose arguments agree with given ones.

    `match` is "exact" (all arguments), "subset" (the listed ones), "normalised" (all; case, blanks and the form of a
    date do not matter) or a predicate of the arguments, which then reads none of `arguments`.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    match: str | Callable[[Mapping[str, Any]], bool] = "exact"

    def __post_init__(self) -> None:
        if isinstance(self.match, str):
            _one_of("match", self.match, MATCHES)

    def matches(self, name: str, arguments: Mapping[str, Any]) -> bool:
        """Whether the call `name(arguments)` is one of these."""
        if name != self.name:
            return False
        if not isinstance(self.match, str):
            return bool(self.match(arguments))
        if self.match == "subset":
            arguments = {key: value for key, value in arguments.items() if key in self.arguments}
        if self.match == "normalised":
            return canonical(normalised(arguments)) == canonical(normalised(self.arguments))
        return canonical(arguments) == canonical(self.arguments)


Alternative = str | CallPattern


@dataclass(frozen=True)
class Requirement:
    """A formula: all `clauses`, each by any one of its alternatives.

    With `order`, a pair (a, b) of clause numbers, clause b counts only by a call that comes after clause a has counted.
    `weights`, one per clause and 1 in sum, are read in mode "weighted".
    """

    clauses: tuple[tuple[Alternative, ...], ...]
    mode: str = "fraction"
    weights: tuple[float, ...] = ()
    order: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        _one_of("mode", self.mode, MODES)
        if not all(self.clauses):
            raise ValueError(f"clause {[bool(clause) for clause in self.clauses].index(False)} has no alternative")
        expected = len(self.clauses) if self.mode == "weighted" else 0
        if len(self.weights) != expected:
            raise ValueError(f"mode {self.mode!r} with {len(self.clauses)} clauses takes {expected} weights, got {len(self.weights)}")  # fmt: skip  # noqa: E501
        if self.weights and (min(self.weights) < 0.0 or not math.isclose(sum(self.weights), 1.0, abs_tol=1e-6)):
            raise ValueError(f"weights must be at least 0 and 1 in sum, got {self.weights}")
        for pair in self.order:
            if not all(0 <= place < len(self.clauses) for place in pair):
                raise ValueError(f"order names clauses 0 to {len(self.clauses) - 1}, got {pair}")
        try:
            graphlib.TopologicalSorter(self._before()).prepare()
        except graphlib.CycleError as error:
            raise ValueError(f"order runs in a circle: {error.args[1]}") from error

    def satisfied_by(self, events: Sequence[Event]) -> tuple[int | None, ...]:
        """For each clause the number of the call by which it first counts; None where it does not."""
        before, counted = self._before(), dict[int, int]()
        for number, event in enumerate(events):
            for place, clause in enumerate(self.clauses):
                ready = all(counted.get(earlier, number) < number for earlier in before.get(place, ()))
                if place not in counted and ready and any(_holds(alternative, event) for alternative in clause):
                    counted[place] = number
        return tuple(counted.get(place) for place in range(len(self.clauses)))

    def _before(self) -> dict[int, list[int]]:
        """Which clauses must have counted before a clause."""
        before: dict[int, list[int]] = {}
        for earlier, later in self.order:
            before.setdefault(later, []).append(earlier)
        return before


def completeness(requirement: Requirement, events: Sequence[Event]) -> float:
    """How much of a formula the successful calls fulfil, in [0, 1]; 1 for a formula without clauses.

    Mode "fraction": the share of clauses that hold; "strict": whether all do; "weighted": the sum of their weights.
    """
    holds = [number is not None for number in requirement.satisfied_by(events)]
    if requirement.mode == "strict" or not holds:
        return float(all(holds))
    if requirement.mode == "weighted":
        return float(sum(itertools.compress(requirement.weights, holds)))
    return sum(holds) / len(holds)


def required_calls(
    calls: Sequence[tuple[str, Mapping[str, Any]]],
    match: str = "exact",
    mode: str = "fraction",
    order: tuple[tuple[int, int], ...] = (),
) -> Requirement:
    """The formula of a list of calls `(name, arguments)`, one clause each, compared by `match`; see `CallPattern`."""
    return Requirement(tuple((CallPattern(name, arguments, match),) for name, arguments in calls), mode, order=order)


def canonical(value: Any) -> str:
    """JSON in one form: sorted keys, trimmed strings, 2.0 written 2."""
    return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def signature(name: str, arguments: Mapping[str, Any]) -> str:
    """A call as a string; equal calls have equal ones. Every successful call provides it as a fact."""
    return f"{name}({canonical(arguments)})"


def normalised(value: Any) -> Any:
    """A value whose strings have lost case, repeated blanks and their form of a date (it becomes ISO 8601)."""
    if isinstance(value, str):
        text = " ".join(value.split())
        return _iso_date(text) or text.casefold()
    if isinstance(value, Mapping):
        return {key: normalised(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [normalised(part) for part in value]
    return value


def _holds(alternative: Alternative, event: Event) -> bool:
    if isinstance(alternative, str):
        return alternative in event.facts
    return alternative.matches(event.name, event.arguments)


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    return value


def _iso_date(text: str) -> str | None:
    """The date that all of a text is, in ISO 8601."""
    if not re.search(r"\d{4}", text) or len(text) > 30:  # spares the parser what is no date
        return None
    for form in _DATE_FORMS:
        try:
            return datetime.datetime.strptime(text, form).date().isoformat()
        except ValueError:
            continue
    return None


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(value, allowed)}")
