"""Saved detectors: back bit for bit, and files that are not what was saved do nothing but raise."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save

from pyro_vaeflow import CheckpointError, Guide, Model, VAEFlowDetector
from pyro_vaeflow.inference import saved_folder
from tests.programs import LinearGaussian, TutorialVAE
from tests.test_detector import QUICK, OwnGuide, OwnModel, one_factor, table

FLOWS = {"diagonal": 0, "full": 1, "coupling": 2, "planar": 2, "iaf": 2, "spline": 1}
CONSTANTS: dict[str, tuple[str, Callable]] = {  # what is no parameter, and another such
    "iaf": ("mask", torch.ones_like),  # lets a coordinate see itself
    "spline": ("permutation", lambda order: order.flip(0)),
}


@pytest.fixture(scope="module")
def fitted() -> VAEFlowDetector:
    return VAEFlowDetector(**QUICK, kinds={"count": "continuous"}).fit(table())


@pytest.fixture
def saved(fitted: VAEFlowDetector, tmp_path: Path) -> Path:
    fitted.save(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder: Path, change: Callable) -> None:
    """Changes the JSON and puts the right hash on it, as a hostile hand would."""
    path = folder / "detector.json"
    document = json.loads(path.read_text())
    change(document)
    document.pop("sha256", None)
    path.write_text(json.dumps(document | {"sha256": saved_folder._digest(document)}))


def put_tensors(folder: Path, data: bytes) -> None:
    """Puts a tensor file, and its right hash into the JSON."""
    digest = hashlib.sha256(data).hexdigest()
    (folder / f"tensors-{digest[:16]}.safetensors").write_bytes(data)
    edit(folder, lambda document: document.update(tensors=digest))


def edit_tensors(folder: Path, change: Callable) -> None:
    (path,) = folder.glob("*.safetensors")
    tensors = load_file(path)
    change(tensors)
    path.unlink()
    put_tensors(folder, save(tensors))


@pytest.mark.parametrize("flow", FLOWS)
def test_a_loaded_detector_scores_bit_for_bit_and_has_the_masks_and_orders_of_its_settings(
    flow: str, tmp_path: Path
) -> None:
    rows = table()
    detector = VAEFlowDetector(**QUICK, flow=flow, num_flows=FLOWS[flow]).fit(rows)
    detector.save(tmp_path / "saved")
    loaded = VAEFlowDetector.load(tmp_path / "saved")
    for method in ("score_samples", "decision_function", "predict", "p_values"):
        one, other = getattr(detector, method)(rows), getattr(loaded, method)(rows)
        np.testing.assert_array_equal(one, other, err_msg=method)
    assert detector.explain(rows).equals(loaded.explain(rows))
    assert loaded.get_params() == detector.get_params()
    assert detector.history_.equals(loaded.history_)
    assert list(loaded.feature_names_in_) == list(detector.feature_names_in_)
    names = {path.name.partition("-")[0] for path in (tmp_path / "saved").iterdir()}
    assert names == {"detector.json", "tensors"}
    if flow in CONSTANTS:
        name, change = CONSTANTS[flow]

        def change_all(tensors) -> None:
            names = [key for key in tensors if key.endswith(name)]
            assert names
            tensors.update({key: change(tensors[key]).contiguous() for key in names})

        edit_tensors(tmp_path / "saved", change_all)
        with pytest.raises(CheckpointError, match=f"{name}' is not that of these columns and set"):
            VAEFlowDetector.load(tmp_path / "saved")


def test_arrays_and_warm_starts_survive(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(50, 3))
    detector = VAEFlowDetector(**QUICK, warm_start=True, kinds={0: "continuous"}).fit(rows)
    detector.save(tmp_path)
    loaded = VAEFlowDetector.load(tmp_path)
    assert not hasattr(loaded, "feature_names_in_") and loaded.kinds == {0: "continuous"}
    np.testing.assert_array_equal(
        loaded.fit(rows).score_samples(rows), detector.fit(rows).score_samples(rows)
    )
    detector.save(tmp_path)  # over the first
    assert len(list(tmp_path.iterdir())) == 2
    again = VAEFlowDetector.load(tmp_path)
    np.testing.assert_array_equal(again.score_samples(rows), detector.score_samples(rows))


def own_programs(kind: str) -> dict[str, Any]:
    if kind == "modules":
        return {"model": OwnModel(), "guide": OwnGuide()}
    if kind == "one_module":  # its tensors are those of both roles
        both = TutorialVAE()
        return {"model": both.model, "guide": both.guide}
    if kind == "ours":  # passed like any other, they are scored in double precision
        return {"model": Model(3, likelihood="normal"), "guide": Guide(3)}
    return {"model": LinearGaussian().model, "guide": LinearGaussian().diagonal_guide}


@pytest.mark.parametrize("kind", ["modules", "one_module", "functions", "ours"])
def test_programs_of_ones_own_get_their_parameters_back(kind: str, tmp_path: Path) -> None:
    rows = one_factor(60)
    detector = VAEFlowDetector(**own_programs(kind), **QUICK).fit(rows)
    detector.save(tmp_path)
    loaded = VAEFlowDetector.load(tmp_path, **own_programs(kind))
    np.testing.assert_array_equal(loaded.score_samples(rows), detector.score_samples(rows))
    with pytest.raises(CheckpointError, match="pass model= and guide="):
        VAEFlowDetector.load(tmp_path)


@pytest.mark.parametrize("file", ["detector.json", "tensors-*.safetensors"])
def test_damaged_and_missing_files_are_refused_by_name(saved: Path, file: str) -> None:
    (path,) = saved.glob(file)
    whole = path.read_bytes()
    for place in np.linspace(0, len(whole) - 1, 12).astype(int):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        if file == "detector.json" and flipped.isspace():
            continue
        with pytest.raises(CheckpointError, match=re.escape(str(path.parent))):
            VAEFlowDetector.load(saved)
    path.write_bytes(whole[:-10])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        VAEFlowDetector.load(saved)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        VAEFlowDetector.load(saved)


def content(**values: Any) -> Callable:
    return lambda document: document["content"].update(values)


def setting(**values: Any) -> Callable:
    return lambda document: document["content"]["settings"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(format=2), "reads format 1, got 2"),
        (lambda d: d.pop("versions"), "lacks versions"),
        (lambda d: d.update(more=1), "unknown key 'more'"),
        (lambda d: d.update(tensors="../../../../etc/passwd"), "tensors must be a sha256"),
        (lambda d: d.update(tensors="/" * 64), "tensors must be a sha256"),
        (lambda d: d["content"].pop("seed"), "lacks seed"),
        (content(seed="0"), "seed: expected int"),
        (content(seed=-1), "seed must be from 0"),
        (content(offset=None), "offset: expected float"),
        (content(names=["a"]), "names and columns"),
        (content(columns=5 * [{"name": "a", "kind": "__import__('os')"}]), "expected one of"),
        (
            content(columns=[{"name": "a", "kind": "continuous", "part": "\x00"}]),
            "part: expected one",
        ),
        (
            content(columns=[{"name": "a", "kind": "continuous", "part": "hour"}]),
            "need low and high",
        ),
        (content(columns=5 * [["code"]]), "does not hold a detector"),
        (content(history=[]), "tensor 'history': expected"),
        (content(own=True), "pass model= and guide="),
        (lambda d: d["content"]["settings"].pop("flow"), "lacks flow"),
        (setting(model="os.system"), "unknown key 'model'"),
        (setting(flow="os.system"), "does not hold a detector"),
        (setting(hidden_dims=[10**9, 10**9]), r"tensor '.*': expected \(\(\d+"),
        (setting(hidden_dims=10**5 * [64]), "hidden_dims of 100000 layers do not fit a file"),
        (setting(latent_dim=10**9), "does not fit a file"),
        (setting(latent_dim=10**12, flow="spline", num_flows=1), "does not fit a file"),
        (setting(num_flows=10**9, flow="iaf"), "num_flows"),
        (setting(num_flows=2, flow="iaf"), "missing"),
        (setting(hidden_dims=8), "does not hold a detector"),
        (setting(contamination="code"), "contamination: expected"),
        (setting(kinds=7), "does not hold a detector"),
    ],
)
def test_hostile_settings_do_nothing_but_raise(saved: Path, change, message: str) -> None:
    edit(saved, change)
    with pytest.raises(CheckpointError, match=message):
        VAEFlowDetector.load(saved)


BIAS = "state.guide.base.bias"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop(BIAS), "missing .*guide.base.bias"),
        (lambda t: t.update({"state.guide.more": torch.ones(1)}), "unknown .*guide.more"),
        (lambda t: t.update({"more": torch.ones(1)}), "unknown key 'more'"),
        (lambda t: t.pop("history"), "lacks history"),
        (lambda t: t.pop("state.model.prior.rows"), "must hold the exemplars"),
        (lambda t: t.update({BIAS: torch.ones(3).double()}), r"'guide.base.bias': expected .*\(3,"),
        (lambda t: t.update({BIAS: t[BIAS].float()}), "expected .*float64.* got .*float32"),
        (lambda t: t.update({"calibration_scores": torch.ones(2, 2)}), "'calibration_scores'"),
        (lambda t: t.pop("rarity.rows"), "rarity.rows.* are there if criterion is 'combined'"),
        (lambda t: t.update({"rarity.evidence": torch.ones(2, 2)}), "must hold rows .* evidence"),
        (lambda t: t.update({"rarity.hashes": torch.ones(2)}), "rarity.hashes.* 64-bit integers"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_by_name(saved: Path, change, message: str) -> None:
    edit_tensors(saved, change)
    with pytest.raises(CheckpointError, match=message):
        VAEFlowDetector.load(saved)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "!!python/object/apply:os.system [ls]", "[" * 100_000, '{"format": NaN}'],
)
def test_what_is_no_checkpoint_is_refused(saved: Path, text: str) -> None:
    (saved / "detector.json").write_text(text)
    with pytest.raises(CheckpointError, match="detector.json"):
        VAEFlowDetector.load(saved)


def test_a_shape_beyond_the_file_is_refused_and_a_pipe_is_not_waited_for(saved: Path) -> None:
    header = json.dumps({"x": {"dtype": "F64", "shape": [2**40], "data_offsets": [0, 2**43]}})
    put_tensors(saved, len(header).to_bytes(8, "little") + header.encode())
    with pytest.raises(CheckpointError, match="is not a safetensors file"):
        VAEFlowDetector.load(saved)
    (saved / "detector.json").unlink()
    os.mkfifo(saved / "detector.json")
    with pytest.raises(FileNotFoundError):
        VAEFlowDetector.load(saved)


@pytest.fixture(scope="module")
def other() -> VAEFlowDetector:
    return VAEFlowDetector(**QUICK | {"random_state": 1}).fit(table())


@pytest.mark.parametrize("dies_at", range(1, 5))
def test_a_killed_save_leaves_the_earlier_checkpoint(
    saved: Path, fitted, other, dies_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, real = [], os.fsync

    def dying(*args):
        calls.append(args)
        if len(calls) == dies_at:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(os, "fsync", dying)
    with pytest.raises(KeyboardInterrupt):
        other.save(saved)
    monkeypatch.undo()
    # the last of the four calls comes after the rename that makes the new one valid
    whole = other if dies_at == 4 else fitted
    scores = VAEFlowDetector.load(saved).score_samples(table(9))
    np.testing.assert_array_equal(scores, whole.score_samples(table(9)))
    assert not list(saved.glob("*.partial"))


NO_JSON = {
    "dates": pd.date_range("2020-01-01", periods=5),
    "tuples": pd.MultiIndex.from_product([["a"], range(5)]),
}
CHANGED = {"flow": "iaf", "num_flows": 2, "latent_dim": 3, "hidden_dims": (8,), "prior": "normal"}


@pytest.mark.parametrize("names", NO_JSON)
def test_what_has_no_json_is_refused_before_anything_is_written(names: str, tmp_path: Path) -> None:
    frame = table().set_axis(NO_JSON[names], axis=1)
    detector = VAEFlowDetector(**QUICK).fit(frame)
    with pytest.raises(ValueError, match="has no JSON"):
        detector.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_settings_that_the_programs_do_not_have_are_not_saved(tmp_path: Path) -> None:
    """`load` would refuse such a folder, and a warm start would leave them aside unseen."""
    detector, folder = VAEFlowDetector(**QUICK, warm_start=True).fit(table()), tmp_path / "saved"
    for name, value in CHANGED.items():
        was = getattr(detector, name)
        detector.set_params(**{name: value})
        message = f"{name} was .* when the programs were made.* nothing was"
        with pytest.raises(ValueError, match=message):
            detector.save(folder)
        with pytest.raises(ValueError, match=f"{name} was .* set it back, or fit anew"):
            detector.fit(table())
        detector.set_params(**{name: was})
    detector.set_params(contamination=0.7)
    with pytest.raises(ValueError, match="contamination: expected .* got 0.7"):
        detector.save(folder)
    assert not folder.exists()
    detector.set_params(contamination=0.05).fit(table()).save(folder)
    VAEFlowDetector.load(folder).fit(table())
