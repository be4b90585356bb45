"""The steps that hidden plans are made of: each is one call, with the phrases that ask for what it finds.

What a step finds is computed here from the world's data, not by the tool: replaying a plan tests both.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, NamedTuple

from envs_jax.text.local_tools.arithmetic import number_text
from envs_jax.text.local_tools.tools import WEEKDAYS, route_fact
from envs_jax.text.local_tools.world import CITIES, World, long_date
from envs_jax.text.requirements import signature
from envs_jax.text.tool_calls import ToolCall

NUMBERS = ("number", "kg", "km")
_KM_PER_MILE, _KG_PER_POUND = Decimal("1.609344"), Decimal("0.45359237")


class Found(NamedTuple):
    """What one step adds to a plan."""

    value: str  # as the tool writes it
    call: ToolCall
    facts: tuple[str, ...]  # any one of them shows that the value was found
    slots: Mapping[str, Any] = {}  # what the phrases need besides the inputs {0} and {1}
    notes: Mapping[str, str] = {}  # that must lie there beforehand


@dataclass(frozen=True)
class Step:
    tool: str
    takes: tuple[tuple[str, ...], ...]  # kinds of value that each input may have
    gives: str  # kind of its value
    phrases: tuple[str, ...]  # noun phrases; a step that is only a last one has none, see `ORDERS` in tasks
    find: Callable[[World, random.Random, Sequence[str]], Found]
    # Its call holds its inputs' values, and no list of candidates could replace them: it shows that they were found.
    shows_inputs: bool = False


def _number(value: Decimal | float) -> str:
    return number_text(float(value))


def _same(name: str, **arguments: Any) -> tuple[ToolCall, str]:
    return ToolCall(name, arguments), signature(name, arguments)


def _document(world: World, title: str) -> str:
    return next(f"document {document.number}" for document in world.documents if document.title == title)


def _table_facts(table: str, value: str) -> tuple[str, ...]:
    """SQL and the table aggregator can both find a value of a table."""
    return f"sql_query {table} -> {value}", f"aggregate_table tables/{table}.csv -> {value}"


def _lookup(column: str, place: int) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        del rng
        value = _number(next(row[place] for row in world.tables["products"] if row[0] == inputs[0]))  # type: ignore[arg-type]
        query = f"SELECT {column} FROM products WHERE product = '{inputs[0]}'"
        return Found(value, ToolCall("sql_query", {"query": query}), _table_facts("products", value))

    return find


def _ordered(by: str, place: int) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        value = str(sum(int(row[3]) for row in world.tables["orders"] if row[place] == inputs[0]))
        query = f"SELECT SUM(quantity) FROM orders WHERE {by} = '{inputs[0]}'"
        calls = (
            ToolCall("sql_query", {"query": query}),
            ToolCall("aggregate_table", {"path": "tables/orders.csv", "operation": "sum", "column": "quantity",
                                         "where_column": by, "where_value": inputs[0]}),
        )  # fmt: skip
        return Found(value, rng.choice(calls), _table_facts("orders", value))

    return find


def _about_project(title: str, words: Sequence[str], read: Callable[[Any], str]) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        del inputs
        project = world.projects[rng.choice(list(world.projects))]
        call = ToolCall("search", {"query": f"project {project.name} {rng.choice(words)}"})
        return Found(read(project), call, (_document(world, f"{project.name}: {title}"),), {"project": project.name})

    return find


def _visitors(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    del rng
    path = f"reports/{inputs[0].lower()}.txt"
    line = world.files[path].splitlines().index(f"visitors: {world.visitors[inputs[0]]}") + 1
    call = ToolCall("read_file", {"path": path})
    return Found(str(world.visitors[inputs[0]]), call, (f"file {path} line {line}",))


def _note(key: str, draw: Callable[[random.Random], str]) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        del world, inputs
        value = draw(rng)
        call, fact = _same("read_note", key=key)
        return Found(value, call, (fact,), notes={key: value})

    return find


def _distance(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    del rng
    call, _ = _same("find_route", start=inputs[0], goal=inputs[1])
    return Found(str(world.distance(*inputs)[0]), call, (route_fact(*inputs),))


def _add_days(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    days = rng.randint(10, 400)
    later = datetime.date.fromisoformat(inputs[0]) + datetime.timedelta(days)
    call, fact = _same("add_days", date=inputs[0], days=days)
    return Found(later.isoformat(), call, (fact,), {"days": days})


def _days_between(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    first, second = inputs
    days = abs(datetime.date.fromisoformat(first) - datetime.date.fromisoformat(second)).days
    call, fact = _same("days_between", first=first, second=second)
    _, turned = _same("days_between", first=second, second=first)
    return Found(str(days), call, (fact, turned))


def _weekday(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    call, fact = _same("weekday", date=inputs[0])
    return Found(WEEKDAYS[datetime.date.fromisoformat(inputs[0]).weekday()], call, (fact,))


def _converted(from_unit: str, to_unit: str, divisor: Decimal) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        value = _number(Decimal(inputs[0]) / divisor)
        arguments = {"value": float(inputs[0]), "from_unit": from_unit, "to_unit": to_unit}
        return Found(value, ToolCall("convert_units", arguments), (f"convert_units -> {value} {to_unit}",))

    return find


def _computed(symbol: str) -> Callable[..., Found]:
    def find(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
        factor = rng.randint(3, 40)
        first, second = Decimal(inputs[0]), Decimal(inputs[1]) if len(inputs) == 2 else factor
        value = _number({"+": first + second, "-": abs(first - second), "*": first * second}[symbol])
        expression = f"{first} {symbol} {second}"
        if symbol == "-":
            expression = f"{max(first, second)} - {min(first, second)}"
        # A query in SQL may compute as well.
        facts = (f"calculate -> {value}", *(f"sql_query {table} -> {value}" for table in ("orders", "products")))
        return Found(value, ToolCall("calculate", {"expression": expression}), facts, {"factor": factor})

    return find


def _saved(world: World, rng: random.Random, inputs: Sequence[str]) -> Found:
    key = rng.choice(("result", "outcome", "for later", "memo", "report"))
    call, fact = _same("write_note", key=key, value=inputs[0])
    return Found(inputs[0], call, (fact,), {"key": key})


def _random_date(rng: random.Random) -> str:
    return (datetime.date(2024, 1, 1) + datetime.timedelta(rng.randrange(900))).isoformat()


# Kinds that a query can simply name: kind -> (how to draw a value, how the query writes it).
CONSTANTS: dict[str, tuple[Callable[[World, random.Random], str], Callable[[str], str]]] = {
    "product": (lambda world, rng: str(rng.choice(world.tables["products"])[0]), lambda value: f"the {value}"),
    "city": (lambda world, rng: rng.choice(CITIES), str),
    "date": (
        lambda world, rng: _random_date(rng),
        lambda value: long_date(datetime.date.fromisoformat(value)),
    ),
}

STEPS = {
    "price": Step("sql_query", (("product",),), "number", (
        "the price of {0}", "the cost in euros of {0}", "the unit price of {0}", "the price in euros of {0}",
        "the amount one pays for {0}",
    ), _lookup("price", 2)),
    "weight": Step("sql_query", (("product",),), "kg", (
        "the weight in kg of {0}", "the number of kg that {0} weighs", "the mass in kg of {0}",
        "the kilograms that {0} weighs", "the weight (kg) of {0}",
    ), _lookup("weight_kg", 3)),
    "units_of_product": Step("sql_query", (("product",),), "number", (
        "the total quantity ordered of {0}", "the number of units that were ordered of {0}",
        "the number of units in all orders of {0}", "the sum of the ordered quantities of {0}",
        "the pieces that all orders of {0} add up to",
    ), _ordered("product", 1)),
    "units_of_city": Step("sql_query", (("city",),), "number", (
        "the total quantity ordered in {0}", "the number of units that were ordered in {0}",
        "the number of units in all orders from {0}", "the sum of the ordered quantities in {0}",
        "the pieces that all orders from {0} add up to",
    ), _ordered("city", 2)),
    "budget": Step("search", (), "number", (
        "the budget of project {project}", "the euros that project {project} was granted",
        "project {project}'s budget", "the sum that the board granted project {project}",
        "the money that project {project} may spend",
    ), _about_project("budget", ("budget", "board euros"), lambda project: str(project.budget))),
    "deadline": Step("search", (), "date", (
        "the deadline of project {project}", "the date by which project {project} is due",
        "project {project}'s deadline", "the day on which project {project} must be finished",
        "the last day of project {project}",
    ), _about_project("deadline", ("deadline",), lambda project: project.deadline.isoformat())),
    "site": Step("search", (), "city", (
        "the site of project {project}", "the city of project {project}", "project {project}'s site",
        "the place where project {project} is run", "the city in which project {project} has its site",
    ), _about_project("site", ("site", "site city"), lambda project: project.city)),
    "featured": Step("search", (), "product", (
        "the product that project {project} features", "project {project}'s featured product",
        "the product featured by project {project}", "the article that project {project} presents",
        "the product in the focus of project {project}",
    ), _about_project("featured product", ("featured product", "features"), lambda project: project.product)),
    "visitors": Step("read_file", (("city",),), "number", (
        "the number of visitors in the branch report of {0}", "the visitors that the report of {0} counts",
        "the visitors of the branch in {0}", "the visitor count that the branch report of {0} gives",
        "the number of people who visited the branch in {0}",
    ), _visitors),
    "home": Step("read_note", (), "city", (
        "my home city (it is in my notes as 'home')", "the city in my note 'home'", "the city I noted as 'home'",
        "my home, which my notes name", "the city stored in the note 'home'",
    ), _note("home", lambda rng: rng.choice(CITIES))),
    "review": Step("read_note", (), "date", (
        "the date in my note 'review'", "the day of my review (see my note 'review')", "the date I noted as 'review'",
        "my review date, which is in the note 'review'", "the date stored in the note 'review'",
    ), _note("review", _random_date)),
    "distance": Step("find_route", (("city",), ("city",)), "km", (
        "the distance by road in km between {0} and {1}", "the km of the shortest way from {0} to {1}",
        "the length in km of the shortest route from {0} to {1}", "the kilometres that one drives from {0} to {1}",
        "the kilometres by road that separate {0} and {1}",
    ), _distance),
    "later": Step("add_days", (("date",),), "date", (
        "the date {days} days after {0}", "the day that comes {days} days after {0}",
        "the date when {days} days have passed since {0}", "the day {days} days later than {0}",
        "the date that lies {days} days after {0}",
    ), _add_days, shows_inputs=True),
    "days_between": Step("days_between", (("date",), ("date",)), "number", (
        "the number of days between {0} and {1}", "the count of days from one to the other of {0} and {1}",
        "the days that separate {0} and {1}", "the time in days between {0} and {1}",
        "the distance in days of {0} and {1}",
    ), _days_between, shows_inputs=True),
    "weekday": Step("weekday", (("date",),), "word", (
        "the day of the week of {0}", "the weekday of {0}", "the name of the weekday of {0}",
        "the day of the week that {0} falls on", "the weekday on which {0} falls",
    ), _weekday, shows_inputs=True),
    "miles": Step("convert_units", (("km",),), "number", (
        "{0} converted to miles", "the number of miles in {0}", "the equivalent in miles of {0}",
        "the miles that make up {0}", "the value in miles of {0}",
    ), _converted("km", "mi", _KM_PER_MILE), shows_inputs=True),
    "pounds": Step("convert_units", (("kg",),), "number", (
        "{0} converted to pounds", "the number of pounds (lb) in {0}", "the equivalent in pounds of {0}",
        "the pounds that make up {0}", "the value in pounds (lb) of {0}",
    ), _converted("kg", "lb", _KG_PER_POUND), shows_inputs=True),
    "multiple": Step("calculate", (NUMBERS,), "number", (
        "{factor} times {0}", "{0} multiplied by {factor}", "the product of {factor} and {0}",
        "{0} taken {factor} times", "the {factor}-fold of {0}",
    ), _computed("*"), shows_inputs=True),
    "total": Step("calculate", (NUMBERS, NUMBERS), "number", (
        "the sum of {0} and {1}", "{0} plus {1}", "the total of {0} and {1}",
        "the number that {0} and {1} add up to", "{0} added to {1}",
    ), _computed("+"), shows_inputs=True),
    "difference": Step("calculate", (NUMBERS, NUMBERS), "number", (
        "the difference between {0} and {1}", "the gap between {0} and {1}",
        "the distance of {0} from {1} on the number line",
        "the amount by which {0} and {1} differ", "the absolute difference of {0} and {1}",
    ), _computed("-"), shows_inputs=True),
    "saved": Step("write_note", ((*NUMBERS, "date", "city", "product", "word"),), "saved", (
        "Store {0} in my notes under '{key}', the bare value.",
        "Find {0} and write it, just the value, to the note '{key}'.",
        "Please keep {0} for me: note '{key}', value only.", "Put {0} into the note '{key}' (nothing but the value).",
        "I want {0} saved as my note '{key}', without any words.",
    ), _saved, shows_inputs=True),
}  # fmt: skip
QUESTIONS = (
    "Tell me {0}.",
    "I would like to know {0}.",
    "Please find out {0}.",
    "Can you tell me {0}?",
    "What I need is {0}.",
    "Work out {0} for me.",
)
