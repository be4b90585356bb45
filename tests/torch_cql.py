"""One update of conservative Q-learning in PyTorch, independent of jaxrl; writes tests/golden/cql.npz.

pip install torch && python tests/torch_cql.py
"""

import itertools
import math
from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).parent / "golden" / "cql.npz"
SIZES = {"observation": 3, "action": 2, "width": 16, "samples": 4, "batch": 6}
NUMBERS = {"discount": 0.9, "alpha": 5.0, "target_gap": 0.7, "log_temperature": -0.4, "log_penalty": 0.3}
VARIANTS = {
    # name: importance correction, weight learned, best of several actions in the target, entropy in the target
    "plain": (True, False, False, False),
    "lagrange": (True, True, False, False),
    "backup": (True, False, True, True),
    "unweighted": (False, False, False, True),
}


def make_models(torch, observation, action, width, layers=2):
    """The actor and two critics, each a list of linear layers with ReLU between them."""

    def network(inputs, outputs):
        sizes = [inputs] + [width] * layers + [outputs]
        parts = []
        for a, b in itertools.pairwise(sizes):
            parts += [torch.nn.Linear(a, b), torch.nn.ReLU()]
        return torch.nn.Sequential(*parts[:-1])

    return network(observation, 2 * action), network(observation + action, 1), network(observation + action, 1)


def act(torch, actor, observation, noise):
    """Actions and log densities for noise [n, batch, A]."""
    mean, log_std = actor(observation).chunk(2, -1)
    normal = torch.distributions.Normal(mean, log_std.clamp(-20, 2).exp())
    squash = torch.distributions.transforms.TanhTransform(cache_size=1)  # its inverse would round
    squashed = torch.distributions.TransformedDistribution(normal, squash)
    action = squash(normal.mean + normal.stddev * noise)
    return action, squashed.log_prob(action).sum(-1)


def losses(torch, models, targets, scalars, rows, noise, variant, discount, alpha, target_gap):
    """Losses of the actor, of both critics (with the penalty), of the temperature and of the penalty's weight."""
    importance, lagrange, best_of, entropy = VARIANTS[variant]
    actor, critics = models[0], models[1:]
    observation, action, reward, terminated, after = rows
    size = action.shape[-1]
    temperature, penalty = scalars["log_temperature"].exp(), scalars["log_penalty"].exp().clamp(0, 1e6)

    def value(critic, observation, actions):
        states = observation.expand(*actions.shape[:-1], -1)
        return critic(torch.cat([states, actions], -1)).squeeze(-1)

    new, density = act(torch, actor, observation, noise["now"])
    policy = (temperature.detach() * density - torch.min(*(value(c, observation, new) for c in critics))).mean()
    temperature_loss = -(scalars["log_temperature"] * (density - size).detach()).mean()

    with torch.no_grad():
        following, next_density = act(torch, actor, after, noise["many_targets"] if best_of else noise["target"][None])
        future = torch.min(*(value(c, after, following) for c in targets))
        future, index = future.max(0)
        if entropy:
            future = future - temperature * next_density.gather(0, index[None])[0]
        goal = reward + discount * (1 - terminated) * future
        here, here_density = act(torch, actor, observation, noise["here"])
        there, there_density = act(torch, actor, after, noise["there"])
    critic, penalties = 0.0, 0.0
    for q in critics:
        shown = value(q, observation, action)
        values = [value(q, observation, a) for a in (noise["uniform"], there, here)]
        if importance:
            values[0] = values[0] - size * math.log(0.5)
            values[1], values[2] = values[1] - there_density, values[2] - here_density
        else:
            values.append(shown[None])
        gap = (torch.logsumexp(torch.cat(values), 0) - shown).mean()
        critic = critic + torch.nn.functional.mse_loss(shown, goal)
        penalties = penalties + alpha * (gap - (target_gap if lagrange else 0.0))
    total = critic + (penalty.detach() if lagrange else 1.0) * penalties
    return policy, total, temperature_loss, -0.5 * penalty * penalties.detach()


def draw(rng, observation, action, samples, batch, **_):
    """Rows of a data set and the noise of an update."""
    rows = (
        rng.normal(size=(batch, observation)),
        rng.uniform(-0.9, 0.9, (batch, action)),
        rng.normal(size=batch),
        (np.arange(batch) % 3 == 0).astype(np.float64),
        rng.normal(size=(batch, observation)),
    )
    many = (samples, batch, action)
    noise = {"now": rng.normal(size=(batch, action)), "target": rng.normal(size=(batch, action))}
    noise |= {name: rng.normal(size=many) for name in ("many_targets", "here", "there")}
    noise["uniform"] = rng.uniform(-1, 1, many)
    return rows, noise


def main():
    import torch

    torch.manual_seed(0)
    sizes = {key: SIZES[key] for key in ("observation", "action", "width")}
    models, targets = make_models(torch, **sizes), make_models(torch, **sizes)[1:]
    with torch.no_grad():
        for model in (*models, *targets):  # larger than at the start of a training, so that everything matters
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    scalars = {key: torch.tensor(NUMBERS[key], requires_grad=True) for key in ("log_temperature", "log_penalty")}
    rows, noise = draw(np.random.default_rng(0), **SIZES)
    arrays = {f"noise.{name}": value for name, value in noise.items()}
    arrays |= {f"rows.{i}": value for i, value in enumerate(rows)}

    def keep(prefix, tensors):
        for i, tensor in enumerate(tensors):
            arrays[f"{prefix}.{i}"] = tensor.detach().numpy().copy()

    for name, model in zip(("actor", "critic0", "critic1"), models, strict=True):
        keep(name, model.parameters())
    for i, model in enumerate(targets):
        keep(f"target{i}", model.parameters())
    rows = [torch.tensor(x, dtype=torch.float32) for x in rows]
    noise = {name: torch.tensor(x, dtype=torch.float32) for name, x in noise.items()}
    numbers = {key: NUMBERS[key] for key in ("discount", "alpha", "target_gap")}
    for variant in VARIANTS:
        policy, critic, temperature, penalty = losses(torch, models, targets, scalars, rows, noise, variant, **numbers)
        found = (policy, critic, temperature, penalty)
        keep(f"{variant}.losses", found)
        keep(f"{variant}.actor", torch.autograd.grad(policy, models[0].parameters(), retain_graph=True))
        for i in (0, 1):
            keep(f"{variant}.critic{i}", torch.autograd.grad(critic, models[1 + i].parameters(), retain_graph=True))
        keep(f"{variant}.log_temperature", torch.autograd.grad(temperature, scalars["log_temperature"]))
        keep(f"{variant}.log_penalty", torch.autograd.grad(penalty, scalars["log_penalty"]))
    np.savez_compressed(GOLDEN, **{key: value.astype(np.float32) for key, value in arrays.items()})
    print(GOLDEN)


if __name__ == "__main__":
    main()
