"""How well an anomaly score orders labelled rows; every function depends on the order alone."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import average_precision_score, roc_auc_score

from pyro_vaeflow.validation import check_number

TOP_FRACTION = 0.2  # of the test rows, flagged by the paper


def flag_top(is_anomaly: ArrayLike, anomaly_score: ArrayLike, num_flagged: int) -> dict[str, float]:
    r"""Precision, recall and F1 when the `num_flagged` rows of the highest score are flagged.

    Rows that tie at the cut are flagged as if drawn at random: each place counts for the share of
    anomalies in the tie. So the result is the same on each call and for any order of the rows; a
    constant score flags anomalies at their base rate.

    Args:
        is_anomaly: 1 or True for an anomaly, shape ``(num_data,)``.
        anomaly_score: high = anomalous, shape ``(num_data,)``; infinite values are in order.
        num_flagged: from 1 to num_data.

    Raises:
        ValueError: shapes differ, a score is NaN, labels are of one class, or the number of
            flagged rows is out of range.

    Example:
        >>> flag_top([1, 0, 1, 0], [0.9, 0.8, 0.3, 0.1], num_flagged=2)
        {'precision': 0.5, 'recall': 0.5, 'f1': 0.5}
    """
    truth, rank = _ranked(is_anomaly, anomaly_score)
    if not 1 <= num_flagged <= len(rank):
        raise ValueError(f"num_flagged must be from 1 to {len(rank)}, got {num_flagged!r}")
    cut = np.sort(rank)[-num_flagged]
    above, tied = rank > cut, rank == cut
    chance = (num_flagged - above.sum()) / tied.sum()
    found = truth[above].sum() + chance * truth[tied].sum()
    precision, recall = found / num_flagged, found / truth.sum()
    f1 = 2 * found / (num_flagged + truth.sum())
    return {"precision": float(precision), "recall": float(recall), "f1": float(f1)}


def number_flagged(num_data: int, fraction: float) -> int:
    """The rows in the top `fraction`, rounded half up, at least 1.

    Raises:
        ValueError: the fraction is not in (0, 1].

    Example:
        >>> number_flagged(98_805, 0.2)
        19761
    """
    check_number("fraction", fraction, above=0.0, high=1.0)
    return max(1, int(fraction * num_data + 0.5))


def auroc(is_anomaly: ArrayLike, anomaly_score: ArrayLike) -> float:
    """Probability that an anomaly scores above an inlier, ties counted half.

    Example:
        >>> auroc([1, 0, 1, 0], [0.9, 0.8, 0.3, 0.1])
        0.75
    """
    return float(roc_auc_score(*_ranked(is_anomaly, anomaly_score)))


def average_precision(is_anomaly: ArrayLike, anomaly_score: ArrayLike) -> float:
    """Precision averaged over the steps of recall, as scikit-learn computes it.

    Example:
        >>> average_precision([1, 0, 0], [0.9, 0.8, 0.1])
        1.0
    """
    return float(average_precision_score(*_ranked(is_anomaly, anomaly_score)))


def detection_metrics(is_anomaly: ArrayLike, anomaly_score: ArrayLike) -> dict[str, float]:
    """All of them, at the top 20% and at the true ratio (as many rows flagged as are anomalies).

    At the true ratio precision, recall and F1 are one number.

    Example:
        >>> metrics = detection_metrics([1, 0, 0, 0, 0], [0.9, 0.8, 0.3, 0.1, 0.0])
        >>> metrics["f1_top20"], metrics["f1_true_ratio"], metrics["auroc"]
        (1.0, 1.0, 1.0)
    """
    truth = np.asarray(is_anomaly)
    top = flag_top(truth, anomaly_score, number_flagged(len(truth), TOP_FRACTION))
    true_ratio = flag_top(truth, anomaly_score, int(truth.sum()))
    return {
        "f1_top20": top["f1"],
        "precision_top20": top["precision"],
        "recall_top20": top["recall"],
        "f1_true_ratio": true_ratio["f1"],
        "auroc": auroc(truth, anomaly_score),
        "average_precision": average_precision(truth, anomaly_score),
    }


def _ranked(is_anomaly: ArrayLike, anomaly_score: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Labels as 0 and 1, and the dense rank of each score: scikit-learn refuses infinite scores."""
    truth, score = np.asarray(is_anomaly).astype(int), np.asarray(anomaly_score, dtype=float)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(
            f"is_anomaly and anomaly_score must have one shape (num_data,), "
            f"got {truth.shape} and {score.shape}"
        )
    if np.isnan(score).any():
        raise ValueError(f"anomaly_score is NaN in {np.isnan(score).sum()} of {len(score)} rows")
    if not np.array_equal(np.unique(truth), [0, 1]):
        raise ValueError(f"is_anomaly must hold both 0 and 1, got {np.unique(truth)[:5]}")
    return truth, np.unique(score, return_inverse=True)[1]
