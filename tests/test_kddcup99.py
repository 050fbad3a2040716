"""KDD Cup 99: what the published file holds, and what happens when it is not that file."""

import gzip
import hashlib
import io
import os
import re

import pandas as pd
import pytest
from sklearn.model_selection import train_test_split
from sklearn.utils import Bunch

from pyro_vaeflow.datasets import kddcup99
from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.splits import Dataset, holdout_split
from pyro_vaeflow.tables.table_encoder import TableEncoder

# Three rows in the published form: normal, an attack, an attack with another service.
ROWS = """\
0,tcp,http,SF,181,5450,0,0,0,0,0,1,0,0,0,0,0,0,0,0,0,0,8,8,0.00,0.00,0.00,0.00,1.00,0.00,0.00,\
9,9,1.00,0.00,0.11,0.00,0.00,0.00,0.00,0.00,normal.
0,icmp,ecr_i,SF,1032,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,0,511,511,0.00,0.00,0.00,0.00,1.00,0.00,0.00,\
255,255,1.00,0.00,1.00,0.00,0.00,0.00,0.00,0.00,smurf.
5,tcp,smtp,S0,10,0,1,0,0,0,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1.00,1.00,0.00,0.00,1.00,0.00,0.00,\
7,1,0.14,0.29,0.14,0.00,1.00,1.00,0.00,0.00,neptune.
"""


@pytest.fixture
def write(tmp_path):
    """Writes content as the data file; returns the folder to pass as data_home."""

    def write_file(content: bytes):
        (tmp_path / kddcup99.FILENAME).write_bytes(content)
        return tmp_path

    return write_file


@pytest.fixture
def three_rows(monkeypatch):
    """Makes the loader take ROWS for the published file."""
    monkeypatch.setattr(kddcup99, "NUM_ROWS", 3)
    monkeypatch.setattr(kddcup99, "SHA256", hashlib.sha256(ROWS.encode()).hexdigest())


def refusal(home, error=ValueError):
    with pytest.raises(error) as caught:
        load_kddcup99(home)
    message = str(caught.value)
    # Each refusal names the file, where to get it and where to put it.
    for part in (kddcup99.FILENAME, "UCI KDD archive", "data_home", "VAEFLOW_DATA"):
        assert part in message
    return message


def test_columns_have_names_kinds_and_labels(write, three_rows):
    data = load_kddcup99(write(gzip.compress(ROWS.encode())))
    assert data.X.shape == (3, 41)
    assert data.y.tolist() == [1, 0, 0]
    assert data.labels.tolist() == ["normal.", "smurf.", "neptune."]
    assert data.X.loc[2, ["duration", "src_bytes", "dst_host_count"]].tolist() == [5, 10, 7]
    assert data.X["service"].tolist() == ["http", "ecr_i", "smtp"]
    assert data.X["dst_host_same_srv_rate"].tolist() == [1.0, 1.0, 0.14]
    categorical = set(data.X.select_dtypes("category"))
    # "symbolic" in the archive's kddcup.names
    symbolic = "protocol_type service flag land logged_in is_host_login is_guest_login"
    assert categorical == set(symbolic.split())


def test_missing_file_is_named_and_nothing_is_downloaded(tmp_path, monkeypatch):
    monkeypatch.setattr(
        kddcup99.sklearn.datasets, "fetch_kddcup99", lambda **_: pytest.fail("downloaded")
    )
    assert str(tmp_path) in refusal(tmp_path, FileNotFoundError)
    monkeypatch.setenv("VAEFLOW_DATA", str(tmp_path / "nowhere"))
    assert "nowhere" in refusal(None, FileNotFoundError)


def test_argument_comes_before_environment(write, three_rows, monkeypatch):
    monkeypatch.setenv("VAEFLOW_DATA", "/does/not/exist")
    assert len(load_kddcup99(write(gzip.compress(ROWS.encode())))) == 3


@pytest.mark.parametrize(
    ("content", "whys"),
    [
        (gzip.compress(ROWS.encode())[:-20], ["truncated"]),
        (b"", ["other content"]),
        (ROWS.encode(), ["not a sound gzip file"]),
        (gzip.compress(ROWS.encode())[:40] + b"\0" * 90, ["not a sound gzip file", "truncated"]),
        (gzip.compress(b"1,2,3\n4,5,6\n"), ["42 columns and .*: 2 rows, 3 columns"]),
        (gzip.compress(ROWS.encode() * 2), ["of 3 rows, .*: 6 rows, 42 columns"]),
        (gzip.compress(ROWS.replace("smurf.", "smurg.").encode()), ["other content"]),
    ],
    ids=["truncated", "empty", "not gzip", "damaged", "other table", "more rows", "other content"],
)
def test_another_file_under_the_name_is_refused(write, three_rows, content, whys):
    message = refusal(write(content))
    assert any(re.search(why, message) for why in whys), message


def test_small_archive_cannot_fill_the_memory(write, monkeypatch):
    monkeypatch.setattr(kddcup99, "NUM_BYTES", 10_000)
    text = (",".join("0" * 42) + "\n").encode() * 100_000
    assert "10001 bytes read" in refusal(write(gzip.compress(text)))


def fetched(**_):
    """ROWS as ``fetch_kddcup99`` gives them: an object array with text as bytes."""
    frame = pd.read_csv(io.StringIO(ROWS), header=None)
    array = frame.astype(object).to_numpy()
    for j in (1, 2, 3, 41):
        array[:, j] = [text.encode() for text in array[:, j]]
    return Bunch(data=array[:, :41], target=array[:, 41])


def test_download_gives_the_same_table_as_the_file(write, three_rows, monkeypatch):
    from_file = load_kddcup99(write(gzip.compress(ROWS.encode())))
    monkeypatch.delenv("VAEFLOW_DATA", raising=False)
    monkeypatch.setattr(kddcup99.sklearn.datasets, "fetch_kddcup99", fetched)
    downloaded = load_kddcup99()
    pd.testing.assert_frame_equal(downloaded.X, from_file.X)
    assert downloaded.y.tolist() == from_file.y.tolist()
    assert downloaded.labels.tolist() == from_file.labels.tolist()


def test_download_that_fails_or_is_short_says_what_to_do(monkeypatch):
    monkeypatch.delenv("VAEFLOW_DATA", raising=False)

    def offline(**_):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(kddcup99.sklearn.datasets, "fetch_kddcup99", offline)
    assert "no route to host" in refusal(None, FileNotFoundError)
    monkeypatch.setattr(kddcup99.sklearn.datasets, "fetch_kddcup99", fetched)
    assert "(3, 41)" in refusal(None)


@pytest.fixture(scope="module")
def published() -> Dataset:
    if not os.environ.get("VAEFLOW_DATA"):
        pytest.skip("VAEFLOW_DATA does not name a folder with the published KDD Cup file")
    return load_kddcup99()


def test_published_file_and_the_papers_split(published):
    assert published.X.shape == (494_021, 41)
    assert int(published.y.sum()) == 97_278
    split = holdout_split(published)
    assert (len(split.X_train), len(split.X_test)) == (317_291, 98_805)
    assert int(split.y_test.sum()) == 19_353
    # The same rows as the paper's call, which splits the table itself.
    _, X_test, _, y_test = train_test_split(
        published.X, published.y, test_size=0.2, random_state=42
    )
    assert split.X_test.index.equals(X_test.index)
    assert (split.y_test == y_test).all()
    assert (published.y[split.X_train.index] == 0).all()


def test_published_file_encodes_to_115_features(published):
    # 3 + 60 + 11 levels of protocol, service and flag among the training inliers, 2 + 2 + 1 + 2 of
    # the binary symbolic columns (is_host_login is always 0), and 34 numeric columns.
    split = holdout_split(published)
    encoder = TableEncoder().fit(split.X_train)
    x = encoder.transform(split.X_test)
    assert x.shape == (98_805, 115)
    assert len(encoder.feature_names_) == 115
    assert x.min() >= 0.0 and x.max() <= 1.0
