"""The environment: blue defends a network against a scripted red agent."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from envs_jax.core import Environment, TimeStep, positive_integer, time_step
from envs_jax.registry import nearest
from envs_jax.security.cyborg import chance
from envs_jax.security.cyborg.actions import make_action_set
from envs_jax.security.cyborg.attack import apply_red, green_traffic
from envs_jax.security.cyborg.belief import update_belief
from envs_jax.security.cyborg.bits import count
from envs_jax.security.cyborg.blue import BlueMove, apply_blue
from envs_jax.security.cyborg.generate import NetworkConfig, network_config
from envs_jax.security.cyborg.network import SLEEP, Network, cage2_network, check_network
from envs_jax.security.cyborg.observations import check_observation, observation_space, observe, scan_tracked
from envs_jax.security.cyborg.red import AGENTS
from envs_jax.security.cyborg.rewards import CyborgParams, check_reward, learning_reward, reward_parts
from envs_jax.security.cyborg.rules import make_rules
from envs_jax.security.cyborg.state import UNKNOWN, Choices, RedMemory, State, initial_state
from envs_jax.spaces import Discrete, MultiDiscrete, Space
from envs_jax.timeline import Played, Timeline

Array = jax.Array

MIXTURE = ("bline", "meander")


class Cyborg(Environment[State, CyborgParams]):
    """CybORG CAGE Challenge 2, transition for transition, and beyond: blue defends against a scripted red agent.

    Each step blue moves, then green, then red, each on what the one before left. N hosts; 13 in the challenge, in the
    order of `network.HOSTS`.

    Action: with `actions="full"` i32 in 0 .. 144 as in the challenge: 0 Sleep, 1 Monitor, else 2 + N kind + host with
        kind 0 Analyse, 1 Remove, 2 .. 9 a decoy (`catalogue.DECOYS`), 10 Restore; with `extension` (184 actions) also
        11 Patch, 12 Isolate, 13 Unisolate. Other sets: see `actions.make_action_set`.
    Observation: f32 `[4 N]`, the 52 bits of the challenge, per host: activity of this step (00 none, 10 scan,
        11 exploit), then compromise as far as blue knows (00 no, 10 unknown, 01 user, 11 privileged).
        "extended" (16 N + 2): these, then per host isolated, share of patches left, 8 decoys, scan memory, time since
        the last activity; then time / max_steps and whether the service is down. "winner" (62): the bits and the scan
        memory of the challenge's winning entry. "minicage" (78): the bits, scan memory, number of decoys left.
    Reward: f32 per step, never positive in mode "base": minus the value of every host where red is privileged (0.1 or
        1.0), minus 10 while the service is down, minus 1 for a Restore; in the extension minus 0.2 for a Patch and
        a cost per isolated host. Modes "shaped" and "potential": see `rewards.learning_reward`.
    Ending: truncated after `max_steps` steps; never terminated.
    State: `state.State`. A reset is deterministic but for the red agent and the network where these are drawn.
    Legal actions: bool `[actions]`, all that is not known to fail; with `all_legal` everything, as in the challenge.
    Info, of the last step, some of it hidden from blue: base_reward and its parts confidentiality, availability,
        action_cost, isolation_cost f32; hosts_held, hosts_rooted (by red), hosts_isolated, blue_success and
        red_success (0 no, 1 yes, 2 unknown), blue_kind (-1 Sleep and Monitor, else of `actions.KINDS`), blue_host,
        red_kind (of `network.RED_KINDS`), red_host, red_subnet i32 (-1 for none).

    Args:
        red: "bline", "meander", "sleep", "random", "mix" (B_line or Meander), or several of the names: then each
            episode draws one, by `CyborgParams.red_weights`.
        green: whether the green agent makes scans (off in the challenge and its evaluation).
        max_steps: steps per episode; the challenge uses 30, 50 and 100.
        extension: adds Patch, Isolate and Unisolate. Meaning and numbers are choices of this project.
        observation, actions, reward: see above.
        all_legal: see above.
        fixes: quirks of the original to repair, see `rules.FIXES`; none is the challenge, bug for bug.
        network: a `Network`, a `NetworkConfig` (or its fields as a mapping) to draw networks from, or None for the
            challenge's. A network is refused if red cannot get from its foothold to the jewel.
        redraw: with a `NetworkConfig`, draw a new network per episode (in `sample_params`).
        restore_unpatches, allow_isolate_foothold, patch_steps: see `rules.Rules`.

    Raises:
        ValueError: an option is refused.
    """

    frames_per_second = 4.0

    def __init__(
        self,
        red: str | Sequence[str] = "bline",
        green: bool = False,
        max_steps: int = 100,
        extension: bool = False,
        observation: str = "challenge",
        actions: str = "full",
        all_legal: bool = False,
        reward: str = "base",
        fixes: str | Sequence[str] = (),
        network: Network | NetworkConfig | Mapping[str, Any] | None = None,
        redraw: bool = True,
        restore_unpatches: bool = True,
        allow_isolate_foothold: bool = False,
        patch_steps: int = 1,
    ):
        self.rules = make_rules(
            fixes,
            extension=bool(extension),
            restore_unpatches=restore_unpatches,
            allow_isolate_foothold=allow_isolate_foothold,
            patch_steps=patch_steps,
        )
        self.red_names = _red_names(red)
        self.agents = [AGENTS[name] for name in self.red_names]
        self.green, self.max_steps = bool(green), positive_integer("max_steps", max_steps)
        self.reward_mode, self.all_legal = check_reward(reward), all_legal
        if isinstance(network, Mapping):
            network = network_config(network)
        self.config = network if isinstance(network, NetworkConfig) else None
        self.redraw = redraw
        if isinstance(network, NetworkConfig):
            self.network = jax.jit(network.draw, static_argnums=1)(jax.random.key(network.seed), self.rules)
        else:
            self.network = cage2_network(self.rules) if network is None else network
        check_network(self.network)
        self.num_hosts = self.network.num_hosts
        self.observation_kind = check_observation(observation, self.num_hosts)
        self.action_set = make_action_set(actions, self.num_hosts, self.rules.extension, all_legal)
        self._scan_tracked = scan_tracked(self.observation_kind, self.num_hosts)

    @property
    def default_params(self) -> CyborgParams:
        return CyborgParams(
            network=self.network,
            max_steps=jnp.int32(self.max_steps),
            service_cost=jnp.int32(100),
            restore_cost=jnp.int32(10),
            patch_cost=jnp.int32(2),
            removal_bonus=jnp.float32(0.1),
            eviction_bonus=jnp.float32(0.5),
            futility_cost=jnp.float32(0.05),
            exposure_cost=jnp.float32(2.0),
            discount=jnp.float32(0.99),
            red_weights=jnp.ones(len(self.agents), jnp.float32),
        )

    def sample_params(self, key: Array, params: CyborgParams) -> CyborgParams:
        """A new network for the episode, where the environment was given a `NetworkConfig`; consumes `key`."""
        if not self.redraw or self.config is None:
            return params
        return dataclasses.replace(params, network=self.config.draw(key, self.rules))

    def reset(self, key: Array, params: CyborgParams) -> tuple[State, TimeStep]:
        agent = jnp.int32(0)
        if len(self.agents) > 1:
            agent = jax.random.categorical(key, jnp.log(params.red_weights))
        state = self.initial_state(params, agent)
        return state, self.first_time_step(state, params)

    def first_time_step(self, state: State, params: CyborgParams) -> TimeStep:
        """What blue sees of `initial_state`."""
        return self._time_step(state, jnp.float32(0.0), _no_info(), params)

    def initial_state(self, params: CyborgParams, agent: Array | int = 0) -> State:
        """The start of an episode against red agent number `agent`."""
        return initial_state(
            params.network,
            jnp.asarray(agent),
            timed_patches=self.rules.patch_steps > 1,
            track_activity=self.observation_kind == "extended",
        )

    def step(self, key: Array, state: State, action: Array, params: CyborgParams) -> tuple[State, TimeStep]:
        after_blue, blue = self.blue_moves(state, action, params)
        choices, memory = self.sample(key, after_blue, params)
        return self.finish(state, dataclasses.replace(after_blue, memory=memory), blue, choices, params)

    def step_injected(
        self, state: State, action: Array, choices: Choices, params: CyborgParams
    ) -> tuple[State, TimeStep]:
        """A step whose every choice after blue's is given; draws nothing and leaves red's memory alone."""
        after_blue, blue = self.blue_moves(state, action, params)
        return self.finish(state, after_blue, blue, choices, params)

    def blue_moves(self, state: State, action: Array, params: CyborgParams) -> tuple[State, BlueMove]:
        """The first third of a step."""
        action = check_action(action, self.action_set.space)
        action = self.action_set.translate(state, action, params.network, self.rules)
        return apply_blue(state, action, params.network, self.rules)

    def sample(self, key: Array, after_blue: State, params: CyborgParams) -> tuple[Choices, RedMemory]:
        """What red chooses and chance decides, given the state that blue left; consumes `key`."""
        streams = chance.random_words(key)
        proposal = chance.propose(after_blue, self.agents, params.network, self.rules, streams)
        return chance.fill_in(after_blue, proposal, self.agents, streams, params.network, self.green)

    def finish(
        self, before: State, after_blue: State, blue: BlueMove, choices: Choices, params: CyborgParams
    ) -> tuple[State, TimeStep]:
        """The rest of a step: green, red, reward, monitor."""
        network, rules = params.network, self.rules
        greens = [green_traffic(after_blue, choices, network, rules)] if self.green else []
        state, traffic, fooled = apply_red(after_blue, choices, network, rules)
        state = update_belief(state, blue, [*greens, traffic], fooled, jnp.asarray(self._scan_tracked), rules)
        state = dataclasses.replace(state, step=state.step + 1)

        parts = reward_parts(state, blue, params, rules)
        reward = learning_reward(self.reward_mode, parts.base, before, state, blue, params)
        info = {
            "base_reward": parts.base,
            "confidentiality": parts.confidentiality,
            "availability": parts.availability,
            "action_cost": parts.action,
            "isolation_cost": parts.isolation,
            "hosts_held": count(state.held),
            "hosts_rooted": count(state.rooted),
            "hosts_isolated": count(state.isolated),
            "blue_kind": blue.kind,
            "blue_host": jnp.where(blue.kind < 0, -1, blue.host),
            "blue_success": blue.success,
            "red_kind": choices.red_kind,
            "red_host": choices.red_host,
            "red_subnet": choices.red_subnet,
            "red_success": state.success.astype(jnp.int32),
        }
        return state, self._time_step(state, reward, info, params)

    def _time_step(self, state: State, reward: Array, info: dict[str, Array], params: CyborgParams) -> TimeStep:
        return time_step(
            observe(self.observation_kind, state, params, self.rules),
            reward,
            truncated=(state.step >= params.max_steps) | self.time_is_up(state.step),
            legal_actions=self.action_set.mask(state, params.network, self.rules),
            info=info,
        )

    def observation_space(self, params: CyborgParams) -> Space:
        return observation_space(self.observation_kind, self.num_hosts)

    def action_space(self, params: CyborgParams) -> Space:
        return self.action_set.space

    def render(self, state: State, params: CyborgParams | None = None) -> Any:
        """The network as u8 `[height, width, 3]`; where networks are drawn per episode, it needs that of `params`."""
        from envs_jax.security.cyborg.draw import draw

        return draw(state, self.network if params is None else params.network)

    def film(self, played: Played) -> list[Any]:
        """The network after every step, with both sides' last actions and the reward so far."""
        from envs_jax.security.cyborg.draw import film

        return film(played)

    def timeline(self, played: Played) -> Timeline:
        from envs_jax.security.cyborg.story import timeline

        return timeline(played)


def check_action(action: Any, space: Discrete | MultiDiscrete) -> Array:
    """The action as i32; refuses one outside the space where its value is known, that is outside compiled code."""
    if not isinstance(action, Tracer) and not space.contains(np.asarray(action)):
        allowed = f"0 .. {space.num_values - 1}" if isinstance(space, Discrete) else f"below {space.num_values}"
        raise ValueError(f"action {np.asarray(action)} is outside the action space; allowed are integers {allowed}")
    return jnp.asarray(action, jnp.int32)


def _red_names(red: str | Sequence[str]) -> tuple[str, ...]:
    names = MIXTURE if red == "mix" else (red,) if isinstance(red, str) else tuple(red)
    for name in names:
        if name not in AGENTS:
            allowed = ("mix", *AGENTS)
            raise ValueError(f"unknown red agent {name!r}{nearest(name, allowed)} Allowed: {', '.join(allowed)}")
    if not names:
        raise ValueError("red must name at least one agent")
    return names


def _no_info() -> dict[str, Array]:
    zero, none = jnp.float32(0.0), jnp.int32(0)
    return {
        "base_reward": zero,
        "confidentiality": zero,
        "availability": zero,
        "action_cost": zero,
        "isolation_cost": zero,
        "hosts_held": none + 1,
        "hosts_rooted": none + 1,
        "hosts_isolated": none,
        "blue_kind": none - 1,
        "blue_host": none - 1,
        "blue_success": none + UNKNOWN,
        "red_kind": none + SLEEP,
        "red_host": none - 1,
        "red_subnet": none - 1,
        "red_success": none + UNKNOWN,
    }
