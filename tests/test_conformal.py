import numpy as np
import pytest

from pyro_vaeflow.detector.conformal import discoveries, p_values


def test_p_values_count_calibration_rows_that_are_as_odd():
    calibration = np.array([-5.0, -3.0, -3.0, -1.0])
    scores = np.array([-6.0, -5.0, -4.0, -3.0, -2.0, 0.0, -np.inf])
    expected = [(1 + sum(calibration <= s)) / 5 for s in scores]
    np.testing.assert_allclose(p_values(scores, calibration), expected)


def test_p_values_of_like_rows_are_at_most_as_often_small_as_they_say():
    draw = np.random.default_rng(0)
    levels = np.array([0.01, 0.05, 0.1, 0.3])
    rates = [
        (p_values(draw.normal(size=20), draw.normal(size=99))[:, None] <= levels).mean(0)
        for _ in range(3000)
    ]
    # uniform on 1/100, ..., 1: exactly the level; the standard error is below 0.003
    np.testing.assert_allclose(np.mean(rates, 0), levels, atol=0.01)


@pytest.mark.parametrize("fdr", [0.05, 0.2])
@pytest.mark.parametrize("share", [0.0, 0.2])
def test_the_share_of_false_discoveries_is_below_the_promise(fdr: float, share: float):
    draw = np.random.default_rng(1)
    false, power = [], []
    for _ in range(1500):
        is_odd = np.arange(100) < 100 * share
        scores = draw.normal(size=100) - 4.0 * is_odd
        found = discoveries(p_values(scores, draw.normal(size=400)), fdr)
        false.append((found & ~is_odd).sum() / max(1, found.sum()))
        power.append(found[is_odd].mean() if share else 1.0)
    bound = fdr * (1.0 - share)  # of exchangeable inliers; 3 standard errors beside it
    assert np.mean(false) <= bound + 3 * np.std(false) / np.sqrt(len(false))
    assert np.mean(power) > 0.5


def test_benjamini_and_hochbergs_rule_by_hand():
    draw = np.random.default_rng(2)
    p = draw.uniform(size=30) ** 3
    ranked = np.sort(p)
    below = np.nonzero(ranked <= 0.1 * np.arange(1, 31) / 30)[0]
    np.testing.assert_array_equal(discoveries(p, 0.1), p <= ranked[below[-1]])
    assert not discoveries([], 0.1).any()


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="calibration must hold"):
        p_values([1.0], [])
    with pytest.raises(ValueError, match="must not be NaN"):
        p_values([np.nan], [1.0])
    for fdr in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match=f"fdr must be .* and less than 1, got {fdr}"):
            discoveries([0.5], fdr)
