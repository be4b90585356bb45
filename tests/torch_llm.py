"""Tiny models of transformers on PyTorch, independent of jaxrl; writes tests/golden/llm/*.npz.

pip install torch transformers && python tests/torch_llm.py
"""

import json
import tempfile
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "llm"
LENGTH, BATCH, LONG, NEW_TOKENS = 16, 2, 128, 32
TAIL = 8  # of the long row's positions, the last so many are kept
SAMPLES = 12  # entries of each tensor's gradient that are kept
_SIZES = {"vocab_size": 61, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
_ROPE3 = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_COMMON = _SIZES | {"num_attention_heads": 4, "max_position_embeddings": 192, "eos_token_id": None}
FAMILIES = {
    # name: (prefix of the classes, settings); query heads per key-value head: 2, 2, 4, 1 and 1
    "qwen3": ("Qwen3", _COMMON | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "qwen3_untied": ("Qwen3", _COMMON | {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": False}),
    "qwen2": ("Qwen2", _COMMON | {"num_key_value_heads": 1, "tie_word_embeddings": True}),
    "llama": ("Llama", _COMMON | {"num_key_value_heads": 4, "head_dim": 12, "rope_parameters": _ROPE3}),
    "llama_biases": ("Llama", _COMMON | {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}),
    "gpt2": (
        "GPT2",
        {"vocab_size": 61, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_inner": 40, "n_positions": 192},
    ),
}
FROZEN = ("qwen3", "qwen2", "llama", "gpt2")


def make_model(name):
    """A model whose weights are large enough for errors to show: std 0.9 / sqrt(fan in), norms 0.5 to 1.5."""
    import torch
    import transformers

    prefix, settings = FAMILIES[name]
    settings = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | settings
    config = getattr(transformers, f"{prefix}Config")(**settings)
    head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    model = getattr(transformers, prefix + head)(config).float().eval()
    generator = np.random.default_rng(sorted(FAMILIES).index(name))
    with torch.no_grad():
        for key, tensor in model.named_parameters():
            if tensor.ndim == 1:
                weight = "norm" in key or ".ln_" in key
                draw = generator.uniform(0.5, 1.5, tensor.shape) if weight and key.endswith("weight") else None
                draw = 0.1 * generator.standard_normal(tensor.shape) if draw is None else draw
            else:
                conv1d = prefix == "GPT2" and ".h." in key
                embedding = any(part in key for part in ("embed_tokens", "wte", "wpe"))
                fan_in = 1 if embedding else tensor.shape[0 if conv1d else 1]
                draw = generator.standard_normal(tensor.shape) * 0.9 / np.sqrt(fan_in)
            # Numbers of half precision: the fixtures are half as large and nothing is lost.
            tensor.copy_(torch.from_numpy(draw.astype(np.float16).astype(np.float32)))
    return model


def make_tokens():
    """Two rows of 16 tokens and one of 128."""
    generator = np.random.default_rng(7)
    vocab_size = _SIZES["vocab_size"]
    return generator.integers(0, vocab_size, (BATCH, LENGTH)), generator.integers(0, vocab_size, (1, LONG))


def logits_of(model, tokens):
    import torch

    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(tokens)).long()).logits.float().numpy()


def gradients_of(model, tokens):
    """The mean token loss and its gradient by name."""
    import torch

    tokens = torch.from_numpy(np.asarray(tokens)).long()
    model.zero_grad()
    logits = model(tokens).logits[:, :-1]
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    return loss.item(), {key: parameter.grad.numpy() for key, parameter in model.named_parameters()}


def greedy(model, tokens, num_tokens=NEW_TOKENS):
    import torch

    prompt = torch.from_numpy(np.asarray(tokens)).long()
    settings = {"do_sample": False, "max_new_tokens": num_tokens, "pad_token_id": 0, "eos_token_id": None}
    return model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings).numpy()[:, prompt.shape[1] :]


def sampled(gradient):
    """The entries of a gradient that a fixture keeps, evenly spaced."""
    flat = gradient.reshape(-1)
    return flat[np.linspace(0, flat.size - 1, min(SAMPLES, flat.size)).astype(int)]


def write(name):
    model = make_model(name)
    tokens, long_tokens = make_tokens()
    loss, gradients = gradients_of(model, tokens)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        config = json.loads((Path(folder) / "config.json").read_text())
        stored = set(_names(Path(folder) / "model.safetensors"))
    exact = logits_of(model, tokens)
    content = {
        "config": np.array(json.dumps(config)),
        "tokens": tokens.astype(np.int32),
        "long_tokens": long_tokens.astype(np.int32),
        "logits": exact,
        "long_logits": logits_of(model, long_tokens)[:, -TAIL:],
        "greedy": greedy(model, tokens).astype(np.int32),
        "loss": np.float32(loss),
    }
    content |= {
        f"weight/{key}": value.numpy().astype(np.float16) for key, value in model.state_dict().items() if key in stored
    }
    for key, gradient in gradients.items():
        content[f"gradient/{key}"] = sampled(gradient)
        content[f"norm/{key}"] = np.float32(np.linalg.norm(gradient))
    content["bfloat16_error"] = np.float32(np.abs(logits_of(model.bfloat16(), tokens) - exact).mean())
    GOLDEN.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN / f"{name}.npz", **content)


def _names(path):
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [key for key in header if key != "__metadata__"]


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    for family in FROZEN:
        write(family)
        print(family, (GOLDEN / f"{family}.npz").stat().st_size, "bytes")
