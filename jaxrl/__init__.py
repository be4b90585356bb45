"""jaxrl: reinforcement learning compiled end to end with JAX.

    import jaxrl
    run = jaxrl.load_config("ppo_cartpole")
    state, log = jaxrl.fit(run)

Names are imported on first use, so that importing jaxrl costs nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl.loop import scan_updates
    from jaxrl.results.export import export_policy, load_policy
    from jaxrl.rollout import episodes, unroll
    from jaxrl.run.config import load_config, make_config
    from jaxrl.run.program import load_data, make_algorithm, make_env
    from jaxrl.run.runner import evaluate, fit, load_state
    from jaxrl.run.sweep import sweep
    from jaxrl.types import Algorithm, Data, Transition

_WHERE = {
    "load_config": "jaxrl.run.config",
    "make_config": "jaxrl.run.config",
    "make_env": "jaxrl.run.program",
    "make_algorithm": "jaxrl.run.program",
    "load_data": "jaxrl.run.program",
    "scan_updates": "jaxrl.loop",
    "unroll": "jaxrl.rollout",
    "episodes": "jaxrl.rollout",
    "fit": "jaxrl.run.runner",
    "evaluate": "jaxrl.run.runner",
    "load_state": "jaxrl.run.runner",
    "sweep": "jaxrl.run.sweep",
    "export_policy": "jaxrl.results.export",
    "load_policy": "jaxrl.results.export",
    "Algorithm": "jaxrl.types",
    "Data": "jaxrl.types",
    "Transition": "jaxrl.types",
}

__all__ = [
    "Algorithm",
    "Data",
    "Transition",
    "episodes",
    "evaluate",
    "export_policy",
    "fit",
    "load_config",
    "load_data",
    "load_policy",
    "load_state",
    "make_algorithm",
    "make_config",
    "make_env",
    "scan_updates",
    "sweep",
    "unroll",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxrl' has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
