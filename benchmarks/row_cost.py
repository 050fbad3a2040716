"""What a scored row costs and what drives it: processor seconds of ``score_chunk``, in one process.

Without the start of a process, which `benchmarks/streaming.py` has in it. Each setting differs from
the one named first by what its row says:

    python benchmarks/row_cost.py FOLDER --out results/streaming/costs.csv
"""

import argparse
import sys
import time
from itertools import islice
from pathlib import Path

import pandas as pd
from tqdm.auto import tqdm

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.files.score import Job, digest_of, score_chunk
from pyro_vaeflow.files.table_files import chunks_of, find_files

sys.path.insert(0, str(Path(__file__).parent))
from streaming import pieces, write_table  # noqa: E402

SMALL = {"format": "csv", "model": "small", "prior": "normal", "num_samples": 50, "explain": "all"}
SHIPPED = SMALL | {"model": "default", "prior": "exemplar"}
SETTINGS = [
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


def saved_model(folder: Path, model: str, prior: str, num_samples: int) -> Path:
    """A detector of these settings; training is short, and changes no cost."""
    path = folder / f"{model}-{prior}-{num_samples}"
    if not path.exists():
        frame = next(pieces(TRAIN_ROWS)).to_pandas().drop(columns="id")
        settings = MODELS[model] | {"prior": prior, "num_samples": num_samples}
        VAEFlowDetector(**settings, num_steps=100, random_state=0).fit(frame).save(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the tables, the models and the scores")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="csv")
    options = parser.parse_args()
    out = options.folder / "parts"
    (out / "_rejects").mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for setting in tqdm(SETTINGS):
        kind = {name: setting[name] for name in ("model", "prior", "num_samples")}
        model = saved_model(options.folder, **kind)
        table = options.folder / f"table.{setting['format']}"
        if not table.exists():
            write_table(table, (1 + options.repeats) * max(ROWS.values()))
        job = Job(str(model), digest_of(model), str(out), "id", setting["explain"])
        costs = []
        chunks = chunks_of(find_files(str(table)), ROWS[setting["prior"]])
        for number, chunk in enumerate(islice(chunks, 1 + options.repeats)):
            start = time.process_time()
            score_chunk(job, number, chunk)
            costs.append(1e6 * (time.process_time() - start) / chunk.num_rows)
        found = pd.Series(costs[1:])  # the first has loaded the model
        named = {"microseconds": found.median(), "low": found.min(), "high": found.max()}
        rows.append(setting | {"rows": ROWS[setting["prior"]]} | named)
        pd.DataFrame(rows).round(1).to_csv(options.out, index=False)


if __name__ == "__main__":
    main()
