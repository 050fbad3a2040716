"""The page of a study over many data sets: each method on each set, means, ranks and seconds."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from pyro_vaeflow.experiments.effects import Effect, effect
from pyro_vaeflow.experiments.rank_plot import plot_ranks
from pyro_vaeflow.experiments.ranks import critical_difference, friedman_p, ranks
from pyro_vaeflow.experiments.results import method_name, read_csv
from pyro_vaeflow.experiments.tables import settings_apart
from pyro_vaeflow.experiments.text_tables import as_text
from pyro_vaeflow.validation import ConfigError

FEWEST_SETS = 3  # data sets that every method has run on; below it no page is written
PREFIX = "adbench:"


def write_benchmark(table: pd.DataFrame, out: Path, published: Path | None = None) -> list[Path]:
    """Writes benchmark.md, auroc.csv and figures/ranks.png from a summary; the paths made.

    Args:
        table: as of `pyro_vaeflow.experiments.tables.summary`.
        published: a table of others' AUROC in percent, one row a data set, for orientation.

    Raises:
        ConfigError: `published` has no column ``dataset`` or names none of the data sets.
    """
    auroc = per_set(table, "auroc")
    complete = auroc.dropna()
    if len(complete) < FEWEST_SETS or len(auroc.columns) < 3:
        if published is not None:
            raise ConfigError(f"published: needs {FEWEST_SETS} data sets that all 3 methods share")
        return []
    average = ranks(complete).mean()
    difference = critical_difference(len(average), len(complete))
    (out / "figures").mkdir(exist_ok=True)
    paths = [out / "benchmark.md", out / "auroc.csv", out / "figures" / "ranks.png"]
    auroc.to_csv(paths[1], float_format="%.6g")
    plot_ranks({str(n): float(r) for n, r in average.items()}, difference).savefig(
        paths[2], dpi=110
    )
    counts = sorted(set(table.groupby("dataset")["seed"].nunique()))
    seeds = " or ".join(map(str, counts)) + (" seed" if counts == [1] else " seeds")
    parts = [
        f"# {out.resolve().name}: {len(auroc)} data sets",
        f"AUROC, %, mean over {seeds}; settings and versions are in table.md.",
        as_text(_with_means(auroc, 100, 2), "md"),
        _ranking(table, average, difference, complete, len(auroc)),
        "![average ranks](figures/ranks.png)",
        "## Average precision, %",
        as_text(_with_means(per_set(table, "average_precision"), 100, 2), "md"),
        "## Seconds a data set, fit and score",
        "The least over seeds: what else a machine does only adds to it. Both scores of ours are "
        "from one pass.",
        as_text(_with_means(seconds(table), 1, 1), "md"),
    ]
    if published is not None:
        parts += _published(read_csv(published), auroc, published.name)
    paths[0].write_text("\n\n".join(parts) + "\n")
    return paths


def per_set(table: pd.DataFrame, measure: str) -> pd.DataFrame:
    """Means over seeds: one row a data set, one column a method and score, missing if not run."""
    return _pivot(table, _methods(table, with_score=True), measure)


def seconds(table: pd.DataFrame) -> pd.DataFrame:
    """Least wall time of fit and scores together, one row a data set, one column a method."""
    timed = table.assign(seconds=table["train_seconds"] + table["score_seconds"])
    return _pivot(timed, _methods(table, with_score=False), "seconds", "min")


def _methods(table: pd.DataFrame, with_score: bool) -> pd.Series:
    apart = settings_apart(table)

    def name(row: pd.Series) -> str:
        parts = [method_name(row["flow"], row["num_flows"])]
        parts += [f"{key.split('.')[-1]} {row[key]}" for key in apart if pd.notna(row[key])]
        parts += [row["score"]] if with_score and row["score"] != "own" else []
        return ", ".join(parts)

    return table.apply(name, axis=1)


def _pivot(
    table: pd.DataFrame, methods: pd.Series, measure: str, over_seeds: str = "mean"
) -> pd.DataFrame:
    sets = table["dataset"].str.removeprefix(PREFIX)
    one = table.groupby([sets, methods], sort=False)[measure].agg(over_seeds).unstack()
    return one.reindex(columns=methods.unique()).rename_axis("dataset").sort_index()


def _with_means(values: pd.DataFrame, unit: float, digits: int) -> pd.DataFrame:
    """As text, with the mean over the data sets that all methods have."""
    shown = values.copy()
    complete = values.dropna()
    shown.loc[f"mean of {len(complete)}"] = complete.mean()
    text = (unit * shown).map(lambda value: "" if pd.isna(value) else f"{value:.{digits}f}")
    return text.reset_index()


def less_first(table: pd.DataFrame, ordered: Sequence[str]) -> dict[str, Effect]:
    """AUROC of each method less that of the first, on the same data sets and seeds."""
    named = table.assign(method=_methods(table, with_score=True))
    wide = named.pivot(index=["dataset", "seed"], columns="method", values="auroc")
    return {
        name: effect((wide[name] - wide[ordered[0]]).to_frame("auroc"), "auroc")
        for name in ordered[1:]
    }


def _ranking(
    table: pd.DataFrame,
    average: pd.Series,
    difference: float,
    complete: pd.DataFrame,
    num_sets: int,
) -> str:
    ordered = average.sort_values()
    known = table["dataset"].str.removeprefix(PREFIX).isin(complete.index)
    less = less_first(table[known], [str(name) for name in ordered.index])
    frame = pd.DataFrame(
        {
            "method": ordered.index,
            "average rank": [f"{rank:.2f}" for rank in ordered],
            "AUROC less the first's, %": ["", *map(_points, less.values())],
        }
    )
    return (
        f"Average rank by AUROC over {len(complete)} of {num_sets} data sets, 1 = best. Two "
        f"methods differ at level 0.05 when their ranks lie {difference:.2f} apart (Nemenyi); "
        f"that all are alike has p = {friedman_p(complete):.2g} (Friedman). Differences are of the "
        "same data sets and seeds, in points, with 95% intervals: bootstrap over data sets and the "
        "seeds of each.\n\n" + as_text(frame, "md")
    )


def _points(found: Effect) -> str:
    mean, low, high = (100 * value for value in (found.mean, found.low, found.high))
    return f"{mean:+.2f}" + ("" if np.isnan(low) else f" ({low:+.2f} to {high:+.2f})")


def _published(theirs: pd.DataFrame, auroc: pd.DataFrame, source: str) -> list[str]:
    if "dataset" not in theirs:
        raise ConfigError(f"published: {source} must have a column 'dataset', got {[*theirs]}")
    names = theirs["dataset"].str.replace(r"^\d+_", "", regex=True).str.lower()
    known = theirs.drop(columns="dataset").set_index(names.rename("dataset"))
    shared = [name for name in auroc.index if name in known.index]
    if not shared:
        raise ConfigError(f"published: {source} names none of {', '.join(auroc.index)}")
    return [
        f"## Published AUROC, %, as in {source}",
        "Not run here, and on other rows: for orientation alone, no average above holds any of it.",
        as_text(_with_means(known.loc[shared], 1, 2), "md"),
        f"The methods that were run here, on the same {len(shared)} data sets:",
        as_text(_with_means(auroc.loc[shared], 100, 2).tail(1), "md"),
    ]
