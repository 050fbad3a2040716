"""Scores of the rows of files, written to a folder chunk after chunk, in bounded memory."""

import hashlib
import math
import warnings
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from tqdm.auto import tqdm

from pyro_vaeflow.detector.drifting import Drift
from pyro_vaeflow.detector.estimator import VAEFlowDetector
from pyro_vaeflow.files.parsing import Spellings, check_types, to_frame
from pyro_vaeflow.files.readers import Chunk
from pyro_vaeflow.files.scores_folder import (
    MANIFEST,
    Summary,
    finish,
    open_folder,
    part,
    write_part,
)
from pyro_vaeflow.files.table_files import (
    chunks_of,
    find_files,
    read_chunk,
    read_schemas,
    reader_of,
)
from pyro_vaeflow.inference.parameters import check_device
from pyro_vaeflow.inference.saved_folder import CheckpointError
from pyro_vaeflow.validation import ConfigError, check_names, check_size
from pyro_vaeflow.workers import DEATHS, as_ended, died, workers

DRIFT_ROWS, DRIFT_CHUNKS = 1000, 16  # that are compared with rows kept from training
TOP = 3  # contributing columns that are named
NUMBERS = ("anomaly_score", "stderr", "ess", "khat")
COLUMNS = {
    **dict.fromkeys(NUMBERS, pa.float64()),
    "flagged": pa.bool_(),
    **{f"column_{rank}": pa.string() for rank in range(1, TOP + 1)},
    **{f"nats_{rank}": pa.float64() for rank in range(1, TOP + 1)},
}
EXPLAIN = ("all", "flagged", "none")


@dataclass(frozen=True)
class Job:
    """All that a process must know to score a chunk, beside the chunk."""

    model: str
    digest: str
    out: str
    row_id: str | None
    explain: str
    device: str = "cpu"


def score_files(
    model: str | Path,
    data: str,
    out: str | Path,
    *,
    row_id: str | None = None,
    explain: str = "all",
    chunk_rows: int = 65_536,
    jobs: int = 1,
    dask: str | None = None,
    device: str = "cpu",
    progress: bool = False,
) -> Summary:
    """Scores csv or Parquet files with a saved detector; resumes what an earlier call left.

    The parts have the rows of `data` in their order: ``file`` and ``row``, the row id,
    ``anomaly_score`` (nats: the negative of `VAEFlowDetector.score_samples`), ``stderr``, ``ess``
    and ``khat`` of the log evidence, ``flagged``, and the columns that add most to -log p(x)
    with their nats: ``column_1``, ``nats_1`` and so on.

    Args:
        model: the folder of `VAEFlowDetector.save`.
        data: a file, a folder or a glob, which finds nothing in `out`.
        out: the folder of the scores, a new one or that of an earlier call with the same arguments.
        row_id: a column to pass through.
        explain: whether columns are named of ``all`` rows, of the ``flagged`` or of ``none``.
        chunk_rows: rows a part; memory grows with it.
        jobs: worker processes.
        dask: a Dask scheduler's address or file in place of `jobs`; workers see the same paths.
        device: where torch scores, ``cuda`` say; on Dask, of the workers.

    Raises:
        ConfigError: a file, its columns or the device do not suit, or `out` holds the scores of
            another model, input or setting.
        ValueError: a size or `explain` is out of range.
        OSError: a file cannot be read or written, processes die again and again at one chunk, or a
            Dask scheduler has gone; the same call resumes.
    """
    # Absolute: workers may be in another folder.
    model, out = Path(model).resolve(), Path(out).resolve()
    check_size("chunk_rows", chunk_rows)
    check_size("jobs", jobs)
    check_names([explain], EXPLAIN, "explain")
    if dask is None:
        check_device(device)
    scored = out if (out / MANIFEST).exists() else None  # by an earlier call
    files = {name: path.resolve() for name, path in find_files(data, but=scored).items()}
    if Path(data).is_dir() and out.is_relative_to(Path(data).resolve()):
        raise ConfigError(f"{out} is inside the input {data}; choose a folder outside it")
    job = Job(str(model), digest_of(model), str(out), row_id, explain, device)
    check_columns(job, files)
    before = {name: _stamp(path) for name, path in files.items()}
    settings = {"id": row_id, "explain": explain, "chunk_rows": chunk_rows}
    open_folder(out, job.digest, files, settings)
    chunks = list(chunks_of(files, chunk_rows))
    todo = {number: c for number, c in enumerate(chunks) if not part(out, number).exists()}
    total, left = (sum(c.num_rows for c in some) for some in (chunks, todo.values()))
    scale: dict[str, Any] = {"total": total, "initial": total - left, "unit_scale": True}
    with tqdm(desc="score", unit="row", disable=not progress, **scale) as bar:
        for num_rows in _scored(job, todo, jobs, dask):
            bar.update(num_rows)
    for name, path in files.items():
        if _stamp(path) != before[name]:
            raise ConfigError(f"{path} changed while it was scored; remove {out} and score again")
    done = finish(out, len(chunks), len(chunks) - len(todo))
    here = job if dask is None else replace(job, device="cpu")  # that workers have a GPU or not
    return replace(done, drift=_drift(here, chunks))


def _drift(job: Job, chunks: Sequence[Chunk]) -> Drift | None:
    """How rows spread over all chunks differ from those kept from training; None if none were."""
    detector = load(job.model, job.digest).set_params(device=job.device)
    spellings, num_rows = spellings_of(detector), sum(chunk.num_rows for chunk in chunks)
    if not len(detector.calibration_scores_) or not num_rows:
        return None
    # As many rows of each chunk, of no more chunks than that takes time.
    num_chunks = min(len(chunks), max(DRIFT_CHUNKS, DRIFT_ROWS * len(chunks) // num_rows))
    chosen = [chunks[n * len(chunks) // num_chunks] for n in range(num_chunks)]
    frames = [to_frame(read_chunk(chunk, list(spellings)), spellings)[0] for chunk in chosen]
    frames = [f.iloc[:: math.ceil(len(f) * num_chunks / DRIFT_ROWS) or 1] for f in frames]
    if not sum(map(len, frames)):
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return detector.drift(pd.concat(frames, ignore_index=True))


def score_chunk(job: Job, number: int, chunk: Chunk) -> int:
    """Scores one chunk and writes its part; returns the rows that it had, good and bad."""
    detector = load(job.model, job.digest).set_params(device=job.device)
    spellings = spellings_of(detector)
    rows = read_chunk(chunk, _columns(spellings, job.row_id))
    frame, rows = to_frame(rows, spellings)
    columns: dict[str, Any] = {"file": pa.array([chunk.name] * len(frame), pa.string())}
    columns["row"] = pa.array(rows.numbers, pa.int64())
    if job.row_id is not None:
        columns[job.row_id] = rows.table[job.row_id]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one for all chunks comes at the end
        scores = _scores(detector, frame, job.explain) if len(frame) else {}
        shares = detector.shares(frame) if len(frame) else []
    columns |= {name: pa.array(scores.get(name, []), kind) for name, kind in COLUMNS.items()}
    write_part(Path(job.out), number, pa.table(columns), rows.rejects, chunk.name, shares)
    return chunk.num_rows


def digest_of(model: Path) -> str:
    """The sha256 of a saved detector: that of the file which has those of all others."""
    path = model / "detector.json"
    if not path.is_file():
        raise ConfigError(f"no model in {model}; give a folder that vaeflow fit wrote")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=1)
def load(model: str, digest: str) -> VAEFlowDetector:
    """The saved detector, kept from one chunk of a process to the next."""
    try:
        detector = VAEFlowDetector.load(model)
    except (CheckpointError, FileNotFoundError) as error:
        raise ConfigError(f"model: {error}") from error
    if digest_of(Path(model)) != digest:
        raise ConfigError(f"the model in {model} changed while it was used; score again")
    return detector.set_params(progress=False)


def spellings_of(detector: VAEFlowDetector) -> Spellings:
    """The columns that a detector needs, and how it reads numbers and dates there."""
    if not hasattr(detector, "feature_names_in_"):
        raise ConfigError("the model was fitted to an array; fit it to a table with column names")
    columns = detector.encoder_.columns_
    return {c.name: None if c.kind == "categorical" else c.texts for c in columns}


def check_columns(job: Job, files: Mapping[str, Path]) -> None:
    """Refuses files that lack a column, or have it with values of another type."""
    if job.row_id in ("file", "row", *COLUMNS):
        raise ConfigError(f"id: the scores have a column {job.row_id!r} of their own; rename it")
    spellings = spellings_of(load(job.model, job.digest))
    for name, schema in read_schemas(files, _columns(spellings, job.row_id)).items():
        if reader_of(files[name]).is_typed:
            check_types(schema, spellings, files[name])


def _scores(detector: VAEFlowDetector, frame: pd.DataFrame, explain: str) -> dict[str, Any]:
    """The columns of scores, ``(num_data,)`` each."""
    details = detector.score_details(frame)
    score = details["score"].to_numpy()
    flagged = score < detector.offsets(frame)
    details["anomaly_score"] = -score
    shown = {"all": np.ones_like(flagged), "flagged": flagged, "none": np.zeros_like(flagged)}
    return {
        **{name: details[name].to_numpy() for name in NUMBERS},
        "flagged": flagged,
        **_top_columns(detector, frame, shown[explain]),
    }


def _top_columns(
    detector: VAEFlowDetector, frame: pd.DataFrame, shown: np.ndarray
) -> dict[str, np.ndarray]:
    """The columns that add most nats to each row that is shown; None for the others."""
    names, values = np.full((2, TOP, len(frame)), None, dtype=object)
    if shown.any():
        nats = detector.explain(frame[shown])
        order = np.argsort(-nats.to_numpy(), axis=1, kind="stable")[:, :TOP]
        rank = slice(order.shape[1])
        names[rank, shown] = nats.columns.to_numpy(dtype=object)[order].T
        values[rank, shown] = np.take_along_axis(nats.to_numpy(), order, axis=1).T
    columns = {f"column_{rank + 1}": names[rank] for rank in range(TOP)}
    return columns | {f"nats_{rank + 1}": values[rank] for rank in range(TOP)}


def _scored(job: Job, todo: Mapping[int, Chunk], jobs: int, dask: str | None) -> Iterator[int]:
    """Scores chunks in this process, in others or on a cluster; yields the rows of each."""
    with workers(jobs, dask) as executor:

        def submit(number: int) -> Future:
            return executor.submit(score_chunk, job, number, todo[number])

        for number, future in as_ended(deque(todo), submit):
            try:
                yield future.result()
            except Exception as error:
                if not died(error):
                    raise
                chunk = todo[number]
                raise ChildProcessError(
                    f"worker processes died {DEATHS} times or more at the {chunk.num_rows} rows of "
                    f"{chunk.name} from row {chunk.row}: killed, or out of memory; try fewer jobs "
                    "or chunk_rows"
                ) from error


def _columns(spellings: Spellings, row_id: str | None) -> list[str]:
    return list(dict.fromkeys([*spellings, *([] if row_id is None else [row_id])]))


def _stamp(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns
