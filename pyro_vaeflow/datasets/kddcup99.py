"""KDD Cup 1999, the 10% file: 494,021 connections; the 97,278 `normal.` ones are the anomalies."""

import gzip
import hashlib
import io
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import sklearn.datasets

from pyro_vaeflow.datasets.registry import Folder, advice, bad_file, data_folder, require
from pyro_vaeflow.datasets.splits import Dataset

FILENAME = "kddcup.data_10_percent.gz"
SOURCE = "the UCI KDD archive (http://kdd.ics.uci.edu/databases/kddcup99/kddcup99.html)"
NUM_ROWS, NUM_COLUMNS, NUM_BYTES = 494_021, 42, 74_889_749
# Of the text inside, so that a file compressed anew is still recognised.
SHA256 = "f8c8267ebcd9c0ed1fd7d6277fe5bfff8732e9b7db8e61b873542b2a534b6f9a"

# Names, order and kinds from the archive's kddcup.names.
COLUMNS = tuple(
    """
duration protocol_type service flag src_bytes dst_bytes land wrong_fragment urgent hot
num_failed_logins logged_in num_compromised root_shell su_attempted num_root num_file_creations
num_shells num_access_files num_outbound_cmds is_host_login is_guest_login count srv_count
serror_rate srv_serror_rate rerror_rate srv_rerror_rate same_srv_rate diff_srv_rate
srv_diff_host_rate dst_host_count dst_host_srv_count dst_host_same_srv_rate dst_host_diff_srv_rate
dst_host_same_src_port_rate dst_host_srv_diff_host_rate dst_host_serror_rate
dst_host_srv_serror_rate dst_host_rerror_rate dst_host_srv_rerror_rate
""".split()
)
SYMBOLIC = "protocol_type service flag land logged_in is_host_login is_guest_login".split()
DTYPES = {
    name: "category" if name in SYMBOLIC else "float64" if name.endswith("_rate") else "int64"
    for name in COLUMNS
}


def load_kddcup99(data_home: Folder = None) -> Dataset:
    """Returns KDD Cup 99 (10%): ``X`` (494021, 41), ``y`` 1 for `normal.`, ``labels`` attack types.

    Attacks are four fifths of the rows, so this benchmark takes them as inliers and `normal.`
    connections as anomalies. The seven columns that the archive calls symbolic are pandas
    categoricals; their category lists come from the whole file, so learn levels from the training
    rows instead. Without a folder the data comes from ``sklearn.datasets.fetch_kddcup99``, which
    downloads it.

    Args:
        data_home: folder of ``kddcup.data_10_percent.gz``; default ``$VAEFLOW_DATA``.

    Raises:
        FileNotFoundError: when a folder is named and the file is not there, or nothing is named and
            the download fails.
        ValueError: when the file is truncated, has another shape or other content.
    """
    if data_folder(data_home) is None:
        frame = _download()
    else:
        frame = _read(require(FILENAME, data_home, SOURCE))
    labels = frame.pop("label").to_numpy(dtype=object)
    return Dataset("kddcup99", frame, (labels == "normal.").astype(np.int64), labels)


def _read(path: Path) -> pd.DataFrame:
    try:
        with gzip.open(path) as file:
            # One byte more than the published file: enough to see that a file is longer, and no
            # small archive can expand to fill the memory.
            text = file.read(NUM_BYTES + 1)
    except EOFError as error:
        raise bad_file(path, "is truncated (its gzip stream ends early)", SOURCE) from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise bad_file(path, f"is not a sound gzip file ({error})", SOURCE) from error
    if hashlib.sha256(text).hexdigest() != SHA256:
        columns, rows = text.split(b"\n", 1)[0].count(b",") + 1, len(text.splitlines())
        why = (
            f"has other content than the published file of {NUM_ROWS} rows, {NUM_COLUMNS} columns "
            f"and {NUM_BYTES} bytes: {rows} rows, {columns} columns, {len(text)} bytes read"
        )
        raise bad_file(path, why, SOURCE)
    return pd.read_csv(
        io.BytesIO(text),
        header=None,
        names=[*COLUMNS, "label"],
        dtype={**DTYPES, "label": "category"},
        low_memory=False,
    )


def _download() -> pd.DataFrame:
    try:
        bunch = sklearn.datasets.fetch_kddcup99(percent10=True)
    except OSError as error:  # urllib's errors are OSErrors
        raise FileNotFoundError(
            f"{FILENAME} could not be downloaded by scikit-learn ({error}). "
            + advice(FILENAME, SOURCE)
        ) from error
    if bunch.data.shape != (NUM_ROWS, NUM_COLUMNS - 1):
        raise ValueError(
            f"scikit-learn's fetch_kddcup99 gave a table of shape {bunch.data.shape}, not "
            f"{(NUM_ROWS, NUM_COLUMNS - 1)}; empty its cache with "
            f"sklearn.datasets.clear_data_home(). {advice(FILENAME, SOURCE)}"
        )
    frame = pd.DataFrame(bunch.data, columns=list(COLUMNS)).assign(label=bunch.target)
    for name in ("protocol_type", "service", "flag", "label"):  # bytes there, text in the file
        frame[name] = frame[name].map(bytes.decode)
    return frame.astype({**DTYPES, "label": "category"})
