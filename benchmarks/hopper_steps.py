"""The hopper's physics in three engines: planar in plain JAX, in space by MJX, and C MuJoCo's batched rollout.

All robots sway in their stance under the same PD controller at the same time step, so that the sole is on the floor
nearly all the time. The planar model has five degrees of freedom, the others nine: what is compared is the time that a
simulated second of a robot costs.
"""

import json
from statistics import median

from harness import Contender, arguments, take_turns

BAR = 1.0  # planar against C MuJoCo, simulated seconds per core-second
PLANAR, MJX, MUJOCO = "planar", "MJX, Newton 4/8", "C MuJoCo rollout"

parser = arguments(__doc__)
parser.add_argument("--num-envs", type=int, default=256)
parser.add_argument("--num-steps", type=int, default=1000)
options = parser.parse_args()

size = {"num_envs": options.num_envs, "num_steps": options.num_steps, "time_step": 0.002, "sway": [0.03, 0.0, 0.0]}
size |= {"frequency": 12.0}  # rad/s
contenders = [
    Contender(PLANAR, "hopper_physics.py", size | {"physics": "planar"}),
    Contender(MJX, "hopper_physics.py", size | {"physics": "mjx"}),
    Contender(MUJOCO, "hopper_mujoco.py", size | {"num_threads": 1}),
]
take_turns(contenders, options.rounds, options.out)

rates: dict[str, list[float]] = {}
for line in options.out.read_text().splitlines():
    row = json.loads(line)
    rates.setdefault(row["name"], []).append(row["simulated_seconds_per_cpu_second"])
medians = {name: median(values) for name, values in rates.items()}
for name in (PLANAR, MJX):
    print(f"{name}: {medians[name]:,.0f} simulated seconds per core-second, {medians[name] / medians[MUJOCO]:.2f}x")
print(f"{MUJOCO}: {medians[MUJOCO]:,.0f}; bar of {PLANAR}: {BAR}x", end=" ")
print("met" if medians[PLANAR] >= BAR * medians[MUJOCO] else "MISSED")
