"""CybORG: every switch, the extension, its rewards, and what is refused."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import pytest

import cyborg_play
from cyborg_play import (
    DEFENDER,
    ENT0,
    ENT1,
    ENT2,
    EXPLOIT,
    IDLE,
    IMPACT,
    NO,
    NOTHING,
    OP_SERVER,
    ROOT,
    SCAN,
    SUSPECTED,
    USER,
    USER0,
    USER1,
    USER2,
    USER3,
    USER4,
    World,
    activity,
    belief,
    blue,
    escalate,
    hit,
    members,
    move,
    ports,
    scan,
    sessions,
)
from envs_jax.security.cyborg import Cyborg, red
from envs_jax.security.cyborg.bits import bit, pack
from envs_jax.security.cyborg.network import RED_KINDS
from envs_jax.security.cyborg.rewards import learning_reward
from envs_jax.security.cyborg.rules import FIXES, make_rules
from envs_jax.security.cyborg.state import FALSE, TRUE, UNKNOWN


@pytest.fixture(scope="module")
def original():
    return cyborg_play.original()


@pytest.fixture(scope="module")
def repaired():
    return cyborg_play.repaired()


# The switches: what is seen of each in the original and in the repaired world.

SEEN = {
    "fix_remove_success": (((blue("Remove", ENT0), move()),), lambda s, t: int(t.info["blue_success"]), TRUE, FALSE),
    "fix_vsftpd": (
        ((blue("DecoyVsftpd", ENT0), move()), (IDLE, scan(ENT0))), lambda s, t: ports(s, ENT0), {22, 80}, {22, 21}
    ),
    "fix_ent_smb": (
        ((IDLE, hit(ENT1, "EternalBlue")),), lambda s, t: sessions(s, ENT1), (0, 0, 0), (0, 0, 1)
    ),
    "fix_user3_mysql": (
        ((IDLE, scan(USER3)),), lambda s, t: ports(s, USER3), {80, 443, 25, 3389}, {80, 443, 25, 3390}
    ),
    "fix_user_reward": (((IDLE, hit(ENT0)),), lambda s, t: float(t.reward), 0.0, -1.0),
    "fix_scan_mask": (
        ((IDLE, hit(ENT1, "HTTPSRFI", green=ENT1)),), lambda s, t: activity(t, ENT1), SCAN, EXPLOIT
    ),
    "fix_impact_relink": (
        ((blue("Restore", OP_SERVER), hit(ENT0)), (IDLE, hit(OP_SERVER)), (IDLE, escalate(OP_SERVER)), (IDLE, IMPACT)),
        lambda s, t: bool(s.service_alive), True, False,
    ),
    "fix_ssh_remove": (
        ((IDLE, hit(ENT0)), (blue("Remove", ENT0), move())), lambda s, t: sessions(s, ENT0), (0, 1, 0), (0, 0, 0)
    ),
    "fix_empty_scan": (((IDLE, scan(OP_SERVER)),), lambda s, t: int(s.success), TRUE, FALSE),
    "fix_ssh_decoy_belief": (((IDLE, hit(DEFENDER)),), lambda s, t: belief(t, DEFENDER), USER, NO),
    "fix_decoy_hides": (((blue("DecoyApache", ENT0), scan(ENT0)),), lambda s, t: activity(t, ENT0), NOTHING, SCAN),
    "fix_belief_downgrade": (
        ((IDLE, hit(ENT1, "HTTPSRFI")), (blue("Analyse", ENT1), move()), (IDLE, hit(ENT1, "HTTPSRFI"))),
        lambda s, t: belief(t, ENT1), USER, ROOT,
    ),
    "fix_analyse_stale": (
        ((IDLE, hit(ENT1, "HTTPSRFI")), (blue("Remove", ENT1), move()), (blue("Analyse", ENT1), move())),
        lambda s, t: belief(t, ENT1), ROOT, SUSPECTED,
    ),
    "fix_stale_ports": (
        ((IDLE, scan(ENT0)), (blue("Restore", ENT0), move())), lambda s, t: ports(s, ENT0), {22}, set()
    ),
}  # fmt: skip


@pytest.mark.parametrize("fix", FIXES)
def test_switch(original, repaired, fix):
    moves, seen, before, after = SEEN[fix]
    assert seen(*original.last(*moves)) == before
    assert seen(*repaired.last(*moves)) == after


@pytest.mark.slow
@pytest.mark.parametrize("fix", FIXES)
def test_switch_alone(fix):
    """Each switch alone changes what it promises and none of the others' scenes."""
    world = World(fixes=fix)
    for other, (moves, seen, before, after) in SEEN.items():
        assert seen(*world.last(*moves)) == (after if other == fix else before), other


def test_stale_ports_makes_bline_scan_again(repaired):
    start = repaired.env.initial_state(repaired.params)
    memory = dataclasses.replace(
        start.memory, pointer=jnp.int16(6), entry=jnp.int16(USER1), history=jnp.asarray([0x7F], jnp.uint32)
    )
    state = dataclasses.replace(start, memory=memory, success=jnp.int8(FALSE))  # falls back to the exploit, pointer 5
    proposal = red.bline(state, repaired.params.network, repaired.env.rules, ())
    assert (int(proposal.memory.pointer), RED_KINDS[int(proposal.kind)]) == (4, "DiscoverNetworkServices")
    assert members(proposal.candidates) == {ENT1}


# The extension.


def test_patch_takes_the_exploit_that_red_prefers(original):
    patch = (blue("Patch", ENT1), move())
    state, shown = original.last(patch, (IDLE, hit(ENT1, "HTTPSRFI")))
    assert (int(state.success), activity(shown, ENT1), sessions(state, ENT1)) == (FALSE, SCAN, (0, 0, 0))
    state, _ = original.last(patch, (IDLE, hit(ENT1, "HTTPRFI")))
    assert int(state.success) == TRUE
    states, shown = original.play(*[patch] * 5)  # https, http, rdp, ssh: four exploits, the fifth patch is in vain
    assert [int(s.info["blue_success"]) for s in shown] == [TRUE] * 4 + [FALSE]
    assert [float(s.reward) for s in shown] == [pytest.approx(-0.2)] * 5
    assert int(original.last((IDLE, hit(ENT1)), start=states[-1])[0].success) == FALSE
    restored, _ = original.last((blue("Restore", ENT1), hit(ENT1)), start=states[-1])
    assert int(restored.success) == TRUE


def test_patch_that_takes_time(repaired):
    patch = (blue("Patch", ENT1), scan(ENT1))
    states, shown = repaired.play(
        patch, (IDLE, hit(ENT1, "HTTPRFI")), (IDLE, scan(ENT1)), (IDLE, hit(ENT1, "HTTPSRFI"))
    )
    assert ports(states[0], ENT1) == set()  # services are down while it runs ...
    assert [activity(s, ENT1) for s in shown] == [NOTHING, NOTHING, SCAN, SCAN]
    assert 443 in ports(states[2], ENT1)
    assert int(states[3].success) == FALSE  # ... then the host is immune
    kept, _ = repaired.last((blue("Restore", ENT1), hit(ENT1, "HTTPSRFI")), start=states[-1])
    assert int(kept.success) == FALSE  # restore_unpatches=False


def test_isolated_host_is_out_of_reach(original):
    entered = ((IDLE, hit(ENT0)), (blue("Isolate", ENT0), move()))
    state, shown = original.last(*entered)
    assert (members(state.isolated), float(shown.reward)) == ({ENT0}, -0.5)
    assert sessions(state, ENT0) == (0, 1, 0)
    for action in (scan(ENT0), hit(ENT0), escalate(ENT0), scan(OP_SERVER)):
        after, seen = original.last((IDLE, action), start=state)
        assert sessions(after, ENT0) == (0, 1, 0)
        assert (activity(seen, ENT0), activity(seen, OP_SERVER)) == (NOTHING, NOTHING)
        assert ports(after, ENT0) == ports(after, OP_SERVER) == set()
    _, green = original.last((IDLE, move(green=ENT0)), start=state)
    assert activity(green, ENT0) == NOTHING
    found, _ = original.last((IDLE, move("DiscoverRemoteSystems", subnet=1)), start=state)
    assert members(found.known_ip) == {USER0, DEFENDER, ENT1, ENT2}
    _, shown = original.last((blue("Isolate", ENT0), move()), start=state)
    assert int(shown.info["blue_success"]) == FALSE
    freed, shown = original.last((blue("Unisolate", ENT0), escalate(ENT0)), start=state)
    assert (members(freed.isolated), sessions(freed, ENT0), int(freed.success)) == (set(), (0, 0, 1), TRUE)
    cleaned, _ = original.last((blue("Restore", ENT0), move()), start=state)
    assert members(cleaned.isolated) == set()
    assert int(original.last((blue("Unisolate", ENT1), move()))[1].info["blue_success"]) == FALSE


def test_isolation_of_the_service_and_of_the_foothold(original, repaired):
    _, shown = original.last((blue("Isolate", OP_SERVER), move()))
    assert (float(shown.reward), float(shown.info["isolation_cost"])) == (-5.0, -5.0)
    state, shown = original.last((blue("Isolate", USER0), move()))
    assert (members(state.isolated), int(shown.info["blue_success"])) == (set(), FALSE)
    state, _ = repaired.last((blue("Isolate", USER0), hit(ENT0)))
    assert (members(state.isolated), sessions(state, ENT0)) == ({USER0}, (0, 0, 0))


def test_bline_starts_at_a_user_that_is_not_isolated(original):
    start = original.env.initial_state(original.params)
    state = dataclasses.replace(start, success=jnp.int8(TRUE))
    cut = pack(jnp.asarray([host in (USER1, USER2, USER4) for host in range(13)]))
    rules, network = original.env.rules, original.params.network
    assert members(red.bline(state, network, rules, ()).candidates) == {USER1, USER2, USER3, USER4}
    isolated = dataclasses.replace(state, isolated=cut)
    assert members(red.bline(isolated, network, rules, ()).candidates) == {USER3}
    every = dataclasses.replace(state, isolated=cut | bit(jnp.int32(USER3), 1))
    assert members(red.bline(every, network, rules, ()).candidates) == {USER1, USER2, USER3, USER4}


# Rewards and refusals.


def test_learning_rewards(original):
    env, params = original.env, original.params
    taken = original.play((IDLE, hit(ENT1, "HTTPSRFI")), (IDLE, hit(ENT0)), (IDLE, escalate(ENT0)))[0][-1]

    def shaped(action, state=taken):
        after, made = env.blue_moves(state, jnp.int32(action), params)
        return float(learning_reward("shaped", jnp.float32(0), state, after, made, params))

    assert shaped(blue("Remove", ENT1)) == pytest.approx(0.1)
    assert shaped(blue("Remove", ENT2)) == pytest.approx(-0.05)
    assert shaped(blue("Restore", ENT0)) == pytest.approx(0.5)
    assert shaped(blue("DecoyApache", ENT1)) == pytest.approx(-0.05)
    assert shaped(blue("DecoyFemitter", ENT1)) == 0.0
    assert shaped(blue("Restore", USER0)) == 0.0  # red's first hold never ends

    # With discount 1 the potential's sum telescopes: what an episode earns differs by its ends alone.
    states, _ = original.play((IDLE, hit(ENT0)), (IDLE, scan(OP_SERVER)), (blue("Restore", ENT0), move()))
    undiscounted = dataclasses.replace(params, discount=jnp.float32(1))
    path = [env.initial_state(params), *states]
    made = env.blue_moves(path[0], jnp.int32(0), params)[1]
    gains = [
        float(learning_reward("potential", jnp.float32(0), before, after, made, undiscounted))
        for before, after in itertools.pairwise(path)
    ]
    assert gains == pytest.approx([-1.0, -2.0, 1.0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"red": "blind"}, "unknown red agent 'blind'; did you mean 'bline'"),
        ({"red": ()}, "at least one"),
        ({"fixes": "fix_vsftp"}, "unknown fix 'fix_vsftp'; did you mean 'fix_vsftpd'"),
        ({"observation": "extend"}, "unknown observation 'extend'; did you mean 'extended'"),
        ({"actions": "ful"}, "unknown action set 'ful'; did you mean 'full'"),
        ({"reward": "shape"}, "unknown reward 'shape'; did you mean 'shaped'"),
        ({"max_steps": 0}, "max_steps must be an integer of at least 1"),
        ({"patch_steps": 0}, "patch_steps must be an integer of at least 1"),
        ({"network": {"num_subnet": 3}}, "unknown network field 'num_subnet'; did you mean 'num_subnets'"),
        ({"network": {}, "actions": "winner"}, "'winner' is defined for the 13 hosts"),
        ({"network": {}, "observation": "winner"}, "'winner' is defined for the 13 hosts"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        Cyborg(**options)


@pytest.mark.parametrize("action", [-1, 184, 1.5])
def test_actions_are_checked_before_compiling(original, action):
    state = original.env.initial_state(original.params)
    with pytest.raises(ValueError, match=r"outside the action space; allowed are integers 0 .. 183"):
        original.env.step(jax.random.key(0), state, action, original.params)


def test_rules_by_name():
    assert make_rules("vsftpd") == make_rules(["fix_vsftpd"])
    assert all(getattr(make_rules("all"), name) for name in FIXES)
    assert set(SEEN) == set(FIXES)
    assert UNKNOWN not in (TRUE, FALSE)
