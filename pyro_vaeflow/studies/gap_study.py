"""What keeps each posterior from the exact one: ``python -m pyro_vaeflow.studies.gap_study DIR``.

Reads the finished runs of a results folder and writes gaps.csv, a row a run, and gaps.md. What is
measured of a run stays in its folder, so a killed call goes on where it was.
"""

import json
import time
from argparse import ArgumentParser
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
from tqdm.auto import tqdm

from pyro_vaeflow.datasets.registry import ring_log_density
from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.measured_gaps import PARTS, held_out_rows, mean, measure_gaps
from pyro_vaeflow.experiments.report import as_text
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, read_csv
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tables import IDENTITY, RUN_GAPS, mean_std
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.checkpoint import write_whole
from pyro_vaeflow.studies.prior_gap import prior_gap
from pyro_vaeflow.validation import ConfigError

HEADINGS = {
    "true_log_density": "true log p(x)",
    "decoder_gap": "decoder gap",
    "prior_gap": "prior gap",
    "log_evidence": "log evidence",
    "approximation_gap": "approximation gap",
    "amortization_gap": "amortization gap",
    "elbo": "ELBO",
    "active_units": "active units",
    "khat_above_0.7": "k-hat > 0.7",
    "seconds": "seconds",
}
EVERY_SEED = ["flow", "num_flows", "seed", "true_log_density", "decoder_gap", "prior_gap", *PARTS]
READING = "## Reading"  # the page's last part, by hand: a new table leaves it as it is
DIGITS = {"active_units": 1, "seconds": 0}  # 3 of the others


FULL = GapSettings(rows=1000)
QUICK = GapSettings(rows=8, num_steps=2, draws_per_step=4, num_samples=20)


def study(
    out: Path, settings: GapSettings, seeds: list[int] | None = None, progress: bool = True
) -> pd.DataFrame:
    """Measures the gaps of each finished run in `out`; writes gaps.csv, also returned, and gaps.md.

    The gaps of each run are put into summary.csv as well.

    Args:
        seeds: of the runs to measure; all by default.

    Raises:
        ConfigError: there is no finished run of these seeds.
    """
    runs = [run for run in finished_runs(out) if seeds is None or run.config.seed in seeds]
    if not runs:
        which = "" if seeds is None else f" of seeds {seeds}"
        raise ConfigError(f"{out} holds no finished run{which} (runs/*/metrics.json)")
    rows = []
    for run in tqdm(runs, desc="gaps", unit="run", disable=not progress):
        kept = run.folder / file_name(settings)
        if not kept.is_file():
            write_whole(kept, json.dumps(measure_run(run, settings)).encode())
        rows.append(json.loads(kept.read_text()))
    table = pd.DataFrame(rows)
    table.to_csv(out / "gaps.csv", index=False, float_format="%.6g")
    add_to_summary(out, table)
    page = out / "gaps.md"
    written = page.read_text().partition(READING)[2] if page.is_file() else ""
    page.write_text(_report(out, table, settings) + (f"\n{READING}{written}" if written else ""))
    return table


def add_to_summary(out: Path, table: pd.DataFrame) -> None:
    """Puts the runs' `RUN_GAPS` into the folder's summary.csv, if it has one."""
    path = out / "summary.csv"
    if not path.is_file():
        return
    runs, added = [*IDENTITY, "seed"], [name for name in RUN_GAPS if name in table]
    summary = read_csv(path).drop(columns=added, errors="ignore")
    summary = summary.merge(table[runs + added], on=runs, how="left")
    summary.to_csv(path, index=False, float_format="%.6g")


def measure_run(run: FinishedRun, settings: GapSettings) -> dict[str, Any]:
    """One finished run's gaps as means over rows, nats, and its active units on the same rows."""
    started = time.perf_counter()
    task = load_task(run.config)
    x = held_out_rows(run.config, task, settings.rows)
    config, model, guide = load_programs(run.folder)
    gaps, found = measure_gaps(model, guide, x, settings, config.seed)
    row = {name: getattr(config, name) for name in ("dataset", "flow", "num_flows", "seed")}
    row["rows"] = len(x)
    if config.dataset == "ring":  # the truth is known
        true, draws = float(ring_log_density(x).mean()), settings.num_samples
        gain = prior_gap(model, guide, task.x_train, x, num_samples=draws, seed=config.seed)
        row |= {
            "true_log_density": true,
            "decoder_gap": true - mean(gaps.log_evidence + gain),
            "prior_gap": mean(gain),
        }
    return row | found | {"seconds": time.perf_counter() - started}


def file_name(settings: GapSettings) -> str:
    """The file, in a run's folder, of what is measured with these settings.

    Example:
        >>> file_name(GapSettings(rows=100, num_steps=50))
        'gaps-100-50-32-1000.json'
    """
    return "gaps-" + "-".join(str(value) for value in asdict(settings).values()) + ".json"


def _options(settings: GapSettings) -> str:
    """What the command line has to say for these settings."""
    usual = asdict(FULL)
    given = {k: v for k, v in asdict(settings).items() if v != usual[k]}
    return "".join(f" --{name} {value}" for name, value in given.items())


def _report(out: Path, table: pd.DataFrame, settings: GapSettings) -> str:
    groups = table.groupby(["dataset", "flow", "num_flows"], sort=False)
    lines = []
    for (_, model, num_flows), group in groups:
        line = {"posterior": f"{model} {num_flows}" if num_flows else model, "seeds": len(group)}
        for name, heading in HEADINGS.items():
            if name in group:
                line[heading] = mean_std(group[name], DIGITS.get(name, 3))
        lines.append(line)
    parts = [
        f"# {out.resolve().name}: what keeps each posterior from the exact one",
        as_text(pd.DataFrame(lines), "md"),
        f"Made by `python -m pyro_vaeflow.studies.gap_study {out}{_options(settings)}` from the "
        f"finished runs of seeds {sorted(set(table['seed']))}: nats a row, means over "
        f"{table['rows'].max():,} distinct test rows of inliers; ± is over seeds.",
        "Rows that the test set repeats count once, so rare rows weigh more than in table.md.",
        f"Each row's own q: {settings.num_steps} steps of {settings.draws_per_step} draws; "
        f"{settings.num_samples:,} draws a row behind evidence and bounds. Log evidence = ELBO + "
        "approximation gap + amortization gap. The approximation gap is an upper bound. The "
        "standard errors over rows are in gaps.csv.",
    ]
    if "prior_gap" in table:
        parts.append(
            "True log p(x) = log evidence + prior gap + decoder gap. The prior gap is what the "
            "evidence gains where the mean of q over the training rows is the prior; what is then "
            "still missing is the decoder's: its Gaussian and its network."
        )
        parts.append("## Every seed\n\n" + as_text(table[EVERY_SEED].round(4), "md"))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Reads the command line and runs `study`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a results folder with finished runs")
    parser.add_argument("--seeds", type=int, nargs="+", help="of the runs; all by default")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK}, to see that it runs")
    for name, value in asdict(FULL).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    out, seeds, quick = (given.pop(name) for name in ("out", "seeds", "quick"))
    study(out, QUICK if quick else GapSettings(**given), seeds)


if __name__ == "__main__":
    main()
