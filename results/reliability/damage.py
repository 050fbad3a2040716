"""Damages sound files and reads them: data files, configurations, run folders, saved detectors.

    python -m results.reliability.damage --minutes 10 --seed 0    # prints the table of README.md

A case is a function of the seed and its number: ``--case 123`` repeats one and shows its error.
Cases run in another process with a limit on memory, which is ended if it does not answer.
"""

import argparse
import gzip
import hashlib
import json
import random
import resource
import shutil
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scipy.io
import torch
from safetensors.torch import load_file, save

from pyro_vaeflow import VAEFlowDetector
from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.registry import load_adbench, load_arrhythmia
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.results import finished_runs, read_csv
from pyro_vaeflow.experiments.run_folder import load_programs
from pyro_vaeflow.experiments.study import PRESETS, load_study

CONTEXT = get_context("forkserver")  # a process that has imported torch, and forks
PATIENCE = 10.0  # seconds of processor time a case: others may be at work on the machine
SILENCE = 120.0  # seconds by the clock without an answer: it waits, or is stuck
MEMORY = 2 * 2**30  # bytes of addresses that a case may take beyond those of the process
GROWTH = 2**29  # bytes of resident memory that count as a blow-up
OUTCOMES = ("accepted", "refused", "unnamed", "crash", "hang", "memory")
HOSTILE = [
    None, True, 0, -1, 2**31, 2**63, 10**30, -(10**30), 1e308, 5e-324, float("nan"), float("inf"),
    "", "a" * 10_000, "../../../../etc/passwd", "!!python/object/apply:os.system [ls]", "\x00",
    "__import__('os').system('ls')", [], {}, [[]], [1, "a"], {"a": {"a": {}}}, 50 * [10**9],
]  # fmt: skip
SNIPPETS = [
    *(json.dumps(value).encode() for value in HOSTILE if not isinstance(value, str)),
    b"&a [*a]", b"*a", b"<<: *peer", b"!!binary x", b"!!timestamp x", b"2001-99-99", b"1e999",
    b"[" * 5000, b"{" * 5000, b"- " * 1000, b"\xff\xfe", b"\x00" * 64, b"9" * 5000, b"99999999999",
    b"'shape': (99999999999, 3), ", b"<f8", b"|O", b"(,)", b'"shape":[1099511627776]', b"I64",
    b"F8_E4M3",
    b"PK\x01\x02", b"PK\x05\x06", b"\x1f\x8b\x08\x1c", b"\r\n", b'"', b"'", b",,,,", b"\t", b": ",
]  # fmt: skip


def main() -> None:
    """Prints the table of outcomes, or one case."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="repeat one case, and show its error")
    given = parser.parse_args()
    CONTEXT.set_forkserver_preload(["results.reliability.damage"])
    with tempfile.TemporaryDirectory() as folder:
        if given.case is not None:
            make_sound(Path(folder))
            print(*run_case(Path(folder), given.seed, given.case, show=True))
            return
        cases = fuzz(Path(folder), given.seed, seconds=60.0 * given.minutes)
    kinds = cases["reader"].str.partition(" of ")[0]
    counts = pd.crosstab(kinds, cases["outcome"], margins=True, margins_name="cases")
    print(counts.reindex(columns=["cases", *OUTCOMES], fill_value=0).to_string())
    print(failures(cases).head(20).to_string())


def fuzz(
    folder: Path, seed: int, seconds: float = float("inf"), num_cases: int | None = None
) -> pd.DataFrame:
    """A row a case: its reader, outcome and what the error said."""
    make_sound(folder)
    names, cases, start = list(readers()), [], time.monotonic()
    process = ProcessPoolExecutor(1, CONTEXT)
    try:
        while time.monotonic() - start < seconds and len(cases) != num_cases:
            future = process.submit(run_case, folder, seed, len(cases), limit=True)
            try:
                outcome, said = future.result(timeout=SILENCE)
            except BrokenExecutor as error:
                outcome, said = "crash", f"the process ended: {error}"
                process = ProcessPoolExecutor(1, CONTEXT)
            except TimeoutError:
                outcome, said = "hang", f"no answer in {SILENCE:g} s"
                process.shutdown()
                process = ProcessPoolExecutor(1, CONTEXT)
            cases.append((names[len(cases) % len(names)], outcome, said[:500]))
    finally:
        process.shutdown()
    return pd.DataFrame(cases, columns=["reader", "outcome", "said"])


def failures(cases: pd.DataFrame) -> pd.DataFrame:
    """Cases that were neither accepted nor refused by name."""
    return cases[~cases["outcome"].isin(["accepted", "refused"])]


@cache
def limit_memory(folder: Path) -> None:
    """Of this process, once, to what it has after reading sound files, and some more."""
    for name, reader in readers().items():
        if name != "kdd":  # whose one sound file is the published one
            reader.read(folder / "sound" / name)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def run_case(
    folder: Path, seed: int, case: int, show: bool = False, limit: bool = False
) -> tuple[str, str]:
    """The outcome of one case, and what its error said."""
    if limit:
        limit_memory(folder)
    draw = random.Random(f"{seed} {case}")
    name, reader = list(readers().items())[case % len(readers())]
    here = folder / "case"
    shutil.rmtree(here, ignore_errors=True)
    shutil.copytree(folder / "sound" / name, here)
    reader.damage(here, draw)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reader.read(here)
        outcome, said = "accepted", ""
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
        outcome = "crash"
        if isinstance(error, ValueError | FileNotFoundError):
            outcome = "refused" if str(here) in said or reader.file in said else "unnamed"
        elif isinstance(error, MemoryError):
            outcome = "memory"
        if show:
            traceback.print_exc()
    grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if grown > GROWTH:
        return "memory", f"{grown} bytes more"
    spent = time.process_time() - start
    return ("hang", f"{spent:.1f} s") if spent > PATIENCE else (outcome, said)


# Damage


def damage_bytes(path: Path, draw: random.Random) -> None:
    """One to four changes anywhere in the file."""
    data = bytearray(path.read_bytes())
    for _ in range(draw.randint(1, 4)):
        a, b = sorted(draw.randrange(len(data) + 1) for _ in range(2))
        b = min(b, a + draw.choice([1, 8, 64, 4096]))
        kind = draw.randrange(7)
        if kind == 0 and data:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[draw.choice([0, a]) if draw.random() < 0.1 else a :]
        elif kind == 2:
            del data[a:b]
        elif kind == 3:
            data[a:a] = draw.choice(SNIPPETS)
        elif kind == 4:
            data[a:b] = draw.choice(SNIPPETS)
        elif kind == 5:
            place = draw.randrange(len(data) + 1)
            data[place:place] = data[a:b]
        else:
            digits = [j for j, byte in enumerate(data) if 48 <= byte < 58]
            if digits:
                place = draw.choice(digits)
                data[place : place + 1] = draw.choice([b"9" * 20, b"-1", b"1e999", b"0"])
    path.write_bytes(data)


def damage_any(folder: Path, draw: random.Random) -> None:
    """One file of the folder."""
    damage_bytes(draw.choice(sorted(p for p in folder.rglob("*") if p.is_file())), draw)


def damage_value(value: Any, draw: random.Random) -> Any:
    """Plain data with one part, at any depth, that is hostile, away or twice."""
    if isinstance(value, dict | list) and value and draw.random() < 0.9:
        copy = value.copy()
        key = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
        if draw.random() < 0.1:
            del copy[key]
        elif draw.random() < 0.05 and isinstance(copy, list):
            copy.append(copy[key])
        else:
            copy[key] = damage_value(copy[key], draw)
        return copy
    return draw.choice([*HOSTILE, *(10.0**e for e in (-300, 300)), 7, 3.5])


def damage_tensor(value: torch.Tensor, draw: random.Random) -> torch.Tensor:
    """A tensor of another value, shape or dtype."""
    value = value.clone()
    kind = draw.randrange(5)
    if kind == 0 and value.numel():
        flat = value.reshape(-1)
        huge = torch.finfo(value.dtype).max if value.is_floating_point() else 2**40
        number = draw.choice([float("nan"), float("inf"), -1.0, huge, 2.0**40, 0.5])
        flat[draw.randrange(len(flat))] = number if value.is_floating_point() else huge
        return flat.reshape(value.shape)
    if kind == 1:
        return value.reshape(-1)
    if kind == 2:
        return value[: draw.randrange(len(value) + 1)] if value.dim() else value
    if kind == 3:
        return value.to(draw.choice([torch.float16, torch.int8, torch.float64, torch.bool]))
    return torch.zeros(draw.choice([(0,), (1,), (3, 0), (1, 1, 1), (65,)]), dtype=value.dtype)


def damage_detector(folder: Path, draw: random.Random) -> None:
    """Bytes, or content behind a hash that is right again: what a hostile hand would do."""
    kind = draw.randrange(5)
    if kind == 0:
        return damage_any(folder, draw)
    (tensors,) = folder.glob("*.safetensors")
    document = json.loads((folder / "detector.json").read_text())
    document.pop("sha256")
    if kind == 1:
        document = damage_value(document, draw)
    elif kind == 2:
        document["content"] = damage_value(document["content"], draw)
    else:
        if kind == 3:
            damage_bytes(tensors, draw)
            data = tensors.read_bytes()
        else:
            parts = load_file(tensors)
            name = draw.choice(sorted(parts))
            if draw.random() < 0.1:
                del parts[name]
            else:
                parts[name] = damage_tensor(parts[name], draw).contiguous()
            data = save(parts)
        digest = hashlib.sha256(data).hexdigest()
        tensors.unlink()
        name = tensors.name.replace(str(document["tensors"])[:16], digest[:16])
        tensors.with_name(name).write_bytes(data)
        document["tensors"] = digest
    if isinstance(document, dict):
        text = json.dumps(document, sort_keys=True)
        document = document | {"sha256": hashlib.sha256(text.encode()).hexdigest()}
    text = json.dumps(document)
    # JSON reads infinity from 1e999, though it has no word for it
    (folder / "detector.json").write_text(text.replace("Infinity", "1e999"))
    return None


# Readers


@dataclass(frozen=True)
class Reader:
    """What reads a folder, the file that its errors name, and what damages the folder."""

    read: Callable[[Path], Any]
    file: str = "detector.json"
    damage: Callable[[Path, random.Random], None] = damage_any


FLOWS = {"diagonal": 0, "planar": 2, "iaf": 1, "spline": 1}
STUDIES = ("adbench", "kdd", "ring")


def readers() -> dict[str, Reader]:
    """Name of a folder of sound files -> its reader."""
    small = Reader(lambda home: load_adbench("small", home), "7_small.npz")
    matlab = Reader(load_arrhythmia, "arrhythmia.mat")
    return {
        "kdd": Reader(load_kddcup99, "kddcup.data_10_percent.gz"),
        "npz": small,
        "npz, compressed": small,
        "mat": matlab,
        "mat, compressed": matlab,
        "csv": Reader(lambda home: read_csv(home / "table.csv"), "table.csv"),
        "config.yaml": Reader(
            lambda home: ExperimentConfig.from_file(home / "config.yaml").run_name, "config.yaml"
        ),
        "run folder": Reader(
            lambda home: [load_programs(run.folder) for run in finished_runs(home)], "runs/"
        ),
        **{f"study of {name}": Reader(_load_study, "study.yaml") for name in STUDIES},
        **{
            f"detector of {flow}": Reader(_load_and_score, damage=damage_detector) for flow in FLOWS
        },
    }


def rows() -> pd.DataFrame:
    """A small mixed table, of which one entry is missing."""
    frame = pd.DataFrame({"size": np.linspace(-1.0, 1.0, 30), "kind": 10 * ["a", "b", "c"]})
    frame.loc[3, "size"] = None
    return frame.assign(count=np.arange(30) % 3)


def make_sound(folder: Path) -> None:
    """The sound files, a folder a reader."""
    sound = {name: folder / "sound" / name for name in readers()}
    for path in sound.values():
        path.mkdir(parents=True)
    (sound["kdd"] / "kddcup.data_10_percent.gz").write_bytes(gzip.compress(b"0,tcp,http\n" * 200))
    table = {"X": np.random.default_rng(0).normal(size=(20, 3)), "y": np.arange(20) % 2}
    for name, save_arrays in (("npz", np.savez), ("npz, compressed", np.savez_compressed)):
        (sound[name] / "adbench").mkdir()
        save_arrays(sound[name] / "adbench/7_small.npz", **table)
    for name in ("mat", "mat, compressed"):
        packed = name != "mat"
        scipy.io.savemat(sound[name] / "arrhythmia.mat", table, do_compression=packed)
    rows().to_csv(sound["csv"] / "table.csv")
    config = ExperimentConfig(
        num_steps=2, max_rows=30, num_samples=2, latent_dim=1, encoder_dims=(4,), decoder_dims=(4,)
    )
    (sound["config.yaml"] / "config.yaml").write_text(config.to_yaml())
    run_all([config], sound["run folder"], progress=False)
    for name in STUDIES:
        text = (PRESETS / f"{name}.yaml").read_text()
        (sound[f"study of {name}"] / "study.yaml").write_text(text)
    settings = {"num_steps": 2, "num_samples": 3, "hidden_dims": (8,), "random_state": 0}
    for flow, num_flows in FLOWS.items():
        detector = VAEFlowDetector(flow=flow, num_flows=num_flows, **settings).fit(rows())
        detector.save(sound[f"detector of {flow}"])


def _load_study(home: Path) -> Any:
    study = load_study(str(home / "study.yaml"))
    return [config.run_name for config in study.expand()[:5]]


def _load_and_score(home: Path) -> None:
    detector = VAEFlowDetector.load(home)
    try:
        scores = detector.decision_function(rows().head(4))
    except ValueError as error:  # it has loaded: an error of scoring need not name the folder
        raise ValueError(f"{home}: {error}") from error
    if np.isnan(scores).any():
        raise ArithmeticError("a score is NaN")


if __name__ == "__main__":
    from results.reliability import damage as module  # whose functions another process can import

    module.main()
