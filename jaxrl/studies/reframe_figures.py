"""Figures of the Re:Frame study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxrl.results.figures import draw_bars
from jaxrl.results.plot import draw_curves
from jaxrl.results.stats import Interval, interquartile_mean, stratified_bootstrap
from jaxrl.studies.laboratory import Arm, Arrays, Laboratory
from jaxrl.studies.reframe_arms import MIXED, PLAIN, REFRAME, Scale
from jaxrl.studies.report import Report


def draw_all(
    laboratory: Laboratory,
    report: Report,
    scale: Scale,
    scores: Mapping[str, Mapping[str, np.ndarray]],
    watched: Mapping[str, Arrays],
    trained: Mapping[str, Arm],
) -> None:
    """Draws scores, gate use, similarity of what is retrieved, and data efficiency, and adds them to the report."""

    def add(file: str, caption: str) -> str:
        report.figure(file, caption)
        return str(laboratory.out / "figures" / file)

    def middle(values: np.ndarray) -> Interval:
        return stratified_bootstrap(interquartile_mean, values)

    draw_bars(
        {
            setting.replace("/", "\n"): {arm: middle(scores[setting][arm]) for arm in (PLAIN, MIXED, REFRAME)}
            for setting in scale.headline
        },
        add("scores.png", "Scores of Re:Frame, of the plain Decision Transformer, and of mixing."),
        ylabel="local-normalised score",
    )  # fmt: skip
    draw_bars(
        {
            setting: {"mean gate": middle(values["gate"]), "steps with gate > 0.5": middle(values["gate_open"])}
            for setting, values in watched.items()
        },
        add("gate.png", "Gate use in the evaluation episodes."),
        ylabel="share",
    )
    for column, words in (("similarity", "Largest cosine of what is retrieved"), ("gate", "Mean gate")):
        curves = {
            setting: [(columns["update"].astype(float), columns[column]) for columns in arm.metrics]
            for setting, arm in trained.items()
        }
        draw_curves(
            curves, add(f"{column}_training.png", f"{words} over the training, on the data."),
            xlabel="updates", ylabel=column,
        )  # fmt: skip
    for setting in scale.ablations:
        curves = data_efficiency(scale, scores[setting])
        if len(curves[REFRAME][0][0]) > 1:
            draw_curves(
                curves, add(f"data_{setting.replace('/', '_')}.png", f"Scores by expert episodes, {setting}."),
                xlabel="expert episodes", ylabel="local-normalised score",
            )  # fmt: skip


def data_efficiency(scale: Scale, scores: Mapping[str, np.ndarray]) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """A4: for Re:Frame and for mixing, each seed's scores over the numbers of expert episodes."""
    curves = {}
    for arm, suffix in ((REFRAME, ""), (MIXED, ", mixed")):
        points = {scale.expert_episodes: scores[arm]}
        for name, values in scores.items():
            if name.startswith("A4") and name.endswith(f"episodes{suffix}"):
                points[int(name.split()[1])] = values
        numbers = sorted(points)
        stacked = np.stack([points[n] for n in numbers], axis=1)
        curves[arm] = [(np.array(numbers, float), row) for row in stacked]
    return curves
