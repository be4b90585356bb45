"""CybORG: the rules that a single step or two decide."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
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
    OP_HOST0,
    OP_SERVER,
    ROOT,
    SCAN,
    SUSPECTED,
    USER,
    USER0,
    USER1,
    activity,
    belief,
    blue,
    escalate,
    hit,
    members,
    move,
    scan,
    sessions,
)
from envs_jax.security.cyborg import attack, red
from envs_jax.security.cyborg.bits import bit, pack
from envs_jax.security.cyborg.catalogue import EXPLOITS, PORTS, candidates
from envs_jax.security.cyborg.network import HOSTS
from envs_jax.security.cyborg.records import ONE_PRIVILEGED, Sessions
from envs_jax.security.cyborg.rewards import points
from envs_jax.security.cyborg.state import FALSE, TRUE, set_sessions


@pytest.fixture(scope="module")
def original():
    return cyborg_play.original()


# What blue sees.


def test_first_observation_is_empty(original):
    state, first = original.env.reset(jax.random.key(0), original.params)
    assert not first.observation.any()
    assert members(state.held) == members(state.known_ip) == {USER0}
    assert sessions(state, USER0) == (0, 0, 1)


def test_exploits_as_blue_sees_them(original):
    _, shown = original.play((IDLE, scan(ENT1)), (IDLE, hit(ENT1, "HTTPSRFI")), (IDLE, move()))
    assert [activity(s, ENT1) for s in shown] == [SCAN, EXPLOIT, NOTHING]
    assert [belief(s, ENT1) for s in shown] == [NO, USER, USER]
    state, undetected = original.last((IDLE, hit(ENT1, "HTTPSRFI", detected=0)))
    assert (activity(undetected, ENT1), belief(undetected, ENT1)) == (SCAN, NO)
    assert sessions(state, ENT1) == (0, 1, 0)
    state, fooled = original.last((IDLE, hit(DEFENDER)))
    assert (activity(fooled, DEFENDER), belief(fooled, DEFENDER)) == (EXPLOIT, USER)
    assert sessions(state, DEFENDER) == (0, 0, 0)


def test_exploits_that_fail(original):
    decoy = blue("DecoyHarakaSMPT", ENT0)
    state, shown = original.last((decoy, move()), (IDLE, hit(ENT0, "HarakaRCE")))
    assert (int(state.success), activity(shown, ENT0), belief(shown, ENT0)) == (FALSE, SCAN, NO)
    _, gone = original.last((IDLE, hit(ENT0, "HarakaRCE")))
    assert activity(gone, ENT0) == NOTHING
    # Hit in the step in which another decoy is placed: three events on one port pass for an exploit.
    _, shown = original.last((decoy, move()), (blue("DecoyTomcat", ENT0), hit(ENT0, "HarakaRCE")))
    assert activity(shown, ENT0) == EXPLOIT
    _, unroutable = original.last((IDLE, hit(OP_SERVER)))
    assert activity(unroutable, OP_SERVER) == NOTHING


def test_analyse_sees_files_not_sessions(original):
    _, stale = original.last(
        (IDLE, hit(ENT1, "HTTPSRFI")), (blue("Remove", ENT1), move()), (blue("Analyse", ENT1), move())
    )
    assert belief(stale, ENT1) == ROOT
    _, ssh = original.last((IDLE, hit(ENT0)), (blue("Analyse", ENT0), move()))
    assert belief(ssh, ENT0) == USER
    _, escalated = original.last((IDLE, hit(ENT0)), (IDLE, escalate(ENT0)), (blue("Analyse", ENT0), move()))
    assert belief(escalated, ENT0) == ROOT
    _, before_red = original.last((blue("Analyse", ENT1), hit(ENT1, "HTTPSRFI")))
    assert belief(before_red, ENT1) == USER


def test_remove_and_restore(original):
    taken = ((IDLE, hit(ENT1, "HTTPSRFI")), (IDLE, hit(ENT1, "HTTPSRFI", detected=0)))
    state, shown = original.last(*taken, (blue("Remove", ENT1), move()))
    assert sessions(state, ENT1) == (0, 1, 0)
    assert belief(shown, ENT1) == SUSPECTED
    state, shown = original.last(*taken, (blue("Restore", ENT1), move()))
    assert sessions(state, ENT1) == (0, 0, 0)
    assert (belief(shown, ENT1), float(shown.reward)) == (NO, -1.0)
    assert members(state.malware) == set()
    state, _ = original.last((blue("Restore", USER0), move()))
    assert sessions(state, USER0) == (0, 0, 1)


def test_blue_moves_before_red(original):
    """A Restore beats an Escalate of its step and loses to an exploit of its step."""
    state, _ = original.last((IDLE, hit(ENT0)), (blue("Restore", ENT0), escalate(ENT0)))
    assert (int(state.success), sessions(state, ENT0)) == (FALSE, (0, 0, 0))
    state, _ = original.last((blue("Restore", ENT0), hit(ENT0)))
    assert (int(state.success), sessions(state, ENT0)) == (TRUE, (0, 1, 0))


# What red does.


def test_impact(original):
    entered = ((IDLE, hit(ENT0)), (IDLE, hit(OP_SERVER)))
    state, _ = original.last(*entered, (IDLE, IMPACT))
    assert int(state.success) == FALSE  # it does not know the service
    known = (*entered, (IDLE, escalate(OP_SERVER)))
    states, shown = original.play(*known, (IDLE, IMPACT), (IDLE, move()), (IDLE, IMPACT))
    assert [bool(state.service_alive) for state in states[2:]] == [True, False, False, False]
    assert [float(s.reward) for s in shown[2:]] == [-1.0, -11.0, -11.0, -11.0]  # paid at every step
    # After a Restore a user-level session is enough, and the service does not die again.
    state, shown = original.last(*known, (blue("Restore", OP_SERVER), move()), (IDLE, hit(OP_SERVER)), (IDLE, IMPACT))
    assert sessions(state, OP_SERVER) == (0, 1, 0)
    assert (int(state.success), bool(state.service_alive), bool(state.service_active)) == (TRUE, True, False)


def test_route_needs_a_session_on_the_enterprise_servers(original):
    start = original.env.initial_state(original.params)
    root = Sessions(jnp.uint32(ONE_PRIVILEGED))
    for host, routed in ((DEFENDER, False), (USER1, False), (OP_HOST0, False), (ENT2, True)):
        held = set_sessions(start, jnp.int32(host), bit(jnp.int32(host), 1), root)
        state, _ = original.last((IDLE, scan(OP_SERVER)), start=held)
        assert bool(state.nonempty) is routed, HOSTS[host]
        assert int(state.success) == TRUE
        found = move("DiscoverRemoteSystems", subnet=2)
        assert int(original.last((IDLE, found), start=held)[0].success) == (TRUE if routed else FALSE)


def test_escalate_teaches(original):
    state, _ = original.last((IDLE, hit(ENT2, "HTTPSRFI")), (IDLE, escalate(ENT2)))
    assert members(state.known_ip) == {USER0, ENT2, OP_SERVER}
    assert int(state.known_subnet) == 0b011
    assert members(state.known_host) == {USER0, ENT2}


@pytest.mark.parametrize(("removable", "left"), [(1, (0, 1, 1)), (0, (1, 0, 1))])
def test_escalate_picks_a_session(original, removable, left):
    both = ((IDLE, hit(ENT1, "HTTPSRFI")), (IDLE, hit(ENT1, "HTTPSRFI", detected=0)))
    state, _ = original.last(*both, (IDLE, escalate(ENT1, pick_removable=removable)))
    assert sessions(state, ENT1) == left
    again, _ = original.last((IDLE, escalate(ENT1, pick_removable=1)), start=state)
    assert (int(again.success), sessions(again, ENT1)) == (TRUE, left)


def test_port_53_listens_twice(original):
    target = attack.look_at(
        original.env.initial_state(original.params), jnp.int32(DEFENDER), original.params.network, original.env.rules
    )
    traffic = target.scanned(jnp.int32(DEFENDER), jnp.bool_(True))
    assert (int(traffic.count), int(traffic.other_ports)) == (4, 2)


def test_sql_injection_needs_a_web_port():
    def names(*open_ports):
        mask = jnp.uint32(sum(1 << PORTS.index(port) for port in open_ports))
        return [entry.name for index, entry in enumerate(EXPLOITS) if int(candidates(mask)) >> index & 1]

    assert names(3390, 22) == ["SSHBruteForce"]
    assert names(3390, 80) == ["SQLInjection", "HTTPRFI"]
    assert names(3390, 443) == ["SQLInjection", "HTTPSRFI"]


def memory_of(original, success=FALSE, known_subnet=1, **sets):
    """A state in which Meander remembers the given hosts, or numbers."""
    start = original.env.initial_state(original.params)
    values = {}
    for name, value in sets.items():
        hosts = isinstance(value, set)
        values[name] = pack(jnp.asarray([h in value for h in range(13)])) if hosts else jnp.int16(value)
    memory = dataclasses.replace(start.memory, scanned_subnets=jnp.uint32(7), **values)
    return dataclasses.replace(start, memory=memory, success=jnp.int8(success), known_subnet=jnp.uint32(known_subnet))


def meander(original, state):
    return red.meander(state, original.params.network, original.env.rules, ())


@pytest.mark.parametrize(
    ("escalated", "left"),
    [({ENT1, OP_HOST0, USER1}, {ENT1, USER1}), ({DEFENDER, ENT1, USER1}, {DEFENDER, USER1}), ({USER1}, {USER1})],
)
def test_meander_forgets_its_deepest_footholds(original, escalated, left):
    state = memory_of(original, escalated=escalated, exploited=escalated | {DEFENDER}, last_exploit=DEFENDER)
    memory = meander(original, state).memory
    assert members(memory.escalated) == left
    assert members(memory.exploited) == left - {DEFENDER}


@pytest.mark.parametrize(("mapped", "left"), [({ENT1}, set()), (set(), {ENT1})])
def test_meander_after_a_failed_escalate(original, mapped, left):
    state = memory_of(original, escalated={ENT1}, exploited={ENT1}, mapped=mapped, last_host=ENT1)
    memory = meander(original, state).memory
    assert (members(memory.escalated), members(memory.exploited)) == (set(), left)


def test_meander_takes_subnets_in_its_own_order(original):
    state = memory_of(original, known_subnet=7)
    order = []
    memory = dataclasses.replace(state.memory, scanned_subnets=jnp.uint32(0))
    for _ in range(3):
        proposal = meander(original, dataclasses.replace(state, memory=memory))
        order.append(int(proposal.subnet))
        memory = proposal.memory
    assert order == [1, 2, 0]


# Rewards.


def test_rewards_are_rounded_once():
    tenths = np.arange(5_000)
    np.testing.assert_array_equal(jax.jit(points)(jnp.asarray(tenths, jnp.int32)), (tenths / 10).astype(np.float32))
