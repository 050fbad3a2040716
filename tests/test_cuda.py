"""On a GPU, where there is one, everything runs and agrees with the processor."""

import pytest
import torch

from pyro_vaeflow import Guide, Model, contributions, score, train

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore::pyro_vaeflow.scoring.KhatWarning"),
]


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
