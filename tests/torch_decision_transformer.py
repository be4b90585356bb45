"""A Decision Transformer in PyTorch, independent of jaxrl; writes tests/golden/decision_transformer.npz.

pip install torch && python tests/torch_decision_transformer.py
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "decision_transformer.npz"
SIZES = {"observation": 3, "action": 2, "context": 4, "width": 16, "layers": 2, "heads": 2, "times": 12}
UPDATES = {"learning_rate": 1e-2, "warmup": 2, "weight_decay": 1e-2, "max_grad_norm": 0.25, "number": 3}
BATCH = 5


def make_model(torch, observation, action, context, width, layers, heads, times, dropout=0.0):
    nn = torch.nn

    class Layer(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
            self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            self.drop = nn.Dropout(dropout)

        def forward(self, x, causal, padding):
            y = self.norm1(x)
            y, _ = self.attention(y, y, y, attn_mask=causal, key_padding_mask=padding, need_weights=False)
            x = x + self.drop(y)
            return x + self.drop(self.network(self.norm2(x)))

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Embedding(times, width)
            self.ret, self.obs, self.act = nn.Linear(1, width), nn.Linear(observation, width), nn.Linear(action, width)
            self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
            self.layers = nn.ModuleList(Layer() for _ in range(layers))
            self.head, self.drop = nn.Linear(width, action), nn.Dropout(dropout)

        def forward(self, observations, actions, returns, time, mask):
            t = self.time(time)
            tokens = [self.ret(returns[..., None]) + t, self.obs(observations) + t, self.act(actions) + t]
            x = self.drop(self.norm_in(torch.stack(tokens, 2).flatten(1, 2)))
            causal = torch.triu(torch.ones(3 * context, 3 * context, dtype=torch.bool), 1)
            padding = ~mask.repeat_interleave(3, 1)
            for layer in self.layers:
                x = layer(x, causal, padding)
            return torch.tanh(self.head(self.norm_out(x)[:, 1::3]))

    return Model()


def main():
    import torch

    torch.manual_seed(0)
    rng, model = np.random.default_rng(0), make_model(torch, **SIZES)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than at the start of a training, so that everything matters
            parameter.add_(0.2 * torch.randn_like(parameter))
    k = SIZES["context"]
    mask = np.arange(k) < np.array([4, 1, 3, 4, 2])[:, None]
    arrays = {
        "observation": rng.normal(size=(BATCH, k, SIZES["observation"])).astype(np.float32),
        "action": rng.uniform(-1, 1, (BATCH, k, SIZES["action"])).astype(np.float32),
        "return_to_go": rng.normal(size=(BATCH, k)).astype(np.float32),
        "time": (np.arange(k) + np.array([0, 3, 1, 8, 5])[:, None]).astype(np.int32),
        "mask": mask,
    }
    inputs = [torch.from_numpy(arrays[name].astype(np.int64) if name == "time" else arrays[name]) for name in arrays]
    arrays |= {f"before.{name}": value.numpy().copy() for name, value in model.state_dict().items()}

    def loss(divisor):
        errors = (model(*inputs) - inputs[1]) ** 2 * inputs[4][..., None]
        return errors.sum() / divisor

    num_actions = SIZES["action"]
    arrays["predictions"] = model(*inputs).detach().numpy()
    arrays["loss"] = loss(mask.sum() * num_actions).detach().numpy()
    arrays["loss_with_padding"] = loss(mask.size * num_actions).detach().numpy()
    settings = {"lr": UPDATES["learning_rate"], "weight_decay": UPDATES["weight_decay"], "betas": (0.9, 0.999)}
    optimizer = torch.optim.AdamW(model.parameters(), **settings)
    warmup = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: min((n + 1) / UPDATES["warmup"], 1))
    for _ in range(UPDATES["number"]):
        optimizer.zero_grad()
        loss(mask.sum() * num_actions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), UPDATES["max_grad_norm"])
        optimizer.step()
        warmup.step()
    arrays |= {f"after.{name}": value.numpy() for name, value in model.state_dict().items()}
    np.savez_compressed(GOLDEN, **arrays)
    full = make_model(torch, 17, 6, 20, 128, 3, 1, 1020)
    print(GOLDEN, "parameters at S = 17, A = 6:", sum(p.numel() for p in full.parameters()))


if __name__ == "__main__":
    main()
