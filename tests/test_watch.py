"""The terminal view of runs that train."""

from __future__ import annotations

import io
import json
import threading

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

from jaxrl.cli import app
from jaxrl.results.watch import BLOCKS, Tail, Watcher, curve_text, watch

TIME = {
    "chunk_seconds": 20.0,
    "env_steps_per_second": 54_321.0,
    "updates_per_second": 9.0,
    "compile_seconds": {"a": 7.2},
}


def begin(folder, seed=0, rate=1e-3, num_updates=100):
    folder.mkdir(parents=True)
    resolved = {"name": "ppo", "seed": seed, "num_updates": num_updates, "hparams": {"learning_rate": rate}}
    (folder / "config.json").write_text(json.dumps({"resolved": resolved}))
    return folder


def train(folder, updates, timing=None, slope=1.0):
    """Appends rows as a training does."""
    with (folder / "metrics.jsonl").open("a") as file:
        for update in updates:
            file.write(json.dumps({"update": update, "episode/return": slope * update}) + "\n")
    with (timing or folder / "timing.jsonl").open("a") as file:
        file.write(json.dumps(TIME | {"update": updates[-1]}) + "\n")


def shown(watcher, **size):
    console = Console(width=160, file=io.StringIO())
    with console.capture() as capture:
        console.print(watcher.look(**size))
    return capture.get()


def test_one_run_from_begin_to_end(tmp_path):
    run = begin(tmp_path / "run")
    watcher = Watcher(run)
    assert "no rows yet" in shown(watcher)
    train(run, range(1, 51))
    text = shown(watcher)
    assert "episode/return" in text
    assert "50/100" in text
    assert "54.3k steps/s" in text
    assert "7 s" in text
    assert "0:20" in text  # 50 updates took 20 s
    assert "█" in text
    assert "last row" in text
    assert not watcher.finished
    train(run, range(51, 101))
    assert "finished" in shown(watcher)
    assert watcher.finished


def test_a_sweep(tmp_path):
    root = tmp_path / "sweep"
    members = []
    for i in range(4):
        begin(root / f"00{i}", seed=i % 2, rate=(1e-3, 1e-4)[i // 2])
        members.append({"name": f"00{i}", "group": i // 2, "settings": {}})
    (root / "sweep.json").write_text(json.dumps(members))
    (root / "group-0").mkdir()
    for i in range(2):
        train(root / f"00{i}", range(1, 21), root / "group-0" / "timing.jsonl", slope=i + 1.0)
    first, second = [line for line in shown(Watcher(root)).splitlines() if "learning_rate=" in line]
    assert "learning_rate=0.001 (2 seeds)" in first
    assert "20/100" in first
    assert " 30 " in first  # the mean of 20 and 40
    assert "waiting" in second
    assert "0/100" in second
    assert "and 1 more groups" in shown(Watcher(root), height=7)


def test_a_file_that_grows_and_is_cut(tmp_path):
    path = tmp_path / "rows.jsonl"
    tail = Tail(path)
    assert tail.read() == []
    path.write_text('{"a": 1}\n{"a": 2}\n{"a"')
    assert [row["a"] for row in tail.read()] == [1, 2]
    with path.open("a") as file:
        file.write(": 3}\n")
    assert [row["a"] for row in tail.read()] == [1, 2, 3]
    path.write_text('{"a": 1}\n')
    assert [row["a"] for row in tail.read()] == [1]


def test_curves_in_blocks():
    values = np.array([np.nan, 0.0, 0.5, 1.0])
    assert curve_text(values, 0.0, 1.0) == [f" {BLOCKS[1]}{BLOCKS[5]}{BLOCKS[8]}"]
    assert curve_text(values, 0.0, 1.0, lines=2) == [f"  {BLOCKS[1]}█", f" {BLOCKS[1]}██"]
    assert curve_text(np.array([3.0, 3.0]), 3.0, 3.0, "012345678") == ["55"]


def test_watching_ends_with_the_training(tmp_path, capsys):
    run = begin(tmp_path / "run")
    train(run, range(1, 51))
    writer = threading.Timer(0.3, train, (run, range(51, 101)))
    writer.start()
    watch(run, every=0.1)
    writer.join()
    assert "finished" in capsys.readouterr().out


def test_command(tmp_path, monkeypatch):
    run = begin(tmp_path / "run")
    train(run, range(1, 11))

    def invoke(*arguments):
        return CliRunner().invoke(app, ["watch", *map(str, arguments)])

    result = invoke(run, "--once")
    assert result.exit_code == 0
    assert "10/100" in result.output
    result = invoke(run, "--once", "--metric", "episode/retrun")
    assert result.exit_code == 2
    assert "did you mean 'episode/return'?" in result.output
    result = invoke(tmp_path / "rum", "--once")
    assert result.exit_code == 2
    assert "did you mean 'run'?" in result.output

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr("jaxrl.results.watch.time.sleep", interrupted)
    assert invoke(run).exit_code == 0


@pytest.mark.parametrize("value", ["nan", None])
def test_values_that_are_none(tmp_path, value):
    run = begin(tmp_path / "run")
    (run / "metrics.jsonl").write_text(json.dumps({"update": 1, "episode/return": value}) + "\n")
    assert "1/100" in shown(Watcher(run))
