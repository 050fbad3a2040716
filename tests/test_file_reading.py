"""Tables in files: what is read, what is rejected and why, and which rows are trained on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyro_vaeflow.files.csv_header import read_header
from pyro_vaeflow.files.fit import read_rows
from pyro_vaeflow.files.parsing import to_frame
from pyro_vaeflow.files.readers import Reject
from pyro_vaeflow.files.table_files import chunks_of, find_files, read_chunk, read_schemas
from pyro_vaeflow.tables.number_texts import Spelling
from pyro_vaeflow.validation import ConfigError

NUMERIC = {"a": Spelling("."), "kind": None}
FATES = {  # line -> the numbers of its row, or why it is none
    "1.5,x": (1.5, "x"),
    '-2e3,"a ""b"", c"': (-2000.0, 'a "b", c'),
    " +.5 ,x\r": (0.5, "x"),
    "NA,": (None, None),
    " ,é": (None, "é"),
    "3": "Expected 2 columns, got 1",
    "3,4,5": "Expected 2 columns, got 3",
    '3,"x': "quotes are not closed",
    '"3,x': "Expected 2 columns, got 1",
    'x"y,x': "is no number",
    "1_000,x": "is no number",
    "0x10,x": "is no number",
    "inf,x": "is infinite",
    "-Infinity,x": "is infinite",
    "1e999,x": "is infinite",
    "4,x\r5,y": "a return inside the line",
    "": None,
    "  ": None,
}


def fates(path: Path, chunk_rows: int) -> dict[int, object]:
    """Row number -> its values, or the reason for which it was rejected."""
    found: dict[int, object] = {}
    for chunk in chunks_of({path.name: path}, chunk_rows):
        frame, rows = to_frame(read_chunk(chunk, list(NUMERIC)), NUMERIC)
        values = frame.astype(object).where(frame.notna(), None).itertuples(index=False, name=None)
        assert len(frame) == rows.table.num_rows
        found |= dict(zip(rows.numbers.tolist(), values, strict=True))
        found |= {reject.row: reject.reason for reject in rows.rejects}
    return found


@settings(max_examples=40, deadline=None)
@given(
    lines=st.lists(st.sampled_from(sorted(FATES)), max_size=12),
    chunk_rows=st.integers(1, 13),
    ends=st.booleans(),
)
def test_what_becomes_of_a_line_depends_on_the_line_alone(
    tmp_path_factory, lines: list[str], chunk_rows: int, ends: bool
) -> None:
    path = tmp_path_factory.mktemp("lines") / "t.csv"
    path.write_bytes("\n".join(["a,kind", *lines]).encode() + (b"\n" if ends else b""))
    expected = {row: FATES[line] for row, line in enumerate(lines, 1) if FATES[line] is not None}
    assert fates(path, chunk_rows) == expected


def test_a_reject_says_where_it_is_and_what_stands_there(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfa,kind\n1,x\n2,\xff\nmany,y\n3\n")
    (chunk,) = chunks_of(find_files(str(tmp_path)), 10)
    _, rows = to_frame(read_chunk(chunk, ["a", "kind"]), NUMERIC)
    assert rows.rejects == [
        Reject(2, "CSV conversion error to string: invalid UTF8 data", value="2,�"),
        Reject(3, "is no number", "a", "many"),
        Reject(4, "Expected 2 columns, got 1", value="3"),
    ]


@pytest.mark.parametrize("group_size", [1, 3, 50])
@pytest.mark.parametrize("chunk_rows", [1, 4, 7, 100])
def test_parquet_chunks_are_the_rows_in_order(
    tmp_path: Path, group_size: int, chunk_rows: int
) -> None:
    numbers = np.arange(20.0)
    numbers[[3, 11]] = np.inf, np.nan
    frame = pd.DataFrame({"kind": list("abcd") * 5, "other": 0, "a": numbers})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=group_size)
    found = fates(tmp_path / "t.parquet", chunk_rows)
    assert found.pop(4) == "is infinite"
    assert found.pop(12) == (None, "d")
    assert found == {n + 1: (float(n), "abcd"[n % 4]) for n in range(20) if n not in (3, 11)}


def test_files_are_a_file_a_folder_or_a_glob(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "sub/c.csv", "_log.csv", ".old/d.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("a\n1\n")
    assert list(find_files(str(tmp_path))) == ["a.csv", "b.csv", "sub/c.csv"]
    assert list(find_files(str(tmp_path / "a.csv"))) == ["a.csv"]
    assert list(find_files(str(tmp_path / "?.csv"))) == ["a.csv", "b.csv"]
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "e.parquet")
    for data, said in [
        (tmp_path, "has files of .csv, .parquet; give those of one kind"),
        (tmp_path / "notes.txt", "has files of .txt"),
        (tmp_path / "none*", "no csv or Parquet file in"),
    ]:
        with pytest.raises(ConfigError, match=said):
            find_files(str(data))


def test_a_file_without_a_column_or_header_is_refused_by_name(tmp_path: Path) -> None:
    for name, text in {"a": "x,y\n1,2\n", "b": "x,x\n1,2\n", "c": "\n1,2\n"}.items():
        (tmp_path / f"{name}.csv").write_text(text)
    (tmp_path / "d.parquet").write_text("x,y\n1,2\n")
    for name, said in [
        ("a.csv", r"a.csv lacks the columns \['z'\]; it has \['x', 'y'\]"),
        ("b.csv", r"b.csv has the columns \['x'\] more than once"),
        ("c.csv", "c.csv has no header line: the first one is blank"),
        ("d.parquet", "d.parquet is no Parquet file"),
    ]:
        wanted = ["x", "z"] if name == "a.csv" else ["x"]
        with pytest.raises(ConfigError, match=said):
            read_schemas(find_files(str(tmp_path / name)), wanted)


def test_training_rows_are_typed_and_bad_ones_left_out(tmp_path: Path) -> None:
    lines = [f"r{n},{n},{n % 7},{'xyz'[n % 3]}" for n in range(300)]
    lines[10] += ",more"
    lines[20] = "r20,twenty,1,x"
    (tmp_path / "t.csv").write_text("\n".join(["id,size,code,kind", *lines]) + "\n")
    read = {"drop": ["id"], "kinds": {"code": "categorical"}}
    rows = read_rows(str(tmp_path), max_rows=None, **read)
    assert dict(rows.rejected) == {
        "Expected 4 columns, got 5": 1,
        "column 'size' is no number": 1,
    }
    assert (len(rows.frame), rows.num_seen) == (298, 299)
    assert rows.texts == ["code", "kind"]
    assert rows.frame["size"].dtype == np.float64
    first = read_rows(str(tmp_path), max_rows=5, first=True, **read)
    assert first.frame["size"].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ConfigError, match="unknown column to leave out 'label'"):
        read_rows(str(tmp_path), drop=["label"])


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_the_draw_is_uniform_and_the_same_for_any_chunks(tmp_path, monkeypatch, suffix) -> None:
    frame = pd.DataFrame({"a": np.arange(3000.0), "b": 1.0})
    path = tmp_path / f"t.{suffix}"
    frame.to_csv(path, index=False) if suffix == "csv" else frame.to_parquet(path)
    draws = []
    for chunk_rows in (10_000, 170):
        monkeypatch.setattr("pyro_vaeflow.files.fit.CHUNK_ROWS", chunk_rows)
        draws.append(read_rows(str(path), max_rows=200, seed=1).frame["a"])
    pd.testing.assert_series_equal(*draws)
    assert draws[0].is_monotonic_increasing and draws[0].is_unique and len(draws[0]) == 200
    # Uniform: the mean of 200 of 3000 without replacement is within 4 standard errors of 1499.5.
    means = [read_rows(str(path), max_rows=200, seed=s).frame["a"].mean() for s in range(5)]
    assert abs(np.mean(means) - 1499.5) < 4 * 3000 / np.sqrt(12 * 200 * 5)
    other = read_rows(str(path), max_rows=200, seed=2).frame["a"]
    assert set(other) != set(draws[0])


def test_quotes_may_hold_line_breaks_and_a_row_has_its_first_lines_number(tmp_path: Path) -> None:
    lines = [
        "a,kind",
        "1,x",
        '2,"two',
        'lines, one row"',
        "3,y",
        '4,"open',
        '5,"three',
        "",
        'more"',
    ]
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    for chunk_rows in (1, 2, 3, 100):
        assert fates(tmp_path / "t.csv", chunk_rows) == {
            1: (1.0, "x"),
            2: (2.0, "two\nlines, one row"),
            4: (3.0, "y"),
            5: "quotes are not closed",
            6: (5.0, "three\n\nmore"),
        }
    frame = pd.DataFrame({"a": [1.0, 2.0], "kind": ['he said "no,\n\nno"', "x\r\ny"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    found = fates(tmp_path / "t.csv", 1)
    assert [values[0] for values in found.values()] == [1.0, 2.0]


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators_are_seen_in_the_header_and_told(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "T.CSV"
    path.write_text(f'a{separator}kind\n1,5{separator}x\n2{separator}"y{separator}z"\n')
    schemas = read_schemas(find_files(str(tmp_path)))
    assert schemas["T.CSV"].names == ["a", "kind"]
    with pytest.warns(UserWarning, match="between its fields"):
        (chunk,) = chunks_of(find_files(str(tmp_path)), 10)
    frame, _ = to_frame(read_chunk(chunk, ["a", "kind"]), {"a": Spelling(","), "kind": None})
    assert frame.values.tolist() == [[1.5, "x"], [2.0, f"y{separator}z"]]


@pytest.mark.parametrize(
    ("content", "names", "values"),
    [
        ("a, EUR;kind\n1;x\n2;y, z\n3;x\n", ["a, EUR", "kind"], ["x", "y, z", "x"]),
        ("sep=;\r\na;kind\r\n1;x\r\n", ["a", "kind"], ["x"]),
        ('"a;b",kind\n1,x\n', ["a;b", "kind"], ["x"]),
        ("a,größe\n1,süß\n2,weiß\n", ["a", "größe"], ["süß", "weiß"]),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_lines_say_what_separates_fields_and_how_they_are_encoded(
    tmp_path: Path, content: str, names: list[str], values: list[str]
) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content.encode("cp1252"))
    assert read_schemas(find_files(str(path)))["t.csv"].names == names
    (chunk,) = chunks_of(find_files(str(path)), 10)
    assert read_chunk(chunk, names).table[names[1]].to_pylist() == values


def test_a_header_of_any_length_is_read_whole(tmp_path: Path) -> None:
    names = [f"{'long' * 8} {number}" for number in range(9000)]
    path = tmp_path / "wide.csv"
    path.write_text(",".join(names) + "\n" + ",".join(["1.5"] * 9000) + "\n")
    header = read_header(path)
    assert header.names == names and header.size == path.read_bytes().index(b"\n") + 1


@pytest.mark.parametrize("content", [b"# made by me\na,b\n1,2\n3,4\n5,6\n", b"\xff\xfea\0\n\0"])
def test_lines_before_a_header_and_other_encodings_are_refused(tmp_path: Path, content) -> None:
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(
        ConfigError, match="has no header line: (the first one is '# made|it is no)"
    ):
        read_schemas(find_files(str(tmp_path)))


def test_compressed_files_are_the_same_rows(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": np.arange(50.0), "kind": list("ab") * 25})
    frame.to_csv(tmp_path / "t.csv", index=False)
    for end, kind in (("bz2", "bz2"), ("gz", "gzip"), ("xz", "xz")):
        path = tmp_path / f"z.csv.{end}"
        frame.to_csv(path, index=False)
        assert fates(path, 7) == fates(tmp_path / "t.csv", 50)
        assert list(find_files(str(tmp_path))) == ["t.csv", path.name]
        path.write_bytes(path.read_bytes()[:-20])
        with pytest.raises(ConfigError, match=f"z.csv.{end} is no {kind} file that can be read"):
            fates(path, 7)
        path.unlink()


def test_what_a_folder_holds_beside_is_named(tmp_path: Path) -> None:
    for name in ("year=2024/a.parquet", "b.PARQUET"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        pd.DataFrame({"a": [1.0]}).to_parquet(tmp_path / name)
    (tmp_path / "b.xlsx").touch()
    with pytest.warns(UserWarning) as said:
        assert list(find_files(str(tmp_path))) == ["b.PARQUET", "year=2024/a.parquet"]
    texts = " ".join(str(one.message) for one in said)
    assert "['b.xlsx']" in texts and "'year=2024' are no columns" in texts


def test_numbers_and_dates_in_texts_are_read_as_the_column_spells_them(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    sizes = [f"{v:,.1f}" for v in draw.normal(5000.0, 900.0, 200)]
    days = pd.Series(pd.date_range("2024-01-01", periods=200)).dt.strftime("%d.%m.%Y").tolist()
    sizes[3], sizes[150], days[5], sizes[60:70] = "?", "many", "soon", 10 * ["n.d."]
    frame = pd.DataFrame({"size": sizes, "day": days})
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = read_rows(str(tmp_path))
    assert dict(rows.rejected) == {
        "column 'size' is no number": 1,
        "column 'day' is no date": 1,
    }
    assert len(rows.frame) == 198 and rows.frame["size"].tolist()[0] == sizes[0]


def test_parquet_columns_of_other_types_and_of_an_index(tmp_path: Path) -> None:
    kinds = ["x", "y"] * 10
    (tmp_path / "in").mkdir()
    frame = pd.DataFrame({"a": range(20), "kind": kinds})
    frame[frame["a"] != 3].to_parquet(tmp_path / "in/1.parquet")  # has an index
    view = pa.table({"a": pa.array(np.arange(20.0)), "kind": pa.array(kinds, pa.string_view())})
    pq.write_table(view, tmp_path / "in/2.parquet")
    frame.astype({"a": "int8", "kind": "category"}).to_parquet(tmp_path / "in/3.parquet")
    with pytest.warns(UserWarning, match="'__index_level_0__'.* index of a pandas frame"):
        rows = read_rows(str(tmp_path / "in"))
    assert rows.frame["kind"].tolist() == kinds[:3] + kinds[4:] + kinds + kinds
    assert rows.frame["a"].sum() == 3 * 190 - 3 and rows.texts == ["kind"]


def test_an_empty_column_and_a_title_above_the_header_are_told_of(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b\n" + "1.5,\n" * 9)
    assert read_rows(str(tmp_path / "t.csv")).frame["b"].isna().all()
    (tmp_path / "t.csv").write_text("Report of 2024\n\na,b\n" + "1.5,x\n" * 9)
    with pytest.raises(
        ConfigError, match="the first one is 'Report of 2024', and others have 2 fi"
    ):
        read_rows(str(tmp_path / "t.csv"))
