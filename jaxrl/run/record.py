"""Data production: a policy plays, and what happens becomes a recording that says where it comes from."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import envs_jax
from envs_jax.core import Environment, TimeStep, draw_index
from envs_jax.registry import resolve
from envs_jax.spaces import Discrete
from jaxrl.data.recording import Episode, Header, Recording, from_episodes
from jaxrl.rollout import Policy, episodes
from jaxrl.run.checkpoint import named_leaves
from jaxrl.run.config import ConfigError
from jaxrl.run.folder import versions
from jaxrl.run.program import load_data, make_algorithm, make_env
from jaxrl.run.runner import find_checkpoint, load_state
from jaxrl.types import Array, PyTree, no_carry

BATCH = 64  # episodes that are played side by side
RANDOM_EPISODES, EXPERT_EPISODES = 1000, 100  # of the reference scores


@dataclasses.dataclass(frozen=True)
class Player:
    """A policy in its environment."""

    env: Environment
    env_params: Any
    policy: Policy
    policy_params: PyTree
    facts: Mapping[str, Any]  # environment and policy, for the header

    def play(self, reset_keys: Array, key: Array, max_steps: int, deterministic: bool, record: Any = None) -> Any:
        """`rollout.episodes` of this policy."""
        return episodes(
            self.env, self.policy, self.policy_params, self.env_params, reset_keys, key, max_steps,
            deterministic=deterministic, record=record,
        )  # fmt: skip


def trained_player(run_dir: str | Path) -> Player:
    """The policy of a run folder (its best checkpoint) or of one checkpoint, in the environment of the run."""
    folder, checkpoint = find_checkpoint(run_dir)
    state, run = load_state(checkpoint)
    env, env_params = make_env(run)
    agent: Any = make_algorithm(run, env)
    policy_params = jax.jit(agent.policy)(state, load_data(run, dataset=False))
    facts = {
        "environment": run.env.name,
        "environment_options": dict(run.env.options),
        "algorithm_name": run.algorithm,
        "policy": f"{folder.path.resolve().name}/{checkpoint.name}",
        "policy_hash": policy_hash(policy_params),
    }
    return Player(env, env_params, (agent.start, agent.act), policy_params, facts)


def scripted_player(env_name: str, options: Mapping[str, Any], policy: str) -> Player:
    """A policy that was not trained here.

    Args:
        env_name: a registered environment.
        options: of the environment.
        policy: "random" (uniform over legal actions), or `"package.module:function"`, a function
            `(env, env_params) -> (start, act, policy_params)` with `start` and `act` as in `jaxrl.types.Algorithm`.

    Raises:
        ConfigError: an unknown environment, option or policy.
    """
    try:
        env, env_params = envs_jax.make(env_name, **options)
        start, act, params = (random_policy if policy == "random" else resolve(policy))(env, env_params)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    facts = {"environment": env_name, "environment_options": dict(options), "algorithm_name": policy}
    facts |= {"policy": policy, "policy_hash": policy_hash(params)}
    return Player(env, env_params, (start, act), params, facts)


def random_policy(env: Environment, env_params: Any) -> tuple[Any, Any, PyTree]:
    """`(start, act, policy_params)` of uniform actions; legal ones where a mask is shown."""
    space = env.action_space(env_params)

    def act(policy_params: PyTree, carry: PyTree, time_step: TimeStep, key: Array, deterministic: bool) -> tuple:
        del policy_params, deterministic
        if isinstance(space, Discrete) and time_step.legal_actions is not None:
            return draw_index(key, time_step.legal_actions.astype(jnp.float32)), carry, {}
        return space.sample(key), carry, {}

    return no_carry, act, ()


def record(
    player: Player,
    num_episodes: int,
    *,
    num_steps: int = 0,
    seed: int = 0,
    deterministic: bool = False,
    max_steps: int = 0,
    expert: Player | None = None,
) -> Recording:
    """Plays and keeps whole episodes.

    Episode i depends on `seed` and i alone, whatever `num_episodes` is, and is none of an evaluation's.

    Args:
        player: who plays.
        num_episodes: how many.
        num_steps: go on until there are so many steps too; the last episode is whole.
        seed: of resets, noise and actions.
        deterministic: the most probable action, or a sampled one.
        max_steps: a longer episode is cut and counts as truncated; 0: the environment's own bound.
        expert: adds its local `reference_scores`.

    Raises:
        ConfigError: several agents play, nothing bounds the episodes, or `num_episodes` is not positive.
    """
    env, bound = player.env, max_steps or player.env.max_steps
    if env.num_agents != 1:
        raise ConfigError("what one agent does can be recorded: choose a role of the environment and its opponents")
    if not bound:
        raise ConfigError("max_steps must be given: the environment does not bound its episodes")
    if num_episodes < 1:
        raise ConfigError(f"the number of episodes must be at least 1, got {num_episodes}")
    key_reset, key_noise, _ = recording_keys(seed)

    def keep(state: PyTree, before: TimeStep, action: Array, after: TimeStep, extras: PyTree) -> PyTree:
        del state, extras
        return before.observation, action, after.reward, after.terminated, after.truncated, after.observation

    batch = BATCH if num_steps else min(num_episodes, BATCH)

    @jax.jit
    def play(first: Array) -> Any:
        reset_keys = jax.vmap(jax.random.fold_in, (None, 0))(key_reset, first + jnp.arange(batch))
        return player.play(reset_keys, jax.random.fold_in(key_noise, first), bound, deterministic, keep)

    kept: list[Episode] = []
    steps = 0
    while len(kept) < num_episodes or steps < num_steps:
        played = jax.device_get(play(jnp.int32(len(kept))))
        for i, length in enumerate(played.episode_length):
            if len(kept) < num_episodes or steps < num_steps:
                kept.append(cut_out(played.record, i, int(length)))
                steps += int(length)
    returns = [episode.episode_return for episode in kept]
    facts = dict(player.facts) | {
        "environment_version": env.version,
        "seed": seed,
        "deterministic": deterministic,
        "mean_return": float(np.mean(returns)),
        "median_return": float(np.median(returns)),
        "versions": versions(),
    }
    if expert is not None:
        facts |= reference_scores(expert, seed, max_steps)
    spec = env.spec(player.env_params)
    return from_episodes(kept, Header(spec.observation_space, spec.action_space, facts))


def reference_scores(expert: Player, seed: int, max_steps: int) -> dict[str, float]:
    """The local scores 0 and 100: mean returns of 1,000 episodes of uniform actions and of 100 of the expert's best.

    Args:
        expert: whose deterministic episodes count.
        seed: of the episodes.
        max_steps: a longer episode is cut; 0: the environment's own bound.
    """
    key, bound = recording_keys(seed)[2], max_steps or expert.env.max_steps or 0
    start, act, params = random_policy(expert.env, expert.env_params)
    random = dataclasses.replace(expert, policy=(start, act), policy_params=params)
    return {
        "ref_min_score": mean_return(random, RANDOM_EPISODES, key, bound),
        "ref_max_score": mean_return(expert, EXPERT_EPISODES, key, bound),
    }


def recording_keys(seed: int) -> Array:
    """Of resets, of noise and of the reference scores, `[3]`: none of them an evaluation's."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), 0x0FF1), 3)


def cut_out(steps: tuple, i: int, length: int) -> Episode:
    """Episode i of recorded steps `[T, B]`, which lasted `length` steps."""
    observation, action, reward, terminated, truncated, after = (leaf[:length, i] for leaf in steps)
    last = np.arange(length) == length - 1
    return Episode(
        observation=np.concatenate([observation, after[-1:]]),
        action=action,
        reward=reward,
        terminated=terminated,
        truncated=truncated | (last & ~terminated),  # cut by `max_steps`
    )


def mean_return(player: Player, num_episodes: int, key: Array, max_steps: int) -> float:
    """Of deterministic episodes."""
    reset_keys = jax.random.split(key, num_episodes)
    played = jax.jit(lambda: player.play(reset_keys, key, max_steps, True))()
    return float(jnp.mean(played.episode_return))


def policy_hash(policy_params: PyTree) -> str:
    """A SHA-256 of all arrays and their names: the same policy has the same one."""
    digest = hashlib.sha256()
    for name, leaf in named_leaves(policy_params).items():
        array = np.asarray(leaf)
        digest.update(f"{name}:{array.dtype}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
