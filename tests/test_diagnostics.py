"""Inference gaps against closed forms of the linear-Gaussian model, and laws of every pair."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.distributions import constraints

from pyro_vaeflow import ExemplarPrior, Guide, Model, log_weights, score
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.inference_gap import Gaps, inference_gap, split_gap
from pyro_vaeflow.inference.parameters import param_scope
from pyro_vaeflow.inference.row_guides import RowGuides
from pyro_vaeflow.inference.traces import as_args, take_rows
from tests.programs import ZOO, LinearGaussian, Pair

pytestmark = pytest.mark.usefixtures("float64")


def correlated(correlation: float = 0.45) -> LinearGaussian:
    """The posterior's precision has this correlation; below 1/2 weights have a variance."""
    exact = LinearGaussian()
    precision = 4.0 * torch.tensor([[1.0, correlation], [correlation, 1.0]])
    factor = torch.linalg.cholesky(exact.scale**2 * (precision - torch.eye(2)))
    exact.weight = torch.cat([factor.T, torch.zeros(1, 2)])
    exact.covariance = torch.linalg.inv(precision)
    exact.gain = exact.covariance @ exact.weight.T / exact.scale**2
    return exact


def kl_of_best_factorised(exact: LinearGaussian) -> float:
    """Its variances are 1 / P_ii, so tr(P D) = d and KL = (sum_i log P_ii - log det P) / 2."""
    precision = torch.linalg.inv(exact.covariance)
    return 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()


def gaps_of(pair: Pair, x=None, **options) -> Gaps:
    x = pair.x if x is None else x
    options = {"num_samples": 60, "num_steps": 4, "refine": False} | options
    return inference_gap(*pair.programs, x, **options)


def assert_same(one: Gaps, other: Gaps, rows=slice(None)) -> None:
    for name in ("log_evidence", "local_elbo", "elbo", "approximation_gap", "amortization_gap"):
        expected, actual = getattr(one, name)[rows], getattr(other, name)
        torch.testing.assert_close(actual, expected, rtol=1e-7, atol=1e-7)


def normal_guide(exact: LinearGaussian, gain: torch.Tensor | None):
    """Factorised normals at learned linear functions of x, or of nothing; scales start at 1."""

    def guide(x: torch.Tensor) -> None:
        scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
        if gain is None:
            loc = pyro.param("loc", torch.zeros(2))
        else:
            loc = (x - exact.offset) @ pyro.param("gain", gain).T
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


# --- closed forms ---


def test_an_exact_guide_has_no_gaps_and_one_with_parameters_hardly_moves() -> None:
    exact = LinearGaussian()
    x = exact.sample(50)
    gaps = inference_gap(exact.model, exact.exact_guide, x, num_samples=50)
    torch.testing.assert_close(gaps.log_evidence, exact.log_evidence(x), rtol=0, atol=1e-10)
    for name in ("approximation_gap", "amortization_gap", "approximation_stderr"):
        torch.testing.assert_close(getattr(gaps, name), torch.zeros(50), rtol=0, atol=1e-10)

    def guide(x: torch.Tensor) -> None:
        gain = pyro.param("gain", exact.gain)
        start = torch.linalg.cholesky(exact.covariance)
        factor = pyro.param("factor", start, constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            loc = (x - exact.offset) @ gain.T
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    gaps = inference_gap(exact.model, guide, x[:20])
    torch.testing.assert_close(gaps.elbo, exact.log_evidence(x[:20]), rtol=0, atol=1e-10)
    assert (gaps.amortization_gap.abs() <= 4.0 * gaps.amortization_stderr).all()
    assert gaps.amortization_gap.abs().max() < 0.01 and gaps.approximation_gap.max() < 0.01


def test_the_approximation_gap_of_a_learned_factorised_guide_is_its_closed_form() -> None:
    exact = correlated()
    pair = Pair(exact.model, normal_guide(exact, torch.zeros(2, 3)), exact.sample(1000))
    pair.fit(num_steps=400, learning_rate=lambda t: 0.05 * (1 - t / 400))
    gaps = gaps_of(pair, pair.x[:200], num_samples=1000, num_steps=20)
    assert kl_of_best_factorised(exact) > 0.1
    best = pytest.approx(kl_of_best_factorised(exact), abs=0.01)
    assert gaps.approximation_gap.mean().item() == best
    assert gaps.amortization_gap.mean().item() == pytest.approx(0.0, abs=0.01)


def test_standard_errors_are_of_the_size_of_the_errors() -> None:
    """The guide starts as the best factorised one, so without a step both q are that one."""
    exact = LinearGaussian()
    x = exact.sample(500)
    gaps = inference_gap(exact.model, exact.diagonal_guide, x, num_samples=2000, num_steps=0)
    off = (gaps.approximation_gap - kl_of_best_factorised(exact)) / gaps.approximation_stderr
    assert (off.abs() < 3.0).double().mean() >= 0.99
    assert off.std().item() == pytest.approx(1.0, abs=0.1)
    assert gaps.amortization_gap.abs().max() == 0.0


def test_the_gap_of_one_posterior_for_all_rows_is_recovered() -> None:
    """The worst amortization: q does not know x. Its gap has a closed form row by row."""
    exact = correlated()
    x = exact.sample(30)
    pair = Pair(exact.model, normal_guide(exact, None), x)
    gaps = gaps_of(pair, num_samples=4000, num_steps=100, learning_rate=0.1)
    posterior = dist.MultivariateNormal(exact.posterior_loc(x), exact.covariance)
    prior = dist.MultivariateNormal(torch.zeros(30, 2), torch.eye(2))
    kl = torch.distributions.kl_divergence(prior, posterior)
    best = kl_of_best_factorised(exact)
    assert (kl - best).mean() > 1.0
    error = gaps.amortization_gap - (kl - best)
    assert (error.abs() < 4.0 * gaps.amortization_stderr + 0.02).all()
    assert gaps.approximation_gap.mean().item() == pytest.approx(best, abs=0.01)
    torch.testing.assert_close(gaps.log_evidence, exact.log_evidence(x), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    "flow, depth, conditioned",
    [("diagonal", 0, True), ("planar", 2, True), ("iaf", 2, False)],
)
def test_an_untrained_guide_is_brought_to_its_familys_best(flow, depth, conditioned) -> None:
    """Every family holds the factorised normals, so none may end below the best of these."""
    exact = correlated()
    x = exact.sample(20)
    sizes = {"latent_dim": 2, "hidden_dims": (8,)}
    # gated layers bend too slowly for 200 steps
    options = {"flow_options": {"stable": False} if flow == "iaf" else {}}
    guide = Guide(3, flow=flow, num_flows=depth, conditioned=conditioned, **sizes, **options)
    gaps = inference_gap(exact.model, guide, x, learning_rate=0.1, num_steps=120)
    assert gaps.amortization_gap.mean() > 1.0
    best = kl_of_best_factorised(exact)
    assert -1e-9 <= gaps.approximation_gap.mean().item() < best + 0.01
    if flow == "diagonal":
        assert gaps.approximation_gap.mean().item() == pytest.approx(best, abs=0.01)
    if flow == "iaf":  # one autoregressive layer turns a factorised normal into any normal
        assert gaps.approximation_gap.mean().item() < 0.3 * best


def test_the_evidence_behind_a_gap_is_refined_where_it_cannot_be_believed() -> None:
    """A guide without parameters, far too narrow."""
    exact = LinearGaussian()
    x, narrow = exact.sample(3), exact.narrow_guide(0.05)
    options = {"num_samples": 200, "num_steps": 0}
    low = inference_gap(exact.model, narrow, x, **options, refine=False)
    gaps = inference_gap(exact.model, narrow, x, **options)
    unsure, off = low.khat > 0.7, gaps.log_evidence - exact.log_evidence(x)
    assert unsure.any() and (gaps.khat <= 0.7).all() and off.abs().max() < 0.1
    assert off.abs().max() < 0.2 * (low.log_evidence - exact.log_evidence(x)).abs().max()
    torch.testing.assert_close(gaps.inference_gap, gaps.log_evidence - gaps.elbo)
    assert torch.equal(gaps.elbo, low.elbo)


def test_a_discrete_latent_is_brought_to_its_exact_posterior() -> None:
    """Columns and latents are independent pairs here, so the factorised posterior is exact."""
    pair = ZOO["discrete_latent"]()
    gaps = gaps_of(pair, num_samples=2000, num_steps=200, learning_rate=0.3)
    with_or_without = torch.tensor([0.7, 0.3]).log() + dist.Normal(
        torch.tensor([0.0, 1.0]), 0.8
    ).log_prob(pair.x.unsqueeze(-1))
    expected = with_or_without.logsumexp(-1).sum(-1)
    torch.testing.assert_close(gaps.log_evidence, expected, rtol=0, atol=0.05)
    assert gaps.amortization_gap.mean() > 0.4
    assert gaps.approximation_gap.max() < 0.05


# --- laws of every pair ---


def test_gaps_of_every_pair_are_not_negative_agree_with_its_scores_and_change_nothing(
    row_pair: Pair,
) -> None:
    row_pair.fit(num_steps=1)
    x = take_rows(row_pair.args, slice(0, 3))
    owner = getattr(row_pair.guide, "__self__", row_pair.guide)
    modules = [m for m in (row_pair.model, owner) if isinstance(m, nn.Module)]

    def state() -> tuple:
        states = [m.state_dict() for m in modules]
        store = {name: value.detach() for name, value in pyro.get_param_store().items()}
        return row_pair.parameters(), copy.deepcopy(states), torch.get_rng_state(), x, store

    before = copy.deepcopy(state())
    weights = log_weights(*row_pair.programs, x)
    gaps = gaps_of(row_pair, x)
    assert (gaps.approximation_gap >= -3.0 * gaps.approximation_stderr - 1e-9).all()
    assert (gaps.amortization_gap >= -3.0 * gaps.amortization_stderr - 1e-9).all()
    scores = row_pair.score(x, num_samples=60)
    torch.testing.assert_close(gaps.elbo, scores.elbo)
    assert (gaps.log_evidence >= scores.log_evidence - 3.0 * scores.stderr - 1e-9).all()
    torch.testing.assert_close(gaps.inference_gap, gaps.log_evidence - gaps.elbo)

    torch.testing.assert_close(state(), before, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(log_weights(*row_pair.programs, x), weights)
    assert all(p.grad is None and p.requires_grad for m in modules for p in m.parameters())
    copy.deepcopy(modules)  # no tensor of vmap is left behind


def test_other_rows_their_order_and_chunks_change_no_gap() -> None:
    pair = ZOO["planar"]()
    whole = gaps_of(pair)
    assert_same(whole, gaps_of(pair, chunk_size=7))
    few = torch.tensor([4, 4, 29, 0, 4])
    assert_same(whole, gaps_of(pair, pair.x[few], chunk_size=2), few)


def test_rows_that_repeat_are_optimised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the second argument alone tells two rows apart."""
    seen = []
    amortized = RowGuides.amortized
    monkeypatch.setattr(
        RowGuides, "amortized", lambda self, rows: seen.append(len(rows)) or amortized(self, rows)
    )
    pair = ZOO["masked"]()
    x = pair.x[0][:1].expand(6, -1)
    flags = torch.tensor([True, False, True, True, False, True])
    gaps = gaps_of(pair, (x, flags), num_steps=0)
    assert set(seen) == {2}
    assert len(gaps.elbo) == 6 and gaps.elbo.unique().tolist() == gaps.elbo[:2].sort()[0].tolist()


def test_what_vmap_cannot_do_is_done_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = ZOO["iaf"]()
    expected = gaps_of(pair, pair.x[:4])

    def no_vmap(*args, **kwargs):
        raise RuntimeError("vmap: no")

    monkeypatch.setattr(torch, "vmap", no_vmap)
    assert_same(expected, gaps_of(pair, pair.x[:4]))


def test_splines_go_row_by_row_and_improve() -> None:
    pair = ZOO["spline"]()
    gaps = gaps_of(pair, pair.x[:2], num_steps=25, num_samples=300, learning_rate=0.1)
    assert (gaps.amortization_gap > 3.0 * gaps.amortization_stderr).all()


@pytest.mark.parametrize(
    "name, of_guide",
    [
        ("bound_methods", ["encoder"]),
        ("unannounced_methods", ["encoder"]),
        ("module_functions", ["encoder"]),
        ("param_functions", ["gain", "scale"]),
    ],
)
def test_the_models_parameters_are_left_out(name: str, of_guide: list[str]) -> None:
    pair = ZOO[name]()
    args = as_args(pair.x)
    depth = check_contract(*pair.programs, args)
    with param_scope(*pair.programs), pyro.validation_enabled(False):
        guides = RowGuides(*pair.programs, args, depth, "data")
        if name == "param_functions":
            store = pyro.get_param_store()
            expected = [dict(store.named_parameters())[n] for n in of_guide]
        else:
            owner = getattr(pair.guide, "__self__", None)
            encoder = owner.encoder if owner else pair.guide.__closure__[0].cell_contents
            expected = list(encoder.parameters())
    assert {id(p) for p in guides.parameters} == {id(p) for p in expected}


def test_parameters_that_model_and_guide_share_stay_as_they_are() -> None:
    """The guide could only move them by changing the model."""
    shared = nn.Linear(3, 3)

    def model(x: torch.Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(shared(z), 0.5).to_event(1), obs=x)

    def guide(x: torch.Tensor) -> None:
        pyro.module("shared", shared)
        scale = pyro.param("scale", torch.ones(3), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ shared.weight, scale).to_event(1))

    x = (torch.randn(4, 3),)
    depth = check_contract(model, guide, x)
    with param_scope(model, guide), pyro.validation_enabled(False):
        guides = RowGuides(model, guide, x, depth, "data")
        assert [p.shape for p in guides.parameters] == [(3,)]
        assert guides.shared == ["shared$$$weight"]
    with pytest.warns(UserWarning, match=r"uses 1 of the guide's parameters \(shared\$\$\$weight"):
        gaps = inference_gap(model, guide, x, num_samples=200, num_steps=20, learning_rate=0.1)
    assert gaps.amortization_gap.mean() > 0.1


def test_a_guide_that_the_model_uses_all_of_is_refused_and_a_copied_model_is_not() -> None:
    x, guide = torch.rand(6, 3), Guide(3, latent_dim=2, hidden_dims=(4,))
    model = Model(3, 2, (4,), prior=ExemplarPrior(torch.rand(20, 3), guide.locate, latent_dim=2))
    options = {"num_samples": 100, "num_steps": 40, "learning_rate": 0.1}
    with pytest.raises(ValueError, match=r"uses all \d+ parameters of the guide.*deepcopy"):
        inference_gap(model, guide, x, **options)
    gaps = inference_gap(copy.deepcopy(model), guide, x, **options)
    torch.testing.assert_close(gaps.elbo, score(model, guide, x, num_samples=100).elbo)
    assert gaps.amortization_gap.mean() > 0.1


# --- the face ---


def test_tables_also_with_gradients_off_in_the_callers_code_and_of_no_rows() -> None:
    pair = ZOO["diagonal"]()
    gaps = gaps_of(pair)
    with torch.no_grad():
        assert_same(gaps, gaps_of(pair))
    assert gaps_of(pair, pair.x[:0]).approximation_gap.shape == (0,)
    frame = gaps.to_frame()
    assert len(frame) == 30
    assert [*frame.columns[:3]] == ["log_evidence", "local_elbo", "elbo"]
    summary = gaps.summary()
    assert summary.loc["inference_gap", "mean"] == pytest.approx(gaps.inference_gap.mean().item())
    expected = gaps.amortization_gap.std().item() / math.sqrt(30)
    assert summary.loc["amortization_gap", "stderr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 1},
        {"num_steps": -1},
        {"draws_per_step": 1},
        {"chunk_size": 0},
        {"learning_rate": 0.0},
    ],
)
def test_a_bad_argument_is_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* got"):
        gaps_of(ZOO["diagonal"](), **options)


# --- the pure core ---


def test_one_lucky_draw_does_not_make_the_evidence() -> None:
    """Truth 0; the amortized weights vary so much that one draw in a thousand decides."""
    narrow = 0.1 * torch.randn(1000, 1) - 0.005
    lucky = torch.full((1000, 1), -5.0)
    lucky[17] = 8.0  # alone worth an estimate of 1.1
    assert split_gap(lucky, narrow).log_evidence.abs() < 0.02


def test_a_mode_that_one_q_misses_is_seen_under_the_other() -> None:
    """Constant weights of half the evidence against noisier ones of all of it."""
    half = torch.full((1000, 1), math.log(0.5)) + 0.01 * torch.randn(1000, 1)
    whole = torch.randn(1000, 1) - 0.5
    assert split_gap(half, whole).log_evidence.item() == pytest.approx(0.0, abs=0.15)
    assert split_gap(whole, half).log_evidence.item() == pytest.approx(0.0, abs=0.15)
