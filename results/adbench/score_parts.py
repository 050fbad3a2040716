"""The parts of the importance score: how well each detects, from the scores that runs keep.

.. math:: -\\log p(x) = -E_q[\\log p(x | z)] + KL(q(z | x) \\| p(z)) - KL(q(z | x) \\| p(z | x))

The first term is the reconstruction score. The second is how unusual the latents are that explain
the row. The third, the gap, is what importance sampling takes off the negative ELBO.
"""

from pathlib import Path

import pandas as pd
from scipy.stats import iqr, spearmanr

from pyro_vaeflow.experiments.results import (
    IDENTITY,
    FinishedRun,
    finished_runs,
    read_arrays,
    settings_apart,
    summary,
)
from pyro_vaeflow.experiments.tables import mean_std
from pyro_vaeflow.metrics import auroc
from pyro_vaeflow.validation import ConfigError
from results.shared.effects import by_run
from results.shared.pages import markdown, write_page

HEADINGS = {  # AUROC, shown in %
    "auroc_reconstruction": "reconstruction",
    "auroc_kl": "KL alone",
    "auroc_bound": "both, -ELBO",
    "auroc_importance": "importance",
    "gain": "importance - reconstruction",
}
SPREADS = {"spread_reconstruction": "spread, reconstruction", "spread_kl": "spread, KL"}
FEWEST = 5  # data sets: of fewer, a rank correlation says nothing


def write_parts(folder: Path) -> pd.DataFrame:
    """Writes parts.csv, a row a run, also returned, and parts.md from the folder's finished runs.

    Raises:
        ConfigError: a run's folder has no scores.
    """
    runs = finished_runs(folder)
    known = summary(runs)
    keys = [*IDENTITY, *settings_apart(known), "seed"]
    scores = ["auroc_reconstruction", "auroc_importance"]
    table = by_run(known)[[*keys, *scores]].join(pd.DataFrame(map(parts, runs)))
    table["gain"] = table["auroc_importance"] - table["auroc_reconstruction"]
    table = table[[*keys, *HEADINGS, *SPREADS]]
    table.to_csv(folder / "parts.csv", index=False, float_format="%.6g")
    write_parts_page(folder, table)
    return table


def parts(run: FinishedRun) -> dict[str, float]:
    """AUROC of the KL term and of the negative ELBO; spreads of inliers, interquartile, in nats.

    Raises:
        ConfigError: the run's folder has no scores, or none that can be read.
    """
    path = run.folder / "scores.npz"
    if not path.is_file():
        raise ConfigError(f"{run.folder} has no scores.npz: remove the folder and run again")
    scores = read_arrays(path)
    is_anomaly, elbo = scores["is_anomaly"], scores["elbo"].astype(float)
    reconstruction = -scores["expected_log_likelihood"].astype(float)
    kl, inlier = -elbo - reconstruction, is_anomaly == 0
    return {
        "auroc_kl": auroc(is_anomaly, kl),
        "auroc_bound": auroc(is_anomaly, -elbo),
        "spread_reconstruction": float(iqr(reconstruction[inlier])),
        "spread_kl": float(iqr(kl[inlier])),
    }


def write_parts_page(folder: Path, table: pd.DataFrame) -> None:
    """Writes parts.md from parts.csv: means over seeds, and what the KL term alone tells."""
    keys = [name for name in table if name not in [*HEADINGS, *SPREADS, "seed"]]
    lines = []
    for key, group in table.groupby(keys, sort=False, dropna=False):
        line = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        line |= {heading: mean_std(100 * group[n], 2) for n, heading in HEADINGS.items()}
        lines.append(line | {heading: mean_std(group[n], 2) for n, heading in SPREADS.items()})
    blocks = [
        f"# {folder.resolve().name}: what the importance score is made of",
        markdown(pd.DataFrame(lines)),
        "Made by `python -m results.adbench.make` from the finished runs. AUROC, %, mean ± "
        "standard deviation over seeds. Importance = reconstruction + KL - gap: the row's "
        "-log p(x) is what the decoder pays for it, and what the prior pays for its latents, less "
        "the distance of q from the exact posterior. So their difference is what the KL term and "
        "the gap change together. Spreads are interquartile ranges over the inliers, nats.",
    ]
    of_sets = table.groupby("dataset")[["auroc_kl", "gain"]].mean()
    if len(of_sets) >= FEWEST:
        rank = spearmanr(of_sets["auroc_kl"], of_sets["gain"])
        blocks.append(
            f"Over the means of {len(of_sets)} data sets the difference has a rank correlation of "
            f"{rank.statistic:.2f} with the AUROC of the KL term alone (p = {rank.pvalue:.2g})."
        )
    write_page(folder / "parts.md", *blocks)
