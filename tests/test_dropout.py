"""Dropout: torch's own numbers, however they are drawn."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_vaeflow import Guide, Model
from pyro_vaeflow.programs.dropout import UNIFORM_BELOW, Dropout, _are_uniform_below


def dropped(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    """The output, the gradient, and the state of the random numbers after it."""
    torch.manual_seed(0)
    x = x.clone().requires_grad_()
    y = layer(x)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), x), torch.get_rng_state()]


@pytest.mark.parametrize("p", [0.0, 0.1, 0.2, 0.37, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1,), (3, 5), (2, 17, 3), (1000, 3), (0, 4)])
@pytest.mark.parametrize("training", [True, False])
def test_the_numbers_are_torchs(
    p: float, dtype: torch.dtype, shape: tuple[int, ...], training: bool
) -> None:
    x = torch.randn(shape, dtype=dtype)
    ours, torchs = (dropped(kind(p).train(training), x) for kind in (Dropout, nn.Dropout))
    assert all(map(torch.equal, ours, torchs))
    assert ours[0].dtype == dtype


@pytest.mark.parametrize(
    "x", [torch.rand(7, 5).T, torch.rand(4, 3, 6).transpose(0, 2), torch.rand(5).expand(4, 5)]
)
def test_numbers_that_lie_otherwise_have_torchs_mask(x: torch.Tensor) -> None:
    assert all(map(torch.equal, dropped(Dropout(0.5), x), dropped(nn.Dropout(0.5), x)))


@pytest.mark.skipif(not UNIFORM_BELOW, reason="here torch draws other numbers for its masks")
def test_the_programs_draw_their_masks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "dropout", None)
    Guide(3).encoder(torch.rand(5, 3))
    Model(3, latent_dim=2).decode(torch.rand(5, 2))


def test_in_place_is_in_place() -> None:
    x = torch.ones(3)
    assert Dropout(0.5, inplace=True)(x) is x


def test_where_torch_draws_otherwise_it_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyro_vaeflow.programs.dropout.UNIFORM_BELOW", False)
    monkeypatch.setattr(torch.Tensor, "uniform_", None)
    Dropout(0.5)(torch.rand(3))


@pytest.mark.parametrize("of_uniform, drawn", [(lambda u: u >= 0.2, 0), (lambda u: u < 0.8, 1)])
def test_other_numbers_or_more_of_them_are_noticed(of_uniform, drawn, monkeypatch) -> None:
    def others(mask: torch.Tensor, keep: float, generator: torch.Generator) -> torch.Tensor:
        uniform = torch.rand(mask.shape, dtype=torch.float64, generator=generator)
        torch.rand(drawn, generator=generator)
        return mask.copy_(of_uniform(uniform))

    assert _are_uniform_below(0.8) == UNIFORM_BELOW
    monkeypatch.setattr(torch.Tensor, "bernoulli_", others)
    assert not _are_uniform_below(0.8)


def test_programs_are_imported_under_any_default_device() -> None:
    code = (
        "import torch; torch.set_default_device('meta'); from pyro_vaeflow import Model; Model(3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
