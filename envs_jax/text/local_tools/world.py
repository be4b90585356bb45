"""The invented data that the tools read: a trading company's products, orders, projects, cities and roads.

All of it follows from a seed. One world serves many episodes; none of them changes it.
"""

from __future__ import annotations

import datetime
import functools
import heapq
import math
import random
import shutil
import sqlite3
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from envs_jax.text.local_tools.search import BM25


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


MATERIALS = ("oak", "pine", "steel", "brass", "glass", "linen", "cork", "slate")
ITEMS = ("shelf", "table", "lamp", "chair", "tray", "mirror")
CATEGORIES = ("storage", "lighting", "kitchen", "office")
CITIES = _names(
    "Arlen Belford Carrick Dunmore Elsby Farrow Garston Halden Ivelsk Jarrow Kelmar Lorvik "
    "Marsten Norvik Ostrava Pellworm Quarrel Rosmar Stavern Tolmin Ulverton Varnby Westrum Yarrow"
)
PROJECTS = _names(
    "Amber Basalt Cedar Delta Ember Falcon Glacier Harbor Indigo Jasper Kestrel Lantern Meadow Nimbus Onyx Pioneer "
    "Quartz Raven Saffron Tundra Umber Violet Willow Xenon Yonder Zephyr Acorn Beacon Cobalt Drift Eclipse Fjord "
    "Granite Heron Iris Juniper Keystone Lagoon Mistral Nectar Orchid Prairie Quill Ripple Sierra Topaz Upland "
    "Vertex Walnut Zenith"
)
NUM_ORDERS = 240
TABLES = {
    "products": ("product", "category", "price", "weight_kg"),
    "orders": ("order_id", "product", "city", "quantity", "order_date"),
}
MONTHS = _names("January February March April May June July August September October November December")


class Document(NamedTuple):
    number: int
    title: str
    text: str


class Project(NamedTuple):
    name: str
    budget: int  # euros
    deadline: datetime.date
    city: str
    product: str


Row = tuple[str | int | float, ...]


@dataclass(frozen=True, eq=False)
class World:
    """What there is to know. Rows of tables follow the columns in `TABLES`."""

    tables: Mapping[str, tuple[Row, ...]]
    projects: Mapping[str, Project]
    documents: tuple[Document, ...]
    visitors: Mapping[str, int]  # city -> in its report
    roads: Mapping[str, Mapping[str, int]]  # city -> neighbour -> km, both ways
    files: Mapping[str, str]  # path in the sandbox -> text

    @functools.cached_property
    def database(self) -> bytes:
        """The tables as an SQLite database."""
        connection = sqlite3.connect(":memory:")
        for name, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {name} ({', '.join(columns)})")
            connection.executemany(f"INSERT INTO {name} VALUES ({', '.join('?' * len(columns))})", self.tables[name])
        connection.commit()
        stored = connection.serialize()
        connection.close()
        return stored

    @functools.cached_property
    def index(self) -> BM25:
        """Of the documents."""
        return BM25([f"{document.title} {document.text}" for document in self.documents])

    @functools.cached_property
    def folder(self) -> Path:
        """A folder with the files, written when first needed and removed with the world."""
        folder = Path(tempfile.mkdtemp(prefix="local-tools-")).resolve()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        for path, text in self.files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        return folder

    def distance(self, start: str, goal: str) -> tuple[int, list[str]]:
        """Kilometres of the shortest way between two cities, and the cities on it (Dijkstra 1959)."""
        before: dict[str, str] = {}
        frontier, length, city = [(0, start, start)], 0, ""
        while city != goal:
            length, city, previous = heapq.heappop(frontier)
            if city in before:
                continue
            before[city] = previous
            for neighbour, road in self.roads[city].items():
                heapq.heappush(frontier, (length + road, neighbour, city))
        way = [goal]
        while way[-1] != start:
            way.append(before[way[-1]])
        return length, way[::-1]


@functools.lru_cache(maxsize=16)
def make_world(seed: int) -> World:
    """The world of a seed; the same object while it is remembered."""
    rng = random.Random(f"world {seed}")
    names = [f"{material} {item}" for material in MATERIALS for item in ITEMS]
    prices, weights = rng.sample(range(105, 2999), len(names)), rng.sample(range(11, 399), len(names))
    products = tuple(
        (name, rng.choice(CATEGORIES), price / 10, weight / 10) for name, price, weight in zip(names, prices, weights)
    )
    first = datetime.date(2024, 1, 1)
    orders = tuple(
        (
            1000 + i,
            names[i % len(names)],  # each product is ordered
            rng.choice(CITIES),
            rng.randint(12, 250),
            (first + datetime.timedelta(rng.randrange(366))).isoformat(),
        )
        for i in range(NUM_ORDERS)
    )
    projects = {
        name: Project(name, budget, first + datetime.timedelta(rng.randint(366, 1200)), rng.choice(CITIES), product)
        for name, budget, product in zip(
            PROJECTS, rng.sample(range(10_000, 99_999), len(PROJECTS)), rng.choices(names, k=len(PROJECTS))
        )
    }
    visitors = dict(zip(CITIES, rng.sample(range(1000, 9999), len(CITIES))))
    tables = {"products": products, "orders": orders}
    files = {f"reports/{city.lower()}.txt": _report(rng, city, visitors[city]) for city in CITIES}
    files |= {f"tables/{name}.csv": _csv(TABLES[name], rows) for name, rows in tables.items()}
    return World(tables, projects, _documents(rng, projects), visitors, _roads(rng), files)


def long_date(date: datetime.date) -> str:
    """As prose has it: "5 March 2024"."""
    return f"{date.day} {MONTHS[date.month - 1]} {date.year}"


def _documents(rng: random.Random, projects: Mapping[str, Project]) -> tuple[Document, ...]:
    """Four notes about each project, in no order."""
    fillers = (
        "The minutes were approved without changes.",
        "Questions go to the project office.",
        "This note replaces an earlier version.",
        "A copy was sent to all departments.",
        "The next meeting will review it.",
    )
    notes = []
    for name, budget, deadline, city, product in projects.values():
        notes += [
            (f"{name}: budget", f"The board granted project {name} a budget of {budget} euros."),
            (f"{name}: deadline", f"The deadline of project {name} is {long_date(deadline)} ({deadline})."),
            (f"{name}: site", f"The site of project {name} is in the city of {city}."),
            (f"{name}: featured product", f"The product that project {name} features is the {product}."),
        ]
    rng.shuffle(notes)
    return tuple(Document(i, title, f"{text} {rng.choice(fillers)}") for i, (title, text) in enumerate(notes, 1))


def _roads(rng: random.Random) -> dict[str, dict[str, int]]:
    """A connected network: each city is joined to the two nearest of those before it, by straight roads."""
    places = {city: (rng.uniform(0, 900), rng.uniform(0, 900)) for city in CITIES}
    roads: dict[str, dict[str, int]] = {city: {} for city in CITIES}
    for i, city in enumerate(CITIES):
        others = sorted(CITIES[:i], key=lambda other: math.dist(places[city], places[other]))
        for other in others[:2]:
            roads[city][other] = roads[other][city] = round(math.dist(places[city], places[other])) + 1
    return roads


def _report(rng: random.Random, city: str, visitors: int) -> str:
    lines = (
        f"Branch report of {city}",
        f"manager: {rng.choice('ABCDEFGHKLM')}. {rng.choice(('Berg', 'Costa', 'Dale', 'Novak', 'Silva', 'Weber'))}",
        f"visitors: {visitors}",
        f"staff: {rng.randint(4, 60)}",
        f"opened: {rng.randint(1960, 2020)}",
    )
    return "\n".join(lines) + "\n"


def _csv(columns: tuple[str, ...], rows: tuple[Row, ...]) -> str:
    return "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)]) + "\n"
