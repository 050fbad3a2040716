"""The page of nineteen tables: each method on each set, means, ranks, seconds.

Reads summary.csv of our runs and baselines.csv; with ``--baselines`` fits the baselines first.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scikit_posthocs import critical_difference_diagram, posthoc_nemenyi_friedman
from scipy.stats import friedmanchisquare, studentized_range

from pyro_vaeflow.experiments.results import (
    finished_runs,
    method_name,
    read_summary,
    settings_apart,
)
from pyro_vaeflow.experiments.study import load_study
from results.adbench.score_parts import write_parts, write_parts_page
from results.shared import baselines
from results.shared.detectors import NAMES, usual
from results.shared.effects import Effect, effect
from results.shared.pages import markdown, parse, parser, run_quick, run_script, write_page

ALPHA = 0.05  # of the tests over ranks
PREFIX = "adbench:"
SMALLEST = ("adbench:wine", "adbench:glass")
# PyOD's own defaults; of http's 282,643 training rows so many, or it would take ten times as long
# as on any other set.
BASELINES = {
    name: baseline
    for name, baseline in usual("standard").items()
    if name not in ("exact_rows", "unseen_values")
}
BASELINES["pyod_vae"] = replace(BASELINES["pyod_vae"], max_train_rows=25_000)
PUBLISHED = (
    "V. Livernoche, V. Jain, Y. Hezaveh, S. Ravanbakhsh, On Diffusion Modeling for Anomaly "
    "Detection, 2024, the one-class table of its repository"
)


def read_methods(folder: Path) -> pd.DataFrame:
    """Ours and the baselines in one table, a row a run and score.

    ``method`` names posterior and settings that tell runs apart, or the baseline; ``scored`` the
    score of ours beside it.
    """
    ours, theirs = read_summary(folder), pd.read_csv(folder / "baselines.csv")
    apart = settings_apart(ours)
    names = []
    for row in ours.to_dict("records"):
        settings = [f"{key.split('.')[-1]} {row[key]}" for key in apart if pd.notna(row[key])]
        names.append(", ".join([method_name(row["flow"], row["num_flows"]), *settings]))
    ours = ours.assign(method=names)
    ours["scored"] = ours["method"] + ", " + ours["score"]
    names = theirs["baseline"].map(NAMES)
    theirs = theirs.assign(method=names, scored=names)
    table = pd.concat([ours, theirs], ignore_index=True)
    return table.assign(seconds=table["train_seconds"] + table["score_seconds"])


def per_set(
    table: pd.DataFrame, measure: str, by: str = "scored", over_seeds: str = "mean"
) -> pd.DataFrame:
    """A measure over seeds: one row a data set, one column a method, missing if not run."""
    values = table.groupby(["dataset", by], sort=False)[measure].agg(over_seeds).unstack()
    values = values.rename(index=lambda name: name.removeprefix(PREFIX)).sort_index()
    return values.reindex(columns=table[by].unique()).rename_axis(columns=None)


def ranks(values: pd.DataFrame) -> pd.DataFrame:
    """The rank of each method on each data set, 1 for the highest value, ties their mean rank.

    Example:
        >>> ranks(pd.DataFrame({"a": [0.9, 0.8], "b": [0.7, 0.8]})).mean().to_dict()
        {'a': 1.25, 'b': 1.75}
    """
    return values.rank(axis=1, ascending=False)


def critical_difference(num_methods: int, num_sets: int) -> float:
    """How far two average ranks must lie apart to differ (Nemenyi), level `ALPHA` over all pairs.

    References:
        J. Demsar, Statistical Comparisons of Classifiers over Multiple Data Sets, 2006, JMLR 7.

    Example:
        >>> round(critical_difference(4, 14), 2)  # Demsar's section 3.2.4 has 1.25
        1.25
    """
    quantile = studentized_range.ppf(1 - ALPHA, num_methods, np.inf) / np.sqrt(2)
    return float(quantile * np.sqrt(num_methods * (num_methods + 1) / (6 * num_sets)))


def plot_ranks(values: pd.DataFrame) -> Figure:
    """Draws the critical-difference diagram of Demsar (2006); bars join methods that are alike."""
    average = ranks(values).mean()
    figure = Figure(figsize=(8.0, 0.9 + 0.2 * len(average)), layout="constrained")
    axes = figure.subplots()
    critical_difference_diagram(
        average,
        posthoc_nemenyi_friedman(values),
        alpha=ALPHA,
        ax=axes,
        label_fmt_left="{label}  {rank:.2f}",
        label_fmt_right="{rank:.2f}  {label}",
        color_palette=dict.fromkeys(average.index, "black"),
        label_props={"fontsize": 8},
    )
    difference = critical_difference(len(average), len(values))
    axes.set_title(f"average rank (1 = best), critical difference {difference:.2f}", fontsize=10)
    return figure


def less_first(table: pd.DataFrame, ordered: Sequence[str]) -> dict[str, Effect]:
    """AUROC of each method less that of the first, on the same data sets and seeds."""
    wide = table.pivot(index=["dataset", "seed"], columns="scored", values="auroc")
    return {
        name: effect((wide[name] - wide[ordered[0]]).to_frame("auroc"), "auroc")
        for name in ordered[1:]
    }


def write_benchmark(folder: Path) -> None:
    """Writes benchmark.md, auroc.csv and figures/ranks.png from summary.csv and baselines.csv."""
    table = read_methods(folder)
    auroc = per_set(table, "auroc")
    auroc.to_csv(folder / "auroc.csv", float_format="%.6g")
    complete = auroc.dropna()
    (folder / "figures").mkdir(exist_ok=True)
    plot_ranks(complete).savefig(folder / "figures" / "ranks.png", dpi=110)
    counts = sorted(set(table.groupby("dataset")["seed"].nunique()))
    blocks = [
        f"# {folder.resolve().name}: {len(auroc)} data sets",
        f"AUROC, %, mean over {' or '.join(map(str, counts))} seeds; settings and versions are in "
        "table.md, the baselines in baselines.md.",
        markdown(with_means(auroc, 100, 2)),
        *ranking(table, auroc),
        "![average ranks](figures/ranks.png)",
        "## Average precision, %",
        markdown(with_means(per_set(table, "average_precision"), 100, 2)),
        "## Seconds a data set, fit and score",
        "The least over seeds: what else a machine does only adds to it. Both scores of ours are "
        "from one pass.",
        markdown(with_means(per_set(table, "seconds", "method", "min"), 1, 1)),
    ]
    if (folder / "published.csv").is_file():
        blocks += published(pd.read_csv(folder / "published.csv"), auroc)
    write_page(folder / "benchmark.md", *blocks)


def ranking(table: pd.DataFrame, auroc: pd.DataFrame) -> list[str]:
    """Average ranks over the data sets that all methods have, and differences from the first."""
    complete = auroc.dropna()
    average = ranks(complete).mean().sort_values()
    difference = critical_difference(len(average), len(complete))
    friedman = friedmanchisquare(*complete.to_numpy().T).pvalue
    of_sets = table[table["dataset"].str.removeprefix(PREFIX).isin(complete.index)]
    less = [e.text(100) for e in less_first(of_sets, [*average.index]).values()]
    frame = pd.DataFrame(
        {
            "method": average.index,
            "average rank": [f"{rank:.2f}" for rank in average],
            "AUROC less the first's, %": ["", *less],
        }
    )
    return [
        f"Average rank by AUROC over {len(complete)} of {len(auroc)} data sets, 1 = best. Two "
        f"methods differ at level {ALPHA} when their ranks lie {difference:.2f} apart (Nemenyi); "
        f"that all are alike has p = {friedman:.2g} (Friedman). Differences are of the same data "
        "sets and seeds, in points, with 95% intervals: bootstrap over data sets and the seeds of "
        "each.",
        markdown(frame),
    ]


def with_means(values: pd.DataFrame, unit: float, digits: int) -> pd.DataFrame:
    """As text, with the mean over the data sets that all methods have."""
    complete = values.dropna()
    shown = pd.concat([values, complete.mean().to_frame(f"mean of {len(complete)}").T])
    text = (unit * shown).map(lambda value: "" if pd.isna(value) else f"{value:.{digits}f}")
    return text.rename_axis("dataset").reset_index()


def published(theirs: pd.DataFrame, auroc: pd.DataFrame) -> list[str]:
    """Others' figures, for orientation, beside the means of ours on the same data sets.

    Args:
        theirs: AUROC in %, a row a data set, with ``dataset`` such as 45_wine or wine.
    """
    names = theirs["dataset"].str.replace(r"^\d+_", "", regex=True).str.lower()
    known = theirs.drop(columns="dataset").set_index(names.rename("dataset"))
    shared = [name for name in auroc.index if name in known.index]
    return [
        "## Published AUROC, %",
        f"From {PUBLISHED}. Not run here, and on other rows: for orientation alone, no average "
        "above holds any of it.",
        markdown(with_means(known.loc[shared], 1, 2)),
        f"The methods that were run here, on the same {len(shared)} data sets:",
        markdown(with_means(auroc.loc[shared], 100, 2).tail(1)),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's tables and figures."""
    command = parser(__file__, __doc__)
    command.add_argument("--baselines", action="store_true", help="fits those that are not fitted")
    values = parse(command, argv)
    folder, quick = values.folder, values.quick
    if quick:
        changes = [{"dataset": name} for name in SMALLEST]
        run_quick("adbench", folder, changes)
        configs = [run.config for run in finished_runs(folder)]
    else:
        configs = load_study("adbench").expand()
    if quick or values.baselines:
        baselines.run_all(BASELINES, configs, folder)
    baselines.write_tables(BASELINES, folder)
    write_benchmark(folder)
    if finished_runs(folder):
        write_parts(folder)
    elif (folder / "parts.csv").is_file():
        write_parts_page(folder, pd.read_csv(folder / "parts.csv"))


if __name__ == "__main__":
    run_script(main, "adbench")
