"""The paper's Table 1 beside ours; gaps of the five posteriors; draws that adapt to the row."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.results import finished_runs, method_name, read_summary
from pyro_vaeflow.experiments.tables import HEADINGS, mean_std
from results.shared.classes import write_by_class
from results.shared.gaps import QUICK, write_gaps, write_gaps_page
from results.shared.pages import markdown, parse, parser, run_quick, run_script, write_page

from .draws import write_draws, write_draws_page

PAPER = (
    "H. Shah, M. Sharpe, Variational Autoencoders with Normalizing Flows for Unsupervised Anomaly "
    "Detection, Table 1: KDD Cup 99, top 20% flagged, reconstruction score, mean ± standard "
    "deviation over 5 seeds, as published (not run here)."
)
PAPER_F1 = {  # posterior, depth -> mean and standard deviation
    ("diagonal", 0): "0.938 ± 0.0008",
    ("planar", 5): "0.936 ± 0.0012",
    ("planar", 50): "0.937 ± 0.0002",
    ("iaf", 5): "0.936 ± 0.0007",
    ("iaf", 50): "0.911 ± 0.0121",
}
SETTINGS = GapSettings(rows=1000, num_steps=100)


def write_paper(folder: Path) -> pd.DataFrame:
    """Writes paper.md from summary.csv: the paper's F1 beside both scores of ours, a row a flow."""
    table = read_summary(folder)
    lines = []
    for (flow, depth), group in table.groupby(["flow", "num_flows"], sort=False):
        of_score = dict(list(group.groupby("score")))
        reconstruction = of_score["reconstruction"]
        line = {
            "posterior": method_name(flow, depth),
            "paper's F1": PAPER_F1.get((flow, depth)),
            "F1, reconstruction": mean_std(reconstruction["f1_top20"], 4),
            "F1, importance": mean_std(of_score["importance"]["f1_top20"], 4),
        }
        for name, digits in (("auroc", 4), ("average_precision", 4), ("elbo", 2)):
            line[HEADINGS[name]] = mean_std(reconstruction[name], digits)
        lines.append(line | {"log evidence": mean_std(reconstruction["log_evidence"], 2)})
    shown = pd.DataFrame(lines)
    write_page(
        folder / "paper.md",
        f"# {folder.resolve().name}: Table 1 beside ours",
        markdown(shown),
        "Attacks are the normal class, top 20% flagged, mean ± standard deviation over seeds; "
        "AUROC and AP of the reconstruction score; nats a row over the test rows of the normal "
        "class.",
        f"The paper's F1: {PAPER}",
    )
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's tables."""
    values = parse(parser(__file__, __doc__), argv)
    folder, settings = values.folder, QUICK if values.quick else SETTINGS
    budget = {"num_rows": 20, "reference": 1000} if values.quick else {}
    if values.quick:
        run_quick("kdd-paper", folder)
    write_paper(folder)
    if finished_runs(folder):
        write_by_class(folder)
        write_gaps(folder, settings)
        for distinct in (False, True):
            write_draws(folder, distinct=distinct, **budget)
        return
    write_gaps_page(folder, pd.read_csv(folder / "gaps.csv"), settings)
    for distinct in (False, True):
        write_draws_page(folder, distinct=distinct)


if __name__ == "__main__":
    run_script(main, "kdd-paper")
