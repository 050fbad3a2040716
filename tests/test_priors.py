"""The exemplar prior: a density, left out for the rows themselves in training, fixed in scores."""

import math
from copy import deepcopy
from dataclasses import replace

import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import Guide, Model, inference_gap, score, train
from pyro_vaeflow.experiments.config import ExperimentConfig
from pyro_vaeflow.experiments.experiment import run
from pyro_vaeflow.experiments.run_folder import load_programs, write
from pyro_vaeflow.inference.parameters import seeded
from pyro_vaeflow.programs import fitting, priors
from pyro_vaeflow.programs.fitting import build, fit
from pyro_vaeflow.programs.priors import BROAD_WEIGHT, ExemplarMixture, ExemplarPrior
from tests.programs import rows


def prior_of(x: torch.Tensor, **options) -> ExemplarPrior:
    return ExemplarPrior(x, Guide(3, latent_dim=2, dropout=0.0).locate, 2, **options)


def pair_of(x: torch.Tensor, **options) -> tuple[Model, Guide]:
    guide = Guide(3, latent_dim=2, hidden_dims=(8,), dropout=0.0, **options)
    prior = ExemplarPrior(x, guide.locate, 2)
    return Model(3, 2, (8,), "normal", dropout=0.0, prior=prior), guide


def mixture(batch: tuple[int, ...] = ()) -> ExemplarMixture:
    torch.manual_seed(0)
    log_weights = torch.randn(*batch, 5)
    return ExemplarMixture(
        log_weights, torch.randn(4, 2), torch.tensor([0.3, 0.7]), torch.full((2,), 2.0)
    )


def by_pyro(mix: ExemplarMixture) -> dist.MixtureSameFamily:
    locs = torch.cat([mix.centres, torch.zeros_like(mix.centres[:1])])
    scales = torch.cat([mix.width.expand(4, -1), mix.broad.expand(1, -1)])
    parts = dist.Normal(locs, scales).to_event(1)
    if mix.log_weights.dim() > 1:
        parts = parts.expand(mix.log_weights.shape)
    return dist.MixtureSameFamily(dist.Categorical(logits=mix.log_weights), parts)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("batch", [(), (6,)])
def test_densities_and_gradients_are_those_of_pyros_mixture(batch: tuple[int, ...]) -> None:
    mix, value = mixture(batch), 3.0 * torch.randn(7, 6, 2)
    parts = [part.requires_grad_() for part in (mix.centres, mix.width, mix.broad, value)]
    density, expected = mix.log_prob(value), by_pyro(mix).log_prob(value)
    torch.testing.assert_close(density, expected, rtol=0, atol=1e-10)
    gradients, wanted = (torch.autograd.grad(d.sum(), parts) for d in (density, expected))
    torch.testing.assert_close(gradients, wanted, rtol=0, atol=1e-10)
    wide = mix.expand([7, 6])
    assert wide.batch_shape == (7, 6)
    assert wide.sample().shape == (7, 6, 2)
    torch.testing.assert_close(wide.log_prob(value), expected, rtol=0, atol=1e-10)


def test_scores_of_the_programs_take_no_weight_for_each_draw_and_centre(monkeypatch) -> None:
    shapes, log_sum = [], priors._log_sum

    def seen(a: torch.Tensor, b: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        shapes.append(bias.shape)
        return log_sum(a, b, bias)

    monkeypatch.setattr(priors, "_log_sum", seen)
    score(*pair_of(rows(9)), rows(5), num_samples=4)
    assert shapes[-1] == (9,)


def test_values_and_exemplars_far_from_the_origin_count_in_single_precision() -> None:
    mix = mixture()
    value = torch.tensor([[1e3, 0.0], [1e6, -1e6]])
    expected = by_pyro(mix).log_prob(value.double())
    torch.testing.assert_close(mix.log_prob(value).double(), expected, rtol=1e-4, atol=0)
    centres = 5.0 + 0.01 * torch.randn(4, 8)
    mix = ExemplarMixture(torch.zeros(5), centres, torch.full((8,), 0.03), torch.full((8,), 3.0))
    expected = by_pyro(mix).log_prob(centres)
    torch.testing.assert_close(mix.log_prob(centres), expected, rtol=1e-3, atol=1e-2)


def test_samples_have_the_mixtures_mean_and_spread() -> None:
    mix = mixture()
    draws = mix.sample(torch.Size([40_000]))
    expected = by_pyro(mix)
    torch.testing.assert_close(draws.mean(0), expected.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(draws.var(0), expected.variance, rtol=0.05, atol=0)


def test_in_training_a_row_is_no_exemplar_of_itself_nor_of_its_copies() -> None:
    x = torch.cat([rows(6), rows(6)[:1]])  # the first row twice
    prior = prior_of(x).train()
    weights = prior(x).log_weights.exp()
    assert weights.shape == (7, 8)
    left_out = (weights[:, :-1] == 0).sum(1)
    assert left_out.tolist() == [2, 1, 1, 1, 1, 1, 2]
    torch.testing.assert_close(weights.sum(1), torch.ones(7))
    prior.eval()
    assert (prior(x).log_weights > -math.inf).all(), "in scores every exemplar counts"
    x, value = rows(1), torch.randn(1, 2)
    prior = prior_of(x).train()  # a lone exemplar left out leaves the wide part
    wide = dist.Normal(0.0, prior.log_broad.exp()).to_event(1).log_prob(value)
    torch.testing.assert_close(prior(x).log_prob(value), wide)


def test_scores_follow_the_guide_as_it_is_now() -> None:
    """Each held-out evaluation of a run must see the exemplars where the encoder puts them now."""
    x = rows(40)
    model, guide = pair_of(x)
    score(model, guide, x, num_samples=4)
    train(model, guide, x, num_steps=5, learning_rate=0.1, progress=False)
    kept = score(model, guide, x, num_samples=4)
    fresh = Model(3, 2, (8,), "normal", dropout=0.0, prior=ExemplarPrior(x, guide.locate, 2))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(kept.elbo, score(fresh, guide, x, num_samples=4).elbo)


def test_every_parameter_learns_and_the_guides_are_trained_once() -> None:
    x = rows(40)
    model, guide = pair_of(x)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in guide.parameters()}
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(model, guide, x, num_steps=5, progress=False)
    unchanged = [k for k, v in model.state_dict().items() if torch.equal(v, before[k])]
    assert unchanged == ["prior.rows"]


def test_at_most_so_many_rows_are_remembered() -> None:
    prior = prior_of(rows(30), max_exemplars=7)
    assert prior.rows.shape == (7, 3)
    prior.remember(rows(5))
    assert prior.rows.shape == (5, 3)
    with pytest.raises(ValueError, match="rows must hold at least one exemplar"):
        prior.remember(rows(5)[:0])
    with pytest.raises(ValueError, match="per_step must be an integer of at least 1"):
        prior_of(rows(5), per_step=0)


CONFIG = ExperimentConfig(
    dataset="breast_cancer", preprocessing="mixed", likelihood="mixed", latent_dim=None,
    prior="exemplar", start_scale=0.1, encoder_dims=(8,), decoder_dims=(8,), num_steps=30,
    validation_share=0.2, num_samples=5, dropout=0.0,
)  # fmt: skip


def is_in(some: torch.Tensor, all_rows: torch.Tensor) -> torch.Tensor:
    return (some[:, None] == all_rows).all(-1).any(1)


def test_validation_rows_choose_the_step_and_are_exemplars_only_afterwards(monkeypatch) -> None:
    x, seen = rows(100), []
    config = replace(CONFIG, likelihood="normal", preprocessing="standard")
    model, guide = build(config, 3, x)
    assert model.prior.rows.shape == (100, 3) and model.latent_dim == 3

    def spy(model, guide, x, **options):
        seen.append((model.prior.rows.clone(), x, options["held_out"]))
        return train(model, guide, x, **options)

    monkeypatch.setattr(fitting, "train", spy)
    history = fit(config, model, guide, x, None, progress=False)
    ((exemplars, trained, held_out),) = seen
    assert is_in(exemplars, trained).all() and not is_in(held_out, exemplars).any()
    assert history.frame["held_out_elbo"].notna().sum() == 3
    assert history.best_step == history.frame["held_out_elbo"].idxmax()
    assert len(model.prior.rows) == 100 and is_in(x, model.prior.rows).all()


def test_a_run_with_exemplars_and_mixed_columns_is_rebuilt_from_its_folder(tmp_path) -> None:
    result = run(CONFIG)
    write(result, CONFIG, tmp_path / "run")
    _, model, guide = load_programs(tmp_path / "run")
    state = model.state_dict() | {f"guide.{k}": v for k, v in guide.state_dict().items()}
    assert len(state) == len(result.parameters)
    for name, value in result.parameters.items():
        torch.testing.assert_close(state[name.removeprefix("model.")], value, rtol=0, atol=0)


def test_a_training_step_takes_a_part_of_the_rows_drawn_anew() -> None:
    x = rows(30)
    prior = prior_of(x, per_step=7).train()
    one, other = prior(x), prior(x)
    assert one.log_weights.shape == (30, 8)
    assert not torch.equal(one.centres, other.centres)


@pytest.mark.parametrize("count", [5, 30])
def test_the_wide_part_has_its_share_of_any_number_of_exemplars(count) -> None:
    share = prior_of(rows(count)).eval()(rows(4)).log_weights.exp()[..., -1]
    torch.testing.assert_close(share, torch.full_like(share, BROAD_WEIGHT / (1 + BROAD_WEIGHT)))


def test_exemplars_are_drawn_from_all_rows_by_the_seed() -> None:
    x = rows(200)
    drawn = []
    for seed in (0, 0, 1):
        with seeded(seed):
            drawn.append(prior_of(x, max_exemplars=50).rows)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert 0 < is_in(drawn[0], x[:50]).sum() < 50


def test_a_copy_of_the_pair_has_its_own_encoder() -> None:
    model_copy, guide_copy = deepcopy(pair_of(rows(5)))
    assert model_copy.prior.locate.__self__ is guide_copy


def test_gaps_under_an_exemplar_prior_add_up() -> None:
    model, guide = pair_of(rows(9), flow="planar", num_flows=2)
    options = {"num_samples": 50, "num_steps": 5, "refine": False}
    gaps = inference_gap(deepcopy(model), guide, rows(4), **options)
    assert gaps.inference_gap.isfinite().all()
