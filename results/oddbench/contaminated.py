"""The detector and others, fitted to a table whose own anomalies are left in, and scoring it.

What one table gives is written to contaminated.csv at once, so that a call that was killed goes on.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from tqdm.auto import tqdm

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.datasets.registry import load_adbench
from pyro_vaeflow.experiments.tables import HEADINGS
from pyro_vaeflow.metrics import auroc, average_precision
from results.shared.pages import markdown, parse, parser, run_script, write_page

TABLES = ("annthyroid", "cardio", "ionosphere", "satimage-2", "vowels", "wdbc")
SHARES = (0.01, 0.05, 0.1)  # of anomalies among the rows, as far as a table has them
MAX_INLIERS, SEED = 2000, 0
CLEAN = "ours, trained on the inliers alone"


def scored(
    rows: np.ndarray, is_anomaly: np.ndarray, share: float, num_steps: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Each method and its anomaly scores of the rows, which it has been fitted to."""
    standard = StandardScaler().fit_transform(rows)
    distances = NearestNeighbors(n_neighbors=20).fit(standard).kneighbors()[0]
    yield "knn5", distances[:, 4]  # a row is no neighbour of itself
    yield "knn20", distances[:, 19]
    forest = IsolationForest(n_estimators=200, random_state=SEED).fit(standard)
    yield "isolation_forest", -forest.score_samples(standard)
    frame = pd.DataFrame(rows).add_prefix("x")
    ours = {
        "ours": (frame, {}),
        "ours, contamination known": (frame, {"contamination": share}),
        CLEAN: (frame[~is_anomaly], {}),
    }
    for name, (train, options) in ours.items():
        detector = VAEFlowDetector(num_steps=num_steps, random_state=SEED, **options).fit(train)
        yield name, -detector.score_samples(frame)


def run(table: str, share: float, num_steps: int) -> pd.DataFrame:
    """AUROC and AP of each method on a table with a share of anomalies, a row a method."""
    data, draw = load_adbench(table), np.random.default_rng(SEED)
    x, flags = data.X.to_numpy(dtype=float), np.asarray(data.y).astype(bool)
    inliers, anomalies = (draw.permutation(np.flatnonzero(flags == kind)) for kind in (False, True))
    inliers = inliers[:MAX_INLIERS]
    count = max(1, round(share / (1.0 - share) * len(inliers)))
    kept = np.concatenate([inliers, anomalies[:count]])
    lines = [
        {
            "dataset": table,
            "share": share,
            "method": name,
            "auroc": auroc(flags[kept], scores),
            "average_precision": average_precision(flags[kept], scores),
        }
        for name, scores in scored(x[kept], flags[kept], share, num_steps)
    ]
    return pd.DataFrame(lines)


def _by_share(table: pd.DataFrame, measure: str) -> str:
    means = 100 * table.groupby(["method", "share"], sort=False)[measure].mean().unstack()
    means.columns = [f"{share:.0%} anomalies" for share in means.columns]
    return markdown(means.round(1).reset_index())


def write_table(folder: Path) -> None:
    """Writes contaminated.md from contaminated.csv."""
    table = pd.read_csv(folder / "contaminated.csv")
    blocks = [
        "# Fitted to a table with its anomalies in it",
        f"{', '.join(TABLES)} of ADBench, at most {MAX_INLIERS} inliers, seed {SEED}; AUROC and AP "
        "in percent, means over the tables that have so many anomalies or the next lower number. "
        "Made by `python -m results.oddbench.contaminated --fit`.",
    ]
    for measure in ("auroc", "average_precision"):
        blocks += [f"## {HEADINGS[measure]}", _by_share(table, measure)]
    if len(cardio := table[table["dataset"] == "cardio"]):
        blocks += ["## AUROC on cardio alone", _by_share(cardio, "auroc")]
    write_page(folder / "contaminated.md", *blocks)


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, runs what contaminated.csv lacks and writes the page."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="fits the detectors")
    values = parse(command, argv)
    path = values.folder / "contaminated.csv"
    tables = [pd.read_csv(path)] if path.is_file() else []
    done = {pair for t in tables for pair in zip(t["dataset"], t["share"], strict=True)}
    num_steps, names = (20, TABLES[2:3]) if values.quick else (500, TABLES)
    pairs = [(name, share) for name in names for share in SHARES if (name, share) not in done]
    for name, share in tqdm(pairs if values.fit or values.quick else [], desc="tables"):
        tables = [pd.concat([*tables, run(name, share, num_steps)])]
        tables[0].to_csv(path, index=False, float_format="%.6g")
    write_table(values.folder)


if __name__ == "__main__":
    run_script(main, "oddbench", "python -m results.oddbench.contaminated --fit")
