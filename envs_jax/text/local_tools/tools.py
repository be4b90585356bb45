"""The tools: methods of a `Desk`, which holds what one episode reads and writes. Deterministic and without network.

Every call ends within the time limit by construction, not by killing it: arguments have at most 2,000 characters, files
100 kB, expressions 200 characters and bounded values, and SQL has a budget of machine steps besides the clock.
"""

from __future__ import annotations

import csv
import datetime
import io
import itertools
import math
import statistics
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from envs_jax.registry import nearest
from envs_jax.text.local_tools.arithmetic import evaluate, number_text
from envs_jax.text.local_tools.database import query_database
from envs_jax.text.local_tools.schema import describe
from envs_jax.text.local_tools.world import CITIES, World
from envs_jax.text.requirements import signature

TIME_LIMIT = 2.0  # seconds of a call
MAX_CONTENT = 1000  # characters of a result
MAX_FILE = 100_000  # characters that are read of a file
MAX_NOTES = 100
FACT_ROWS = 3  # a longer result of SQL is a listing, which shows values without telling which one is meant
UNITS = {  # unit -> dimension, how many of the dimension's first unit
    "m": ("length", 1.0),
    "km": ("length", 1000.0),
    "ft": ("length", 0.3048),
    "mi": ("length", 1609.344),
    "kg": ("mass", 1.0),
    "g": ("mass", 0.001),
    "lb": ("mass", 0.45359237),
    "oz": ("mass", 0.028349523125),
    "min": ("time", 1.0),
    "h": ("time", 60.0),
    "days": ("time", 1440.0),
}
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
Operation = Literal["sum", "mean", "count", "min", "max"]
Unit = Literal["m", "km", "ft", "mi", "kg", "g", "lb", "oz", "min", "h", "days"]


class Part(NamedTuple):
    """A piece of a result, and the facts that whoever is shown all of it knows."""

    text: str
    facts: tuple[str, ...] = ()


class Desk:
    """The tools of one episode. A tool returns its result in parts and raises ValueError with what the planner is told.

    Args:
        world: what is read.
        notes: the notes at the start; copied.
        time_limit: seconds of a call.
    """

    def __init__(self, world: World, notes: Mapping[str, str], time_limit: float = TIME_LIMIT):
        self.world, self.notes, self.time_limit = world, dict(notes), time_limit

    def calculate(self, expression: str) -> list[Part]:
        """Evaluate an arithmetic expression with + - * / // % **, brackets, abs, round, sqrt, floor, min, max.

        Args:
            expression: for example "(12 + 30) * 2.5"
        """
        text = number_text(evaluate(expression))
        return [Part(text, (f"calculate -> {text}",))]

    def convert_units(self, value: float, from_unit: Unit, to_unit: Unit) -> list[Part]:
        """Convert a length, a mass or a duration into another unit.

        Args:
            value: the number to convert
            from_unit: its unit
            to_unit: the unit of the result
        """
        (dimension, size), (other, divisor) = UNITS[from_unit], UNITS[to_unit]
        if dimension != other:
            raise ValueError(f"{from_unit} is a {dimension}, {to_unit} a {other}")
        text = number_text(float(value) * size / divisor)
        return [Part(text, (f"convert_units -> {text} {to_unit}",))]

    def add_days(self, date: str, days: int) -> list[Part]:
        """The date a number of days after another one (before it, if negative).

        Args:
            date: YYYY-MM-DD
            days: how many
        """
        try:
            return [Part((_date(date) + datetime.timedelta(int(days))).isoformat())]
        except OverflowError as error:
            raise ValueError("the result is not a date of the years 1 to 9999") from error

    def days_between(self, first: str, second: str) -> list[Part]:
        """The number of days between two dates, whichever comes first.

        Args:
            first: YYYY-MM-DD
            second: YYYY-MM-DD
        """
        return [Part(str(abs((_date(second) - _date(first)).days)))]

    def weekday(self, date: str) -> list[Part]:
        """The day of the week of a date.

        Args:
            date: YYYY-MM-DD
        """
        return [Part(WEEKDAYS[_date(date).weekday()])]

    def write_note(self, key: str, value: str) -> list[Part]:
        """Store a value under a key in the user's notes; an older value is replaced.

        Args:
            key: name of the note
            value: what to store
        """
        if not key.strip():
            raise ValueError("a note needs a key")
        if key.strip() not in self.notes and len(self.notes) >= MAX_NOTES:
            raise ValueError(f"there are {MAX_NOTES} notes already")
        self.notes[key.strip()] = value
        return [Part("stored")]

    def read_note(self, key: str) -> list[Part]:
        """Read one of the user's notes.

        Args:
            key: name of the note
        """
        if key.strip() not in self.notes:
            raise ValueError(f"there is no note {key.strip()[:50]!r}; notes: {', '.join(self.notes) or 'none'}")
        return [Part(self.notes[key.strip()])]

    def sql_query(self, query: str) -> list[Part]:
        """Run one SELECT on the database of products and orders. Tables: products(product, category, price, weight_kg),
        orders(order_id, product, city, quantity, order_date).

        Args:
            query: in the SQL of SQLite
        """
        result = query_database(self.world.database, query, self.time_limit)
        # A value that was found by reading a table is a fact about that table, however the query was put.
        tables = sorted(result.tables) if len(result.rows) <= FACT_ROWS and result.complete else ()
        parts = [Part(" | ".join(result.columns))]
        for row in result.rows:
            cells = [
                "" if cell is None else number_text(cell) if isinstance(cell, float) else str(cell) for cell in row
            ]
            facts = tuple(f"sql_query {table} -> {cell}" for table in tables for cell in cells)
            parts.append(Part(" | ".join(cells), facts))
        return parts if result.complete else [*parts, Part("(more rows)")]

    def search(self, query: str) -> list[Part]:
        """Search the company's notes on its projects (budget, deadline, site, featured product); shows the best three.

        Args:
            query: a few words
        """
        found = [self.world.documents[i] for i in self.world.index.top(query, 3)]
        if not found:
            raise ValueError("nothing was found")
        return [Part(f"[{d.number}] {d.title}. {d.text}", (f"document {d.number}",)) for d in found]

    def read_file(self, path: str, first_line: int = 1) -> list[Part]:
        """Read a text file of the shared folder, such as a branch report "reports/<city>.txt".

        Args:
            path: within the folder
            first_line: where to begin, counted from 1
        """
        name, text = self._read(path)
        lines, first = text.splitlines(), int(first_line)
        if not 1 <= first <= max(len(lines), 1):
            raise ValueError(f"first_line must be between 1 and {len(lines)}, got {first}")
        return [Part(line, (f"file {name} line {i}",)) for i, line in enumerate(lines[first - 1 :], first)]

    def aggregate_table(
        self, path: str, operation: Operation, column: str, where_column: str = "", where_value: str = ""
    ) -> list[Part]:
        """Aggregate a column of a CSV table of the shared folder, over the rows with a given value or all of them.
        Files: tables/products.csv (product,category,price,weight_kg), tables/orders.csv
        (order_id,product,city,quantity,order_date).

        Args:
            path: within the folder
            operation: how the values are combined
            column: the values
            where_column: only rows whose value in this column is where_value; empty for all rows
            where_value: see where_column
        """
        name, text = self._read(path)
        try:
            rows = list(csv.DictReader(io.StringIO(text)))
        except csv.Error as error:
            raise ValueError(f"{name} is not a table") from error
        for asked in filter(None, (column, where_column)):
            if not rows or asked not in rows[0]:
                raise ValueError(f"there is no column {asked[:50]!r}; columns: {', '.join(rows[0] if rows else ())}")
        chosen = [row[column] for row in rows if not where_column or row[where_column] == where_value]
        if operation == "count":
            found = str(len(chosen))
        else:
            found = number_text(_aggregate(operation, column, chosen))
        return [Part(found, (f"aggregate_table {name} -> {found}",))]

    def find_route(self, start: str, goal: str) -> list[Part]:
        """The shortest way by road between two cities, and its length.

        Args:
            start: a city
            goal: a city
        """
        start, goal = _city(start), _city(goal)
        length, way = self.world.distance(start, goal)
        legs = ", ".join(f"{a} to {b} {self.world.roads[a][b]} km" for a, b in itertools.pairwise(way))
        return [Part(f"{length} km by {len(way) - 1} roads{': ' if legs else ''}{legs}", (route_fact(start, goal),))]

    def _read(self, path: str) -> tuple[str, str]:
        """A file in the sandbox, its path and text: whatever links or dots a path has, it must end up within."""
        folder = self.world.folder
        try:
            target = (folder / path).resolve()
            if not target.is_relative_to(folder):
                raise ValueError("the path leads out of the shared folder")
            if not target.is_file():
                raise ValueError(f"there is no file {path[:100]!r}")
            with target.open(encoding="utf-8", errors="replace") as file:
                return target.relative_to(folder).as_posix(), file.read(MAX_FILE)
        except (OSError, RuntimeError) as error:  # the latter for a link to itself
            raise ValueError(f"{path[:100]!r} cannot be read") from error


TOOLS = (
    Desk.calculate,
    Desk.convert_units,
    Desk.add_days,
    Desk.days_between,
    Desk.weekday,
    Desk.write_note,
    Desk.read_note,
    Desk.sql_query,
    Desk.search,
    Desk.read_file,
    Desk.aggregate_table,
    Desk.find_route,
)
SCHEMAS: dict[str, dict[str, Any]] = {tool.__name__: describe(tool) for tool in TOOLS}


class Outcome(NamedTuple):
    content: str
    error: bool
    facts: frozenset[str]


def run_tool(desk: Desk, name: str, arguments: Mapping[str, Any], max_content: int = MAX_CONTENT) -> Outcome:
    """Calls a tool of the desk by its name with arguments that fit its schema.

    Returns:
        What the planner is shown, cut to `max_content` characters; whether it is an error; the facts it tells: those of
        the parts that are shown whole, and the call's own signature.
    """
    try:
        parts = getattr(desk, name)(**arguments)
    except (ValueError, OverflowError) as error:
        return Outcome(f"error: {error}"[:max_content], True, frozenset())
    content, facts = "", {signature(name, arguments)}
    for i, part in enumerate(parts):
        longer = f"{content}\n{part.text}" if i else part.text
        if len(longer) > max_content:
            mark = "\n(cut)"
            content = longer[: max_content - len(mark)] + mark
            break
        content = longer
        facts.update(part.facts)
    return Outcome(content, False, frozenset(facts))


def route_fact(start: str, goal: str) -> str:
    """The fact that the way between two cities is known, in either direction."""
    return "route " + " - ".join(sorted((start, goal)))


def _aggregate(operation: str, column: str, texts: list[str]) -> float:
    if not texts:
        raise ValueError("no rows fit")
    try:
        values = [float(text) for text in texts]
    except (TypeError, ValueError) as error:
        raise ValueError(f"the column {column!r} does not hold numbers only") from error
    if operation == "mean":
        return statistics.fmean(values)
    return float({"sum": math.fsum, "min": min, "max": max}[operation](values))


def _date(text: str) -> datetime.date:
    try:
        return datetime.datetime.strptime(text.strip(), "%Y-%m-%d").date()
    except ValueError as error:
        raise ValueError(f"a date is written YYYY-MM-DD, got {text[:50]!r}") from error


def _city(text: str) -> str:
    names = {city.lower(): city for city in CITIES}
    if text.strip().lower() not in names:
        raise ValueError(f"unknown city {text[:50]!r}{nearest(text.strip()[:50].title(), CITIES)}")
    return names[text.strip().lower()]
