"""Scores: exact where there is a closed form, and functions of the row and the seed alone."""

import copy
import warnings

import pyro
import pytest
import torch

from pyro_vaeflow import KhatWarning, Scores, contributions, log_weights, score
from pyro_vaeflow.inference import importance, scoring
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.traces import take_rows
from tests.programs import ZOO, LinearGaussian, Pair

FIELDS = ("log_evidence", "stderr", "ess", "elbo", "expected_log_likelihood")


def assert_same(one: Scores, other: Scores, rows=slice(None)) -> None:
    for name in FIELDS:
        expected = getattr(one, name)[rows]
        torch.testing.assert_close(expected, getattr(other, name), rtol=1e-9, atol=1e-9)


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
    pair = Pair(exact.model, exact.diagonal_guide, exact.sample(1000))
    pair.fit(num_steps=50)
    scores, expected = pair.score(num_samples=1000), exact.log_evidence(pair.x)
    off = (scores.log_evidence - expected) / scores.stderr
    assert (off.abs() < 3.0).float().mean() >= 0.99
    assert off.mean().abs() < 0.15  # rows err independently
    ratio = (scores.log_evidence - expected).exp()  # E_q[w] / p(x) = 1
    assert abs(ratio.mean() - 1.0) < 3.0 * ratio.std() / 1000**0.5
    assert scores.elbo.mean() < expected.mean() - 0.01


@pytest.mark.usefixtures("float64")
def test_other_rows_their_order_and_chunks_change_no_score(row_pair: Pair) -> None:
    whole, order = row_pair.score(), torch.randperm(30)
    few = torch.tensor([4, 4, 29, 0, 4])
    assert_same(whole, row_pair.score(chunk_size=7))
    for some, chunk_size in ((order, 11), (few, None), (slice(3, 4), None)):
        part = row_pair.score(take_rows(row_pair.args, some), chunk_size=chunk_size)
        assert_same(whole, part, some)


def test_the_seed_decides_bit_for_bit_and_all_is_left_as_it_was(row_pair: Pair) -> None:
    rows = copy.deepcopy(row_pair.args)
    row_pair.fit(num_steps=1)
    shown = {name: value.clone() for name, value in pyro.get_param_store().items()}
    one = row_pair.score(seed=1)
    torch.randn(1)
    again, other = row_pair.score(seed=1), row_pair.score(seed=2)
    assert all(torch.equal(getattr(one, name), getattr(again, name)) for name in FIELDS)
    assert not torch.equal(one.log_evidence, other.log_evidence)
    torch.testing.assert_close(rows, row_pair.args, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(dict(pyro.get_param_store()), shown, rtol=0, atol=0)


def test_dropout_is_off_in_scores_and_on_again_after() -> None:
    pair = ZOO["bound_methods"]()
    vae = pair.model.__self__.train()
    one = pair.score()
    assert all(part.training for part in vae.modules())
    vae.eval()
    assert_same(one, pair.score())


def test_scores_and_log_weights_are_of_one_pass() -> None:
    pair = ZOO["iaf"]()
    log_weight = log_weights(*pair.programs, pair.x, num_samples=40, seed=3)
    scores = pair.score(num_samples=40, seed=3)
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


def test_a_pilot_says_how_many_draws_reach_the_tolerance() -> None:
    exact = LinearGaussian()
    pair = Pair(exact.model, exact.diagonal_guide, exact.sample(60))
    pilot, options = pair.score(num_samples=20), {"num_samples": 20, "tol": 0.02}
    scores = pair.score(**options, max_samples=1000)
    assert {*scores.num_samples.tolist()} <= {20, 40, 80, 160, 320, 640, 1000}
    assert len(scores.num_samples.unique()) > 3
    needed = 20 * (pilot.stderr / 0.02).square().clamp(min=1.0)
    enough = (scores.num_samples >= needed) & (scores.num_samples < 2 * needed + 1)
    assert (enough | (scores.num_samples == 1000)).all()
    assert scores.stderr.median() < 0.02 and pilot.stderr.median() > 0.02
    part = pair.score(pair.x[7:9], **options, max_samples=1000)
    torch.testing.assert_close(part.log_evidence, scores.log_evidence[7:9])


@pytest.mark.usefixtures("float64")
def test_the_draws_that_make_the_scores_are_fresh(monkeypatch) -> None:
    exact = LinearGaussian()
    passes = []

    def recorded(*args, **options):
        for chunk in trace_chunks(*args, **options):
            passes.append(chunk.terms)
            yield chunk

    monkeypatch.setattr(scoring, "trace_chunks", recorded)
    pair = Pair(exact.model, exact.diagonal_guide, exact.sample(12))
    scores = pair.score(num_samples=200, tol=1e-9, max_samples=1000)
    assert [len(terms.log_weight) for terms in passes] == [200, 1000]
    every = torch.cat([terms.log_weight for terms in passes])
    assert len(every.unique(dim=0)) == len(every)  # no draw twice
    last = passes[-1].log_weight
    torch.testing.assert_close(scores.log_evidence, importance.log_evidence(last))
    torch.testing.assert_close(scores.khat, importance.khat(last))
    assert scores.num_samples.tolist() == [1000] * 12


def test_a_single_draw_never_meets_the_tolerance() -> None:
    scores = ZOO["diagonal"]().score(num_samples=1, tol=1e-9, max_samples=4)
    assert (scores.num_samples == 4).all() and scores.stderr.isfinite().all()


@pytest.mark.usefixtures("float64")
def test_the_choice_of_the_draws_biases_nothing() -> None:
    """E[w] = p(x): rows that a pilot of few draws found easy by luck would be too low."""
    exact = LinearGaussian()
    pair = Pair(exact.model, exact.narrow_guide(0.3), exact.sample(4000))
    scores = pair.score(num_samples=8, tol=0.2, max_samples=64)
    assert len(scores.num_samples.unique()) == 4
    ratio = (scores.log_evidence - exact.log_evidence(pair.x)).exp()
    assert abs(ratio.mean() - 1.0) < 3.0 * ratio.std() / 4000**0.5


@pytest.mark.parametrize("run", [score, contributions])
def test_a_guide_that_is_too_narrow_is_told_and_an_exact_one_is_not(run) -> None:
    exact = LinearGaussian()
    x, message = exact.sample(20), r"\d+ of 20 rows have k-hat above 0.7 \(rows \d+.*refine=True"
    with pytest.warns(KhatWarning, match=message):
        run(exact.model, exact.narrow_guide(0.05), x, num_samples=500)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(exact.model, exact.exact_guide, x, num_samples=500)


def test_no_rows_have_no_scores() -> None:
    pair = ZOO["diagonal"]()
    assert pair.score(pair.x[:0]).log_evidence.shape == (0,)
    assert log_weights(*pair.programs, pair.x[:0], num_samples=4).shape == (4, 0)


@pytest.mark.parametrize(
    "options",
    [
        {"num_samples": 0},
        {"num_samples": 2.5},
        {"chunk_size": 0},
        {"chunk_size": -1},
        {"tol": 0.0},
        {"max_samples": 29, "tol": 0.1},
        {"refine": "some"},
    ],
)
def test_a_bad_size_is_named(options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be .* got"):
        ZOO["diagonal"]().score(**options)
