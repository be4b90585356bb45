"""CybORG CAGE 2 beside the original simulator and MiniCAGE: a random blue against B_line, steps per second.

The original runs from a checkout of cage-challenge/cage-challenge-2, MiniCAGE from one of
alan-turing-institute/CybORG_plus_plus, by an interpreter that has what they need (Python 3.8, gym 0.21, numpy<1.24,
networkx, prettytable, pyyaml, paramiko).
"""

import json
import os
from statistics import median

from harness import Contender, arguments, take_turns

BARS = {"steps per second": 1.5e6, "times the original": 3000.0, "times MiniCAGE at its best batch": 5.0}
ORIGINAL, MINICAGE, OURS = "CybORG", "MiniCAGE", "jaxrl cyborg-cage2"

parser = arguments(__doc__)
parser.add_argument("--cage2", default=os.environ.get("CAGE2_CHECKOUT"), help="or CAGE2_CHECKOUT in the environment")
parser.add_argument("--minicage", default=os.environ.get("MINICAGE_CHECKOUT"), help="or MINICAGE_CHECKOUT")
parser.add_argument("--peer-python", default=os.environ.get("CAGE2_PYTHON"), help="or CAGE2_PYTHON")
parser.add_argument("--num-envs", type=int, default=2048)
parser.add_argument("--num-steps", type=int, default=2000)
options = parser.parse_args()

size = {"num_envs": options.num_envs, "num_steps": options.num_steps}
game = {"env": "cyborg-cage2", "options": {"all_legal": True}, "read_observations": True}
contenders = [Contender(OURS, "jaxrl_stepping.py", game | size)]
if options.cage2 and options.peer_python:
    settings = {"checkout": options.cage2, "num_episodes": 10, "episode_length": 100, "seed": 0}
    contenders.append(Contender(ORIGINAL, "cyborg_original.py", settings, options.peer_python))
else:
    print("the original is left out: it needs --cage2 and --peer-python")
if options.minicage and options.peer_python:
    for num_envs, num_steps in ((100, 2000), (1000, 300), (10_000, 20)):
        settings = {"checkout": options.minicage, "num_envs": num_envs, "num_steps": num_steps, "seed": 0}
        name = f"{MINICAGE}, batch {num_envs:,}"
        contenders.append(Contender(name, "cyborg_minicage.py", settings, options.peer_python))
else:
    print("MiniCAGE is left out: it needs --minicage and --peer-python")
take_turns(contenders, options.rounds, options.out)

rates: dict[str, list[float]] = {}
for line in options.out.read_text().splitlines():
    row = json.loads(line)
    rates.setdefault(row["name"], []).append(row["env_steps_per_second"])
medians = {name: median(values) for name, values in rates.items()}
ours = medians[OURS]
mini = max((rate for name, rate in medians.items() if name.startswith(MINICAGE)), default=None)
found = (ours, medians.get(ORIGINAL) and ours / medians[ORIGINAL], mini and ours / mini)
for (what, bar), value in zip(BARS.items(), found, strict=True):
    if value:
        print(f"{value:>14,.1f} {what}: bar {bar:,.0f} {'met' if value >= bar else 'MISSED'}")
