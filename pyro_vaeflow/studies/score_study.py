"""What the importance score is made of, part by part.

The command is ``python -m pyro_vaeflow.studies.score_study DIR``.

Reads the scores that the finished runs of a results folder keep, and writes parts.csv, a row a run,
and parts.md. Nothing is trained or scored anew.
"""

from argparse import ArgumentParser
from pathlib import Path

import pandas as pd
from scipy.stats import iqr, spearmanr

from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, read_arrays
from pyro_vaeflow.experiments.tables import IDENTITY, by_run, mean_std, settings_apart, summary
from pyro_vaeflow.experiments.text_tables import as_text
from pyro_vaeflow.metrics import auroc
from pyro_vaeflow.validation import ConfigError

HEADINGS = {  # AUROC, shown in %
    "auroc_reconstruction": "reconstruction",
    "auroc_kl": "KL alone",
    "auroc_bound": "both, -ELBO",
    "auroc_importance": "importance",
    "gain": "importance - reconstruction",
}
SPREADS = {"spread_reconstruction": "spread, reconstruction", "spread_kl": "spread, KL"}
FEWEST = 5  # data sets: of fewer, a rank correlation says nothing


def study(out: Path) -> pd.DataFrame:
    r"""AUROC of each part of the finished runs' scores; writes parts.csv, also returned, and .md.

    .. math:: -\log p(x) = -E_q[\log p(x | z)] + KL(q(z | x) \| p(z)) - KL(q(z | x) \| p(z | x))

    The first term is the reconstruction score. The second is how unusual the latents are that
    explain the row. The third, the gap, is what importance sampling takes off the negative ELBO.

    Raises:
        ConfigError: there is no finished run of ours, with its scores.
    """
    runs = [run for run in finished_runs(out) if not run.config.is_peer]
    if not runs:
        raise ConfigError(f"{out} holds no finished run of ours (runs/*/metrics.json)")
    known = summary(runs)
    keys = [*IDENTITY, *settings_apart(known), "seed"]
    scores = ["auroc_reconstruction", "auroc_importance"]
    table = by_run(known)[[*keys, *scores]].join(pd.DataFrame(map(parts, runs)))
    table["gain"] = table["auroc_importance"] - table["auroc_reconstruction"]
    table = table[[*keys, *HEADINGS, *SPREADS]]
    table.to_csv(out / "parts.csv", index=False, float_format="%.6g")
    (out / "parts.md").write_text(_report(out, table))
    return table


def parts(run: FinishedRun) -> dict[str, float]:
    """AUROC of the KL term and of the negative ELBO; spreads of inliers, interquartile, in nats.

    Raises:
        ConfigError: the run's folder has no scores, or none that can be read.
    """
    path = run.folder / "scores.npz"
    if not path.is_file():
        raise ConfigError(f"{run.folder} has no scores.npz: remove the folder and run again")
    kept = read_arrays(path)
    is_anomaly, elbo = kept["is_anomaly"], kept["elbo"].astype(float)
    reconstruction = -kept["expected_log_likelihood"].astype(float)
    kl, inlier = -elbo - reconstruction, is_anomaly == 0
    return {
        "auroc_kl": auroc(is_anomaly, kl),
        "auroc_bound": auroc(is_anomaly, -elbo),
        "spread_reconstruction": float(iqr(reconstruction[inlier])),
        "spread_kl": float(iqr(kl[inlier])),
    }


def _report(out: Path, table: pd.DataFrame) -> str:
    keys = [name for name in table if name not in [*HEADINGS, *SPREADS, "seed"]]
    groups = table.groupby(keys, sort=False, dropna=False)
    lines = []
    for key, group in groups:
        line = dict(zip(keys, key, strict=True)) | {"seeds": len(group)}
        line |= {heading: mean_std(100 * group[n], 2) for n, heading in HEADINGS.items()}
        lines.append(line | {heading: mean_std(group[n], 2) for n, heading in SPREADS.items()})
    pages = [
        f"# {out.resolve().name}: what the importance score is made of",
        as_text(pd.DataFrame(lines), "md"),
        f"Made by `python -m pyro_vaeflow.studies.score_study {out}` from the finished runs. "
        "AUROC, %, mean ± standard deviation over seeds. Importance = reconstruction + KL - gap: "
        "the row's -log p(x) is what the decoder pays for it, and what the prior pays for its "
        "latents, less the distance of q from the exact posterior. So their difference is what "
        "the KL term and the gap change together. Spreads are interquartile ranges over the "
        "inliers, nats.",
    ]
    of_sets = table.groupby("dataset")[["auroc_kl", "gain"]].mean()
    if len(of_sets) >= FEWEST:
        found = spearmanr(of_sets["auroc_kl"], of_sets["gain"])
        pages.append(
            f"Over the means of {len(of_sets)} data sets the difference has a rank correlation of "
            f"{found.statistic:.2f} with the AUROC of the KL term alone (p = {found.pvalue:.2g})."
        )
    return "\n\n".join(pages) + "\n"


def main() -> None:
    """Reads the command line and runs `study`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a results folder with finished runs")
    study(parser.parse_args().out)


if __name__ == "__main__":
    main()
