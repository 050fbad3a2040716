"""``vaeflow report DIR``: what a results folder or a saved detector holds, as one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import yaml

from pyro_vaeflow.experiments.report import commands_of, settings_of
from pyro_vaeflow.experiments.results import (
    FinishedRun,
    finished_runs,
    method_name,
    read_arrays,
    read_csv,
)
from pyro_vaeflow.experiments.tables import (
    IDENTITY,
    aggregate,
    read_summary,
    settings_apart,
    summary,
)
from pyro_vaeflow.inference.checkpoint import DETECTOR, read
from pyro_vaeflow.inference.state import CheckpointError
from pyro_vaeflow.plots.history import plot_history
from pyro_vaeflow.plots.html_page import Page
from pyro_vaeflow.plots.report_figures import (
    MAX_LINES,
    plot_curves,
    plot_dots,
    plot_gaps,
    plot_histograms,
    plot_khats,
)
from pyro_vaeflow.plots.scores import plot_scores
from pyro_vaeflow.validation import ConfigError

MAX_SETS = 6  # data sets that have figures of their own
MAX_PANELS = 12  # of histograms
MAX_BOXES = 40
MADE_BEFORE = ("summary.csv",)  # its numbers are those of the first table
SEED = "one seed, the lowest"


def write_report(folder: Path, path: Path | None = None) -> Path:
    """Writes the page of a results folder or of a saved detector; returns its path.

    Args:
        folder: of a study, with or without its ``runs/``; or as `VAEFlowDetector.save` left it.
        path: of the page, ``folder/report.html`` by default.

    Raises:
        ConfigError: no such folder, or it holds neither runs, nor a summary.csv, nor a detector; or
            what it holds is damaged.
    """
    if not folder.is_dir():
        raise ConfigError(f"DIR: no folder {str(folder)!r}")
    page = detector_page(folder) if (folder / DETECTOR.content).is_file() else study_page(folder)
    path = folder / "report.html" if path is None else path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page.html())
    return path


def study_page(folder: Path) -> Page:
    """Tables and figures of a study; those that need its runs where they are there."""
    table, runs = read_summary(folder), finished_runs(folder)
    page = Page(folder.resolve().name)
    seeds = table.groupby([*IDENTITY, *settings_apart(table)], dropna=False)["seed"].nunique()
    count, sets = len(seeds), table["dataset"].nunique()
    page.text(
        f"{_many(count, 'configuration')} on {_many(sets, 'data set')}, "
        f"{_from_to(seeds.min(), seeds.max())} each."
    )
    if not runs:
        page.text(
            "The folders of its runs are not here, so there are no training curves, histograms "
            "of scores or k-hat on this page; the command in table.md makes them again."
        )
    _detection(page, table)
    _gaps(page, table)
    ours = [run for run in _first_seeds(runs) if not run.config.is_peer]
    if ours:
        _training(page, ours)
        _scores(page, ours)
    _pictures(page, folder)
    page.heading("All numbers")
    page.text(
        "Means ± standard deviations over seeds. ELBO, log evidence, KL and gaps are nats a row, "
        "over test rows that are inliers; F1, AUROC and AP are between 0 and 1; s are seconds."
    )
    page.table(aggregate(table))
    for path in sorted(folder.glob("*.csv")):
        if path.name not in MADE_BEFORE:
            page.table(read_csv(path), folded=path.name)
    if runs:
        _origin(page, runs)
    return page


def detector_page(folder: Path) -> Page:
    """A saved detector's settings, columns, training and scores of rows kept from training."""
    try:
        content, tensors = read(folder)
    except (CheckpointError, FileNotFoundError) as error:
        raise ConfigError(f"no detector to report on: {error}") from error
    page = Page(f"Detector {folder.resolve().name}")
    columns = pd.DataFrame(content["columns"])
    calibration = tensors["calibration_scores"].numpy()
    page.text(
        f"{_many(len(columns), 'column')}; a row is flagged where its log evidence is below "
        f"{content['offset']:.5g} nats."
    )
    if len(calibration):
        page.heading("Scores")
        page.figure(
            plot_scores(-calibration, -content["offset"]),
            f"Anomaly scores, -log p(x), of the {len(calibration)} rows kept from training; dark "
            "and beyond the dashed line: flagged.",
        )
    history = pd.DataFrame(tensors["history"].numpy(), columns=content["history"])
    if len(history):
        page.heading("Training")
        page.figure(plot_history(history), "Each step in grey, running means in black.")
    page.heading("Columns")
    page.table(columns[["name", "kind", "loc", "scale"]])
    page.heading("Settings")
    page.code(yaml.safe_dump(content["settings"], sort_keys=False), "constructor arguments")
    return page


def _detection(page: Page, table: pd.DataFrame) -> None:
    page.heading("Detection")
    named = table.assign(method=labels(table))
    if (count := named["dataset"].nunique()) > MAX_SETS:
        means = named.groupby(["method", "score", "dataset"], sort=False)["auroc"].mean()
        page.figure(
            plot_dots(_nested(means.reset_index()), label="AUROC"),
            f"AUROC on each of the {count} data sets, a mark a set (its mean over seeds).",
        )
        return
    for dataset, rows in named.groupby("dataset", sort=False):
        page.figure(
            plot_dots(_nested(rows), label="AUROC", title=str(dataset)),
            f"AUROC on {dataset}, a mark a seed: the chance that a random anomaly scores above a "
            "random inlier.",
        )


def _nested(rows: pd.DataFrame) -> dict[str, dict[str, list[float]]]:
    found: dict[str, dict[str, list[float]]] = {}
    for method, score, value in rows[["method", "score", "auroc"]].itertuples(index=False):
        found.setdefault(method, {}).setdefault(score, []).append(value)
    return found


def _gaps(page: Page, table: pd.DataFrame) -> None:
    if "approximation_gap" not in table:
        return
    page.heading("Gaps")
    named = table.assign(method=labels(table)).dropna(subset=["approximation_gap"])
    for dataset, rows in named.groupby("dataset", sort=False):
        means = rows.groupby("method", sort=False)[["approximation_gap", "amortization_gap"]].mean()
        page.figure(
            plot_gaps({str(n): (float(a), float(b)) for n, a, b in means.itertuples()}),
            f"{dataset}: what the bound lacks of the log evidence, mean over seeds: what no member "
            "of the family reaches (dark), and what one encoder for all rows loses (hatched).",
        )


def _training(page: Page, runs: Sequence[FinishedRun]) -> None:
    page.heading("Training")
    if len(runs) == 1:
        (run,) = runs
        page.figure(plot_history(read_csv(run.folder / "history.csv")), "Each step in grey.")
        return
    panels: dict[str, dict[str, pd.DataFrame]] = {}
    for run, label in zip(runs, _labelled(runs), strict=True):
        panel = panels.setdefault(run.config.dataset, {})
        if len(panel) < MAX_LINES:
            panel[label] = read_csv(run.folder / "history.csv")
    more = f"; at most {MAX_LINES} configurations a panel" if len(runs) > MAX_LINES else ""
    page.figure(
        plot_curves(panels, column="elbo", label="ELBO, nats a row"),
        f"The bound on training batches, beta = 1, running means over a twentieth of the steps "
        f"({SEED}{more}).",
    )


def _scores(page: Page, runs: Sequence[FinishedRun]) -> None:
    page.heading("Scores")
    several = len({run.config.dataset for run in runs}) > 1
    histograms, khats = {}, {}
    for run, label in zip(runs, _labelled(runs), strict=True):
        name = f"{run.config.dataset}: {label}" if several else label
        kept = read_arrays(run.folder / "scores.npz")
        histograms[name] = -kept["log_evidence"], kept["is_anomaly"]
        khats[name] = kept["khat"]
    shown = dict(list(histograms.items())[:MAX_PANELS])
    page.figure(
        plot_histograms(shown, label="-log p(x), nats"),
        f"Importance scores of test rows, high = odd ({SEED}{_first(histograms, MAX_PANELS)}); the "
        "outermost bars hold all that lie beyond.",
    )
    page.figure(
        plot_khats(dict(list(khats.items())[:MAX_BOXES])),
        f"How far a row's log evidence can be trusted ({SEED}{_first(khats, MAX_BOXES)}): boxes "
        "are quartiles of the test rows, whiskers 5 and 95%; right of the dashed line a few draws "
        "have all the weight.",
    )


def _pictures(page: Page, folder: Path) -> None:
    paths = [*sorted(folder.glob("*.png")), *sorted(folder.glob("figures/*.png"))]
    if paths:
        page.heading("Figures of the study")
    for path in paths:
        page.picture(path, path.stem.replace("_", " "))


def _origin(page: Page, runs: Sequence[FinishedRun]) -> None:
    page.heading("Made by")
    commands = commands_of(runs)
    page.code("\n".join(commands), _many(len(commands), "command"))
    settings = yaml.safe_dump(
        settings_of([run.config for run in runs]), sort_keys=False, default_flow_style=None
    )
    page.code(settings, "settings")


def _labelled(runs: Sequence[FinishedRun]) -> list[str]:
    table = summary(runs)
    return labels(table[table["score"] == "importance"])


def labels(table: pd.DataFrame) -> list[str]:
    """What figures call each row of a summary: its posterior, and settings that tell it apart.

    Of the settings that differ within the row's data set, those that others do not imply; a text
    that most of its rows share goes without saying.
    """
    said = {dataset: _telling(rows) for dataset, rows in table.groupby("dataset", sort=False)}
    found = []
    for row in table.to_dict("records"):
        parts = [method_name(row["flow"], row["num_flows"])]
        for name, usual in said[row["dataset"]].items():
            if pd.notna(row[name]) and row[name] != usual:
                value = f"{row[name]:g}" if isinstance(row[name], float) else row[name]
                parts.append(f"{name} {value}")
        found.append(", ".join(parts))
    return found


def _telling(rows: pd.DataFrame) -> dict[str, object]:
    """The settings that labels of one data set name, each with the text that most rows share."""
    named = ["flow", "num_flows"]
    usual: dict[str, object] = {}
    for name in settings_apart(rows):
        if rows.groupby([*named, name], dropna=False).ngroups > rows.groupby(named).ngroups:
            named.append(name)
            most = rows[name].mode()
            usual[name] = most[0] if len(most) and isinstance(most[0], str) else None
    return usual


def _first_seeds(runs: Sequence[FinishedRun]) -> list[FinishedRun]:
    """Of each configuration the run with the lowest seed."""
    first: dict[str, FinishedRun] = {}
    for run in runs:
        kept = first.setdefault(run.config.digest, run)
        if run.config.seed < kept.config.seed:
            first[run.config.digest] = run
    return list(first.values())


def _first(found: Mapping[str, object], most: int) -> str:
    return f", the first {most} of {len(found)} configurations" if len(found) > most else ""


def _many(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _from_to(low: int, high: int) -> str:
    return _many(low, "seed") if low == high else f"{low} to {high} seeds"
