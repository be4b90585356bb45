"""Updates of the independent PyTorch CQL or Decision Transformer of the tests on random data, for one core."""

import json
import sys
from pathlib import Path

import torch

from harness import Stopwatch, report

sys.path.append(str(Path(__file__).parents[2] / "tests"))
settings = json.loads(sys.argv[1])
torch.set_num_threads(1)
torch.manual_seed(0)
S, A, config = settings["observation"], settings["action"], settings["config"]
rows, batch = 20_000, config["batch_size"]
observations, actions, rewards = torch.randn(rows + 1, S), torch.rand(rows, A) * 1.8 - 0.9, torch.randn(rows)


def make_cql_update():
    import torch_cql

    layers, width = len(config["network"]["hidden_sizes"]), config["network"]["hidden_sizes"][0]
    models = torch_cql.make_models(torch, S, A, width, layers)
    targets = torch_cql.make_models(torch, S, A, width, layers)[1:]
    scalars = {name: torch.zeros((), requires_grad=True) for name in ("log_temperature", "log_penalty")}
    critics = [*models[1].parameters(), *models[2].parameters()]
    target_params = [*targets[0].parameters(), *targets[1].parameters()]
    groups = [list(models[0].parameters()), critics, [scalars["log_temperature"]]]
    optimizers = [torch.optim.Adam(group, rate) for group, rate in zip(groups, (3e-5, 3e-4, 3e-5), strict=True)]
    many = (config["num_sampled_actions"], batch, A)
    numbers = {"discount": 0.99, "alpha": 10.0, "target_gap": 0.0}

    def update():
        drawn = torch.randint(0, rows, (batch,))
        sample = (observations[drawn], actions[drawn], rewards[drawn], torch.zeros(batch), observations[drawn + 1])
        noise = {name: torch.randn(batch, A) for name in ("now", "target")}
        noise |= {name: torch.randn(many) for name in ("here", "there")} | {"uniform": torch.rand(many) * 2 - 1}
        found = torch_cql.losses(torch, models, targets, scalars, sample, noise, "plain", **numbers)
        for loss, group, optimizer in zip(found[:3], groups, optimizers, strict=True):
            # Only what is trained: less work than CORL's backward(), which fills the critics' gradients twice.
            for parameter, gradient in zip(group, torch.autograd.grad(loss, group, retain_graph=True), strict=True):
                parameter.grad = gradient
            optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(target_params, critics, 5e-3)

    return update


def make_transformer_update():
    import torch_decision_transformer

    length, shape = config["context_length"], config["transformer"]
    model = torch_decision_transformer.make_model(
        torch, S, A, length, shape["width"], shape["num_layers"], shape["num_heads"], 1000 + length, shape["dropout"]
    )
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4, weight_decay=1e-4)
    steps = torch.arange(length)

    def update():
        window = torch.randint(0, rows - length, (batch, 1)) + steps
        shown, done, mask = observations[window], actions[window], torch.ones(batch, length, dtype=torch.bool)
        errors = (model(shown, done, rewards[window], window % 1000, mask) - done) ** 2 * mask[..., None]
        optimizer.zero_grad()
        (errors.sum() / (mask.sum() * A)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()

    return update


update = make_cql_update() if settings["algorithm"] == "cql" else make_transformer_update()
for _ in range(5):
    update()
with Stopwatch() as running:
    for _ in range(settings["num_updates"]):
        update()
report(settings, settings["num_updates"], {"seconds": running.wall, "cpu_seconds": running.cpu}, unit="updates")
