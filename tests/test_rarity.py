"""Rarity: p-values of rows and of their rarest entries, which training rows do not vouch for."""

import pickle

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow.detector.rarity import WIDTHS, Rarity, Surprise, _boxes, _weights, isolation
from pyro_vaeflow.inference.noise import row_hash
from pyro_vaeflow.tables.columns import Column
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder


def lattice(num_rows: int) -> tuple[pd.DataFrame, MixedEncoder, torch.Tensor]:
    """Whole numbers, noise and a text, encoded."""
    numbers = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "code": numbers.integers(0, 20, num_rows).astype(float),
            "noise": numbers.normal(size=num_rows),
            "kind": numbers.choice(["a", "b"], num_rows),
        }
    )
    encoder = MixedEncoder().fit(frame)
    return frame, encoder, encoder.transform(frame)


def test_surprise_is_minus_log_of_a_p_value_and_rises_beyond_all_known_scores() -> None:
    known = np.arange(99.0)
    surprise = Surprise(known)
    inside = surprise(known)
    np.testing.assert_allclose(inside, -np.log((99 - known) / 100.0), rtol=0, atol=1e-12)
    assert surprise(np.array([3.0, 3.2, 4.0])).argsort().tolist() == [0, 1, 2]
    far = surprise(np.array([98.0, 99.0, 200.0, 1e9]))
    assert (np.diff(far) > 0).all()


def test_a_value_never_seen_is_rarer_on_a_lattice_and_not_among_noise() -> None:
    frame, encoder, x = lattice(400)
    rarity = Rarity(encoder.columns_, x, np.zeros(400))
    row = {"code": 7.0, "noise": 0.123, "kind": "a"}
    rows = [row, row | {"code": 7.5}, row | {"noise": 0.1234}, row | {"kind": "c"}]
    rows.append(row | {"code": None})
    scores = rarity(encoder.transform(pd.DataFrame(rows)), np.zeros(5))
    assert scores[1] < scores[0] - 1.0 and scores[3] < scores[0] - 1.0
    np.testing.assert_allclose(scores[2], scores[0], rtol=0, atol=0.3)
    assert scores[4] > max(scores[1], scores[3]), "a missing entry is none that was never seen"


def test_a_row_seen_before_is_near_where_rows_repeat_and_levels_are_apart() -> None:
    columns = [Column("code", "continuous"), Column("kind", "categorical", levels=["a", "b"])]
    rows = torch.tensor([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0], [3.0, 1.0]]).repeat(25, 1)
    seen, apart, other = torch.tensor([[1.0, 1.0], [1.5, 1.0], [1.0, 0.0]])
    scores = Rarity(columns, rows, np.zeros(100))(torch.stack([seen, apart, other]), np.zeros(3))
    assert scores[0] > scores[1:].max() + 1.0, "by its nearest row, as each of its values is known"


def test_rows_are_scored_by_themselves_and_a_training_row_does_not_vouch_for_itself() -> None:
    frame, encoder, _ = lattice(400)  # no two rows are alike, as one column is noise
    frame.loc[0, ["code", "noise"]] = 3.5, 9.0
    x = encoder.transform(frame)
    rarity = Rarity(encoder.columns_, x, np.zeros(400))
    scores = rarity(x, np.zeros(400))
    assert scores.argmin() == 0
    np.testing.assert_array_equal(rarity(x[:7], np.zeros(7)), scores[:7])
    again = pickle.loads(pickle.dumps(rarity))
    np.testing.assert_array_equal(again(x, np.zeros(400)), scores)


def test_training_rows_do_not_vouch_for_their_like() -> None:
    """The last 12 of 400 rows are one anomaly with small differences."""
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(400, 4, generator=draw, dtype=torch.float64)
    rows[-12:] = rows[-12:] / 100 + 6.0
    known = rows[torch.randperm(400, generator=draw)]
    columns, evidence = [Column(name, "continuous") for name in "abcd"], np.zeros(400)
    for some in (known, known[:300]):  # the others are training rows by their hash
        rarity = Rarity(columns, some, evidence[: len(some)], row_hash(rows))
        nearest = rarity.log_p_values(rows, evidence)["log_p_nearest"]
        assert sorted(nearest.argsort()[:12]) == list(range(388, 400))
        assert set(range(388, 400)) < set(rarity(rows, evidence).argsort()[:40])
    fresh = rows + 1e-9  # new rows: that such were seen before says that they are usual
    nearest = rarity.log_p_values(fresh, evidence)["log_p_nearest"]
    assert nearest[388:].mean() > nearest[:388].mean()


def test_copies_of_a_row_make_it_no_less_isolated() -> None:
    known = np.random.default_rng(0).normal(size=(200, 3))
    once, often = (np.vstack([known, np.full((count, 3), 5.0)]) for count in (1, 20))
    expected = isolation(often[-1:], known)
    np.testing.assert_allclose(isolation(often[-1:], often), expected, rtol=0.1)
    assert (isolation(once, once).argmax(), isolation(known[:1], known[:1])) == (200, 0.0)


def test_one_row_and_impossible_rows_to_compare_with_give_finite_scores() -> None:
    columns = [Column("size", "continuous")]
    x = torch.tensor([[0.0], [0.5], [9.0]])
    for num_rows in (1, 2):
        assert np.isfinite(Rarity(columns, x[:num_rows], np.zeros(num_rows))(x, np.zeros(3))).all()
    scores = Rarity(columns, x, np.array([0.0, -1.0, -np.inf]))(x, np.array([0.0, -0.5, -np.inf]))
    assert np.isfinite(scores[:2]).all() and scores[2] == -np.inf
    assert len(Rarity(columns, x, np.zeros(3))(x[:0], np.zeros(0))) == 0


def test_blocks_of_rows_change_nothing(monkeypatch) -> None:
    _, encoder, x = lattice(60)
    rarity = Rarity(encoder.columns_, x[:40], np.arange(40.0))
    whole = rarity.log_p_values(x, np.arange(60.0))
    monkeypatch.setattr("pyro_vaeflow.detector.rarity.BLOCK", 7)
    pd.testing.assert_frame_equal(rarity.log_p_values(x, np.arange(60.0)), whole, rtol=0, atol=0)


def test_entries_have_a_density_of_narrow_boxes_on_a_lattice_and_of_wide_ones_among_noise() -> None:
    numbers = np.random.default_rng(0)
    lattice_points, noise = numbers.integers(0, 20, 400) / 5.0, numbers.normal(size=400)
    for values, narrow, wide in ((lattice_points, 0.9, 1.0), (noise, 0.0, 0.1)):
        known = np.sort(values)
        weights = _weights(known)
        assert narrow < weights[WIDTHS <= 3e-3].sum() < wide
        ends = np.sort((known[:, None] + np.r_[-WIDTHS, WIDTHS]).ravel())
        middles = (ends[1:] + ends[:-1]) / 2  # the density is constant from one end to the next
        density = _boxes(known, middles, np.zeros(len(middles), dtype=bool)) @ weights
        np.testing.assert_allclose(density @ np.diff(ends), 1.0, rtol=1e-9)


def test_p_values_of_fresh_rows_are_about_uniform() -> None:
    numbers = np.random.default_rng(0)
    columns = [Column(name, "continuous") for name in "abc"]
    rows, fresh = (torch.as_tensor(numbers.normal(size=(800, 3))) for _ in range(2))
    evidence = [-(x**2).sum(1).numpy() / 2 for x in (rows, fresh)]
    p_values = np.exp(Rarity(columns, rows, evidence[0]).log_p_values(fresh, evidence[1]))
    for name, values in p_values.items():
        shares = [(values <= level).mean() for level in (0.05, 0.25, 0.5, 0.75)]
        np.testing.assert_allclose(shares, [0.05, 0.25, 0.5, 0.75], rtol=0, atol=0.05, err_msg=name)


def test_time_that_goes_on_makes_no_row_rare() -> None:
    draw = np.random.default_rng(0)
    days = pd.date_range("2024-01-01", periods=400, freq="5min")
    frame = pd.DataFrame({"day": days, "noise": draw.normal(size=400)})
    encoder = MixedEncoder().fit(frame)
    rarity = Rarity(encoder.columns_, encoder.transform(frame), np.zeros(400))
    fresh = frame.assign(noise=draw.normal(size=400))
    with pytest.warns(UserWarning, match="out of training's range"):
        later = encoder.transform(fresh.assign(day=days + pd.Timedelta(weeks=9)))
    now = rarity(encoder.transform(fresh), np.zeros(400))
    np.testing.assert_array_equal(rarity(later, np.zeros(400)), now)


def test_a_missing_level_makes_no_row_far_and_the_others_are_compared() -> None:
    columns = [Column(name, "categorical", levels=["a", "b"]) for name in "xyz"]
    gap = float("nan")
    rows = torch.tensor([[1.0, 1.0, 1.0], [2.0, 2.0, 2.0], [1.0, gap, 2.0]]).repeat(20, 1)
    x = torch.tensor(
        [[1.0, 1.0, 1.0], [gap, 1.0, 1.0], [gap] * 3, [1.0, gap, 2.0], [gap, 1.0, 2.0]]
    )
    nearest = Rarity(columns, rows, np.zeros(60)).log_p_values(x, np.zeros(5))["log_p_nearest"]
    np.testing.assert_array_equal(nearest[:4], nearest[0])
    assert nearest[4] < nearest[0] - 1.0, "no row has both of its entries"
