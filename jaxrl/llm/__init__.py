"""Language models: a decoder-only transformer, its checkpoints, tokenizers, generation, adapters and losses.

    from jaxrl import llm
    config, params = llm.load_hf("a/checkpoint/folder")
    model = llm.TransformerLM(config)
    result = llm.generate(model, params, tokens, key, max_new=32, sampling=llm.make_sampling(temperature=0.7))

Names are imported on first use. Losses are in `jaxrl.llm.losses`, advantages in `jaxrl.llm.advantages`, adapters in
`jaxrl.llm.lora`, conversations in `jaxrl.llm.chat`, models over many devices in `jaxrl.llm.sharding`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxrl.llm.checkpoints import load_hf, save_hf
    from jaxrl.llm.config import LMConfig, preset
    from jaxrl.llm.generation import Constraint, Generation, generate
    from jaxrl.llm.hf_tokenizers import FastTokenizer, HFTokenizer
    from jaxrl.llm.lora import LoraConfig, load_peft, save_peft
    from jaxrl.llm.model import TransformerLM
    from jaxrl.llm.sampling import make_sampling
    from jaxrl.llm.tokenizers import ByteTokenizer, TableTokenizer
    from jaxrl.llm.tool_calls import parse_tool_calls

_WHERE = {
    "ByteTokenizer": "tokenizers",
    "Constraint": "generation",
    "FastTokenizer": "hf_tokenizers",
    "Generation": "generation",
    "HFTokenizer": "hf_tokenizers",
    "LMConfig": "config",
    "LoraConfig": "lora",
    "TableTokenizer": "tokenizers",
    "TransformerLM": "model",
    "generate": "generation",
    "load_hf": "checkpoints",
    "load_peft": "lora",
    "make_sampling": "sampling",
    "parse_tool_calls": "tool_calls",
    "preset": "config",
    "save_hf": "checkpoints",
    "save_peft": "lora",
}

__all__ = [
    "ByteTokenizer",
    "Constraint",
    "FastTokenizer",
    "Generation",
    "HFTokenizer",
    "LMConfig",
    "LoraConfig",
    "TableTokenizer",
    "TransformerLM",
    "generate",
    "load_hf",
    "load_peft",
    "make_sampling",
    "parse_tool_calls",
    "preset",
    "save_hf",
    "save_peft",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'jaxrl.llm' has no attribute {name!r}")
    return getattr(importlib.import_module(f"jaxrl.llm.{_WHERE[name]}"), name)
