"""Which rows to flag: the threshold, conformal p-values, the false-discovery rate they control."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, false_discovery_control

from pyro_vaeflow.validation import check_number, warn

AUTO = 0.05  # of fresh rows like the training rows are flagged where contamination is "auto"
ENOUGH = 100  # fresh rows like these, of which none is flagged one time in 170
FAR_OFF = 4.0  # times the share that was asked for, which may be flagged of fresh rows: a warning


def threshold(
    scores: np.ndarray,
    calibration: np.ndarray,
    contamination: float | str,
    weights: np.ndarray | None = None,
) -> float:
    """The score, nats, below which rows are flagged: such a share of fresh rows, or of all rows.

    Args:
        scores: of all rows, low = anomalous, ``(num_data,)``; used where none was kept.
        calibration: of those that were kept from training, ``(n,)``.
        contamination: the share of rows to flag; or ``"auto"``: one in 20.
        weights: what each row of the calibration, or else of all, counts for.
    """
    share = AUTO if isinstance(contamination, str) else contamination
    # Training rows are less anomalous to the programs than fresh ones, of n + 1 of which each is
    # as likely to be the most anomalous.
    known, method = (calibration, "weibull") if len(calibration) else (scores, "linear")
    if len(calibration):
        _warn_if_few(len(calibration), share)
    if weights is not None and contamination != "auto":
        return float(np.quantile(known, share, weights=weights, method="inverted_cdf"))
    return float(np.quantile(known, share, method=method))  # type: ignore[call-overload]


def _warn_if_few(num_kept: int, share: float) -> None:
    """The share of fresh rows below an order statistic is a beta variate."""
    rank = max(1.0, share * (num_kept + 1))
    low, high = beta.ppf([0.05, 0.95], rank, num_kept + 1 - rank)
    if high > FAR_OFF * share:
        warn(
            f"the threshold rests on {num_kept} rows kept from training: it may flag from "
            f"{low:.1%} to {high:.0%} of fresh rows, not {share:.0%}; fit on more rows, or with a "
            "larger calibration_share"
        )


def doubt(flagged: np.ndarray, contamination: float | str) -> np.ndarray:
    """The decisions as they are; warns where ``"auto"`` flags all of many rows, or none."""
    if contamination == "auto" and len(flagged) >= ENOUGH and flagged.all() == flagged.any():
        which = "all" if flagged.all() else "none"
        warn(
            f"contamination='auto' flags {which} of {len(flagged)} rows, and would flag 1 in 20 of "
            "rows like the training rows: these are unlike them; look at score_samples, or give "
            "the share to flag as contamination= or predict(X, ratio=)"
        )
    return flagged


def p_values(score_samples: ArrayLike, calibration: ArrayLike) -> np.ndarray:
    r"""The share of rows like the calibration's that are at least as anomalous, ``(num_data,)``.

    .. math:: p_i = \frac{1 + \#\{j : s_j \le s_i\}}{1 + n}

    For a row that is exchangeable with the calibration's n rows, :math:`P(p \le \alpha) \le
    \alpha`, whatever the score. The scores may come from anything that has not seen these rows.

    References:
        S. Bates, E. Candès, L. Lei, Y. Romano, M. Sesia, Testing for outliers with conformal
        p-values, Annals of Statistics 51, 2023, arXiv:2104.08279.

    Args:
        score_samples: low = anomalous, ``(num_data,)``.
        calibration: scores of rows that were kept from training, ``(n,)``.

    Raises:
        ValueError: there is no calibration row, or a score is NaN.

    Example:
        >>> p_values([-9.0, -1.0], calibration=[-4.0, -3.0, -2.0]).tolist()
        [0.25, 1.0]
    """
    scores, known = np.asarray(score_samples, dtype=float), np.sort(np.asarray(calibration))
    if not len(known):
        raise ValueError("calibration must hold scores of rows that training did not see, got none")
    if np.isnan(scores).any() or np.isnan(known).any():
        raise ValueError("score_samples and calibration must not be NaN: did training diverge?")
    return (1 + np.searchsorted(known, scores, side="right")) / (1 + len(known))


def discoveries(p: ArrayLike, fdr: float) -> np.ndarray:
    """Which p-values to reject so that at most a share `fdr` is expected to be false, a mask.

    The procedure of Benjamini and Hochberg as SciPy has it. With n calibration rows no conformal
    p-value is below ``1 / (n + 1)``: a few anomalies among many need a large n to be found.

    References:
        Y. Benjamini, Y. Hochberg, Controlling the False Discovery Rate, Journal of the Royal
        Statistical Society B 57, 1995.

    Raises:
        ValueError: `fdr` is not inside (0, 1).

    Example:
        >>> discoveries([0.001, 0.8, 0.02, 0.5], fdr=0.05).tolist()
        [True, False, True, False]
    """
    check_number("fdr", fdr, above=0.0, below=1.0)
    values = np.asarray(p, dtype=float)
    return false_discovery_control(values, method="bh") <= fdr if len(values) else values < 0
