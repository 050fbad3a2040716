"""Draws that adapt to the row against a fixed number: ``python -m pyro_vaeflow.draw_study DIR``.

Reads the finished runs of a results folder, one a posterior, and writes draws.csv and draws.md: the
error of each row's log evidence against a long run with other draws, and what it cost.
"""

import time
import warnings
from argparse import ArgumentParser
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.checked import ConfigError, check_names
from pyro_vaeflow.report import as_text
from pyro_vaeflow.results import FinishedRun, finished_runs
from pyro_vaeflow.runfolder import load_programs
from pyro_vaeflow.scoring import GROWTH, KHAT_LIMIT, KhatWarning, Scores, score
from pyro_vaeflow.tasks import load_task

FIXED = (25, 100, 400, 1600, 6400)
TOLERANCE = 0.05  # nats
MAX_SAMPLES = 6400  # FIXED[1] in three further rounds
REFERENCE = 20_000  # draws of the long run


def study(
    out: Path,
    num_rows: int = 1000,
    reference: int = REFERENCE,
    tol: float = TOLERANCE,
    posteriors: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Measures the lowest seed of each posterior in `out`; writes and returns the table.

    Args:
        num_rows: test rows, anomalies among them, drawn with the study's split_seed.
        reference: draws a row of the long run.
        tol: the standard error, nats, at which a row needs no more draws.
        posteriors: those to measure, such as ``planar50``; all by default.

    Raises:
        ConfigError: there is no finished run, or none of a posterior that was named.
    """
    first: dict[str, FinishedRun] = {}
    for run in finished_runs(out):
        first.setdefault(f"{run.config.model}{run.config.num_flows}", run)
    if not first:
        raise ConfigError(f"{out} holds no finished run (runs/*/metrics.json)")
    if posteriors is not None:
        check_names(posteriors, first, "posterior")
        first = {name: first[name] for name in posteriors}
    table = pd.concat([_measure(run, num_rows, reference, tol) for run in first.values()])
    table.to_csv(out / "draws.csv", index=False, float_format="%.6g")
    named = "" if posteriors is None else " --posteriors " + " ".join(posteriors)
    command = f"python -m pyro_vaeflow.draw_study {out} --rows {num_rows} --reference {reference}"
    (out / "draws.md").write_text(
        _report(out.resolve().name, table, command + named, num_rows, reference, tol)
    )
    return table


def draws_spent(num_samples: torch.Tensor, start: int) -> torch.Tensor:
    """The draws behind a row's score and those of the rounds before, which `score` throws away.

    Example:
        >>> draws_spent(torch.tensor([25, 100, 400]), start=25)
        tensor([ 25, 125, 525])
    """
    return (GROWTH * num_samples - start) // (GROWTH - 1)


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


def _measure(run: FinishedRun, num_rows: int, reference: int, tol: float) -> pd.DataFrame:
    task, (config, model, guide) = load_task(run.config), load_programs(run.folder)
    order = np.random.default_rng(config.split_seed).permutation(len(task.x_test))
    x = task.x_test[torch.as_tensor(order[:num_rows])]

    def timed(**options: Any) -> tuple[Scores, float]:
        started = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", KhatWarning)  # the table counts them
            scores = score(model, guide, x, **options)
        return scores, time.perf_counter() - started

    # Other draws than those that are judged: its seed is one that no run of a study has.
    truth, _ = timed(num_samples=reference, seed=config.seed + 10_000)
    usable = truth.khat <= KHAT_LIMIT

    def line(draws: str, scores: Scores, spent: torch.Tensor, seconds: float) -> dict[str, Any]:
        error = (scores.log_evidence - truth.log_evidence).double()
        return {
            "model": config.model,
            "num_flows": config.num_flows,
            "draws": draws,
            "mean_draws": spent.double().mean().item(),
            "rmse": error[usable].square().mean().sqrt().item(),
            "rmse_all_rows": error.square().mean().sqrt().item(),
            "share_off": (error.abs() > 2.0 * tol).double().mean().item(),
            "share_above_tol": (scores.stderr > tol).double().mean().item(),
            "khat_above_0.7": (~usable).double().mean().item(),
            "seconds": seconds,
        }

    lines = []
    for num_samples in FIXED:
        scores, seconds = timed(num_samples=num_samples, seed=config.seed)
        lines.append(line(str(num_samples), scores, scores.num_samples, seconds))
    shares = {number: found["share_off"] for number, found in zip(FIXED, lines, strict=True)}
    for start in FIXED[:2]:
        options = {"num_samples": start, "tol": tol, "max_samples": MAX_SAMPLES}
        scores, seconds = timed(**options, seed=config.seed)
        spent = draws_spent(scores.num_samples, start)
        found = line(f"{start}, tol={tol:g}", scores, spent, seconds)
        same = fixed_as_good(shares, found["share_off"])
        lines.append(found | {"fixed_as_good": same, "ratio": found["mean_draws"] / same})
    return pd.DataFrame(lines)


def _report(
    title: str, table: pd.DataFrame, command: str, rows: int, reference: int, tol: float
) -> str:
    shown = pd.DataFrame(
        {
            "posterior": table["model"] + " " + table["num_flows"].astype(str),
            "draws": table["draws"],
            "draws spent a row": table["mean_draws"].round(1),
            f"off by > {2 * tol:g}": table["share_off"].map("{:.3f}".format),
            f"stderr > {tol:g}": table["share_above_tol"].map("{:.3f}".format),
            "RMSE, k-hat <= 0.7": table["rmse"].map("{:.4f}".format),
            "RMSE, all": table["rmse_all_rows"].map("{:.4f}".format),
            "fixed K as good": table["fixed_as_good"].round(0),
            "draws / fixed K": table["ratio"].round(2),
            "seconds": table["seconds"].round(1),
        }
    )
    parts = [
        f"# {title}: draws that adapt against a fixed number",
        as_text(shown, "md"),
        f"Made by `{command}` from the lowest seed of each posterior, on {rows:,} test rows drawn "
        "at random, anomalies among them.",
        f"Errors are against the log evidence of {reference:,} other draws: the share of rows off "
        f"by more than {2 * tol:g} nats, and the root mean square, over the rows whose k-hat is at "
        f"most {KHAT_LIMIT} there and over all. With tol={tol:g}, rows above that standard error "
        f"are drawn afresh with {GROWTH} times the draws, up to {MAX_SAMPLES:,}; draws of earlier "
        "rounds are counted. The fixed K as good has the same share of rows off, read off the "
        "fixed lines. A tolerance evens out the rows' errors, so it saves draws "
        "where all rows have to be good, and none in the mean square, to which a draw of a good "
        "row and one of a bad row count alike.",
    ]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Reads the command line and runs `study`."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path, help="a results folder with finished runs")
    parser.add_argument("--rows", type=int, default=1000, help="of the test rows")
    parser.add_argument("--reference", type=int, default=REFERENCE, help="draws of the long run")
    parser.add_argument("--tol", type=float, default=TOLERANCE, help="nats")
    parser.add_argument("--posteriors", nargs="+", help="such as planar50; all by default")
    parser.add_argument("--quick", action="store_true", help="20 rows, a reference of 1,000 draws")
    given = parser.parse_args()
    rows, reference = (20, 1000) if given.quick else (given.rows, given.reference)
    study(given.out, rows, reference, given.tol, given.posteriors)


if __name__ == "__main__":
    main()
