"""One episode of PoolFlip as a timeline and as a table, and what all timelines share."""

import csv
import json
import re
import xml.etree.ElementTree as ElementTree

import jax
import numpy as np
import pytest
from PIL import Image

import envs_jax
from envs_jax import timeline
from envs_jax.timeline import Curve, Kind, Timeline, Track
from jaxrl.rollout import episodes
from jaxrl.run.config import ConfigError
from jaxrl.run.replay import play, render_episode

TICKS = 40
OPPONENTS = ["guard(2)"]


def game():
    """What `play` and `episodes` take: blue, whose flips often fail, against a red that checks and flips."""
    options = {"role": "blue", "opponents": OPPONENTS, "horizon": TICKS, "flip_success": [0.6, 1.0]}
    env, params = envs_jax.make("poolflip-r3", **options)
    start, act, policies = env.env.heuristics(["exponential(0.4)"])
    policy_params = jax.tree.map(lambda leaf: leaf[0], policies)
    keys = jax.random.split(jax.random.key(3), 2)
    return env, (start, act), policy_params, params, keys, jax.random.key(4), TICKS


@pytest.fixture(scope="module")
def episode():
    """The environment and the second of two episodes."""
    env, *arguments = game()
    return env, play(env, *arguments)


@pytest.fixture(scope="module")
def shown(episode):
    env, played = episode
    return env.timeline(played)


def test_the_whole_episode_is_recorded(episode):
    _, played = episode
    assert played.length == TICKS
    assert played.actions.shape == played.time_steps.reward.shape == (TICKS,)
    np.testing.assert_array_equal(played.states.game.time, np.arange(TICKS + 1))
    assert played.time_steps.truncated[-1]
    assert played.episode_return == pytest.approx(played.time_steps.reward.sum(), rel=1e-5)


def test_it_is_the_episode_of_the_evaluation(episode):
    result = episodes(*game())
    assert episode[1].episode_return == pytest.approx(float(result.episode_return[1]), rel=1e-5)
    assert float(result.episode_return[0]) != float(result.episode_return[1])


def test_an_episode_may_be_cut():
    env, *arguments, _ = game()
    short = play(env, *arguments, TICKS // 2)
    assert short.length == len(short.time_steps.reward) == TICKS // 2
    assert short.states.game.time[-1] == TICKS // 2
    assert env.timeline(short).length == TICKS // 2


def test_bars_show_owners_and_beliefs(episode, shown):
    game = episode[1].states.game
    assert [track.label for track in shown.tracks] == [
        label for r in range(3) for label in (f"resource {r}", "blue believes", "red believes")
    ]
    for resource in range(3):
        true, *sides = shown.tracks[3 * resource : 3 * resource + 3]
        assert [cell == "red" for cell in true.cells] == game.owner[1:, resource].astype(bool).tolist()
        for agent, side in enumerate(sides):
            believed = game.believed_owner[1:, agent, resource]
            rightly = believed == game.owner[1:, resource]
            names = [f"{('blue', 'red')[b]}, {'rightly' if r else 'wrongly'}" for b, r in zip(believed, rightly)]
            assert list(side.cells) == names


def test_marks_are_the_moves(episode, shown):
    played = episode[1]
    blue = [sorted(track.marks) for track in shown.tracks[1::3]]
    for tick, action in enumerate(played.actions):
        marks = [(resource, name) for resource in range(3) for step, name in blue[resource] if step == tick]
        if action == 0:
            assert marks == []
        else:
            ((resource, name),) = marks
            assert resource == (action - 1) // 2
            assert (name == "check") == (action % 2 == 0)
    names = [name for track in blue for _, name in track]
    assert {"flip", "failed flip"} <= set(names)
    red = [name for track in shown.tracks[2::3] for _, name in track.marks]
    assert {"flip", "check"} == set(red)  # known from the states alone


def test_the_table_agrees_with_the_environment(episode, shown):
    columns, info = shown.columns, episode[1].time_steps.info
    np.testing.assert_allclose(columns["blue_own"], info["own"], atol=1e-6)
    np.testing.assert_allclose(columns["blue_cost"], info["cost"], atol=1e-6)
    np.testing.assert_allclose(np.add(columns["blue_own"], columns["red_own"]), 1.0, atol=1e-6)
    flips = [name.startswith(("flip", "failed flip")) for name in columns["blue_action"]]
    assert flips == (info["num_flips"] > 0).tolist()


def test_two_learners_show_the_same(episode, shown):
    """Without `Versus` both sides' actions are known; a red that never fails leaves nothing else to show."""
    env, played = episode
    game = played.states.game
    actions = np.stack([played.actions, np.full(TICKS, -1)], axis=1)
    plain = timeline.Played(played.params.game, game, actions, played.time_steps)
    assert env.env.timeline(plain).tracks == shown.tracks


def test_every_format(shown, tmp_path):
    paths = {suffix: timeline.save(shown, tmp_path / f"episode{suffix}") for suffix in timeline.FORMATS}
    root = ElementTree.parse(paths[".svg"]).getroot()
    width, height = (float(root.get(name)) for name in ("width", "height"))
    assert float(root.get("data-left")) + TICKS * float(root.get("data-cell")) <= width
    titles = [title.text for title in root.iter("{http://www.w3.org/2000/svg}title")]
    marks = sum(len(track.marks) for track in shown.tracks)
    assert sum(title.startswith("step ") for title in titles) == marks
    with Image.open(paths[".png"]) as picture:
        assert picture.size == (2 * width, 2 * height)
        pixels = np.asarray(picture).reshape(-1, 3)
    for name in ("blue", "red", "blue, wrongly"):
        color = shown.kinds[name].color
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (pixels == rgb).all(axis=1).sum() > 500, name
    page = paths[".html"].read_text()
    assert "<svg" in page
    assert not re.search(r"@[A-Z]+@|(src|href)=", page)
    table = json.loads(paths[".json"].read_text())
    assert table["length"] == TICKS
    assert table["columns"]["owner"] == np.asarray(shown.columns["owner"]).tolist()
    rows = list(csv.DictReader(paths[".csv"].read_text().splitlines()))
    assert [int(row["owner_2"]) for row in rows] == [row[2] for row in table["columns"]["owner"]]
    assert [row["red_action"] for row in rows] == table["columns"]["red_action"]
    assert "\x1b[" in paths[".txt"].read_text()


def test_text_for_a_terminal():
    kinds = {"up": Kind("up", "#00ff00", "u"), "down": Kind("down", "#ff0000", "d"), "hit": Kind("hit", "#000000", "x",
             mark=True)}  # fmt: skip
    tracks = [Track("host", ["up"] * 3 + ["down"] * 3, [(4, "hit")]), Curve("sum", [0, 1, 2, 3, 4, 7], "#000000")]
    small = Timeline("a title", kinds, tracks, {})
    lines = timeline.to_text(small, width=4, colors=False).splitlines()
    assert lines[0] == "a title"
    assert [line for line in lines if line.startswith("host")] == ["host  uuud", "host  xd"]
    assert [line for line in lines if line.startswith("sum")] == ["sum   ▁▂▃▄", "sum   ▅█"]
    assert lines[-1] == "u up   d down   x hit"
    colored = timeline.to_text(small)
    assert colored.count("48;2;255;0;0") == 4  # three cells and the legend
    assert re.sub(r"\x1b\[[0-9;]*m", "", colored).count("x") == 2


def test_refusals(shown, tmp_path):
    with pytest.raises(ValueError, match=r"one of \.svg, .*, got"):
        timeline.save(shown, tmp_path / "episode.pdf")
    assert list(tmp_path.iterdir()) == []
    env, _ = envs_jax.make("cartpole")
    assert not env.has_timeline
    with pytest.raises(NotImplementedError, match="CartPole has no timeline"):
        env.timeline(None)
    with pytest.raises(ConfigError, match=r"--out must end in \.gif, .*\.csv"):
        render_episode(tmp_path, tmp_path / "episode.pdf")
