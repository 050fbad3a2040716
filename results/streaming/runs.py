"""Rows a second and memory of ``vaeflow fit`` and ``vaeflow score`` on a synthetic table.

Each command is a process of its own, whose time, processor time and peak memory the system reports
when it ends:

    python -m results.streaming.runs FOLDER --rows 10_000_000
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd

from results.streaming.synthetic_table import write_table


def of_process(arguments: list[str]) -> dict[str, float]:
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


def measure(options: argparse.Namespace, num_rows: int) -> pd.DataFrame:
    """A row for each of ``fit``, ``score``, and the same ``score`` again."""
    table = options.folder / f"table-{num_rows}.{options.format}"
    model, scores = str(options.folder / "model"), options.folder / "scores"
    write_table(table, num_rows)
    shutil.rmtree(scores, ignore_errors=True)
    fit = ["fit", str(table), "--out", model, "--id", "id", "--hidden_dims", "[16]"]
    fit += ["--latent_dim", "2", "--num_steps", "300", "--prior", options.prior]
    fit += ["--num_samples", str(options.num_samples)]
    score = ["score", model, str(table), str(scores), "--id", "id"]
    score += ["--explain", options.explain, "--chunk_rows", str(options.chunk_rows)]
    names = ("format", "num_samples", "prior", "explain", "chunk_rows")
    setting = {name: getattr(options, name) for name in names}
    setting["table_mib"] = round(table.stat().st_size / 2**20)
    # Scoring again finds all parts there: what is left is the start and the reading.
    commands = {"fit": fit, "score": score, "score again": score}
    frame = pd.DataFrame(
        {"command": name, "rows": num_rows} | setting | of_process(command)
        for name, command in commands.items()
    )
    for unit in ("second", "cpu_second"):
        frame[f"rows_per_{unit}"] = (num_rows / frame[f"{unit}s"]).round().astype(int)
    table.unlink()
    shutil.rmtree(scores)
    return frame


def main() -> None:
    """Adds the rows of each size to the csv file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the table, the model and the scores")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--format", choices=["csv", "parquet"], default="csv")
    parser.add_argument("--num_samples", type=int, default=4)
    parser.add_argument("--prior", choices=["normal", "exemplar"], default="normal")
    parser.add_argument("--explain", choices=["all", "flagged", "none"], default="all")
    parser.add_argument("--chunk_rows", type=int, default=65_536)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("runs.csv"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    for num_rows in options.rows:
        frame = measure(options, num_rows)
        frame.to_csv(options.out, mode="a", header=not options.out.exists(), index=False)


if __name__ == "__main__":
    main()
