"""Figures of the Flip-PSRO study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxrl.results.figures import draw_bars, draw_heat_map, draw_scatter, draw_shares
from jaxrl.results.plot import draw_curves
from jaxrl.results.stats import interquartile_mean, stratified_bootstrap
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
    for role in ("blue", "red"):
        shares = {}
        for name in names:
            column = f"strategy/{role}/{name.replace('learned ', 'learned_')}"
            if name.startswith("learned "):
                column = f"strategy/{role}/learned_{int(name.split()[1]) - 1}"
            shares[name] = np.mean([columns[column] for columns in psro.metrics], axis=0)
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
