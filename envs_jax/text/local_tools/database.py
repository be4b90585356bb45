"""Read-only SQL that ends: on a private copy of the database, with a bound on work, memory, functions and time."""

from __future__ import annotations

import sqlite3
import time
from typing import NamedTuple

MAX_STEPS = 5_000_000  # instructions of SQLite's machine: a tenth of a second, the same number on every computer
MAX_ROWS = 50
_STEPS_PER_CHECK = 100
# Nothing random, nothing that reads the clock or the disk.
_FUNCTIONS = (
    "abs avg coalesce count glob ifnull iif instr length like lower ltrim max min nullif replace round rtrim sign "
    "substr substring sum total trim typeof upper group_concat"
)
_LIMITS = {
    sqlite3.SQLITE_LIMIT_LENGTH: 20_000,  # bytes of a text
    sqlite3.SQLITE_LIMIT_SQL_LENGTH: 2_000,
    sqlite3.SQLITE_LIMIT_COLUMN: 50,
    sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 50,
    sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 10,
    sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH: 50,
    sqlite3.SQLITE_LIMIT_ATTACHED: 0,
}


class Result(NamedTuple):
    columns: list[str]
    rows: list[tuple]
    complete: bool  # False: there were more rows
    tables: frozenset[str]  # that were read


def query_database(database: bytes, query: str, seconds: float) -> Result:
    """The result of one SELECT on a serialised database.

    Raises:
        ValueError: SQLite refuses the query, or it exceeds a bound; the message says why.
    """
    deadline, checks, tables = time.monotonic() + seconds, 0, set[str]()

    def too_long() -> bool:
        nonlocal checks
        checks += 1
        return checks * _STEPS_PER_CHECK > MAX_STEPS or time.monotonic() > deadline

    def authorise(action: int, first: str | None, second: str | None, *where: str | None) -> int:
        if action == sqlite3.SQLITE_READ and first:
            tables.add(first)
        allowed = action in (sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ) or (
            action == sqlite3.SQLITE_FUNCTION and (second or "").lower() in _FUNCTIONS.split()
        )
        return sqlite3.SQLITE_OK if allowed else sqlite3.SQLITE_DENY

    connection = sqlite3.connect(":memory:")
    try:
        connection.deserialize(database)
        connection.execute("PRAGMA temp_store = MEMORY")  # a sort must not spill to the disk
        for limit, value in _LIMITS.items():
            connection.setlimit(limit, value)
        connection.set_authorizer(authorise)
        connection.set_progress_handler(too_long, _STEPS_PER_CHECK)
        cursor = connection.execute(query)
        if cursor.description is None:
            raise ValueError("a query is one SELECT")
        rows = cursor.fetchmany(MAX_ROWS + 1)
        columns = [column[0] for column in cursor.description]
        return Result(columns, rows[:MAX_ROWS], len(rows) <= MAX_ROWS, frozenset(tables))
    except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
        message = "the query takes too long" if str(error) == "interrupted" else str(error)
        raise ValueError(message) from error
    finally:
        connection.close()
