"""What every algorithm checks and prepares before it is built."""

from __future__ import annotations

from typing import Any

from envs_jax.core import EnvSpec
from jaxrl.parts.networks import NetworkConfig
from jaxrl.parts.normalize import RunningStatistics, init_statistics
from jaxrl.types import Data


def at_least_one(config: Any, *names: str) -> None:
    """ValueError unless each of the settings `names` is at least 1."""
    for name in names:
        if getattr(config, name) < 1:
            raise ValueError(f"config.{name} must be at least 1, got {getattr(config, name)}")


def without_memory(network: NetworkConfig) -> None:
    """ValueError where a network is recurrent and steps are drawn one by one."""
    if network.recurrent:
        raise ValueError("config.network.torso must be mlp or cnn: steps are drawn one by one, got 'gru'")


def single_agent_spec(env: Any, learner: str, network: NetworkConfig | None = None) -> EnvSpec:
    """The spaces that an algorithm for one agent learns in.

    Args:
        env: an `Environment`, or the `EnvSpec` of a data set or of an environment on the host.
        learner: the algorithm's name, for messages.
        network: what is to read the observations, if it is to be checked.

    Raises:
        ValueError: several agents, or a convolution on what is no picture.
    """
    spec = env if isinstance(env, EnvSpec) else env.spec(env.default_params)
    if spec.num_agents != 1:
        raise ValueError(f"{learner} trains one agent: choose a role of the environment and its opponents")
    shape = spec.observation_space.shape
    if network is not None and network.torso == "cnn" and len(shape) != 3:
        raise ValueError(f"config.network.torso='cnn' needs observations [height, width, channels], got {shape}")
    return spec


def dataset_statistics(data: Data, spec: EnvSpec) -> RunningStatistics:
    """Of the observations of the data set; without one, where only the form of a state is asked for, of nothing."""
    if data.dataset is None:
        return init_statistics(spec.observation_space.shape)
    return data.dataset.statistics
