"""The hopper's physics in jaxrl, bare: many robots that sway in their stance, one substep after the other."""

import json
import sys

import jax
import jax.numpy as jnp

import envs_jax
from envs_jax.robotics import hopper_planar
from harness import measure_compiled, report

settings = json.loads(sys.argv[1])
num_envs, num_steps, size = settings["num_envs"], settings["num_steps"], settings["time_step"]
env, params = envs_jax.make("hopper-flip", physics=settings["physics"], randomisation=0.0, flight_starts=0.0)
motion = jax.jit(jax.vmap(env.reset, (0, None)))(jax.random.split(jax.random.key(0), num_envs), params)[0].motion


def controlled(joints, rates, time):
    driven = slice(len(joints))
    targets = params.nominal + jnp.asarray(settings["sway"]) * jnp.sin(settings["frequency"] * time)
    gains = params.proportional_gain[driven], params.derivative_gain[driven]
    return gains[0] * (targets[driven] - joints) - gains[1] * rates


if settings["physics"] == "mjx":
    from mujoco import mjx

    model, empty = env.physics.model.tree_replace({"opt.timestep": jnp.float32(size)}), env.physics.empty

    def substep(motion, time):
        torque = controlled(motion.qpos[7:], motion.qvel[6:], time)
        data = empty.replace(qpos=motion.qpos, qvel=motion.qvel, qacc_warmstart=motion.warmstart, ctrl=torque)
        data = mjx.step(model, data)
        return motion.replace(qpos=data.qpos, qvel=data.qvel, warmstart=data.qacc_warmstart)
else:

    def substep(motion, time):
        joints, rates = motion.angles[1:] - motion.angles[:-1], motion.rates[1:] - motion.rates[:-1]
        return hopper_planar.substep(params.robot, motion, controlled(joints, rates, time), jnp.float32(size))[0]


@jax.jit
@jax.vmap
def play(motion):
    return jax.lax.scan(lambda now, step: (substep(now, step * size), None), motion, jnp.arange(num_steps))[0]


result, times = measure_compiled(play, motion)
shown = jax.jit(jax.vmap(env.physics.snapshot, (None, 0)))(params, result)
simulated = num_envs * num_steps * size
report(
    settings,
    num_envs * num_steps,
    times,
    simulated_seconds_per_cpu_second=round(simulated / times["cpu_seconds"], 1),
    mean_height=round(float(shown.com[:, 2].mean()), 4),
)
