"""The folder of ``vaeflow score``: one Parquet data set, whose parts appear whole or not at all.

Chunk n of the input gives ``part-n.parquet``, so a part that is there is finished. What readers of
a data set pass over lies beside the parts: ``_manifest.json`` says of which model and input they
are, ``_rejects/part-n.parquet`` holds the rows of a chunk that could not be scored, and
``_rejects.csv`` all of them.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pyro_vaeflow.files.chunks import Reject
from pyro_vaeflow.inference.fingerprint import package_versions
from pyro_vaeflow.inference.saved_folder import write_whole
from pyro_vaeflow.validation import ConfigError

FORMAT = 1  # of the folder
MANIFEST = "_manifest.json"
REJECTS = "_rejects"
REJECT_SCHEMA = pa.schema(
    [
        ("file", pa.string()),
        ("row", pa.int64()),
        ("column", pa.string()),
        ("reason", pa.string()),
        ("value", pa.string()),
    ]
)


@dataclass(frozen=True)
class Summary:
    """Rows of all parts, and how many parts an earlier call had finished."""

    num_scored: int
    num_flagged: int
    num_rejected: int
    num_parts: int
    num_found: int


def part(out: Path, number: int) -> Path:
    """The file of a chunk's scores, or in ``_rejects`` of its rejects."""
    return out / f"part-{number:06d}.parquet"


def write_part(
    out: Path, number: int, table: pa.Table, rejects: Sequence[Reject], name: str
) -> None:
    """Writes a chunk's rejects, then its scores: a part that is there has its rejects."""
    if rejects:
        listed = [vars(reject) | {"file": name} for reject in rejects]
        rows = pa.Table.from_pylist(listed, REJECT_SCHEMA)
        write_whole(part(out / REJECTS, number), _parquet(rows))
    counts = {"flagged": pa.compute.sum(table["flagged"]).as_py() or 0, "rejected": len(rejects)}
    table = table.replace_schema_metadata({key: str(count) for key, count in counts.items()})
    write_whole(part(out, number), _parquet(table))


def open_folder(
    out: Path, model: str, files: Mapping[str, Path], settings: Mapping[str, Any]
) -> None:
    """Writes what the parts will be of, or makes sure that those there are of the same.

    Args:
        model: its sha256.
        files: by name; their content is read for its sha256.
        settings: all else that decides what is in a part.

    Raises:
        ConfigError: the folder holds something else; names what differs.
    """
    digests = {name: _digest(path) for name, path in files.items()}
    now = {"format": FORMAT, "model": model, "input": digests, "settings": dict(settings)}
    path = out / MANIFEST
    if not path.exists():
        # A process that was killed here has left what starts like this.
        started = (".", REJECTS)
        if out.is_file() or any(not p.name.startswith(started) for p in out.glob("*")):
            raise ConfigError(f"{out} is there and holds no scores; choose a new folder")
        (out / REJECTS).mkdir(parents=True, exist_ok=True)
        text = json.dumps(now | {"versions": package_versions(["pyarrow"])}, indent=1) + "\n"
        write_whole(path, text.encode())
        return
    try:
        had = json.loads(path.read_text())
        if had["format"] != FORMAT:
            raise ConfigError(f"{path} has format {had['format']!r}, this version reads {FORMAT}")
        other = _difference(had, now)
    except (ValueError, LookupError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is damaged ({error!r}); choose a new folder") from error
    if other:
        raise ConfigError(f"{out} holds scores of {other}; choose a new folder, or remove this one")


def finish(out: Path, num_parts: int, num_found: int) -> Summary:
    """Counts the rows of all parts, and joins the rejects in ``_rejects.csv``."""
    footers = [pq.read_metadata(part(out, number)) for number in range(num_parts)]
    flagged, rejected = (
        sum(int(footer.metadata[key]) for footer in footers) for key in (b"flagged", b"rejected")
    )
    for partial in out.rglob(".*.partial"):  # of killed processes: all parts are written
        partial.unlink(missing_ok=True)
    partial = out / f".{REJECTS}.{os.getpid()}.partial"
    rejects = ds.dataset(out / REJECTS, schema=REJECT_SCHEMA, format="parquet")
    with pa.csv.CSVWriter(partial, REJECT_SCHEMA) as writer:
        for batch in rejects.to_batches():
            writer.write_batch(batch)
    os.replace(partial, out / f"{REJECTS}.csv")
    num_scored = sum(footer.num_rows for footer in footers)
    return Summary(num_scored, flagged, rejected, num_parts, num_found)


def _difference(had: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What the parts are of that this call is not about; empty if nothing."""
    if had["model"] != now["model"]:
        return "another model"
    old, new = had["input"], now["input"]
    for name in sorted(old | new):
        if name not in new:
            return f"another input: {name!r} is gone"
        if name not in old:
            return f"another input: {name!r} is new"
        if old[name] != new[name]:
            return f"another input: {name!r} has changed"
    for name, value in now["settings"].items():
        if had["settings"][name] != value:
            return f"another setting: {name}={had['settings'][name]!r}, not {value!r}"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()
