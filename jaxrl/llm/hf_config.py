"""Hugging Face's config.json of Llama, Qwen2, Qwen3 and GPT-2, of transformers 4 and 5, as an `LMConfig` and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl.llm.config import FAMILIES, LMConfig, RopeScaling, one_of

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
}
# Keys of config.json that change the model in a way that is not implemented, and the values that leave it unchanged.
_UNCHANGED = {
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "add_cross_attention": (None, False),
    "scale_attn_weights": (None, True),
    "scale_attn_by_inverse_layer_idx": (None, False),
    "is_decoder": (None, True, False),
}


def from_hf(source: Mapping[str, Any]) -> LMConfig:
    """The configuration in a parsed config.json, of transformers 4 (`rope_theta`, `torch_dtype`) or 5.

    Raises:
        ValueError: the model is of another family or uses something that is not implemented; names the key.
    """
    family = _required(source, "model_type")
    one_of("model_type", family, FAMILIES)
    for key, allowed in _UNCHANGED.items():
        if source.get(key) not in allowed:
            raise ValueError(f"{key} = {source[key]!r} is not supported; allowed: {', '.join(map(str, allowed))}")
    common: dict[str, Any] = {
        "family": family,
        "vocab_size": _required(source, "vocab_size"),
        "initial_std": source.get("initializer_range", 0.02),
        "dtype": str(source.get("dtype") or source.get("torch_dtype") or "float32").removeprefix("torch."),
        "bos_id": source.get("bos_token_id"),
        "eos_ids": _ids(source.get("eos_token_id")),
        "pad_id": source.get("pad_token_id"),
    }
    return _from_gpt2(source, common) if family == "gpt2" else _from_llama(source, common)


def _from_gpt2(source: Mapping[str, Any], common: dict[str, Any]) -> LMConfig:
    hidden_size = _required(source, "n_embd")
    return LMConfig(
        **common,
        hidden_size=hidden_size,
        num_layers=_required(source, "n_layer"),
        num_heads=_required(source, "n_head"),
        intermediate_size=source.get("n_inner") or 4 * hidden_size,
        activation=source.get("activation_function", "gelu_new"),
        norm_epsilon=source.get("layer_norm_epsilon", 1e-5),
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        tie_embeddings=source.get("tie_word_embeddings", True),
        max_positions=source.get("n_positions", 1024),
    )


def _from_llama(source: Mapping[str, Any], common: dict[str, Any]) -> LMConfig:
    family, num_layers = common["family"], _required(source, "num_hidden_layers")
    other = sorted(set(source.get("layer_types") or ()) - {"full_attention"})
    if other:
        raise ValueError(f"layer_types holds {', '.join(other)}; only full_attention is supported")
    window = source.get("sliding_window") if source.get("use_sliding_window") else None
    if window and "layer_types" not in source and source.get("max_window_layers", 0) < num_layers:
        raise ValueError(f"sliding_window = {window} with use_sliding_window is not supported; only full attention is")
    bias = source.get("attention_bias", False)
    theta, scaling = _rope(source)
    return LMConfig(
        **common,
        hidden_size=_required(source, "hidden_size"),
        num_layers=num_layers,
        num_heads=_required(source, "num_attention_heads"),
        num_kv_heads=source.get("num_key_value_heads") or 0,
        # Qwen3's own default is not the quotient of sizes that the others use: it has to be given.
        head_dim=_required(source, "head_dim") if family == "qwen3" else source.get("head_dim") or 0,
        intermediate_size=_required(source, "intermediate_size"),
        activation=source.get("hidden_act", "silu"),
        norm_epsilon=source.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        qkv_bias=True if family == "qwen2" else bias,
        output_bias=False if family == "qwen2" else bias,
        mlp_bias=source.get("mlp_bias", False) if family == "llama" else False,
        qk_norm=family == "qwen3",
        tie_embeddings=source.get("tie_word_embeddings", False),
        max_positions=source.get("max_position_embeddings", 2048),
    )


def _rope(source: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    new = source.get("rope_parameters")
    block = new or source.get("rope_scaling") or {}
    theta = float((new or {}).get("rope_theta") or source.get("rope_theta") or 10_000.0)
    kind = block.get("rope_type", block.get("type", "default"))
    where = "rope_parameters" if new else "rope_scaling"
    one_of(f"{where}.rope_type", kind, ("default", "linear", "llama3"))
    if block.get("partial_rotary_factor", 1.0) != 1.0:
        raise ValueError(f"{where}.partial_rotary_factor = {block['partial_rotary_factor']!r} is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(_required(block, "factor", where)))
    return theta, RopeScaling(
        "llama3",
        float(_required(block, "factor", where)),
        float(_required(block, "low_freq_factor", where)),
        float(_required(block, "high_freq_factor", where)),
        int(_required(block, "original_max_position_embeddings", where)),
    )


def to_hf(config: LMConfig) -> dict[str, Any]:
    """The contents of a config.json in the form of transformers 5.

    Raises:
        ValueError: the family of that name cannot have these settings, so that nobody else could read the file.
    """
    eos = list(config.eos_ids)
    common: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[config.family]],
        "model_type": config.family,
        "vocab_size": config.vocab_size,
        "initializer_range": config.initial_std,
        "tie_word_embeddings": config.tie_embeddings,
        "dtype": config.dtype,
        "bos_token_id": config.bos_id,
        "eos_token_id": eos[0] if len(eos) == 1 else eos or None,
        "pad_token_id": config.pad_id,
    }
    if config.family == "gpt2":
        result = common | {
            "n_embd": config.hidden_size,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.intermediate_size,
            "n_positions": config.max_positions,
            "activation_function": config.activation,
            "layer_norm_epsilon": config.norm_epsilon,
        }
    else:
        result = (
            common
            | {
                "hidden_size": config.hidden_size,
                "num_hidden_layers": config.num_layers,
                "num_attention_heads": config.num_heads,
                "num_key_value_heads": config.num_kv_heads,
                "head_dim": config.head_dim,
                "intermediate_size": config.intermediate_size,
                "hidden_act": config.activation,
                "rms_norm_eps": config.norm_epsilon,
                "max_position_embeddings": config.max_positions,
                "rope_parameters": _rope_parameters(config),
                "attention_bias": config.qkv_bias if config.family != "qwen2" else False,
            }
            | ({"mlp_bias": config.mlp_bias} if config.family == "llama" else {})
        )
    read = from_hf(result)
    differences = [f.name for f in dataclasses.fields(config) if getattr(read, f.name) != getattr(config, f.name)]
    if differences:
        raise ValueError(f"a {config.family} config.json cannot express {', '.join(differences)} of {config}")
    return result


def _rope_parameters(config: LMConfig) -> dict[str, Any]:
    scaling = config.rope_scaling
    if scaling is None:
        return {"rope_type": "default", "rope_theta": config.rope_theta}
    result = {"rope_type": scaling.kind, "rope_theta": config.rope_theta, "factor": scaling.factor}
    if scaling.kind == "llama3":
        result |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return result


def _required(source: Mapping[str, Any], key: str, where: str = "config.json") -> Any:
    if source.get(key) is None:
        raise ValueError(f"{where} has no {key!r}")
    return source[key]


def _ids(value: int | Iterable[int] | None) -> tuple[int, ...]:
    if value is None:
        return ()
    return (value,) if isinstance(value, int) else tuple(value)
