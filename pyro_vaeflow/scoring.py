"""Scores of rows under any pair of Pyro programs, each with the means to judge it."""

import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from numbers import Real
from typing import Any

import pandas as pd
import torch

from pyro_vaeflow import importance
from pyro_vaeflow.draws import draws
from pyro_vaeflow.isolation import Program
from pyro_vaeflow.pooling import largest_of, pooled_evidence, pooled_mean
from pyro_vaeflow.psis import khat_of_largest
from pyro_vaeflow.sizes import check_size
from pyro_vaeflow.traces import Args, RowTerms, as_args, take_rows

KHAT_LIMIT = 0.7  # Vehtari et al. 2024: above it more draws hardly help
KHAT_DRAWS = 1000  # fewer have too short a tail to say of a row that more would not help
TOGETHER = 500  # rows whose log weights are worked on at once
GROWTH = 2  # a row's draws after a round over those before it
ROUND_SEED = 0x9E3779B1  # from a round's seed to the next one's: far from the seeds that people use


class KhatWarning(UserWarning):
    """Some rows' importance weights have too heavy a tail for their evidence to be believed."""


class NoScoreWarning(UserWarning):
    """Some rows' scores are NaN."""


@dataclass(frozen=True)
class Scores:
    """What `score` knows of each row; every field is ``(num_data,)``, log probabilities in nats."""

    log_evidence: torch.Tensor
    """log (1/K) sum_k p(x, z_k) / q(z_k | x): importance-sampled log p(x), biased low."""
    stderr: torch.Tensor
    """Standard error of `log_evidence`."""
    ess: torch.Tensor
    """Effective sample size of the weights, between 1 and the number of draws."""
    khat: torch.Tensor
    """Pareto tail index of the weights; below 0.7 the evidence can be used."""
    expected_log_likelihood: torch.Tensor
    """E_q[log p(x | z)]."""
    elbo: torch.Tensor
    """E_q[log p(x, z) - log q(z | x)], the bound under the evidence."""
    num_samples: torch.Tensor
    """K, the draws behind the row's figures."""

    @property
    def importance(self) -> torch.Tensor:
        """The importance-sampled anomaly score, -log p(x) in nats: high = odd."""
        return -self.log_evidence

    @property
    def reconstruction(self) -> torch.Tensor:
        """The paper's A(x) = -E_q[log p(x | z)] in nats, Algorithm 1: high = odd."""
        return -self.expected_log_likelihood

    def to_frame(self) -> pd.DataFrame:
        """One row a data row, one column a field."""
        return pd.DataFrame({f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)})


def score(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 100,
    tol: float | None = None,
    max_samples: int = 10_000,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
    progress: bool = False,
) -> Scores:
    r"""Scores each row: evidence with its diagnostics, and the paper's score, ``(num_data,)`` each.

    With :math:`z_k \sim q(z|x)` and :math:`\log w_k = \log p(x, z_k) - \log q(z_k|x)`, the log
    evidence is :math:`\log \frac1K \sum_k w_k`. A row's score depends on the row, the programs and
    the seed alone, not on the other rows or their order, if the guide draws what `RowNoise` covers.

    References:
        H. Shah, M. Sharpe, Variational Autoencoders with Normalizing Flows for Unsupervised
        Anomaly Detection, Algorithm 1.
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2016,
        arXiv:1509.00519.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.traces`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_samples: K, draws a row.
        tol: the standard error, in nats, that the log evidence should reach. Rows above it are
            drawn on, and their draws doubled, again and again, up to `max_samples`; those whose
            k-hat is above 0.7 after 1,000 draws are left: more hardly help them.
        max_samples: with `tol`, the most draws a row, at least `num_samples`.
        seed: of the draws.
        chunk_size: rows at once; memory grows with it, the scores do not change. By default as
            many as make 20,000 draws, or fewer, so that a chunk's tensors take at most 512 MiB.
        plate: the name of the plate of rows.
        progress: whether to show a bar; `train` shows one by default.

    Raises:
        ValueError: the contract is broken, or an argument is out of range.
        TypeError: `x` is not a tensor.

    Warns:
        KhatWarning: counts and names the rows whose k-hat is above 0.7.
        NoScoreWarning: counts the rows whose scores are NaN.
        UserWarning: names a parameter that nothing has trained, and a site whose draws depend on
            the chunks.

    Example:
        >>> from pyro_vaeflow import Guide, Model, score
        >>> x = torch.rand(5, 3)
        >>> score(Model(3), Guide(3), x, num_samples=10).log_evidence.shape
        torch.Size([5])
    """
    if tol is not None and not (isinstance(tol, Real) and 0.0 < tol < math.inf):
        raise ValueError(f"tol must be a positive number of nats or None, got {tol!r}")
    args = as_args(x)
    check_size("num_samples", num_samples)
    if tol is not None:
        check_size("max_samples", max_samples, num_samples)

    of_round = partial(draws, model, guide, chunk_size=chunk_size, plate=plate, progress=progress)
    if tol is None or not len(args[0]):
        scores = _in_place(of_round(args, num_samples=num_samples, seed=seed), args[0])
    else:
        scores = _adaptive(of_round, args, num_samples, tol, max_samples, seed)
    warn_of_tails(scores.khat)
    if lost := scores.log_evidence.isnan().nonzero().squeeze(-1).tolist():
        warnings.warn(
            f"{len(lost)} of {len(args[0])} rows have no score, row {lost[0]} first: their log "
            "weights are NaN. Are there entries of x that are NaN, infinite or huge?",
            NoScoreWarning,
            stacklevel=2,
        )
    return scores


def _in_place(chunks: Iterable[RowTerms], x: torch.Tensor) -> Scores:
    """Scores of chunks, at once where they belong: parts that stay would lie between freed ones."""
    place, whole = 0, Scores(**{f.name: x.new_empty(0) for f in fields(Scores)})
    for part in map(_of_rows, _together(chunks)):
        if place == 0:
            whole = Scores(**{n: v.new_empty(len(x)) for n, v in vars(part).items()})
        for name, value in vars(part).items():
            getattr(whole, name)[place : place + len(value)] = value
        place += len(part.khat)
    return whole


def _together(chunks: Iterable[RowTerms]) -> Iterator[RowTerms]:
    """Chunks joined to about `TOGETHER` rows: so few log weights are hardly worth the calls."""
    waiting: list[RowTerms] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(part.log_prior.shape[1] for part in waiting) >= TOGETHER:
            yield _as_one(waiting)
            waiting = []
    if waiting:
        yield _as_one(waiting)


def _as_one(parts: list[RowTerms]) -> RowTerms:
    names = [f.name for f in fields(RowTerms)]
    return RowTerms(*(torch.cat([getattr(p, name) for p in parts], 1) for name in names))


def _adaptive(
    of_round: Callable[..., Iterator[RowTerms]],
    args: Args,
    num_samples: int,
    tol: float,
    max_samples: int,
    seed: int,
) -> Scores:
    """Rounds of draws, each for the rows that need them and on top of their draws so far."""
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
    for chunk in _together(chunks):
        part, tail = _of_rows(chunk), largest_of(chunk.log_weight, max_samples)
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


def _of_rows(terms: RowTerms) -> Scores:
    log_weight = terms.log_weight
    num_samples = torch.full(log_weight.shape[1:], len(log_weight), device=log_weight.device)
    return Scores(
        log_evidence=importance.log_evidence(log_weight),
        stderr=importance.log_evidence_stderr(log_weight),
        ess=importance.effective_sample_size(log_weight),
        khat=importance.khat(log_weight),
        expected_log_likelihood=terms.log_likelihood.mean(0),
        elbo=log_weight.mean(0),
        num_samples=num_samples,
    )


def warn_of_tails(khat: torch.Tensor) -> None:
    """Warns the caller's caller of rows ``(num_data,)`` whose k-hat is above `KHAT_LIMIT`."""
    rows = (khat > KHAT_LIMIT).nonzero().squeeze(-1).tolist()
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        warnings.warn(
            f"{len(rows)} of {len(khat)} rows have k-hat above {KHAT_LIMIT} (rows {shown}): a few "
            "draws have all the weight, and the log evidence is probably too low. Try more flows, "
            "a wider base (longer training, or a guide with larger scales) or more draws",
            KhatWarning,
            stacklevel=3,
        )
