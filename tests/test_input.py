"""Each table of docs/guide/input.md: fit and scores of whatever is handed over, row by row."""

import copy
import datetime
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import scipy.sparse
import torch

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.tables.frames import as_table
from tests.guide_tables import check, rows

TINY = {"num_steps": 3, "num_samples": 3, "hidden_dims": (8,), "random_state": 0}
NUM = 40
ARRAY = np.random.default_rng(1).normal(size=(NUM, 3))


def frame() -> pd.DataFrame:
    draw = np.random.default_rng(0)
    size = draw.normal(size=NUM)
    kind = pd.Series(np.where(size > 0.0, "big", "small")).astype("str")
    count = draw.integers(0, 40, NUM)
    return pd.DataFrame({"size": size, "kind": kind, "flag": size > 0.5, "count": count})


def with_column(name: str, values: Any) -> Callable[[], pd.DataFrame]:
    return lambda: frame().assign(**{name: values})


def with_entry(value: float) -> Callable[[], np.ndarray]:
    def make() -> np.ndarray:
        array = ARRAY.copy()
        array[7, 1] = value
        return array

    return make


@dataclass(frozen=True)
class Case:
    """What is handed over, and what else has the same scores, under the same fitted detector."""

    make: Callable[[], Any]
    like: Callable[[], Any] | None = None
    array: bool = False  # whether the detector that scores it was fitted on an array
    like_in_fit: bool = True


def of_array(make: Callable[[], Any], like: Callable[[], Any] | None = None, **more) -> Case:
    return Case(make, like, array=True, **more)


def objects(*values: Any) -> pd.Series:
    return pd.Series([values[j % len(values)] for j in range(NUM)], dtype=object)


def read_only() -> np.ndarray:
    array = ARRAY.copy()
    array.flags.writeable = False
    return array


def nullable() -> pd.DataFrame:
    plain = frame()
    dtypes = {"size": "Float64", "kind": "string", "flag": "boolean", "count": "Int64"}
    plain.loc[5, "size"] = None
    return plain.astype(dtypes)


def nullable_in_numpy() -> pd.DataFrame:
    plain = frame()
    plain.loc[5, "size"] = None
    return plain


DATES = pd.date_range("2020-01-01", periods=NUM)
CASES = {
    "nan_entries": of_array(with_entry(np.nan)),
    "missing_objects": Case(
        with_column("kind", objects("big", None, "small", np.nan, pd.NA, pd.NaT)),
        with_column("kind", objects("big", None, "small", None, None, None)),
    ),
    "infinities": of_array(with_entry(np.inf), with_entry(1e200), like_in_fit=False),
    "huge_entry": of_array(with_entry(1e300)),
    "huge_numbers": of_array(lambda: ARRAY * 1e300),
    "denormals": of_array(lambda: ARRAY * 1e-310),
    "constant_column": Case(with_column("size", 3.0)),
    "all_missing_column": Case(with_column("size", np.nan)),
    "all_infinite_column": Case(with_column("size", np.inf), with_column("size", 1e200)),
    "missing_row": of_array(lambda: np.where(np.arange(NUM)[:, None] == 3, np.nan, ARRAY)),
    "zero_rows": Case(lambda: frame().iloc[:0]),
    "zero_rows_array": of_array(lambda: ARRAY[:0]),
    "one_row": Case(lambda: frame().iloc[:1]),
    "fewer_rows_than_a_batch": Case(lambda: frame().iloc[:3]),
    "one_column": of_array(lambda: ARRAY[:, :1]),
    "ten_thousand_columns": of_array(
        lambda: np.random.default_rng(0).normal(size=(9, 10_000)) // np.repeat([5, 1e-9], 5000)
    ),
    "no_columns": Case(lambda: frame()[[]]),
    "duplicated_names": Case(lambda: frame().set_axis(["size", "kind", "flag", "size"], axis=1)),
    "mixed_names": Case(lambda: frame().set_axis(["size", "kind", "flag", 4], axis=1)),
    "other_names": Case(lambda: frame().set_axis(["a", "b", "c", "d"], axis=1)),
    "numbers_as_names_reordered": of_array(lambda: pd.DataFrame(ARRAY, columns=[2, 1, 0])),
    "reordered_columns": Case(lambda: frame()[["flag", "count", "size", "kind"]]),
    "missing_column": Case(lambda: frame().drop(columns="flag")),
    "additional_column": Case(with_column("more", 1.0)),
    "array_for_a_frame": Case(lambda: frame().to_numpy(), frame),
    "frame_for_an_array": of_array(
        lambda: pd.DataFrame(ARRAY, columns=["a", "b", "c"]), lambda: ARRAY
    ),
    "texts_for_numbers": Case(with_column("size", "abc")),
    "numbers_for_texts": Case(with_column("kind", 3.5), with_column("kind", "never seen")),
    "integers_for_booleans": Case(
        lambda: frame().astype({"flag": "int64"}), frame, like_in_fit=False
    ),
    "fractions_for_integers": Case(with_column("count", 1.5)),
    "unseen_category": Case(with_column("kind", "huge")),
    "mixed_objects": Case(
        with_column("kind", objects(1, "big", None, 2.0, True)),
        with_column("kind", objects("1", "big", None, "2", "True")),
    ),
    "containers": Case(with_column("kind", pd.Series([[1], [2]] * (NUM // 2)))),
    "numbers_as_objects": Case(lambda: frame().astype({"size": object, "count": object}), frame),
    "numbers_as_texts": Case(
        lambda: frame().assign(size=[repr(float(v)) for v in frame()["size"]]), frame
    ),
    "marks_among_numbers": Case(
        lambda: frame().assign(size=[repr(float(v)) for v in frame()["size"][:35]] + 5 * ["?"]),
        lambda: frame().assign(size=[*frame()["size"][:35], *5 * [None]]),
    ),
    "decimal_commas": Case(
        lambda: frame().assign(size=[f"{v:.2f}".replace(".", ",") for v in frame()["size"] + 90.0])
    ),
    "fill_values": Case(lambda: frame().assign(size=[*frame()["size"][:30], *10 * [-999.0]])),
    "row_numbers": Case(with_column("size", range(NUM))),
    "identifiers": Case(with_column("kind", [f"r{n}" for n in range(NUM)])),
    "other_spellings": Case(
        lambda: frame().assign(
            kind=frame()["kind"] + " ", flag=frame()["flag"].map({True: "TRUE", False: "false"})
        ),
        frame,
    ),
    "huge_integers": Case(with_column("size", objects(10**400))),
    "booleans": of_array(lambda: ARRAY > 0.0, lambda: (ARRAY > 0.0).astype(float)),
    "datetimes": Case(with_column("size", DATES.tz_localize("UTC"))),
    "dates_as_texts": Case(with_column("size", DATES.strftime("%Y-%m-%d"))),
    "dates_as_numbers": Case(with_column("size", DATES.strftime("%Y%m%d").astype(int))),
    "timedeltas": Case(
        with_column("size", pd.to_timedelta([1.5, 0.0, 3.0, 7.0] * 10, unit="s")),
        with_column("size", [1.5, 0.0, 3.0, 7.0] * 10),
    ),
    "periods": Case(with_column("size", pd.period_range("2020-01-01", periods=NUM))),
    "python_dates": Case(with_column("size", objects(datetime.date(2020, 1, 1), None))),
    "datetime_array": of_array(lambda: np.full((NUM, 3), np.datetime64("2020-01-01"))),
    "nullable_dtypes": Case(nullable, nullable_in_numpy),
    "categoricals": Case(
        lambda: frame().assign(
            kind=pd.Categorical(frame()["kind"], categories=["small", "big", "unused"]),
            count=pd.Categorical(frame()["count"]),
        ),
        frame,
    ),
    "bytes": Case(
        with_column("kind", objects(b"big", b"small")),
        with_column("kind", objects("big", "small")),
    ),
    "bytes_of_another_encoding": Case(with_column("kind", objects("déjà".encode("latin-1"), b"a"))),
    "half_a_surrogate_pair": Case(with_column("kind", objects("\ud800", "small"))),
    "pandas_sparse": Case(
        lambda: frame().assign(size=pd.arrays.SparseArray(frame()["size"].to_numpy())), frame
    ),
    "sparse_matrix": of_array(lambda: scipy.sparse.csr_matrix(ARRAY)),
    "complex_array": of_array(lambda: ARRAY + 1j),
    "complex_column": Case(with_column("size", ARRAY[:, 0] + 1j)),
    "one_dimension": of_array(lambda: ARRAY[:, 0]),
    "three_dimensions": of_array(lambda: ARRAY[None]),
    "no_table": of_array(lambda: "table.csv"),
    "series": of_array(lambda: pd.Series(ARRAY[:, 0])),
    "structured_array": of_array(lambda: np.zeros(NUM, dtype=[("a", float), ("b", int)])),
    "masked_array": of_array(
        lambda: np.ma.masked_array(ARRAY, ARRAY > 1.0),
        lambda: np.where(ARRAY > 1.0, np.nan, ARRAY),
    ),
    "read_only_array": of_array(read_only, lambda: ARRAY),
    "fortran_array": of_array(lambda: np.asfortranarray(ARRAY), lambda: ARRAY),
    "strided_array": of_array(lambda: np.repeat(ARRAY[::-1], 2, 1)[::-1, ::2], lambda: ARRAY),
    "big_endian_array": of_array(lambda: ARRAY.astype(">f8"), lambda: ARRAY),
    "big_endian_column": Case(
        lambda: frame().assign(size=pd.Series(frame()["size"].to_numpy().astype(">f8"))), frame
    ),
    "float16": of_array(
        lambda: ARRAY.astype(np.float16), lambda: ARRAY.astype(np.float16).astype(float)
    ),
    "small_integers": of_array(
        lambda: (9 * ARRAY).astype(np.int8), lambda: (9 * ARRAY).astype(np.int8).astype(float)
    ),
    "lists": of_array(lambda: ARRAY.tolist(), lambda: ARRAY),
    "lists_of_both": of_array(lambda: [[float(j), "ab"[j % 2]] for j in range(NUM)]),
    "ragged_lists": of_array(lambda: [[1.0, 2.0, 3.0], [4.0, 5.0]]),
    "tensor": of_array(lambda: torch.tensor(ARRAY), lambda: ARRAY),
    "tensor_with_gradient": of_array(
        lambda: torch.tensor(ARRAY, requires_grad=True), lambda: ARRAY
    ),
    "bfloat16_tensor": of_array(
        lambda: torch.tensor(ARRAY).bfloat16(), lambda: torch.tensor(ARRAY).bfloat16().double()
    ),
    "sparse_tensor": of_array(lambda: torch.tensor(ARRAY).to_sparse()),
    "meta_tensor": of_array(lambda: torch.empty(NUM, 3, device="meta")),
    "duplicated_index": Case(lambda: frame().set_axis(NUM * ["same"]), frame),
    "extension_index": Case(
        lambda: frame().set_axis(pd.MultiIndex.from_product([range(8), range(5)])), frame
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def fitted() -> dict[bool, VAEFlowDetector]:
    """A detector fitted on an array, and one on a frame."""
    return {True: VAEFlowDetector(**TINY).fit(ARRAY), False: VAEFlowDetector(**TINY).fit(frame())}


def test_every_row_of_the_page_is_a_case_and_every_case_a_row() -> None:
    assert list(rows("Tables")) == list(CASES)


def assert_unchanged(before: Any, after: Any) -> None:
    if isinstance(before, pd.DataFrame):
        pd.testing.assert_frame_equal(before, after, check_exact=True)
    elif isinstance(before, torch.Tensor):
        assert before.is_meta or torch.equal(before.to_dense(), after.to_dense())
        assert after.grad is None and before.requires_grad == after.requires_grad
    elif scipy.sparse.issparse(before):
        assert (before != after).nnz == 0
    elif isinstance(before, np.ndarray | pd.Series):
        np.testing.assert_array_equal(np.ma.getdata(before), np.ma.getdata(after))
        np.testing.assert_array_equal(np.ma.getmask(before), np.ma.getmask(after))
        assert before.dtype == after.dtype
    else:
        assert before == after


@pytest.mark.parametrize("name", CASES)
def test_fit_and_scores_do_what_the_page_says(name: str, fitted: dict) -> None:
    case = CASES[name]
    in_fit, in_scores = rows("Tables")[name]
    given = case.make()
    before = copy.deepcopy(given)

    def fit_and_score() -> np.ndarray:
        return VAEFlowDetector(**TINY).fit(given).score_samples(given)

    scores = check(in_fit, fit_and_score)
    assert scores is None or (len(scores) == len(given) and np.isfinite(scores).all())
    detector = fitted[case.array]
    scores = check(in_scores, lambda: detector.score_samples(given))
    if scores is not None:
        assert len(scores) == len(given) and np.isfinite(scores).all()
        assert np.isin(predicted(detector, given), [-1, 1]).all()
    if scores is not None and case.like is not None:
        like = detector.score_samples(case.like())
        np.testing.assert_allclose(scores, like, rtol=1e-9)
    assert_unchanged(before, given)


def predicted(detector: VAEFlowDetector, X: Any) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # as the scores had it
        return detector.predict(X)


@pytest.mark.parametrize("times", [1e300, 1e-300, 1e-310])
def test_a_table_has_one_model_in_any_unit(times: float) -> None:
    """Near the ends of the floating-point range as well: denormals have fewer digits."""
    one = VAEFlowDetector(**TINY).fit(ARRAY).score_samples(ARRAY)
    other = VAEFlowDetector(**TINY).fit(times * ARRAY).score_samples(times * ARRAY)
    np.testing.assert_allclose(one, other, rtol=1e-3)


def test_a_number_beside_texts_has_the_text_that_it_has_alone(fitted: dict) -> None:
    """So that the scores of a row do not depend on what else is in its chunk."""
    mixed = VAEFlowDetector(**TINY).fit(with_column("kind", objects(1, "big", 2.5))())
    given = with_column("kind", objects(1.0, "big", True))().head(3)
    alone = [mixed.score_samples(given.iloc[[j]])[0] for j in range(3)]
    np.testing.assert_allclose(alone, mixed.score_samples(given), rtol=1e-12)


def test_the_index_is_kept(fitted: dict) -> None:
    given = frame().set_axis(NUM * ["same"])
    for made in (fitted[False].explain(given), fitted[False].score_details(given)):
        assert made.index.equals(given.index)


@pytest.mark.parametrize("name", ["kind", 7])
def test_views_of_texts_are_texts(name: Any) -> None:
    """pandas holds Arrow's views of texts and computes nothing with them."""
    views = pd.Series(["a", None, "b"], dtype=pd.ArrowDtype(pa.string_view()))
    given = pd.DataFrame({name: views, "size": [1.0, 2.0, 3.0]})
    frame = as_table(given)
    assert frame[name].dtype == "string" and frame[name].dropna().tolist() == ["a", "b"]
    assert [*frame.columns] == [name, "size"] and given[name].dtype == views.dtype


def test_a_warning_stands_at_the_line_that_called() -> None:
    frame = pd.DataFrame({"size": np.arange(40.0) % 7, "id": range(40)})
    with pytest.warns(UserWarning, match="'id' is left out") as caught:
        VAEFlowDetector(num_steps=2, num_samples=2, hidden_dims=(4,)).fit(frame)
    assert {warning.filename for warning in caught} == {__file__}
