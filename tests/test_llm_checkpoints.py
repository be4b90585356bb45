"""Checkpoint folders: exact round trips, shards, and errors that name what is wrong."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxrl.llm.checkpoints import INDEX, WEIGHTS, load_hf, save_hf, tensor_map
from jaxrl.llm.config import FAMILIES
from jaxrl.llm.parameters import flatten
from jaxrl.llm.sharding import RULES, make_mesh
from jaxrl.llm.tensor_files import read_tensors, write_tensors
from llm_models import random_params, tiny


def assert_same(params, other):
    assert jax.tree.structure(params) == jax.tree.structure(other)
    for (path, leaf), value in zip(flatten(params).items(), flatten(other).values(), strict=True):
        assert leaf.dtype == value.dtype, path
        np.testing.assert_array_equal(leaf, value, err_msg=path)


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trips_are_exact(family, tmp_path):
    config = tiny(family, eos_ids=(2,))
    params = random_params(config)
    save_hf(tmp_path / "a", config, params)
    read_config, read = load_hf(tmp_path / "a")
    assert read_config == config
    assert_same(read, params)
    save_hf(tmp_path / "b", read_config, read)
    assert (tmp_path / "a" / WEIGHTS).read_bytes() == (tmp_path / "b" / WEIGHTS).read_bytes()
    generation = tmp_path / "a" / "generation_config.json"
    assert json.loads(generation.read_text()) == {"eos_token_id": 2}
    generation.write_text('{"eos_token_id": [2, 5]}')  # as chat models add the end of a turn
    assert load_hf(tmp_path / "a")[0].eos_ids == (2, 5)


def test_number_of_tensors_of_each_family():
    """As transformers writes them for two layers, the embeddings of Qwen3 and GPT-2 tied."""
    counts = {family: len(tensor_map(tiny(family))) for family in FAMILIES}
    assert counts == {"llama": 21, "qwen2": 27, "qwen3": 24, "gpt2": 28}


def test_shards_hold_the_same_as_one_file(tmp_path):
    config = tiny("llama")
    params = random_params(config, "bfloat16")
    save_hf(tmp_path, config, params, max_shard_bytes=20_000)
    files = sorted(path.name for path in tmp_path.glob("*.safetensors"))
    assert len(files) > 2
    assert files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    read_config, read = load_hf(tmp_path)
    assert read_config.dtype == "bfloat16"
    assert_same(read, params)
    assert {leaf.dtype for leaf in flatten(load_hf(tmp_path, "float32")[1]).values()} == {jnp.dtype("float32")}
    save_hf(tmp_path, config, params)  # over it, in one piece: the index must not survive
    assert not (tmp_path / INDEX).exists()
    assert_same(load_hf(tmp_path)[1], params)


def test_leaves_are_placed_on_their_devices(tmp_path):
    config = tiny("qwen3")
    params = random_params(config)
    save_hf(tmp_path, config, params)
    mesh = make_mesh(tensor=2, devices=jax.devices()[:2])
    rules = RULES | {"embed": P(None, "tensor")}  # 29 words do not divide
    placed = load_hf(tmp_path, mesh=mesh, rules=rules)[1]
    assert_same(placed, params)
    query = flatten(placed)["layers.attn.q"]
    assert query.addressable_shards[0].data.shape == (2, 32, 2, 16)


def test_names_of_a_model_without_head_and_buffers_of_old_files(tmp_path):
    config = tiny("gpt2")
    params = random_params(config)
    save_hf(tmp_path, config, params)
    tensors = read_tensors(tmp_path / WEIGHTS)
    bare = {name.removeprefix("transformer."): np.array(tensor) for name, tensor in tensors.items()}
    write_tensors(tmp_path / WEIGHTS, bare | {"h.0.attn.bias": np.ones((1, 1, 4, 4), np.uint8)})
    with pytest.raises(ValueError, match=r"holds unknown transformer\.h\.0\.attn\.bias"):
        load_hf(tmp_path)
    assert_same(load_hf(tmp_path, strict=False)[1], params)


def test_what_does_not_fit_is_named(tmp_path):
    config = tiny("qwen2")
    save_hf(tmp_path, config, random_params(config))
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(tmp_path / WEIGHTS).items()}
    without = {name: tensor for name, tensor in tensors.items() if name != "model.layers.1.mlp.up_proj.weight"}
    write_tensors(
        tmp_path / WEIGHTS, without | {"model.layers.0.self_attn.q_norm.weight": tensors["model.norm.weight"]}
    )
    with pytest.raises(ValueError, match=r"lacks model\.layers\.1\.mlp\.up_proj\.weight and holds unknown .*0.*q_norm"):
        load_hf(tmp_path)
    write_tensors(tmp_path / WEIGHTS, tensors | {"model.norm.weight": np.ones(7, np.float32)})
    with pytest.raises(ValueError, match=r"wrong shape: model\.norm\.weight \(7,\) instead of \(32,\)"):
        load_hf(tmp_path)
    (tmp_path / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=f"has no {WEIGHTS}"):
        load_hf(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        load_hf(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match=r"not those of the configuration: layers\.mlp\.down \(2, 48, 32\) instead of"):
        save_hf(tmp_path, tiny("qwen2", intermediate_size=40), random_params(config))


def test_missing_and_wrongly_listed_shards(tmp_path):
    config = tiny("llama")
    save_hf(tmp_path, config, random_params(config), max_shard_bytes=40_000)
    index = json.loads((tmp_path / INDEX).read_text())
    first, second = sorted(set(index["weight_map"].values()))[:2]
    index["weight_map"]["model.norm.weight"] = second
    original = (tmp_path / INDEX).read_text()
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"disagree about model\.norm\.weight"):
        load_hf(tmp_path)
    (tmp_path / INDEX).write_text(original)
    (tmp_path / first).unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks 1 of .* shards: {first}"):
        load_hf(tmp_path)


def test_tensor_files_keep_types_and_notice_damage(tmp_path):
    path = tmp_path / "x.safetensors"
    tensors = {
        "half": np.arange(3).astype(jnp.bfloat16),
        "scalar": np.array(2.5, np.float64),
        "empty": np.zeros((0, 4), np.float32),
        "flags": np.array([[True], [False]]),
    }
    write_tensors(path, tensors)
    read = read_tensors(path)
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype
        assert read[name].shape == tensor.shape
        np.testing.assert_array_equal(read[name], tensor)
    content = path.read_bytes()
    for damaged, message in [
        (content[:-1], "cut short"),
        (content + b"x", "bytes follow"),
        (content[:4], "no safetensors file"),
        (b"\xff" * 8 + content, "no safetensors file"),
        (content[:8] + b"?" + content[9:], "not JSON"),
        (content.replace(b'"BF16"', b'"F8XX"'), "half is of type F8XX"),
    ]:
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=message):
            read_tensors(path)
    with pytest.raises(ValueError, match="bad is of type complex64"):
        write_tensors(path, {"bad": np.zeros(2, np.complex64)})
