"""Active units against the closed form of a linear guide."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow.inference.active_units import active_units
from tests.programs import Pair

pytestmark = pytest.mark.usefixtures("float64")

WEIGHT = torch.tensor([[1.0, 0.0, 0.2, 0.0], [0.5, 0.0, 0.0, 0.05]], dtype=torch.float64)


def model(x: torch.Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z[..., :2], 1.0).to_event(1), obs=x)


def guide(x: torch.Tensor) -> None:
    """Coordinate 0 follows the row, 1 is collapsed, 2 is active and 3 is not, both just so."""
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ WEIGHT, 1.0).to_event(1))


def test_variances_of_posterior_means_are_unbiased() -> None:
    """Without its correction the collapsed coordinate would show 0.1 at 10 draws."""
    x = torch.randn(5000, 2)
    expected = (x @ WEIGHT).var(0)
    for num_samples, atol in ((10, 0.01), (200, 0.003)):
        units = active_units(model, guide, x, num_samples=num_samples)
        torch.testing.assert_close(units.variance["z"][1:], expected[1:], rtol=0, atol=atol)
        torch.testing.assert_close(units.variance["z"][0], expected[0], rtol=0.05, atol=0)
    assert units.active["z"].tolist() == [True, False, True, False]
    assert units.count == 2
    strict = active_units(model, guide, x, num_samples=200, threshold=0.1)
    assert strict.active["z"].tolist() == [True, False, False, False]


def test_every_pair_has_its_units_by_site(row_pair: Pair) -> None:
    row_pair.fit(num_steps=1)
    programs_and_rows, options = (*row_pair.programs, row_pair.x), {"num_samples": 20, "seed": 3}
    units = active_units(*programs_and_rows, **options)
    frame = units.to_frame()
    assert set(frame["site"]) == set(units.variance)
    assert int(frame["active"].sum()) == units.count
    again = active_units(*programs_and_rows, chunk_size=7, **options)
    for name, variance in units.variance.items():
        assert len(variance) == {"cause": 1, "effect": 2}.get(name, len(variance))
        torch.testing.assert_close(again.variance[name], variance)


@pytest.mark.parametrize(
    "num_data, options, message", [(9, {"num_samples": 1}, "num_samples"), (1, {}, "rows of x")]
)
def test_too_few_draws_or_rows_are_refused(num_data: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message} must be .* at least 2, got 1"):
        active_units(model, guide, torch.randn(num_data, 2), **options)
