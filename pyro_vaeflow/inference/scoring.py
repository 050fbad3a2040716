"""Scores of rows under any pair of Pyro programs, each with the means to judge it."""

import math
import warnings
from functools import partial
from numbers import Real
from typing import Any

import torch

from pyro_vaeflow.inference.contract import as_args
from pyro_vaeflow.inference.draws import draws
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.rounds import KHAT_LIMIT, adaptive
from pyro_vaeflow.inference.row_scores import Scores, in_place
from pyro_vaeflow.validation import check_size


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
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_samples: K, draws a row.
        tol: the standard error, in nats, that the log evidence should reach. Rows above it are
            drawn on, and their draws doubled, again and again, up to `max_samples`; those whose
            k-hat is above 0.7 after 1,000 draws are left: more hardly help them.
        max_samples: with `tol`, the most draws a row, at least `num_samples`.
        seed: of the draws.
        chunk_size: rows at once; memory grows with it, the scores do not change. By default as
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
    if tol is not None and not (isinstance(tol, Real) and 0.0 < tol < math.inf):
        raise ValueError(f"tol must be a positive number of nats or None, got {tol!r}")
    args = as_args(x)
    check_size("num_samples", num_samples)
    if tol is not None:
        check_size("max_samples", max_samples, num_samples)

    of_round = partial(draws, model, guide, chunk_size=chunk_size, plate=plate, progress=progress)
    if tol is None or not len(args[0]):
        scores = in_place(of_round(args, num_samples=num_samples, seed=seed), args[0])
    else:
        scores = adaptive(of_round, args, num_samples, tol, max_samples, seed)
    warn_of_tails(scores.khat)
    lost = scores.log_evidence.isnan().nonzero().squeeze(-1)
    if len(lost):
        warnings.warn(
            f"{len(lost)} of {len(args[0])} rows have no score, row {lost[0]} first: their log "
            "weights are NaN. Are there entries of x that are NaN, infinite or huge?",
            NoScoreWarning,
            stacklevel=2,
        )
    return scores


def warn_of_tails(khat: torch.Tensor) -> None:
    """Warns the caller's caller of rows ``(num_data,)`` whose k-hat is above `KHAT_LIMIT`."""
    rows = (khat > KHAT_LIMIT).nonzero().squeeze(-1)  # no list: a million ints take 40 MiB
    if len(rows):
        shown = ", ".join(map(str, rows[:5].tolist())) + (", ..." if len(rows) > 5 else "")
        warnings.warn(
            f"{len(rows)} of {len(khat)} rows have k-hat above {KHAT_LIMIT} (rows {shown}): a few "
            "draws have all the weight, and the log evidence is probably too low. Try more flows, "
            "a wider base (longer training, or a guide with larger scales) or more draws",
            KhatWarning,
            stacklevel=3,
        )
