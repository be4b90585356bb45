"""The arms of the Re:Frame study: sizes, settings, and a configuration for every contender."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrl.data.recording import Recording
from jaxrl.run.config import RunConfig, make_config

PLAIN, MIXED, REFRAME = "C1 DT", "C2 DT, mixed", "Re:Frame"
EXPERT_ALONE, NEAREST, WIDE = "C3 DT, expert alone", "C4 nearest neighbour", "C5 DT, wide"
FROM_DATA, RANDOM = "A1 memory of the data", "A2 random entries"
SHUFFLED, DETACHED = "A2 shuffled when acting", "A7 detached when acting"
HEADLINE = ("hopper/medium", "walker2d/medium", "halfcheetah/medium", "hopper/medium-replay")
# Of each ablation that is trained: what it changes in Re:Frame. Those of A4 are trained with mixing, too.
ABLATIONS: dict[str, list[str]] = {
    FROM_DATA: [],  # `data.expert` becomes the data itself
    RANDOM: ["config.retrieval=random"],
    **{f"A3 k {k}": [f"hparams.num_retrieved={k}"] for k in (1, 4, 16)},
    **{f"A3 tau {tau}": [f"hparams.temperature={tau}"] for tau in (0.03, 0.3, 1.0)},
    **{f"A4 {n} episodes": [f"data.num_expert_episodes={n}"] for n in (6, 20, 200)},
    "A5 M 512": ["config.memory.size=512"],
    "A5 M full": ["config.memory.size=65536"],
    "A5 latent 8": ["config.memory.latent_size=8"],
    "A5 latent 64": ["config.memory.latent_size=64"],
    "A6 query of the situation": ["config.query=situation"],
    "A6 prefix": ["config.fusion=prefix"],
}


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large the study is."""

    settings: tuple[str, ...]  # "task/set", all with C1, C2 and Re:Frame
    headline: tuple[str, ...]  # the settings of RF-3
    controls: tuple[str, ...]  # settings with C3, C4 and C5
    ablations: tuple[str, ...]  # settings with ablations
    ablation_arms: tuple[str, ...]  # names in `ABLATIONS`
    data: str  # a folder with TASK/SET.hdf5; "": the sets are made here, by teachers that are trained first
    data_steps: int  # of medium and random, where they are made here
    stored_episodes: int  # of the expert, where they are made here
    expert_episodes: int  # of them, those that the memory holds (60 in the paper)
    num_seeds: int
    num_updates: int
    warmup_updates: int
    batch_size: int
    learning_rate: float
    reward_scale: float
    context_length: int
    width: int
    num_layers: int
    memory_size: int
    latent_size: int
    autoencoder_updates: int
    num_episodes: int  # of the evaluation, per seed
    half_target: bool  # ask for half of the expert's score too
    value_settings: tuple[str, ...]  # settings with BC and CQL
    value_updates: int  # of both

    def tasks(self) -> list[str]:
        """In the order in which they first occur."""
        return list(dict.fromkeys(setting.partition("/")[0] for setting in (*self.settings, *self.value_settings)))


SCALES = {
    "smoke": Scale(
        settings=("pendulum/medium",), headline=("pendulum/medium",), controls=("pendulum/medium",),
        ablations=("pendulum/medium",), ablation_arms=(FROM_DATA, RANDOM), data="", data_steps=6000,
        stored_episodes=20, expert_episodes=20, num_seeds=2, num_updates=300, warmup_updates=30, batch_size=32,
        learning_rate=2e-3, reward_scale=0.01, context_length=5, width=32, num_layers=1, memory_size=512,
        latent_size=8, autoencoder_updates=500, num_episodes=10, half_target=False, value_settings=(), value_updates=0,
    ),
    "cpu": Scale(
        settings=HEADLINE, headline=HEADLINE, controls=("hopper/medium",), ablations=("hopper/medium",),
        ablation_arms=(FROM_DATA, RANDOM, "A4 6 episodes"), data="", data_steps=200_000,
        stored_episodes=60, expert_episodes=60, num_seeds=3, num_updates=5000, warmup_updates=500, batch_size=32,
        learning_rate=4e-4, reward_scale=1e-3, context_length=10, width=64, num_layers=2, memory_size=1024,
        latent_size=32, autoencoder_updates=5000, num_episodes=25, half_target=False,
        value_settings=("hopper/medium-replay", "walker2d/medium-replay"), value_updates=20_000,
    ),
    "full": Scale(
        settings=tuple(f"{task}/{name}" for name in ("medium", "medium-replay", "random")
                       for task in ("hopper", "walker2d", "halfcheetah")),
        headline=HEADLINE, controls=tuple(f"{task}/{name}" for name in ("medium", "medium-replay", "random")
                                          for task in ("hopper", "walker2d", "halfcheetah")),
        ablations=("hopper/medium", "walker2d/medium"), ablation_arms=tuple(ABLATIONS), data="", data_steps=1_000_000,
        stored_episodes=200, expert_episodes=60, num_seeds=5, num_updates=100_000, warmup_updates=10_000,
        batch_size=64, learning_rate=1e-4, reward_scale=1e-3, context_length=20, width=128, num_layers=3,
        memory_size=4096, latent_size=32, autoencoder_updates=20_000, num_episodes=100, half_target=True,
        value_settings=("hopper/medium-replay", "walker2d/medium-replay"), value_updates=1_000_000,
    ),
}  # fmt: skip


def score(returns: Any, recording: Recording) -> Any:
    """The local-normalised score: 0 is uniform random play, 100 the local expert, by the data set's own references."""
    low, high = (recording.header.facts[name] for name in ("ref_min_score", "ref_max_score"))
    return 100.0 * (returns - low) / (high - low)


def target_return(recording: Recording, share: float = 1.0) -> float:
    """The return that has the score 100 `share`."""
    low, high = (float(recording.header.facts[name]) for name in ("ref_min_score", "ref_max_score"))
    return low + share * (high - low)


def common(scale: Scale, recording: Recording, path: Path, num_updates: int) -> dict[str, Any]:
    """What every arm of a setting has in its configuration; the data set says which environment."""
    facts = recording.header.facts
    return {
        "num_updates": num_updates,
        "env": {"name": facts["environment"], **facts["environment_options"]},
        "data": {"name": str(path)},
        "evaluation": {"num_episodes": scale.num_episodes},
        "checkpoint": {"every": max(num_updates // 5, 1)},
        "log": {"every": max(num_updates // 50, 1), "tensorboard": False},
    }


def sequence_arms(scale: Scale, setting: str, recording: Recording, paths: Mapping[str, Path]) -> dict[str, RunConfig]:
    """The arms of one setting that are trained, by name: C1, C2, Re:Frame, and what else the scale asks for.

    Args:
        scale: the sizes.
        setting: "task/set".
        recording: of the set.
        paths: files of the task's sets.
    """
    name = setting.partition("/")[2]
    longest = max(int(recording.lengths.max()), _max_steps(recording))
    values = common(scale, recording, paths[name], scale.num_updates) | {
        "algorithm": "decision_transformer",
        "config": {
            "context_length": scale.context_length,
            "batch_size": scale.batch_size,
            "max_episode_steps": longest,
            "transformer": {"width": scale.width, "num_layers": scale.num_layers},
        },
        "hparams": {
            "learning_rate": scale.learning_rate,
            "warmup_updates": scale.warmup_updates,
            "reward_scale": scale.reward_scale,
            "target_return": target_return(recording),
        },
    }
    expert = {"expert": str(paths["expert"]), "num_expert_episodes": scale.expert_episodes}
    mixed = values | {"data": values["data"] | expert | {"mix_expert": True}}
    memory = {
        "size": scale.memory_size,
        "latent_size": scale.latent_size,
        "num_updates": scale.autoencoder_updates,
        "batch_size": min(1024, scale.memory_size),
    }
    reframe = values | {
        "algorithm": "reframe",
        "data": values["data"] | expert,
        "config": values["config"] | {"memory": memory},
    }
    arms = {PLAIN: make_config(values), MIXED: make_config(mixed), REFRAME: make_config(reframe)}
    if setting in scale.controls:
        alone = {"name": expert["expert"], "num_episodes": scale.expert_episodes}
        arms[EXPERT_ALONE] = make_config(values | {"data": alone})
        arms[WIDE] = make_config(reframe, ["config.fusion=wide"])
    if setting in scale.ablations:
        for arm in scale.ablation_arms:
            changes = [f"data.expert={paths[name]}"] if arm == FROM_DATA else ABLATIONS[arm]
            arms[arm] = make_config(reframe, changes)
            if arm.startswith("A4"):
                arms[f"{arm}, mixed"] = make_config(mixed, changes)
    return arms


def value_arms(scale: Scale, recording: Recording, path: Path) -> dict[str, RunConfig]:
    """BC and CQL on one set; networks and sampled actions of the `cpu` scale, else those of the algorithms."""
    values = common(scale, recording, path, scale.value_updates)
    small = scale.num_updates < SCALES["full"].num_updates
    sizes = {"network": {"hidden_sizes": [256, 256], "activation": "relu"}} if small else {}
    actions = {"num_sampled_actions": 4, "batch_size": 128} if small else {}
    return {
        "BC": make_config(values | {"algorithm": "bc", "config": sizes, "hparams": {"anneal_updates": 0}}),
        "CQL": make_config(values | {"algorithm": "cql", "config": sizes | actions}),
    }


def _max_steps(recording: Recording) -> int:
    """The time limit of the data's environment."""
    import envs_jax

    facts = recording.header.facts
    return envs_jax.make(facts["environment"], **facts["environment_options"])[0].max_steps or 0
