"""The encoder of one-hot and scaled features: what it learns, from training rows alone."""

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from pyro_vaeflow.tables.table_encoder import FAR, TableEncoder


@pytest.fixture
def train():
    return pd.DataFrame(
        {
            "size": [0, 5, 10, 5],
            "kind": ["a", "b", "a", "b"],
            "flag": [True, False, True, True],
            "level": pd.Categorical([1, 1, 2, 2], categories=[1, 2, 3]),
            "rate": [0.5, 0.5, 0.5, 0.5],
        }
    )


def test_categorical_columns_come_first_then_scaled_numbers(train):
    encoder = TableEncoder()
    x = encoder.fit_transform(train)
    assert encoder.feature_names_ == [
        *("kind=a", "kind=b", "flag=False", "flag=True", "level=1", "level=2"),
        *("size", "rate"),
    ]
    expected = [
        [1, 0, 0, 1, 1, 0, 0.0, 0],
        [0, 1, 1, 0, 1, 0, 0.5, 0],
        [1, 0, 0, 1, 0, 1, 1.0, 0],
        [0, 1, 0, 1, 0, 1, 0.5, 0],
    ]
    assert x.dtype == torch.float32
    assert x.tolist() == expected


def test_standard_scaling_has_mean_zero_and_variance_one():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"a": rng.normal(5, 3, 500), "b": rng.exponential(2, 500)})
    x = TableEncoder("standard").fit_transform(frame)
    torch.testing.assert_close(x.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.var(0, correction=0), torch.ones(2), atol=1e-5, rtol=0)


def test_unseen_levels_and_ranges_are_legal(train):
    encoder = TableEncoder().fit(train)
    new = train.head(2).assign(
        size=[-7, 1e300], kind=["new", None], level=pd.Categorical([3, 3]), rate=[0.0, 9.0]
    )
    x = encoder.transform(new)
    assert x[:, [0, 1, 4, 5]].tolist() == [[0.0] * 4] * 2
    assert x[:, 6:].tolist() == [[0.0, 0.0], [1.0, 1.0]]
    standard = TableEncoder("standard").fit(train).transform(new)
    assert standard[1, 6] == FAR
    assert standard.isfinite().all()


def test_other_rows_change_nothing(train):
    encoder = TableEncoder().fit(train)
    alone = encoder.transform(train.head(1))
    together = encoder.transform(pd.concat([train.head(1), train.assign(size=1000)]))
    assert together[:1].equal(alone)
    order = [2, 0, 3, 1]
    assert encoder.transform(train.iloc[order]).equal(encoder.transform(train)[order])


def test_columns_are_found_by_name(train):
    encoder = TableEncoder().fit(train)
    assert encoder.transform(train[train.columns[::-1]]).equal(encoder.transform(train))


@pytest.mark.parametrize("columns", [["size", "rate"], ["kind"]])
def test_tables_of_one_kind(train, columns):
    encoder = TableEncoder()
    x = encoder.fit_transform(train[columns])
    assert x.shape == (4, len(encoder.feature_names_)) == (4, 2)


def test_nullable_numbers_and_integer_column_names():
    frame = pd.DataFrame({3: [1.0, 2.0, 3.0], 7: [0.0, 1.0, 4.0]}).astype({3: "Int64"})
    encoder = TableEncoder().fit(frame)
    assert encoder.transform(frame)[:, 0].tolist() == [0.0, 0.5, 1.0]
    assert encoder.feature_names_ == ["3", "7"]
    assert encoder.transform(frame[[7, 3]]).equal(encoder.transform(frame))


def test_the_callers_table_stays_as_it_is(train):
    before = train.copy(deep=True)
    TableEncoder().fit_transform(train)
    pd.testing.assert_frame_equal(train, before)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused_by_column(train, value):
    bad = train.astype({"size": float})
    bad.loc[2, "size"] = value
    with pytest.raises(ValueError, match="column 'size'.*not finite"):
        TableEncoder().fit(bad)
    with pytest.raises(ValueError, match="column 'size'.*not finite"):
        TableEncoder().fit(train).transform(bad)


def test_refusals_name_what_is_wrong(train):
    with pytest.raises(ValueError, match=r"scaling must be one of .*minmax.*, got 'max'"):
        TableEncoder("max").fit(train)
    with pytest.raises(ValueError, match=r"rows and columns, got shape \(0, 5\)"):
        TableEncoder().fit(train.head(0))
    with pytest.raises(ValueError, match=r"distinct column names, got \['size'\]"):
        TableEncoder().fit(train[["size", "kind", "size"]])
    encoder = TableEncoder().fit(train)
    with pytest.raises(ValueError, match=r"missing \['kind'\], unknown \['sort'\]"):
        encoder.transform(train.rename(columns={"kind": "sort"}))
    with pytest.raises(ValueError, match=r"missing \[\], unknown \['more'\]"):
        encoder.transform(train.assign(more=1))
    with pytest.raises(NotFittedError):
        clone(encoder).transform(train)
