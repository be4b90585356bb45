"""Spaces: what they contain, what they draw, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from envs_jax.spaces import Box, Discrete, MultiDiscrete

SPACES = [
    Discrete(3),
    MultiDiscrete((2, 5)),
    Box(-1.0, 2.0, (2, 3)),
    Box(np.array([-np.inf, 0.0, -2.0]), np.array([np.inf, 1.0, np.inf]), (3,)),
    Box(0, 255, (4,), jnp.uint8),
]


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_draws_lie_in_the_space_and_have_its_shape_and_dtype(space):
    draws = jax.jit(jax.vmap(space.sample))(jax.random.split(jax.random.key(0), 500))
    assert draws.shape == (500, *space.shape)
    assert draws.dtype == space.dtype
    assert not draws.weak_type
    assert all(space.contains(draw) for draw in np.asarray(draws))


def test_every_value_is_drawn():
    keys = jax.random.split(jax.random.key(1), 500)
    assert set(np.asarray(jax.vmap(Discrete(3).sample)(keys)).tolist()) == {0, 1, 2}
    drawn = np.asarray(jax.vmap(MultiDiscrete((2, 5)).sample)(keys))
    assert [sorted(set(column)) for column in drawn.T.tolist()] == [[0, 1], [0, 1, 2, 3, 4]]
    bytes_drawn = np.asarray(jax.vmap(Box(0, 3, (), jnp.uint8).sample)(keys))
    assert set(bytes_drawn.tolist()) == {0, 1, 2, 3}  # the upper bound included


@pytest.mark.parametrize(
    ("space", "inside", "outside"),
    [
        (Discrete(3), [0, np.int64(2), jnp.int32(1)], [3, -1, 1.0, [1]]),
        (MultiDiscrete((2, 5)), [[0, 0], np.array([1, 4])], [[2, 0], [0, 5], [0], [0.0, 1.0], 0]),
        (Box(-1.0, 1.0, (2,)), [[-1.0, 1.0], [0.5, 0.0]], [[1.1, 0.0], [0.0], 0.0, [np.nan, 0.0]]),
        (Box([0.0, -np.inf], [1.0, np.inf], (2,)), [[1.0, 1e30]], [[1.5, 0.0], [0.0, np.nan]]),
    ],
    ids=str,
)
def test_contains(space, inside, outside):
    assert all(space.contains(value) for value in inside)
    assert not any(space.contains(value) for value in outside)


def test_sizes():
    assert Discrete(4).mask_size == 4
    assert MultiDiscrete((2, 5)).mask_size == 7
    assert Box(0.0, 1.0, (2, 3)).size == 6
    assert Box(0.0, 1.0).size == 1
    assert Box(-1.0, [1.0, 2.0], (2,)).bounded
    assert not Box(-1.0, [1.0, np.inf], (2,)).bounded


def test_equality_and_hash():
    assert Box(-1.0, 1.0, (2,)) == Box([-1.0, -1.0], 1.0, (2,))
    assert hash(Box(-1.0, 1.0, (2,))) == hash(Box([-1.0, -1.0], 1.0, (2,)))
    assert Box(-1.0, 1.0, (2,)) != Box(-1.0, 2.0, (2,))
    assert Box(0, 1, (2,), jnp.uint8) != Box(0, 1, (2,), jnp.int32)
    assert len({Discrete(2), Discrete(2), MultiDiscrete((2,)), MultiDiscrete([2])}) == 2


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Discrete(0), "num_values must be at least 1, got 0"),
        (lambda: MultiDiscrete(()), "must be positive"),
        (lambda: MultiDiscrete((2, 0)), "must be positive"),
        (lambda: Box(1.0, 0.0), "low must not exceed"),
    ],
)
def test_refusals(build, message):
    with pytest.raises(ValueError, match=message):
        build()
