"""`check_environment`: what every environment promises, checked. Public, so that your own can be held to it too."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.core import Array, Environment, EnvParams, PyTree, TimeStep
from envs_jax.spaces import Box, Discrete, Space

NUM_ENVS = 4  # B: episodes played side by side
NUM_COMPARED = 32  # first steps that are held against a loop and played again
TOLERANCE = 1e-4  # of floats between two compilations of one function, relative and absolute


def check_environment(
    env: Environment, params: EnvParams | None = None, *, num_steps: int = 1_000, key: Array | None = None
) -> None:
    """Checks the environment protocol while playing four episodes with random legal actions.

    - `reset` and `step` return equal trees, shapes and dtypes, without weak types, with axis A for several agents;
      `sample_params` keeps the tree of the parameters, and all of it can be vmapped.
    - What is emitted lies in the spaces and is finite. Some action is always legal. The reward of a reset is 0.
    - `jit` equals eager, `vmap` equals a loop, one trace serves all steps, the same keys give the same episode.
    - No episode begins ended, or goes on for more than `env.max_steps` steps.

    Args:
        env: the environment.
        params: its parameters; the default ones if None.
        num_steps: the most steps played: of an episode that lasts longer, the end is not seen.
        key: consumed; `jax.random.key(0)` if None.

    Raises:
        AssertionError: names the environment and what it violates.

    Example:
        >>> import envs_jax
        >>> check_environment(*envs_jax.make("pendulum"))
    """
    params = env.default_params if params is None else params
    try:
        check_structure(env, params)
        _Player(env, params, jax.random.key(0) if key is None else key).check(num_steps)
    except AssertionError as error:
        raise AssertionError(f"{type(env).__name__}: {error}") from error


def check_structure(env: Environment, params: EnvParams) -> None:
    """The part of `check_environment` that runs nothing: trees, shapes, dtypes and weak types."""
    key = jax.random.key(0)
    agents = (env.num_agents,) if env.num_agents > 1 else ()
    _require(not env.roles or len(env.roles) == env.num_agents, f"num_agents is {env.num_agents}, roles {env.roles}")

    abstract_params = jax.eval_shape(lambda tree: tree, params)
    _require_strong("params", abstract_params)
    _require_same("sample_params", jax.eval_shape(env.sample_params, key, params), "its argument", abstract_params)

    state, first = jax.eval_shape(env.reset, key, params)
    _require(isinstance(first, TimeStep), f"reset must return (state, TimeStep), its second is {type(first).__name__}")
    _require_strong("state", state)
    _require_strong("time_step", first)

    _require_leaf("terminated", first.terminated, (), jnp.bool_)
    _require_leaf("truncated", first.truncated, (), jnp.bool_)
    _require_leaf("reward", first.reward, agents, jnp.float32)
    for name, seen_space in _observation_spaces(env, params):
        _require_leaf(name, getattr(first, name), agents + seen_space.shape, seen_space.dtype)
    if env.critic_observation_space(params) is None:
        _require(first.critic_observation is None, "a critic_observation needs a critic_observation_space")
    space = env.action_space(params)
    if first.legal_actions is not None:
        if isinstance(space, Box):
            raise AssertionError("legal_actions must be None where actions are continuous")
        _require_leaf("legal_actions", first.legal_actions, (*agents, space.mask_size), jnp.bool_)
    for path, leaf in jax.tree_util.tree_leaves_with_path(first.info):
        name = f"info{jax.tree_util.keystr(path)}"
        _require(leaf.shape[: len(agents)] == agents, f"{name} must lead with {agents}, not be {_describe(leaf)}")

    action = jax.ShapeDtypeStruct(agents + space.shape, space.dtype)
    _require_same("step", jax.eval_shape(env.step, key, state, action, params), "reset", (state, first))


class _Player:
    """Plays B episodes with two programs. In each a loop stands beside `vmap`: compiling is what this check costs."""

    def __init__(self, env: Environment, params: EnvParams, key: Array):
        self.env, self.params, self.key = env, params, key
        self.action_space = env.action_space(params)
        self.observed = dict(_observation_spaces(env, params))
        self.traces: list[str] = []
        self.jitted_reset, self.jitted_step = jax.jit(self.reset), jax.jit(self.step)

    def reset(self, key: Array, params: EnvParams) -> tuple[EnvParams, PyTree, PyTree]:
        self.traces.append("reset")
        keys = jax.random.split(key, (2, NUM_ENVS))
        drawn = jax.vmap(self.env.sample_params, (0, None))(keys[0], params)
        inputs = (keys[1], drawn)
        return drawn, jax.vmap(self.env.reset)(*inputs), jax.lax.map(lambda x: self.env.reset(*x), inputs)

    def step(self, key: Array, number: int, state: PyTree, action: Array, params: EnvParams) -> tuple[PyTree, PyTree]:
        self.traces.append("step")
        keys = jax.random.split(jax.random.fold_in(key, number), NUM_ENVS)
        inputs = (keys, state, action, params)
        return jax.vmap(self.env.step)(*inputs), jax.lax.map(lambda x: self.env.step(*x), inputs)

    def play(self, num_steps: int) -> tuple[EnvParams, list[PyTree], list[np.ndarray]]:
        """Plays and checks; returns the parameters, and of the first steps the (state, time step) and the action."""
        generator = np.random.default_rng(0)
        drawn, batched, looped = self.jitted_reset(self.key, self.params)
        alive, result = np.ones(NUM_ENVS, bool), _host(batched)
        self.check_emitted("reset", result[1])
        _require_equal("reset under vmap", result, "a loop over reset", _host(looped))
        _require(not result[1].ended.any(), "an episode has ended at its reset")
        _require(not result[1].reward.any(), f"the reward of a reset must be 0, not {result[1].reward}")
        results, actions = [result], []
        for number in range(1, num_steps + 1):
            action = self.random_actions(generator, result[1].legal_actions)
            batched, looped = self.jitted_step(self.key, number, batched[0], action, drawn)
            result = _host(batched)
            self.check_emitted(f"step {number}", _rows(result[1], alive))
            if number <= NUM_COMPARED:
                name, other = f"step {number} under vmap", f"a loop over step {number}"
                _require_equal(name, _rows(result, alive), other, _rows(_host(looped), alive))
                results.append(result)
                actions.append(action)
            alive &= ~result[1].ended
            if limit := self.env.max_steps:
                _require(number < limit or not alive.any(), f"an episode outlives max_steps = {limit}")
            if not alive.any():
                break
        return drawn, results, actions

    def check(self, num_steps: int) -> None:
        drawn, results, actions = self.play(num_steps)
        for number, again in enumerate(self.play(len(actions))[1]):
            _require_equal(f"time step {number}", results[number], "the same episode played again", again, 0.0)
        for name in ("reset", "step"):
            count = self.traces.count(name)
            _require(count == 1, f"{name} was traced {count} times: its output does not fit its input")

        # The first episode once more, without jit.
        keys = jax.random.split(self.key, (2, NUM_ENVS))
        drawn = _rows(drawn, 0)
        state, time_step = self.env.reset(keys[1, 0], drawn)
        _require_equal("reset under jit", _rows(results[0], 0), "reset without jit", _host((state, time_step)))
        if actions:
            key = jax.random.split(jax.random.fold_in(self.key, 1), NUM_ENVS)[0]
            stepped = self.env.step(key, state, jnp.asarray(actions[0][0]), drawn)
            _require_equal("step under jit", _rows(results[1], 0), "step without jit", _host(stepped))

    def check_emitted(self, name: str, time_step: TimeStep) -> None:
        """Checks what a reset or step of some episodes showed; every leaf leads with these."""
        for path, leaf in jax.tree_util.tree_leaves_with_path(time_step):
            if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
                raise AssertionError(f"{name}: time_step{jax.tree_util.keystr(path)} is not finite: {leaf}")
        for field, space in self.observed.items():
            observations = getattr(time_step, field).reshape(-1, *space.shape)
            outside = [observation for observation in observations if not space.contains(observation)]
            _require(not outside, f"{name}: {field} {outside[:1]} is not in {space}")
        if time_step.legal_actions is not None:
            parts = _split(np.asarray(time_step.legal_actions), self.action_space)
            _require(all(part.any(-1).all() for part in parts), f"{name}: no action is legal")

    def random_actions(self, generator: np.random.Generator, legal_actions: np.ndarray | None) -> np.ndarray:
        """Uniform over the legal actions, `[B, *shape]` or `[B, A, *shape]`."""
        space = self.action_space
        lead = (NUM_ENVS, self.env.num_agents) if self.env.num_agents > 1 else (NUM_ENVS,)
        if isinstance(space, Box):
            finite = np.isfinite(space.low) & np.isfinite(space.high)
            low, high = np.where(finite, space.low, -1.0), np.where(finite, space.high, 1.0)
            return generator.uniform(low, high, lead + space.shape).astype(space.dtype)
        scores = generator.random((*lead, space.mask_size))
        if legal_actions is not None:
            scores = np.where(legal_actions, scores, -1.0)
        chosen = [part.argmax(-1) for part in _split(scores, space)]
        return np.stack(chosen, -1).astype(space.dtype).reshape(lead + space.shape)


def _observation_spaces(env: Environment, params: EnvParams) -> Iterator[tuple[str, Space]]:
    yield "observation", env.observation_space(params)
    critic_space = env.critic_observation_space(params)
    if critic_space is not None:
        yield "critic_observation", critic_space


def _split(array: np.ndarray, space: Space) -> list[np.ndarray]:
    """The parts `[..., num_values]` of a mask `[..., mask_size]` that belong to each component of an action."""
    assert not isinstance(space, Box)
    sizes = (space.num_values,) if isinstance(space, Discrete) else space.num_values
    return np.split(array, np.cumsum(sizes)[:-1], axis=-1)


def _host(tree: PyTree) -> PyTree:
    """NumPy copies; typed keys as their numbers."""

    def plain(leaf: Array) -> Array:
        return jax.random.key_data(leaf) if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf

    return jax.device_get(jax.tree.map(plain, tree))


def _rows(tree: PyTree, rows: np.ndarray | int) -> PyTree:
    """Some of the B episodes, or one."""
    return jax.tree.map(lambda leaf: leaf[rows], tree)


def _describe(leaf: Any) -> str:
    if not hasattr(leaf, "dtype"):
        return repr(leaf)
    weak = "weakly typed " if getattr(leaf, "weak_type", False) else ""
    return f"{weak}{leaf.dtype}{list(leaf.shape)}"


def _require(condition: Any, message: str) -> None:
    if not condition:
        raise AssertionError(message)


def _require_leaf(name: str, leaf: Any, shape: tuple[int, ...], dtype: Any) -> None:
    right = getattr(leaf, "shape", None) == shape and leaf.dtype == dtype
    _require(right, f"{name} must be {np.dtype(dtype)}{list(shape)}, not {_describe(leaf)}")


def _require_strong(name: str, tree: PyTree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        message = f"{name}{jax.tree_util.keystr(path)} must be an array with an explicit dtype, not {_describe(leaf)}"
        _require(not leaf.weak_type, message)


def _require_same(name: str, tree: PyTree, other_name: str, other: PyTree) -> None:
    """Equal trees, shapes, dtypes and weak types."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    other_leaves, other_structure = jax.tree_util.tree_flatten_with_path(other)
    _require(structure == other_structure, f"{name} returns {structure}, unlike {other_name}: {other_structure}")
    for (path, leaf), (_, other_leaf) in zip(leaves, other_leaves, strict=True):
        where, mine, its = jax.tree_util.keystr(path), _describe(leaf), _describe(other_leaf)
        _require(mine == its, f"{name} returns {mine} at {where}, unlike {other_name}: {its}")


def _require_equal(name: str, tree: PyTree, other_name: str, other: PyTree, tolerance: float = TOLERANCE) -> None:
    """Equal numbers; floats to `tolerance`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for (path, leaf), other_leaf in zip(leaves, jax.tree.leaves(other), strict=True):
        floating = np.issubdtype(leaf.dtype, np.floating)
        same = np.allclose(leaf, other_leaf, tolerance, tolerance, equal_nan=True) if floating else leaf == other_leaf
        if not np.all(same):
            where = jax.tree_util.keystr(path)
            raise AssertionError(f"{name} differs from {other_name} at {where}: {leaf} and {other_leaf}")
