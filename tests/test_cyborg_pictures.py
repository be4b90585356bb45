"""CybORG episodes as pictures and timelines."""

import csv
import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from cyborg_play import ENT0, IDLE, IMPACT, OP_HOST0, OP_SERVER, USER3, blue, escalate, hit, move, original, scan
from envs_jax import render, timeline
from envs_jax.security.cyborg import Cyborg, CyborgDuel
from envs_jax.security.cyborg.draw import draw, film, lay_out
from envs_jax.security.cyborg.network import check_network
from envs_jax.security.cyborg.story import moves
from envs_jax.timeline import Played
from jaxrl.run.replay import play

SCRIPT = (
    (IDLE, move("DiscoverRemoteSystems", subnet=0)),
    (blue("DecoySSHD", USER3), scan(USER3)),
    (IDLE, hit(USER3, "HTTPSRFI")),
    (blue("Analyse", USER3), escalate(USER3, pick_removable=1)),
    (blue("Isolate", OP_HOST0), scan(ENT0)),
    (blue("DecoyFemitter", ENT0), hit(ENT0)),
    (blue("Restore", ENT0), escalate(ENT0)),
    (IDLE, IMPACT),
)


@pytest.fixture(scope="module")
def played():
    world = original()
    states, shown = world.play(*SCRIPT)
    stack = lambda *leaves: np.stack(leaves)  # noqa: E731
    states = jax.tree.map(stack, world.env.initial_state(world.params), *states)
    actions = np.array([action for action, _ in SCRIPT])
    return Played(jax.device_get(world.params), states, actions, jax.tree.map(stack, *shown))


def test_moves_have_names(played):
    names = [(ours.name, ours.worked, theirs.name, theirs.worked) for ours, theirs in moves(played)]
    assert names == [
        ("Sleep", False, "DiscoverRemoteSystems User", True),
        ("DecoySSHD User3", True, "DiscoverNetworkServices User3", True),
        ("Sleep", False, "ExploitRemoteService User3", True),
        ("Analyse User3", True, "PrivilegeEscalate User3", True),
        ("Isolate Op_Host0", True, "DiscoverNetworkServices Enterprise0", True),
        ("DecoyFemitter Enterprise0", False, "ExploitRemoteService Enterprise0", True),
        ("Restore Enterprise0", True, "PrivilegeEscalate Enterprise0", False),
        ("Sleep", False, "Impact Op_Server0", False),
    ]


def test_the_timeline_tells_the_episode(played, tmp_path):
    shown = original().env.timeline(played)
    tracks = {track.label: index for index, track in enumerate(shown.tracks) if track.label}
    assert len(tracks) == 2 + 13
    truth, belief = shown.tracks[tracks["User3"] : tracks["User3"] + 2]
    assert truth.cells == ["free"] * 2 + ["user"] + ["privileged"] * 5
    assert truth.marks == [(1, "scan"), (2, "exploit"), (3, "escalate")]
    assert belief.cells == ["clean"] * 2 + ["believed user"] + ["believed privileged"] * 5
    assert belief.marks == [(1, "Decoy"), (3, "Analyse")]
    truth, belief = shown.tracks[tracks["Enterprise0"] : tracks["Enterprise0"] + 2]
    assert truth.cells == ["free"] * 5 + ["user"] + ["free"] * 2
    assert truth.marks == [(4, "scan"), (5, "exploit"), (6, "failed escalate")]
    assert belief.marks == [(5, "failed Decoy"), (6, "Restore")]
    assert shown.tracks[tracks["Op_Host0"]].cells == ["free"] * 4 + ["isolated"] * 4
    assert shown.tracks[tracks["service"]].marks == [(7, "failed impact")]
    np.testing.assert_allclose(shown.columns["reward"], played.time_steps.reward, atol=1e-6)
    assert shown.tracks[0].values[-1] == pytest.approx(played.time_steps.reward.sum(), abs=1e-5)
    for suffix in timeline.FORMATS:
        assert timeline.save(shown, tmp_path / f"episode{suffix}").stat().st_size > 500
    rows = list(csv.DictReader((tmp_path / "episode.csv").read_text().splitlines()))
    assert rows[6]["blue_action"] == "Restore Enterprise0"
    assert [row["access_11"] for row in rows] == list("00122222")
    assert "User3" in (tmp_path / "episode.txt").read_text()


def test_a_film_shows_what_changes(played, tmp_path):
    frames = film(played)
    assert len(frames) == len(SCRIPT) + 1
    assert len({frame.tobytes() for frame in frames}) == len(frames)
    card = lay_out(played.params.network).cards[USER3]
    middle = int((card[1] + card[3]) / 2), int(card[0] + 8)
    colors = [tuple(frame[middle]) for frame in frames]
    assert len(set(colors[:3])) == 1  # white
    assert len({colors[0], colors[3], colors[4]}) == 3  # then a user session, then privileged
    assert len(set(colors[4:])) == 1
    render.save_gif(frames, tmp_path / "film.gif", 4)
    text = timeline.to_svg(original().env.timeline(played))
    page = render.save_html(frames, tmp_path / "film.html", 4, timeline=text).read_text()
    assert page.count("data:image/png;base64,") == len(frames)
    assert text in page


def test_a_service_that_is_down_shows(played):
    network = played.params.network
    state = jax.tree.map(lambda leaf: leaf[-1], played.states)
    down = dataclasses.replace(state, service_alive=np.bool_(False))
    left, top, right, bottom = (int(edge) for edge in lay_out(network).cards[OP_SERVER])
    differs = (draw(state, network) != draw(down, network)).any(axis=-1)
    assert differs[top:bottom, left:right].any()
    assert differs[:62].any()


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"num_subnets": (3, 5), "hosts_per_subnet": (3, 6), "graph": "erdos"}, True),
        ({"num_subnets": 8, "hosts_per_subnet": (8, 25), "graph": "tree"}, False),
        ({"num_subnets": 32, "hosts_per_subnet": (2, 31), "graph": "tree"}, False),
    ],
)
def test_networks_of_other_sizes(config, named):
    """Every host that exists has its place, inside the picture and apart from the others; drawn and told."""
    env = Cyborg(network=config, extension=True, max_steps=3)
    check_network(env.network)
    layout = lay_out(env.network)
    assert layout.named == named
    exists = [host for host in range(env.num_hosts) if int(env.network.hosts[host // 32]) >> (host % 32) & 1]
    assert sorted(layout.cards) == exists
    picture = env.render(env.initial_state(env.default_params))
    taken = np.zeros(picture.shape[:2], int)
    for left, top, right, bottom in layout.cards.values():
        assert 0 <= left < right <= picture.shape[1]
        assert 0 <= top < bottom <= picture.shape[0]
        taken[int(np.ceil(top)) : int(bottom), int(np.ceil(left)) : int(right)] += 1
    assert taken.max() == 1


def test_an_episode_on_a_drawn_network():
    """The network of the episode is drawn in `sample_params`: its pictures use that one, not the environment's."""
    network = {"num_subnets": (2, 4), "hosts_per_subnet": (3, 5), "graph": "tree"}
    env, params = envs_jax.make("cyborg-network", network=network, max_steps=6)
    act = lambda policy_params, carry, time_step, key, greedy: (jnp.int32(2), carry, {})  # noqa: E731
    keys = jax.random.split(jax.random.key(2), 3)
    played = play(env, (lambda p, k: (), act), (), params, keys, jax.random.key(0), 6)
    drawn = played.params.network
    assert (np.asarray(drawn.profile) != np.asarray(env.network.profile)).any()
    assert len(env.film(played)) == 7
    shown = env.timeline(played)
    assert set(shown.columns["blue_action"]) == {"Analyse 0.0"}
    labels = [track.label for track in shown.tracks if track.label][2:]
    assert len(labels) == sum(int(word).bit_count() for word in np.asarray(drawn.hosts))


def test_the_duel_tells_the_same_story(played):
    """Info of two agents, and under `Versus` of one."""
    two = jax.tree.map(lambda leaf: np.stack([leaf, leaf], axis=1), played.time_steps.info)
    both = dataclasses.replace(played, time_steps=dataclasses.replace(played.time_steps, info=two))
    assert CyborgDuel().timeline(both).tracks == original().env.timeline(played).tracks
