"""Draws that adapt to the row against a fixed number.

The command is ``python -m pyro_vaeflow.studies.draw_study DIR``.

Reads the finished runs of a results folder, one a posterior, and writes draws.csv and draws.md: the
error of each row's log evidence against a long run with other draws, and what it cost. As a table
that repeats its rows is no fair judge alone, ``--distinct`` makes a second pair of files.
"""

import math
import time
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.experiments.report import as_text
from pyro_vaeflow.experiments.results import FinishedRun, finished_runs
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.tasks import load_task
from pyro_vaeflow.inference.draws import log_weights
from pyro_vaeflow.inference.importance import log_evidence, log_evidence_stderr
from pyro_vaeflow.inference.rounds import GROWTH, KHAT_DRAWS, KHAT_LIMIT
from pyro_vaeflow.inference.row_scores import Scores
from pyro_vaeflow.inference.scoring import KhatWarning, score
from pyro_vaeflow.validation import ConfigError, check_names

FIXED = (25, 50, 100, 200, 400, 800, 1600, 3200, 6400)  # the first draws of one run
STARTS = (25, 100)
TOLERANCE = 0.05  # nats
REFERENCE = 20_000  # draws of the long run


def study(
    out: Path,
    num_rows: int = 1000,
    reference: int = REFERENCE,
    tol: float = TOLERANCE,
    posteriors: Sequence[str] | None = None,
    distinct: bool = False,
) -> pd.DataFrame:
    """Measures the lowest seed of each posterior in `out`; writes and returns the table.

    Args:
        num_rows: test rows, anomalies among them, drawn with the study's split_seed.
        reference: draws a row of the long run.
        tol: the standard error, nats, at which a row needs no more draws.
        posteriors: those to measure, such as ``planar50``; all by default.
        distinct: draw from the distinct test rows, and write draws-distinct.csv and .md: rows that
            are alike have the same draws, so where a table repeats its rows a few decide.

    Raises:
        ConfigError: there is no finished run, or none of a posterior that was named.
    """
    first: dict[str, FinishedRun] = {}
    for run in finished_runs(out):
        first.setdefault(f"{run.config.flow}{run.config.num_flows}", run)
    if not first:
        raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json)")
    if posteriors is not None:
        check_names(posteriors, first, "posterior")
        first = {name: first[name] for name in posteriors}
    parts = [_measure(run, num_rows, reference, tol, distinct) for run in first.values()]
    table = pd.concat(parts, ignore_index=True)
    name = "draws-distinct" if distinct else "draws"
    table.to_csv(out / f"{name}.csv", index=False, float_format="%.6g")
    named = "" if posteriors is None else " --posteriors " + " ".join(posteriors)
    command = f"python -m pyro_vaeflow.studies.draw_study {out} --rows {num_rows}"
    command += f" --reference {reference}" + named + (" --distinct" if distinct else "")
    rows = f"{num_rows:,} {'distinct ' if distinct else ''}test rows"
    page = _report(out.resolve().name, table, command, rows, reference, tol)
    (out / f"{name}.md").write_text(page)
    return table


def fixed_as_good(shares: dict[int, float], share: float) -> float:
    """The fixed number of draws with this share of rows off; inf past the last.

    Between two numbers the share is a line of the draws' logarithm.

    Example:
        >>> round(fixed_as_good({100: 0.2, 400: 0.1}, 0.15))
        200
    """
    draws = np.log(list(shares))
    found = np.minimum.accumulate(list(shares.values()))  # what more draws undo is chance
    if share < found[-1]:
        return float("inf")
    return float(np.exp(np.interp(-share, -found, draws)))


def _measure(
    run: FinishedRun, num_rows: int, reference: int, tol: float, distinct: bool
) -> pd.DataFrame:
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
        draws: str, log_evidence: torch.Tensor, stderr: torch.Tensor, spent: float, seconds: float
    ) -> dict[str, Any]:
        error = (log_evidence - truth.log_evidence).double()
        off = (error.abs() > 2.0 * tol).double()
        return {
            "flow": config.flow,
            "num_flows": config.num_flows,
            "draws": draws,
            "mean_draws": spent,
            "share_off": off[usable].mean().item(),
            "share_off_all_rows": off.mean().item(),
            "share_above_tol": (stderr > tol).double().mean().item(),
            "share_off_within_tol": (off * (stderr <= tol))[usable].mean().item(),
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
        found = line(f"{start}, tol={tol:g}", scores.log_evidence, scores.stderr, spent, seconds)
        for share in ("share_off", "share_above_tol"):
            same = fixed_as_good(dict(zip(FIXED, fixed[share], strict=True)), found[share])
            ratio = spent / same if same < math.inf else math.nan  # no fixed number is as good
            found |= {f"fixed_by_{share}": same, f"ratio_by_{share}": ratio}
        lines.append(found)
    return pd.DataFrame(lines)


def _report(
    title: str, table: pd.DataFrame, command: str, rows: str, reference: int, tol: float
) -> str:
    off, above = f"off by > {2 * tol:g}", f"stderr > {tol:g}"
    table = table.assign(posterior=table["flow"] + " " + table["num_flows"].astype(str))
    every = pd.DataFrame(
        {
            "posterior": table["posterior"],
            "draws": table["draws"],
            "draws spent a row": table["mean_draws"].round(1),
            above: table["share_above_tol"].map("{:.3f}".format),
            off: table["share_off"].map("{:.3f}".format),
            f"{off} with stderr <= {tol:g}": table["share_off_within_tol"].map("{:.3f}".format),
            f"{off}, all rows": table["share_off_all_rows"].map("{:.3f}".format),
            "RMSE": table["rmse"].map("{:.4f}".format),
            "seconds": table["seconds"].round(1),
        }
    )
    adaptive = table[table["fixed_by_share_off"].notna()]
    compared = pd.DataFrame(
        {
            "posterior": adaptive["posterior"],
            "draws": adaptive["draws"],
            "draws spent a row": adaptive["mean_draws"].round(1),
            f"fixed K with as few {above}": adaptive["fixed_by_share_above_tol"].map(_count),
            "draws / that K": adaptive["ratio_by_share_above_tol"].map(_ratio),
            f"fixed K with as few {off}": adaptive["fixed_by_share_off"].map(_count),
            "draws / this K": adaptive["ratio_by_share_off"].map(_ratio),
        }
    )
    distrusted = dict.fromkeys(zip(table["posterior"], table["khat_above_0.7"], strict=True))
    shares = ", ".join(f"{share:.3f} of {posterior}" for posterior, share in distrusted)
    parts = [
        f"# {title}: draws that adapt against a fixed number",
        as_text(compared, "md"),
        "Which fixed K is as good has two answers. By the rows' own standard errors, it is the K "
        f"that leaves as few rows above the tolerance of {tol:g} nats: this is what `tol` bounds. "
        f"By their errors, the K that leaves as few rows more than {2 * tol:g} nats off a long "
        "run. The second is the harder, because weights with a heavy tail can deceive the rule in "
        "two ways: a row whose largest weights have not come yet has a small standard error, and "
        f"stops too early; and a row whose k-hat is above {KHAT_LIMIT} after {KHAT_DRAWS:,} draws "
        "is left, although its error may still fall. Rows that no draws bring within the tolerance "
        f"are left by their k-hat or cost all {FIXED[-1]:,} draws.",
        "## Every number of draws",
        as_text(every, "md"),
        f"Made by `{command}` from the lowest seed of each posterior, on {rows} drawn at "
        "random, anomalies among them. Rows that are alike have the same draws: where a table "
        "repeats its rows, a few decide, and `--distinct` is the fairer judge.",
        f"Errors are against the log evidence of {reference:,} other draws. Rows whose k-hat is "
        f"above {KHAT_LIMIT} there have no evidence to be compared with (shares: {shares}): they "
        "count in the draws spent, and in the shares of all rows and of standard errors alone.",
        f"With tol={tol:g}, rows above that standard error are drawn on to {GROWTH} times their "
        f"draws, again and again, up to {FIXED[-1]:,}. The fixed K is read off the fixed lines. "
        "A tolerance evens out the rows' errors: it saves draws where all rows have to be good, "
        "and none in the mean square, to which a draw of a good row and one of a bad row count "
        "alike.",
    ]
    return "\n\n".join(parts) + "\n"


def _count(draws: float) -> str:
    return f"{draws:.0f}" if draws < math.inf else f"more than {FIXED[-1]}"


def _ratio(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.2f}"


def main() -> None:
    """Reads the command line and runs `study`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a results folder with finished runs")
    parser.add_argument("--rows", type=int, default=1000, help="of the test rows")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="draws of the long run")
    parser.add_argument("--tol", type=float, default=TOLERANCE, help="nats")
    parser.add_argument("--posteriors", nargs="+", help="such as planar50; all by default")
    parser.add_argument("--distinct", action="store_true", help="of distinct test rows")
    parser.add_argument("--quick", action="store_true", help="20 rows, a reference of 1,000 draws")
    given = parser.parse_args()
    rows, reference = (20, 1000) if given.quick else (given.rows, given.reference)
    study(given.out, rows, reference, given.tol, given.posteriors, given.distinct)


if __name__ == "__main__":
    main()
