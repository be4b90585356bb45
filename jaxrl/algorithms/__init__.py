"""Algorithms, one file each. `find(name)` returns the recipe that a configuration file names."""

from jaxrl.types import Recipe

ALGORITHMS = {
    # name: where its recipe is, one line
    "ppo": ("jaxrl.algorithms.ppo:PPO", "Proximal policy optimisation"),
    "psro": ("jaxrl.algorithms.psro:PSRO", "Policy-space response oracles for games of two roles"),
    "ippo": ("jaxrl.algorithms.ippo:IPPO", "Self-play: PPO for every role of a game, each by itself"),
    "dqn": ("jaxrl.algorithms.dqn:DQN", "Deep Q-learning: double, dueling, n-step, prioritised"),
    "sac": ("jaxrl.algorithms.sac:SAC", "Soft actor-critic with a learned temperature, continuous actions"),
    "bc": ("jaxrl.algorithms.bc:BC", "Behaviour cloning of a data set"),
    "cql": ("jaxrl.algorithms.cql:CQL", "Conservative Q-learning on a data set, discrete or continuous"),
    "decision_transformer": (
        "jaxrl.algorithms.decision_transformer:DECISION_TRANSFORMER",
        "Decision Transformer on a data set, continuous actions",
    ),
    "reframe": ("jaxrl.algorithms.reframe:REFRAME", "Decision Transformer that looks things up in an expert's memory"),
    "sft": ("jaxrl.algorithms.sft:SFT", "Supervised fine-tuning of a language model by demonstrations"),
    "grpo": ("jaxrl.algorithms.grpo:GRPO", "GRPO of a language model: Dr. GRPO, RLOO, REINFORCE++, GSPO, CISPO"),
    "lm_ppo": ("jaxrl.algorithms.lm_ppo:LM_PPO", "PPO of a language model, with a value head"),
    "dpo": ("jaxrl.algorithms.dpo:DPO", "Preferences between answers of a language model: DPO, IPO, hinge"),
    "reward_model": ("jaxrl.algorithms.reward_model:REWARD_MODEL", "A reward of conversations, learned from labels"),
}


def find(name: str) -> Recipe:
    """The recipe of an algorithm.

    Args:
        name: a name in `ALGORITHMS`, or `"package.module:NAME"` for a `jaxrl.types.Recipe` of your own.

    Raises:
        ValueError: there is no such algorithm (with the nearest name), or the path names something else.
    """
    from envs_jax.registry import nearest, resolve

    if name not in ALGORITHMS and ":" not in name:
        known = ", ".join(ALGORITHMS)
        raise ValueError(f"unknown algorithm {name!r}{nearest(name, ALGORITHMS)} Known: {known}")
    recipe = resolve(ALGORITHMS[name][0] if name in ALGORITHMS else name)
    if not isinstance(recipe, Recipe):
        raise ValueError(f"algorithm {name!r} must be a jaxrl.types.Recipe, got {type(recipe).__name__}")
    return recipe
