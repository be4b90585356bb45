"""Environments that are not JAX: Gymnasium steps them on the host, the algorithm's `act` and `learn` stay compiled.

`learn` gets the batch that `collect` would have made and cannot tell the difference. What learns from a data set is
only evaluated there.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from envs_jax.core import EnvSpec, TimeStep
from jaxrl.loop import reduce_metrics, scan_updates
from jaxrl.rollout import Episodes
from jaxrl.run.config import ConfigError, RunConfig
from jaxrl.types import Algorithm, Batch, Data, EpisodeStats, PyTree, Transition


class HostEnvs:
    """B Gymnasium environments, one NumPy step at a time, with same-step reset and the true final observation.

    Args:
        name: of a registered Gymnasium environment.
        options: its keyword arguments.
        num_envs: B.

    Raises:
        ConfigError: Gymnasium or the environment is missing, or its spaces cannot be used.
    """

    def __init__(self, name: str, options: dict[str, Any], num_envs: int):
        try:
            import gymnasium
            from gymnasium.vector import AutoresetMode

            from envs_jax.adapters.gymnasium import space_of
        except ImportError as error:
            raise ConfigError("env.backend='gymnasium' needs gymnasium: install jaxrl with the extra 'gym'") from error
        mode = {"autoreset_mode": AutoresetMode.SAME_STEP}
        try:
            self.envs = gymnasium.make_vec(name, num_envs, "sync", vector_kwargs=mode, **options)
            spaces = space_of(self.envs.single_observation_space), space_of(self.envs.single_action_space)
        except (gymnasium.error.Error, ValueError, TypeError) as error:
            raise ConfigError(f"[env] {error}") from error
        self.spec, self.num_envs = EnvSpec(*spaces), num_envs

    def reset(self, seed: int) -> TimeStep:
        """Starts B episodes with seeds `seed`, `seed + 1`, ..."""
        observation, _ = self.envs.reset(seed=seed)
        zeros = np.zeros(self.num_envs, bool)
        return self._time_step(observation, np.zeros(self.num_envs), zeros, zeros)

    def step(self, action: np.ndarray) -> tuple[TimeStep, TimeStep]:
        """Plays one step.

        Returns:
            What the step showed (with the true last observation where an episode ended), and where the next one
            begins.
        """
        observation, reward, terminated, truncated, info = self.envs.step(action)
        final = np.array(observation)
        for i in np.flatnonzero(terminated | truncated):
            final[i] = info["final_obs"][i]
        return (self._time_step(values, reward, terminated, truncated) for values in (final, observation))  # type: ignore[return-value]

    def close(self) -> None:
        self.envs.close()

    def _time_step(self, observation: Any, reward: Any, terminated: Any, truncated: Any) -> TimeStep:
        dtype = np.dtype(self.spec.observation_space.dtype)
        reward = np.asarray(reward, np.float32)
        return TimeStep(np.asarray(observation, dtype), reward, np.asarray(terminated), np.asarray(truncated))  # type: ignore[arg-type]


class HostProgram:
    """The counterpart of `Program` for an environment on the host. A resumed run restarts its episodes."""

    batched = False
    evaluates = True

    def __init__(self, runs: Sequence[RunConfig], make_algorithm: Any):
        run = runs[0]
        self.run, self.runs = run, list(runs)
        self.offline = bool(run.data.name)
        self.num_envs = 1 if self.offline else run.config.num_envs
        self.envs = HostEnvs(run.env.name, dict(run.env.options), self.num_envs)
        self.agent: Algorithm = make_algorithm(run, self.envs.spec)
        self.data, self.hparams = Data(), run.hparams
        self.compile_seconds: dict[str, float] = {}
        self.state_shape = jax.eval_shape(self.agent.init, jax.random.key(0), self.hparams, self.data)
        over = jax.vmap(self.agent.act, (None, 0, 0, 0, None))  # type: ignore[arg-type]
        self._act = jax.jit(lambda p, carry, step, key, greedy: over(p, carry, step, jax.random.split(key, step.reward.shape[0]), greedy), static_argnums=4)  # fmt: skip  # noqa: E501
        self._start = jax.jit(self._fresh_carry, static_argnums=2)
        # The state is donated, as in `Program`: a replay buffer would be copied at every update.
        self._learn = jax.jit(self._learn_from, donate_argnums=0)
        self._scan = jax.jit(self._scan_from, donate_argnums=0)
        self._time_step: TimeStep | None = None

    def init(self) -> PyTree:
        begin = time.perf_counter()
        self._load()
        state = jax.jit(self.agent.init)(jax.random.key(self.run.seed), self.hparams, self.data)
        self.compile_seconds["init"] = time.perf_counter() - begin
        return state

    def chunk(self, state: PyTree) -> tuple[PyTree, Any]:
        """`run.chunk` updates: T steps on the host, then one compiled `learn`; or all of them compiled, from data."""
        if self.offline:
            self._load()
            return self._scan(state, self.data)
        rows = []
        for _ in range(self.run.chunk):
            batch = self._collect(state)
            state, metrics = self._learn(state, batch)
            rows.append(jax.device_get(metrics))
        stacked = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
        every = self.run.log.every
        spans = [slice(i, i + every) for i in range(0, len(rows), every)]
        groups = [reduce_metrics({name: jnp.asarray(v[span]) for name, v in stacked.items()}) for span in spans]
        return state, {name: np.stack([group[name] for group in groups]) for name in stacked}

    def evaluate(self, state: PyTree) -> Episodes:
        """One episode in each of `evaluation.num_episodes` environments, seeded alike at every call."""
        settings = self.run.evaluation
        envs = HostEnvs(self.run.env.name, dict(self.run.env.options), settings.num_episodes)
        policy = self._policy(state)
        key, key_start = jax.random.split(jax.random.key(settings.seed))
        carry, step = self._start(policy, key_start, settings.num_episodes), envs.reset(settings.seed)
        returns, lengths = np.zeros(settings.num_episodes, np.float32), np.zeros(settings.num_episodes, np.int32)
        alive, terminated = np.ones(settings.num_episodes, bool), np.zeros(settings.num_episodes, bool)
        t = 0
        while alive.any() and (not settings.max_steps or t < settings.max_steps):
            action, carry, _ = self._act(policy, carry, step, jax.random.fold_in(key, t), settings.deterministic)
            after, step = envs.step(np.asarray(action))
            returns += np.where(alive, after.reward, 0.0)
            lengths += alive
            terminated |= alive & np.asarray(after.terminated)
            alive &= ~np.asarray(after.ended)
            t += 1
        envs.close()
        return Episodes(returns, lengths, terminated, {}, {})  # type: ignore[arg-type]

    def _load(self) -> None:
        """Reads the data set, when a training first needs it: an evaluation does not."""
        if self.offline and self.data.dataset is None:
            from jaxrl.run.program import load_run_datasets

            self.data = Data(**load_run_datasets(self.run, self.envs.spec))

    def _scan_from(self, state: PyTree, data: Data) -> tuple[PyTree, Any]:
        return scan_updates(self.agent, state, self.hparams, self.run.chunk, data, self.run.log.every)

    def _learn_from(self, state: PyTree, batch: Batch) -> tuple[PyTree, Any]:
        assert self.agent.learn is not None
        return self.agent.learn(state, self.hparams, batch, self.data)

    def _collect(self, state: PyTree) -> Batch:
        policy = self._policy(state)
        key = jax.random.fold_in(state.key, 0)
        if self._time_step is None:
            self._time_step = self.envs.reset(self.run.seed)
            self._carry = self._start(policy, jax.random.fold_in(key, 1), self.num_envs)
            self._returns = np.zeros(self.num_envs, np.float32)
            self._discounted, self._lengths = np.zeros_like(self._returns), np.zeros(self.num_envs, np.int32)
        carry, discounted = self._carry, self._discounted.copy()
        sums, steps = np.zeros(3), []
        for t in range(self.run.config.unroll_length):
            before = self._time_step
            key_act, key_start = jax.random.split(jax.random.fold_in(key, t + 2))
            action, self._carry, extras = self._act(policy, self._carry, before, key_act, False)
            after, self._time_step = self.envs.step(np.asarray(action))
            ended = np.asarray(after.ended)
            self._returns += after.reward
            self._discounted = float(self.hparams.discount) * self._discounted + after.reward
            self._lengths += 1
            sums += self._returns[ended].sum(), self._lengths[ended].sum(), ended.sum()
            for array in (self._returns, self._discounted, self._lengths):
                array[ended] = 0
            if ended.any() and jax.tree.leaves(self._carry):
                fresh = self._start(policy, key_start, self.num_envs)
                self._carry = jax.tree.map(
                    lambda new, old, ended=ended: jnp.where(ended.reshape(-1, *[1] * (old.ndim - 1)), new, old),
                    fresh,
                    self._carry,
                )
            steps.append(
                Transition(before.observation, action, after.reward, after.terminated, after.truncated,
                           after.observation, extras=extras)
            )  # fmt: skip
        stats = EpisodeStats(jnp.float32(sums[0]), jnp.float32(sums[1]), jnp.int32(sums[2]))
        return Batch(jax.tree.map(lambda *rows: np.stack(rows), *steps), carry, discounted, stats)  # type: ignore[arg-type]

    def _policy(self, state: PyTree) -> PyTree:
        assert self.agent.policy is not None
        return self.agent.policy(state, self.data)

    def _fresh_carry(self, policy: PyTree, key: jax.Array, num_envs: int) -> PyTree:
        assert self.agent.start is not None
        return jax.vmap(self.agent.start, (None, 0))(policy, jax.random.split(key, num_envs))
