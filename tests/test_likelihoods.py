"""Likelihood heads: torch's numbers, also of rows far out."""

import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow.programs.likelihoods import (
    FACTORS,
    BernoulliHead,
    BernoulliRow,
    NormalHead,
    StudentTHead,
)
from pyro_vaeflow.programs.mixed import MixedHead
from pyro_vaeflow.tables.columns import Column


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("columns", [1, FACTORS, 2 * FACTORS + 3])
def test_bernoulli_rows_are_torchs_with_and_without_a_gradient_and_in_parts(columns: int) -> None:
    raw, value = 20.0 * torch.randn(6, 4, columns), torch.rand(4, columns)
    raw[0, 0, 0], raw[1, 1, 0] = 0.0, 700.0

    def base(raw: torch.Tensor) -> dist.Distribution:
        return dist.Bernoulli(logits=raw, validate_args=False)

    torchs = base(raw).to_event(1).log_prob(value)
    in_parts = torch.vmap(lambda part: BernoulliRow(base(part), 1).log_prob(value))
    for gradient in (True, False):
        with torch.set_grad_enabled(gradient):
            row = BernoulliRow(base(raw), 1)
            torch.testing.assert_close(row.log_prob(value), torchs, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(in_parts(raw), torchs, rtol=1e-10, atol=1e-10)
            wide = row.expand((2, 6, 4))
            assert isinstance(wide, BernoulliRow) and wide.sample().shape == (2, 6, 4, columns)
            torch.testing.assert_close(wide.log_prob(value), torchs.expand(2, 6, 4))


@pytest.mark.parametrize("gradient", [True, False])
def test_a_row_that_is_certain_keeps_its_digits_in_single_precision(gradient: bool) -> None:
    """Sums of large terms that cancel would leave an error of 1e-4 nats."""
    value, head = (torch.rand(100) < 0.5).float(), BernoulliHead(1, 100)
    head.logits.bias.data = 30.0 * (2.0 * value - 1.0)
    with torch.set_grad_enabled(gradient):
        assert head(torch.zeros(5, 1)).log_prob(value).abs().max() < 1e-5


def test_student_t_columns_are_torchs_in_a_table_of_numbers_and_in_a_mixed_one() -> None:
    columns = [Column("a", "continuous"), Column("b", "positive")]
    for head in (StudentTHead(4, 2, min_scale=0.1), MixedHead(4, columns, 0.1, student_t=True)):
        torch.nn.init.normal_(head.log_df)
        row, x = head(torch.randn(3, 4)), 5.0 * torch.randn(3, 2)
        loc = row.base_dist.loc if isinstance(head, StudentTHead) else row.numbers.loc
        torchs = dist.StudentT(1.0 + head.log_df.exp(), loc, head.log_scale.exp() + 0.1)
        torch.testing.assert_close(row.log_prob(x), torchs.log_prob(x).sum(-1))
        assert row.expand((2, 3)).log_prob(x).shape == (2, 3)
        assert row.sample().shape == (3, 2)


def test_student_t_fits_heavy_tails_better_and_learns_how_heavy_they_are() -> None:
    """On fresh draws of a Student t with 2 degrees of freedom, and on normal ones."""
    torch.manual_seed(0)

    def fitted(head: NormalHead, x: torch.Tensor) -> float:
        adam, h = torch.optim.Adam(head.parameters(), 0.05), torch.zeros(1, 1)
        for _ in range(200):
            adam.zero_grad()
            (-head(h).log_prob(x[:2000]).mean()).backward()
            adam.step()
        return head(h).log_prob(x[2000:]).mean().item()

    heavy, light = dist.StudentT(2.0).sample((4000, 1)), torch.randn(4000, 1)
    student = StudentTHead(1, 1)
    assert fitted(student, heavy) > fitted(NormalHead(1, 1), heavy) + 0.1
    assert 1.5 < 1.0 + student.log_df.exp().item() < 3.0
    assert abs(fitted(StudentTHead(1, 1), light) - fitted(NormalHead(1, 1), light)) < 0.02
