"""The further tables of docs/guide/input.md: settings, calls, configurations, files and disks."""

import dataclasses
import errno
import gzip
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pytest
import scipy.io
import torch

from pyro_vaeflow import Guide, Model, VAEFlowDetector, score, train
from pyro_vaeflow.datasets.kddcup99 import load_kddcup99
from pyro_vaeflow.datasets.registry import load_adbench, load_arrhythmia
from pyro_vaeflow.experiments import run_folder as runfolder
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.fanout import run_all
from pyro_vaeflow.experiments.results import finished_runs, read_csv
from pyro_vaeflow.experiments.study import load_study
from pyro_vaeflow.inference import saved_folder
from pyro_vaeflow.tables.table_encoder import TableEncoder
from tests.guide_tables import check, rows
from tests.test_checkpoint import edit, edit_tensors
from tests.test_input import ARRAY, NUM, TINY, frame

PAIR = {"likelihood": "normal", "latent_dim": 2}


@pytest.fixture(scope="module")
def fitted() -> VAEFlowDetector:
    return VAEFlowDetector(**TINY).fit(frame())


def fit(**settings: Any) -> Callable[..., Any]:
    return lambda fitted: VAEFlowDetector(**TINY | settings).fit(ARRAY).score_samples(ARRAY)


def score_rows(x: Any) -> torch.Tensor:
    return score(Model(3, **PAIR), Guide(3, latent_dim=2), x, num_samples=3).log_evidence


def train_rows(x: Any, **options: Any) -> Any:
    return train(
        Model(3, **PAIR), Guide(3, latent_dim=2), x, num_steps=2, progress=False, **options
    )


def with_nan(row: int) -> torch.Tensor:
    return torch.rand(8, 3).index_put(
        (torch.tensor([row]), torch.tensor([1])), torch.tensor(np.nan)
    )


class Forgetful(torch.nn.Linear):
    """A model and, as `guide`, a guide to which a missing entry makes the whole row NaN."""

    def forward(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(super().forward(z), 1.0).to_event(1), obs=x)

    def guide(self, x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))


def score_own_programs(fitted: Any) -> np.ndarray:
    program = Forgetful(1, 3)
    detector = VAEFlowDetector(**TINY, model=program, guide=program.guide).fit(ARRAY)
    given = ARRAY.copy()
    given[7, 1] = np.nan
    return detector.score_samples(given)


def train_on_rows_with_gradient(fitted: Any) -> None:
    x = torch.rand(8, 3, requires_grad=True)
    train_rows(x)
    assert x.grad is None


NUMPY = {"num_steps": np.int64(3), "learning_rate": np.float32(0.01), "hidden_dims": [np.int32(8)]}
CALLS = {
    "setting_of_another_type": fit(hidden_dims=5),
    "setting_as_text": fit(learning_rate="fast"),
    "setting_out_of_range": fit(contamination=0.6),
    "setting_nan": fit(calibration_share=float("nan")),
    "setting_unknown_name": fit(flow="Planar"),
    "setting_of_numpy": fit(**NUMPY),
    "kinds_of_other_columns": fit(kinds={"height": "continuous"}),
    "nothing_left_to_train_on": fit(calibration_share=0.999),
    "half_a_pair": fit(model=Model(3)),
    "negative_weights": lambda _: VAEFlowDetector(**TINY).fit(ARRAY, sample_weight=-np.ones(NUM)),
    "fdr_as_text": lambda fitted: fitted.predict(frame(), fdr="few"),
    "mean_of_no_rows": lambda fitted: fitted.score(frame().iloc[:0]),
    "plot_of_no_row": lambda fitted: fitted.plot_contributions(frame(), row=99),
    "programs_that_lose_rows": score_own_programs,
    "array_for_a_tensor": lambda _: score_rows(ARRAY),
    "tensor_of_another_width": lambda _: score_rows(torch.rand(8, 4)),
    "tensor_of_another_dtype": lambda _: score_rows(torch.rand(8, 3).double()),
    "tensor_with_nan_first": lambda _: score_rows(with_nan(0)),
    "tensor_with_nan_later": lambda _: score_rows(with_nan(5)),
    "training_on_nan": lambda _: train_rows(with_nan(5)),
    "training_takes_no_gradient": train_on_rows_with_gradient,
    "sparse_rows": lambda _: score_rows(torch.rand(8, 3).to_sparse()),
    "held_out_rows_of_another_width": lambda _: train_rows(
        torch.rand(8, 3), held_out=torch.rand(8, 4)
    ),
    "array_for_a_frame_of_an_encoder": lambda _: TableEncoder().fit(ARRAY),
    "dates_for_an_encoder": lambda _: TableEncoder().fit(
        frame().assign(size=pd.date_range("2020-01-01", periods=NUM))
    ),
    "no_programs": lambda _: score(3, 4, torch.rand(8, 3)),
}


def test_the_calls_of_the_page_are_these() -> None:
    assert list(rows("Settings and calls")) == list(CALLS)


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize("name", CALLS)
def test_calls_do_what_the_page_says(name: str, fitted: VAEFlowDetector) -> None:
    check(rows("Settings and calls")[name][0], lambda: CALLS[name](fitted))


ALIASES = "a: &a [1, 2, 3, 4, 5, 6, 7, 8, 9]\n" + "".join(
    f"{new}: &{new} [{', '.join(9 * ['*' + old])}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
STUDIES: dict[str, str | bytes] = {
    "config_unknown_key": "{num_steps: 1, latent_dims: 3}",
    "config_wrong_type": "num_steps: many",
    "config_out_of_range": "{num_steps: 1, dropout: 1.5}",
    "config_endless_number": f"{{num_steps: 1, learning_rate: 1{400 * '0'}}}",
    "config_no_yaml": "{",
    "config_no_date": "{num_steps: 1, study: 2001-99-99}",
    "config_too_deep": 10_000 * "[",
    "config_of_many_aliases": ALIASES,
    "config_of_itself": "flow_options: &a {more: *a}",
    "config_binary": b"\xff\xfe\x00",
    "config_too_long": "#" * 2_000_000,
    "config_empty": "",
    "config_that_leads_elsewhere": "{num_steps: 1, study: ../../elsewhere}",
    "config_of_code": "num_steps: !!python/object/apply:os.system [ls]",
}


def read_damaged_run(folder: Path) -> Any:
    return ExperimentConfig.from_file(write(folder / "config.yaml", "{study: a, seed"))


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_the_configurations_of_the_page_are_these() -> None:
    assert list(rows("Configurations")) == [*STUDIES, "config_of_a_run"]


@pytest.mark.parametrize("name", [*STUDIES, "config_of_a_run"])
def test_configurations_are_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    def read() -> Any:
        if name == "config_of_a_run":
            return read_damaged_run(tmp_path)
        return load_study(str(write(tmp_path / "study.yaml", STUDIES[name])))

    check(rows("Configurations")[name][0], read)


def kdd(content: bytes) -> Callable[[Path], Any]:
    return lambda home: load_kddcup99(write(home / "kddcup.data_10_percent.gz", content).parent)


def npz(content: bytes | Callable[[bytes], bytes]) -> Callable[[Path], Any]:
    def load(home: Path) -> Any:
        data = content if isinstance(content, bytes) else content(sound_npz(home))
        write(home / "adbench/7_small.npz", data)
        return load_adbench("small", home)

    return load


def sound_npz(home: Path, **arrays: Any) -> bytes:
    np.savez(home / "sound.npz", **arrays or {"X": np.ones((4, 3)), "y": np.array([0, 1, 0, 0])})
    return (home / "sound.npz").read_bytes()


def huge_shape(sound: bytes) -> bytes:
    return sound.replace(
        b"'shape': (4, 3), }                ", b"'shape': (99999999999, 3), }      "
    )


def load_npz_that_unpacks_to_much(home: Path) -> Any:
    path = write(home / "adbench/7_small.npz", sound_npz(home))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02") + 24  # of the unpacked size in the archive's directory
    data[place : place + 4] = (3 * 10**9).to_bytes(4, "little")
    write(path, bytes(data))
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].file_size == 3 * 10**9
    return load_adbench("small", home)


def load_half_a_mat(home: Path) -> Any:
    scipy.io.savemat(home / "arrhythmia.mat", {"X": np.ones((4, 3)), "y": np.ones(4)})
    data = (home / "arrhythmia.mat").read_bytes()
    write(home / "arrhythmia.mat", data[: len(data) // 2])
    return load_arrhythmia(home)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a tiny run."""
    out = tmp_path_factory.mktemp("results")
    assert not run_all([RING], out, progress=False).failed
    return out


RING = ExperimentConfig(
    num_steps=2, max_rows=30, num_samples=2, latent_dim=1, encoder_dims=(4,), decoder_dims=(4,)
)


def cut(out: Path, name: str) -> Path:
    (path,) = out.glob(f"runs/*/{name}")
    path.write_bytes(path.read_bytes()[:-9])
    return path.parent


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def saved(fitted: VAEFlowDetector, folder: Path, change: Callable, tensors: bool = False) -> Any:
    fitted.save(folder)
    (edit_tensors if tensors else edit)(folder, change)
    return VAEFlowDetector.load(folder)


FILES: dict[str, Callable[[Path], Any]] = {
    "kdd_empty": kdd(gzip.compress(b"")),
    "kdd_truncated": kdd(gzip.compress(b"a,b,c\n")[:-9]),
    "kdd_not_compressed": kdd(b"a,b,c\n"),
    "kdd_other_table": kdd(gzip.compress(b"a,b,c\n")),
    "npz_empty": npz(b""),
    "npz_truncated": npz(lambda sound: sound[: len(sound) // 2]),
    "npz_mislabelled": npz(b"a,b,c\n1,2,3\n"),
    "npz_without_labels": lambda home: npz(sound_npz(home, X=np.ones((4, 3))))(home),
    "npz_of_huge_shape": npz(huge_shape),
    "npz_that_unpacks_to_much": load_npz_that_unpacks_to_much,
    "mat_truncated": load_half_a_mat,
    "csv_empty": lambda home: read_csv(write(home / "published.csv", "")),
}
FOLDERS: dict[str, Callable[..., Any]] = {
    "run_with_damaged_metrics": lambda here: finished_runs(
        cut(here.finished, "metrics.json").parents[1]
    ),
    "run_with_damaged_parameters": lambda here: runfolder.load_programs(
        cut(here.finished, "parameters.safetensors")
    ),
    "save_on_a_full_disk": lambda here: here.save_on_a_full_disk(),
    "save_into_a_file": lambda here: here.fitted.save(write(here.home / "file", "") / "saved"),
    "run_on_a_full_disk": lambda here: here.run_on_a_full_disk(),
    "run_into_a_file": lambda here: run_all([RING], write(here.home / "file", "") / "out"),
    "saved_codes_beyond_the_levels": lambda here: saved(
        here.fitted,
        here.home,
        lambda tensors: tensors["state.model.prior.rows"][:, 1].fill_(1e6),
        tensors=True,
    ),
    "saved_places_of_other_columns": lambda here: saved(
        here.fitted,
        here.home,
        lambda tensors: tensors["state.model.likelihood.layout.discrete"].add_(1000),
        tensors=True,
    ),
    "saved_infinite_threshold": lambda here: here.load_with_infinite_threshold(),
    "saved_repeated_levels": lambda here: saved(
        here.fitted,
        here.home,
        lambda document: document["content"]["columns"][1].update(levels=["big", "big"]),
    ),
}


@dataclasses.dataclass
class Here:
    """What the cases with folders need."""

    home: Path
    fitted: VAEFlowDetector
    finished: Path
    patch: pytest.MonkeyPatch

    def save_on_a_full_disk(self) -> None:
        self.fitted.save(self.home / "saved")
        scores = self.fitted.score_samples(frame())
        self.patch.setattr(os, "fsync", full_disk)
        try:
            VAEFlowDetector(**TINY | {"random_state": 1}).fit(frame()).save(self.home / "saved")
        finally:
            found = VAEFlowDetector.load(self.home / "saved").score_samples(frame())
            np.testing.assert_array_equal(found, scores)  # the earlier one is whole
            assert len(list((self.home / "saved").iterdir())) == 2

    def load_with_infinite_threshold(self) -> Any:
        self.fitted.save(self.home)
        path = self.home / "detector.json"
        text = path.read_text().replace(repr(self.fitted.offset_), "1e999")  # JSON reads infinity
        document = json.loads(text)
        right = saved_folder._digest({k: v for k, v in document.items() if k != "sha256"})
        path.write_text(text.replace(document["sha256"], right))
        return VAEFlowDetector.load(self.home)

    def run_on_a_full_disk(self) -> None:
        self.patch.setattr(np, "savez_compressed", full_disk)
        outcome = run_all([RING], self.home, progress=False)
        assert not list(self.home.glob("runs/*"))
        raise OSError(*outcome.failed.values())


def test_the_files_of_the_page_are_these() -> None:
    assert list(rows("Files and disks")) == [*FILES, *FOLDERS]


@pytest.mark.parametrize("name", FILES)
def test_files_are_refused_as_the_page_says(name: str, tmp_path: Path) -> None:
    check(rows("Files and disks")[name][0], lambda: FILES[name](tmp_path))


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_refused_as_the_page_says(
    name: str, tmp_path: Path, fitted: VAEFlowDetector, finished: Path, monkeypatch
) -> None:
    out = tmp_path / "results"
    shutil.copytree(finished, out)
    here = Here(tmp_path / "here", fitted, out, monkeypatch)
    here.home.mkdir()
    check(rows("Files and disks")[name][0], lambda: FOLDERS[name](here))


def test_a_failure_on_a_full_disk_is_told_though_it_cannot_be_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(np, "savez_compressed", full_disk)
    monkeypatch.setattr(Path, "write_text", full_disk)
    (message,) = run_all([RING], tmp_path, progress=False).failed.values()
    assert "No space left on device" in message


def test_weights_are_not_changed() -> None:
    weights, given = np.arange(1.0, NUM + 1.0), frame()
    VAEFlowDetector(**TINY).fit(given, sample_weight=weights)
    np.testing.assert_array_equal(weights, np.arange(1.0, NUM + 1.0))
    pd.testing.assert_frame_equal(given, frame())
