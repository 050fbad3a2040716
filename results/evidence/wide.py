"""Refined evidence beside plain draws: half of the guide, half of the prior's wide normal.

They know nothing of refinement, and are many enough on KDD, where the wide normal holds most rows'
posteriors. Writes wide.csv, a line a row of rows.csv, and wide.md.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyro.distributions as dist
import torch
from tqdm.auto import tqdm

from pyro_vaeflow import Guide, Model
from pyro_vaeflow.inference import importance
from results.evidence.make import BUDGET, KDD, KINDS, QUICK, trained
from results.shared.pages import markdown, parse, parser, run_script, write_page

DRAWS = 20_000


@torch.no_grad()
def plain_evidence(
    model: Model, guide: Guide, x: torch.Tensor, draws: int
) -> dict[str, torch.Tensor]:
    """Evidence of a row ``(1, num_features)`` as `importance.estimate` says it, nats."""
    q, prior = guide.posterior(x), model.prior(x)
    wide = dist.Normal(0.0, prior.broad).to_event(1)
    z = torch.cat([q.sample((draws // 2,)), wide.sample((draws // 2, 1))])
    log_half = torch.logaddexp(q.log_prob(z), wide.log_prob(z)) - np.log(2.0)
    log_joint = prior.log_prob(z) + model.decode(z).log_prob(x)
    return importance.estimate((log_joint - log_half).double())


def write_wide(folder: Path, name: str, budget: dict[str, int], draws: int) -> None:
    """Writes wide.csv: of a data set's rows in rows.csv."""
    rows = pd.read_csv(folder / "rows.csv").query("dataset == @name")
    model, guide, x, is_anomaly = trained(name, budget)
    model.double().eval(), guide.double().eval()
    place = rows.groupby("is_anomaly").cumcount()
    torch.manual_seed(0)
    found = []
    for kind, number in tqdm(list(zip(rows["is_anomaly"], place, strict=True)), desc="plain draws"):
        row = np.flatnonzero(is_anomaly == kind)[number]
        found.append(plain_evidence(model, guide, x[row : row + 1], draws))
    names = ("log_evidence_before", "stderr_before", "log_evidence", "stderr", "khat")
    table = rows[["is_anomaly", *names]].copy()
    for field in ("log_evidence", "stderr", "ess"):
        table[f"{field}_plain"] = [values[field].item() for values in found]
    table.to_csv(folder / "wide.csv", index=False, float_format="%.6g")


def write_wide_page(folder: Path) -> None:
    """Writes wide.md from wide.csv."""
    lines = []
    for kind, group in pd.read_csv(folder / "wide.csv").groupby("is_anomaly"):
        off, covered = {}, {}
        for name in ("", "_before"):
            off[name] = (group["log_evidence_plain"] - group[f"log_evidence{name}"]).abs()
            error = np.hypot(group["stderr_plain"], group[f"stderr{name}"])
            covered[name] = f"{(off[name] <= 3.0 * error).sum()} of {len(group)}"
        lines.append(
            {
                "rows": f"{len(group)} {KINDS[int(kind)]}",
                "effective draws, median": round(group["ess_plain"].median()),
                "refined within 3 errors": covered[""],
                "apart, median": round(off[""].median(), 3),
                "apart, at most": round(off[""].max(), 3),
                "100 draws within 3 errors": covered["_before"],
                "100 draws apart, median": round(off["_before"].median(), 2),
            }
        )
    write_page(
        folder / "wide.md",
        f"# {folder.resolve().name}: KDD beside plain draws",
        f"Made by `python -m results.evidence.wide` from rows.csv: {DRAWS:,} draws a row, half of "
        "the guide and half of the prior's wide normal, weighted by the density of both. Nats.",
        markdown(pd.DataFrame(lines)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, weighs the draws and writes the page."""
    values = parse(parser(__file__, __doc__), argv)
    write_wide(values.folder, *(("wine", QUICK, 200) if values.quick else (KDD, BUDGET, DRAWS)))
    write_wide_page(values.folder)


if __name__ == "__main__":
    run_script(main, "evidence", "python -m results.evidence.make --fit")
