"""Mixed tables: what the head says of each kind of column, of missing and of unseen entries."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import Guide, Model, contributions, inference_gap, log_weights, score, train
from pyro_vaeflow.programs.mixed import MixedHead, MixedInput, MixedLayout, MixedRow
from pyro_vaeflow.tables.columns import Column
from tests.programs import MIXED_COLUMNS as COLUMNS
from tests.programs import LinearGaussian, mixed_rows

NAN = float("nan")


@pytest.fixture
def row(float64: None) -> MixedRow:
    torch.manual_seed(0)
    head = MixedHead(4, COLUMNS)
    torch.nn.init.normal_(head.out.weight)
    torch.nn.init.normal_(head.log_scale)
    return head(torch.randn(2, 5, 4))


def parts(row: MixedRow) -> tuple[list[torch.Tensor], torch.Tensor, torch.Tensor]:
    logits = row.logits.split(row.layout.sizes, -1)
    return list(logits), row.numbers.loc, row.numbers.scale


def test_columns_are_pyros_own_categoricals_and_normals(row: MixedRow) -> None:
    (kind, count), loc, scale = parts(row)
    x = mixed_rows(5)
    expected = [
        dist.Normal(loc[..., 0], scale[..., 0]).log_prob(x[:, 0]),
        dist.Categorical(logits=kind).log_prob(x[:, 1]),
        dist.Normal(loc[..., 1], scale[..., 1]).log_prob(x[:, 2]),
        dist.Categorical(logits=count).log_prob(x[:, 3]),
    ]
    expected = torch.stack(expected, -1).nan_to_num()  # NaN is missing
    torch.testing.assert_close(row.feature_log_prob(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(row.log_prob(x), expected.sum(-1), rtol=0, atol=1e-12)


def test_every_column_is_normalised(row: MixedRow) -> None:
    for place, column in enumerate(COLUMNS):
        if column.num_levels:
            values, width = torch.arange(float(column.num_levels)), 1.0
        else:
            values, width = torch.linspace(-60.0, 60.0, 200_001), 120.0 / 200_000
        total = 0.0
        x = torch.full((1, len(COLUMNS)), NAN)
        for chunk in values.split(5_000):
            grid = x.repeat(len(chunk), 1)
            grid[:, place] = chunk
            log_prob = row.feature_log_prob(grid[:, None, None, :])[..., place]
            total = total + log_prob.exp().sum(0) * width
        torch.testing.assert_close(total, torch.ones(2, 5), rtol=0, atol=1e-6)


def test_samples_are_rows_of_the_same_kind_with_its_frequencies() -> None:
    torch.manual_seed(0)
    row = MixedHead(4, COLUMNS)(torch.randn(1, 4))
    x = row.sample(torch.Size([20_000]))
    assert x.shape == (20_000, 1, len(COLUMNS))
    (kind, _), loc, scale = parts(row)
    shares = torch.bincount(x[:, 0, 1].long(), minlength=kind.shape[-1]) / len(x)
    torch.testing.assert_close(shares, kind.softmax(-1)[0].to(shares), rtol=0, atol=0.015)
    torch.testing.assert_close(x[:, :, 0].mean(0), loc[:, 0], rtol=0, atol=0.03)
    torch.testing.assert_close(x[:, 0, 2].std(), scale[0, 1], rtol=0.03, atol=0)


def test_a_broadcast_row_scores_as_itself(row: MixedRow) -> None:
    x = mixed_rows(5)
    wide = row.expand(torch.Size([3, 2, 5]))
    assert wide.batch_shape == (3, 2, 5) and wide.event_shape == (len(COLUMNS),)
    torch.testing.assert_close(wide.log_prob(x), row.log_prob(x).expand(3, 2, 5))


@pytest.mark.parametrize("observed", [[0, 2], [1], [0, 1, 2], []])
def test_masking_a_column_equals_marginalising_it(float64: None, observed: list[int]) -> None:
    """Under the exact posterior given what is observed, each weight is the marginal's density."""
    exact = LinearGaussian()
    layout = MixedLayout([Column(name, "continuous") for name in "abc"])
    weight, offset = exact.weight[observed], exact.offset[observed]
    precision = torch.eye(2) + weight.T @ weight / exact.scale**2
    covariance = torch.linalg.inv(precision)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ exact.weight.T + exact.offset
            none = loc.new_zeros(*loc.shape[:-1], 0)
            pyro.sample("x", MixedRow(layout, none, dist.Normal(loc, exact.scale)), obs=x)

    def guide(x: torch.Tensor) -> None:
        loc = (x[:, observed] - offset) @ weight @ covariance / exact.scale**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    torch.manual_seed(0)
    x = torch.full((20, 3), NAN)
    x[:, observed] = exact.sample(20)[:, observed]
    marginal = weight @ weight.T + exact.scale**2 * torch.eye(len(observed))
    expected = (
        dist.MultivariateNormal(offset, marginal).log_prob(x[:, observed]) if observed else 0.0
    )
    found = log_weights(model, guide, x, num_samples=7)
    torch.testing.assert_close(found, torch.as_tensor(expected).expand(7, 20), rtol=0, atol=1e-10)


def test_the_encoder_knows_what_is_missing_and_takes_unseen_values_for_missing() -> None:
    torch.manual_seed(0)
    layer = MixedInput(COLUMNS, width=8).eval()
    x = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    for place, column in enumerate(COLUMNS):
        hidden, unseen = x.clone(), x.clone()
        hidden[0, place] = NAN
        assert not torch.allclose(layer(x), layer(hidden))
        if column.num_levels:
            unseen[0, place] = 0.0
            assert torch.equal(layer(unseen), layer(hidden))


def test_entries_are_hidden_in_training_alone() -> None:
    torch.manual_seed(0)
    layer, x = MixedInput(COLUMNS, width=8, dropout=0.5), mixed_rows(500)
    hidden = x.clone()
    hidden[:] = NAN
    everything = (layer(x) == layer(hidden)).all(-1).double().mean()
    assert 0.02 < everything < 0.15, "a sixteenth of the rows loses all four entries"
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_unseen_and_far_values_have_finite_and_higher_scores() -> None:
    torch.manual_seed(0)
    x = mixed_rows(300)
    model = Model(COLUMNS, 2, (16,), likelihood="mixed", dropout=0.0)
    guide = Guide(COLUMNS, 2, (16,), dropout=0.0, input_dropout=0.1)
    train(model, guide, x, num_steps=200, learning_rate=1e-2, progress=False)
    typical = x[~x.isnan().any(1)][:1]
    for place, column in enumerate(COLUMNS):
        anomaly = typical.clone()
        anomaly[0, place] = 0.0 if column.num_levels else 1e6
        scores = score(model, guide, torch.cat([typical, anomaly]), num_samples=50)
        for values in (scores.importance, scores.reconstruction):
            assert values.isfinite().all()
            assert values[1] > values[0] + 2.0, column.name


@pytest.mark.parametrize("kept", [[0, 2], [1, 3]], ids=["continuous", "discrete"])
def test_tables_of_one_kind_of_column_learn_and_score(kept: list[int]) -> None:
    columns, x = [COLUMNS[j] for j in kept], mixed_rows(50)[:, kept]
    model, guide = Model(columns, 2, (8,), likelihood="mixed"), Guide(columns, 2, (8,))
    train(model, guide, x, num_steps=3, progress=False)
    assert score(model, guide, x, num_samples=5).log_evidence.isfinite().all()


def test_contributions_skip_missing_columns_and_gaps_of_mixed_rows_add_up() -> None:
    torch.manual_seed(0)
    x = mixed_rows(20)
    model, guide = Model(COLUMNS, 2, (8,), likelihood="mixed"), Guide(COLUMNS, 2, (8,))
    why = contributions(model, guide, x, num_samples=10)
    assert why.shape == x.shape
    assert torch.equal(why == 0, x.isnan())
    gaps = inference_gap(model, guide, x[:6], num_samples=50, num_steps=20, refine=False)
    assert gaps.inference_gap.isfinite().all()
    assert (gaps.amortization_gap.mean() > 0).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Model(COLUMNS), "likelihood='mixed' is for"),
        (lambda: Model(3, likelihood="mixed"), "likelihood='mixed' is for"),
        (lambda: Guide(3, input_dropout=0.1), "input_dropout=0.1 is for mixed tables"),
        (lambda: Guide([]), "num_features must be an integer of at least 1, got 0"),
    ],
)
def test_columns_and_the_mixed_likelihood_go_together(build, message) -> None:
    with pytest.raises(ValueError, match=message):
        build()
