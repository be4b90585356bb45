"""Queries with hidden plans: a tree of one to five steps, its data, its words, the formula of what must be found."""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from envs_jax.registry import nearest
from envs_jax.text.local_tools.steps import CONSTANTS, QUESTIONS, STEPS, Found
from envs_jax.text.local_tools.tools import SCHEMAS
from envs_jax.text.local_tools.trajectory import Task
from envs_jax.text.local_tools.world import World, make_world
from envs_jax.text.requirements import Requirement, signature

SPLITS = {"train": 2000, "dev": 200, "test": 200}
MAX_STEPS = 5
_WORLDS_PER_SPLIT = 4


class Tree(NamedTuple):
    """A step and the trees of its inputs; without a step a constant, which the query names."""

    step: str
    kind: str
    inputs: tuple[Tree, ...] = ()

    @property
    def size(self) -> int:
        """Calls."""
        return bool(self.step) + sum(tree.size for tree in self.inputs)

    @property
    def family(self) -> str:
        return f"{self.step}({','.join(tree.family for tree in self.inputs)})" if self.step else self.kind


def generate_tasks(split: str, count: int = 0, seed: int = 0, tools: Sequence[str] | None = None) -> list[Task]:
    """The first tasks of a split.

    Args:
        split: "train", "dev" or "test"; no family of plans is in two of them.
        count: how many; 0: as many as the split has, 2,000, 200 and 200.
        seed: of all data and all splits.
        tools: only tasks that need no other tools; None: all.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}{nearest(split, SPLITS)}")
    return [generate_task(split, number, seed, tools) for number in range(count or SPLITS[split])]


def generate_task(split: str, number: int, seed: int = 0, tools: Sequence[str] | None = None) -> Task:
    """Task `number` of a split; see `generate_tasks`.

    Raises:
        ValueError: the tools suffice for no task of the split.
    """
    rng = random.Random(f"{seed} {split} {number}")
    names = _usable(tuple(sorted(SCHEMAS if tools is None else tools)))
    world_seed = int.from_bytes(hashlib.sha256(f"{seed} {split} {number % _WORLDS_PER_SPLIT}".encode()).digest()[:4])
    size = rng.randint(1, MAX_STEPS)
    for attempt in range(10_000):
        if attempt % 200 == 199:
            size = rng.randint(1, MAX_STEPS)  # there may be no tree of this size
        tree = _grow(rng, names, rng.choice(names), size) if names else None
        if tree is not None and tree.size == size and split_of(tree.family) == split:
            task = _realise(rng, tree, world_seed)
            if task is not None:
                return task
    raise ValueError(f"there is no {split} task for the tools {', '.join(tools or SCHEMAS)}")


@functools.cache
def split_of(family: str) -> str:
    """The split of a family: single calls are for training, one in six of the others for each of the held-out ones."""
    if family.count("(") == 1:
        return "train"
    return {0: "dev", 1: "test"}.get(hashlib.sha256(family.encode()).digest()[0] % 6, "train")


@functools.cache
def _usable(tools: tuple[str, ...]) -> tuple[str, ...]:
    """The steps of which every tool is there."""
    unknown = [tool for tool in tools if tool not in SCHEMAS]
    if unknown:
        raise ValueError(f"unknown tool {unknown[0]!r}{nearest(unknown[0], SCHEMAS)}")
    alternatives = {"units_of_product": "aggregate_table", "units_of_city": "aggregate_table"}
    return tuple(
        name for name, step in STEPS.items() if step.tool in tools and alternatives.get(name, step.tool) in tools
    )


def _grow(rng: random.Random, names: tuple[str, ...], name: str, budget: int) -> Tree | None:
    """A random tree of at most `budget` steps with the step `name` on top; None where it did not work out."""
    inputs: list[Tree] = []
    left = budget - 1
    for place, kinds in enumerate(STEPS[name].takes):
        kind = rng.choice(kinds)
        givers = [other for other in names if STEPS[other].gives == kind] if left else []
        share = left if place + 1 == len(STEPS[name].takes) else rng.randint(0, left)
        # The query may name the value itself, if it is not a number, which would have no sense.
        if kind in CONSTANTS and (not givers or not share or rng.random() < 0.2):
            inputs.append(Tree("", kind))
            continue
        tree = _grow(rng, names, rng.choice(givers), share) if givers and share else None
        if tree is None:
            return None
        inputs.append(tree)
        left -= tree.size
    return Tree(name, STEPS[name].gives, tuple(inputs))


class _Node(NamedTuple):
    found: Found
    turn: int  # the first in which its inputs are known


def _realise(rng: random.Random, tree: Tree, world_seed: int) -> Task | None:
    """A task of the shape of a tree; None where one call does for two steps, or a city or date meets itself."""
    world, nodes = make_world(world_seed), list[_Node]()
    answer, phrase, depth = _fill(rng, world, tree, nodes)
    calls = [node.found.call for node in nodes]
    # The notes on one project are found together.
    projects = [node.found.slots["project"] for node in nodes if "project" in node.found.slots]
    pairs = [list(call.arguments.values()) for call in calls if call.name in ("find_route", "days_between")]
    if len({signature(*call) for call in calls}) < len(calls) or len(set(projects)) < len(projects):
        return None
    if any(first == second for first, second in pairs):
        return None
    query = phrase if tree.kind == "saved" else rng.choice(QUESTIONS).format(phrase)
    return Task(
        query=query[0].upper() + query[1:],
        requirement=Requirement(_clauses(tree, nodes)),
        plan=tuple(tuple(node.found.call for node in nodes if node.turn == turn) for turn in range(depth)),
        answer=answer,
        world=world_seed,
        notes={key: value for node in nodes for key, value in node.found.notes.items()},
        family=tree.family,
    )


def _fill(rng: random.Random, world: World, tree: Tree, nodes: list[_Node]) -> tuple[str, str, int]:
    """Adds the nodes of a tree, inputs first: the value of its top, the words for it, the turns it takes."""
    if not tree.step:
        draw, write = CONSTANTS[tree.kind]
        value = draw(world, rng)
        return value, write(value), 0
    inputs = [_fill(rng, world, part, nodes) for part in tree.inputs]
    step, turn = STEPS[tree.step], max((depth for _, _, depth in inputs), default=0)
    found = step.find(world, rng, [value for value, _, _ in inputs])
    nodes.append(_Node(found, turn))
    # Brackets tell what belongs together.
    words = [f"({words})" if part.size > 1 else words for part, (_, words, _) in zip(tree.inputs, inputs)]
    phrase = rng.choice(step.phrases).format(*words, **found.slots)
    return found.value, phrase, turn + 1


def _clauses(tree: Tree, nodes: Sequence[_Node]) -> tuple[tuple[Any, ...], ...]:
    """One clause per step, in the order of `nodes`: any fact that shows that its value was found.

    Where a value goes into a step whose call shows its inputs, that step's facts show it too: whoever adds in the head
    and converts the right number has added.
    """
    remaining = list(nodes)

    def walk(tree: Tree, above: tuple[str, ...]) -> list[tuple[str, ...]]:
        if not tree.step:
            return []
        facts = (*remaining.pop().found.facts, *above)
        passed = facts if STEPS[tree.step].shows_inputs else ()
        below: list[tuple[str, ...]] = []
        for part in reversed(tree.inputs):  # nodes were added inputs first: they are taken back from the end
            below = walk(part, passed) + below
        return [*below, facts]

    return tuple(walk(tree, ()))
