"""Scores of rows under any pair of Pyro programs, each with the means to judge it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import pandas as pd
import torch

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.importance import KHAT_LIMIT
from pyro_vaeflow.inference.pairs import Draws
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.traces import RowTerms, as_args, take_rows
from pyro_vaeflow.validation import check_number, check_size, warn

FRESH_SEED = 0x9E3779B1  # from the pilot's seed to that of fresh draws: far from people's seeds


@dataclass(frozen=True)
class Scores:
    """What `score` knows of each row; every field is ``(num_data,)``, log probabilities in nats."""

    log_evidence: torch.Tensor
    """log (1/K) sum_k p(x, z_k) / q(z_k | x): importance-sampled log p(x), biased low; of refined
    rows with the adapted proposal in place of q."""
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
    """K, the draws behind the row's evidence."""
    refined: torch.Tensor
    """Whether the row's evidence and its four diagnostics are those of `refine`."""

    @property
    def importance(self) -> torch.Tensor:
        """The importance-sampled anomaly score, -log p(x) in nats: high = anomalous."""
        return -self.log_evidence

    @property
    def reconstruction(self) -> torch.Tensor:
        """The paper's A(x) = -E_q[log p(x | z)] in nats, Algorithm 1: high = anomalous."""
        return -self.expected_log_likelihood

    def __repr__(self) -> str:
        evidence, unsure = self.log_evidence.double(), int((self.khat > KHAT_LIMIT).sum())
        return (
            f"Scores of {len(evidence)} rows: log evidence {evidence.mean():.3f} nats a row; k-hat "
            f"above {KHAT_LIMIT} in {unsure}. Fields: {', '.join(f.name for f in fields(self))}"
        )

    def _repr_html_(self) -> str:
        return f"<p>{self}</p>{self.to_frame().head().to_html()}"

    def plot(self) -> Any:
        """A matplotlib ``Figure``: the histogram of the importance scores."""
        from pyro_vaeflow.plots.charts import plot_scores

        return plot_scores(self.importance.cpu())

    def to_frame(self) -> pd.DataFrame:
        """One row a data row, one column a field."""
        return pd.DataFrame({f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)})


class KhatWarning(UserWarning):
    """Some rows' importance weights have too heavy a tail for their evidence to be believed."""


class NoScoreWarning(UserWarning):
    """Some rows' scores are NaN."""


def score(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 100,
    tol: float | None = None,
    max_samples: int = 10_000,
    refine: bool | str = False,
    seed: int = 0,
    chunk_size: int | None = None,
    plate: str = "data",
    progress: bool = False,
) -> Scores:
    r"""Scores each row: evidence with its diagnostics, and the paper's score, ``(num_data,)`` each.

    With :math:`z_k \sim q(z|x)` and :math:`\log w_k = \log p(x, z_k) - \log q(z_k|x)`, the log
    evidence is :math:`\log \frac1K \sum_k w_k`. A row's score depends on the row, the programs and
    the seed alone, not on the other rows or their order, if the guide draws what `RowNoise` covers;
    up to rounding, which in float32 can be 1e-4 nats and in float64 1e-10.

    References:
        H. Shah, M. Sharpe, Variational Autoencoders with Normalizing Flows for Unsupervised
        Anomaly Detection, Algorithm 1.
        Y. Burda, R. Grosse, R. Salakhutdinov, Importance Weighted Autoencoders, 2016,
        arXiv:1509.00519.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_samples: K, draws a row.
        tol: the standard error, in nats, that the log evidence should reach. The `num_samples`
            draws are then a pilot that says how many a row needs, up to `max_samples`; fresh ones
            make its scores, so that the choice biases nothing.
        max_samples: with `tol`, the most draws a row, at least `num_samples`.
        refine: whether rows that are `pyro_vaeflow.inference.refine.doubtful`, by their k-hat or by
            a look around, or whose standard error is above `tol` or not a number, go on to
            `pyro_vaeflow.inference.refine.refine`, which needs 0.1 to 1 second a row, in place of
            more draws; ``"all"`` for every row.
        seed: of the draws.
        chunk_size: rows at once; memory grows with it, scores change by rounding. By default as
            many as make 30,000 draws for each of torch's threads, or fewer, so that a chunk's
            tensors take at most 512 MiB.
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
    if refine not in (False, True, "all"):
        raise ValueError(f"refine must be False, True or 'all', got {refine!r}")
    args = as_args(x)
    check_size("num_samples", num_samples)
    if tol is not None:
        check_number("tol", tol, above=0.0)
        check_size("max_samples", max_samples, num_samples)

    options: Any = {"plate": plate, "progress": progress}
    chunks: Any = partial(trace_chunks, model, guide, chunk_size=chunk_size, summed=True, **options)
    scores = _scores(chunks(args, num_samples=num_samples, seed=seed), args[0])
    if refine and len(args[0]):
        from pyro_vaeflow.inference import refine as refining  # most scores need it not

        is_chosen = torch.ones_like(scores.refined)
        if refine != "all":
            known = scores.log_evidence, scores.khat
            is_chosen = refining.doubtful(model, guide, args, *known, seed=seed, **options)
            is_chosen |= ~(scores.stderr <= (math.inf if tol is None else tol))
            is_chosen &= ~scores.log_evidence.isnan()
        if len(rows := is_chosen.nonzero().squeeze(-1)):
            unsettled = take_rows(args, rows)
            _replace(scores, rows, refining.refine(model, guide, unsettled, seed=seed, **options))
            scores.refined[rows] = True
    if tol is not None and len(args[0]):
        needed = _needed(scores.stderr, num_samples, tol, max_samples).masked_fill(
            scores.refined, 0
        )
        for count in needed[~scores.refined].unique().tolist():
            rows = (needed == count).nonzero().squeeze(-1)
            some, fresh_seed = take_rows(args, rows), (seed + FRESH_SEED) % 2**32
            fresh = _scores(chunks(some, num_samples=count, seed=fresh_seed), some[0])
            _replace(scores, rows, fresh)
    warn_of_tails(scores.khat)
    lost = scores.log_evidence.isnan().nonzero().squeeze(-1)
    if len(lost):
        warn(
            f"{len(lost)} of {len(args[0])} rows have no score, row {lost[0]} first: their log "
            "weights are NaN. Are there entries of x that are NaN, infinite or huge?",
            NoScoreWarning,
        )
    return scores


def warn_of_tails(khat: torch.Tensor) -> None:
    """Warns of rows ``(num_data,)`` whose k-hat is above `KHAT_LIMIT`."""
    rows = (khat > KHAT_LIMIT).nonzero().squeeze(-1)  # no list: a million ints take 40 MiB
    if len(rows):
        shown = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
        warn(
            f"{len(rows)} of {len(khat)} rows have k-hat above {KHAT_LIMIT} (rows {shown}): a few "
            "draws have all the weight, and the log evidence is probably too low. Try score's "
            "refine=True, or a wider or richer guide: more draws hardly help",
            KhatWarning,
        )


def _scores(chunks: Iterable[Draws], x: torch.Tensor) -> Scores:
    """Scores of chunks, at once where they belong: parts that stay would lie between freed ones."""
    place, whole = 0, Scores(**{f.name: x.new_empty(0) for f in fields(Scores)})
    for part in (_of_terms(chunk.terms) for chunk in chunks):
        if place == 0:
            whole = Scores(**{n: v.new_empty(len(x)) for n, v in vars(part).items()})
        for name, value in vars(part).items():
            getattr(whole, name)[place : place + len(value)] = value
        place += len(part.khat)
    return whole


def _of_terms(terms: RowTerms) -> Scores:
    estimate = importance.estimate(terms.log_weight)
    return Scores(
        **estimate,
        expected_log_likelihood=terms.log_likelihood.mean(0),
        elbo=terms.elbo.mean(0),
        refined=torch.zeros_like(estimate["num_samples"], dtype=torch.bool),
    )


def _needed(stderr: torch.Tensor, num_samples: int, tol: float, max_samples: int) -> torch.Tensor:
    """How many draws bring each row's standard error to `tol`: `num_samples`, doubled so often."""
    # a single draw has a standard error of nan, weights of zero one of inf
    ratio = (stderr / tol).nan_to_num(math.inf).clamp(1.0, max_samples / num_samples)
    doubled = num_samples * 2.0 ** (2.0 * ratio.log2()).ceil()
    return doubled.clamp(max=max_samples).long()


def _replace(scores: Scores, rows: torch.Tensor, fresh: Any) -> None:
    for name, value in vars(fresh).items():
        whole = getattr(scores, name)
        whole[rows] = value.to(whole)
