"""What keeps each posterior from the exact one: ``python -m pyro_vaeflow.gap_study DIR``.

Reads the finished runs of a results folder and writes gaps.csv, a row a run, and gaps.md. What is
measured of a run stays in its folder, so a killed call goes on where it was.
"""

import json
import time
from argparse import ArgumentParser
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from pyro_vaeflow.checked import ConfigError
from pyro_vaeflow.datasets import ring_log_density
from pyro_vaeflow.diagnostics import inference_gap
from pyro_vaeflow.latents import active_units
from pyro_vaeflow.prior_gap import prior_gap
from pyro_vaeflow.report import as_text
from pyro_vaeflow.results import FinishedRun, finished_runs
from pyro_vaeflow.runfolder import load_programs
from pyro_vaeflow.scoring import KHAT_LIMIT
from pyro_vaeflow.tables import IDENTITY, RUN_GAPS, mean_std
from pyro_vaeflow.tasks import load_task

GAPS = ["log_evidence", "approximation_gap", "amortization_gap", "elbo"]
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
EVERY_SEED = ["model", "num_flows", "seed", "true_log_density", "decoder_gap", "prior_gap", *GAPS]
READING = "## Reading"  # the page's last part, by hand: a new table leaves it as it is
DIGITS = {"active_units": 1, "seconds": 0}  # 3 of the others


@dataclass(frozen=True)
class GapSettings:
    """How gaps are measured: rows, and the arguments of `inference_gap`.

    Args:
        rows: distinct test inliers, drawn with the study's split_seed.
        num_steps: of each row's local optimisation.
        draws_per_step: behind each step's gradient.
        num_samples: draws behind each row's evidence and bounds.
    """

    rows: int = 1000
    num_steps: int = 200
    draws_per_step: int = 32
    num_samples: int = 1000

    @property
    def name(self) -> str:
        """The file, in a run's folder, of what is measured with these settings."""
        return "gaps-" + "-".join(str(value) for value in asdict(self).values()) + ".json"


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
        kept = run.folder / settings.name
        if not kept.is_file():
            partial = kept.with_suffix(".partial")
            partial.write_text(json.dumps(measure_gaps(run, settings)))
            partial.rename(kept)
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
    summary = pd.read_csv(path).drop(columns=added, errors="ignore")
    summary = summary.merge(table[runs + added], on=runs, how="left")
    summary.to_csv(path, index=False, float_format="%.6g")


def held_out_rows(run: FinishedRun, count: int) -> torch.Tensor:
    """At most `count` distinct test inliers of the run's task, ``(rows, num_features)``.

    No anomaly is among them, as the bound is about the rows that the model is to explain. A row of
    the table may also be one that a model was trained on, where a data set repeats its rows.
    """
    task = load_task(run.config)
    distinct = task.x_test[torch.as_tensor(task.is_anomaly == 0)].unique(dim=0)
    order = np.random.default_rng(run.config.split_seed).permutation(len(distinct))
    return distinct[torch.as_tensor(order[:count])]


def measure_gaps(run: FinishedRun, settings: GapSettings) -> dict[str, Any]:
    """One run's gaps as means over rows, nats, and its active units on the same rows."""
    started = time.perf_counter()
    x = held_out_rows(run, settings.rows)
    config, model, guide = load_programs(run.folder)
    options = {name: value for name, value in asdict(settings).items() if name != "rows"}
    # A prior around encodings has the guide's parameters: its own copy of them must not vary.
    gaps = inference_gap(deepcopy(model), guide, x, seed=config.seed, **options)
    row = {name: getattr(config, name) for name in ("dataset", "model", "num_flows", "seed")}
    row["rows"] = len(x)
    if config.dataset == "ring":  # the truth is known
        x_train, draws = load_task(config).x_train, settings.num_samples
        true = float(ring_log_density(x).mean())
        gain = prior_gap(model, guide, x_train, x, num_samples=draws, seed=config.seed)
        row |= {
            "true_log_density": true,
            "decoder_gap": true - _mean(gaps.log_evidence + gain),
            "prior_gap": _mean(gain),
        }
    row |= {name: _mean(getattr(gaps, name)) for name in GAPS}
    for name in GAPS[1:3]:
        row[f"{name}_stderr"] = getattr(gaps, name).double().std().item() / len(x) ** 0.5
    row["active_units"] = active_units(model, guide, x, seed=config.seed).count
    row["khat_above_0.7"] = (gaps.khat > KHAT_LIMIT).double().mean().item()
    return row | {"seconds": time.perf_counter() - started}


def _mean(values: torch.Tensor) -> float:
    return values.double().mean().item()


def _options(settings: GapSettings) -> str:
    """What the command line has to say for these settings."""
    usual = asdict(GapSettings())
    given = {k: v for k, v in asdict(settings).items() if v != usual[k]}
    return "".join(f" --{name} {value}" for name, value in given.items())


def _report(out: Path, table: pd.DataFrame, settings: GapSettings) -> str:
    groups = table.groupby(["dataset", "model", "num_flows"], sort=False)
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
        f"Made by `python -m pyro_vaeflow.gap_study {out}{_options(settings)}` from the finished "
        f"runs of seeds {sorted(set(table['seed']))}: nats a row, means over "
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
    for name, value in asdict(GapSettings()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    given = vars(parser.parse_args())
    out, seeds, quick = (given.pop(name) for name in ("out", "seeds", "quick"))
    study(out, QUICK if quick else GapSettings(**given), seeds)


if __name__ == "__main__":
    main()
