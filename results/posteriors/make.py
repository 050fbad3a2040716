"""How near amortised posteriors are to reference draws; with ``--fit`` fits what is not fitted yet.

One run is a task, a family and a seed. A finished run is a JSON file in ``runs/``, so a killed call
goes on with the next; one whose training ended in numbers that are not finite is a result, too.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from pyro_vaeflow.experiments.results import method_name
from pyro_vaeflow.experiments.tables import mean_std
from pyro_vaeflow.inference.importance import KHAT_LIMIT
from pyro_vaeflow.inference.saved_folder import write_whole
from pyro_vaeflow.inference.training import NonFiniteError
from results.posteriors.runs import PosteriorRun, fit_posterior
from results.posteriors.tasks import OBSERVATIONS, TASKS
from results.shared.pages import markdown, parse, parser, write_page

REFINED = "full"  # the family whose guide starts the evidence that all are compared with
WIDE = {"hidden_dim": 32}
FAMILIES: dict[tuple[str, int], dict[str, Any]] = {
    (REFINED, 1): {},
    ("spline", 2): WIDE,
    ("diagonal", 0): {},
    ("iaf", 5): WIDE,
    ("planar", 5): {},
    ("coupling", 8): WIDE,
    ("planar", 32): {},
    ("iaf", 16): WIDE,
}
ORDER = ("diagonal", "full", "coupling", "planar", "iaf", "spline")
SEEDS = (0, 1, 2)
QUICK = {"num_rows": 200, "num_steps": 5, "num_draws": 50, "num_simulations": 100}


def runs_of(seeds: Sequence[int], **settings: Any) -> list[PosteriorRun]:
    """The study's runs, what is compared with first; `settings` in place of the defaults."""
    return [
        PosteriorRun(
            task, *family, seed, options, refined=family[0] == REFINED and seed == 0, **settings
        )
        for seed, (family, options), task in product(seeds, FAMILIES.items(), TASKS)
    ]


def fit_missing(folder: Path, runs: Sequence[PosteriorRun]) -> None:
    """Fits what is not finished."""
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    for run in tqdm(runs, desc="posteriors", unit="fit"):
        path = folder / "runs" / f"{run.name}.json"
        if not path.is_file():
            try:
                found = fit_posterior(run)
            except NonFiniteError:
                found = asdict(run)
            write_whole(path, json.dumps(found).encode())


def write_results(folder: Path, runs: Sequence[PosteriorRun]) -> None:
    """Writes tables.md; of finished runs summary.csv before it, a row an observation.

    Raises:
        FileNotFoundError: no run is finished and there is no summary.csv.
    """
    paths = [folder / "runs" / f"{run.name}.json" for run in runs]
    finished = [json.loads(path.read_text()) for path in paths if path.is_file()]
    if finished:
        evidence = {run["task"]: run["log_evidence"] for run in finished if "log_evidence" in run}
        rows = [row for run in finished for row in _rows(run, evidence[run["task"]])]
        pd.DataFrame(rows).to_csv(folder / "summary.csv", index=False, float_format="%.6g")
    write_tables(folder, pd.read_csv(folder / "summary.csv"), runs[0])


def _rows(run: dict[str, Any], evidence: Sequence[float]) -> list[dict[str, Any]]:
    """What a run says of each observation, and of its calibration, the same in each row.

    Of a run that did not train there is one row, with its names alone.
    """
    common = {name: run[name] for name in ("task", "flow", "num_flows", "seed")}
    if "c2st" not in run:
        return [common]
    common |= {"seconds": run["seconds"]}
    common |= {name: min(run[name]) for name in ("sbc", "vsbc")}
    measured = zip(OBSERVATIONS, run["c2st"], run["khat"], evidence, run["elbo"], strict=True)
    return [
        common | {"observation": number, "c2st": c2st, "khat": khat, "gap": log_evidence - elbo}
        for number, c2st, khat, log_evidence, elbo in measured
    ]


def by_family(table: pd.DataFrame, cell: Any) -> pd.DataFrame:
    """A row a family and a column a task, of what `cell` makes of the rows that trained."""
    lines = {}
    for (task, flow, depth), group in table.groupby(["task", "flow", "num_flows"], sort=False):
        place = ORDER.index(flow), depth
        line = lines.setdefault(place, {"family": method_name(flow, depth)})
        trained = group[group["c2st"].notna()]
        line[task] = cell(trained) if len(trained) else "did not train"
    names = [task for task in TASKS if task in set(table["task"])]
    return pd.DataFrame([lines[place] for place in sorted(lines)], columns=["family", *names])


def write_tables(folder: Path, table: pd.DataFrame, run: PosteriorRun) -> None:
    """Writes tables.md from summary.csv."""
    settings = ", ".join(
        f"{f.name} {getattr(run, f.name):g}"
        for f in fields(run)
        if f.name.startswith(("num_", "batch", "learning", "temp")) and f.name != "num_flows"
    )
    lost = table[table["c2st"].isna()]
    names = [
        f"{method_name(r.flow, r.num_flows)} on {r.task}, seed {r.seed}" for r in lost.itertuples()
    ]
    write_page(
        folder / "tables.md",
        f"# {folder.resolve().name}: tables",
        f"Made by `python -m results.posteriors.make --fit`: {len(OBSERVATIONS)} observations, "
        f"seeds {sorted(set(table['seed']))}; {settings}. Trainings whose gradients overflowed, of "
        f"which the tables know nothing: {'; '.join(names) or 'none'}.",
        "## C2ST, mean ± standard deviation over observations and seeds (0.5: as the reference)",
        markdown(by_family(table, lambda group: mean_std(group["c2st"], 3))),
        "## log p(x) - ELBO, nats, median",
        markdown(by_family(table, lambda group: f"{group['gap'].median():.2f}")),
        f"## Observations with a k-hat above {KHAT_LIMIT}",
        markdown(by_family(table, lambda group: f"{(group['khat'] > KHAT_LIMIT).mean():.0%}")),
        "## Least p-value over coordinates and seeds, of uniform ranks (SBC)",
        markdown(by_family(table, lambda group: f"{group['sbc'].min():.1g}")),
        "## Least p-value over coordinates and seeds, of symmetric ranks (VSBC)",
        markdown(by_family(table, lambda group: f"{group['vsbc'].min():.1g}")),
        "## Processor seconds of training",
        markdown(by_family(table, lambda group: f"{group['seconds'].mean():.0f}")),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Reads the command line and makes the folder's tables."""
    command = parser(__file__, __doc__)
    command.add_argument("--fit", action="store_true", help="fits what is not fitted yet")
    values = parse(command, argv)
    runs = runs_of(SEEDS)
    if values.quick:
        runs = [run for run in runs_of(SEEDS[:1], **QUICK) if run.task == "two_moons"][:2]
    if values.quick or values.fit:
        fit_missing(values.folder, runs)
    write_results(values.folder, runs)


if __name__ == "__main__":
    main()
