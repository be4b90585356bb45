"""What every verb of the command line needs: errors in one line, tables, the compilation cache."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer


def cache_folder() -> Path:
    """Where compiled programs are kept between processes; JAX_COMPILATION_CACHE_DIR decides where it is set."""
    given = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(given) if given else Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "jaxrl" / "xla"


@contextlib.contextmanager
def compilation_cache() -> Iterator[None]:
    import jax

    jax.config.update("jax_compilation_cache_dir", str(cache_folder()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    yield


@contextlib.contextmanager
def errors(debug: bool = False) -> Iterator[None]:
    """Turns what a person can mend into one line and an exit status: 2 bad input, 1 a run that failed, 130 stopped."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        fail("the disk is full. What was saved before is intact: free some space, then use --resume", 1)
    except Exception as error:
        status = getattr(error, "exit_status", None)  # of `jaxrl.run.config.ConfigError` and its like
        if status is None or debug:
            raise
        fail(str(error), status)


def fail(message: str, status: int) -> None:
    print(f"error: {message}", file=sys.stderr)
    raise typer.Exit(status)


def split(arguments: list[str] | None) -> tuple[str | None, list[str]]:
    """A configuration, if the first argument is not an override, and the overrides."""
    first, rest = (arguments or [])[:1], (arguments or [])[1:]
    return (first[0], rest) if first and "=" not in first[0] else (None, first + rest)


def print_table(rows: list[dict[str, Any]]) -> None:
    if not rows:
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in rows[0]:
        table.add_column(name)
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in row.values()))
    # A file has no width to fit into.
    Console(soft_wrap=True, width=None if sys.stdout.isatty() else 200).print(table)
