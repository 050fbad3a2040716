"""Tables and figures of the study of flow posteriors.

Rebuilds summary.csv and margins.csv from the finished runs in FOLDER, if they are there, and writes
tables.md, effects.csv and the figures from them.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from results.shared.effects import FEWEST, by_run, effects, paired
from results.shared.pages import parse, parser, run_quick, run_script, write_page, write_tables

from .design import central, complete
from .figures import study_figures
from .margins import margins
from .tables import HEADINGS, study_tables

# The quick budget is one table and the factorial's posteriors at two sizes.
RING = {
    "dataset": "ring",
    "preprocessing": "none",
    "likelihood": "normal",
    "count_power": 1.0,
    "learning_rate": 0.01,
    "annealing": {"kind": "constant", "stop": 1.0},
    "gaps": {"rows": 4},
}


def write_study(folder: Path) -> None:
    """Writes tables.md, effects.csv and the figures of the study in `folder`.

    Raises:
        FileNotFoundError: there are neither runs nor a summary.csv and a margins.csv.
    """
    write_tables(folder)
    table = by_run(pd.read_csv(folder / "summary.csv"))
    of_runs = margins(folder)
    if len(of_runs):
        of_runs.to_csv(folder / "margins.csv", index=False, float_format="%.6g")
    rows = pd.read_csv(folder / "margins.csv")
    differences = complete(paired(central(table)))
    by_posterior = effects(differences, ["flow", "num_flows"], [*HEADINGS])
    by_posterior.to_csv(folder / "effects.csv", index=False, float_format="%.6g")
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in study_figures(table, rows).items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)
    sections = [f"## {title}\n\n{text}" for title, text in study_tables(table, rows).items()]
    write_page(
        folder / "tables.md",
        f"# {folder.resolve().name}: tables",
        "Made by `python -m results.flow-study.make` from summary.csv and margins.csv; README.md "
        "says what they show. Brackets are 95% intervals, by a bootstrap that draws data sets and "
        f"their seeds; fewer than {FEWEST} pairs of both have none.",
        *sections,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the tables and figures."""
    values = parse(parser(__file__, __doc__), argv)
    if values.quick:
        run_quick("flow-study", values.folder, [RING | {"latent_dim": size} for size in (2, 8)])
    write_study(values.folder)


if __name__ == "__main__":
    run_script(main, "flow-study")
