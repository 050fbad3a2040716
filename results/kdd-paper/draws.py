"""Draws that adapt to the row against a fixed number: errors of the log evidence, and their cost.

As a table that repeats its rows is no fair judge alone, there is a second pair of files of distinct
rows: rows that are alike have the same draws, so a few would decide.
"""

import math
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.experiments.results import FinishedRun, finished_runs, method_name
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.draws import log_weights
from pyro_vaeflow.inference.importance import KHAT_LIMIT, log_evidence, log_evidence_stderr
from pyro_vaeflow.inference.scoring import KhatWarning, Scores, score
from results.shared.pages import markdown, write_page

POSTERIORS = (("diagonal", 0), ("planar", 50))
FIXED = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400)  # the first draws of one run
STARTS = (25, 100)
TOLERANCE = 0.05  # nats, the standard error at which a row needs no more draws
NUM_ROWS = 500  # test rows, anomalies among them, drawn with the study's split_seed
REFERENCE = 10_000  # draws a row of the long run that errors are measured against


def write_draws(
    folder: Path,
    num_rows: int = NUM_ROWS,
    reference: int = REFERENCE,
    tol: float = TOLERANCE,
    distinct: bool = False,
) -> pd.DataFrame:
    """Measures the lowest seed of each of `POSTERIORS`; writes and returns the table."""
    first: dict[tuple[str, int], FinishedRun] = {}
    for run in finished_runs(folder):
        first.setdefault((run.config.flow, run.config.num_flows), run)
    parts = [
        measure(first[posterior], num_rows, reference, tol, distinct) for posterior in POSTERIORS
    ]
    table = pd.concat(parts, ignore_index=True)
    table.to_csv(folder / f"{_stem(distinct)}.csv", index=False, float_format="%.6g")
    write_draws_page(folder, num_rows, reference, tol, distinct)
    return table


def fixed_as_good(shares: dict[int, float], share: float) -> float:
    """The fixed number of draws with this share of rows off; inf past the last.

    Between two numbers the share is a line of the draws' logarithm.

    Example:
        >>> round(fixed_as_good({100: 0.2, 400: 0.1}, 0.15))
        200
    """
    draws = np.log(list(shares))
    falling = np.minimum.accumulate(list(shares.values()))  # what more draws undo is chance
    if share < falling[-1]:
        return float("inf")
    return float(np.exp(np.interp(-share, -falling, draws)))


def measure(
    run: FinishedRun, num_rows: int, reference: int, tol: float, distinct: bool
) -> pd.DataFrame:
    """The errors of one run's log evidence, a row a number of draws."""
    task, (config, model, guide) = load_task(run.config), load_programs(run.folder)
    rows = task.x_test.unique(dim=0) if distinct else task.x_test
    order = np.random.default_rng(config.split_seed).permutation(len(rows))
    x = rows[torch.as_tensor(order[:num_rows])]

    def scored(**options: Any) -> Scores:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)  # the table counts them
            return score(model, guide, x, **options)

    # Other draws than those that are judged: its seed is one that no run of a study has.
    truth = scored(num_samples=reference, seed=config.seed + 10_000)
    usable = truth.khat <= KHAT_LIMIT

    def line(
        draws: str, evidence: torch.Tensor, stderr: torch.Tensor, spent: float, seconds: float
    ) -> dict[str, Any]:
        error = (evidence - truth.log_evidence).double()
        off, within = (error.abs() > 2.0 * tol).double(), stderr <= tol
        return {
            "flow": config.flow,
            "num_flows": config.num_flows,
            "draws": draws,
            "mean_draws": spent,
            "share_off": off[usable].mean().item(),
            "share_off_all_rows": off.mean().item(),
            "share_above_tol": (~within).double().mean().item(),
            "share_off_within_tol": (off * within)[usable].mean().item(),
            "rmse": error[usable].square().mean().sqrt().item(),
            "rmse_all_rows": error.square().mean().sqrt().item(),
            "khat_above_0.7": (~usable).double().mean().item(),
            "seconds": seconds,
        }

    started = time.perf_counter()
    weights = log_weights(model, guide, x, num_samples=FIXED[-1], seed=config.seed)
    each = (time.perf_counter() - started) / FIXED[-1]
    lines = []
    for count in FIXED:
        first = weights[:count]
        figures = log_evidence(first), log_evidence_stderr(first)
        lines.append(line(str(count), *figures, count, each * count))
    fixed = pd.DataFrame(lines)
    for start in STARTS:
        started = time.perf_counter()
        options = {"num_samples": start, "tol": tol, "max_samples": FIXED[-1]}
        scores = scored(**options, seed=config.seed)
        seconds, spent = time.perf_counter() - started, scores.num_samples.double().mean().item()
        adaptive = line(f"{start}, tol={tol:g}", scores.log_evidence, scores.stderr, spent, seconds)
        for share in ("share_off", "share_above_tol"):
            same = fixed_as_good(dict(zip(FIXED, fixed[share], strict=True)), adaptive[share])
            ratio = spent / same if same < math.inf else math.nan  # no fixed number is as good
            adaptive |= {f"fixed_by_{share}": same, f"ratio_by_{share}": ratio}
        lines.append(adaptive)
    return pd.DataFrame(lines)


def write_draws_page(
    folder: Path,
    num_rows: int = NUM_ROWS,
    reference: int = REFERENCE,
    tol: float = TOLERANCE,
    distinct: bool = False,
) -> None:
    """Writes draws.md from draws.csv, or draws-distinct.md from draws-distinct.csv."""
    table = pd.read_csv(folder / f"{_stem(distinct)}.csv")
    table["posterior"] = [
        method_name(*posterior) for posterior in table[["flow", "num_flows"]].to_numpy()
    ]
    off, above = f"off by > {2 * tol:g}", f"stderr > {tol:g}"
    shown = table[["posterior", "draws"]].assign(
        **{"draws spent a row": table["mean_draws"].round(1)}
    )
    every = shown.assign(
        **{
            above: table["share_above_tol"].map("{:.3f}".format),
            off: table["share_off"].map("{:.3f}".format),
            f"{off} with stderr <= {tol:g}": table["share_off_within_tol"].map("{:.3f}".format),
            f"{off}, all rows": table["share_off_all_rows"].map("{:.3f}".format),
            "RMSE": table["rmse"].map("{:.4f}".format),
            "seconds": table["seconds"].round(1),
        }
    )
    adaptive = table["fixed_by_share_off"].notna()
    compared = shown[adaptive].assign(
        **{
            f"fixed K with as few {above}": table["fixed_by_share_above_tol"].map(_count),
            "draws / that K": table["ratio_by_share_above_tol"].map(_ratio),
            f"fixed K with as few {off}": table["fixed_by_share_off"].map(_count),
            "draws / this K": table["ratio_by_share_off"].map(_ratio),
        }
    )
    distrusted = table.groupby("posterior", sort=False)["khat_above_0.7"].first()
    shares = ", ".join(f"{share:.3f} of {posterior}" for posterior, share in distrusted.items())
    rows = f"{num_rows:,} {'distinct ' if distinct else ''}test rows"
    write_page(
        folder / f"{_stem(distinct)}.md",
        f"# {folder.resolve().name}: draws that adapt against a fixed number",
        markdown(compared),
        "Which fixed K is as good has two answers. By the rows' own standard errors, it is the K "
        f"that leaves as few rows above the tolerance of {tol:g} nats: this is what `tol` bounds. "
        f"By their errors, the K that leaves as few rows more than {2 * tol:g} nats off a long "
        "run. The second is the harder, because weights with a heavy tail can deceive the rule: a "
        "row whose largest weights have not come yet has a small standard error, and stops too "
        f"early. Rows that no draws bring within the tolerance cost up to {FIXED[-1]:,} draws.",
        "## Every number of draws",
        markdown(every),
        f"Made by `python -m results.{folder.resolve().name}.make` from the lowest seed of each "
        f"posterior, on {rows} drawn at random, anomalies among them. Rows that are alike have the "
        "same draws: where a table repeats its rows, a few decide, and draws-distinct.md is the "
        "fairer judge.",
        f"Errors are against the log evidence of {reference:,} other draws. Rows whose k-hat is "
        f"above {KHAT_LIMIT} there have no evidence to be compared with (shares: {shares}): they "
        "count in the draws spent, and in the shares of all rows and of standard errors alone.",
        f"With tol={tol:g}, a row's draws follow its standard error, up to {FIXED[-1]:,}. The "
        "fixed K is read off the fixed lines. "
        "A tolerance evens out the rows' errors: it saves draws where all rows have to be good, "
        "and none in the mean square, to which a draw of a good row and one of a bad row count "
        "alike.",
    )


def _stem(distinct: bool) -> str:
    return "draws-distinct" if distinct else "draws"


def _count(draws: float) -> str:
    return f"{draws:.0f}" if draws < math.inf else f"more than {FIXED[-1]}"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"
