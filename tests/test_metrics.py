"""Metrics on disk: what is written comes back, a resume cuts at the checkpoint, nothing bad is hidden."""

import json
import sys
from contextlib import closing

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.results.metrics import MetricsWriter, TensorBoardWriter, read_metrics, truncate


@pytest.fixture
def path(tmp_path):
    return tmp_path / "metrics.jsonl"


def write(path, *rows, offset=None):
    with closing(MetricsWriter(path, offset)) as writer:
        for row in rows:
            writer.write(row)
        writer.flush()
        return writer.offset


def test_floats_are_the_shortest_f32(path):
    write(path, {"update": 1, "a": jnp.float32(0.1), "b": 1 / 3, "c": np.float32(1e-10), "d": jnp.int32(7), "e": 2.0})
    assert path.read_text() == '{"update": 1, "a": 0.1, "b": 0.33333334, "c": 1e-10, "d": 7, "e": 2.0}\n'
    values = np.float32(np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-20, 20, 0.2))
    write(path, *({"x": value} for value in values), offset=0)
    assert np.array_equal(np.float32(read_metrics(path)["x"]), values)


def test_large_step_counts_stay_whole(path):
    write(path, {"env_steps": 2**40 + 1})
    assert read_metrics(path)["env_steps"].tolist() == [2**40 + 1]


def test_columns(path):
    write(
        path,
        {"update": 1, "loss/policy": 0.5, "episode/count": 0, "episode/return": 0.0, "episode/return/1": 0.0},
        {"update": 2, "loss/policy": 0.25, "episode/count": 2, "episode/return": 3.0, "episode/return/1": 4.0},
        {"update": 3, "loss/policy": 0.0, "episode/count": 1, "episode/return": 0.0, "evaluation/return": 9.0},
    )
    first = json.loads(path.read_text().splitlines()[0])
    assert first["episode/return"] is None
    assert first["episode/return/1"] is None
    assert first["episode/count"] == 0
    table = read_metrics(path)
    assert table["update"].dtype == np.int64
    np.testing.assert_array_equal(table["loss/policy"], [0.5, 0.25, 0.0])
    np.testing.assert_array_equal(table["episode/return"], [np.nan, 3.0, 0.0])
    np.testing.assert_array_equal(table["episode/return/1"], [np.nan, 4.0, np.nan])
    np.testing.assert_array_equal(table["evaluation/return"], [np.nan, np.nan, 9.0])


def test_what_is_not_finite_is_told_apart_from_nothing(path):
    write(path, {"update": 1, "approx_kl": np.inf}, {"update": 2, "approx_kl": jnp.nan}, {"update": 3})
    assert path.read_text().splitlines()[0] == '{"update": 1, "approx_kl": "inf"}'
    np.testing.assert_array_equal(read_metrics(path)["approx_kl"], [np.inf, np.nan, np.nan])


def test_what_is_no_number_is_refused(path):
    for value in ("ppo", np.zeros(2), [1.0]):
        with pytest.raises(ValueError, match="metric name must be a number"):
            write(path, {"name": value})


def test_resume_cuts_at_the_checkpoint(path):
    rows = [{"update": i, "loss/policy": i / 7} for i in range(6)]
    write(path, *rows)
    uninterrupted = path.read_bytes()
    path.unlink()
    offset = write(path, *rows[:3])
    write(path, *rows[3:5])
    with path.open("ab") as file:
        file.write(b'{"update": 5, "lo')  # killed here
    assert len(read_metrics(path)["update"]) == 5
    assert write(path, *rows[3:], offset=offset) == len(uninterrupted)
    assert path.read_bytes() == uninterrupted


def test_a_changed_file_is_refused(path):
    offset = write(path, {"update": 1})
    with pytest.raises(ValueError, match=r"has 14 bytes, the checkpoint was written after 15"):
        truncate(path, offset + 1)
    with pytest.raises(ValueError, match="ends no line"):
        truncate(path, offset - 1)
    truncate(path, 0)
    assert read_metrics(path) == {}
    with pytest.raises(ValueError, match="has 0 bytes"):
        MetricsWriter(path.with_name("absent.jsonl"), 5)


def test_a_damaged_line_is_named(path):
    write(path, {"update": 1})
    for line in (b"[1, 2]\n", b"{\n", b"3\n", b'{"x": "ppo"}\n'):
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0] + line)
        with pytest.raises(ValueError, match=r"metrics\.jsonl, line 2: not a JSON object"):
            read_metrics(path)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboardX")
    from tensorboardX.proto import event_pb2

    writer = TensorBoardWriter(tmp_path)
    writer.write({"update": 1, "env_steps": 64, "loss/policy": 0.5, "episode/count": 0, "episode/return": 0.0})
    writer.write({"update": 2, "env_steps": 128, "q/mean": -1.5})
    writer.flush()
    writer.close()
    (file,) = tmp_path.iterdir()
    content, scalars = file.read_bytes(), []
    while content:  # length u64, its checksum u32, the event, its checksum u32
        size = int.from_bytes(content[:8], "little")
        event = event_pb2.Event.FromString(content[12 : 12 + size])
        scalars += [(event.step, value.tag, value.simple_value) for value in event.summary.value]
        content = content[16 + size :]
    assert scalars == [
        (64, "loss/policy", 0.5),
        (64, "episode/count", 0.0),
        (128, "q/mean", -1.5),
    ]


def test_tensorboard_is_optional(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match="extra 'log'"):
        TensorBoardWriter(tmp_path)
