"""Tables and figures of the study of flow posteriors.

Rebuilds summary.csv from the finished runs in FOLDER, if they are there, and writes tables.md,
effects.csv, margins.csv and the figures from it, refined.csv and quadrature.csv. With ``--fit``
makes the latter two first: trains cells of the study in FOLDER/refined, and refines rows' evidence;
a killed call goes on with what is missing.
"""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from results.shared.effects import FEWEST, by_run, effects, paired
from results.shared.pages import parse, parser, run_quick, run_script, write_page, write_tables

from .design import central, complete
from .figures import study_figures
from .margins import margins
from .refined import BUDGET, QUICK, train_cells, write_rows
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
    """Writes tables.md, effects.csv, margins.csv and the figures of the study in `folder`.

    Raises:
        FileNotFoundError: there are neither runs nor a summary.csv, or no refined.csv.
    """
    write_tables(folder)
    table = by_run(pd.read_csv(folder / "summary.csv"))
    rows = pd.read_csv(folder / "refined.csv")
    of_ring = pd.read_csv(folder / "quadrature.csv")
    of_runs = margins(pd.concat([rows[rows["quadrature"].isna()], of_ring]))
    of_runs.to_csv(folder / "margins.csv", index=False, float_format="%.6g")
    differences = complete(paired(central(table)))
    by_posterior = effects(differences, ["flow", "num_flows"], [*HEADINGS])
    by_posterior.to_csv(folder / "effects.csv", index=False, float_format="%.6g")
    (folder / "figures").mkdir(exist_ok=True)
    for name, figure in study_figures(table, of_runs).items():
        figure.savefig(folder / "figures" / f"{name}.png", dpi=120)
    tables = study_tables(table, of_runs, rows)
    sections = [f"## {title}\n\n{text}" for title, text in tables.items()]
    write_page(
        folder / "tables.md",
        f"# {folder.resolve().name}: tables",
        "Made by `python -m results.flow-study.make` from summary.csv, refined.csv and "
        "quadrature.csv; README.md says what they show. Brackets are 95% intervals, by a bootstrap "
        f"that draws data sets and their seeds; fewer than {FEWEST} pairs of both have none.",
        *sections,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, fits what is asked for and makes the tables and figures."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="makes refined.csv anew")
    values = parse(command, argv)
    if values.quick:
        run_quick("flow-study", values.folder, [RING | {"latent_dim": size} for size in (2, 8)])
        write_rows(values.folder, values.folder, QUICK)
    elif values.fit:
        train_cells(values.folder)
        write_rows(values.folder, values.folder / "refined", BUDGET)
    write_study(values.folder)


if __name__ == "__main__":
    run_script(main, "flow-study")
