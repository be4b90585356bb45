"""The same work by transformers on PyTorch, eager, with the same shapes."""

import json
import sys

import numpy as np
import torch
import transformers

from harness import Stopwatch, report

settings = json.loads(sys.argv[1])
work, batch_size, length = settings["work"], settings["batch_size"], settings["length"]
torch.set_num_threads(1)
torch.manual_seed(0)
shape = {
    # As the preset of jaxrl.llm.config.
    "tiny10m": {
        "vocab_size": 4096, "hidden_size": 256, "num_hidden_layers": 8, "num_attention_heads": 8, "head_dim": 32,
        "num_key_value_heads": 4, "intermediate_size": 1024, "tie_word_embeddings": False,
    },
}[settings["model"]]  # fmt: skip
config = transformers.Qwen3Config(**shape, eos_token_id=None, bos_token_id=None, pad_token_id=0)
model = transformers.Qwen3ForCausalLM(config).float().eval()
optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
tokens = torch.from_numpy(np.random.default_rng(0).integers(0, config.vocab_size, (batch_size, length)))


def generate(tokens):
    mask, new = torch.ones_like(tokens), settings["new"]
    found = model.generate(tokens, attention_mask=mask, do_sample=False, max_new_tokens=new, use_cache=True)
    assert found.shape[1] == tokens.shape[1] + new


def forward(tokens):
    with torch.no_grad():
        model(tokens)


def backward(tokens):
    logits = model(tokens).logits[:, :-1]
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()


def step(tokens):
    backward(tokens)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


run = {"generate": generate, "forward": forward, "backward": backward, "step": step}[work]
run(tokens)  # warm-up
with Stopwatch() as running:
    run(tokens)
count = batch_size * (settings["new"] if work == "generate" else length)
report(settings, count, {"seconds": running.wall, "cpu_seconds": running.cpu}, unit="tokens")
