"""Figures of the Flip-PSRO study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from envs_jax.timeline import save
from jaxrl.parts.roles import take
from jaxrl.results.figures import draw_bars, draw_heat_map, draw_scatter, draw_shares
from jaxrl.results.plot import draw_curves
from jaxrl.results.stats import interquartile_mean, stratified_bootstrap
from jaxrl.run.program import make_env
from jaxrl.run.replay import play_episode
from jaxrl.studies.laboratory import Arm, Arrays, Laboratory
from jaxrl.studies.report import Report


def draw_all(
    laboratory: Laboratory,
    report: Report,
    psro: Arm,
    measured: Mapping[str, Arrays],
    attacked: Mapping[str, np.ndarray],
    arms: Mapping[str, Arm],
) -> None:
    """Draws every figure that the measurements allow into `figures/` and adds it to the report."""
    folder = laboratory.out / "figures"

    def add(file: str, caption: str) -> str:
        report.figure(file, caption)
        return str(folder / file)

    table = np.asarray(psro.states.payoffs)[0, 0]
    names = [*psro.run.config.heuristics, *(f"learned {k + 1}" for k in range(len(table)))][: len(table)]
    draw_heat_map(
        table, names, names, add("payoffs.png", "Empirical game of one seed: margin of blue (rows) against red."),
        xlabel="red", ylabel="blue",
    )  # fmt: skip
    columns = [*psro.run.config.heuristics, *(f"learned_{k}" for k in range(len(table)))][: len(table)]
    for role in ("blue", "red"):
        shares = {
            name: np.mean([metrics[f"strategy/{role}/{column}"] for metrics in psro.metrics], axis=0)
            for name, column in zip(names, columns)
        }
        draw_shares(
            shares, add(f"strategy_{role}.png", f"Meta-strategy of {role} over the iterations, mean over seeds."),
            xlabel="iteration",
        )  # fmt: skip
    curves = {
        name: [(columns["update"].astype(float), columns["meta/nash_conv"]) for columns in arm.metrics]
        for name, arm in arms.items()
        if "meta/nash_conv" in arm.metrics[0]
    }
    draw_curves(
        curves, add("nash_conv.png", "NashConv in the empirical game over the iterations."),
        xlabel="iteration", ylabel="NashConv",
    )  # fmt: skip
    draw_scatter(
        {name: (values["cost"][:, 0], values["control"][:, 0]) for name, values in measured.items()},
        add("control_cost.png", "Control kept against cost paid on the primary held-out attack; seeds are small."),
        xlabel="cost per tick", ylabel="control",
    )  # fmt: skip
    if attacked:
        draw_bars(
            {
                name: {"exploitability": stratified_bootstrap(interquartile_mean, values)}
                for name, values in attacked.items()
            },
            add("exploitability.png", "What a fresh attacker earns against each defender, margin per tick."),
            ylabel="u_red - u_blue",
        )
    env, first = make_env(psro.run)[0], take(psro.states, 0)
    save(
        env.timeline(play_episode(psro.run, first)),
        add(
            "ownership.png", f"One episode of the first seed's mixture against {psro.run.env.options['opponents'][0]}."
        ),
    )
