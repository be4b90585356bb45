"""Random stepping: environment steps per second without learning."""

from harness import Contender, arguments, take_turns

parser = arguments(__doc__)
parser.add_argument("--peer-python", help="an interpreter with gymnax<1")
options = parser.parse_args()

heuristics = {"role": "blue", "opponents": ["sleep", "periodic(4)", "exponential(0.25)", "uniform(4,2)"]}
size = {"num_envs": 1024, "num_steps": 2000}
contenders = [
    Contender("jaxrl cartpole", "jaxrl_stepping.py", {"env": "cartpole"} | size),
    Contender("jaxrl poolflip-r3", "jaxrl_stepping.py", {"env": "poolflip-r3", "options": heuristics} | size),
]
if options.peer_python:
    contenders.insert(1, Contender("gymnax CartPole", "gymnax_stepping.py", size, options.peer_python))
else:
    print("gymnax is left out: --peer-python names no interpreter that has it")
take_turns(contenders, options.rounds, options.out)
