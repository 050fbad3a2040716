"""How long chunks of rows wait for one of two workers: a real run beside what queueing says.

Chunks arrive at random times (a Poisson stream) at two worker processes, which score them with
`pyro_vaeflow.files.score.score_chunk`. From the seconds that each chunk took in its worker and the
rate of arrivals, three predictions of the mean wait are made: the recursion of Kiefer and Wolfowitz
(1955) on the very arrivals and seconds of the run; the same on random ones, 500 times, with the
interval in which 90 of 100 such runs lie; and the formula of Lee and Longton (1959) for M/G/2.

    python -m results.streaming.queueing FOLDER --num_chunks 150
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pandas as pd
from joblib.externals.loky import ProcessPoolExecutor

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.files.score import Job, digest_of, score_chunk
from pyro_vaeflow.files.table_files import Chunk, chunks_of, find_files
from results.streaming.synthetic_table import pieces, write_table

NUM_WORKERS = 2
LOADS = (0.4, 0.6, 0.8)


def serve(job: Job, number: int, chunk: Chunk) -> tuple[float, float]:
    """When the chunk's service began and ended."""
    start = time.time()
    score_chunk(job, number, chunk)
    return start, time.time()


def waits(arrivals: np.ndarray, services: np.ndarray) -> np.ndarray:
    """Seconds that each waits for the first free worker, in order of arrival."""
    free, seconds = [0.0] * NUM_WORKERS, []
    for arrival, service in zip(arrivals, services, strict=True):
        worker = int(np.argmin(free))
        start = max(arrival, free[worker])
        seconds.append(start - arrival)
        free[worker] = start + service
    return np.array(seconds)


def lee_longton(rate: float, services: np.ndarray) -> float:
    """The mean wait of M/G/2: that of M/M/2 times (1 + cv^2) / 2, seconds."""
    mean, squared_cv = services.mean(), services.var() / services.mean() ** 2
    load = rate * mean / NUM_WORKERS
    if load >= 1.0:
        return np.inf
    return (1 + squared_cv) / 2 * load**2 * mean / (1 - load**2)


def run(
    pool: ProcessPoolExecutor, job: Job, chunks: list[Chunk], rate: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrivals, from 0, and the service seconds and waits of the real run."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, len(chunks))
    began, futures, arrivals = time.time(), [], []
    for number, (chunk, at) in enumerate(zip(chunks, np.cumsum(gaps), strict=True)):
        time.sleep(max(0.0, began + at - time.time()))
        arrivals.append(time.time())
        futures.append(pool.submit(serve, job, number, chunk))
    served, arrived = np.array([future.result() for future in futures]), np.array(arrivals)
    return arrived - began, served[:, 1] - served[:, 0], served[:, 0] - arrived


def predictions(arrivals: np.ndarray, services: np.ndarray, seed: int) -> dict[str, float]:
    """The mean wait, seconds, of the same arrivals, of random ones, and by the formula."""
    rng, rate, count = np.random.default_rng(seed), len(arrivals) / arrivals[-1], len(arrivals)
    simulated = [
        waits(np.cumsum(rng.exponential(1 / rate, count)), rng.choice(services, count)).mean()
        for _ in range(500)
    ]
    low, high = np.quantile(simulated, [0.05, 0.95])
    return {
        "wait_same_arrivals_s": waits(arrivals, services).mean(),
        "wait_simulated_s": np.mean(simulated),
        "wait_simulated_low_s": low,
        "wait_simulated_high_s": high,
        "wait_lee_longton_s": lee_longton(rate, services),
    }


def main() -> None:
    """Writes a row for each planned load."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="for the table, the model and the scores")
    parser.add_argument("--num_chunks", type=int, default=200)
    parser.add_argument("--chunk_rows", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("queueing.csv"))
    options = parser.parse_args()
    parts = options.folder / "parts"
    (parts / "_rejects").mkdir(parents=True, exist_ok=True)
    table, model = options.folder / "table.parquet", options.folder / "model"
    write_table(table, options.num_chunks * options.chunk_rows)
    small = {"hidden_dims": (16,), "latent_dim": 2, "num_steps": 300, "num_samples": 4}
    detector = VAEFlowDetector(**small, prior="normal", random_state=0)
    detector.fit(next(pieces(20_000)).to_pandas().drop(columns="id")).save(model)
    chunks = list(chunks_of(find_files(str(table)), options.chunk_rows))
    job = Job(str(model), digest_of(model), str(parts), "id", "all")
    pool = ProcessPoolExecutor(NUM_WORKERS, env={"OMP_NUM_THREADS": "1"})
    _, services, _ = run(pool, job, chunks[:40], rate=1e9, seed=0)  # loads torch; both are busy
    mean = float(np.median(services[NUM_WORKERS:]))
    rows = []
    for seed, load in enumerate(LOADS):
        arrivals, services, measured = run(pool, job, chunks, load * NUM_WORKERS / mean, seed)
        mean = services.mean()  # other work on the machine changes it from run to run
        figures = {
            "planned_load": load,
            "load": len(arrivals) / arrivals[-1] * mean / NUM_WORKERS,
            "chunks": len(chunks),
            "chunk_rows": options.chunk_rows,
            "service_mean_s": mean,
            "service_cv": services.std() / mean,
            "wait_measured_s": measured.mean(),
        }
        rows.append(figures | predictions(arrivals, services, seed))
        print(rows[-1], flush=True)
    pool.shutdown()
    pd.DataFrame(rows).to_csv(options.out, index=False, float_format="%.4g")


if __name__ == "__main__":
    main()
