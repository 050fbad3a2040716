"""Rows of normal columns: torch's numbers, with gradients and without."""

import pyro.distributions as dist
import pytest
import torch
from pyro_vaeflow.programs.normal import NormalRow


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("shape", [(3,), (5, 3), (1, 3)])
def test_normal_rows_are_torchs_where_a_gradient_is_needed_and_where_none_is(shape) -> None:
    """Parameters a row, alike for all rows, or one scale for all columns."""
    loc, scale = torch.randn(shape), 0.1 + torch.rand(shape)
    value = 3.0 * torch.randn(7, 5, 3)
    for width in (scale, torch.tensor(0.5)):
        ours = NormalRow(dist.Normal(loc, width), 1).expand((7, 5))
        torchs = dist.Normal(loc, width).to_event(1).log_prob(value)
        assert isinstance(ours, NormalRow)
        torch.testing.assert_close(ours.log_prob(value), torchs)
        with torch.no_grad():
            torch.testing.assert_close(ours.log_prob(value), torchs)


@pytest.mark.usefixtures("float64")
def test_rows_whose_parameters_are_their_own_go_through_vmap_without_a_loop() -> None:
    """As in an inference gap; torch warns of operations that it would loop over."""
    loc, scale, value = torch.randn(5, 3), 0.1 + torch.rand(5, 3), torch.randn(5, 7, 1, 3)

    def of_one(loc: torch.Tensor, scale: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return NormalRow(dist.Normal(loc, scale), 1).expand((7, 1)).log_prob(value)

    torchs = dist.Normal(loc, scale).to_event(1).log_prob(value.movedim(0, -2)).movedim(-1, 0)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(of_one)(loc, scale, value), torchs)


def test_a_normal_row_of_a_shape_of_its_own_has_it() -> None:
    row = NormalRow(dist.Normal(torch.zeros(4, 3), 1.0), 1)
    with torch.no_grad():
        assert row.log_prob(torch.zeros(3)).shape == (4,)
