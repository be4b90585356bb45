"""Brax's locomotion tasks as environments of this project. Needs brax, but nothing of its training code."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs_jax.core import Array, Environment, EnvParams, PyTree, TimeStep, positive_integer, time_step
from envs_jax.registry import nearest
from envs_jax.spaces import Box

TASKS = ("hopper", "walker2d", "halfcheetah")
PHYSICS = ("spring", "generalized", "positional")


@struct.dataclass
class State:
    brax: PyTree  # brax's own state: physics, last observation, reward and metrics
    step: Array  # i32 []; steps played


class Brax(Environment[State, EnvParams]):
    """One of brax's tasks: run forward without falling (hopper, walker2d), or just forward (halfcheetah).

    Observation: f32 [11] (hopper) or [17]: positions without the distance run (m, rad), then velocities clipped by
        brax to +-10 (m/s, rad/s).
    Action: f32 [3] (hopper) or [6], the torques of the joints in [-1, 1]; what lies outside is clipped.
    Reward: f32, speed forward (m/s), plus 1 for a healthy step (hopper, walker2d), less a cost of the torques. `info`
        has its parts, by brax's names.
    Ending: terminated where brax says "done": the torso is too low or too bent (never for halfcheetah). Truncated
        after `max_steps` steps.

    Brax's wrappers, which reset and repeat, are not used: the last observation of an episode is the true one.

    Args:
        task: "hopper", "walker2d" or "halfcheetah".
        physics: brax calls it the backend: "spring" (fast), "generalized" (closest to MuJoCo) or "positional".
        max_steps: the time limit.

    Raises:
        ImportError: brax is not installed.
        ValueError: an unknown task or physics.

    Example:
        >>> env, params = envs_jax.make("brax-hopper", physics="spring")
    """

    def __init__(self, task: str = "hopper", physics: str = "spring", max_steps: int = 1000):
        for name, value, allowed in (("task", task, TASKS), ("physics", physics, PHYSICS)):
            if value not in allowed:
                raise ValueError(
                    f"{name} must be one of {', '.join(allowed)}, got {value!r}{nearest(str(value), allowed)}"
                )
        self.max_steps = positive_integer("max_steps", max_steps)
        with _calling_brax():
            self._task = _make_task(task, physics)
        self.frames_per_second = 1.0 / float(self._task.dt)
        self._size = jax.eval_shape(self._begin, jax.random.key(0)).obs.shape[0]

    @property
    def default_params(self) -> EnvParams:
        return EnvParams()

    def reset(self, key: Array, params: EnvParams) -> tuple[State, TimeStep]:
        state = State(self._begin(key), jnp.zeros((), jnp.int32))
        return state, self._show(state)

    def step(self, key: Array, state: State, action: Array, params: EnvParams) -> tuple[State, TimeStep]:
        # Brax updates the dictionary of metrics in the state that it is given.
        before = state.brax.replace(metrics=dict(state.brax.metrics))
        with _calling_brax():
            after = self._task.step(before, jnp.clip(action, -1.0, 1.0))
        state = State(_typed_like(after, state.brax), state.step + 1)
        return state, self._show(state)

    def observation_space(self, params: EnvParams) -> Box:
        return Box(-np.inf, np.inf, (self._size,))

    def action_space(self, params: EnvParams) -> Box:
        return Box(-1.0, 1.0, (self._task.action_size,))

    def _begin(self, key: Array) -> PyTree:
        with _calling_brax():
            state = self._task.reset(key)
        return _typed_like(state, state)

    def _show(self, state: State) -> TimeStep:
        shown = state.brax
        return time_step(
            shown.obs, shown.reward, shown.done > 0.5, self.time_is_up(state.step), info=dict(shown.metrics)
        )


def _typed_like(tree: PyTree, other: PyTree) -> PyTree:
    """Every leaf as an array of the dtype that `other` has there: brax leaves numbers and weak types behind."""
    return jax.tree.map(lambda leaf, like: jnp.asarray(leaf, jnp.result_type(like)), tree, other)


@contextlib.contextmanager
def _calling_brax() -> Iterator[None]:
    """Brax promotes ranks, warns of its own future and of MJX's, and prints which optional libraries are missing."""
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _make_task(task: str, physics: str) -> Any:
    """Brax's environment without wrappers."""
    try:
        import mujoco
        from brax import envs
    except ImportError as error:
        raise ImportError("brax-* environments need brax: pip install 'brax>=0.14.2'") from error
    # MuJoCo's compiler warns, past Python's own warnings, of an attribute in brax's model files.
    warnings_of: Any = mujoco  # its type stubs lack these two functions
    told = warnings_of.get_mju_user_warning()
    warnings_of.set_mju_user_warning(lambda text: None)
    try:
        return envs.get_environment(task, backend=physics)
    finally:
        warnings_of.set_mju_user_warning(told)
