"""PPO on CartPole beside PureJaxRL and Stable-Baselines3, with the same hyper-parameters."""

from harness import Contender, arguments, take_turns

parser = arguments(__doc__)
parser.add_argument("--purejaxrl", help="a checkout of PureJaxRL")
parser.add_argument("--peer-python", help="an interpreter with jax, gymnax<1, distrax and stable-baselines3")
parser.add_argument("--num-envs", type=int, default=4)
parser.add_argument("--env-steps", type=int, default=500_000)
parser.add_argument("--sb3-env-steps", type=int, default=50_000)
options = parser.parse_args()

num_envs, unroll_length, learning_rate, threshold = options.num_envs, 128, 2.5e-4, 475.0
num_updates = options.env_steps // (num_envs * unroll_length)
ours = {
    "algorithm": "ppo",
    "num_updates": num_updates,
    "env": {"name": "cartpole"},
    "config": {"num_envs": num_envs, "unroll_length": unroll_length, "num_epochs": 4, "num_minibatches": 4},
    "hparams": {"learning_rate": learning_rate},
}
theirs = {
    "LR": learning_rate, "NUM_ENVS": num_envs, "NUM_STEPS": unroll_length, "TOTAL_TIMESTEPS": options.env_steps,
    "UPDATE_EPOCHS": 4, "NUM_MINIBATCHES": 4, "GAMMA": 0.99, "GAE_LAMBDA": 0.95, "CLIP_EPS": 0.2, "ENT_COEF": 0.01,
    "VF_COEF": 0.5, "MAX_GRAD_NORM": 0.5, "ACTIVATION": "tanh", "ENV_NAME": "CartPole-v1", "ANNEAL_LR": True,
    "DEBUG": False,
}  # fmt: skip
contenders = [Contender("jaxrl PPO", "jaxrl_ppo.py", {"config": ours, "seed": 0, "threshold": threshold})]
if options.purejaxrl and options.peer_python:
    settings = {"config": theirs, "seed": 0, "threshold": threshold, "checkout": options.purejaxrl}
    contenders.append(Contender("PureJaxRL PPO", "purejaxrl_ppo.py", settings, options.peer_python))
if options.peer_python:
    settings = {
        "num_envs": num_envs, "unroll_length": unroll_length, "batch_size": num_envs * unroll_length // 4,
        "learning_rate": learning_rate, "env_steps": options.sb3_env_steps, "seed": 0,
    }  # fmt: skip
    contenders.append(Contender("Stable-Baselines3 PPO", "sb3_ppo.py", settings, options.peer_python))
else:
    print("peers are left out: --peer-python names no interpreter that has them")
take_turns(contenders, options.rounds, options.out)
