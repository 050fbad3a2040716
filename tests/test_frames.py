"""Laws of the detector on random frames of mixed columns, entries missing."""

import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.inference import draws
from pyro_vaeflow.tables.columns import KINDS
from tests.test_input import TINY

FEW = settings(
    max_examples=10,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
NUMBERS = st.floats() | st.integers(-3, 3).map(float) | st.none()
TEXTS = st.sampled_from(["a", "b", "", "nan", "1", "ä"]) | st.none()
# Sort of column -> its entries, and how a series is made of them.
SORTS = {
    "floats": (NUMBERS, lambda v: pd.Series(v, dtype="float64")),
    "nullable": (NUMBERS, lambda v: pd.Series(v, dtype="Float64")),
    "whole": (st.integers(-(2**63), 2**63 - 1), lambda v: pd.Series(v, dtype="int64")),
    "counts": (st.integers(0, 2) | st.none(), lambda v: pd.Series(v, dtype="Int64")),
    "flags": (st.booleans(), lambda v: pd.Series(v, dtype="bool")),
    "maybe": (st.booleans() | st.none(), lambda v: pd.Series(v, dtype="boolean")),
    "texts": (TEXTS, lambda v: pd.Series(v, dtype="str")),
    "categories": (TEXTS, lambda v: pd.Series(pd.Categorical(v))),
    "objects": (TEXTS | NUMBERS | st.booleans(), lambda v: pd.Series(v, dtype=object)),
}


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    """From 2 to 12 rows, from 1 to 5 columns of any sort, each with a finite entry in most rows."""
    num_data = draw(st.integers(2, 12))
    sorts = draw(st.lists(st.sampled_from(sorted(SORTS)), min_size=1, max_size=5))
    columns = {}
    for place, sort in enumerate(sorts):
        entries, make = SORTS[sort]
        size = {"min_size": num_data, "max_size": num_data}
        columns[f"{place} {sort}"] = make(draw(st.lists(entries, **size)))
    return pd.DataFrame(columns)


def fitted(frame: pd.DataFrame) -> VAEFlowDetector:
    try:
        return VAEFlowDetector(**TINY, calibration_share=0.0).fit(frame)
    except ValueError as error:  # the one way in which such a frame can be refused
        assert "has no finite value in the training rows" in str(error)
        assume(False)
        raise


@pytest.mark.filterwarnings("ignore:column .* holds texts that spell numbers")
@FEW
@given(frames(), st.randoms(use_true_random=False))
def test_scores_are_finite_and_each_row_has_its_own(frame: pd.DataFrame, random) -> None:
    before = frame.copy(deep=True)
    detector = fitted(frame)
    whole = detector.score_samples(frame)
    assert np.isfinite(whole).all()
    order = random.sample(range(len(frame)), len(frame))
    half = len(frame) // 2
    parts = {
        "another order": detector.score_samples(frame.iloc[order])[np.argsort(order)],
        "row by row": [detector.score_samples(frame.iloc[[j]])[0] for j in range(len(frame))],
        "halves": [
            *detector.score_samples(frame.iloc[:half]),
            *detector.score_samples(frame.iloc[half:]),
        ],
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(draws, "DRAWS_PER_CHUNK", 2 * TINY["num_samples"])
        parts["another memory budget"] = detector.score_samples(frame)
    for name, scores in parts.items():
        np.testing.assert_allclose(scores, whole, rtol=1e-9, err_msg=name)
    pd.testing.assert_frame_equal(frame, before, check_exact=True)


@pytest.mark.filterwarnings("ignore:column .* holds texts that spell numbers")
@FEW
@given(frames())
def test_a_saved_detector_comes_back_whatever_it_learned(frame: pd.DataFrame) -> None:
    detector = fitted(frame)
    with tempfile.TemporaryDirectory() as folder:
        detector.save(folder)
        loaded = VAEFlowDetector.load(Path(folder))
    np.testing.assert_array_equal(loaded.score_samples(frame), detector.score_samples(frame))
    assert loaded.encoder_.columns_ == detector.encoder_.columns_
    assert {column.kind for column in loaded.encoder_.columns_} <= set(KINDS)


@pytest.mark.filterwarnings("ignore:column .* holds (texts that spell|values that are no) numbers")
@FEW
@given(frames(), frames())
def test_another_table_is_scored_or_refused_by_name(one: pd.DataFrame, other: pd.DataFrame) -> None:
    detector = fitted(one)
    names = list(one)
    given = pd.concat(len(names) * [other], axis=1).iloc[:, : len(names)].set_axis(names, axis=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "column .* held texts in training")
        try:
            scores = detector.score_samples(given)
        except ValueError as error:
            assert "holds values that are no numbers" in str(error)
        else:
            assert np.isfinite(scores).all()
