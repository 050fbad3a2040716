"""The page of KDD Cup 99 with discrete columns: our posteriors beside baselines and controls.

Reads summary.csv of our runs and baselines.csv; with ``--baselines`` fits the baselines first.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pyro_vaeflow.experiments.results import method_name, read_summary
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.experiments.tables import HEADINGS, mean_std
from results.shared import baselines
from results.shared.classes import write_by_class
from results.shared.detectors import NAMES, usual
from results.shared.pages import markdown, parse, parser, run_quick, run_script, write_page

CHOSEN = "exact_rows unseen_values knn1 isolation_forest pca pyod_vae".split()
# PyOD's VAE has the paper's networks and number of epochs. The columns are scaled already; where
# PyOD standardises them once more, those that hardly vary explode.
VAE_OPTIONS = {
    "preprocessing": False,
    "epoch_num": 4,
    "batch_size": 1000,
    "latent_dim": 12,
    "encoder_neuron_list": [128, 64],
    "decoder_neuron_list": [64, 128],
}
USUAL = usual("log-minmax", VAE_OPTIONS)
BASELINES = {name: USUAL[name] for name in CHOSEN}


def write_comparison(folder: Path) -> pd.DataFrame:
    """Writes comparison.md, a row a method and score, from summary.csv and baselines.csv."""
    ours, theirs = read_summary(folder), pd.read_csv(folder / "baselines.csv")
    ours["method"] = [
        f"{method_name(flow, depth)}, {score}"
        for flow, depth, score in ours[["flow", "num_flows", "score"]].itertuples(index=False)
    ]
    table = pd.concat(
        [ours, theirs.assign(method=theirs["baseline"].map(NAMES))], ignore_index=True
    )
    lines = [
        {"method": method} | {HEADINGS[n]: mean_std(group[n], 4) for n in baselines.MEASURES}
        for method, group in table.groupby("method", sort=False)
    ]
    shown = pd.DataFrame(lines)
    write_page(
        folder / "comparison.md",
        f"# {folder.resolve().name}: posteriors beside baselines",
        markdown(shown),
        "Mean ± standard deviation over seeds, all on the same split; more figures are in table.md "
        "and baselines.md.",
    )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's tables."""
    command = parser(__file__, __doc__)
    command.add_argument("--baselines", action="store_true", help="fits those that are not fitted")
    values = parse(command, argv)
    if values.quick:
        run_quick("kdd", values.folder)
    if values.quick or values.baselines:
        study = load_study("kdd")
        seeds = study.seeds[:1] if values.quick else study.seeds
        configs = study.expand(seeds=seeds, quick=values.quick)
        baselines.run_all(BASELINES, configs, values.folder)
    baselines.write_tables(BASELINES, values.folder)
    write_comparison(values.folder)
    write_by_class(values.folder)


if __name__ == "__main__":
    run_script(main, "kdd")
