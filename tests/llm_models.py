"""Tiny language models that the tests share."""

import jax.numpy as jnp
import numpy as np

from jaxrl.llm.config import LMConfig, RopeScaling
from jaxrl.llm.parameters import nest, parameter_table, stacked_shape


def tiny(family="qwen3", **changes):
    """Two layers of a family, with a head size that is not the quotient of hidden size and heads."""
    biases = ("qkv_bias", "output_bias", "mlp_bias", "tie_embeddings")
    traits = {
        "llama": {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 64), "rope_theta": 5e5},
        "qwen2": {"qkv_bias": True, "head_dim": 8},
        "qwen3": {"qk_norm": True, "tie_embeddings": True},
        "gpt2": dict.fromkeys(biases, True) | {"activation": "gelu_new", "num_kv_heads": 4, "head_dim": 8},
    }[family]
    sizes = {"vocab_size": 29, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "intermediate_size": 48}
    sizes |= {"num_kv_heads": 2, "head_dim": 16, "max_positions": 64}
    return LMConfig(family=family, **(sizes | traits | changes))


def random_params(config, dtype="float32", scale=1.0):
    """Every leaf different everywhere, as initial ones and zeros hide errors: norms about 1, the rest about 0."""
    generator = np.random.default_rng(1)
    flat = {}
    for path, parameter in parameter_table(config).items():
        values = scale * generator.standard_normal(stacked_shape(config, path, parameter), np.float32)
        is_norm = not parameter.num_inputs and not path.endswith("_bias")
        flat[path] = jnp.asarray((values + is_norm).astype(jnp.dtype(dtype)))
    return nest(flat)
