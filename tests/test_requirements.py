"""Formulas of what a plan must find out: their value, their order, and what counts as the same call."""

from typing import NamedTuple

import pytest

from envs_jax.text.requirements import (
    CallPattern,
    Requirement,
    canonical,
    completeness,
    normalised,
    required_calls,
    signature,
)


class Event(NamedTuple):
    name: str = "tool"
    arguments: dict = {}  # noqa: RUF012
    facts: frozenset = frozenset()


def knows(*facts):
    return Event(facts=frozenset(facts))


def test_each_mode_by_hand():
    clauses = (("a",), ("b", "c"), ("d",))
    events = [knows("c"), knows("a", "x")]
    assert completeness(Requirement(clauses), events) == pytest.approx(2 / 3)
    assert completeness(Requirement(clauses, "strict"), events) == 0.0
    assert completeness(Requirement(clauses, "strict"), [*events, knows("d")]) == 1.0
    assert completeness(Requirement(clauses, "weighted", (0.5, 0.2, 0.3)), events) == pytest.approx(0.7)
    assert completeness(Requirement(clauses), []) == 0.0
    assert completeness(Requirement(()), []) == 1.0
    assert Requirement(clauses).satisfied_by(events) == (1, 0, None)


def test_order_makes_the_later_clause_wait():
    clauses = (("a",), ("b",), ("c",))
    ordered = Requirement(clauses, order=((0, 1), (1, 2)))
    assert ordered.satisfied_by([knows("a"), knows("b"), knows("c")]) == (0, 1, 2)
    assert ordered.satisfied_by([knows("b"), knows("a"), knows("c")]) == (1, None, None)
    assert ordered.satisfied_by([knows("b"), knows("a"), knows("b")]) == (1, 2, None)
    assert ordered.satisfied_by([knows("a", "b")]) == (0, None, None)  # not before, but at once
    assert Requirement(clauses).satisfied_by([knows("c"), knows("b"), knows("a")]) == (2, 1, 0)


@pytest.mark.parametrize(
    ("match", "given", "expected"),
    [
        ("exact", {"city": "Oslo", "days": 2}, True),
        ("exact", {"days": 2.0, "city": " Oslo "}, True),
        ("exact", {"city": "oslo", "days": 2}, False),
        ("exact", {"city": "Oslo", "days": 2, "unit": "C"}, False),
        ("subset", {"city": "Oslo", "days": 2, "unit": "C"}, True),
        ("subset", {"city": "Oslo"}, False),
        ("normalised", {"city": "  OSLO", "days": 2}, True),
        ("normalised", {"city": "Bergen", "days": 2}, False),
        (lambda arguments: arguments["days"] > 1, {"days": 5}, True),
        (lambda arguments: arguments["days"] > 1, {"days": 1}, False),
    ],
)
def test_arguments_agree(match, given, expected):
    pattern = CallPattern("weather", {"city": "Oslo", "days": 2}, match)
    assert pattern.matches("weather", given) is expected
    assert not pattern.matches("traffic", given)


def test_required_calls_and_facts_are_one_kind_of_formula():
    wanted = [("weather", {"city": "Oslo"}), ("traffic", {"road": "E6"})]
    requirement = required_calls(wanted, "subset", order=((0, 1),))
    made = [Event("weather", {"city": "Oslo", "days": 3}), Event("traffic", {"road": "E6"})]
    assert completeness(requirement, made) == 1.0
    assert completeness(requirement, made[::-1]) == 0.5
    mixed = Requirement((("a", CallPattern("weather", match="subset")),))
    assert completeness(mixed, made[:1]) == completeness(mixed, [knows("a")]) == 1.0


def test_one_form_for_equal_arguments():
    assert canonical({"b": [1.0, " x "], "a": True}) == '{"a":true,"b":[1,"x"]}'
    assert canonical(-0.0) == canonical(0) == "0"
    assert canonical(1) != canonical(True)
    assert canonical(0.5) == "0.5"
    assert canonical("1") != canonical(1)
    assert signature("f", {"y": 1, "x": 2.0}) == 'f({"x":2,"y":1})'


@pytest.mark.parametrize(
    "text", ["2024-03-05", "2024/3/5", "5.3.2024", "5 March 2024", "Mar 5, 2024", " march  5 2024"]
)
def test_forms_of_a_date(text):
    assert normalised({"when": [text]}) == {"when": ["2024-03-05"]}


def test_what_is_no_date_keeps_its_words():
    assert normalised("  Room  2024 B ") == "room 2024 b"
    assert normalised(3.5) == 3.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Requirement((("a",),), "strickt"), "mode must be one of .*did you mean 'strict'"),
        (lambda: Requirement((("a",), ())), "clause 1 has no alternative"),
        (lambda: Requirement((("a",),), "weighted"), "takes 1 weights, got 0"),
        (lambda: Requirement((("a",),), weights=(1.0,)), "takes 0 weights, got 1"),
        (lambda: Requirement((("a",), ("b",)), "weighted", (0.5, 0.6)), "1 in sum"),
        (lambda: Requirement((("a",),), order=((0, 1),)), r"clauses 0 to 0, got \(0, 1\)"),
        (lambda: Requirement((("a",), ("b",)), order=((0, 1), (1, 0))), "runs in a circle"),
        (lambda: CallPattern("f", {}, "exakt"), "match must be one of .*did you mean 'exact'"),
    ],
)
def test_what_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
