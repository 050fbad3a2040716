"""Rows a second and memory of ``vaeflow fit`` and ``vaeflow score`` on a synthetic table.

The table is written in pieces, and each command is a process of its own, whose time, processor time
and peak memory the system reports when it ends:

    python benchmarks/streaming.py FOLDER --rows 10_000_000 --out results/streaming/runs.csv
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

PIECE = 100_000
NUM_NUMBERS = 5
SCHEMA = pa.schema(
    [("id", pa.int64()), *((f"x{i}", pa.float64()) for i in range(NUM_NUMBERS))]
    + [("kind", pa.string())]
)


def pieces(num_rows: int, seed: int = 0):
    """Tables of two factors seen through five numbers and a category; every ten-thousandth odd."""
    rng = np.random.default_rng(seed)
    loadings = rng.normal(size=(2, NUM_NUMBERS))
    for start in range(0, num_rows, PIECE):
        count = min(PIECE, num_rows - start)
        factors = rng.normal(size=(count, 2))
        numbers = factors @ loadings + 0.2 * rng.normal(size=(count, NUM_NUMBERS))
        ids = np.arange(start, start + count)
        odd = ids % 10_000 == 0
        numbers[odd] = rng.normal(scale=4.0, size=(odd.sum(), NUM_NUMBERS))
        kind = np.array(list("abcde"))[np.digitize(factors[:, 0], [-1.0, 0.0, 1.0, 2.0])]
        frame = pd.DataFrame(numbers.round(6), columns=[f"x{i}" for i in range(NUM_NUMBERS)])
        yield pa.table({"id": ids, **frame, "kind": kind}, SCHEMA)


def write_table(path: Path, num_rows: int) -> None:
    open_writer = {".csv": pa.csv.CSVWriter, ".parquet": pq.ParquetWriter}[path.suffix]
    with open_writer(path, SCHEMA) as writer:
        for table in pieces(num_rows):
            writer.write_table(table)


def measure(arguments: list[str]) -> dict[str, float]:
    """Seconds, processor seconds and peak MiB of one ``vaeflow`` process."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "pyro_vaeflow", *arguments])
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise SystemExit(f"failed: vaeflow {' '.join(arguments)}")
    return {
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
        "peak_mib": round(used.ru_maxrss / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the table, the model and the scores")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--format", choices=["csv", "parquet"], nargs="+", default=["csv"])
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--prior", choices=["normal", "exemplar"], default="normal")
    parser.add_argument("--explain", choices=["all", "flagged", "none"], default="all")
    parser.add_argument("--chunk_rows", type=int, default=65_536)
    parser.add_argument("--keep", action="store_true", help="leave the files")
    parser.add_argument("--out", type=Path, required=True, help="csv that rows are added to")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for num_rows in options.rows:
        for suffix in options.format:
            measure_one(options, num_rows, suffix)


def measure_one(options: argparse.Namespace, num_rows: int, suffix: str) -> None:
    table = options.folder / f"table-{num_rows}.{suffix}"
    model, scores = options.folder / "model", options.folder / "scores"
    write_table(table, num_rows)
    shutil.rmtree(scores, ignore_errors=True)
    small = ["--hidden_dims", "[16]", "--latent_dim", "2", "--num_steps", "300"]
    small += ["--num_samples", str(options.num_samples), "--prior", options.prior]
    fit = ["fit", str(table), "--out", str(model), "--id", "id", *small]
    score = ["score", str(model), str(table), str(scores), "--id", "id"]
    score += ["--explain", options.explain, "--chunk_rows", str(options.chunk_rows)]
    # Scoring again finds all parts there: what is left is the start and the reading.
    for name, command in {"fit": fit, "score": score, "score again": score}.items():
        found = {
            "command": name,
            "rows": num_rows,
            "format": suffix,
            "num_samples": options.num_samples,
            "prior": options.prior,
            "explain": options.explain,
            "chunk_rows": options.chunk_rows,
            "table_mib": round(table.stat().st_size / 2**20),
        }
        found |= measure(command)
        found["rows_per_second"] = round(num_rows / found["seconds"])
        found["rows_per_cpu_second"] = round(num_rows / found["cpu_seconds"])
        is_new = not options.out.exists()
        with options.out.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(found), lineterminator="\n")
            if is_new:
                writer.writeheader()
            writer.writerow(found)
    if not options.keep:
        table.unlink()
        shutil.rmtree(scores)


if __name__ == "__main__":
    main()
