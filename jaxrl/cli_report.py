"""`jaxrl report` and `jaxrl watch`: runs in a browser, and in the terminal while they train."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from jaxrl.terminal import compilation_cache, errors, fail


def report(
    run_dirs: Annotated[list[Path], typer.Argument(metavar="DIR...", help="Run folders, sweeps or folders of them.")],
    out: Annotated[Path, typer.Option(help="An .html file.")] = Path("report.html"),
    metric: Annotated[
        str | None, typer.Option(help="A column of metrics.jsonl, of final scores; evaluation/return by default.")
    ] = None,
    episodes: Annotated[int, typer.Option(min=0, help="Episodes to play again per group (compiles: slow).")] = 0,
    title: Annotated[str, typer.Option(help="Of the page; the folders by default.")] = "",
) -> None:
    """Write one page that compares runs: curves, scores, settings, speed. It opens without a network."""
    with errors(), compilation_cache() if episodes else contextlib.nullcontext():
        from jaxrl.results.page import write_report

        if out.suffix != ".html":
            fail(f"--out must end in .html, got {str(out)!r}", 2)
        try:
            write_report(run_dirs, out, metric=metric, num_episodes=episodes, title=title)
        except ValueError as error:
            fail(str(error), getattr(error, "exit_status", 2))
        print(f"{out}: {out.stat().st_size / 2**20:.2f} MiB")


def watch(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A run folder or a sweep's.")],
    metric: Annotated[str | None, typer.Option(help="A column of metrics.jsonl; evaluation/return by default.")] = None,
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Print what there is and end.")] = False,
) -> None:
    """Show curves and speed of a run or sweep while it trains; ends with the training or at Ctrl-C."""
    with errors():
        from jaxrl.results.watch import watch as look

        try:
            look(folder, metric=metric, every=every, once=once)
        except ValueError as error:
            fail(str(error), 2)
        except KeyboardInterrupt:
            print()
