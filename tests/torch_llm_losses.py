"""The losses of language models in PyTorch, written from the papers; writes tests/golden/llm/losses.npz.

pip install torch && python tests/torch_llm_losses.py
"""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "llm" / "losses.npz"
BATCH, LENGTH, VOCAB, GROUP = 4, 9, 7, 2
NUMBERS = {"low": 0.2, "high": 0.28, "dual": 3.0, "beta": 0.3, "smoothing": 0.1, "z": 1e-2, "cap": 2.0, "length": 16.0}


def make_inputs():
    """Random logits of the learner, the actor and the reference; tokens, ragged masks, rewards, values."""
    generator = np.random.default_rng(11)
    shape = (BATCH, LENGTH, VOCAB)
    base = generator.standard_normal(shape)
    draw = {
        "logits": base + 0.5 * generator.standard_normal(shape),
        "old_logits": base + 0.5 * generator.standard_normal(shape),
        "reference_logits": base,
        "rewards": np.array([1.0, 0.25, -0.5, 0.75]),
        "advantages": generator.standard_normal((BATCH, LENGTH)),
        "values": generator.standard_normal((BATCH, LENGTH)),
    }
    lengths = np.array([9, 4, 7, 1])
    mask = np.arange(LENGTH)[None] < lengths[:, None]
    mask[0, 2:4] = False  # a tool's answer in between
    tokens = generator.integers(0, VOCAB, (BATCH, LENGTH))
    return {key: value.astype(np.float32) for key, value in draw.items()} | {
        "tokens": tokens.astype(np.int32),
        "mask": mask,
    }


def results(torch, inputs):
    """Name -> number or array; the gradient of every loss with regard to the learner's logits under `name/gradient`."""
    x = {key: torch.from_numpy(value) for key, value in inputs.items()}
    x = {key: value.double() if value.is_floating_point() else value for key, value in x.items()}
    mask, n = x["mask"].double(), NUMBERS
    logits = x["logits"].requires_grad_()
    index = x["tokens"].long()[..., None]

    def chosen(values):
        return torch.log_softmax(values, -1).gather(-1, index)[..., 0]

    new, old, reference = chosen(logits), chosen(x["old_logits"]), chosen(x["reference_logits"])
    ratio, advantage = (new - old).exp(), x["advantages"]

    def clipped(r):
        return -torch.minimum(r * advantage, r.clamp(1 - n["low"], 1 + n["high"]) * advantage)

    mean_ratio = ((new - old).detach() * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
    own_gradient = new / new.detach()  # 1, with the gradient of the token's log-probability over its value
    sequence_ratio = mean_ratio.exp() * (1 + (own_gradient - 1) * new.detach())
    distance = new - reference
    p, q = torch.log_softmax(logits, -1), torch.log_softmax(x["reference_logits"], -1)
    one_hot = torch.nn.functional.one_hot(index[..., 0], VOCAB).double()
    smooth = (1 - n["smoothing"]) * one_hot + n["smoothing"] / VOCAB
    tokens = {
        "clip": clipped(ratio),
        "dual_clip": torch.where(advantage < 0, torch.minimum(clipped(ratio), -n["dual"] * advantage), clipped(ratio)),
        "gspo": clipped(sequence_ratio),
        "cispo": -(ratio.clamp(1 - n["low"], 1 + n["high"]).detach() * advantage * new),
        "k1": distance,
        "k2": distance**2 / 2,
        "k3": (-distance).exp() + distance - 1,
        "full_kl": (p.exp() * (p - q)).sum(-1),
        "sft": -(smooth * p).sum(-1) + n["z"] * torch.logsumexp(logits, -1) ** 2,
    }
    answer = {}

    def keep(name, value):
        (gradient,) = torch.autograd.grad(value, logits, retain_graph=True)
        answer[name], answer[f"{name}/gradient"] = value.detach(), gradient

    for name, values in tokens.items():
        keep(name, (values * mask).sum() / mask.sum())
    per_sequence = (tokens["clip"] * mask).sum(1)
    keep("sequence_mean", (per_sequence / mask.sum(1)).mean())
    keep("sequence_sum", per_sequence.mean())
    keep("sequence_sum_norm", per_sequence.mean() / n["length"])
    gains = ((new - reference) * mask).sum(1)
    margin = gains[0] - gains[1]
    sigmoid = torch.nn.functional.logsigmoid
    keep(
        "dpo",
        -(1 - n["smoothing"]) * sigmoid(n["beta"] * margin) - n["smoothing"] * sigmoid(-n["beta"] * margin),
    )
    keep("ipo", (margin - 1 / (2 * n["beta"])) ** 2)
    keep("hinge", torch.relu(1 - n["beta"] * margin))
    answer["cap"] = (old - reference).exp().clamp(max=n["cap"])

    groups = x["rewards"].reshape(-1, GROUP)
    centred = groups - groups.mean(1, keepdim=True)
    answer["grpo"] = (centred / (groups.std(1, keepdim=True, correction=0) + 1e-6)).flatten()
    answer["dr_grpo"] = centred.flatten()
    answer["rloo"] = (groups - groups.flip(1)).flatten()  # the other one of two
    penalty = (-n["beta"] * distance.detach()) * mask
    to_go = x["rewards"][:, None] + penalty.flip(1).cumsum(1).flip(1)
    own = to_go[x["mask"]]
    answer["reinforce_plus_plus"] = torch.where(x["mask"], (to_go - own.mean()) / own.std(correction=0), 0.0)
    answer["gae"] = _advantages(torch, x, discount=0.9, gae_lambda=0.8)
    return {key: value.detach().float().numpy() for key, value in answer.items()}


def _advantages(torch, x, discount, gae_lambda):
    """Over the agent's tokens one after the other, the reward at the last of them."""
    advantages = torch.zeros_like(x["values"])
    for row in range(BATCH):
        places = torch.nonzero(x["mask"][row])[:, 0].tolist()
        running = next_value = 0.0
        for place in reversed(places):
            reward = x["rewards"][row] if place == places[-1] else 0.0
            running = reward + discount * next_value - x["values"][row, place] + discount * gae_lambda * running
            next_value = x["values"][row, place]
            advantages[row, place] = running
    return advantages


if __name__ == "__main__":
    import torch

    GOLDEN.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(GOLDEN, **results(torch, make_inputs()))
