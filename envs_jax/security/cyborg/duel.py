"""Both sides learn: the game of `Cyborg` with red as a second player."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import struct

from envs_jax.core import Environment, TimeStep
from envs_jax.registry import nearest
from envs_jax.security.cyborg import chance, policies
from envs_jax.security.cyborg.bits import bit, unpack
from envs_jax.security.cyborg.environment import Cyborg, check_action
from envs_jax.security.cyborg.generate import NetworkConfig
from envs_jax.security.cyborg.network import DISCOVER, ESCALATE, EXPLOIT, IMPACT, SCAN, SLEEP, Network
from envs_jax.security.cyborg.records import Setup
from envs_jax.security.cyborg.red import Proposal
from envs_jax.security.cyborg.rewards import CyborgParams
from envs_jax.security.cyborg.state import State
from envs_jax.spaces import Box, Discrete, Space
from envs_jax.timeline import Played, Timeline

Array = jax.Array

SCRIPTS = ("bline", "meander")
HEURISTICS = ("sleep", "random", *SCRIPTS, "script_rra", "decoy_greedy")


class CyborgDuel(Environment[State, CyborgParams]):
    """CAGE Challenge 2 for two players: agent 0 is blue, agent 1 is red. Within a step blue still moves first.

    Action: i32 `[2]`. Blue's are the full set of `Cyborg`. Red's, N hosts and S subnets: 0 Sleep;
        1 .. S DiscoverRemoteSystems of a subnet; then N each of DiscoverNetworkServices, ExploitRemoteService and
        PrivilegeEscalate by host; then Impact: 44 for the challenge. The next two let B_line and Meander choose; they
        are never legal, so that no learner takes them, and exist for the heuristics.
    Observation: f32 `[2, D]` in [0, 1], the shorter one padded by zeros. Blue's is `Cyborg`'s. Red's (4 N + S + 4):
        per host, in blocks of N: address known, ports on record, any session, a privileged one; subnets known; last
        action failed, worked, said nothing; service known.
    Reward: f32 `[2]`, blue's and its negative.
    Ending, state: as `Cyborg`.
    Legal actions: bool `[2, actions]`. Red's: what it knows of; an exploit needs a scan, Escalate a session.
    Info: as `Cyborg`, every leaf `[2]`; active bool.

    Args:
        as `Cyborg`; `reward` is blue's.
    """

    num_agents: ClassVar[int] = 2
    roles: ClassVar[tuple[str, ...]] = ("blue", "red")
    zero_sum: ClassVar[bool] = True
    frames_per_second = 4.0

    def __init__(
        self,
        green: bool = False,
        max_steps: int = 100,
        extension: bool = False,
        all_legal: bool = False,
        reward: str = "base",
        fixes: str | Sequence[str] = (),
        network: Network | NetworkConfig | Mapping[str, Any] | None = None,
        redraw: bool = True,
        restore_unpatches: bool = True,
        allow_isolate_foothold: bool = False,
        patch_steps: int = 1,
    ):
        self.game = Cyborg(
            red=SCRIPTS,
            green=green,
            max_steps=max_steps,
            extension=extension,
            all_legal=all_legal,
            reward=reward,
            fixes=fixes,
            network=network,
            redraw=redraw,
            restore_unpatches=restore_unpatches,
            allow_isolate_foothold=allow_isolate_foothold,
            patch_steps=patch_steps,
        )
        self.max_steps = self.game.max_steps
        num_hosts, num_subnets = self.game.num_hosts, self.game.network.num_subnets
        self.num_red_actions = 2 + num_subnets + 3 * num_hosts
        blue_space = self.game.action_set.space
        assert isinstance(blue_space, Discrete)
        self.num_actions = max(blue_space.num_values, self.num_red_actions + len(SCRIPTS))
        self.observation_size = 4 * num_hosts + num_subnets + 4

    @property
    def default_params(self) -> CyborgParams:
        return self.game.default_params

    def sample_params(self, key: Array, params: CyborgParams) -> CyborgParams:
        return self.game.sample_params(key, params)

    def reset(self, key: Array, params: CyborgParams) -> tuple[State, TimeStep]:
        """Starts an episode; ignores `key`."""
        del key
        state = self.game.initial_state(params)
        return state, self._both(state, self.game.first_time_step(state, params), params)

    def step(self, key: Array, state: State, action: Array, params: CyborgParams) -> tuple[State, TimeStep]:
        game, network = self.game, params.network
        action = jnp.stack([check_action(action[agent], Discrete(self.num_actions)) for agent in range(2)])
        after_blue, blue = game.blue_moves(state, self._legal_or_sleep(action[0]), params)
        streams = chance.random_words(key)
        scripted = [agent.propose(after_blue, network, game.rules, streams) for agent in game.agents]
        which = jnp.clip(action[1] - self.num_red_actions + 1, 0, len(scripted))
        own = self.red_proposal(after_blue, action[1], params)
        proposal = jax.tree.map(lambda *options: jax.lax.select_n(which, *options), own, *scripted)
        choices, memory = chance.fill_in(after_blue, proposal, game.agents, streams, network, game.green)
        after_blue = dataclasses.replace(after_blue, memory=memory)
        new, time_step = game.finish(state, after_blue, blue, choices, params)
        return new, self._both(new, time_step, params)

    def red_proposal(self, state: State, action: Array, params: CyborgParams) -> Proposal:
        """Red's own action, an i32 []; Sleep where it is not legal."""
        network, num_hosts = params.network, self.game.num_hosts
        num_subnets = network.num_subnets
        legal = self.red_mask(state, params).at[action].get(mode="fill", fill_value=False)
        place = action - 1 - num_subnets
        on_host = (place >= 0) & (place < 3 * num_hosts)
        kind = jnp.where(on_host, SCAN + place // num_hosts, jnp.where(place >= 0, IMPACT, DISCOVER))
        kind = jnp.where(legal & (action > 0), kind, SLEEP).astype(jnp.int32)
        host = jnp.where(on_host, place % num_hosts, network.jewel)
        has_host = (kind == SCAN) | (kind == EXPLOIT) | (kind == ESCALATE) | (kind == IMPACT)
        return Proposal(
            kind=kind,
            subnet=jnp.where(kind == DISCOVER, action - 1, -1),
            candidates=bit(host, network.num_words, has_host),
            memory=state.memory,
        )

    def red_mask(self, state: State, params: CyborgParams) -> Array:
        """bool `[num_red_actions]`: what red knows enough for."""
        num_hosts, num_subnets = self.game.num_hosts, params.network.num_subnets
        subnets = (state.known_subnet >> jnp.arange(num_subnets, dtype=jnp.uint32)) & 1 == 1
        known, held = unpack(state.known_ip, num_hosts), unpack(state.held, num_hosts)
        scanned = Setup(state.setup).ports != 0
        sleep, impact = jnp.ones(1, bool), state.service_known[None]
        return jnp.concatenate([sleep, subnets, known, scanned, held, impact])

    def red_observation(self, state: State, params: CyborgParams) -> Array:
        """f32 `[4 N + S + 4]`, see above."""
        num_hosts, num_subnets = self.game.num_hosts, params.network.num_subnets
        blocks = [
            unpack(state.known_ip, num_hosts),
            Setup(state.setup).ports != 0,
            unpack(state.held, num_hosts),
            unpack(state.rooted, num_hosts),
            (state.known_subnet >> jnp.arange(num_subnets, dtype=jnp.uint32)) & 1 == 1,
            state.success == jnp.arange(3, dtype=jnp.int8),
            state.service_known[None],
        ]
        return jnp.concatenate(blocks).astype(jnp.float32)

    def observation_space(self, params: CyborgParams) -> Space:
        return Box(0.0, 1.0, (self.observation_size,))

    def action_space(self, params: CyborgParams) -> Space:
        return Discrete(self.num_actions)

    def render(self, state: State, params: CyborgParams | None = None) -> Any:
        return self.game.render(state, params)

    def film(self, played: Played) -> list[Any]:
        return self.game.film(played)

    def timeline(self, played: Played) -> Timeline:
        return self.game.timeline(played)

    def heuristics(self, names: Sequence[str]) -> tuple[Any, Any, Any]:
        """Fixed policies as `(start, act, policy_params)`: see `make_heuristics`."""
        return make_heuristics(names, self.num_red_actions, self.game.num_hosts)

    def _legal_or_sleep(self, action: Array) -> Array:
        space = self.game.action_set.space
        assert isinstance(space, Discrete)
        return jnp.where(action < space.num_values, action, 0)

    def _both(self, state: State, blue: TimeStep, params: CyborgParams) -> TimeStep:
        """The time step of both agents from blue's."""
        assert blue.legal_actions is not None
        red = self.red_observation(state, params)
        masks = [_padded(mask, self.num_actions) for mask in (blue.legal_actions, self.red_mask(state, params))]
        info = {name: jnp.stack([leaf, leaf]) for name, leaf in blue.info.items()}
        return dataclasses.replace(
            blue,
            observation=jnp.stack([_padded(blue.observation, self.observation_size), red]),
            reward=jnp.stack([blue.reward, -blue.reward]),
            legal_actions=jnp.stack(masks),
            info=info | {"active": jnp.ones(2, bool)},
        )


def _padded(row: Array, size: int) -> Array:
    return jnp.pad(row, (0, size - row.shape[0]))


@struct.dataclass
class HeuristicCarry:
    used: Array  # i32 []; decoys placed, by decoy_greedy
    step: Array  # i32 []


def make_heuristics(names: Sequence[str], first_script: int, num_hosts: int) -> tuple[Callable, Callable, Array]:
    """Fixed policies given as data: i32 `[M]`, an index into `HEURISTICS` each.

    "sleep" and "random" (uniform over legal actions) suit both roles, "bline" and "meander" red, "script_rra" and
    "decoy_greedy" (13 hosts only) blue. In the other role they make no sense.

    Raises:
        ValueError: a name is unknown, or needs the challenge's network.
    """
    for name in names:
        if name not in HEURISTICS:
            raise ValueError(f"unknown policy {name!r}{nearest(name, HEURISTICS)} Allowed: {', '.join(HEURISTICS)}")
        if name in ("script_rra", "decoy_greedy") and num_hosts != 13:
            raise ValueError(f"policy {name!r} is defined for the 13 hosts of CAGE 2, this network has {num_hosts}")

    def start(policy_params: Array, key: Array) -> HeuristicCarry:
        del policy_params, key
        return HeuristicCarry(jnp.int32(0), jnp.int32(0))

    def act(
        policy_params: Array, carry: HeuristicCarry, time_step: TimeStep, key: Array, deterministic: bool
    ) -> tuple[Array, HeuristicCarry, dict[str, Array]]:
        del deterministic
        assert time_step.legal_actions is not None
        random = jax.random.categorical(key, jnp.where(time_step.legal_actions, 0.0, -jnp.inf)).astype(jnp.int32)
        options = [jnp.int32(0), random] + [jnp.int32(first_script + index) for index in range(len(SCRIPTS))]
        used = carry.used
        if num_hosts == 13:
            scripted, _ = policies.script_rra(carry.used, time_step.observation, carry.step, key)
            greedy, used = policies.decoy_greedy(carry.used, time_step.observation, carry.step, key)
            options += [scripted, greedy]
        action = jax.lax.select_n(policy_params, *options)
        return action, HeuristicCarry(used, carry.step + 1), {}

    return start, act, jnp.asarray([HEURISTICS.index(name) for name in names], jnp.int32)
