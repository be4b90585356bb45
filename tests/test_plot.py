"""Learning curves: the numbers drawn, and a picture that is whole or absent."""

import json
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
from PIL import Image

from jaxrl.results.metrics import MetricsWriter
from jaxrl.results.plot import common_grid, curve, plot_runs


def make_run(folder, seed=0, evaluations=True, steps=100):
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    writer = MetricsWriter(folder / "metrics.jsonl")
    for update in range(20):
        value = update + generator.normal()
        row = {"update": update, "env_steps": steps * update, "episode/count": 0 if update < 2 else 3}
        row["episode/return"] = value
        if evaluations and update % 5 == 4:
            row["evaluation/return"] = value + 10
        writer.write(row)
    writer.close()
    return folder


@pytest.fixture
def drawn(monkeypatch):
    """The groups of curves that were drawn, by label."""
    from jaxrl.results import plot

    seen = {}
    draw = plot.draw_curves

    def spy(groups, path, **labels):
        seen.update(groups, labels=labels)
        return draw(groups, path, **labels)

    monkeypatch.setattr(plot, "draw_curves", spy)
    return seen


def test_one_run(tmp_path, drawn):
    run = make_run(tmp_path / "run")
    path = plot_runs([run], tmp_path / "figures" / "curve.png", title="PPO")
    assert drawn["labels"] == {"xlabel": "environment steps", "ylabel": "evaluation return", "title": "PPO"}
    ((x, y),) = drawn["run"]
    assert x.tolist() == [400, 900, 1400, 1900]
    assert y[-1] > 25
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert picture.shape[:2] == (600, 960)
    assert np.any(np.all(np.abs(picture.astype(int) - (0x00, 0x79, 0x8C)) < 12, axis=-1))  # the line
    assert [file.name for file in path.parent.iterdir()] == ["curve.png"]


def test_falls_back_to_the_return_of_training(tmp_path, drawn):
    runs = [make_run(tmp_path / "a"), make_run(tmp_path / "b", evaluations=False)]
    plot_runs(runs, tmp_path / "curve.svg", x="update")
    assert drawn["labels"]["ylabel"] == "episode return"
    assert drawn["labels"]["xlabel"] == "updates"
    assert [len(drawn[label][0][0]) for label in "ab"] == [18, 18]  # updates without a finished episode are left out
    assert "<svg" in (tmp_path / "curve.svg").read_text()
    (tmp_path / "model").mkdir()
    with closing(MetricsWriter(tmp_path / "model" / "metrics.jsonl")) as writer:
        writer.write({"env_steps": 0, "loss/reward": 1.0})
    plot_runs([tmp_path / "model"], tmp_path / "loss.png")
    assert drawn["labels"]["ylabel"] == "loss reward"


def test_seeds(tmp_path, drawn):
    """Sub-folders and folders under one label are seeds of one curve, a sweep gives one per point of its grid."""
    folders = [make_run(tmp_path / "group" / f"seed_{i}", seed=i) for i in range(3)]
    path = tmp_path / "curve.png"
    plot_runs([folders[0], tmp_path / "group"], path)
    assert (len(drawn["seed_0"]), len(drawn["group"])) == (1, 3)
    plot_runs({"labelled": folders}, path, "episode/return")
    assert len(drawn["labelled"]) == 3
    settings = [{"hparams.learning_rate": rate} for rate in (0.1, 0.1, 0.2)]
    described = [{"name": folder.name, "settings": point} for folder, point in zip(folders, settings)]
    (tmp_path / "group" / "sweep.json").write_text(json.dumps(described))
    drawn.clear()
    plot_runs([tmp_path / "group"], path)
    assert {label: len(lines) for label, lines in drawn.items() if label != "labels"} == {
        "group learning_rate=0.1": 2,
        "group learning_rate=0.2": 1,
    }


def test_common_grid():
    first = np.array([0.0, 2.0, 4.0]), np.array([0.0, 2.0, 4.0])
    second = np.array([1.0, 3.0]), np.array([10.0, 30.0])
    grid, values = common_grid([first, second])
    assert grid.tolist() == [1, 2, 3]
    assert values.tolist() == [[1, 2, 3], [10, 20, 30]]
    with pytest.raises(ValueError, match="no part of the horizontal axis in common"):
        common_grid([first, (np.array([9.0]), np.array([1.0]))])


def test_equal_names_get_whole_paths(tmp_path, drawn):
    runs = [make_run(tmp_path / name / "run") for name in "ab"]
    plot_runs(runs, tmp_path / "curve.png")
    assert set(drawn) == {"labels", *map(str, runs)}


def test_refused(tmp_path):
    run = make_run(tmp_path / "run", evaluations=False)
    path = tmp_path / "curve.png"
    with pytest.raises(ValueError, match=r"has no 'episode/retrun'; did you mean 'episode/return'\?"):
        plot_runs([run], path, "episode/retrun")
    with pytest.raises(ValueError, match="is no run folder"):
        plot_runs([tmp_path / "absent"], path)
    with pytest.raises(ValueError, match="at least one run folder"):
        plot_runs([], path)
    with pytest.raises(ValueError, match=r"Format 'xyz' is not supported"):
        plot_runs([run], tmp_path / "curve.xyz")
    table = {"x": np.arange(2), "y": np.array([np.nan, np.nan])}
    with pytest.raises(ValueError, match="has no value of 'y' yet"):
        curve(run, table, "y", "x")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


def test_leaves_matplotlib_and_jax_alone(tmp_path):
    """Importing costs neither; drawing touches no global state of pyplot."""
    run = make_run(tmp_path / "run")
    program = (
        "import sys; from jaxrl.results import metrics, plot, stats\n"
        "assert not {'jax', 'matplotlib'} & set(sys.modules)\n"
        f"plot.plot_runs([{str(run)!r}], {str(tmp_path / 'curve.png')!r})\n"
        "assert not {'jax', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
