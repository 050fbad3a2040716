"""Rarity: p-values of rows and of their rarest entries, which training rows do not vouch for."""

import pickle

import numpy as np
import pandas as pd
import torch

from pyro_vaeflow.detector.rarity import Rarity, surprise
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
    inside = surprise(known, known)
    np.testing.assert_allclose(inside, -np.log((99 - known) / 100.0), rtol=0, atol=1e-12)
    assert surprise(np.array([3.0, 3.2, 4.0]), known).argsort().tolist() == [0, 1, 2]
    far = surprise(np.array([98.0, 99.0, 200.0, 1e9]), known)
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
