"""What `make bench` leaves: a table of figures, and the machine and versions behind them."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch

from pyro_vaeflow.inference.fingerprint import package_versions

COLUMNS = ["item", "case", "ours", "reference", "ratio", "unit", "threads"]
KEY = ["item", "threads"]


@dataclass(frozen=True)
class Line:
    """One figure beside its reference; ``ratio`` is ours over the reference."""

    item: str
    case: str
    ours: float
    reference: float | None
    unit: str
    threads: int | None = None

    def to_dict(self) -> dict[str, object]:
        ratio = self.ours / self.reference if self.reference else None
        threads = torch.get_num_threads() if self.threads is None else self.threads
        values = (self.item, self.case, self.ours, self.reference, ratio, self.unit, threads)
        return dict(zip(COLUMNS, values, strict=True))


def write(lines: Sequence[Line], out: Path) -> Path:
    """Puts the lines into ``out/summary.csv``, in place of earlier ones of item and threads."""
    frame = pd.DataFrame([line.to_dict() for line in lines], columns=COLUMNS)
    path = out / "summary.csv"
    if path.is_file():
        earlier, key = pd.read_csv(path).set_index(KEY, drop=False), frame.set_index(KEY).index
        frame = pd.concat([earlier[~earlier.index.isin(key)], frame])
    out.mkdir(parents=True, exist_ok=True)
    frame.sort_values(KEY, kind="stable").to_csv(path, index=False, float_format="%.4g")
    (out / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
    return path


def machine() -> dict[str, object]:
    """The processor, its number of cores, and the versions."""
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": package_versions(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
