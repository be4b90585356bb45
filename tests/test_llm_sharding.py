"""Models over a mesh: the same numbers as on one device, each device with its part, rules that are checked."""

import functools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

import sharded_llm
from jaxrl import distributed
from jaxrl.llm.lora import LoraConfig, init_adapters
from jaxrl.llm.model import TransformerLM
from jaxrl.llm.parameters import flatten
from jaxrl.llm.sharding import (
    RULES,
    cache_sharding,
    hidden_sharding,
    make_mesh,
    param_sharding,
    shard_batch,
    shard_params,
    state_sharding,
)
from llm_models import random_params, tiny
from programs import compiled

CONFIG = sharded_llm.CONFIG


@functools.cache
def mesh():
    return make_mesh(1, 2, 2)


def script(num_devices, *arguments, **variables):
    folder = Path(__file__).parent
    flags = f"--xla_force_host_platform_device_count={num_devices}"
    environment = {**os.environ, "PYTHONPATH": str(folder), "XLA_FLAGS": flags, **variables}
    command = [sys.executable, str(folder / "sharded_llm.py"), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def answer(process):
    out, errors = process.communicate(timeout=500)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def test_loss_and_gradient_on_four_devices():
    value, gradient, _ = sharded_llm.loss_and_gradient()
    other, other_gradient, text = sharded_llm.loss_and_gradient(mesh())
    assert other == pytest.approx(value, abs=1e-5)
    assert sharded_llm.difference(gradient, other_gradient) <= 1e-5
    assert "all-gather" in text


@pytest.mark.slow
def test_loss_and_gradient_on_eight_devices(tmp_path):
    found = answer(script(8, "meshes", tmp_path))
    for sizes in sharded_llm.MESHES:
        result = found[str(sizes)]
        assert result["loss"] == pytest.approx(found["loss"], abs=1e-5)
        assert result["gradient"] <= 1e-5
    assert found["(8, 1, 1)"]["collectives"] == ["all-reduce"]
    split = found["(1, 8, 1)"]["collectives"]
    assert "all-gather" in split
    assert {"all-reduce", "reduce-scatter"} & set(split)
    sizes = found["bytes"]
    assert sizes["device"] == sizes["moments"] == (sizes["total"] - sizes["norms"]) / 8 + sizes["norms"]
    assert found["split"] == "P(None, 'fsdp', 'tensor')"
    assert found["restored"]


@pytest.mark.slow
def test_two_processes():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    variables = {distributed.ADDRESS: address, distributed.NUM_PROCESSES: "2"}
    pair = [script(4, "processes", **variables, **{distributed.PROCESS_ID: str(i)}) for i in range(2)]
    results = [answer(process) for process in pair]
    value, gradient, _ = sharded_llm.loss_and_gradient()
    for result in results:
        assert result["joined"]
        assert result["devices"] == 8
        assert result["loss"] == pytest.approx(value, abs=1e-5)
        assert result["norm"] == pytest.approx(float(optax.tree.norm(gradient)), rel=1e-5)


def test_a_split_cache_gives_the_same_logits():
    config = tiny(vocab_size=64)
    params, tokens = random_params(config, scale=0.2), np.arange(12, dtype=np.int32).reshape(4, 3)

    def logits(sharding, params, tokens, cache):
        return TransformerLM(config, sharding=sharding).apply(params, tokens, cache=cache)

    cache = TransformerLM(config).init_cache(4, 8, ragged=True)
    expected, _ = compiled(functools.partial(logits, None))(params, tokens, cache)
    placed = jax.device_put(cache, cache_sharding(cache, mesh()))
    assert placed.keys[0].sharding.spec == P(("data", "fsdp"), "tensor")
    assert placed.index.sharding.spec == P(("data", "fsdp"))
    split = compiled(functools.partial(logits, hidden_sharding(mesh())))
    found, _ = split(shard_params(params, mesh()), shard_batch(tokens, mesh()), placed)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gpt2"])
def test_every_parameter_has_a_rule(family):
    config = tiny(family, vocab_size=64)
    shapes = jax.eval_shape(TransformerLM(config).init, jax.random.key(0))
    specs = {path: sharding.spec for path, sharding in flatten(param_sharding(shapes, mesh())).items()}
    assert specs["layers.attn.q"] == P(None, "fsdp", "tensor", None)
    assert specs["norm_final"] == P()
    whole = [path for path, spec in specs.items() if not any(spec)]
    assert all("norm" in path or path.endswith(("o_bias", "down_bias")) for path in whole)
    adapters = init_adapters(config, LoraConfig(rank=2), jax.random.key(0))
    assert param_sharding(adapters, mesh())["attn.q"]["a"].spec == P()


def test_few_heads_of_keys_are_whole_on_every_device():
    params = random_params(tiny(vocab_size=64, num_kv_heads=1))
    specs = param_sharding(params, mesh())["layers"]["attn"]
    assert specs["k"].spec == P(None, "fsdp", None, None)
    assert specs["q"].spec == P(None, "fsdp", "tensor", None)


def test_the_state_of_an_optimiser_follows():
    params = random_params(CONFIG)
    shardings = param_sharding(params, mesh())
    state = jax.eval_shape(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init, params)
    moments, *_ = state_sharding(state, shardings)[1]
    assert jax.tree.all(jax.tree.map(lambda a, b: a == b, moments.mu, shardings))
    assert moments.nu["embed"] == shardings["embed"]
    assert moments.count.spec == P()


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"embed": P("tensor")}, r"no rule fits the parameter 'layers\.attn\.k'"),
        (RULES | {"layers.mpl.*": P()}, r"the rule 'layers\.mpl\.\*' fits no parameter"),
        (RULES | {"norm_final": P("tensor", "fsdp")}, r"has more axes than norm_final \(32,\)"),
        (RULES | {"norm_final": P("model")}, r"names 'model'; the mesh has data, fsdp, tensor"),
        (
            RULES | {r"layers\.norm_mlp": P(("fsdp", "tensor"))},
            r"splits layers\.norm_mlp \(2, 32\) into 4, .* divide 2",
        ),
    ],
)
def test_rules_are_checked(rules, message):
    params = random_params(CONFIG)
    with pytest.raises(ValueError, match=message):
        param_sharding(params, mesh(), rules)


def test_the_last_rule_that_fits_decides():
    specs = param_sharding(random_params(CONFIG), mesh(), RULES | {r"layers\.mlp\..*": P(None, "tensor")})
    assert specs["layers"]["mlp"]["down"].spec == P(None, "tensor")
    assert specs["layers"]["attn"]["o"].spec == RULES[r"layers\.attn\.o"]


def test_what_is_refused():
    with pytest.raises(ValueError, match=r"data=1 \* fsdp=3 \* tensor=1 must be the 4 devices"):
        make_mesh(fsdp=3)
    with pytest.raises(ValueError, match="tensor must be at least 1, got 0"):
        make_mesh(tensor=0)
    with pytest.raises(ValueError, match=r"mask must have a multiple of data \* fsdp = 2 rows, got 3"):
        shard_batch({"mask": np.zeros((3, 2))}, mesh())


def test_when_there_are_other_processes(monkeypatch):
    assert not distributed.wanted({})
    assert not distributed.wanted({"SLURM_NTASKS": "4"})  # a shell inside an allocation
    assert distributed.wanted({"SLURM_NTASKS": "4", "SLURM_STEP_ID": "0"})
    assert not distributed.wanted({"TPU_WORKER_HOSTNAMES": "localhost"})
    assert distributed.wanted({"TPU_WORKER_HOSTNAMES": "a,b"})
    monkeypatch.setenv(distributed.ADDRESS, "127.0.0.1:1")
    monkeypatch.setenv(distributed.NUM_PROCESSES, "2")
    monkeypatch.delenv(distributed.PROCESS_ID, raising=False)
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be a number, got ''"):
        distributed.initialize()
    monkeypatch.setenv(distributed.PROCESS_ID, "2")
    with pytest.raises(ValueError, match="JAX_PROCESS_ID must be less than JAX_NUM_PROCESSES = 2, got 2"):
        distributed.initialize()
