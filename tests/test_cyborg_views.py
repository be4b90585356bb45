"""CybORG: action sets and masks, observations, chance, generated networks, and the game for two players."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import cyborg_play
import envs_jax
from cyborg_play import DEFENDER, ENT1, IDLE, OP_SERVER, USER0, USER1, USER2, USER3, USER4, blue, hit, move, scan
from envs_jax.security.cyborg import Cyborg, CyborgDuel, NetworkConfig, chance, red
from envs_jax.security.cyborg.actions import KINDS, make_action_set
from envs_jax.security.cyborg.bits import count, draw, has, pack, select, unpack
from envs_jax.security.cyborg.catalogue import DECOYS, EXPLOITS, Profile
from envs_jax.security.cyborg.draw import draw as picture
from envs_jax.security.cyborg.network import HOSTS, IMPACT, cage2_network, check_network, script_entry
from envs_jax.security.cyborg.observations import graph, observe
from envs_jax.security.cyborg.rules import Rules
from envs_jax.security.cyborg.state import FALSE

NUM_DRAWS = 40_000


@pytest.fixture(scope="module")
def played():
    """A world, and states of a game in which much has happened."""
    world = cyborg_play.original()
    moves = [
        (blue("DecoyTomcat", USER1), scan(ENT1)), (blue("DecoyVsftpd", 12), hit(ENT1, "HTTPSRFI")),
        (blue("Patch", ENT1), move()), (blue("Isolate", 4), scan(USER2)),
        (blue("Patch", USER1), hit(USER1, "BlueKeep")),
    ]  # fmt: skip
    return world, [world.env.initial_state(world.params), *world.play(*moves)[0]]


# Actions.


def test_mask_says_which_actions_fail(played):
    world, states = played
    moves = jax.jit(jax.vmap(lambda state, action: world.env.blue_moves(state, action, world.params)[1], (None, 0)))
    for state in states[:1] + states[-1:]:
        mask = np.asarray(world.env.action_set.mask(state, world.params.network, world.env.rules))
        failed = np.asarray(moves(state, jnp.arange(184, dtype=jnp.int32)).success) == FALSE
        np.testing.assert_array_equal(mask, ~failed)


def test_feasible_decoys_of_a_clean_network(played):
    world, states = played
    mask = np.asarray(world.env.action_set.mask(states[0], world.params.network, world.env.rules))
    table = mask[2 + 26 : 2 + 26 + 8 * 13].reshape(8, 13)
    names = {host: {DECOYS[k].name for k in np.flatnonzero(table[:, host])} for host in range(13)}
    linux, user = {"Apache", "HarakaSMPT", "Tomcat", "Vsftpd"}, {"Apache", "Smss", "Svchost", "Tomcat"}
    expected = dict.fromkeys((0, 1, 4, 5, 6, 7), linux) | {2: {"Femitter"}, 3: {"Femitter"}, 8: user, 9: user}
    expected |= {10: {"Apache", "Femitter", "SSHD", "Tomcat"}, 11: {"SSHD", "Vsftpd"}, 12: {"Vsftpd"}}
    assert names == expected


def test_every_action_is_legal_where_asked():
    env = Cyborg(all_legal=True)
    assert np.asarray(env.reset(jax.random.key(0), env.default_params)[1].legal_actions).all()


@pytest.mark.parametrize(
    ("name", "extension", "size"),
    [("full", False, 145), ("full", True, 184), ("merged", False, 53), ("merged", True, 92), ("winner", False, 36),
     ("factorised", False, (11, 13)), ("factorised", True, (14, 13))],
)  # fmt: skip
def test_sizes_of_action_sets(name, extension, size):
    actions = make_action_set(name, 13, extension)
    assert actions.space.num_values == size
    env = Cyborg(actions=name, extension=extension)
    shown = jax.eval_shape(env.reset, jax.random.key(0), env.default_params)[1]
    assert shown.legal_actions.shape == (actions.space.mask_size,)


def translated(name, state, action, world):
    actions = make_action_set(name, 13, True)
    return int(actions.translate(state, jnp.asarray(action, jnp.int32), world.params.network, world.env.rules))


def test_reduced_sets_mean_what_they_say(played):
    world, states = played
    first, last = states[0], states[-1]
    assert translated("merged", first, 0, world) == 0
    assert translated("merged", first, 1 + 7, world) == blue("Analyse", 7)
    assert translated("merged", first, 1 + 26 + 7, world) == blue("Remove", 7)
    assert translated("merged", first, 1 + 39 + 7, world) == blue("Restore", 7)
    assert translated("merged", first, 1 + 52 + 13 + 7, world) == blue("Isolate", 7)
    # A merged decoy is the one for the best exploit that still fits; with none left it is Sleep.
    assert translated("merged", first, 1 + 13 + USER1, world) == blue("DecoyTomcat", USER1)
    assert translated("merged", last, 1 + 13 + USER1, world) == blue("DecoyApache", USER1)
    start = world.play(*[(blue(f"Decoy{name}", ENT1), move()) for name in ("Femitter",)])[0][-1]
    assert translated("merged", start, 1 + 13 + ENT1, world) == 0
    assert translated("winner", first, 0, world) == blue("Restore", 1)
    assert translated("winner", first, 26, world) == blue("Remove", USER4)
    assert translated("winner", first, 27 + 8, world) == blue("DecoyHarakaSMPT", OP_SERVER)
    assert translated("factorised", first, (KINDS.index("Restore"), OP_SERVER), world) == blue("Restore", OP_SERVER)


# Observations.


@pytest.mark.parametrize(("kind", "size"), [("challenge", 52), ("extended", 210), ("winner", 62), ("minicage", 78)])
def test_sizes_of_observations(kind, size):
    env = Cyborg(observation=kind)
    params = env.default_params
    assert env.observation_space(params).shape == (size,)
    assert jax.eval_shape(env.reset, jax.random.key(0), params)[1].observation.shape == (size,)


def test_extended_features(played):
    world, states = played
    state = dataclasses.replace(states[-1], last_activity=jnp.full(13, -1, jnp.int16).at[ENT1].set(1))
    seen = observe("extended", state, world.params, world.env.rules)
    np.testing.assert_array_equal(seen[:52], observe("challenge", state, world.params, world.env.rules))
    hosts, overall = np.asarray(seen[52:-2]).reshape(13, 12), np.asarray(seen[-2:])
    assert hosts[:, 0].nonzero()[0].tolist() == [4]
    assert hosts[[ENT1, USER1, DEFENDER], 1].tolist() == [0.75, 0.5, 0.0]
    assert hosts[USER1, 2:10].tolist() == [0, 0, 0, 0, 0, 0, 1, 0]
    assert hosts[[ENT1, USER2, USER1], 10].tolist() == [0.5, 1.0, 0.0]  # scanned earlier, last, never
    assert hosts[[ENT1, USER1], 11].tolist() == [pytest.approx(4 / 20), 1.0]
    assert overall.tolist() == [pytest.approx(0.05), 0.0]
    left = np.asarray(observe("minicage", state, world.params, world.env.rules)[-13:])
    assert left[[USER1, 3]].tolist() == [3.0, 1.0]
    memory = observe("winner", state, world.params, world.env.rules)[52:]
    assert memory.tolist() == [0, 0, 1, 0, 0, 0, 0, 2, 0, 0]


def test_graph(played):
    world, states = played
    state = dataclasses.replace(states[-1], last_activity=jnp.full(13, -1, jnp.int16))
    view = graph(state, world.params.network)
    edges = np.stack([view.senders, view.receivers], 1)[np.asarray(view.edge_mask)]
    assert sorted(map(tuple, edges.tolist())) == [(3, 7), (9, 2), (10, 2), (11, 1), (12, 1)]
    assert view.nodes.shape == (13, 16)


def test_picture(played):
    world, states = played
    early, late = (picture(state, world.params.network) for state in (states[0], states[-1]))
    assert early.dtype == np.uint8
    assert early.shape == late.shape
    assert (early != late).any()
    large = cage2_network(Rules(), num_hosts=64, num_subnets=4)
    assert picture(Cyborg(network=large).initial_state(Cyborg(network=large).default_params), large).ndim == 3


# Chance.


def test_host_sets():
    rng = np.random.default_rng(0)
    for size in (13, 32, 70):
        members = rng.random(size) < 0.4
        mask = pack(jnp.asarray(members))
        np.testing.assert_array_equal(unpack(mask, size), members)
        assert int(count(mask)) == members.sum()
        for rank, host in enumerate(np.flatnonzero(members)):
            assert int(select(mask, jnp.int32(rank))) == host
            assert bool(has(mask, jnp.int32(host)))


@pytest.mark.parametrize("size", [13, 70])
def test_hosts_are_drawn_uniformly(size):
    members = np.arange(size) % 3 == 1
    words = jax.random.bits(jax.random.key(1), (NUM_DRAWS,), jnp.uint32)
    drawn = np.asarray(jax.jit(jax.vmap(draw, (None, 0)))(pack(jnp.asarray(members)), words))
    counts = np.bincount(drawn, minlength=size)
    expected = NUM_DRAWS / members.sum()
    assert not counts[~members].any()
    assert np.abs(counts[members] - expected).max() < 5 * np.sqrt(expected)


def test_streams_are_independent_and_stay_where_they_are():
    keys = jax.random.split(jax.random.key(0), NUM_DRAWS)
    words = np.stack(jax.jit(jax.vmap(chance.random_words))(keys)).astype(np.float64) / 2**32
    assert np.abs(words.mean(1) - 0.5).max() < 5 / np.sqrt(12 * NUM_DRAWS)
    assert np.abs(np.corrcoef(words) - np.eye(red.NUM_STREAMS)).max() < 5 / np.sqrt(NUM_DRAWS)
    # Frozen: a change here changes every episode, and needs a new `version` of the environment.
    assert [int(word) for word in chance.random_words(jax.random.key(0))[:2]] == FIRST_WORDS


FIRST_WORDS = [1300747165, 2731456192]


def test_first_contact():
    """How a clean, freshly scanned host answers: the products of the rules for choosing an exploit."""
    network = cage2_network(Rules())
    words = jax.random.bits(jax.random.key(2), (NUM_DRAWS,), jnp.uint32)
    choose = jax.jit(jax.vmap(chance.choose_exploit, (None, 0)))
    expected = {
        USER0: {"FTPDirectoryTraversal": 0.75, "SSHBruteForce": 0.25},
        USER2: {"EternalBlue": 0.75, "BlueKeep": 0.25},
        USER3: {"HarakaRCE": 0.75, "HTTPSRFI": 1 / 12, "HTTPRFI": 1 / 12, "BlueKeep": 1 / 12},
        USER4: {"HarakaRCE": 0.75} | dict.fromkeys(("SQLInjection", "HTTPSRFI", "HTTPRFI", "SSHBruteForce"), 1 / 16),
        OP_SERVER: {"SSHBruteForce": 1.0},
        ENT1: {"HTTPSRFI": 0.75} | dict.fromkeys(("HTTPRFI", "BlueKeep", "SSHBruteForce", "EternalBlue"), 1 / 16),
    }  # fmt: skip
    for host, table in expected.items():
        chosen = np.asarray(choose(Profile(network.profile[host]).listens, words))
        for index, exploit in enumerate(EXPLOITS):
            share = table.get(exploit.name, 0.0)
            assert abs((chosen == index).mean() - share) <= 5 * np.sqrt(share * (1 - share) / NUM_DRAWS), HOSTS[host]
    assert int(chance.choose_exploit(jnp.uint32(0), words[0])) == -1


# Networks.


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_subnets": 1}, "num_subnets must lie in 2 .. 32"),
        ({"hosts_per_subnet": (1, 4)}, "2 <= low <= high"),
        ({"graph": "tre"}, "unknown graph 'tre'; did you mean 'tree'"),
        ({"graph": ((0, 1), (2, 1)), "jewel_subnet": 2}, "no path leads from subnet 0 to the jewel in subnet 2"),
        ({"graph": ((1, 2),)}, "no path leads"),
        ({"graph": ((0, 7),)}, "two subnets in 0 .. 2"),
        ({"jewel_subnet": 5}, "jewel_subnet must lie in 1 .. 2"),
        ({"links_per_host": 0}, "links_per_host"),
        ({"image_weights": (1.0,)}, "image_weights must be 6 numbers"),
        ({"edge_probability": 2.0}, "edge_probability"),
    ],
)
def test_network_configs_are_checked(fields, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**fields)


def test_network_without_a_path_is_refused():
    network = cage2_network(Rules())
    cut = dataclasses.replace(network, gateways=network.gateways.at[2].set(0))
    with pytest.raises(ValueError, match=r"no path from the foothold \(host 8\) to the jewel \(host 7, subnet 2\)"):
        Cyborg(network=cut)
    with pytest.raises(ValueError, match="jewel is host 13, which does not exist"):
        check_network(dataclasses.replace(network, jewel=jnp.int32(13)))


TREES = NetworkConfig(num_subnets=(2, 5), hosts_per_subnet=(2, 9), graph="tree", links_per_host=2)


def test_generated_networks():
    networks = jax.device_get(
        jax.jit(jax.vmap(lambda key: TREES.draw(key, Rules())))(jax.random.split(jax.random.key(0), 64))
    )
    walks = set()
    for index in range(64):
        network = jax.tree.map(lambda leaf, index=index: leaf[index], networks)
        check_network(network)
        walk = [tuple(int(part) for part in script_entry(word)) for word in network.script[: network.script_end + 1]]
        assert walk[-1][:2] == (IMPACT, network.jewel)
        assert all(jump <= pointer for pointer, (_, _, jump, _) in enumerate(walk))
        walks.add(len(walk))
        links = network.links[unpack(jnp.asarray(network.hosts), 45)]
        assert (links[links >= 0] != network.foothold).all()
    assert walks >= {8, 15, 22}  # one, two and three hops


@pytest.mark.slow
def test_red_reaches_the_jewel_of_networks_drawn_per_episode():
    env = Cyborg(network=TREES, max_steps=100)
    params = env.default_params

    def episode(key):
        keys = jax.random.split(key, 3)
        drawn = env.sample_params(keys[0], params)
        state, _ = env.reset(keys[1], drawn)

        def step(state, key):
            state, shown = env.step(key, state, jnp.int32(IDLE), drawn)
            return state, shown.reward

        state, rewards = jax.lax.scan(step, state, jax.random.split(keys[2], 100))
        return ~state.service_alive, rewards.sum(), drawn.network.jewel

    down, _, jewels = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 64))
    assert np.mean(down) > 0.9
    assert np.unique(jewels).size > 10


@pytest.mark.slow
@pytest.mark.parametrize(("subnets", "per_subnet", "num_envs", "limit"), [(10, 10, 4096, 2**30), (32, 31, 256, 2**30)])
def test_large_networks_fit(subnets, per_subnet, num_envs, limit):
    """100 hosts in 4,096 environments, and 992 hosts: a network of its own for each, mask and observation included."""
    env = Cyborg(red="mix", network=NetworkConfig(subnets, (per_subnet, per_subnet), graph="tree"), extension=True)
    keys = jax.random.split(jax.random.key(0), num_envs)
    drawn = jax.jit(jax.vmap(env.sample_params, (0, None)))(keys, env.default_params)
    state, _ = jax.jit(jax.vmap(env.reset))(keys, drawn)
    actions = jnp.zeros(num_envs, jnp.int32)
    compiled = jax.jit(jax.vmap(env.step)).lower(keys, state, actions, drawn).compile()
    memory = compiled.memory_analysis()
    assert memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes < limit
    _, shown = compiled(keys, state, actions, drawn)
    assert np.isfinite(shown.reward).all()


# Two players.


@pytest.fixture(scope="module")
def duel():
    env = CyborgDuel()
    return env, env.default_params, jax.jit(env.step)


@pytest.mark.slow
def test_bline_in_the_duel_is_bline(duel):
    env, params, step = duel
    alone = Cyborg("bline")
    step_alone = jax.jit(alone.step)
    state, _ = env.reset(jax.random.key(0), params)
    other, _ = alone.reset(jax.random.key(0), params)
    follow = env.num_red_actions  # the first of the actions that let a script choose
    for number in range(40):
        key, action = jax.random.key(number), jnp.int32((7 * number) % 145)
        state, both = step(key, state, jnp.stack([action, jnp.int32(follow)]), params)
        other, shown = step_alone(key, other, action, alone.default_params)
        assert float(both.reward[0]) == -float(both.reward[1]) == float(shown.reward)
        np.testing.assert_array_equal(both.observation[0, :52], shown.observation)
        np.testing.assert_array_equal(both.legal_actions[0, :145], shown.legal_actions)
        assert both.info["red_host"].tolist() == [int(shown.info["red_host"])] * 2
    assert int(both.info["hosts_held"][0]) > 1


def test_red_learner_plays_by_its_mask(duel):
    env, params, step = duel
    state, first = env.reset(jax.random.key(0), params)
    assert np.flatnonzero(first.legal_actions[1]).tolist() == [0, 1, 4 + USER0, 30 + USER0]
    assert env.observation_space(params).shape == first.observation.shape[1:] == (59,)
    plan = (1, 4 + USER2, 17 + USER2, 30 + USER2)  # list the subnet, scan, exploit, escalate
    for number, red_action in enumerate(plan):
        assert bool(first.legal_actions[1, red_action])
        state, first = step(jax.random.key(number), state, jnp.asarray([0, red_action], jnp.int32), params)
        if red_action < 17:
            assert int(first.info["red_success"][1]) == 1
    known, scanned, held, _ = np.asarray(first.observation[1, :52]).reshape(4, 13)
    assert known.nonzero()[0].tolist()[-5:] == [USER0, USER1, USER2, USER3, USER4]
    assert scanned.nonzero()[0].tolist() == [USER2]
    assert set(held.nonzero()[0].tolist()) <= {USER0, USER2}
    _, illegal = step(jax.random.key(9), state, jnp.asarray([0, 17 + ENT1], jnp.int32), params)
    assert int(illegal.info["red_kind"][0]) == 0  # not known: nothing happens


def test_duel_fits_the_two_role_protocol():
    env, params = envs_jax.make("cyborg-duel", role="blue", opponents=["bline", "meander", "sleep", "random"])
    state, first = jax.eval_shape(env.reset, jax.random.key(0), params)
    after = jax.eval_shape(env.step, jax.random.key(0), state, jax.ShapeDtypeStruct((), jnp.int32), params)
    assert jax.tree.structure((state, first)) == jax.tree.structure(after)
    with pytest.raises(ValueError, match="unknown policy 'blin'; did you mean 'bline'"):
        CyborgDuel().heuristics(["blin"])
    with pytest.raises(ValueError, match="13 hosts"):
        CyborgDuel(network={}).heuristics(["decoy_greedy"])
