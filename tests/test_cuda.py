"""On a GPU, where there is one, everything runs and agrees with the processor."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from pyro_vaeflow import Guide, Model, VAEFlowDetector, contributions, score, train
from pyro_vaeflow.experiments.config import GapSettings
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.inference.parameters import seeded
from tests.test_fanout import TINY

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.parametrize("flow, depth", [("diagonal", 0), ("planar", 5), ("iaf", 5), ("spline", 2)])
@pytest.mark.parametrize("likelihood", ["bernoulli", "normal"])
def test_training_and_scores_on_a_gpu(flow: str, depth: int, likelihood: str) -> None:
    model = Model(6, latent_dim=3, likelihood=likelihood).to("cuda")
    guide = Guide(6, latent_dim=3, flow=flow, num_flows=depth).to("cuda")
    x = torch.rand(300, 6, device="cuda")
    frame = train(
        model, guide, x, num_steps=30, batch_size=64, held_out=x[:50], progress=False
    ).frame
    assert frame["elbo"].map(torch.tensor).map(torch.isfinite).all()
    on_gpu = score(model, guide, x, num_samples=50)
    assert on_gpu.log_evidence.device.type == "cuda"
    on_cpu = score(model.cpu(), guide.cpu(), x.cpu(), num_samples=50)
    torch.testing.assert_close(on_gpu.log_evidence.cpu(), on_cpu.log_evidence, rtol=0, atol=1e-3)
    assert contributions(model.cuda(), guide.cuda(), x, num_samples=50).shape == x.shape


@pytest.mark.parametrize("flow, depth", [("diagonal", 0), ("planar", 2), ("iaf", 2), ("spline", 2)])
@pytest.mark.parametrize("prior", ["exemplar", "normal"])
def test_a_detector_on_a_gpu(flow: str, depth: int, prior: str, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    frame = pd.DataFrame({"size": draw.normal(size=200), "kind": draw.choice(["a", "b"], 200)})
    settings = {"flow": flow, "num_flows": depth, "prior": prior, "num_steps": 30}
    detector = VAEFlowDetector(**settings, random_state=0, device="cuda").fit(frame)
    scores, reasons = detector.score_samples(frame), detector.explain(frame)
    assert {p.device.type for p in detector.guide_.parameters()} == {"cuda"}
    detector.save(tmp_path)
    loaded = VAEFlowDetector.load(tmp_path)
    np.testing.assert_allclose(loaded.score_samples(frame), scores, rtol=0, atol=1e-6)
    np.testing.assert_allclose(loaded.explain(frame), reasons, rtol=0, atol=1e-6)
    loaded.set_params(device="cuda", warm_start=True)  # it goes there with the next call
    np.testing.assert_allclose(loaded.score_samples(frame), scores, rtol=0, atol=1e-9)
    assert np.isfinite(loaded.fit(frame).score_samples(frame)).all()


def test_a_checkpoint_is_resumed_on_another_device(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(100, 3))
    settings = {"num_steps": 20, "random_state": 0, "checkpoint_dir": tmp_path}
    detector = VAEFlowDetector(**settings, device="cuda").fit(x)
    for device in ("cpu", "cuda"):  # it has come to its end: nothing is trained anew
        again = VAEFlowDetector(**settings, device=device).fit(x)
        np.testing.assert_allclose(again.score_samples(x), detector.score_samples(x), atol=1e-6)


def test_an_experiment_on_a_gpu() -> None:
    config = replace(TINY, num_steps=30, num_samples=30, gaps=GapSettings(rows=3, num_steps=5))
    config = replace(config, held_out_rows=20, validation_share=0.1)
    result = run(config, device="cuda")
    assert np.isfinite(result.metrics["held_out_elbo"])
    assert np.isfinite(result.metrics["gaps"]["approximation_gap"])
    assert {value.device.type for value in result.parameters.values()} == {"cpu"}
    assert result.arrays["elbo"].shape == result.arrays["is_anomaly"].shape


def test_an_evaluation_does_not_set_back_the_noise_of_training() -> None:
    torch.rand(1, device="cuda")
    before = torch.cuda.get_rng_state()
    with seeded(0):
        torch.rand(1, device="cuda")
    assert torch.equal(torch.cuda.get_rng_state(), before)
