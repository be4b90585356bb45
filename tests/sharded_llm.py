"""A loss and its gradient on meshes of 8 devices: prints what test_llm_sharding.py asks, one JSON object.

    python tests/sharded_llm.py meshes FOLDER    8 devices of one process; a checkpoint goes to FOLDER
    python tests/sharded_llm.py processes        4 devices of each of two processes, by jaxrl.distributed

XLA_FLAGS=--xla_force_host_platform_device_count=N gives the devices.
"""

import functools
import json
import sys
from pathlib import Path

import jax
import numpy as np
import optax

from jaxrl.distributed import initialize
from jaxrl.llm.losses import aggregate
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import flatten
from jaxrl.llm.sharding import hidden_sharding, make_mesh, param_sharding, shard_batch, shard_params, state_sharding
from jaxrl.run.checkpoint import CheckpointWriter, list_checkpoints, restore
from llm_models import random_params, tiny
from programs import bits, compiled

# Two heads of keys and values: eight devices along `tensor` must all have both.
CONFIG = tiny(vocab_size=64, num_heads=8, num_kv_heads=2, head_dim=8)
BATCH, LENGTH = 8, 16
MESHES = ((8, 1, 1), (1, 8, 1), (2, 2, 2), (1, 1, 8))
OPTIMIZER = optax.adamw(1e-3)


def inputs():
    """Parameters and a batch in which each sequence trains another number of tokens."""
    tokens = np.random.default_rng(3).integers(0, CONFIG.vocab_size, (BATCH, LENGTH), np.int32)
    mask = np.arange(LENGTH)[None] < 2 + 2 * np.arange(BATCH)[:, None]
    mask[:, 0] = False
    return random_params(CONFIG, scale=0.2), {"tokens": tokens, "mask": mask}


def loss(model, params, batch):
    """The mean over all trained tokens of all devices."""
    log_probs, _ = model.token_log_probs(params, batch["tokens"])
    return aggregate(-log_probs, batch["mask"])


def loss_and_gradient(mesh=None):
    """Of the inputs, whole or on a mesh; with the compiled text."""
    params, batch = inputs()
    model = TransformerLM(CONFIG, sharding=None if mesh is None else hidden_sharding(mesh))
    if mesh is not None:
        params, batch = shard_params(params, mesh), shard_batch(batch, mesh)
    function = compiled(jax.value_and_grad(functools.partial(loss, model))).lower(params, batch).compile()
    value, gradient = function(params, batch)
    return float(value), gradient, function.as_text()


def difference(gradient, other):
    gaps = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - np.asarray(b)).max(), gradient, other)
    return float(max(jax.tree.leaves(gaps)))


def device_bytes(tree):
    """Of the parts that the first device holds."""
    return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))


def train_step(mesh, params, opt_state, batch):
    """One compiled step of AdamW, the state donated; parameters and moments stay where they lie."""
    model = TransformerLM(CONFIG, sharding=hidden_sharding(mesh))

    def step(params, opt_state, batch):
        gradient = jax.grad(functools.partial(loss, model))(params, batch)
        change, opt_state = OPTIMIZER.update(gradient, opt_state, params)
        return optax.apply_updates(params, change), opt_state

    out = jax.tree.map(lambda leaf: leaf.sharding, (params, opt_state))
    return jax.jit(step, donate_argnums=(0, 1), out_shardings=out)(params, opt_state, batch)


def start(mesh):
    """Parameters and state of the optimiser on a mesh."""
    params, _ = inputs()
    shardings = param_sharding(params, mesh)
    opt_state = OPTIMIZER.init(params)
    return jax.device_put(params, shardings), jax.device_put(opt_state, state_sharding(opt_state, shardings))


def meshes(folder):
    value, gradient, _ = loss_and_gradient()
    result = {"loss": value}
    for sizes in MESHES:
        other, other_gradient, text = loss_and_gradient(make_mesh(*sizes))
        result[str(sizes)] = {
            "loss": other,
            "gradient": difference(gradient, other_gradient),
            "collectives": [name for name in ("all-gather", "reduce-scatter", "all-reduce") if name in text],
        }
    fsdp = make_mesh(fsdp=8)
    params, opt_state = start(fsdp)
    flat = flatten(params)
    result["bytes"] = {
        "device": device_bytes(params),
        "moments": device_bytes(opt_state[0].mu),
        "total": sum(leaf.nbytes for leaf in flat.values()),
        "norms": sum(leaf.nbytes for path, leaf in flat.items() if "norm" in path),
    }
    params, opt_state = train_step(fsdp, params, opt_state, shard_batch(inputs()[1], fsdp))
    result["split"] = str(opt_state[0].mu["layers"]["mlp"]["up"].sharding.spec)
    return result | {"restored": restored(folder, (params, opt_state))}


def restored(folder, state):
    """Whether a state written on one mesh is the same on another, and lies there as the rules say."""
    writer = CheckpointWriter(Path(folder), keep=1)
    writer.save(state, 1, {})
    writer.wait()
    like = start(make_mesh(2, 2, 2))
    back, _ = restore(list_checkpoints(Path(folder))[0], like)
    same_place = jax.tree.map(lambda a, b: a.sharding == b.sharding, back, like)
    return bits(back) == bits(state) and all(jax.tree.leaves(same_place))


def processes():
    joined = initialize()
    mesh = make_mesh(2, 2, 2)
    params, batch = inputs()
    mine = slice(jax.process_index() * BATCH // 2, (jax.process_index() + 1) * BATCH // 2)
    batch = shard_batch(jax.tree.map(lambda leaf: leaf[mine], batch), mesh)
    model = TransformerLM(CONFIG, sharding=hidden_sharding(mesh))
    value, gradient = compiled(jax.value_and_grad(functools.partial(loss, model)))(shard_params(params, mesh), batch)
    norm = compiled(optax.tree.norm)(gradient)
    return {"joined": joined, "devices": jax.device_count(), "loss": float(value), "norm": float(norm)}


if __name__ == "__main__":
    print(json.dumps(meshes(sys.argv[2]) if sys.argv[1] == "meshes" else processes()))
