"""The report: what its page holds, and what a real browser does with it."""

from __future__ import annotations

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import chromium
from jaxrl.cli import app
from jaxrl.results.page import MAX_BUCKETS, thin, write_report
from jaxrl.results.page_scores import compare, final_score
from jaxrl.results.runs import Timing, group_runs, read_run, run_folders
from jaxrl.results.stats import interquartile_mean, mean_interval


def make_run(folder, seed=0, rate=1e-3, rows=50, names=("loss/policy",), level=0.0, env="cartpole", timing=True):
    """A run folder as a training writes it."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    resolved = {
        "name": "ppo",
        "seed": seed,
        "num_updates": rows,
        "env": {"name": env},
        "hparams": {"learning_rate": rate},
    }
    config = {"resolved": resolved, "versions": {"jax": "0.10.2"}, "device": {"kind": "cpu"}}
    (folder / "config.json").write_text(json.dumps(config))
    noise = generator.normal(size=(rows, 1 + len(names)))
    with (folder / "metrics.jsonl").open("w") as file:
        for i in range(rows):
            row = {"update": i + 1, "env_steps": 100 * (i + 1), "episode/return": level + 10 * i / rows + noise[i, 0]}
            row |= dict(zip(names, noise[i, 1:]))
            if i % 10 == 9:
                row["evaluation/return"] = row["episode/return"] + 1
            file.write(json.dumps(row) + "\n")
    if timing:
        (folder / "timing.jsonl").write_text("".join(json.dumps(time_row(u)) + "\n" for u in (rows // 2, rows)))
    return folder


def time_row(update, elapsed=None, compile_seconds=4.0):
    return {
        "update": update, "chunk_seconds": 5.0, "env_steps_per_second": 2000.0, "updates_per_second": 20.0,
        "elapsed_seconds": compile_seconds + update / 10 if elapsed is None else elapsed,
        "peak_memory_bytes": 2**30, "compile_seconds": {"init": 1.0, "update": compile_seconds - 1.0},
    }  # fmt: skip


def page_data(path):
    return json.loads(re.search(r'id="data">(.*?)</script>', path.read_text(), re.S)[1])


def decoded(text):
    return np.frombuffer(base64.b64decode(text), "<f4")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two learning rates and three seeds, the second rate better by 5."""
    root = tmp_path_factory.mktemp("runs") / "ppo-sweep"
    members = []
    for number in range(6):
        rate, seed = (1e-4, 1e-3)[number // 3], number % 3
        make_run(root / f"{number:03d}", seed, rate, level=5.0 * (number // 3), timing=False)
        members.append({"name": f"{number:03d}", "group": 0, "seed": seed, "settings": {"hparams.learning_rate": rate}})
    (root / "group-0").mkdir()
    (root / "group-0" / "timing.jsonl").write_text(json.dumps(time_row(50)) + "\n")
    (root / "sweep.json").write_text(json.dumps(members))
    return root


@pytest.fixture(scope="module")
def page(sweep, tmp_path_factory):
    return write_report([sweep], tmp_path_factory.mktemp("page") / "report.html")


def test_groups_are_runs_that_differ_only_in_the_seed(page, sweep):
    data = page_data(page)
    assert [group["label"] for group in data["groups"]] == ["learning_rate=0.0001", "learning_rate=0.001"]
    assert [group["runs"] for group in data["groups"]] == [[0, 1, 2], [3, 4, 5]]
    assert data["metric"] == "evaluation/return"
    assert data["metrics"] == ["episode/return", "evaluation/return", "loss/policy"]
    assert list(data["axes"]) == ["env_steps", "update", "seconds"]
    # The same folders, named one by one and twice.
    again = write_report([sweep, *sorted(sweep.glob("0*"))], page.with_name("again.html"), title="<i> & </script>")
    assert len(page_data(again)["runs"]) == 6
    assert "<h1>&lt;i&gt; &amp; &lt;/script&gt;</h1>" in again.read_text()


def test_curves_are_the_metrics(page, sweep):
    run = read_run(sweep / "004")
    stored = page_data(page)["runs"][4]
    assert stored["seed"] == 1
    np.testing.assert_array_equal(
        decoded(stored["curves"]["episode/return"]["mean"]), run.table["episode/return"].astype(np.float32)
    )
    assert decoded(stored["curves"]["evaluation/return"]["rows"]).tolist() == [9, 19, 29, 39, 49]
    assert stored["axes"]["env_steps"] == [[0, 49], [100, 5000]]
    rows, seconds = stored["axes"]["seconds"]
    assert (rows[-1], seconds[-1]) == (49, 9.0)


def test_thinning_keeps_extremes():
    values = np.random.default_rng(0).normal(size=5003)
    values[1234], values[4000] = 99.0, -99.0
    thinned = thin(values, 600)
    assert thinned["mean"].shape == (600,)
    assert (thinned["low"].min(), thinned["high"].max()) == (-99.0, 99.0)
    assert np.all((thinned["low"] <= thinned["mean"]) & (thinned["mean"] <= thinned["high"]))
    buckets = [values[i * 5003 // 600 : (i + 1) * 5003 // 600] for i in range(600)]
    np.testing.assert_allclose(thinned["mean"], [bucket.mean() for bucket in buckets], rtol=1e-5, atol=1e-6)
    assert list(thin(values[:1800], 600)) == ["mean"]


def test_scores_and_comparisons(page, sweep):
    groups = group_runs(read_run(folder) for folder in run_folders(sweep))
    (part,) = compare(groups, "evaluation/return")
    assert [place for place, _ in part.groups] == [1, 0]  # best first
    finals = [read_run(sweep / f"00{i}").table["evaluation/return"][-1] for i in (3, 4, 5)]
    assert part.scores[0].tolist() == finals
    text = page.read_text()
    assert f"<strong>{interquartile_mean(finals):.4g}</strong>" in text
    assert "Probability of improvement" in text
    assert ">1.00<small>1.00 to 1.00</small>" in text
    best, worst = page_data(page)["profiles"][0]["lines"]
    assert best["group"] == 1
    assert (best["estimate"][0], best["estimate"][-1]) == (1.0, 0.0)
    assert all(a >= b for a, b in zip(best["estimate"], worst["estimate"]))
    share = 1 - sum(((s - s.mean()) ** 2).sum() for s in part.scores) / np.var(np.concatenate(part.scores)) / 6
    assert "<th>learning_rate</th><td>" in text
    assert f">{share:.0%}</div></td><td>20%</td>" in text


def test_what_diverged_has_no_score(tmp_path):
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"update": 51, "env_steps": 5100, "episode/return": 3.0, "loss/policy": "nan"}) + "\n")
    assert np.isnan(final_score(read_run(run), "episode/return"))
    assert "diverged or unscored" in write_report([run], tmp_path / "report.html").read_text()


def test_settings_and_speed(page):
    text = page.read_text()
    assert "<th>learning_rate</th></tr>" in text
    assert "Settings that all runs share (3)" in text
    assert "<td>6</td><td>cpu</td><td>2000</td><td>20</td><td>4.0</td><td>init 1.0, update 3.0</td><td>9.0</td>" in text


def test_wall_time_goes_on_after_a_resume(tmp_path):
    # Stopped at 20, resumed from the checkpoint at 10: the lost work counts as time.
    rows = [time_row(10, 6.0), time_row(20, 8.0), time_row(20, 5.0), time_row(30, 7.0)]
    seconds = Timing(tmp_path, rows).seconds_at(np.array([0, 10, 20, 30]))
    assert seconds.tolist() == [4.0, 6.0, 13.0, 15.0]


def test_the_page_needs_no_network(page):
    text = re.sub(r'<script type="application/json".*?</script>', "", page.read_text(), flags=re.S)
    assert "default-src 'none'" in text
    assert not re.search(r"https?:|src=\"(?!data:)|@import|url\(", text)


def test_refused(tmp_path):
    run = make_run(tmp_path / "ppo_cartpole")
    out = tmp_path / "report.html"
    with pytest.raises(ValueError, match=r"there is no folder .*ppo_cartpol; did you mean 'ppo_cartpole'\?"):
        write_report([tmp_path / "ppo_cartpol"], out)
    with pytest.raises(ValueError, match=r"no run has 'evaluation/retrun'; did you mean 'evaluation/return'\?"):
        write_report([run], out, metric="evaluation/retrun")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds no run"):
        write_report([tmp_path / "empty"], out)
    for arguments, words in (([run, "--out", "a.pdf"], "must end in .html"), ([tmp_path / "absent"], "no folder")):
        result = CliRunner().invoke(app, ["report", *map(str, arguments)])
        assert result.exit_code == 2
        assert words in result.output
    assert not out.exists()


def test_episodes(tmp_path):
    """Why there are none stands in the page; films are small and keep their speed."""
    from jaxrl.results.films import MAX_WIDTH, small_gif

    page = write_report([make_run(tmp_path / "run")], tmp_path / "report.html", num_episodes=1).read_text()
    assert "No episode: " in page
    frames = [np.full((300, 600, 3), i % 256, np.uint8) for i in range(240)]
    film = Image.open(io.BytesIO(small_gif(frames, 30.0)))
    assert film.size == (MAX_WIDTH, 180)
    assert film.n_frames == 80
    assert film.info["duration"] == 100  # every third frame, at 30 per second


@pytest.mark.slow
def test_episodes_of_a_trained_run(tmp_path):
    import jaxrl

    overrides = ["num_updates=2", "config.num_envs=4", "config.unroll_length=16", "config.num_minibatches=2"]
    run = jaxrl.load_config("ppo_cartpole", [*overrides, "evaluation.num_episodes=4", "env.max_steps=30"])
    jaxrl.fit(run, tmp_path / "run", progress=False)
    page = write_report([tmp_path / "run"], tmp_path / "report.html", num_episodes=2).read_text()
    films = re.findall(r'src="data:image/gif;base64,([^"]+)"', page)
    assert [base64.b64decode(film)[:3] for film in films] == [b"GIF", b"GIF"]
    assert "episode 1, seed" in page


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """20 runs of 5,000 points and 12 metrics, in groups of five seeds."""
    root = tmp_path_factory.mktemp("large")
    names = [f"loss/{i}" for i in range(11)]
    for i in range(20):
        make_run(root / f"{i:02d}", i % 5, 1e-3 * (1 + i // 5), 5000, names)
    return write_report([root], root / "report.html")


def test_the_page_of_20_runs_stays_small(large):
    assert large.stat().st_size < 5e6
    data = page_data(large)
    assert len(data["groups"]) == 4
    assert len(decoded(data["runs"][0]["curves"]["loss/3"]["high"])) == MAX_BUCKETS


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium.PROGRAM is None:
        pytest.skip(f"no browser is installed: none of {', '.join(chromium.NAMES)}")
    with chromium.chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


def limits(browser):
    return browser.evaluate("['x0', 'x1', 'y0', 'y1'].map(n => Number(document.querySelector('.chart').dataset[n]))")


def test_a_hand_on_the_page(browser, page, sweep, tmp_path):
    """Metric, smoothing, zoom, values under the pointer and hidden groups, by clicks and keys."""
    browser.open(page)
    assert limits(browser)[:2] == [1000, 5000]
    left, top, width, height = browser.box("#curves .chart")
    browser.mouse("mouseMoved", left + width - 15, top + height / 2)
    browser.frame()
    tip = browser.evaluate("document.querySelector('#curves .tip').innerText")
    finals = np.array([read_run(sweep / f"00{i}").table["evaluation/return"][-1] for i in (3, 4, 5)])
    assert "environment steps 5000" in tip
    mean, low, high = map(float, re.search(r"0\.001 \(3 seeds\)\s+(\S+)\s+(\S+) to (\S+)", tip).groups())
    expected = mean_interval(finals)
    assert mean == pytest.approx(expected.estimate, rel=1e-3)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=0.1 * (expected.high - expected.low))

    browser.drag((left + width * 0.4, top + 100), (left + width * 0.6, top + 200))
    zoomed = limits(browser)
    assert 2000 < zoomed[0] < zoomed[1] < 4000
    browser.click(left + width / 2, top + 100, times=2)
    assert limits(browser)[:2] == [1000, 5000]

    browser.evaluate("document.querySelector('#metric').focus()")
    browser.key("ArrowUp")
    assert browser.evaluate("document.querySelector('#metric').value") == "episode/return"
    noisy = limits(browser)
    assert noisy[:2] == [100, 5000]
    left, top, width, height = browser.box("#smoothing")
    browser.click(left + 0.9 * width, top + height / 2)
    assert float(browser.evaluate("document.querySelector('#weight').value")) > 0.8
    smoothed = limits(browser)
    assert smoothed[3] - smoothed[2] < 0.9 * (noisy[3] - noisy[2])

    left, top, width, height = browser.box("#curves .legend button")
    browser.click(left + width / 2, top + height / 2)
    assert browser.evaluate("document.querySelector('#curves .legend button').ariaPressed") == "false"
    assert limits(browser)[2] > smoothed[2]  # the lower of the two curves is hidden

    browser.evaluate("document.querySelector('#axis').focus()")
    browser.key("End")
    assert browser.evaluate("document.querySelector('#axis').value") == "seconds"
    assert limits(browser)[1] == 9.0
    assert browser.evaluate("document.documentElement.scrollWidth") <= 1240  # wide tables scroll by themselves
    for scheme in ("light", "dark"):
        browser.colours(scheme)
        browser.screenshot(tmp_path / f"{scheme}.png")
        assert (tmp_path / f"{scheme}.png").stat().st_size > 20_000
    assert (tmp_path / "light.png").read_bytes() != (tmp_path / "dark.png").read_bytes()


def test_20_runs_of_5000_points_open_within_2_seconds(browser, large):
    """Of processor time, all of the browser's processes together: by the clock, less on a machine that is not busy."""
    used = []
    for _ in range(2):
        before = browser.processor_seconds()
        browser.open(large)
        used.append(browser.processor_seconds() - before)
    assert min(used) < 2.0, used
