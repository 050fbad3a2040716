"""Scores of rows under any pair of Pyro programs, each with the means to judge it."""

import math
import warnings
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch

from pyro_vaeflow import importance
from pyro_vaeflow.draws import draws
from pyro_vaeflow.isolation import Program
from pyro_vaeflow.traces import as_args, take_rows

KHAT_LIMIT = 0.7  # Vehtari et al. 2024: above it more draws hardly help
GROWTH = 4  # draws of a round over those of the round before: halves the standard error


class KhatWarning(UserWarning):
    """Some rows' importance weights have too heavy a tail for their evidence to be believed."""


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
    the seed alone, not on the other rows or their order.

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
            whose k-hat is above 0.7 are left, for more draws hardly help them.
        chunk_size: rows at once; memory grows with it, the scores do not change.

    Raises:
        ValueError: the contract is broken, or an argument is out of range.
        TypeError: `x` is not a tensor.

    Warns:
        KhatWarning: counts and names the rows whose k-hat is above 0.7.

    Example:
        >>> from pyro_vaeflow import Guide, Model, score
        >>> x = torch.rand(5, 3)
        >>> score(Model(3), Guide(3), x, num_samples=10).log_evidence.shape
        torch.Size([5])
    """
    if tol is not None and not 0.0 < tol < math.inf:
        raise ValueError(f"tol must be a positive number of nats or None, got {tol!r}")
    args = as_args(x)
    options = {"seed": seed, "chunk_size": chunk_size, "plate": plate, "progress": progress}
    scores = _score(model, guide, args, num_samples, options)
    while tol is not None and GROWTH * num_samples <= max_samples:
        num_samples *= GROWTH
        helped = (scores["stderr"] > tol) & ~(scores["khat"] > KHAT_LIMIT)
        rows = helped.nonzero().squeeze(-1)
        if not len(rows):
            break
        again = _score(model, guide, take_rows(args, rows), num_samples, options)
        for name, value in again.items():
            scores[name][rows] = value
    _warn_of_tails(scores["khat"])
    return Scores(**scores)


def _score(
    model: Program, guide: Program, args: Any, num_samples: int, options: dict[str, Any]
) -> dict[str, torch.Tensor]:
    names = [f.name for f in fields(Scores)]
    parts: list[tuple[torch.Tensor, ...]] = []
    for terms in draws(model, guide, args, num_samples=num_samples, **options):
        log_weight = terms.log_weight
        parts.append(
            (
                importance.log_evidence(log_weight),
                importance.log_evidence_stderr(log_weight),
                importance.effective_sample_size(log_weight),
                importance.khat(log_weight),
                terms.log_likelihood.mean(0),
                log_weight.mean(0),
                torch.full(log_weight.shape[1:], num_samples, device=log_weight.device),
            )
        )
    parts = parts or [(args[0].new_empty(0),) * len(names)]
    return dict(zip(names, map(torch.cat, zip(*parts, strict=True)), strict=True))


def _warn_of_tails(khat: torch.Tensor) -> None:
    rows = (khat > KHAT_LIMIT).nonzero().squeeze(-1).tolist()
    if rows:
        shown = ", ".join(map(str, rows[:5])) + (", ..." if len(rows) > 5 else "")
        warnings.warn(
            f"{len(rows)} of {len(khat)} rows have k-hat above {KHAT_LIMIT} (rows {shown}): their "
            "log evidence is probably too low. Try more flows, a wider base (longer training, or "
            "a guide with larger scales) or more draws",
            KhatWarning,
            stacklevel=3,
        )
