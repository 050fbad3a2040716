"""Rounds of draws, each for the rows that need them and on top of the draws they have."""

from collections.abc import Callable, Iterator
from dataclasses import fields
from typing import Any

import torch

from pyro_vaeflow.inference.contract import Args, RowTerms, take_rows
from pyro_vaeflow.inference.pooling import largest_of, pooled_evidence, pooled_mean
from pyro_vaeflow.inference.psis import khat_of_largest
from pyro_vaeflow.inference.row_scores import Scores, of_rows, together

KHAT_LIMIT = 0.7  # Vehtari et al. 2024: above it more draws hardly help
KHAT_DRAWS = 1000  # fewer have too short a tail to say of a row that more would not help
GROWTH = 2  # a row's draws after a round over those before it
ROUND_SEED = 0x9E3779B1  # from a round's seed to the next one's: far from the seeds that people use


def adaptive(
    of_round: Callable[..., Iterator[RowTerms]],
    args: Args,
    num_samples: int,
    tol: float,
    max_samples: int,
    seed: int,
) -> Scores:
    """Scores after as many rounds as it takes; see `pyro_vaeflow.inference.scoring.score`.

    Args:
        of_round: gives the terms of rows, chunk after chunk, with so many draws and this seed.
    """
    rows = torch.arange(len(args[0]), device=args[0].device)
    scores, tails = _round(of_round(args, num_samples=num_samples, seed=seed), tol, max_samples)
    while True:
        needed = _needs_more(_rows(scores, rows), tol)
        rows = rows[needed]
        more = min((GROWTH - 1) * num_samples, max_samples - num_samples)
        if not (len(rows) and more):
            return scores
        num_samples += more
        seed = (seed + ROUND_SEED) % 2**32  # other noise than that of the draws so far
        chunks = of_round(take_rows(args, rows), num_samples=more, seed=seed)
        pooled, tails = _round(chunks, tol, max_samples, (_rows(scores, rows), tails))
        for f in fields(Scores):
            getattr(scores, f.name)[rows] = getattr(pooled, f.name)


def _round(
    chunks: Iterator[RowTerms],
    tol: float,
    max_samples: int,
    before: tuple[Scores, torch.Tensor] | None = None,
) -> tuple[Scores, torch.Tensor]:
    """Scores of these draws and those before, and the largest weights of rows that need more."""
    parts, tails, start = [], [], 0
    for chunk in together(chunks):
        part, tail = of_rows(chunk), largest_of(chunk.log_weight, max_samples)
        if before is not None:
            place = slice(start, start + tail.shape[1])
            start = place.stop
            tail = largest_of(torch.cat([before[1][:, place], tail]), max_samples)
            part = _pooled(_rows(before[0], place), part, tail)
        parts.append(part)
        tails.append(tail[:, _needs_more(part, tol)])
    return _joined(parts), torch.cat(tails, 1)


def _needs_more(scores: Scores, tol: float) -> torch.Tensor:
    """Which rows are above the tolerance and can get below it, ``(num_data,)``."""
    # a single draw has a standard error of nan; a row whose evidence is nan stays as it is
    short = ~(scores.stderr <= tol) & ~scores.log_evidence.isnan()
    return short & ~((scores.khat > KHAT_LIMIT) & (scores.num_samples >= KHAT_DRAWS))


def _pooled(one: Scores, other: Scores, largest: torch.Tensor) -> Scores:
    """The scores of all draws of both; `largest` of their log weights, for k-hat."""

    def both(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return getattr(one, name), getattr(other, name)

    counts = both("num_samples")
    total = counts[0] + counts[1]
    evidence, stderr, ess = pooled_evidence(counts, both("log_evidence"), both("ess"))
    return Scores(
        log_evidence=evidence,
        stderr=stderr,
        ess=ess,
        khat=khat_of_largest(largest, int(total[0])),  # rows of one round have as many draws
        expected_log_likelihood=pooled_mean(counts, both("expected_log_likelihood")),
        elbo=pooled_mean(counts, both("elbo")),
        num_samples=total,
    )


def _rows(scores: Scores, rows: Any) -> Scores:
    return Scores(**{f.name: getattr(scores, f.name)[rows] for f in fields(Scores)})


def _joined(parts: list[Scores]) -> Scores:
    names = [f.name for f in fields(Scores)]
    return Scores(**{name: torch.cat([getattr(p, name) for p in parts]) for name in names})
