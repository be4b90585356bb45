"""`make` and its options."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs_jax
from envs_jax import registry
from envs_jax.testing import check_environment


def test_every_name_has_a_summary():
    assert list(envs_jax.names()) == sorted(envs_jax.names())
    assert {"cartpole", "pendulum", "toy-discounting"} <= set(envs_jax.names())
    assert all(registry.summary(name) for name in envs_jax.names())


def test_constructor_options_and_parameters_are_told_apart():
    env, params = envs_jax.make("cartpole", max_steps=7, gravity=3, force=20.0)
    assert env.max_steps == 7
    assert float(params.gravity) == 3.0
    assert float(params.force) == 20.0
    defaults = env.default_params
    assert float(params.cart_mass) == float(defaults.cart_mass)
    described = [(leaf.dtype, leaf.shape, leaf.weak_type) for leaf in jax.tree.leaves(params)]
    assert described == [(leaf.dtype, leaf.shape, leaf.weak_type) for leaf in jax.tree.leaves(defaults)]


def test_options_of_a_registered_name_can_be_overridden():
    registry.register("short-cartpole", "envs_jax.control.cartpole:CartPole", options={"max_steps": 3})
    try:
        assert envs_jax.make("short-cartpole")[0].max_steps == 3
        assert envs_jax.make("short-cartpole", max_steps=9)[0].max_steps == 9
        with pytest.raises(ValueError, match="registered already"):
            registry.register("short-cartpole", "envs_jax.control.cartpole:CartPole")
    finally:
        del registry._ENTRIES["short-cartpole"]
    with pytest.raises(ValueError, match="must not contain ':'"):
        registry.register("a:b", "envs_jax.control.cartpole:CartPole")


def test_your_own_class_needs_no_registration():
    env, params = envs_jax.make("revealed_game:RevealedGame", payoffs=np.ones((2, 3, 3)))
    assert type(env).__name__ == "RevealedGame"
    assert params.payoffs.dtype == jnp.float32
    assert float(params.payoffs.sum()) == 18.0


def test_frame_stack():
    env, params = envs_jax.make("pendulum", frame_stack=3)
    assert env.observation_space(params).shape == (9,)
    state, first = env.reset(jax.random.key(0), params)
    np.testing.assert_array_equal(first.observation, np.tile(first.observation[:3], 3))
    stack = first.observation
    for _ in range(2):
        state, after = env.step(jax.random.key(0), state, jnp.ones(1), params)
        np.testing.assert_array_equal(after.observation[:6], stack[3:])
        stack = after.observation
    assert len({float(value) for value in stack[2::3]}) == 3  # three angular velocities, oldest first
    assert type(envs_jax.make("pendulum", frame_stack=1)[0]).__name__ == "Pendulum"


def test_frame_stack_keeps_the_protocol():
    check_environment(*envs_jax.make("toy-discounting", frame_stack=2))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("cartpol", {}, "unknown environment 'cartpol'; did you mean 'cartpole'?"),
        ("zzz", {}, "unknown environment 'zzz'. Known: brax-halfcheetah"),
        (
            "cartpole",
            {"gravty": 1.0},
            "has no option 'gravty'; did you mean 'gravity'? Allowed: angle_limit, cart_mass",
        ),
        ("cartpole", {"max_step": 1}, "did you mean 'max_steps'?"),
        ("cartpole", {"gravity": "strong"}, "option 'gravity' of environment 'cartpole' must be float32 of shape ()"),
        ("cartpole", {"gravity": [1.0, 2.0]}, "must be float32 of shape (), got [1.0, 2.0]"),
        ("cartpole", {"gravity": None}, "must be float32 of shape (), got None"),
        ("cartpole", {"max_steps": 0}, "max_steps must be an integer of at least 1, got 0"),
        ("cartpole", {"max_steps": "many"}, "max_steps must be an integer of at least 1, got 'many'"),
        ("pendulum", {"max_steps": 2.5}, "max_steps must be an integer of at least 1, got 2.5"),
        ("toy-action-choice", {"continuous": 1}, "continuous must be true or false, got 1"),
        ("pendulum", {"frame_stack": 0}, "frame_stack must be an integer of at least 1, got 0"),
        ("revealed_game:RevealedGame", {"frame_stack": 2}, "frame_stack needs a single-agent environment"),
        ("no_such_module:Thing", {}, "there is no module 'no_such_module'"),
        ("revealed_game:RevealedGam", {}, "has no 'RevealedGam'; did you mean 'RevealedGame'?"),
        ("test_registry:not_an_environment", {}, "built a int, not an envs_jax.core.Environment"),
    ],
)
def test_refusals(name, options, message):
    with pytest.raises(ValueError) as refusal:
        envs_jax.make(name, **options)
    assert message in str(refusal.value)


def test_a_fraction_is_not_cut_to_an_integer():
    with pytest.raises(ValueError, match="must be int32"):
        envs_jax.make("test_registry:Counted", start=1.5)
    assert int(envs_jax.make("test_registry:Counted", start=2)[1].start) == 2


def test_importing_the_package_imports_no_jax():
    code = "import sys, envs_jax; envs_jax.names(); sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def not_an_environment():
    return 3


def Counted():
    """An environment with an integer parameter."""
    from flax import struct

    from envs_jax.control.toy import ConstantReward
    from envs_jax.core import EnvParams, constant

    @struct.dataclass
    class Params(EnvParams):
        start: jax.Array = constant(0, jnp.int32)

    class WithParams(ConstantReward):
        default_params = property(lambda self: Params())

    return WithParams()
