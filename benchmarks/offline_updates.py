"""Updates of CQL and the Decision Transformer at CORL's settings beside PyTorch: one thread, CPU seconds."""

from harness import Contender, arguments, take_turns

parser = arguments(__doc__)
parser.add_argument("--peer-python", help="an interpreter with torch")
parser.add_argument("--num-updates", type=int, default=20)
parser.add_argument("--num-seeds", type=int, default=8, help="of the runs side by side")
parser.add_argument("--only", choices=("cql", "decision_transformer"))
options = parser.parse_args()

configs = {
    "cql": {"batch_size": 256, "num_sampled_actions": 10, "network": {"hidden_sizes": [256] * 3, "activation": "relu"}},
    "decision_transformer": {
        "batch_size": 64,
        "context_length": 20,
        "transformer": {"width": 128, "num_layers": 3, "num_heads": 1, "dropout": 0.1},
    },
}
contenders = []
for algorithm, config in configs.items():
    if options.only not in (None, algorithm):
        continue
    settings = {"algorithm": algorithm, "config": config, "observation": 17, "action": 6}
    settings |= {"num_updates": options.num_updates}
    if options.peer_python:
        contenders.append(Contender(f"PyTorch {algorithm}", "torch_offline.py", settings, options.peer_python))
    for num_seeds in (1, options.num_seeds):
        name = f"jaxrl {algorithm}, {num_seeds} seed{'s' * (num_seeds > 1)}"
        contenders.append(Contender(name, "jaxrl_offline.py", settings | {"num_seeds": num_seeds}))
if not options.peer_python:
    print("PyTorch is left out: --peer-python names no interpreter that has it")
take_turns(contenders, options.rounds, options.out, unit="updates", one_core=True)
