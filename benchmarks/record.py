"""The table of figures that ``make bench`` writes, and the machine and versions behind it."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import torch

COLUMNS = ["item", "case", "ours", "reference", "ratio", "unit", "threads"]
KEY = ["item", "threads"]
PACKAGES = ["numpy", "pyro-ppl", "pyro_vaeflow", "scikit-learn", "torch"]


@dataclass(frozen=True)
class Line:
    """One figure beside its reference."""

    item: str
    case: str
    ours: float
    reference: float | None
    unit: str
    threads: int = field(default_factory=torch.get_num_threads)

    def to_dict(self) -> dict[str, object]:
        """The fields, and ``ratio``: ours over the reference."""
        ratio = self.ours / self.reference if self.reference else None
        values = {**vars(self), "ratio": ratio}
        return {name: values[name] for name in COLUMNS}


def write(lines: Sequence[Line], out: Path) -> Path:
    """Puts the lines into ``out/summary.csv``, in place of earlier ones of item and threads."""
    frame = pd.DataFrame([line.to_dict() for line in lines])
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
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "blas": "mkl" if torch.backends.mkl.is_available() else "other",
        "vector_instructions": torch.backends.cpu.get_cpu_capability(),
        "versions": {"python": platform.python_version()} | {p: version(p) for p in PACKAGES},
    }
