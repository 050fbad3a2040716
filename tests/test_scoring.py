"""Scores: exact where there is a closed form, and functions of the row and the seed alone."""

import copy
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vaeflow import (
    KhatWarning,
    Scores,
    contributions,
    log_weights,
    score,
    train,
)
from pyro_vaeflow.inference import importance, scoring
from pyro_vaeflow.inference.draws import draws
from pyro_vaeflow.inference.traces import take_rows
from tests.programs import ZOO, LinearGaussian, Pair

pytestmark = pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")

FIELDS = ("log_evidence", "stderr", "ess", "elbo", "expected_log_likelihood")


def scores_of(pair: Pair, x=None, **options) -> Scores:
    x = pair.x if x is None else x
    return score(pair.model, pair.guide, x, **{"num_samples": 30} | options)


def assert_same(one: Scores, other: Scores, rows=slice(None)) -> None:
    for name in FIELDS:
        torch.testing.assert_close(
            getattr(one, name)[rows], getattr(other, name), rtol=1e-9, atol=1e-9
        )


@pytest.mark.usefixtures("float64")
def test_every_weight_of_an_exact_guide_is_the_evidence() -> None:
    exact = LinearGaussian()
    x = exact.sample(200) * torch.linspace(0.1, 10.0, 200).unsqueeze(-1)
    log_weight = log_weights(exact.model, exact.exact_guide, x, num_samples=50)
    assert log_weight.shape == (50, 200)
    expected = exact.log_evidence(x).expand(50, -1)
    torch.testing.assert_close(log_weight, expected, rtol=1e-10, atol=1e-10)
    scores = score(exact.model, exact.exact_guide, x, num_samples=50)
    torch.testing.assert_close(scores.elbo, exact.log_evidence(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(scores.stderr, torch.zeros(200), rtol=0, atol=1e-10)
    torch.testing.assert_close(scores.ess, torch.full((200,), 50.0))


def test_a_learned_guides_evidence_is_within_its_own_errors() -> None:
    exact = LinearGaussian()
    x = exact.sample(1000)
    train(exact.model, exact.diagonal_guide, x, num_steps=50, learning_rate=0.02, progress=False)
    scores = score(exact.model, exact.diagonal_guide, x, num_samples=1000)
    off = (scores.log_evidence - exact.log_evidence(x)) / scores.stderr
    assert (off.abs() < 3.0).float().mean() >= 0.99
    assert off.mean().abs() < 0.15  # rows err independently
    ratio = (scores.log_evidence - exact.log_evidence(x)).exp()  # E_q[w] / p(x) = 1
    assert abs(ratio.mean() - 1.0) < 3.0 * ratio.std() / len(x) ** 0.5
    assert scores.elbo.mean() < exact.log_evidence(x).mean() - 0.01


@pytest.mark.usefixtures("float64")
def test_other_rows_their_order_and_chunks_change_no_score(row_pair: Pair) -> None:
    whole = scores_of(row_pair)
    order = torch.randperm(30)
    assert_same(whole, scores_of(row_pair, chunk_size=7))
    assert_same(whole, scores_of(row_pair, take_rows(row_pair.args, order), chunk_size=11), order)
    few = torch.tensor([4, 4, 29, 0, 4])
    assert_same(whole, scores_of(row_pair, take_rows(row_pair.args, few)), few)
    assert_same(whole, scores_of(row_pair, take_rows(row_pair.args, slice(3, 4))), slice(3, 4))


def test_the_seed_decides_bit_for_bit(row_pair: Pair) -> None:
    one = scores_of(row_pair, seed=1)
    torch.randn(1)
    again, other = scores_of(row_pair, seed=1), scores_of(row_pair, seed=2)
    assert all(torch.equal(getattr(one, name), getattr(again, name)) for name in FIELDS)
    assert not torch.equal(one.log_evidence, other.log_evidence)


def test_scoring_leaves_the_programs_and_the_callers_rows_as_they_were(row_pair: Pair) -> None:
    rows = copy.deepcopy(row_pair.args)
    train(row_pair.model, row_pair.guide, row_pair.x, num_steps=1, progress=False)
    scores_of(row_pair)
    torch.testing.assert_close(rows, row_pair.args, rtol=0, atol=0, equal_nan=True)
    assert not dict(pyro.get_param_store())


def test_dropout_is_off_in_scores_and_on_again_after() -> None:
    pair = ZOO["bound_methods"]()
    vae = pair.model.__self__.train()
    one = scores_of(pair)
    assert all(part.training for part in vae.modules())
    vae.eval()
    assert_same(one, scores_of(pair))


def test_scores_and_log_weights_are_of_one_pass() -> None:
    pair = ZOO["iaf"]()
    log_weight = log_weights(pair.model, pair.guide, pair.x, num_samples=40, seed=3)
    scores = scores_of(pair, num_samples=40, seed=3)
    torch.testing.assert_close(scores.log_evidence, log_weight.exp().mean(0).log())
    torch.testing.assert_close(scores.elbo, log_weight.mean(0))
    assert torch.equal(scores.importance, -scores.log_evidence)
    assert torch.equal(scores.reconstruction, -scores.expected_log_likelihood)
    frame = scores.to_frame()
    assert len(frame) == 30 and {*FIELDS, "khat"} <= {*frame}


def test_the_reconstruction_of_the_linear_gaussian_is_its_closed_form() -> None:
    """E_q[log p(x|z)] of a normal likelihood under a normal q, by hand."""
    exact = LinearGaussian()
    x = exact.sample(50)
    residual = x - exact.offset - exact.posterior_loc(x) @ exact.weight.T
    spread = (exact.weight @ exact.covariance @ exact.weight.T).trace()
    constant = 3 * torch.log(torch.tensor(2 * torch.pi * exact.scale**2))
    expected = -0.5 * (constant + (residual.square().sum(-1) + spread) / exact.scale**2)
    scores = score(exact.model, exact.exact_guide, x, num_samples=4000)
    torch.testing.assert_close(scores.expected_log_likelihood, expected, rtol=0, atol=0.15)
    assert (scores.expected_log_likelihood - expected).mean().abs() < 0.02


def test_adaptive_draws_reach_the_tolerance_and_no_further() -> None:
    exact = LinearGaussian()
    x = exact.sample(60)
    options = {"num_samples": 20, "tol": 0.02, "max_samples": 1000}
    scores = score(exact.model, exact.diagonal_guide, x, **options)
    hopeless = (scores.khat > 0.7) & (scores.num_samples >= 1000)
    assert ((scores.stderr <= 0.02) | hopeless | (scores.num_samples == 1000)).all()
    assert {*scores.num_samples.tolist()} <= {20, 40, 80, 160, 320, 640, 1000}
    assert len(scores.num_samples.unique()) > 3
    for drawn in scores.num_samples.unique()[1:].tolist():
        drawn_on = x[scores.num_samples == drawn]
        shorter = options | {"max_samples": max(drawn // 2, 20) if drawn < 1000 else 640}
        assert (score(exact.model, exact.diagonal_guide, drawn_on, **shorter).stderr > 0.02).all()
    part = score(exact.model, exact.diagonal_guide, x[7:9], **options)
    torch.testing.assert_close(part.log_evidence, scores.log_evidence[7:9])


@pytest.mark.usefixtures("float64")
def test_each_round_of_adaptive_draws_is_made_of_fresh_draws(monkeypatch) -> None:
    exact = LinearGaussian()
    x, pair = exact.sample(12), (exact.model, exact.diagonal_guide)
    rounds = []

    def recorded(*args, **options):
        for terms in draws(*args, **options):
            rounds.append(terms)
            yield terms

    monkeypatch.setattr(scoring, "draws", recorded)
    scores = score(*pair, x, num_samples=200, tol=1e-9, max_samples=1000)
    assert [len(terms.log_weight) for terms in rounds] == [200, 400, 800, 1000]
    every = torch.cat([terms.log_weight for terms in rounds])
    assert len(every.unique(dim=0)) == len(every)  # no draw twice
    last = rounds[-1].log_weight
    torch.testing.assert_close(scores.log_evidence, importance.log_evidence(last))
    torch.testing.assert_close(scores.khat, importance.khat(last))
    assert scores.num_samples.tolist() == [1000] * 12


def test_a_single_draw_never_meets_the_tolerance() -> None:
    pair = ZOO["diagonal"]()
    scores = scores_of(pair, num_samples=1, tol=1e-9, max_samples=4)
    assert (scores.num_samples == 4).all() and scores.stderr.isfinite().all()


def narrow_guide(exact: LinearGaussian, scale: float):
    def guide(x):
        with pyro.plate("data", len(x)):
            loc = exact.posterior_loc(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")
def test_rows_that_more_draws_hardly_help_are_left_once_their_khat_can_be_told() -> None:
    exact = LinearGaussian()
    pair = exact.model, narrow_guide(exact, 0.2)
    scores = score(*pair, exact.sample(40), num_samples=500, tol=1e-6, max_samples=4000)
    left = scores.num_samples < 4000
    assert left.any() and not left.all()
    assert (scores.num_samples[left] >= 1000).all() and (scores.khat[left] > 0.7).all()


def test_a_guide_that_is_too_narrow_is_told_and_an_exact_one_is_not() -> None:
    exact = LinearGaussian()
    x, narrow = exact.sample(20), narrow_guide(exact, 0.05)
    for run in (score, contributions):
        with pytest.warns(
            KhatWarning, match=r"\d+ of 20 rows have k-hat above 0.7 \(rows \d+.*Try more"
        ):
            run(exact.model, narrow, x, num_samples=500)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            run(exact.model, exact.exact_guide, x, num_samples=500)


def test_no_rows_have_no_scores() -> None:
    pair = ZOO["diagonal"]()
    assert scores_of(pair, pair.x[:0]).log_evidence.shape == (0,)
    assert log_weights(pair.model, pair.guide, pair.x[:0], num_samples=4).shape == (4, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"chunk_size": 0},
        {"chunk_size": -1},
        {"tol": 0.0},
        {"max_samples": 29, "tol": 0.1},
    ],
)
def test_a_bad_size_is_named(options: dict) -> None:
    pair = ZOO["diagonal"]()
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* got"):
        scores_of(pair, **options)


def test_rows_that_are_no_tensor_are_refused() -> None:
    pair = ZOO["diagonal"]()
    with pytest.raises(TypeError, match="x must be a tensor"):
        scores_of(pair, pair.x.numpy())
