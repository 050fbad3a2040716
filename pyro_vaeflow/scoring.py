"""Scores of rows under any pair of Pyro programs, each with the means to judge it."""

import math
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any

import pandas as pd
import torch

from pyro_vaeflow import importance
from pyro_vaeflow.draws import draws
from pyro_vaeflow.isolation import Program
from pyro_vaeflow.sizes import check_size
from pyro_vaeflow.traces import RowTerms, as_args, take_rows

KHAT_LIMIT = 0.7  # Vehtari et al. 2024: above it more draws hardly help
KHAT_DRAWS = 1000  # fewer have too short a tail to say of a row that more would not help
TOGETHER = 500  # rows whose log weights are worked on at once
GROWTH = 4  # draws of a round over those of the round before: halves the standard error


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
            drawn afresh with four times the draws, again and again, up to `max_samples`; those
            whose k-hat is above 0.7 after 1,000 draws are left: more hardly help them.
        max_samples: with `tol`, the most draws a row, at least ``4 * num_samples``.
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
        check_size("max_samples", max_samples, GROWTH * num_samples)

    def of_rows(args: Any, num_samples: int) -> Scores:
        terms = draws(
            model,
            guide,
            args,
            num_samples=num_samples,
            seed=seed,
            chunk_size=chunk_size,
            plate=plate,
            progress=progress,
        )
        # Into place at once: parts that stay would lie between blocks that chunks free.
        place, whole = 0, _of_no_rows(args[0])
        for part in map(_of_rows, _together(terms)):
            if place == 0:
                whole = Scores(**{n: v.new_empty(len(args[0])) for n, v in vars(part).items()})
            for name, value in vars(part).items():
                getattr(whole, name)[place : place + len(value)] = value
            place += len(part.khat)
        return whole

    scores = of_rows(args, num_samples)
    while tol is not None and GROWTH * num_samples <= max_samples:
        num_samples *= GROWTH
        # a single draw has a standard error of nan; a row whose evidence is nan stays as it is
        short = ~(scores.stderr <= tol) & ~scores.log_evidence.isnan()
        hopeless = (scores.khat > KHAT_LIMIT) & (scores.num_samples >= KHAT_DRAWS)
        rows = (short & ~hopeless).nonzero().squeeze(-1)
        if not len(rows):
            break
        again = of_rows(take_rows(args, rows), num_samples)
        for f in fields(Scores):
            getattr(scores, f.name)[rows] = getattr(again, f.name)
    warn_of_tails(scores.khat)
    if lost := scores.log_evidence.isnan().nonzero().squeeze(-1).tolist():
        warnings.warn(
            f"{len(lost)} of {len(args[0])} rows have no score, row {lost[0]} first: their log "
            "weights are NaN. Are there entries of x that are NaN, infinite or huge?",
            NoScoreWarning,
            stacklevel=2,
        )
    return scores


def _together(chunks: Iterable[RowTerms]) -> Iterator[RowTerms]:
    """Chunks joined to about `TOGETHER` rows: so few log weights are hardly worth the calls."""
    waiting: list[RowTerms] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(part.log_prior.shape[1] for part in waiting) >= TOGETHER:
            yield _joined(waiting)
            waiting = []
    if waiting:
        yield _joined(waiting)


def _joined(parts: list[RowTerms]) -> RowTerms:
    names = [f.name for f in fields(RowTerms)]
    return RowTerms(*(torch.cat([getattr(p, name) for p in parts], 1) for name in names))


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


def _of_no_rows(x: torch.Tensor) -> Scores:
    return Scores(**{f.name: x.new_empty(0) for f in fields(Scores)})


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
