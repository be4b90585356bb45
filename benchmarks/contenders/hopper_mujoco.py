"""The same in C MuJoCo by its batched `mujoco.rollout`; the PD controller is MuJoCo's own actuator."""

import json
import sys

import jax
import mujoco
import numpy as np
from mujoco import rollout

import envs_jax
from envs_jax.robotics.hopper_mjcf import make_model
from envs_jax.robotics.hopper_sim_to_sim import draw_start
from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
num_envs, num_steps = settings["num_envs"], settings["num_steps"]
env, params = envs_jax.make("hopper-flip")
params = jax.device_get(params)
model = make_model(env.hopper)
model.opt.timestep = settings["time_step"]
model.actuator_biastype[:] = mujoco.mjtBias.mjBIAS_AFFINE
model.actuator_gainprm[:, 0] = params.proportional_gain
model.actuator_biasprm[:, 1], model.actuator_biasprm[:, 2] = -params.proportional_gain, -params.derivative_gain

data, generator, states = mujoco.MjData(model), np.random.default_rng(0), []
soles = [model.geom(f"sole_{i}").id for i in range(4)]
for _ in range(num_envs):
    data.qpos[:], data.qvel[:] = draw_start(generator, params.nominal)
    mujoco.mj_forward(model, data)
    data.qpos[2] -= (data.geom_xpos[soles, 2] - model.geom_size[soles, 0]).min()
    state = np.zeros(mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS))
    mujoco.mj_getState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    states.append(state)

time = np.arange(num_steps)[:, None] * settings["time_step"]
targets = params.nominal + np.array(settings["sway"]) * np.sin(settings["frequency"] * time)
controls = np.broadcast_to(targets, (num_envs, num_steps, 3)).copy()
workers = [mujoco.MjData(model) for _ in range(settings["num_threads"])]
rollout.rollout(model, workers, np.stack(states), controls[:, :10])
with Stopwatch() as running:
    after, _ = rollout.rollout(model, workers, np.stack(states), controls)
heights = []
for state in after[:, -1]:
    mujoco.mj_setState(model, data, state, mujoco.mjtState.mjSTATE_FULLPHYSICS)
    mujoco.mj_forward(model, data)
    heights.append(data.subtree_com[1, 2])
report(
    settings,
    num_envs * num_steps,
    {"seconds": running.wall, "cpu_seconds": running.cpu},
    simulated_seconds_per_cpu_second=round(num_envs * num_steps * settings["time_step"] / running.cpu, 1),
    mean_height=round(float(np.mean(heights)), 4),
)
