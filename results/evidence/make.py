"""Evidence of trained detectors before and after refinement: k-hat, nats, seconds, AUROC.

With ``--fit`` fits a detector to each data set and scores some of its distinct test rows, in rounds
over the sets; a killed call goes on with what rows.csv lacks. Writes tables.md from rows.csv.
"""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow import Guide, Model, VAEFlowDetector, score
from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.registry import load_adbench
from pyro_vaeflow.datasets.splits import one_class_split
from pyro_vaeflow.inference.importance import KHAT_LIMIT
from pyro_vaeflow.metrics import auroc
from results.shared.pages import markdown, parse, parser, run_script, write_page

KDD = "kddcup99"
SETS = ("glass", "thyroid", "wine", "cardio", "wdbc", "pendigits", KDD)
TRAINED_ON = 10_000  # rows at most
OPTIONS: dict[str, dict[str, Any]] = {KDD: {"latent_dim": 16}}  # as in the preset kdd
BUDGET = {"rounds": 10, "rows": 10, "again": 1, "num_steps": 1500}  # rows of each kind, a round
QUICK = {"rounds": 1, "rows": 2, "again": 1, "num_steps": 20}
KINDS = ("inliers", "anomalies")


def trained(name: str, budget: Mapping[str, int]) -> tuple[Model, Guide, torch.Tensor, np.ndarray]:
    """A detector's programs, and distinct test rows of both kinds as they read them, with kind."""
    data = load_kddcup99() if name == KDD else load_adbench(name)
    split = one_class_split(data, seed=0)
    options = {"num_steps": budget["num_steps"]} | OPTIONS.get(name, {})
    train, draw = split.X_train, np.random.default_rng(0)
    if len(train) > TRAINED_ON:
        train = train.iloc[draw.permutation(len(train))[:TRAINED_ON]]
    detector = VAEFlowDetector(random_state=0, **options).fit(train)
    distinct, most = ~split.X_test.duplicated().to_numpy(), budget["rounds"] * budget["rows"]
    kinds = [np.flatnonzero(distinct & (split.y_test == kind))[:most] for kind in (0, 1)]
    rows = np.concatenate(kinds)
    x = detector.encoder_.transform(split.X_test.iloc[rows]).double()
    return detector.model_, detector.guide_, x, split.y_test[rows]


def measure(
    name: str, model: Model, guide: Guide, x: torch.Tensor, is_anomaly: np.ndarray, again: int
) -> pd.DataFrame:
    """Evidence of rows, a line a row: of the guide's draws, and refined where it is in doubt.

    ``again`` is that of another seed, for so many refined rows of each kind.
    """
    plain = score(model, guide, x)
    started = time.process_time()
    refined = score(model, guide, x, refine=True)
    seconds = (time.process_time() - started) / max(1, int(refined.refined.sum()))
    table = pd.DataFrame({"dataset": name, "is_anomaly": is_anomaly})
    table["latents"], table["seconds"] = model.latent_dim, seconds
    for column in ("log_evidence", "stderr", "khat"):
        table[f"{column}_before"] = getattr(plain, column).numpy()
    for column in ("log_evidence", "stderr", "khat", "ess", "num_samples", "refined"):
        table[column] = getattr(refined, column).numpy()
    of_kind = table[table["refined"]].groupby("is_anomaly").cumcount()
    repeated = of_kind[of_kind < again].index
    other = score(model, guide, x[repeated.to_numpy()], refine="all", seed=1)
    for column in ("log_evidence", "stderr"):
        values = getattr(other, column).numpy()
        table[f"{column}_again"] = pd.Series(values, repeated, dtype=float)
    return table


def write_rows(folder: Path, sets: Sequence[str], budget: Mapping[str, int]) -> None:
    """Adds the rounds that rows.csv has no rows of."""
    path, fits = folder / "rows.csv", {}
    tables = [pd.read_csv(path)] if path.is_file() else []
    finished = {
        pair
        for table in tables
        for pair in table[["dataset", "round"]].itertuples(index=False, name=None)
    }
    for number in range(budget["rounds"]):
        for name in sets:
            if (name, number) in finished:
                continue
            if name not in fits:
                fits[name] = trained(name, budget)
            model, guide, x, is_anomaly = fits[name]
            places = pd.Series(is_anomaly).groupby(is_anomaly).cumcount() // budget["rows"]
            some = np.flatnonzero(places == number)
            if len(some):
                table = measure(name, model, guide, x[some], is_anomaly[some], budget["again"])
                table.insert(1, "round", number)
                tables = [pd.concat([*tables, table])]
                tables[0].to_csv(path, index=False, float_format="%.6g")


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """What refinement does, a line a data set and kind of rows, and one for all of a kind.

    Example:
        >>> row = {"dataset": "a", "is_anomaly": 0, "latents": 2, "refined": True, "seconds": 1.0}
        >>> row |= {name: 0.1 for name in ("stderr_before", "stderr", "stderr_again")}
        >>> row |= {name: 1.0 for name in ("khat_before", "log_evidence_before")}
        >>> row |= {"khat": 0.2, "ess": 9.0, "num_samples": 10}
        >>> rows = pd.DataFrame([row | {"log_evidence": 3.0, "log_evidence_again": 3.1}])
        >>> line = summary(rows).iloc[0]
        >>> line["k-hat > 0.7, before"], line["k-hat > 0.7, after"], line["nats gained"]
        ('100%', '0%', '+2.00')
    """
    groups = {
        (name, kind): group
        for (name, kind), group in rows.groupby(["dataset", "is_anomaly"], sort=False)
    }
    groups |= {("all", kind): group for kind, group in rows.groupby("is_anomaly")}
    lines = []
    for (name, kind), group in groups.items():
        refined = group[group["refined"]]
        gained = (refined["log_evidence"] - refined["log_evidence_before"]).mean()
        again = refined.dropna(subset=["log_evidence_again"])
        error = np.hypot(again["stderr"], again["stderr_again"])
        off = (again["log_evidence"] - again["log_evidence_again"]).abs() > 3.0 * error
        lines.append(
            {
                "data set": name,
                "rows": f"{len(group)} {KINDS[kind]}",
                "latents": "" if name == "all" else group["latents"].iloc[0],
                "k-hat > 0.7, before": f"{(group['khat_before'] > KHAT_LIMIT).mean():.0%}",
                "k-hat > 0.7, after": f"{(group['khat'] > KHAT_LIMIT).mean():.0%}",
                "refined": len(refined),
                "nats gained": f"{gained:+.2f}" if len(refined) else "",
                "standard error, median": f"{refined['stderr'].median():.3f}"
                if len(refined)
                else "",
                "seconds a row": f"{refined['seconds'].mean():.1f}" if len(refined) else "",
                "other seed within 3 errors": f"{(~off).sum()} of {len(again)}",
            }
        )
    return pd.DataFrame(lines)


def detection(rows: pd.DataFrame) -> pd.DataFrame:
    """AUROC of the rows' evidence before and after, a line a data set."""
    return pd.DataFrame(
        {
            "data set": name,
            "AUROC, before": round(auroc(group["is_anomaly"], -group["log_evidence_before"]), 4),
            "AUROC, after": round(auroc(group["is_anomaly"], -group["log_evidence"]), 4),
        }
        for name, group in rows.groupby("dataset", sort=False)
    )


def write_tables(folder: Path) -> None:
    """Writes tables.md from rows.csv."""
    rows = pd.read_csv(folder / "rows.csv")
    write_page(
        folder / "tables.md",
        f"# {folder.resolve().name}: tables",
        "Made by `python -m results.evidence.make` from rows.csv, a line a row; README.md says "
        "what they show. Before: 100 draws of the posterior. After: `refine=True`, which takes the "
        "rows that are in doubt; nats, errors and processor seconds are of these, and so are the "
        "rows that another seed has refined anew.",
        "## Evidence",
        markdown(summary(rows)),
        "## Detection",
        markdown(detection(rows)),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line, fits what is asked for and writes the tables."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="fits detectors to sets without rows")
    values = parse(command, argv)
    if values.quick or values.fit:
        budget = (("wine",), QUICK) if values.quick else (SETS, BUDGET)
        write_rows(values.folder, *budget)
    write_tables(values.folder)


if __name__ == "__main__":
    run_script(main, "evidence", "python -m results.evidence.make --fit")
