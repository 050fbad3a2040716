"""Devices: what this machine lacks is refused, and no program makes tensors beside its rows."""

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from sklearn.base import clone
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_vaeflow import Guide, Model, VAEFlowDetector
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.inference.noise import RowNoise
from pyro_vaeflow.inference.parameters import check_device, seeded
from pyro_vaeflow.programs.priors import ExemplarPrior
from pyro_vaeflow.tables.columns import Column
from tests.test_fanout import TINY

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
MISSING = [pytest.param("cuda", marks=no_gpu), "nonsense", "meta", ""]
COLUMNS = [Column("kind", "categorical", levels=("a", "b")), Column("x", "continuous")]
REFUSED = "device must be one that this machine has, got {!r} .*; device='cpu' is always there"


@pytest.mark.parametrize("device", MISSING)
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ValueError, match=REFUSED.format(device)):
        check_device(device)


def test_whoever_takes_a_device_refuses_one_that_is_not_there() -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(ValueError, match=REFUSED.format("meta")):
        VAEFlowDetector(device=torch.device("meta")).fit(x)
    with pytest.raises(ValueError, match="device: expected str or device, got 0"):
        VAEFlowDetector(device=0).fit(x)
    with pytest.raises(ValueError, match=REFUSED.format("meta")):
        run(TINY, device="meta")
    detector = VAEFlowDetector(num_steps=2, hidden_dims=(4,), num_samples=2).fit(x)
    with pytest.raises(ValueError, match=REFUSED.format("meta")):
        detector.set_params(device="meta").score_samples(x)


def test_a_saved_detector_is_of_no_device(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 2))
    settings: dict[str, Any] = {"num_steps": 2, "hidden_dims": (4,), "num_samples": 30}
    detector = clone(VAEFlowDetector(**settings, device=torch.device("cpu"))).fit(x)
    assert detector.get_params()["device"] == torch.device("cpu")
    detector.save(tmp_path)
    loaded = VAEFlowDetector.load(tmp_path)
    assert loaded.device == "cpu"
    assert (loaded.score_samples(x) == detector.score_samples(x)).all()


def test_the_random_numbers_of_a_gpu_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["as it was"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", given.append)
    with seeded(0):
        assert not given
    assert given == [["as it was"]]


class _Elsewhere(TorchDispatchMode):
    """Notes the operations that make a tensor with entries off the device ``meta``."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            # 0-dimensional ones may be anywhere, and bytes are the state of the random numbers.
            if isinstance(leaf, torch.Tensor) and leaf.dim() and leaf.numel() and not leaf.is_meta:
                self.found += [str(func)] * (leaf.dtype is not torch.uint8)
        return out


# Splines ask for values, which the device has none of: tests/test_cuda.py has them.
@pytest.mark.parametrize("flow, depth", [("diagonal", 0), ("planar", 2), ("iaf", 2)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "student_t", "mixed"])
@pytest.mark.parametrize("conditioned", [True, False])
def test_programs_make_no_tensor_beside_their_rows(
    flow: str, depth: int, likelihood: str, conditioned: bool
) -> None:
    row = COLUMNS if likelihood == "mixed" else 2
    guide = Guide(row, 3, (8,), flow=flow, num_flows=depth, conditioned=conditioned)
    model = Model(row, 3, (8,), likelihood=likelihood)
    model.prior = ExemplarPrior(torch.rand(6, 2), guide.locate, latent_dim=3)
    model.eval().to("meta")
    guide.eval().to("meta")
    x = torch.rand(4, 2, device="meta")
    with _Elsewhere() as elsewhere, pyro.validation_enabled(False):
        guide_trace = poutine.trace(RowNoise(x, seed=0)(guide)).get_trace(x)
        model_trace = poutine.trace(poutine.replay(model, guide_trace)).get_trace(x)
        terms = guide_trace.log_prob_sum() + model_trace.log_prob_sum()
    assert terms.is_meta
    assert elsewhere.found == ["aten.arange.default"]  # Pyro's index of the plate, of no use here
