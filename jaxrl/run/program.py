"""The compiled programs of one training: first state, a chunk of updates, an evaluation."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp

import envs_jax
from envs_jax import registry
from envs_jax.core import Environment, EnvSpec
from jaxrl import algorithms
from jaxrl.loop import scan_updates
from jaxrl.rollout import Episodes, episodes
from jaxrl.run import sharding
from jaxrl.run.config import ConfigError, RunConfig, shipped_configs
from jaxrl.types import Algorithm, Data, PyTree


def make_env(run: RunConfig) -> tuple[Environment, Any]:
    """The environment of a configuration and its parameters."""
    if run.env.backend != "jax":
        raise ConfigError(
            f"env.backend={run.env.backend!r}: {run.env.name!r} runs on the host, this needs a JAX environment"
        )
    try:
        return envs_jax.make(run.env.name, **run.env.options)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"[env] {error}") from error


def make_algorithm(run: RunConfig, env: Any = None) -> Algorithm:
    """The algorithm of a configuration, built for its environment (or for `env`, an environment or `EnvSpec`)."""
    try:
        return algorithms.find(run.algorithm).make(run.config, _spaces(run) if env is None else env)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _spaces(run: RunConfig) -> Any:
    """The environment, or the `EnvSpec` of one on the host."""
    if run.env.backend == "jax":
        return make_env(run)[0]
    from jaxrl.run.host import HostEnvs

    return HostEnvs(run.env.name, dict(run.env.options), 1).spec


def load_data(run: RunConfig, *, dataset: bool = True) -> Data:
    """What the training reads and never changes; without the data set where only a trained policy is to act.

    Raises:
        ConfigError: a model that `[data]` names cannot be read, or does not fit; see `jaxrl.run.frozen`.
        DataError: the data set of the configuration is missing, damaged or of another environment.
    """
    from jaxrl.run.frozen import load_frozen

    env_params, spec = None, None
    if run.env.backend == "jax":
        env, env_params = make_env(run)
        spec = env.spec(env_params)
    elif dataset and run.data.name:
        spec = _spaces(run)
    datasets = load_run_datasets(run, spec) if dataset and spec else {}
    return Data(env_params, frozen=load_frozen(run, acting=not dataset), **datasets)


def load_run_datasets(run: RunConfig, spec: EnvSpec) -> dict[str, PyTree]:
    """The data sets that `[data]` names, as the fields `dataset` and `expert` of `Data`; see `load_data`.

    A relative path is looked for in the working directory and beside the configurations that come with jaxrl.
    """
    if not run.data.name:
        return {}
    from jaxrl.data.dataset import check_spaces, load_dataset
    from jaxrl.data.files import open_recording
    from jaxrl.data.recording import Recording, first_episodes, joined

    def find(name: str, num_episodes: int) -> Recording:
        recording = open_recording(name, sorted({path.parent for path in shipped_configs().values()}))
        check_spaces(recording, spec, name)
        return first_episodes(recording, num_episodes)

    try:
        recording, found = find(run.data.name, run.data.num_episodes), {}
        if run.data.expert:
            expert = find(run.data.expert, run.data.num_expert_episodes)
            recording = joined(recording, expert) if run.data.mix_expert else recording
            if algorithms.find(run.algorithm).expert:
                found["expert"] = load_dataset(expert, progress=True)
        on_host = run.data.block_steps > 0
        return {"dataset": load_dataset(recording, progress=True, on_host=on_host)} | found
    except ImportError as error:
        raise ConfigError(str(error)) from error


def max_episode_steps(run: RunConfig, env: Environment) -> int:
    """The bound of an evaluation episode; `ConfigError` where neither the configuration nor the environment has one."""
    bound = run.evaluation.max_steps or env.max_steps
    if not bound:
        raise ConfigError(f"evaluation.max_steps must be given: {run.env.name!r} does not bound its episodes")
    return bound


def evaluation_keys(run: RunConfig) -> tuple[jax.Array, jax.Array]:
    """Reset keys `[num_episodes]` and the key of the noise: functions of `evaluation.seed` alone."""
    key_reset, key_noise = jax.random.split(jax.random.key(run.evaluation.seed))
    return jax.random.split(key_reset, run.evaluation.num_episodes), key_noise


def play_evaluation(run: RunConfig, env: Environment, agent: Algorithm, state: PyTree, data: Data) -> Episodes:
    """Plays the evaluation episodes of a configuration; may be traced."""
    assert agent.policy is not None
    return episodes(
        env,
        (agent.start, agent.act),  # type: ignore[arg-type]
        agent.policy(state, data),
        data.env_params,
        *evaluation_keys(run),
        max_episode_steps(run, env),
        deterministic=run.evaluation.deterministic,
    )


def make_program(runs: Sequence[RunConfig], *, batched: bool) -> Any:
    """A `Program`, or its counterpart for environments on the host."""
    if runs[0].env.backend == "jax":
        return Program(runs, batched=batched)
    if batched:
        raise ConfigError("a sweep trains its members in one program: it needs env.backend='jax'")
    from jaxrl.run.host import HostProgram

    return HostProgram(runs, make_algorithm)


class Program:
    """Compiled once per static configuration; with several runs, one program trains them all side by side.

    Args:
        runs: one run, or the members of a sweep group, see `same_program`.
        batched: whether the state leads with a member axis.
    """

    def __init__(self, runs: Sequence[RunConfig], *, batched: bool):
        from jaxrl.run.frozen import load_frozen

        run = runs[0]
        self.run, self.runs, self.batched = run, list(runs), batched
        env, env_params = make_env(run)
        self.agent = make_algorithm(run, env)
        datasets = load_run_datasets(run, env.spec(env_params))
        data_axes = None
        if any(member.env != run.env for member in runs):
            env_params = jax.tree.map(lambda *leaves: jnp.stack(leaves), *[make_env(member)[1] for member in runs])
            data_axes = Data(env_params=0)
        self._dataset = datasets["dataset"] if run.data.block_steps else None
        self.data = self._with_block(Data(env_params, frozen=load_frozen(run), **datasets), 0)
        self.evaluates = self.agent.act is not None
        if self.evaluates:
            max_episode_steps(run, env)
        self.compile_seconds: dict[str, float] = {}
        self._memory: Any = None

        stack: Callable[..., Any] = (lambda *leaves: jnp.stack(leaves)) if batched else (lambda leaf: leaf)
        self.hparams = jax.tree.map(stack, *[member.hparams for member in runs])
        self.keys = jax.tree.map(stack, *[jax.random.key(member.seed) for member in runs])

        def chunk(state: PyTree, hparams: PyTree, data: Data) -> tuple:
            return scan_updates(self.agent, state, hparams, run.chunk, data, run.log.every)

        def evaluation(state: PyTree, data: Data) -> Episodes:
            return play_evaluation(run, env, self.agent, state, data)

        mesh = None if run.num_devices == 1 else sharding.make_mesh(run.num_devices)

        def over(function: Callable[..., Any], axes: tuple) -> Callable[..., Any]:
            """`function` of all members; each device computes its own, so that none waits for another."""
            if not batched:
                return function
            function = jax.vmap(function, axes)
            return function if mesh is None else sharding.split_members(function, mesh, axes)

        init = over(self.agent.init, (0, 0, data_axes))
        self.state_shape = jax.eval_shape(init, self.keys, self.hparams, self.data)
        states, whole = None, None
        if mesh is not None:
            states = sharding.state_sharding(self.state_shape, mesh, members=batched)
            whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
            self.state_shape = jax.tree.map(
                lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
                self.state_shape,
                states,
            )
        place: dict[str, Any] = {} if states is None else {"in_shardings": (states, whole, whole)}
        # A donated state has to leave with the sharding it came with, or the next chunk compiles anew.
        out: dict[str, Any] = {} if states is None else {"out_shardings": (states, None)}
        one: dict[str, Any] = {} if states is None else {"out_shardings": states}
        precision = jax.default_matmul_precision(run.matmul_precision)
        with precision:
            self._init = self._compile("init", jax.jit(init, **one), self.keys, self.hparams, self.data)
            jitted = jax.jit(over(chunk, (0, 0, data_axes)), donate_argnums=0, **place, **out)
            self._chunk = self._compile("update", jitted, self.state_shape, self.hparams, self.data)
        # Compiled when first wanted: the first update does not wait for it.
        self._evaluation = jax.jit(over(evaluation, (0, data_axes)))
        self._evaluate: Future | None = None

    def init(self) -> PyTree:
        """The first state."""
        return self._init.result()(self.keys, self.hparams, self.data)

    def chunk(self, state: PyTree) -> tuple[PyTree, Any]:
        """`run.chunk` updates; `state` is donated. Metrics lead with rows, before them with members if batched."""
        if self._dataset is not None:  # by the counter, so that a run that resumes reads what it would have read
            num_updates = int(jax.device_get(state.num_updates).reshape(-1)[0])
            self.data = self._with_block(self.data, num_updates // self.run.chunk)
        result = self._chunk.result()(state, self.hparams, self.data)
        self.prepare_evaluation()
        return result

    def _with_block(self, data: Data, turn: int) -> Data:
        """`data` with the part of the data set that a chunk reads, where it is swapped."""
        if self._dataset is None:
            return data
        from jaxrl.data.dataset import block

        part = block(self._dataset, self.run.data.block_steps, turn)
        return dataclasses.replace(data, dataset=jax.tree.map(jnp.asarray, part))

    def evaluate(self, state: PyTree) -> Episodes:
        """The evaluation episodes of the configuration."""
        self.prepare_evaluation()
        assert self._evaluate is not None
        return self._evaluate.result()(state, self.data)

    def prepare_evaluation(self) -> None:
        """Starts to compile the evaluation, in the background."""
        if self._evaluate is None and self.evaluates:
            with jax.default_matmul_precision(self.run.matmul_precision):
                self._evaluate = self._compile("evaluation", self._evaluation, self.state_shape, self.data)

    @property
    def memory_bytes(self) -> int:
        """What the chunk program needs: arguments and temporaries."""
        analysis = self._chunk.result().memory_analysis()
        return 0 if analysis is None else analysis.argument_size_in_bytes + analysis.temp_size_in_bytes

    def _compile(self, name: str, jitted: Any, *args: Any) -> Future:
        """Traces now, compiles in a thread of its own: the programs compile side by side."""
        start = time.perf_counter()
        lowered = jitted.lower(*args)

        def work() -> Any:
            compiled = lowered.compile()
            self.compile_seconds[name] = time.perf_counter() - start
            return compiled

        return _COMPILERS.submit(work)


_COMPILERS = ThreadPoolExecutor(max_workers=3, thread_name_prefix="compile")


def same_program(runs: Sequence[RunConfig]) -> bool:
    """Whether one program can train them all: they differ in seed, hyper-parameters and parameters of the environment.

    See `envs_jax.core.Environment.traced_options`.
    """

    def static(run: RunConfig) -> RunConfig:
        env = run.env
        if env.backend == "jax":
            env = dataclasses.replace(env, options=registry.static_options(env.name, env.options))
        return dataclasses.replace(run, seed=0, name="", hparams=None, source={}, env=env)

    return all(static(run) == static(runs[0]) for run in runs)
