"""Figures of comparisons: they are written, and say what they were given."""

import numpy as np
import pytest

from jaxrl.results.figures import draw_bars, draw_heat_map, draw_scatter, draw_shares
from jaxrl.results.stats import Interval


def text_of(path):
    """All text of an SVG whose text was kept as text."""
    return path.read_text()


@pytest.fixture(autouse=True)
def _text_stays_text(monkeypatch):
    import matplotlib

    monkeypatch.setitem(matplotlib.rcParams, "svg.fonttype", "none")


def test_heat_map_writes_every_number(tmp_path):
    path = draw_heat_map([[0.25, -1.0], [0.0, 2.0]], ["a", "b"], ["c", "d"], tmp_path / "map.svg", xlabel="red")
    text = text_of(path)
    for word in ("0.25", "-1.00", "2.00", "a", "d", "red"):
        assert f">{word}<" in text.replace("\N{MINUS SIGN}", "-"), word


def test_heat_map_of_the_wrong_shape_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        draw_heat_map(np.zeros((2, 1)), ["a"], ["b", "c"], tmp_path / "map.svg")
    assert not list(tmp_path.iterdir())


def test_bars_with_and_without_intervals(tmp_path):
    groups = {
        "first": {"ours": Interval(1.0, 0.5, 1.5), "theirs": Interval(0.5, np.nan, np.nan)},
        "second": {"ours": Interval(2.0, 1.5, 2.5), "theirs": Interval(-1.0, -1.5, -0.5)},
    }
    text = text_of(draw_bars(groups, tmp_path / "bars.svg", ylabel="score", line=0.9))
    for word in ("first", "second", "ours", "theirs", "score"):
        assert f">{word}<" in text


def test_scatter_and_shares(tmp_path):
    text = text_of(
        draw_scatter({"a": ([1, 2], [3, 4]), "b": (1.0, 2.0)}, tmp_path / "scatter.svg", xlabel="x", ylabel="y")
    )
    assert ">a<" in text
    assert ">b<" in text
    shares = {"often": [0.75, 1.0], "seldom": [0.25, 0.0], "never": [0.0, 0.0]}
    text = text_of(draw_shares(shares, tmp_path / "shares.svg", xlabel="iteration"))
    assert ">seldom<" in text
    assert ">never<" not in text
