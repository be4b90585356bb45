"""Whatever a model writes and whatever it asks tools for: nothing raises, and everything ends."""

import collections
import random
import time

from envs_jax.text.local_tools import SCHEMAS, LocalTools, Task, generate_tasks
from envs_jax.text.local_tools.schema import check_arguments
from envs_jax.text.local_tools.tools import MAX_CONTENT, Desk, run_tool
from envs_jax.text.local_tools.world import make_world
from envs_jax.text.tool_calls import STYLES, format_tool_calls, parse_tool_calls

WORLD = make_world(0)
QUERY = Task("How far is it?")


def mutated(rng, text):
    """A few random edits."""
    parts = [
        "<tool_call>",
        "</tool_call>",
        "<answer/>",
        "{",
        "}",
        '"',
        "\\",
        "\0",
        "é",
        "NaN",
        "[" * 50,
        ";",
        "1e999",
        "\ud800",
    ]
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:at] + text[at + rng.randint(1, 8) :]
            case 1:
                text = text[:at] + rng.choice(parts) + text[at:]
            case 2:
                text = text[:at] + chr(rng.randrange(0x500)) + text[at + 1 :]
            case _:
                text = text[:at] + text[rng.randrange(len(text) + 1) :]
    return text


def test_mutated_messages_never_raise():
    rng = random.Random(0)
    turns = [turn for task in generate_tasks("train", 60) for turn in task.plan]
    faulty = 0
    for i in range(10_000):
        style = STYLES[i % 2]
        parsed = parse_tool_calls(mutated(rng, "Hm. " * (i % 2) + format_tool_calls(rng.choice(turns), style)), style)
        assert all(isinstance(call.arguments, dict) for call in parsed.calls)
        faulty += bool(parsed.errors)
    assert 2000 < faulty < 9500


def test_mutated_turns_never_raise():
    rng = random.Random(1)
    turns = [turn for task in generate_tasks("train", 60) for turn in task.plan]
    env, stops = LocalTools(), collections.Counter()
    for _ in range(1000):
        env.reset(QUERY)
        step = env.step(mutated(rng, format_tool_calls(rng.choice(turns))))
        assert all(len(message["content"]) <= MAX_CONTENT for message in step.messages)
        stops[step.info["stop"]] += 1
    assert stops["bad_format"] > 100
    assert stops[""] > 20


def test_tools_raise_nothing_for_any_arguments():
    rng = random.Random(2)
    texts = [
        "",
        " ",
        "\0",
        "é" * 2000,
        "'",
        '"',
        "2024-13-01",
        "0000-00-00",
        "9" * 300,
        "../..",
        "tables/orders.csv",
        "a" * 2000,
        "Arlen",
    ]
    texts += ["\ud800", "(" * 200, "SELECT 'x' || " * 100, "-" * 200 + "1"]
    numbers = [0, -1, 10**300, -(10**400), 0.5, 1e308, 3.0]
    longest = 0.0
    for name, schema in SCHEMAS.items():
        for _ in range(40):
            arguments = {}
            for key, kind in schema["function"]["parameters"]["properties"].items():
                values = kind.get("enum") or (texts if kind["type"] == "string" else numbers)
                arguments[key] = rng.choice(values)
            try:
                check_arguments(schema, arguments)
            except ValueError:
                continue
            start = time.process_time()
            outcome = run_tool(Desk(WORLD, {}), name, arguments)
            longest = max(longest, time.process_time() - start)
            assert len(outcome.content) <= MAX_CONTENT
    assert longest < 1.0
