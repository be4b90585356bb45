"""Networks: shapes, memories, what the dueling head subtracts, and a description that NumPy alone can follow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl.parts.networks import ActorCritic, NetworkConfig, QNetwork, describe_layers
from programs import compiled

IMAGE = (5, 6, 2)
MLP = NetworkConfig(hidden_sizes=(8, 7), activation="elu")
CNN = NetworkConfig(torso="cnn", hidden_sizes=(8,), cnn_channels=(3, 4), activation="tanh")
GRU = NetworkConfig(torso="gru", hidden_sizes=(8,), gru_size=6, activation="relu")


@functools.cache
def build(config, shape, num_outputs=3, continuous=False, critic_shape=None):
    """A network, its parameters with no zero left in them (biases start there), and its compiled function."""
    network = ActorCritic(config, num_outputs, continuous)
    zeros = jnp.zeros(shape), jnp.zeros(critic_shape or shape)

    @compiled
    def init(key):
        params = network.init(key, network.start(), *zeros)
        return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.sin(jnp.arange(leaf.size)).reshape(leaf.shape), params)

    return network, init(jax.random.key(0)), compiled(network.apply)


@pytest.mark.parametrize(("config", "shape"), [(MLP, (4,)), (CNN, IMAGE), (GRU, (4,)), (MLP, ())], ids=str)
def test_shapes(config, shape):
    for shared in (False, True):
        network = ActorCritic(NetworkConfig(**{**vars(config), "shared_torso": shared}), 3, True)
        observation = jax.ShapeDtypeStruct(shape, jnp.uint8 if shape == IMAGE else jnp.float32)

        def play(key, observation, network=network):
            params = network.init(key, network.start(), observation, observation)
            return params["params"], network.apply(params, network.start(), observation, observation)

        params, (carry, (outputs, log_std, value)) = jax.eval_shape(play, jax.random.key(0), observation)
        assert (outputs.shape, log_std.shape, value.shape) == ((3,), (3,), ())
        assert {leaf.dtype for leaf in (outputs, log_std, value)} == {np.dtype("float32")}
        assert jax.tree.structure(carry) == jax.tree.structure(network.start())
        assert [leaf.shape for leaf in jax.tree.leaves(carry)] == (2 - shared) * [(6,)] * config.recurrent
        assert ("critic" in params) != shared


def test_discrete_actions_have_no_deviation():
    network, params, apply = build(MLP, (4,))
    assert apply(params, network.start(), jnp.ones(4), jnp.ones(4))[1][1] is None


def test_the_critic_reads_its_own_observation():
    network, params, apply = build(MLP, (4,), critic_shape=(2,))
    _, (outputs, _, value) = apply(params, network.start(), jnp.ones(4), jnp.ones(2))
    _, (same_outputs, _, other_value) = apply(params, network.start(), jnp.ones(4), jnp.zeros(2))
    np.testing.assert_array_equal(outputs, same_outputs)
    assert float(value) != float(other_value)


def test_the_policy_starts_near_uniform():
    network = ActorCritic(NetworkConfig(hidden_sizes=(16, 16)), 4, False)
    params = compiled(lambda key: network.init(key, network.start(), jnp.zeros(4), jnp.zeros(4)))(jax.random.key(0))
    kernel = np.asarray(params["params"]["actor_head"]["kernel"])
    np.testing.assert_allclose(kernel.T @ kernel, 1e-4 * np.eye(4), atol=1e-8)  # orthogonal, scale 0.01
    hidden = np.asarray(params["params"]["actor"]["dense_1"]["kernel"])
    np.testing.assert_allclose(hidden.T @ hidden, 2 * np.eye(16), atol=1e-5)  # orthogonal, scale sqrt(2)


def test_gru_memory_starts_empty_and_remembers():
    network, params, apply = build(GRU, (4,))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(network.start()))
    carries, values = [], []
    for first in (0.0, 1.0):
        carry, _ = apply(params, network.start(), jnp.full(4, first), jnp.full(4, first))
        carry, (outputs, _, value) = apply(params, carry, jnp.zeros(4), jnp.zeros(4))
        carries.append(carry)
        values.append((np.asarray(outputs), float(value)))
    assert np.abs(values[0][0] - values[1][0]).max() > 1e-3
    assert abs(values[0][1] - values[1][1]) > 1e-3
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, carries)))  # actor's and critic's


@pytest.mark.parametrize("shared", [False, True])
def test_actor_and_critic_memories_are_apart_unless_shared(shared):
    network = ActorCritic(NetworkConfig(torso="gru", gru_size=6, shared_torso=shared), 3, False)
    actor, critic = network.start()
    assert actor.shape == (6,)
    assert critic == () if shared else critic.shape == (6,)


def test_dueling_advantages_are_centred():
    observation = jnp.array([0.5, -1.0])
    network = QNetwork(NetworkConfig(hidden_sizes=(8,)), 3, dueling=True)

    @compiled
    def play(key, shift):
        params = network.init(key, observation)
        params["params"]["head"]["bias"] += shift  # of all advantages
        params["params"]["value_head"]["bias"] += 2.0
        return network.apply(params, observation), params["params"]

    values, params = play(jax.random.key(0), 0.0)
    shifted, _ = play(jax.random.key(0), 5.0)
    np.testing.assert_allclose(values, shifted, atol=1e-5)  # a common shift of the advantages changes nothing
    features = np.tanh(observation @ params["torso"]["dense_0"]["kernel"])
    value = float((features @ params["value_head"]["kernel"])[0]) + 2.0
    np.testing.assert_allclose(np.mean(values), value, rtol=1e-5)
    advantages = features @ params["head"]["kernel"]
    np.testing.assert_allclose(values, value + advantages - advantages.mean(), rtol=1e-5)

    plain = QNetwork(NetworkConfig(hidden_sizes=(8,)), 3)
    names = jax.eval_shape(plain.init, jax.random.key(0), observation)["params"]
    assert set(names) == {"torso", "head"}


# --- description of layers

ACTIVATIONS = {
    "none": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "tanh": np.tanh,
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
}


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def follow(layers, x, memory=None):
    """What the layers say, in NumPy."""
    for layer in layers:
        weights = {
            name: np.asarray(value, np.float64) for name, value in layer.items() if not isinstance(value, str | int)
        }
        if layer["kind"] == "flatten":
            x = x.reshape(-1)
        elif layer["kind"] == "dense":
            x = x @ weights["kernel"] + weights["bias"]
        elif layer["kind"] == "conv":
            x = convolve(x, weights["kernel"], weights["bias"], layer["stride"])
        else:
            gate = {name: side @ weights[f"{name}_kernel"] for side, names in ((x, "ir iz in"), (memory, "hr hz hn"))
                    for name in names.split()}  # fmt: skip
            reset = sigmoid(gate["ir"] + weights["ir_bias"] + gate["hr"])
            update = sigmoid(gate["iz"] + weights["iz_bias"] + gate["hz"])
            new = np.tanh(gate["in"] + weights["in_bias"] + reset * (gate["hn"] + weights["hn_bias"]))
            x = memory = (1 - update) * new + update * memory
        x = ACTIVATIONS[layer["activation"]](x)
    return x, memory


def convolve(image, kernel, bias, stride):
    """Zero padding such that the output has ceil(size / stride) rows and columns, the odd one behind."""
    size = [-(-n // stride) for n in image.shape[:2]]
    pads = [max((m - 1) * stride + k - n, 0) for m, k, n in zip(size, kernel.shape, image.shape)]
    image = np.pad(image, [(pad // 2, pad - pad // 2) for pad in pads] + [(0, 0)])
    rows, columns = kernel.shape[:2]
    return np.array([
        [np.einsum("ijc,ijco->o", image[r : r + rows, c : c + columns], kernel) + bias
         for c in range(0, size[1] * stride, stride)]
        for r in range(0, size[0] * stride, stride)
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("config", "shape", "kinds"),
    [
        (MLP, (4,), "flatten dense dense dense"),
        (CNN, IMAGE, "conv conv flatten dense dense"),
        (GRU, (4,), "flatten dense gru dense"),
    ],
    ids=["mlp", "cnn", "gru"],
)
def test_layers_say_what_the_network_does(config, shape, kinds):
    network, params, apply = build(config, shape)
    inner = params["params"]
    layers = describe_layers(config, inner["actor"], inner["actor_head"])
    assert " ".join(layer["kind"] for layer in layers) == kinds
    generator = np.random.default_rng(0)
    carry, memory = network.start(), np.zeros(6)
    for _ in range(3):
        observation = generator.normal(size=shape).astype(np.float32)
        carry, (outputs, _, _) = apply(params, carry, observation, observation)
        expected, memory = follow(layers, observation, memory)
        np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"torso": "mpl"}, "network.torso must be one of mlp, cnn, gru, got 'mpl'; did you mean 'mlp'?"),
        ({"activation": "swosh"}, "got 'swosh'; did you mean 'swish'?"),
        ({"activation": "sine"}, "network.activation must be one of tanh, relu, elu, swish, gelu, got 'sine'"),
        ({"hidden_sizes": (64, 0)}, "network.hidden_sizes must be positive integers, got (64, 0)"),
        ({"cnn_channels": (-1,)}, "network.cnn_channels must be positive integers, got (-1,)"),
        ({"gru_size": 0}, "network.gru_size must be positive, got 0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(ValueError) as refusal:
        NetworkConfig(**settings)
    assert message in str(refusal.value)
