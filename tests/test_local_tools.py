"""LocalTools: the tools compute and stay in bounds, the format is kept, every stored plan finds out what it must."""

import json
import math
import time

import pytest

from envs_jax.text.local_tools import SCHEMAS, LocalTools, Task, generate_task, generate_tasks, summary_messages
from envs_jax.text.local_tools.arithmetic import evaluate, number_text
from envs_jax.text.local_tools.schema import check_arguments, describe
from envs_jax.text.local_tools.search import BM25
from envs_jax.text.local_tools.tools import MAX_CONTENT, Desk, run_tool
from envs_jax.text.local_tools.world import CITIES, make_world
from envs_jax.text.requirements import completeness
from envs_jax.text.tool_calls import STYLES, ToolCall, format_tool_calls

WORLD = make_world(0)
QUERY = Task("How far is it?")


def use(name, desk=None, **arguments):
    check_arguments(SCHEMAS[name], arguments)
    return run_tool(desk or Desk(WORLD, {}), name, arguments)


def calls(*named):
    return format_tool_calls([ToolCall(name, arguments) for name, arguments in named])


ADD = ("calculate", {"expression": "1 + 1"})
DEEP = json.loads("[" * 400 + "]" * 400)


# The tools.


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) * -4", "-20"),
        ("7 / 2", "3.5"),
        ("7 // 2 + 7 % 2", "4"),
        ("2 ** 10", "1024"),
        ("round(5, -10 ** 29)", "0"),
        ("1 / 3", "0.333333"),
        ("round(2.567, 1) + abs(-2) + max(1, 2) + floor(1.5) + sqrt(16)", "11.6"),
        ("0.1 + 0.2", "0.3"),
    ],
)
def test_calculator(expression, value):
    assert number_text(evaluate(expression)) == value


@pytest.mark.parametrize(
    "expression",
    [
        "9 ** 9 ** 9", "1e20 * 1e20", "(-8) ** 0.5", "1 / 0", "x", "__import__('os')", "(1).real", "'a' * 9", "[1]",
        "1 << 99", "1 if 1 else 2", "(" * 100, "-" * 199 + "1" + "!", "True", "max(1)", "lambda: 1", "1,2", "",
        "9" * 201, "sqrt(-1)", "1e999 - 1e999", "abs(*[1])", "round(1, ndigits=2)",
    ],
)  # fmt: skip
def test_calculator_refuses(expression):
    with pytest.raises(ValueError):
        evaluate(expression)


def test_units_and_dates():
    assert use("convert_units", value=26.2, from_unit="mi", to_unit="km").content == "42.164813"
    assert use("convert_units", value=3, from_unit="days", to_unit="h").content == "72"
    assert use("convert_units", value=1, from_unit="kg", to_unit="m").error
    assert use("add_days", date="2024-02-28", days=2).content == "2024-03-01"
    assert use("days_between", first="2024-03-01", second="2023-03-01").content == "366"
    assert use("weekday", date="2024-02-29").content == "Thursday"
    for wrong in ("2023-02-29", "29.2.2024", ""):
        assert use("weekday", date=wrong).content.startswith("error: a date is written YYYY-MM-DD")
    assert use("add_days", date="2024-01-01", days=10**12).error


def test_notes_belong_to_the_episode():
    desk = Desk(WORLD, {"home": "Arlen"})
    assert use("read_note", desk, key=" home").content == "Arlen"
    use("write_note", desk, key="x", value="1")
    assert use("read_note", desk, key="x").content == "1"
    assert (
        use("read_note", Desk(WORLD, {"home": "Arlen"}), key="x").content == "error: there is no note 'x'; notes: home"
    )
    assert use("write_note", desk, key=" ", value="1").error


def test_sql_and_the_table_aggregator_agree():
    product = WORLD.tables["orders"][0][1]
    total = sum(row[3] for row in WORLD.tables["orders"] if row[1] == product)
    by_sql = use("sql_query", query=f"SELECT product, SUM(quantity) AS n FROM orders WHERE product = '{product}'")
    assert by_sql.content == f"product | n\n{product} | {total}"
    assert f"sql_query orders -> {total}" in by_sql.facts
    table = {"path": "tables/orders.csv", "operation": "sum", "column": "quantity"}
    assert use("aggregate_table", **table, where_column="product", where_value=product).content == str(total)
    number = use("aggregate_table", path="./tables/../tables/orders.csv", operation="count", column="city")
    assert number.facts >= {f"aggregate_table tables/orders.csv -> {len(WORLD.tables['orders'])}"}
    mean = use("aggregate_table", **table | {"operation": "mean"})
    assert float(mean.content) == pytest.approx(sum(row[3] for row in WORLD.tables["orders"]) / 240, abs=1e-6)
    for wrong in ({"column": "city"}, {"column": "cost"}, {"where_column": "quantity", "where_value": "-1"}):
        assert use("aggregate_table", **table | wrong).error


def test_what_was_not_read_is_no_fact():
    known = {"sql_query orders -> 1234"}
    assert not use("sql_query", query="SELECT 1234").facts & known  # a guess
    listing = use("sql_query", query="SELECT product, quantity FROM orders LIMIT 4")
    assert not [fact for fact in listing.facts if fact.startswith("sql_query orders")]
    everything = use("sql_query", query="SELECT * FROM orders")
    assert len(everything.content) <= MAX_CONTENT
    assert everything.content.endswith("(cut)")


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM orders", "DROP TABLE orders", "INSERT INTO orders VALUES (1,2,3,4,5)", "PRAGMA query_only = 0",
        "ATTACH DATABASE '/tmp/x.db' AS x", "SELECT load_extension('x')", "SELECT random()", "SELECT date('now')",
        "SELECT CURRENT_TIMESTAMP", "SELECT 1; SELECT 2", "SELECT readfile('/etc/passwd')", "VACUUM", "", "SELECT",
        "SELECT * FROM sqlite_master WHERE writable", "SELECT zeroblob(1000000000)", "SELECT printf('%9999999d', 1)",
        "\0", "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n",
    ],
)  # fmt: skip
def test_sql_only_reads(query):
    before = WORLD.database
    assert use("sql_query", query=query).error
    assert WORLD.database == before


def test_a_query_without_end_is_ended():
    big = "SELECT COUNT(*) FROM orders a, orders b, orders c, orders d WHERE a.city < b.city || c.city || d.city"
    start = time.process_time()
    assert use("sql_query", query=big).content == "error: the query takes too long"
    assert use("sql_query", query=big.replace("COUNT(*)", "a.city") + " ORDER BY 1").error
    assert time.process_time() - start < 4.0
    started = time.process_time()  # the clock ends it too
    assert use("sql_query", Desk(WORLD, {}, time_limit=0.01), query=big).error
    assert time.process_time() - started < 0.5


def test_search_ranks_as_bm25():
    index = BM25(["red fox", "red red dog", "a cat and a dog and more words here"])
    assert index.top("red", 3) == [1, 0]
    assert index.top("Dog!", 1) == [1]  # the shorter text
    assert index.top("fish", 3) == []
    rarity = math.log(1 + (3 - 2 + 0.5) / (2 + 0.5))
    mean = (2 + 3 + 9) / 3
    expected = rarity * 2 * 2.2 / (2 + 1.2 * (0.25 + 0.75 * 3 / mean))
    assert dict(index._scores["red"])[1] == pytest.approx(expected)
    assert len(WORLD.documents) == 200
    name, project = next(iter(WORLD.projects.items()))
    assert f"budget of {project.budget} euros" in use("search", query=f"{name} budget").content.splitlines()[0]
    assert use("search", query="?!").error


def test_the_sandbox_holds(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    link, loop = WORLD.folder / "link.txt", WORLD.folder / "loop"
    link.symlink_to(secret)
    loop.symlink_to(loop)
    try:
        up = "../" * 12
        for path in (
            str(secret),
            "link.txt",
            "loop",
            f"{up}etc/passwd",
            "/etc/passwd",
            "reports/../../x",
            "",
            ".",
            "\0",
            "a" * 1999,
        ):
            for name, more in (("read_file", {}), ("aggregate_table", {"operation": "count", "column": "x"})):
                outcome = use(name, path=path, **more)
                assert outcome.error, path
                assert "secret" not in outcome.content.replace(str(secret), "")
    finally:
        link.unlink()
        loop.unlink()
    report = use("read_file", path="reports/arlen.txt", first_line=3)
    assert report.content.splitlines()[0] == f"visitors: {WORLD.visitors['Arlen']}"
    assert "file reports/arlen.txt line 3" in report.facts
    assert "file reports/arlen.txt line 1" not in report.facts
    long = use("read_file", path="tables/orders.csv")
    assert "file tables/orders.csv line 2" in long.facts
    assert "file tables/orders.csv line 200" not in long.facts  # cut off


def test_routes_are_shortest():
    lengths = {a: dict.fromkeys(CITIES, math.inf) | {a: 0} | dict(WORLD.roads[a]) for a in CITIES}
    for middle in CITIES:  # Floyd 1962
        for a in CITIES:
            for b in CITIES:
                lengths[a][b] = min(lengths[a][b], lengths[a][middle] + lengths[middle][b])
    assert all(WORLD.distance(a, b)[0] == lengths[a][b] < math.inf for a in CITIES for b in CITIES)
    there, back = use("find_route", start="arlen", goal=" Yarrow"), use("find_route", start="Yarrow", goal="Arlen")
    assert there.content.startswith(f"{lengths['Arlen']['Yarrow']} km by")
    assert "route Arlen - Yarrow" in there.facts & back.facts
    assert "did you mean 'Arlen'" in use("find_route", start="Arlan", goal="Yarrow").content


def test_schemas_come_from_the_functions():
    schema = SCHEMAS["aggregate_table"]["function"]
    assert schema["description"].startswith("Aggregate a column of a CSV table")
    assert schema["parameters"]["required"] == ["path", "operation", "column"]
    assert schema["parameters"]["properties"]["operation"]["enum"] == ["sum", "mean", "count", "min", "max"]
    assert SCHEMAS["read_file"]["function"]["parameters"]["properties"]["first_line"]["type"] == "integer"
    json.dumps(SCHEMAS)

    def undescribed(x: int):
        """Does nothing."""

    with pytest.raises(TypeError, match="does not describe 'x'"):
        describe(undescribed)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs the argument 'value'"),
        ({"value": "3", "from_unit": "m", "to_unit": "km"}, "'value' of convert_units must be of type number, got str"),
        ({"value": True, "from_unit": "m", "to_unit": "km"}, "must be of type number, got bool"),
        ({"value": math.inf, "from_unit": "m", "to_unit": "km"}, "must be of type number"),
        ({"value": 3, "from_unit": "m", "to_unit": "yd"}, "must be one of m, km"),
        ({"value": 3, "from_unit": "m", "to_unit": "km", "too": 1}, "has no argument 'too'"),
        ({"value": 3, "from_unit": "m" * 3000, "to_unit": "km"}, "at most 2000 characters"),
    ],
)
def test_arguments_are_checked(arguments, message):
    with pytest.raises(ValueError, match=message):
        check_arguments(SCHEMAS["convert_units"], arguments)


# The environment.


def test_an_episode():
    env = LocalTools()
    messages, tools = env.reset(QUERY)
    assert [message["role"] for message in messages] == ["system", "user"]
    assert [tool["function"]["name"] for tool in tools] == list(SCHEMAS)
    step = env.step("I add. " + calls(ADD, ("calculate", {"expression": "1 / 0"})))
    assert [message["content"] for message in step.messages] == ["2", "error: division by zero"]
    assert (step.done, step.info["num_calls"], step.info["num_errors"]) == (False, 2, 1)
    step = env.step("That is all.\n<answer/>\n")
    assert (step.done, step.messages, step.info["stop"]) == (True, [], "answer")
    trajectory = env.trajectory
    assert [turn.thought for turn in trajectory.turns] == ["I add.", "That is all."]
    assert [call.error for call in trajectory.calls] == [False, True]
    assert trajectory.events == trajectory.calls[:1]
    (told,) = summary_messages(trajectory)
    assert QUERY.query in told["content"]
    assert '1. calculate({"expression":"1 + 1"})\n   result: 2\n2. calculate' in told["content"]
    assert "I add." not in told["content"]
    with pytest.raises(ValueError, match="the episode is over"):
        env.step("<answer/>")
    with pytest.raises(ValueError, match="none began"):
        LocalTools().step("")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "neither a call nor <answer/>"),
        ("I am done.", "neither a call nor <answer/>"),
        ("<answer/> It is 3.", "text after <answer/>"),
        ("<answer/><answer/>", "text after <answer/>"),
        (calls(ADD) + "<answer/>", "calls beside <answer/>"),
        ("<answer/>" + calls(ADD), "calls beside <answer/>"),
        (calls(("calculator", {})), "unknown tool 'calculator'"),
        (calls(("calculate", {})), "needs the argument 'expression'"),
        (calls(ADD, ("calculate", {"expression": 3})), "must be of type string"),
        (calls(ADD) + "<tool_call>{", "without </tool_call>"),
        (calls(("calculate", {"expression": DEEP})), "must be of type string"),
    ],
)  # fmt: skip
def test_ill_formed_turns_end_the_episode(text, fault):
    env = LocalTools()
    env.reset(QUERY)
    step = env.step(text)
    assert (step.done, step.info["stop"]) == (True, "bad_format")
    assert fault in step.info["fault"]
    assert env.trajectory.calls == []


def test_what_is_well_formed():
    env = LocalTools()
    for text in ("<answer/>", "Done. <answer/>", "<think>Call <tool_call> or write <answer/> now?</think>\n<answer/>"):
        env.reset(QUERY)
        assert env.step(text).info["stop"] == "answer"
    env.reset(QUERY)
    note = ("write_note", {"key": "x", "value": "<answer/>"})
    assert not env.step(calls(note)).done


def test_limits():
    env = LocalTools(max_turns=2, max_calls=2)
    env.reset(QUERY)
    step = env.step(calls(ADD, ADD, ADD))
    assert [call.error for call in env.trajectory.calls] == [False, False, True]
    assert step.messages[2]["content"] == "error: a turn may make 2 calls"
    step = env.step(calls(ADD))
    assert (step.done, step.info["stop"], step.messages[0]["content"]) == (True, "max_turns", "2")
    env.reset(QUERY)
    assert env.cut().info["stop"] == env.trajectory.stop == "max_tokens"
    few = LocalTools(["find_route", "calculate"])
    assert len(few.reset(3)[1]) == 2
    assert {call.name for turn in few.trajectory.task.plan for call in turn} <= {"find_route", "calculate"}


def test_settings_that_are_refused():
    for settings, message in (
        ({"tools": ["serch"]}, "did you mean 'search'"),
        ({"max_turns": 0}, "max_turns is too small"),
        ({"style": "hermez"}, "did you mean 'hermes'"),
    ):
        with pytest.raises(ValueError, match=message):
            LocalTools(**settings)
    with pytest.raises(ValueError, match="did you mean 'test'"):
        generate_tasks("tset")
    with pytest.raises(ValueError, match="there is no dev task for the tools search"):
        generate_task("dev", 0, tools=["search"])


def test_both_styles_play_the_same():
    task = generate_task("test", 3)
    for style in STYLES:
        env = LocalTools(style=style)
        env.reset(task)
        for turn in task.plan:
            assert not env.step(format_tool_calls(turn, style)).done
        env.step("<answer/>")
        assert completeness(task.requirement, env.trajectory.events) == 1.0
