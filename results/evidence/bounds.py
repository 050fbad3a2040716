"""Log evidence of rows that each detector's model makes, bounded from both sides.

Writes bounds.csv, a line a simulated row, and bounds.md; a killed call goes on with the next set.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow import evidence_bounds
from results.evidence.make import BUDGET, QUICK, SETS, trained
from results.shared.pages import markdown, parse, parser, run_script, write_page

ROWS = 10  # simulated of each set


def write_bounds(
    folder: Path, sets: Sequence[str], budget: Mapping[str, int], num_rows: int
) -> None:
    """Adds to bounds.csv the sets that it lacks."""
    path = folder / "bounds.csv"
    tables = [pd.read_csv(path)] if path.is_file() else []
    finished = {name for table in tables for name in table["dataset"]}
    for name in tqdm([name for name in sets if name not in finished], desc="bounds", unit="set"):
        model, guide, x, is_anomaly = trained(name, budget)
        inliers = x[torch.from_numpy(is_anomaly == 0)]
        found = evidence_bounds(model.double(), guide.double(), inliers, num_rows=num_rows)
        table = pd.DataFrame({"lower": found.lower.numpy(), "upper": found.upper.numpy()})
        table.insert(0, "dataset", name)
        tables = [pd.concat([*tables, table])]
        tables[0].to_csv(path, index=False, float_format="%.8g")


def write_bounds_page(folder: Path) -> None:
    """Writes bounds.md from bounds.csv."""
    lines = []
    for name, group in pd.read_csv(folder / "bounds.csv").groupby("dataset", sort=False):
        gap = group["upper"] - group["lower"]
        lines.append(
            {
                "data set": name,
                "rows": len(group),
                "lower, mean": round(group["lower"].mean(), 3),
                "upper, mean": round(group["upper"].mean(), 3),
                "apart, mean": round(gap.mean(), 4),
                "apart, at most": round(gap.abs().max(), 4),
            }
        )
    write_page(
        folder / "bounds.md",
        f"# {folder.resolve().name}: rows that the models make, from both sides",
        "Made by `python -m results.evidence.bounds`: `evidence_bounds` of the detectors of "
        "`results.evidence.make`, nats.",
        markdown(pd.DataFrame(lines)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, bounds what is missing and writes the page."""
    values = parse(parser(__file__, __doc__), argv)
    write_bounds(values.folder, *((("wine",), QUICK, 2) if values.quick else (SETS, BUDGET, ROWS)))
    write_bounds_page(values.folder)


if __name__ == "__main__":
    run_script(main, "evidence")
