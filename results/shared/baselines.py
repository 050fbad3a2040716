"""Baselines on the same splits as ours: their runs and tables.

A study names its baselines in a dictionary. What one fit gives is a JSON file in the study's folder
``baselines/``, so a killed call goes on; `write_tables` makes the csv files and the page.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.measurements import detection
from pyro_vaeflow.experiments.tables import HEADINGS, mean_std
from pyro_vaeflow.experiments.tasks import Task, load_task
from pyro_vaeflow.inference.saved_folder import package_versions, write_whole
from results.shared.classes import classes_of
from results.shared.detectors import NAMES, Baseline, anomaly_score, fit
from results.shared.pages import markdown, write_page

KEYS = ["dataset", "baseline", "seed"]
MEASURES = ["f1_top20", "f1_true_ratio", "auroc", "average_precision"]
DISTINCT = ["auroc_distinct", "average_precision_distinct"]
SECONDS = ["train_seconds", "score_seconds"]


def run(baseline: Baseline, task: Task, seed: int) -> dict[str, Any]:
    """What a baseline finds among a task's test rows: detection, by class too, and seconds."""
    started = time.perf_counter()
    detector = fit(baseline, task.x_train.numpy(), seed)
    trained = time.perf_counter()
    scores = anomaly_score(baseline, detector, task.x_test.numpy(), seed)
    seconds = {"train_seconds": trained - started, "score_seconds": time.perf_counter() - trained}
    found = {"own": scores}
    return {**detection(task, found), **classes_of(task, found), **seconds}


def run_all(
    baselines: Mapping[str, Baseline], configs: Sequence[ExperimentConfig], out: Path
) -> None:
    """Runs each baseline on the rows of each configuration's data set and seed; writes its tables.

    Finished ones, ``out/baselines/*.json``, are not run again.
    """
    folder = out / "baselines"
    folder.mkdir(parents=True, exist_ok=True)
    versions = package_versions(["pyod"])
    kept = ", ".join(f"{name} {versions[name]}" for name in ("numpy", "scikit-learn", "pyod"))
    tasks = {(c.dataset, c.seed): c for c in configs}
    for (dataset, seed), config in tqdm(tasks.items(), desc="baselines", unit="split"):
        for name, baseline in baselines.items():
            path = folder / f"{dataset.replace(':', '_')}-{name}-seed{seed}.json"
            if path.is_file():
                continue
            rows = replace(
                config,
                preprocessing=baseline.preprocessing,
                likelihood="bernoulli",
                likelihood_options={},
            )
            of_run = {"dataset": dataset, "baseline": name, "seed": seed, "versions": kept}
            of_run |= run(baseline, load_task(rows), seed)
            write_whole(path, json.dumps(of_run).encode())
    write_tables(baselines, out)


def write_tables(baselines: Mapping[str, Baseline], out: Path) -> pd.DataFrame:
    """Rebuilds the csv files from finished runs, if there are any, and baselines.md from them.

    Returns:
        baselines.csv, a row a data set, baseline and seed.

    Raises:
        FileNotFoundError: there are neither runs nor baselines.csv.
    """
    order = [*baselines]
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("baselines/*.json"))]
    runs.sort(key=lambda run: (run["dataset"], order.index(run["baseline"]), run["seed"]))
    if runs:
        repeated = any(run["num_distinct"] < run["num_test"] for run in runs)
        names = [*KEYS, *MEASURES, *SECONDS, *(DISTINCT if repeated else []), "versions"]
        rows = [{name: (run | run["scores"]["own"])[name] for name in names} for run in runs]
        pd.DataFrame(rows).to_csv(out / "baselines.csv", index=False, float_format="%.6g")
        _write_classes(runs, out)
    table = pd.read_csv(out / "baselines.csv")
    named = [n for n in [*MEASURES, *DISTINCT, *SECONDS] if n in table]
    lines = [
        {"dataset": dataset, "baseline": NAMES[name], "seeds": len(group)}
        | {HEADINGS[n]: mean_std(group[n], 1 if n in SECONDS else 4) for n in named}
        for (dataset, name), group in table.groupby(["dataset", "baseline"], sort=False)
    ]
    about = [f"- {NAMES[name]}: {baselines[name].about}" for name in table["baseline"].unique()]
    write_page(
        out / "baselines.md",
        f"# {out.resolve().name}: baselines and controls",
        markdown(pd.DataFrame(lines)),
        "Mean ± standard deviation over seeds, on the rows that our runs of the same seed have. "
        "Distinct rows: of test rows equal in all columns and in kind, the first.",
        "\n".join(about),
        f"Made by `python -m results.{out.resolve().name}.make --baselines` with "
        + "; ".join(table["versions"].unique())
        + ".",
    )
    return table


def _write_classes(runs: Sequence[dict[str, Any]], out: Path) -> None:
    """The share of each class's test rows that is flagged, means over seeds, if there are any."""
    rows = [
        {"dataset": run["dataset"], "baseline": run["baseline"], "class": name}
        | {"is_anomaly": int(name in run["anomalous_classes"])}
        | {"rows": run["classes"][name], "flagged": share}
        for run in runs
        for name, share in run.get("flagged_by_class", {}).get("own", {}).items()
    ]
    if rows:
        keys = ["dataset", "baseline", "class", "is_anomaly"]
        means = pd.DataFrame(rows).groupby(keys, sort=False).mean().reset_index()
        means.to_csv(out / "baselines_by_class.csv", index=False, float_format="%.6g")
