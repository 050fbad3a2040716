"""Columns: which kind is chosen, what is learned of it, and the codes and numbers of values."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from pyro_vaeflow.tables.column_kinds import learn_column, learn_columns
from pyro_vaeflow.tables.columns import LEFT_OUT, Column
from pyro_vaeflow.tables.mixed_encoder import MixedEncoder
from pyro_vaeflow.tables.number_kinds import GROUP_MASS, HEAVY
from pyro_vaeflow.validation import ConfigError


def column(values, **options) -> Column:
    return learn_column(pd.Series(values, name="c"), **options)


def columns(values, **options) -> list[Column]:
    return learn_columns(pd.Series(values, name="c"), **options)


def test_what_is_no_number_is_categorical() -> None:
    assert column(["b", "a", "b"]).levels == ("a", "b")
    assert column([True, False, True]).levels == ("False", "True")
    assert column(pd.Categorical(["x", "y"], categories=["x", "y", "never"])).levels == ("x", "y")


def test_values_between_sparse_levels_are_unseen() -> None:
    spread = column([0.0] * 60 + [10.0, 1000.0] * 20)
    coded = spread.encode(
        pd.Series([0.0, 10.0, 5.0, 1000.0, 1001.0, -1.0, np.inf, -np.inf, np.nan])
    )
    np.testing.assert_array_equal(coded, [1, 2, 0, 3, 0, 0, 0, 0, np.nan])


def test_numbers_that_fill_their_range_share_levels_and_miss_none() -> None:
    values = np.concatenate([np.zeros(4000), np.repeat(np.arange(1, 201), 10)])
    filled = column(values)
    assert filled.kind == "discrete" and filled.num_levels < 70
    coded = filled.encode(pd.Series(np.arange(201.0)))
    assert (coded > 0).all() and (np.diff(coded) >= 0).all()
    assert coded[0] == 1 and coded[1] == 2, "the point mass keeps a level of its own"
    np.testing.assert_array_equal(filled.encode(pd.Series([-1.0, 201.0])), [0, 0])
    widths = np.array(filled.highs) - np.array(filled.lows) + 1
    assert widths.max() <= 2 * GROUP_MASS * 201, "no group holds much of the values"
    assert max(10 * widths[1:]) <= 2 * GROUP_MASS * len(values), "nor of the rows"


def test_a_continuous_column_is_standardised_and_clipped() -> None:
    numbers = column([1.0, 2.0, 6.0])
    coded = numbers.encode(pd.Series([1.0, 2.0, 6.0]))
    assert coded.mean() == pytest.approx(0.0) and coded.std() == pytest.approx(1.0)
    far = numbers.encode(pd.Series([1e300, -np.inf]))
    np.testing.assert_array_equal(far, [1e6, -1e6])


def test_what_rounding_leaves_of_a_constant_is_no_scale() -> None:
    constant = column([1e9 + 0.1] * 7, kind="continuous")
    assert constant.scale == 1.0
    assert abs(constant.encode(pd.Series([1e9 + 0.2]))[0]) < 1.0


def test_sparse_levels_stay_apart_however_many() -> None:
    spread = column(np.concatenate([np.zeros(500), np.repeat(100.0 * np.arange(1, 61) ** 2, 5)]))
    assert spread.num_levels == 62 and spread.lows == spread.highs
    assert spread.encode(pd.Series([101.0])).tolist() == [0.0]


def test_a_categorical_number_has_one_level_whatever_its_dtype() -> None:
    ports = column([80, 443, 80], kind="categorical")
    for dtype in ("int64", "float64", "Int64", "Float32"):
        np.testing.assert_array_equal(ports.encode(pd.Series([443, 80], dtype=dtype)), [1, 2])


def test_a_positive_column_is_log_normal_and_what_is_not_positive_is_far_away() -> None:
    size = pd.Series(np.random.default_rng(0).lognormal(3.0, 2.0, 1000), name="c")
    learned = learn_column(size, "positive")
    assert learned.num_levels == 0
    coded, plain = (
        learned.encode(size),
        learn_column(np.log(size), "continuous").encode(np.log(size)),
    )
    np.testing.assert_allclose(coded, plain, rtol=1e-9)
    tenfold = learned.encode(10.0 * size)
    np.testing.assert_allclose(tenfold - coded, np.log(10.0) / learned.scale, rtol=1e-9)
    coded = learned.encode(pd.Series([0.0, -3.0, np.inf, None]))
    np.testing.assert_array_equal(coded, [-1e6, -1e6, 1e6, np.nan])
    with pytest.raises(ValueError, match="column 'c' is to be positive and holds -1"):
        column([1.0, -1.0, 2.0], kind="positive")


SINGLES = [float(10 * k + 7) for k in range(2)]  # each a value that occurs once


@pytest.mark.parametrize(
    ("draw", "kind"),
    [
        (lambda r: np.full(5, 7.0), "discrete"),  # constant
        (lambda r: [0, 1] * 50, "discrete"),  # binary
        (lambda r: [0] * 29 + [1], "discrete"),
        (lambda r: [0] * 700 + [1, 2, 5] * 100, "discrete"),  # a closed point mass
        (lambda r: np.concatenate([np.zeros(700), r.normal(size=300)]), "continuous"),  # ever new
        (lambda r: np.repeat(np.arange(16), 100), "continuous"),  # no point mass
        (lambda r: [0.0] * 99 + SINGLES[:1], "discrete"),  # one new value in a hundred
        (lambda r: [0.0] * 98 + SINGLES, "continuous"),  # two
        (lambda r: r.lognormal(0.0, 1.5, 2000), "positive"),
        (lambda r: r.pareto(1.5, 2000) + 1.0, "positive"),
        (lambda r: r.lognormal(0.0, 0.4, 2000), "continuous"),
        (lambda r: r.exponential(1.0, 2000), "continuous"),
        (lambda r: r.exponential(1.0, 5), "continuous"),
        (lambda r: [1.0, 2.0, 30.0], "continuous"),  # too few to tell
        (lambda r: r.uniform(0.0, 1.0, 2000), "continuous"),
        (lambda r: 5.0 + r.normal(0.0, 1.0, 2000), "continuous"),
        (lambda r: r.lognormal(0.0, 1.5, 2000) - 1.0, "continuous"),  # not all above 0
    ],
)
def test_the_kind_of_numbers_is_chosen_in_any_unit(draw, kind: str) -> None:
    numbers = np.asarray(draw(np.random.default_rng(0)))
    assert column(numbers).kind == kind
    assert [column(c * numbers).kind for c in (1e-200, 1.0, 1e200)] == [kind] * 3


def test_the_rule_of_heavy_tails_compares_likelihoods() -> None:
    rng = np.random.default_rng(0)
    gains = []
    for sigma in np.linspace(0.5, 1.5, 21):
        numbers = rng.lognormal(1.0, sigma, 400)
        logs = np.log(numbers)
        gain = norm.logpdf(logs, logs.mean(), logs.std()) - logs
        gain -= norm.logpdf(numbers, numbers.mean(), numbers.std())
        gains.append(gain.mean())
        is_heavy = gains[-1] >= HEAVY and gains[-1] >= 2.0 * gain.std() / 20.0
        assert (column(numbers).kind == "positive") == is_heavy
    assert min(gains) < HEAVY < max(gains)


@pytest.mark.parametrize("middle", [1e-300, 0.01, 0.3, 1.0, 3.0, 1e300])
def test_what_rounding_leaves_of_a_constant_has_no_heavy_tail(middle: float) -> None:
    sums = middle * (1.0 + np.finfo(float).eps * np.random.default_rng(0).integers(-9, 9, 500))
    constant = column(sums)
    assert constant.kind == "continuous"
    assert constant.scale == 1.0


@pytest.mark.parametrize("num_data", [300, 500, 1000, 3000])
def test_numbers_that_are_said_to_be_discrete_fall_into_bins_that_meet(num_data: int) -> None:
    rng = np.random.default_rng(0)
    seen, fresh = rng.normal(size=num_data), rng.normal(size=5000)
    learned = column(seen, kind="discrete")
    assert learned.num_levels <= 2 / GROUP_MASS
    inside = (seen.min() <= fresh) & (fresh <= seen.max())
    assert ((learned.encode(pd.Series(fresh)) > 0) == inside).all()
    shares = np.bincount(learned.encode(pd.Series(seen)).astype(int))[1:] / num_data
    assert shares.max() <= GROUP_MASS + 1 / num_data


def test_groups_of_a_closed_column_keep_the_gaps_between_them() -> None:
    """A value in a gap is one that training has not shown, and fresh rows hardly have such."""
    values = np.repeat(np.setdiff1d(np.arange(0.0, 200.0), [50.0, 51.0, 52.0]), 20)
    learned = column(values, kind="discrete")
    assert learned.num_levels < 100
    assert {*learned.lows, *learned.highs} <= set(values)
    between = 0.5 * (np.array(learned.highs[:-1]) + np.array(learned.lows[1:]))
    assert (learned.encode(pd.Series(between)) == 0.0).all()


def test_ids_keep_all_their_digits_as_categories_and_warn_as_numbers() -> None:
    ids = pd.Series([2**62, 2**62 + 1, None], dtype="Int64", name="c")
    for values in (ids, ids.astype(object)):
        np.testing.assert_array_equal(
            column(ids, kind="categorical").encode(values), [1, 2, np.nan]
        )
    assert column([4111111111111111, 4111111111111112], kind="categorical").num_levels == 3
    with pytest.warns(UserWarning, match="column 'c' holds whole numbers that float64 does not"):
        column(ids)


@pytest.mark.parametrize("values", [[1.0, 2.5, 2.5], [1, 2, 2], [True, False, True]])
def test_a_value_has_one_text_within_a_categorical_and_without(values: list) -> None:
    plain = pd.Series(values, name="c")
    known = column(plain.astype("category"))
    expected = known.encode(plain.astype("category"))
    assert (expected > 0).all()
    np.testing.assert_array_equal(known.encode(plain.astype(object)), expected)
    missing = pd.Series([*values[:2], None], dtype="category")
    np.testing.assert_array_equal(known.encode(missing), [*expected[:2], np.nan])


def test_a_column_of_names_is_left_out_and_one_of_categories_is_not() -> None:
    names = [f"order {j}" for j in range(30)]
    with pytest.warns(UserWarning, match="'c' is left out: it holds a text of its own in 30 of 30"):
        assert columns(names)[0].kind == LEFT_OUT
    assert columns(names, kind="categorical")[0].num_levels == 31
    assert columns(names[:10])[0].num_levels == 11
    assert columns(names + 40 * ["usual"])[0].kind == "categorical"


@pytest.mark.parametrize("dtype", ["float64", "Int64", "float32"])
@pytest.mark.parametrize("kind", ["discrete", "continuous", "categorical"])
def test_missing_numbers_are_nan(dtype: str, kind: str) -> None:
    missing = pd.Series([1, None, 0], dtype=dtype)
    assert np.isnan(column([0, 1, 1], kind=kind).encode(missing)).tolist() == [False, True, False]


@pytest.mark.parametrize("dtype", ["str", "object", "string", "category"])
@pytest.mark.parametrize("none", [None, np.nan, pd.NA])
def test_missing_texts_are_nan(dtype: str, none: object) -> None:
    missing = pd.Series(["a", none, "b"], dtype=dtype)
    assert np.isnan(column(["a", "b"]).encode(missing)).tolist() == [False, True, False]


LISTS = pd.array([[1, 2], [3]], dtype=pd.ArrowDtype(pa.list_(pa.int64())))


@pytest.mark.parametrize(
    ("values", "options", "error", "message"),
    [
        ([1.0], {"kind": "nominal"}, ValueError, "kind of column 'c' must be one of"),
        ([np.nan, np.inf], {}, ValueError, "column 'c' has no finite value"),
        ([None, None], {"kind": "categorical"}, ValueError, "column 'c' has no finite value"),
        (["a", "b"], {"kind": "continuous"}, ValueError, "column 'c' holds values that are no num"),
        (pd.date_range("2020", periods=3), {}, TypeError, "column 'c' holds dates or times"),
        ([1j, 2j], {}, TypeError, "column 'c' holds complex numbers"),
        (LISTS, {}, TypeError, "column 'c' holds a value of type"),
    ],
)
def test_bad_columns_are_refused_by_name(values, options, error, message) -> None:
    with pytest.raises(error, match=message):
        column(values, **options)


@pytest.mark.parametrize(
    "values",
    [
        {"kind": "categorical"},
        {"kind": "categorical", "levels": ["a"], "lows": [0.0], "highs": [0.0]},
        {"kind": "discrete", "lows": [0.0, 1.0], "highs": [0.0]},
        {"kind": "continuous", "levels": ["a"]},
        {"kind": "continuous", "scale": 0.0},
        {"kind": "nominal"},
        {"kind": "continuous", "code": "import os"},
    ],
)
def test_a_column_that_contradicts_itself_is_refused(values) -> None:
    with pytest.raises(ConfigError):
        Column.from_dict({"name": "c", **values})


frames = st.lists(
    st.tuples(
        st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True)),
        st.one_of(st.none(), st.sampled_from(["a", "b", "c", ""])),
        st.one_of(st.none(), st.booleans()),
        st.integers(-3, 3),
    ),
    min_size=2,
    max_size=30,
).map(lambda rows: pd.DataFrame(rows, columns=["float", "text", "flag", "int"]))
FIXED = pd.DataFrame(
    {"float": [0.0, 1.5], "text": ["a", "b"], "flag": [True, False], "int": [0, 1]}
)


@settings(max_examples=60, deadline=None)
@given(frames)
def test_random_frames_are_encoded_row_by_row_and_survive_json(frame: pd.DataFrame) -> None:
    encoder = MixedEncoder().fit(pd.concat([FIXED, frame.astype({"text": object})]))
    before = frame.copy()
    x = encoder.transform(frame)
    pd.testing.assert_frame_equal(frame, before)
    np.testing.assert_array_equal(x.isnan().numpy(), frame.isna().to_numpy())
    assert not x.isinf().any()
    order = np.random.default_rng(0).permutation(len(frame))
    np.testing.assert_array_equal(encoder.transform(frame.iloc[order]).numpy(), x[order].numpy())
    for learned in encoder.columns_:
        assert Column.from_dict(json.loads(json.dumps(learned.to_dict()))) == learned


def test_training_rows_show_every_level_and_nothing_unseen() -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "kind": draw.choice(["tcp", "udp", "icmp"], 500),
            "count": np.where(draw.random(500) < 0.6, 0, draw.integers(0, 5, 500)),
            "size": draw.lognormal(size=500),
        }
    )
    encoder = MixedEncoder()
    x = encoder.fit_transform(frame)
    assert [c.kind for c in encoder.columns_] == ["categorical", "discrete", "positive"]
    for j in (0, 1):
        assert x[:, j].unique().tolist() == list(range(1, encoder.columns_[j].num_levels))


def test_columns_are_found_by_name_and_kinds_can_be_told() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0, 4.0], "b": [0.0, 0.0, 1.0]})
    encoder = MixedEncoder(kinds={"b": "continuous"}).fit(frame)
    assert [c.kind for c in encoder.columns_] == ["continuous", "continuous"]
    assert encoder.transform(frame[["b", "a"]]).equal(encoder.transform(frame))
    with pytest.raises(ValueError, match=r"missing \['b'\], unknown \['c'\]"):
        encoder.transform(frame.rename(columns={"b": "c"}))
    with pytest.raises(ValueError, match=r"kinds names \['z'\]"):
        MixedEncoder(kinds={"z": "discrete"}).fit(frame)
    with pytest.raises(ValueError, match="distinct column names"):
        MixedEncoder().fit(pd.DataFrame([[1, 2]], columns=["a", "a"]))
    with pytest.raises(ValueError, match="rows and columns"):
        MixedEncoder().fit(frame.iloc[:0])
