"""One HTML page of a results folder: tables, figures, training curves, histograms, k-hat."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pyro_vaeflow.experiments.results import (
    FinishedRun,
    finished_runs,
    method_name,
    read_arrays,
    read_csv,
    read_summary,
    settings_apart,
    summary,
)
from pyro_vaeflow.experiments.tables import aggregate
from pyro_vaeflow.plain_files import inside, write_whole
from pyro_vaeflow.plots.report import Page
from pyro_vaeflow.validation import ConfigError

MAX_RUNS = 12  # that have a figure of their own
KHAT_LIMIT = 0.7


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the page of a results folder, with or without its runs; returns its path.

    Args:
        path: of the page, ``folder/report.html`` by default.

    Raises:
        ConfigError: no such folder, it holds neither runs nor a summary.csv, or a link out of it.
    """
    if not folder.is_dir():
        raise ConfigError(f"no folder {str(folder)!r}")
    table, runs = read_summary(folder), finished_runs(folder)
    page = Page(folder.resolve().name)
    page.heading("Detection and evidence")
    page.text(
        "Means ± standard deviations over seeds. ELBO, log evidence, KL and gaps are nats a row, "
        "over test rows that are inliers; F1, AUROC and AP are between 0 and 1; s are seconds."
    )
    page.table(aggregate(table))
    if runs:
        _runs(page, runs)
    else:
        page.text(
            "The folders of its runs are not here, so there are no training curves, histograms "
            "of scores or k-hat on this page; the command in table.md makes them again."
        )
    pictures = [*sorted(folder.glob("*.png")), *sorted(folder.glob("figures/*.png"))]
    if pictures:
        page.heading("Figures")
    for picture in pictures:
        page.picture(inside(picture, folder), picture.stem.replace("_", " "))
    page.heading("All numbers")
    for table_path in sorted(folder.glob("*.csv")):
        page.table(read_csv(inside(table_path, folder)), folded=table_path.name)
    path = folder / "report.html" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, page.html().encode())
    return path


def _runs(page: Page, runs: Sequence[FinishedRun]) -> None:
    first: dict[str, FinishedRun] = {}  # of each configuration the run with the lowest seed
    for run in sorted(runs, key=lambda run: run.config.seed):
        first.setdefault(run.config.digest, run)
    shown = dict(zip(labels(list(first.values())), first.values(), strict=True))
    shown = dict(list(shown.items())[:MAX_RUNS])
    which = f"one seed, the lowest; {len(shown)} of {len(first)} configurations"
    histories = {name: read_csv(run.folder / "history.csv") for name, run in shown.items()}
    arrays = {name: read_arrays(run.folder / "scores.npz") for name, run in shown.items()}
    page.heading("Training")
    page.figure(
        plot_curves(histories),
        "The bound on training batches, beta = 1, nats a row: running means over a twentieth of "
        f"the steps, from a tenth of them on ({which}).",
    )
    page.heading("Scores")
    page.figure(
        plot_histograms(arrays),
        f"-log p(x) of test rows, nats: inliers filled, anomalies hatched, shares of each ({which})"
        "; the outermost bars hold all that lie beyond.",
    )
    page.figure(
        plot_khats(arrays),
        f"How far a row's log evidence can be trusted ({which}): boxes are quartiles of the test "
        "rows, whiskers 5 and 95%; right of the dashed line a few draws have all the weight.",
    )
    page.heading("Made by")
    commands = sorted({run.metrics["command"] for run in runs if run.metrics["command"]})
    page.code("\n".join(commands), "commands")


def labels(runs: Sequence[FinishedRun]) -> list[str]:
    """What figures call each run: data set, posterior, and settings that differ between runs."""
    table = summary(runs)
    table = table[table["score"] == table["score"].iloc[0]]
    names = ["dataset"] if table["dataset"].nunique() > 1 else []
    settings = [name for name in settings_apart(table) if table[name].nunique() > 1]
    return [
        ", ".join(
            [str(row[name]) for name in names]
            + [method_name(row["flow"], row["num_flows"])]
            + [f"{name} {row[name]}" for name in settings if pd.notna(row[name])]
        )
        for row in table.to_dict("records")
    ]


def plot_curves(histories: Mapping[str, pd.DataFrame]) -> Figure:
    """Draws the bound over the steps of each history, a panel each."""
    figure, panels = _panels(histories)
    for panel, history in zip(panels, histories.values(), strict=True):
        mean = history["elbo"].rolling(max(1, len(history) // 20), min_periods=1).mean()
        late = slice(len(mean) // 10, None)
        panel.plot(history["step"].iloc[late], mean.iloc[late], color="black", linewidth=1.0)
        panel.set(xlabel="step", ylabel="ELBO, nats a row")
    return figure


def plot_histograms(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws importance scores of inliers, filled, and of anomalies, hatched: shares of each.

    The axis spans the inliers' middle 98% and up to nine times that beyond, to nine tenths of the
    anomalies.
    """
    figure, panels = _panels(arrays)
    for panel, scores in zip(panels, arrays.values(), strict=True):
        values, is_anomaly = -scores["log_evidence"].astype(float), scores["is_anomaly"] == 1
        values, is_anomaly = values[np.isfinite(values)], is_anomaly[np.isfinite(values)]
        low, high = np.quantile(values[~is_anomaly], [0.01, 0.99])
        reach = (high - low) or 1.0
        far = np.quantile(values[is_anomaly], 0.9)
        edges = np.linspace(low - 0.1 * reach, np.clip(far, high + reach, high + 9 * reach), 41)
        for rows, look in (
            (~is_anomaly, {"color": "0.75"}),
            (is_anomaly, {"histtype": "step", "color": "black", "hatch": "////"}),
        ):
            share = np.full(rows.sum(), 100.0 / rows.sum())
            panel.hist(values[rows].clip(edges[0], edges[-1]), edges, weights=share, **look)
        panel.set(xlabel="-log p(x), nats", ylabel="% of the rows")
    return figure


def plot_khats(arrays: Mapping[str, Mapping[str, np.ndarray]]) -> Figure:
    """Draws each run's Pareto k-hat over rows; dashed the limit."""
    figure = Figure(figsize=(8.0, 1.0 + 0.27 * len(arrays)), layout="constrained")
    panel = figure.subplots()
    khats = [scores["khat"][np.isfinite(scores["khat"])] for scores in arrays.values()]
    panel.boxplot(
        khats, orientation="horizontal", whis=(5, 95), showfliers=False,
        medianprops={"color": "black", "linewidth": 2.0},
    )  # fmt: skip
    panel.set_yticks(range(1, len(khats) + 1), [*arrays], parse_math=False)
    panel.axvline(KHAT_LIMIT, color="black", linestyle="--", linewidth=1.0)
    panel.invert_yaxis()
    panel.set(xlabel="Pareto k-hat of a row's weights")
    return figure


def _panels(titles: Mapping[str, object]) -> tuple[Figure, list]:
    columns = min(len(titles), 3)
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(3.5 * columns, 2.7 * rows), layout="constrained")
    panels = [figure.add_subplot(rows, columns, number + 1) for number in range(len(titles))]
    for panel, title in zip(panels, titles, strict=True):
        panel.set_title(title, fontsize=8, parse_math=False)
    return figure, panels


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and writes the page."""
    command = ArgumentParser("python -m results.report", description=__doc__)
    command.add_argument("folder", type=Path, help="a results folder, with or without its runs")
    command.add_argument("--out", type=Path, help="the file; FOLDER/report.html by default")
    values = command.parse_args(argv)
    print(write_report(values.folder, values.out))


if __name__ == "__main__":
    main()
