"""What a scored row costs, what drives it, and the machines for a billion rows a day.

Processor seconds of `pyro_vaeflow.files.score.score_chunk` in one process, without its start:

    python -m results.streaming.costs FOLDER
"""

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.files.score import Job, digest_of, score_chunk
from pyro_vaeflow.files.table_files import chunks_of, find_files
from results.streaming.synthetic_table import pieces, write_table

SMALL = {"format": "csv", "model": "small", "prior": "normal", "num_samples": 50, "explain": "all"}
SHIPPED = SMALL | {"model": "default", "prior": "exemplar"}
SETTINGS: list[dict[str, Any]] = [
    SMALL,
    SMALL | {"num_samples": 4},
    SMALL | {"num_samples": 100},
    SMALL | {"explain": "flagged"},
    SMALL | {"explain": "none"},
    SMALL | {"format": "parquet"},
    SMALL | {"prior": "exemplar"},
    SMALL | {"model": "default"},
    SHIPPED,
    SHIPPED | {"explain": "flagged"},
    SHIPPED | {"explain": "none"},
]
MODELS = {"small": {"hidden_dims": (16,), "latent_dim": 2}, "default": {}}
ROWS = {"normal": 5_000, "exemplar": 500}  # of a chunk: half a second or more
TRAIN_ROWS = 3_000  # so that there are as many exemplars as there can be
ROWS_A_DAY, LOAD, CORES = 1e9, 0.7, 16


def saved_model(folder: Path, setting: dict[str, Any]) -> Path:
    """A detector of these settings; training is short, and changes no cost."""
    model, prior, num_samples = (setting[name] for name in ("model", "prior", "num_samples"))
    path = folder / f"{model}-{prior}-{num_samples}"
    if not path.exists():
        frame = next(pieces(TRAIN_ROWS)).to_pandas().drop(columns="id")
        settings = MODELS[model] | {"prior": prior, "num_samples": num_samples}
        VAEFlowDetector(**settings, num_steps=100, random_state=0).fit(frame).save(path)
    return path


def microseconds(folder: Path, setting: dict[str, Any], repeats: int) -> list[float]:
    """Processor microseconds a row of each of so many chunks; one more has loaded the model."""
    num_rows, model = ROWS[setting["prior"]], saved_model(folder, setting)
    table = folder / f"table.{setting['format']}"
    if not table.exists():
        write_table(table, (1 + repeats) * max(ROWS.values()))
    job = Job(str(model), digest_of(model), str(folder / "parts"), "id", setting["explain"])
    costs = []
    chunks = chunks_of(find_files(str(table)), num_rows)
    for number, chunk in enumerate(islice(chunks, 1 + repeats)):
        start = time.process_time()
        score_chunk(job, number, chunk)
        costs.append(1e6 * (time.process_time() - start) / chunk.num_rows)
    return costs[1:]


def capacity(costs: pd.DataFrame) -> pd.DataFrame:
    """Cores and nodes that the rows of a day take at each setting's cost."""
    cores = ROWS_A_DAY * costs["microseconds"] / 1e6 / 86_400 / LOAD
    table = costs[list(SMALL)].copy()
    table["microseconds a row"] = costs["microseconds"]
    table["rows a core-second"] = (1e6 / costs["microseconds"]).round(-1).astype(int)
    table[f"cores for {ROWS_A_DAY:.0e} rows a day at load {LOAD}"] = cores.round(1)
    table[f"nodes of {CORES} cores"] = np.ceil(cores / CORES).astype(int)
    return table


def main() -> None:
    """Writes costs.csv and capacity.csv."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the tables, the models and the scores")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    (options.folder / "parts" / "_rejects").mkdir(parents=True, exist_ok=True)
    rows = []
    for setting in tqdm(SETTINGS):
        costs = pd.Series(microseconds(options.folder, setting, options.repeats))
        figures = {"microseconds": costs.median(), "low": costs.min(), "high": costs.max()}
        rows.append(setting | {"rows": ROWS[setting["prior"]]} | figures)
    frame = pd.DataFrame(rows).round(1)
    frame.to_csv(options.out / "costs.csv", index=False)
    capacity(frame).to_csv(options.out / "capacity.csv", index=False)


if __name__ == "__main__":
    main()
