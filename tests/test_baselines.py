"""Baselines: the laws that each keeps, and PyOD's own defaults."""

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch

from results.adbench.make import BASELINES as ADBENCH
from results.shared.detectors import Baseline, anomaly_score, distinct, fit, usual

BASELINES = usual("standard", {"epoch_num": 3})


def scores(baseline: Baseline, train: np.ndarray, test: np.ndarray, seed: int = 0) -> np.ndarray:
    return anomaly_score(baseline, fit(baseline, train, seed), test, seed)


@pytest.fixture
def rows() -> tuple[np.ndarray, np.ndarray]:
    """Correlated inliers, some of them twice; the last test row breaks the correlation, far out."""
    draw = np.random.default_rng(0)
    inliers = draw.normal(size=(400, 2)) @ draw.normal(size=(2, 4))
    inliers = (inliers + 0.1 * draw.normal(size=inliers.shape)).astype(np.float32)
    far = np.array([[6.0, -6.0, 6.0, -6.0]], dtype=np.float32)
    return np.concatenate([inliers[:300], inliers[:50]]), np.concatenate([inliers[250:], far])


@pytest.mark.parametrize("name", BASELINES)
def test_an_outlier_has_the_highest_score_and_the_same_seed_the_same_scores(name, rows) -> None:
    train, test = rows
    first = scores(BASELINES[name], train, test)
    assert first.shape == (len(test),)
    assert np.isfinite(first).all()
    assert first[-1] == first.max()
    assert first[-1] > np.median(first[:50])  # these rows were trained on
    np.testing.assert_array_equal(first, scores(BASELINES[name], train, test))


@pytest.mark.parametrize("name", [n for n, baseline in BASELINES.items() if baseline.by_row])
def test_a_rows_score_does_not_depend_on_the_rows_beside_it(name, rows) -> None:
    train, test = rows
    detector = fit(BASELINES[name], train, 0)
    expected = anomaly_score(BASELINES[name], detector, test, 0)
    twice = anomaly_score(BASELINES[name], detector, np.concatenate([test[::-1], test]), 0)
    np.testing.assert_allclose(twice, np.concatenate([expected[::-1], expected]), rtol=1e-4)


def test_lookups_count_what_training_has_not_shown() -> None:
    train = np.array([[0.0, 1.0], [2.0, 3.0], [2.0, 3.0], [np.nan, 3.0]])
    test = np.array([[-0.0, 1.0], [0.0, 3.0], [0.0, 9.0], [8.0, 9.0], [np.nan, 3.0]])
    assert scores(BASELINES["exact_rows"], train, test).tolist() == [0, 1, 1, 1, 0]
    assert scores(BASELINES["unseen_values"], train, test).tolist() == [0, 0, 1, 2, 0]


def test_neighbours_are_distinct_rows() -> None:
    train = np.array([[0.0]] * 9 + [[1.0], [3.0], [4.0], [6.0]])
    test = np.array([[0.0], [0.5]])
    assert scores(BASELINES["knn1"], train, test).tolist() == [0.0, 0.5]
    assert scores(BASELINES["knn5"], train, test).tolist() == [6.0, 5.5]
    # Fewer distinct rows than neighbours: the farthest.
    assert scores(BASELINES["knn5"], train[:10], test).tolist() == [1.0, 0.5]


def test_distinct_rows_give_all_rows_back() -> None:
    x = np.random.default_rng(0).integers(0, 3, (200, 3)).astype(np.float32)
    x[0, 0] = -0.0  # is 0.0
    first, index = distinct(x)
    np.testing.assert_array_equal(first[index], x)
    np.testing.assert_array_equal(first, np.unique(x, axis=0))


def test_copies_count_for_the_density(rows) -> None:
    train, test = rows  # the last 50 are copies
    all_rows, distinct_rows = (scores(BASELINES["lof"], x, test) for x in (train, train[:300]))
    assert not np.allclose(all_rows, distinct_rows)


@pytest.mark.parametrize("name", ["lof", "ocsvm", "pyod_vae"])
def test_a_cap_on_training_rows_is_kept(name, rows) -> None:
    capped = replace(BASELINES[name], max_train_rows=64)
    order = np.random.default_rng(0).permutation(len(rows[0]))[:64]
    expected = scores(BASELINES[name], rows[0][order], rows[1])
    np.testing.assert_array_equal(scores(capped, *rows), expected)
    assert not np.array_equal(scores(capped, *rows, seed=1), expected)
    caps = {"lof": 20_000, "ocsvm": 10_000, "pyod_vae": 25_000}  # as the committed figures have
    assert ADBENCH[name].max_train_rows == caps[name]


def test_pyod_leaves_the_random_states_as_they_were(rows) -> None:
    before = pyro.util.get_rng_state()
    scores(BASELINES["pyod_vae"], *rows)
    after = pyro.util.get_rng_state()
    assert torch.equal(before["torch"], after["torch"])
    assert before["random"] == after["random"]
    np.testing.assert_array_equal(before["numpy"][1], after["numpy"][1])
