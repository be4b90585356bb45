"""SAC on brax's hopper beside brax's own SAC: equal steps, gradient steps, sizes and hyper-parameters, three seeds."""

from harness import Contender, arguments, take_turns

parser = arguments(__doc__)
parser.set_defaults(rounds=1)
parser.add_argument("--peer-python", help="an interpreter with brax, flax, optax and jax<0.10")
parser.add_argument("--num-seeds", type=int, default=3)
parser.add_argument("--task", default="hopper", choices=("hopper", "walker2d", "halfcheetah"))
options = parser.parse_args()

num_envs, num_updates, num_evaluations, warmup = 128, 2344, 8, 8192
ours = {"config": f"sac_brax_{options.task}", "overrides": [], "num_seeds": options.num_seeds}
contenders = [Contender("jaxrl SAC", "jaxrl_sac.py", ours)]
theirs = {
    "task": options.task, "backend": "spring", "num_timesteps": num_envs * num_updates, "episode_length": 1000,
    "num_envs": num_envs, "num_eval_envs": 64, "num_evals": num_evaluations + 1, "learning_rate": 6e-4,
    "discounting": 0.997, "batch_size": 256, "normalize_observations": True, "reward_scaling": 30.0,
    "min_replay_size": warmup, "max_replay_size": num_envs * num_updates, "grad_updates_per_step": 8,
    "hidden_sizes": [256, 256],
}  # fmt: skip
if options.peer_python:
    for seed in range(options.num_seeds):
        contenders.append(Contender("brax SAC", "brax_sac.py", theirs | {"seed": seed}, options.peer_python))
else:
    print("brax's own SAC is left out: --peer-python names no interpreter that has it")
take_turns(contenders, options.rounds, options.out)
