"""What a deployed policy computes, and recorded observations to check it on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from envs_jax.core import Environment, EnvSpec, TimeStep, time_step
from envs_jax.spaces import Box, Discrete, MultiDiscrete, Space
from jaxrl.parts.roles import Mixture, mix, take
from jaxrl.rollout import Policy, start_rollout, unroll
from jaxrl.types import Algorithm, Array, Data, PyTree

NUM_STEPS, NUM_ENVS = 32, 32  # T and B of what is recorded

# (observation, legal_actions, carry leaves) -> (action, carry leaves); one environment, no batch axis
Program = Callable[[Array, Array | None, tuple[Array, ...]], tuple[Array, tuple[Array, ...]]]


def record_observations(
    agent: Algorithm, policy_params: PyTree, state: PyTree, data: Data, spec: Environment | EnvSpec | None
) -> tuple[TimeStep, dict[str, np.ndarray]]:
    """Observations that the policy meets, as `export_policy` describes.

    Returns:
        A time step of zeros, one environment, as `act` takes it; and `observation` `[T, B, ...]` with, where there are
        masks, `legal_actions` `[T, B, N]`.

    Raises:
        ValueError: there is nothing to record from.
    """
    key = jax.random.key(0)
    if isinstance(spec, EnvSpec):
        template, rows = _sample(spec)
    elif spec is not None:
        env, env_params = spec, spec.default_params if data.env_params is None else data.env_params
        policy: Policy = (agent.start, agent.act)  # type: ignore[assignment]

        @jax.jit
        def play(policy_params: PyTree, key: Array) -> TimeStep:
            key_start, key_unroll = jax.random.split(key)
            rollout = start_rollout(env, policy, policy_params, env_params, key_start, NUM_ENVS)
            _, batch = unroll(env, policy, policy_params, env_params, rollout, key_unroll, NUM_STEPS)
            steps = batch.transitions
            return dataclasses.replace(
                rollout.time_step, observation=steps.observation, legal_actions=steps.legal_actions
            )

        template = jax.eval_shape(env.reset, key, env_params)[1]
        rows = play(policy_params, key)
    elif getattr(state, "rollout", None) is not None:
        rows = state.rollout.time_step
        template = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), rows)
        rows = jax.tree.map(_as_sequences, rows)
    else:
        raise ValueError("spec must be given, the environment or its spaces: this state holds no environments")
    template = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), template)
    if not isinstance(rows.observation, jax.Array | np.ndarray):
        raise ValueError("only policies whose observation is one array can be exported")
    recorded = {"observation": rows.observation, "legal_actions": rows.legal_actions}
    return template, {name: np.asarray(value) for name, value in recorded.items() if value is not None}


def deployed(agent: Algorithm, described: Mapping[str, Any]) -> tuple[Algorithm, PyTree]:
    """A mixture as it is exported: of networks alone, its member a part of the carry that the caller sets.

    Args:
        agent: the live policy.
        described: what `agent.export` gave: `mixture`, a `Mixture` of M members, and `policy`, `(start, act)` of one.

    Raises:
        ValueError: members begin episodes differently.
    """
    mixture, (start_member, act_member) = described["mixture"], described["policy"]
    if any(
        jax.tree.leaves(used_inputs(lambda members: start_member(take(members, 0), jax.random.key(0)), mixture.members))
    ):
        raise ValueError("a mixture whose members begin episodes differently cannot be exported")

    def start(mixture: Mixture, key: Array) -> tuple[Array, PyTree]:
        return jnp.zeros((), jnp.int32), start_member(take(mixture.members, 0), key)

    return agent._replace(start=start, act=mix((start_member, act_member))[1]), mixture


def trim(agent: Algorithm, policy_params: PyTree, template: TimeStep) -> tuple[Program, tuple[Array, ...], bool]:
    """The deterministic policy, reduced to what decides actions.

    Of the carry, only the leaves that reach an action now or later are kept: a critic's memory, and with it the
    critic, stays behind.

    Returns:
        The program, the kept leaves of an episode's first carry, and whether the program reads `legal_actions`.

    Raises:
        ValueError: acting takes more than observation, mask and carry: random numbers, a reward, ...
    """
    key = jax.random.key(0)
    if any(jax.tree.leaves(used_inputs(lambda key: agent.start(policy_params, key), key))):  # type: ignore[misc]
        raise ValueError("a policy that begins episodes at random cannot be exported")
    first, structure = jax.tree.flatten(agent.start(policy_params, key))  # type: ignore[misc]
    others = dataclasses.replace(template, observation=None, legal_actions=None)

    def act(observation: Array, legal_actions: Array | None, leaves: list[Array], others: TimeStep, key: Array):
        time_step = dataclasses.replace(others, observation=observation, legal_actions=legal_actions)
        carry = structure.unflatten(leaves)
        action, carry, _ = agent.act(policy_params, carry, time_step, key, True)  # type: ignore[misc]
        return action, jax.tree.leaves(carry)

    kept: list[int] = []
    while True:  # a leaf is needed if the action depends on it, or a needed leaf's next value does

        def outputs(*inputs: Any, kept: list[int] = kept) -> tuple[Array, list[Array]]:
            action, leaves = act(*inputs)
            return action, [leaves[i] for i in kept]

        used = used_inputs(outputs, template.observation, template.legal_actions, first, others, key)
        needed = [i for i, mark in enumerate(used[2]) if mark]
        if needed == kept:
            break
        kept = needed

    unavailable = [jax.tree_util.keystr(path) for path, mark in jax.tree_util.tree_leaves_with_path(used[3]) if mark]
    unavailable += ["random numbers"] if used[4] else []
    if unavailable:
        raise ValueError(f"a policy that acts on {', '.join(unavailable)} cannot be exported")

    def program(
        observation: Array, legal_actions: Array | None, carry: tuple[Array, ...]
    ) -> tuple[Array, tuple[Array, ...]]:
        leaves = list(first)
        for i, leaf in zip(kept, carry, strict=True):
            leaves[i] = leaf
        action, leaves = act(observation, legal_actions, leaves, others, key)
        return action, tuple(leaves[i] for i in kept)

    return program, tuple(first[i] for i in kept), bool(used[1])


def used_inputs(function: Callable[..., Any], *inputs: PyTree) -> PyTree:
    """A tree like `inputs` that says of each leaf whether any output depends on it."""
    leaves, structure = jax.tree.flatten(inputs)
    # Lowering drops what is computed for nothing and names the arguments that are left.
    kept = set(export.export(jax.jit(function))(*inputs).module_kept_var_idx)
    return structure.unflatten([i in kept for i in range(len(leaves))])


def live_actions(
    agent: Algorithm,
    policy_params: PyTree,
    template: TimeStep,
    recorded: dict[str, np.ndarray],
    slots: np.ndarray | None = None,
) -> np.ndarray:
    """What the untrimmed policy does at the recorded observations, in full f32 precision; `[T, B, ...]`.

    Of a mixture, `slots` i32 `[B]` says which member plays in each environment.
    """
    start, act, key = agent.start, agent.act, jax.random.key(0)

    @jax.jit
    def replay(policy_params: PyTree, rows: dict[str, Array]) -> Array:
        def step(carry: PyTree, row: dict[str, Array]) -> tuple[PyTree, Array]:
            def one(carry: PyTree, row: dict[str, Array]) -> tuple[PyTree, Array]:
                time_step = dataclasses.replace(template, **row)
                action, carry, _ = act(policy_params, carry, time_step, key, True)  # type: ignore[misc]
                return carry, action

            return jax.vmap(one)(carry, row)

        keys = jax.random.split(key, rows["observation"].shape[1])
        carry: Any = jax.vmap(start, (None, 0))(policy_params, keys)  # type: ignore[type-var]
        carry = carry if slots is None else (jnp.asarray(slots), carry[1])
        return jax.lax.scan(step, carry, rows)[1]

    with jax.default_matmul_precision("highest"):
        return np.asarray(replay(policy_params, recorded))


def _sample(spec: EnvSpec) -> tuple[TimeStep, TimeStep]:
    """A time step of zeros and random observations, masks included if actions are discrete, `[T, B]`."""
    generator = np.random.default_rng(0)  # on the host: compiling JAX's generators takes longer than all the rest
    space, critic, legal = spec.action_space, spec.critic_observation_space, None
    if isinstance(space, Discrete | MultiDiscrete):
        legal = generator.random((NUM_STEPS, NUM_ENVS, space.mask_size)) < 0.6
        # One action of each component is legal for certain.
        sizes = np.atleast_1d(space.num_values)
        choice = _draw(space, generator).reshape(NUM_STEPS, NUM_ENVS, -1) + np.cumsum(sizes) - sizes
        np.put_along_axis(legal, choice, True, axis=-1)
    template = time_step(
        np.zeros(spec.observation_space.shape, spec.observation_space.dtype),
        legal_actions=None if legal is None else legal[0, 0],
        critic_observation=None if critic is None else np.zeros(critic.shape, critic.dtype),
    )
    observation = _draw(spec.observation_space, generator)
    return template, dataclasses.replace(template, observation=observation, legal_actions=legal)


def _draw(space: Space, generator: np.random.Generator) -> np.ndarray:
    """Values of the space `[T, B, ...]`: uniform where bounded, standard normal elsewhere."""
    shape = (NUM_STEPS, NUM_ENVS, *space.shape)
    if not isinstance(space, Box):
        return generator.integers(0, space.num_values, shape, np.int32)
    if np.issubdtype(space.dtype, np.integer):
        return generator.integers(space.low, space.high, shape, space.dtype, endpoint=True)
    finite = np.isfinite(space.low) & np.isfinite(space.high)
    uniform = generator.uniform(np.where(finite, space.low, 0.0), np.where(finite, space.high, 1.0), shape)
    normal = np.clip(generator.normal(size=shape), space.low, space.high)
    return np.where(finite, uniform, normal).astype(space.dtype)


def _as_sequences(leaf: Array) -> Array:
    """`[B, ...]` as `[T, B / T, ...]`, so that a memory is used too; the last few may be left out."""
    num_steps = min(NUM_STEPS, max(1, leaf.shape[0] // 2))
    num_rows = min(leaf.shape[0] // num_steps, NUM_ENVS)
    return leaf[: num_steps * num_rows].reshape(num_steps, num_rows, *leaf.shape[1:])
