"""Figures of the study of flow posteriors, from summary.csv and margins.csv."""

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pyro_vaeflow.experiments.results import method_name
from results.shared.effects import effect, paired

from .design import central, complete, of_posterior, posteriors

LOOKS = {  # posterior -> line, marker, fill
    ("diagonal", 0): ("-", "o", "black"),
    ("planar", 5): ("--", "s", "white"),
    ("planar", 20): ("--", "s", "black"),
    ("planar", 50): ("--", "s", "0.6"),
    ("iaf", 5): (":", "^", "white"),
    ("iaf", 20): (":", "^", "black"),
    ("iaf", 50): (":", "^", "0.6"),
    ("spline", 2): ("-.", "D", "white"),
}
MARGINS = {  # column -> label, marker, fill
    "margin": ("between the classes", "o", "black"),
    "slack_inliers": ("slack, inliers", "s", "white"),
    "slack_outliers": ("slack, outliers", "s", "0.6"),
    "gain_inliers": ("gain, inliers", "^", "white"),
    "gain_outliers": ("gain, outliers", "^", "0.6"),
}
OTHER = ("-", "x", "0.5")


def plot_effects(differences: pd.DataFrame, measures: dict[str, str]) -> Figure:
    """Draws what each posterior changes: a panel a measure, the mean with its interval in black.

    Light marks are data sets.

    Args:
        differences: as of `paired`.
        measures: column -> label of its panel.
    """
    methods = posteriors(differences)
    columns = min(2, len(measures))
    rows_of_panels = -(-len(measures) // columns)
    size = (3.3 * columns, rows_of_panels * (0.8 + 0.3 * len(methods)))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows_of_panels, columns, sharey=True, squeeze=False)
    for panel, (measure, label) in zip(axes.flat, measures.items(), strict=False):
        for place, (flow, depth) in enumerate(methods):
            rows = of_posterior(differences, flow, depth)
            of_sets = rows.groupby("dataset")[measure].mean()
            panel.plot(of_sets, [place + 0.18] * len(of_sets), "|", color="0.5", markersize=7)
            mean = effect(rows, measure)
            if mean.has_interval:
                panel.plot([mean.low, mean.high], [place] * 2, "-", color="black")
            panel.plot(mean.mean, place, "o", color="black", markersize=5)
        panel.axvline(0.0, color="black", linewidth=0.8)
        panel.set(xlabel=label)
        panel.grid(axis="y", color="0.9")
    axes[0, 0].set_yticks(range(len(methods)), labels=[method_name(*m) for m in methods])
    axes[0, 0].invert_yaxis()
    return figure


def plot_sizes(table: pd.DataFrame, measure: str, label: str) -> Figure:
    """Draws a measure over the latent size: a panel a data set, a line a posterior."""
    sets = list(dict.fromkeys(table["dataset"]))
    columns = min(3, len(sets))
    rows = -(-len(sets) // columns)
    figure = Figure(figsize=(2.8 * columns, 2.2 * rows + 0.6), layout="constrained")
    for place, dataset in enumerate(sets):
        panel = figure.add_subplot(rows, columns, place + 1)
        of_set = table[table["dataset"] == dataset]
        for flow, depth in posteriors(of_set):
            line, marker, fill = LOOKS.get((flow, depth), OTHER)
            means = of_posterior(of_set, flow, depth).groupby("latent_dim")[measure].mean()
            panel.plot(
                means.index, means, linestyle=line, marker=marker, color="black",
                markerfacecolor=fill, linewidth=1.0, markersize=5, label=method_name(flow, depth),
            )  # fmt: skip
        _sizes_axis(panel, sorted(of_set["latent_dim"].unique()))
        panel.set(title=dataset.removeprefix("adbench:"), ylabel=label)
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def plot_evidence_and_detection(differences: pd.DataFrame) -> Figure:
    """Draws each flow's change of AUROC over its change of the log evidence, a mark a run."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for number, dataset in enumerate(dict.fromkeys(differences["dataset"])):
        rows = differences[differences["dataset"] == dataset]
        axes.plot(
            rows["log_evidence"], 100 * rows["auroc_importance"], "os^Dvx"[number % 6],
            color="black", markerfacecolor=("white", "0.6", "black")[number % 3], markersize=4.5,
            label=dataset.removeprefix("adbench:"), linewidth=0,
        )  # fmt: skip
    axes.axhline(0.0, color="black", linewidth=0.8)
    axes.axvline(0.0, color="black", linewidth=0.8)
    axes.set(xlabel="change of the log evidence, nats per row", ylabel="change of AUROC, points")
    axes.legend(fontsize=7)
    return figure


def plot_margins(rows: pd.DataFrame) -> Figure:
    """Draws what lies between the classes beside slack and gains, by 32 draws and refined.

    A line a data set and latent size; with two latents quadrature takes the place of refinement.

    Args:
        rows: as of `margins`.
    """
    rows = rows.replace({"evidence": {"quadrature": "refined"}})  # each table has one of the two
    means = rows.groupby(["evidence", "dataset", "latent_dim"])[[*MARGINS]].mean()
    figure = Figure(figsize=(7.2, 1.6 + 0.34 * len(means.loc["refined"])), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for panel, evidence in zip(axes, ("32 draws", "refined"), strict=True):
        of_sets = means.loc[evidence]
        names = [f"{name.removeprefix('adbench:')}, z of {size}" for name, size in of_sets.index]
        for name, (label, marker, fill) in MARGINS.items():
            panel.plot(
                of_sets[name], range(len(names)), marker, color="black", markerfacecolor=fill,
                markersize=6, linewidth=0, label=label if panel is axes[0] else None,
            )  # fmt: skip
        panel.axvline(0.0, color="black", linewidth=0.8)
        panel.set_yticks(range(len(names)), labels=names)
        panel.set_xscale("symlog", linthresh=1.0)
        panel.set(title=evidence, xlabel="nats per row")
        panel.grid(axis="y", color="0.9")
    axes[0].invert_yaxis()
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    return figure


def study_figures(table: pd.DataFrame, rows: pd.DataFrame) -> dict[str, Figure]:
    """The study's figures by file name; those of the factorial block, but for the scatter.

    Args:
        table: the study's summary, a row a run.
        rows: as of `margins`.
    """
    factorial = central(table)
    differences = complete(paired(factorial))
    return {
        "effects": plot_effects(
            differences.assign(
                auroc_importance=100 * differences["auroc_importance"],
                auroc_reconstruction=100 * differences["auroc_reconstruction"],
            ),
            {
                "elbo": "ELBO, nats per row",
                "log_evidence": "log evidence, nats per row",
                "auroc_importance": "AUROC, importance, points",
                "auroc_reconstruction": "AUROC, reconstruction, points",
            },
        ),
        "margins": plot_margins(rows),
        "approximation": plot_sizes(factorial, "approximation_gap", "approximation gap, nats"),
        "amortization": plot_sizes(factorial, "amortization_gap", "amortization gap, nats"),
        "evidence": plot_sizes(factorial, "log_evidence", "log evidence, nats per row"),
        "detection": plot_evidence_and_detection(paired(table)),
    }


def _sizes_axis(panel: Axes, sizes: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, labels=[str(size) for size in sizes])
    panel.set_xlabel("latent size")
