"""The folder of ``vaeflow score``: one Parquet data set, whose parts appear whole or not at all.

Chunk n of the input gives ``part-n.parquet``, so a part that is there is finished. What readers of
a data set pass over lies beside the parts: ``_manifest.json`` says of which model and input they
are, ``_rejects/part-n.parquet`` holds the rows of a chunk that could not be scored, and
``_rejects.csv`` all of them.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from pyro_vaeflow.detector.drifting import Drift
from pyro_vaeflow.escaping import csv_text
from pyro_vaeflow.files.readers import Reject
from pyro_vaeflow.inference.saved_folder import package_versions
from pyro_vaeflow.plain_files import inside, read_json, write_whole
from pyro_vaeflow.tables.reading import Shares
from pyro_vaeflow.validation import ConfigError

FORMAT = 1  # of the folder
MANIFEST = "_manifest.json"
REJECTS = "_rejects"
TEXT = pa.string()
REJECT_SCHEMA = pa.schema(
    {"file": TEXT, "row": pa.int64(), "column": TEXT, "reason": TEXT, "value": TEXT}
)


@dataclass(frozen=True)
class Summary:
    """Rows of all parts, how many of these were there, and what speaks against the scores."""

    num_scored: int
    num_flagged: int
    num_rejected: int
    num_parts: int
    num_resumed: int
    strange: tuple[Shares, ...] = ()
    drift: Drift | None = None


def part(out: Path, number: int) -> Path:
    """The file of a chunk's scores, or in ``_rejects`` of its rejects."""
    return out / f"part-{number:06d}.parquet"


def write_part(
    out: Path,
    number: int,
    table: pa.Table,
    rejects: Sequence[Reject],
    name: str,
    shares: Sequence[Shares] = (),
) -> None:
    """Writes a chunk's rejects, then its scores: a part that is there has its rejects."""
    if rejects:
        rows = [vars(reject) | {"file": name} for reject in rejects]
        _write(part(out / REJECTS, number), pa.Table.from_pylist(rows, REJECT_SCHEMA))
    counts = {"flagged": pc.sum(table["flagged"]).as_py() or 0, "rejected": len(rejects)}
    metadata = {key: str(count) for key, count in counts.items()}
    metadata["strange"] = json.dumps([share for share in shares if share.strange])
    _write(part(out, number), table.replace_schema_metadata(metadata))


def open_folder(
    out: Path, model: str, files: Mapping[str, Path], settings: Mapping[str, Any]
) -> None:
    """Writes what the parts will be of; of parts that are there, refuses what is not the same.

    Args:
        model: its sha256.
        files: by name; their content is read for its sha256.
        settings: all else that decides what is in a part.
    """
    digests = {name: _digest(path) for name, path in files.items()}
    manifest = {"format": FORMAT, "model": model, "input": digests, "settings": dict(settings)}
    path = out / MANIFEST
    if not path.exists():
        # A process that was killed here has left what starts like this.
        started = (".", REJECTS)
        if out.is_file() or any(not p.name.startswith(started) for p in out.glob("*")):
            raise ConfigError(f"{out} is there and holds no scores; choose a new folder")
        inside(out / REJECTS, out).mkdir(parents=True, exist_ok=True)
        manifest["versions"] = package_versions(["pyarrow"])
        write_whole(path, (json.dumps(manifest, indent=1) + "\n").encode())
        return
    try:
        earlier = read_json(path)
        version, difference = earlier["format"], _difference(earlier, manifest)
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}); choose a new folder") from error
    if version != FORMAT:
        raise ConfigError(f"{path} has format {version!r}, this version reads {FORMAT}")
    if difference:
        raise ConfigError(
            f"{out} holds scores of {difference}; choose a new folder, or remove this one"
        )


def finish(out: Path, num_parts: int, num_resumed: int) -> Summary:
    """Counts the rows of all parts, and joins the rejects in ``_rejects.csv``."""
    footers = [pq.read_metadata(part(out, number)) for number in range(num_parts)]
    num_flagged, num_rejected = (
        sum(int(footer.metadata[key]) for footer in footers) for key in (b"flagged", b"rejected")
    )
    rejects = ds.dataset(out / REJECTS, schema=REJECT_SCHEMA, format="parquet").to_batches()
    head = ",".join(REJECT_SCHEMA.names) + "\n"
    lines = (csv_text(batch.to_pandas(), header=False) for batch in rejects)
    write_whole(out / f"{REJECTS}.csv", (text.encode() for text in chain([head], lines)))
    for partial in out.rglob(".*.partial"):  # of killed processes: all files are written
        partial.unlink(missing_ok=True)
    num_scored = sum(footer.num_rows for footer in footers)
    strange: dict[str, Shares] = {}  # as in the first chunk that has it
    for footer in footers:
        for values in json.loads(footer.metadata.get(b"strange", b"[]")):
            strange.setdefault(values[0], Shares(*values))
    return Summary(
        num_scored, num_flagged, num_rejected, num_parts, num_resumed, tuple(strange.values())
    )


def _difference(earlier: Mapping[str, Any], manifest: Mapping[str, Any]) -> str:
    """What the parts are of that this call is not about; empty if nothing."""
    if earlier["model"] != manifest["model"]:
        return "another model"
    old, new = earlier["input"], manifest["input"]
    for name in sorted(old | new):
        if old.get(name) != new.get(name):
            change = "is gone" if name not in new else "has changed" if name in old else "is new"
            return f"another input: {name!r} {change}"
    for name, value in manifest["settings"].items():
        if earlier["settings"][name] != value:
            return f"another setting: {name}={earlier['settings'][name]!r}, not {value!r}"
    return ""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(path: Path, table: pa.Table) -> None:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    write_whole(path, buffer.getvalue().to_pybytes())
