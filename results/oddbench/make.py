"""The page of real tables that nobody tuned on: the detector beside neighbours, forest and density.

Each table of OddBench has a fixed split; those of ADBench are beside them, so that a gain on the
ones is no loss on the others. What one table gives is a JSON file in ``FOLDER/tables``, so that a
call that was killed goes on.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.datasets.registry import adbench_names, load_adbench, require
from pyro_vaeflow.datasets.splits import one_class_split
from pyro_vaeflow.detector.rarity import points
from pyro_vaeflow.experiments.tables import HEADINGS
from pyro_vaeflow.metrics import auroc, average_precision
from pyro_vaeflow.plain_files import read_arrays, write_whole
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from results.adbench.make import PREFIX, per_set, ranks
from results.oddbench.peers import PEERS
from results.shared.detectors import Baseline, anomaly_score, fit, usual
from results.shared.effects import effect
from results.shared.pages import markdown, parse, parser, run_script, write_page

SOURCE = "OddBench (MacrOData, arXiv 2602.09329), one NAME.npz a table"
MAX_BYTES = 2**31
ODDBENCH = "oddbench:"
SEED = 0  # of the rows that are drawn, of the detector and of the forest
MAX_TRAIN, MAX_TEST = 2000, 1000  # rows
ENCODED = ("knn1", "knn5")  # also on our encoding, so that a gain is the model's
BASELINES = (*ENCODED, "dte_np", "real_nvp", "lof", "isolation_forest", "ecod", "pyod_vae")
OURS = {
    "combined": "score",
    "importance": "log_evidence",
    "reconstruction": "expected_log_likelihood",
}
PARTS = [("nearest",), ("entry",), *combinations(("evidence", "nearest", "entry"), 2)]
Rows = tuple[np.ndarray, np.ndarray, np.ndarray]  # to train on, to score, and which are anomalies
KEYS = ["dataset", "seed", "scored"]
MEASURES = ("auroc", "average_precision")


def names(folder: Path) -> list[str]:
    """OddBench's tables in the order in which they are run, a random one."""
    found = sorted(path.stem for path in folder.glob("*.npz"))
    order = [found[place] for place in np.random.default_rng(5).permutation(len(found))]
    return [ODDBENCH + name for name in order]


def load(dataset: str, folder: Path) -> Rows:
    """Rows of a table, drawn with `SEED` where it has more; up to 300 anomalies are all kept."""
    draw = np.random.default_rng(SEED)
    if dataset.startswith(PREFIX):
        split = one_class_split(load_adbench(dataset.removeprefix(PREFIX)), seed=SEED)
        train, test, flags = split.X_train.to_numpy(), split.X_test.to_numpy(), split.y_test
    else:
        content = read_arrays(folder / f"{dataset.removeprefix(ODDBENCH)}.npz", MAX_BYTES)
        train, test, flags = (content[name] for name in ("train", "test", "test_labels"))
    train = train[draw.permutation(len(train))[:MAX_TRAIN]]
    flags = flags.astype(int)
    order = draw.permutation(len(test))
    anomalies, inliers = order[flags[order] == 1][:300], order[flags[order] == 0]
    kept = np.concatenate([anomalies, inliers[: max(1, MAX_TEST - len(anomalies))]])
    return train, test[kept], flags[kept]


def run(dataset: str, rows: Rows, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """AUROC, AP and seconds of each method on a table, a row a method."""
    x, test, flags = rows
    table = {"dataset": dataset, "seed": SEED, "columns": x.shape[1], "rows": len(x)}
    found = []
    for name, scores, seconds in _scores(x, test, settings):
        measured = {
            "auroc": auroc(flags, scores),
            "average_precision": average_precision(flags, scores),
        }
        found.append({**table, "scored": name, **measured, "seconds": seconds})
    return found


def _scores(
    x: np.ndarray, test: np.ndarray, settings: dict[str, Any]
) -> Iterator[tuple[str, np.ndarray, float]]:
    """Each method's name, anomaly scores of the test rows, and seconds of fit and score."""

    def timed(work: Callable[[], Any]) -> tuple[Any, float]:
        start = time.process_time()
        return work(), time.process_time() - start

    frame, others = (pd.DataFrame(rows).add_prefix("x") for rows in (x, test))
    detector = VAEFlowDetector(random_state=SEED, **settings)
    details, seconds = timed(lambda: detector.fit(frame).score_details(others))
    for name, column in OURS.items():
        yield name, -details[column].to_numpy(), seconds
    for part in PARTS:
        terms = [f"log_p_{name}" for name in part]
        yield f"of {' and '.join(part)}", -details[terms].sum(axis=1).to_numpy(), seconds
    encoder = MixedEncoder().fit(frame)
    encoded = [points(encoder.columns_, encoder.transform(f).numpy()) for f in (frame, others)]
    scaler = StandardScaler().fit(x)
    standard = [scaler.transform(rows).clip(-1e6, 1e6) for rows in (x, test)]
    # the rows are standardised already, as PyOD would do
    for name, baseline in (usual("standard", {"preprocessing": False}) | PEERS).items():
        if name in BASELINES:
            yield name, *timed(partial(_fitted_scores, baseline, *standard))
        if name in ENCODED:
            yield f"{name}, our encoding", *timed(partial(_fitted_scores, baseline, *encoded))
    density = KernelDensity(bandwidth="scott")
    yield "kde, our encoding", *timed(lambda: -density.fit(encoded[0]).score_samples(encoded[1]))


def _fitted_scores(baseline: Baseline, x: np.ndarray, test: np.ndarray) -> np.ndarray:
    return anomaly_score(baseline, fit(baseline, x, SEED), test, SEED)


def run_all(datasets: Sequence[str], tables: Path, out: Path, settings: dict[str, Any]) -> None:
    """Runs each data set that has no file in ``out/tables``."""
    (out / "tables").mkdir(parents=True, exist_ok=True)
    for dataset in tqdm(datasets, desc="tables"):
        path = out / "tables" / f"{dataset.replace(':', '_')}.json"
        if not path.is_file():
            found = run(dataset, load(dataset, tables), settings)
            write_whole(path, json.dumps(found).encode())


def read(out: Path) -> pd.DataFrame:
    """Finished runs, which make tables.csv, or this where there are none."""
    runs = [json.loads(path.read_text()) for path in sorted(out.glob("tables/*.json"))]
    if runs:
        table = pd.DataFrame([row for found in runs for row in found])
        table.to_csv(out / "tables.csv", index=False, float_format="%.6g")
    return pd.read_csv(out / "tables.csv")


def summary(table: pd.DataFrame, reference: str) -> pd.DataFrame:
    """A row a method: means in percent, average ranks, and differences from a reference."""
    columns: dict[str, pd.Series] = {}
    for measure in MEASURES:
        title, values = HEADINGS[measure], per_set(table, measure)
        columns[f"{title}, %"] = (100 * values.mean()).map("{:.1f}".format)
        columns[f"rank by {title}"] = ranks(values).mean().map("{:.2f}".format)
        wide = table.set_index(KEYS)[measure].unstack()
        less = wide.sub(wide[reference], axis=0).drop(columns=reference)
        texts = {n: effect(less[[n]].set_axis([measure], axis=1), measure) for n in less}
        columns[f"{title} less {reference}'s"] = pd.Series(
            {n: found.text(100, 1) for n, found in texts.items()} | {reference: ""}
        )
    columns["seconds"] = per_set(table, "seconds").median().map("{:.1f}".format)
    return pd.DataFrame(columns).loc[table["scored"].unique()].rename_axis("method").reset_index()


def by_columns(table: pd.DataFrame) -> pd.DataFrame:
    """Mean AUROC in percent by the number of columns, a row a method."""
    sizes = pd.cut(table["columns"], [0, 3, 6, 14, np.inf], labels=["1-3", "4-6", "7-14", "15-"])
    means = 100 * table.groupby(["scored", sizes], observed=True, sort=False)["auroc"].mean()
    return means.unstack().sort_index(axis=1).round(1).rename_axis("method").reset_index()


def write_tables(table: pd.DataFrame, out: Path) -> None:
    """Writes tables.md from the table of runs."""
    blocks = [
        f"# {out.resolve().name}: {table['dataset'].nunique()} tables",
        f"Seed {SEED}; at most {MAX_TRAIN} rows to train and {MAX_TEST} to score; the detector "
        "at its defaults (`--num_steps` apart), the forest with 200 trees. Means in percent; "
        "differences in points with 95% intervals (bootstrap over tables); average ranks, 1 = "
        "best; median processor seconds of fit and score, all scores of ours from one fit.",
    ]
    benchmark = table["dataset"].str.startswith(PREFIX).map({False: "OddBench", True: "ADBench"})
    for part, group in table.groupby(benchmark, sort=False):
        blocks += [
            f"## {part}: {group['dataset'].nunique()} tables",
            markdown(summary(group, "knn5")),
        ]
        blocks += [
            "Less the nearest neighbour:",
            markdown(summary(group, "knn1").filter(regex="method|less")),
        ]
        blocks += ["AUROC by the number of columns:", markdown(by_columns(group))]
    write_page(out / "tables.md", *blocks)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, runs tables and writes csv and page."""
    command = parser(__file__, __doc__)
    command.add_argument("--tables", type=int, default=0, help="runs so many of each benchmark")
    command.add_argument("--num_steps", type=int, help="of training, in place of the default")
    values = parse(command, argv)
    count, settings = values.tables, {}
    if values.num_steps is not None:
        settings = {"num_steps": values.num_steps}
    if values.quick:
        count, settings = 1, {"num_steps": 20}
    if count:
        tables = require("oddbench", None, SOURCE, Path.is_dir)
        others = [] if values.quick else [PREFIX + name for name in adbench_names()]
        turns = zip_longest(names(tables)[:count], others[:count])
        datasets = [name for turn in turns for name in turn if name]
        run_all(datasets, tables, values.folder, settings)
    write_tables(read(values.folder), values.folder)


if __name__ == "__main__":
    run_script(main, "oddbench")
