"""PSRO on PoolFlip beside OpenSpiel's `psro_v2`, beside a Python loop over jitted steps, and its oracle alone."""

from typing import Any

from harness import Contender, arguments, take_turns

PARTS = ("openspiel", "loop", "oracle")
parser = arguments(__doc__)
parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="which comparisons to run")
parser.add_argument("--openspiel-python", help="an interpreter with open_spiel, jax, dm-haiku, rlax, cvxpy, ecos")
parser.add_argument("--num-envs", type=int, nargs="+", default=[16, 256, 4096], help="of the Python loop's comparison")
options = parser.parse_args()

HEURISTICS = ["sleep", "periodic(4)", "exponential(0.25)", "uniform(4,2)"]
NETWORK = {"hidden_sizes": [64, 64], "shared_torso": True}


def psro(num_iterations: int, horizon: int, num_updates: int, num_envs: int, **config: Any) -> dict[str, Any]:
    oracle = {"num_envs": num_envs, "unroll_length": 32, "num_epochs": 4, "num_minibatches": 4, "network": NETWORK}
    return {
        "algorithm": "psro",
        "num_updates": num_iterations,
        "env": {"name": "poolflip-r3", "horizon": horizon},
        "config": config | {"oracle": {"num_updates": num_updates, "config": oracle}},
    }


contenders = []
if "openspiel" in options.parts:
    # As many steps of each oracle (64 episodes of 32 ticks) and episodes per payoff on either side.
    config = psro(2, 32, 4, 16, initial="random", heuristics=["sleep"], num_groups=16, num_episodes=16)
    contenders.append(Contender("jaxrl PSRO, small", "jaxrl_psro.py", {"config": config, "seed": 0, "repeats": 50}))
    if options.openspiel_python:
        settings = {
            "horizon": 32, "num_resources": 3, "num_iterations": 2, "oracle_episodes": 64, "payoff_episodes": 16,
            "hidden_sizes": [64, 64], "seed": 0,
        }  # fmt: skip
        contenders.append(
            Contender("OpenSpiel psro_v2, small", "openspiel_psro.py", settings, options.openspiel_python)
        )
    else:
        print("OpenSpiel is left out: --openspiel-python names no interpreter that has it")
if "loop" in options.parts:
    for num_envs in options.num_envs:
        num_updates = max(4, 16_384 // num_envs)
        config = psro(2, 128, min(num_updates, 128), num_envs, heuristics=HEURISTICS, num_groups=16, num_episodes=64)
        settings = {"config": config, "seed": 0}
        contenders.append(Contender(f"jaxrl PSRO, {num_envs} environments", "jaxrl_psro.py", settings))
        contenders.append(Contender(f"Python loop, {num_envs} environments", "python_loop_psro.py", settings))
if "oracle" in options.parts:
    config = psro(4, 128, 40, 256, heuristics=HEURISTICS, num_groups=16, num_episodes=256)
    contenders.append(Contender("jaxrl PSRO, oracle alone", "oracle_training.py", {"config": config, "seed": 0}))
    settings = {"config": config, "seed": 0, "iterations": [1, 2, 3, 4]}
    contenders.append(Contender("jaxrl PSRO, 1 to 4 iterations", "jaxrl_psro.py", settings))
take_turns(contenders, options.rounds, options.out)
