"""Detection metrics against scikit-learn; what ties, infinities and mistakes do to them."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score

from pyro_vaeflow.metrics import (
    auroc,
    average_precision,
    detection_metrics,
    flag_top,
    number_flagged,
)


@pytest.fixture
def rows():
    draw = np.random.default_rng(0)
    truth = (draw.random(500) < 0.2).astype(int)
    return truth, draw.normal(size=500) + truth


@pytest.mark.parametrize("num_flagged", [1, 100, 499, 500])
def test_without_ties_flagging_is_that_of_scikit_learn(rows, num_flagged: int) -> None:
    truth, score = rows
    flagged = score >= np.sort(score)[-num_flagged]
    assert flagged.sum() == num_flagged
    assert flag_top(truth, score, num_flagged) == pytest.approx(
        {
            "precision": precision_score(truth, flagged),
            "recall": recall_score(truth, flagged),
            "f1": f1_score(truth, flagged),
        }
    )


def test_a_tie_at_the_cut_counts_as_its_mean_over_random_orders() -> None:
    draw = np.random.default_rng(1)
    truth = draw.integers(0, 2, 40)
    score = draw.integers(0, 4, 40).astype(float)  # many ties
    broken = []
    for _ in range(4000):
        order = score + 0.5 * draw.random(40)
        broken.append(flag_top(truth, order, 15)["f1"])
    assert flag_top(truth, score, 15)["f1"] == pytest.approx(np.mean(broken), abs=0.005)


def test_neither_the_order_of_tied_rows_nor_the_scale_of_scores_matters(rows) -> None:
    truth, score = rows
    assert detection_metrics(truth, score) == detection_metrics(truth, np.exp(score) * 1e-30)
    score = np.round(score)
    order = np.random.default_rng(2).permutation(len(truth))
    assert detection_metrics(truth, score) == detection_metrics(truth[order], score[order])
    finite = np.where(score > 2, 100.0, np.where(score < -2, -100.0, score))
    infinite = np.where(score > 2, np.inf, np.where(score < -2, -np.inf, score))
    assert detection_metrics(truth, infinite) == detection_metrics(truth, finite)


def test_a_constant_score_finds_anomalies_at_their_base_rate() -> None:
    truth = np.repeat([1, 0], [30, 70])  # anomalies first must not help
    metrics = detection_metrics(truth, np.zeros(100))
    assert metrics["precision_top20"] == pytest.approx(0.3)
    assert metrics["f1_true_ratio"] == pytest.approx(0.3)
    assert metrics["auroc"] == 0.5


def test_the_sign_is_high_for_odd(rows) -> None:
    truth, score = rows
    assert auroc(truth, score) == pytest.approx(roc_auc_score(truth, score))
    assert auroc(truth, -score) == pytest.approx(1 - auroc(truth, score))
    assert average_precision(truth, score) > average_precision(truth, -score)


def test_a_perfect_score_reaches_the_ceiling_of_the_kdd_protocol() -> None:
    truth = np.zeros(98_805, dtype=int)
    truth[:19_353] = 1
    metrics = detection_metrics(truth, truth)
    assert number_flagged(len(truth), 0.2) == 19_761
    assert metrics["f1_top20"] == pytest.approx(0.9896, abs=5e-5)
    assert metrics["recall_top20"] == metrics["f1_true_ratio"] == metrics["auroc"] == 1.0


@pytest.mark.parametrize(
    ("truth", "score", "said"),
    [
        ([1, 0], [np.nan, 1.0], "NaN in 1 of 2 rows"),
        ([0, 0], [0.0, 1.0], "both 0 and 1"),
        ([1, 1], [0.0, 1.0], "both 0 and 1"),
        ([1, 2], [0.0, 1.0], "both 0 and 1"),
        ([1, 0, 0], [0.0, 1.0], "one shape"),
        ([[1, 0]], [[0.0, 1.0]], "one shape"),
    ],
)
def test_wrong_rows_are_refused(truth, score, said: str) -> None:
    for metric in (auroc, average_precision, detection_metrics):
        with pytest.raises(ValueError, match=said):
            metric(truth, score)


def test_wrong_numbers_and_fractions_are_refused_and_a_small_one_flags_one_row() -> None:
    for num_flagged in (0, 3, -1):
        with pytest.raises(ValueError, match="num_flagged must be from 1 to 2"):
            flag_top([1, 0], [1.0, 0.0], num_flagged)
    for fraction in (0.0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="fraction"):
            number_flagged(10, fraction)
    assert number_flagged(3, 0.01) == 1
