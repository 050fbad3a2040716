"""Log weights against independent implementations (arviz-stats, Pyro) and against their laws."""

import math

import numpy as np
import pytest
import torch
from arviz_stats.base import array_stats
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.ops.stats import fit_generalized_pareto

from pyro_vaeflow.inference import importance, psis

INF, NAN = math.inf, math.nan
PER_ROW = {
    "log_evidence": importance.log_evidence,
    "log_evidence_stderr": importance.log_evidence_stderr,
    "effective_sample_size": importance.effective_sample_size,
    "khat": importance.khat,
}


def normal_log_weights(num_samples, num_data, scale=1.0, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(num_samples, num_data, generator=generator, dtype=dtype) - 40


def arviz(log_weight):
    """Row by row: k-hat of arviz-stats 0.8's psislw, r_eff=1.

    psislw takes the negative of the log weights. (`array_stats.pareto_khat(log_weights=True)` is
    another quantity: it fits the tail of the log weights themselves.)
    """
    return np.array([array_stats.psislw(-row)[1] for row in log_weight.double().T.numpy()])


# --- against other implementations ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [0.01, 0.5, 2.0, 10.0, 50.0])
@pytest.mark.parametrize("num_samples", [25, 100, 225, 226, 1000])  # both tail rules, both edges
def test_khat_equals_arviz(num_samples, scale, dtype):
    log_weight = normal_log_weights(num_samples, 8, scale, dtype=dtype)
    # 1e-5 is the bound asked for; float64 agrees to 1e-12, float32 only rounds its result
    np.testing.assert_allclose(importance.khat(log_weight), arviz(log_weight), rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("num_samples", [50, 100, 400])
def test_khat_equals_pyro_on_the_same_tail(num_samples):
    log_weight = normal_log_weights(num_samples, 20, 1.5)
    size = min(num_samples // 5, math.floor(3 * num_samples**0.5))
    weight = (log_weight - log_weight.max(0).values).exp().sort(0).values
    excess = weight[-size:] - weight[-size - 1]
    expected = [fit_generalized_pareto(row)[0] for row in excess.T]  # pyro-ppl 1.9.2
    np.testing.assert_allclose(importance.khat(log_weight), expected, atol=1e-5)


def test_some_zero_weights_equal_arviz():
    log_weight = normal_log_weights(100, 6)
    log_weight[:50, :3] = -INF
    np.testing.assert_allclose(importance.khat(log_weight), arviz(log_weight), atol=1e-5)


@pytest.mark.parametrize("k", [0.2, 0.7, 1.2])
def test_khat_recovers_a_known_tail_index(k):
    # w = u^-k has an exact generalised Pareto tail of index k; 0.05 is what is left at 40,000 draws
    # of the prior's pull, 10 (0.5 - k) / 610, and of the quantiles' spacing
    uniform = (torch.arange(40_000, dtype=torch.float64) + 0.5) / 40_000
    log_weight = -k * uniform.log().unsqueeze(-1)
    assert importance.khat(log_weight).item() == pytest.approx(k, abs=0.05)


def test_evidence_ess_and_stderr_equal_their_formulas():
    log_weight = normal_log_weights(30, 5)
    weight = np.exp(log_weight.numpy())
    mean = weight.mean(0)
    expected = {
        "log_evidence": np.log(mean),
        "log_evidence_stderr": weight.std(0, ddof=1) / math.sqrt(30) / mean,
        "effective_sample_size": weight.sum(0) ** 2 / (weight**2).sum(0),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(PER_ROW[name](log_weight), value, rtol=1e-12, err_msg=name)


def test_stderr_is_calibrated_on_lognormal_weights():
    # log w ~ Normal(0, 1/2): log E[w] = 1/8, relative variance exp(1/4) - 1 a draw
    num_samples = 400
    log_weight = normal_log_weights(num_samples, 4000, 0.5) + 40
    error = importance.log_evidence(log_weight) - 0.125
    stderr = importance.log_evidence_stderr(log_weight)
    expected = math.sqrt(math.expm1(0.25) / num_samples)
    assert stderr.mean().item() == pytest.approx(expected, rel=0.02)
    assert error.std().item() == pytest.approx(expected, rel=0.04)  # 1.1% is its own spread
    within_two = (error.abs() < 2 * stderr).double().mean().item()
    assert within_two == pytest.approx(0.9545, abs=0.015)
    # biased low, by half the squared standard error: 3.6e-4, estimated here to 2.7e-4
    assert error.mean().item() == pytest.approx(-(expected**2) / 2, abs=1e-3)


def test_the_evidence_bound_rises_with_the_draws():
    log_weight = normal_log_weights(64, 4000, 1.5)
    means = [importance.log_evidence(log_weight[:k]).mean().item() for k in (1, 4, 16, 64)]
    assert means == sorted(means)
    assert means[-1] < -40 + 1.5**2 / 2


# --- laws ---


@settings(deadline=None, max_examples=30)
@given(
    num_samples=st.integers(2, 300),
    num_data=st.integers(1, 4),
    scale=st.floats(0.01, 20),
    shift=st.floats(-1e3, 1e3),
    seed=st.integers(0, 2**31),
)
def test_laws_of_any_weights(num_samples, num_data, scale, shift, seed):
    log_weight = normal_log_weights(num_samples, num_data, scale, seed=seed)
    before = {name: function(log_weight) for name, function in PER_ROW.items()}
    close = {"rtol": 1e-6, "atol": 1e-6, "equal_nan": True}  # k-hat: nan below 25 draws

    shifted = {name: function(log_weight + shift) for name, function in PER_ROW.items()}
    shifted["log_evidence"] = shifted["log_evidence"] - shift
    order = torch.randperm(num_samples, generator=torch.Generator().manual_seed(seed))
    permuted = {name: function(log_weight[order]) for name, function in PER_ROW.items()}
    for name, value in before.items():
        assert value.shape == (num_data,)
        torch.testing.assert_close(shifted[name], value, **close)
        torch.testing.assert_close(permuted[name], value, **close)

    ess, stderr = before["effective_sample_size"], before["log_evidence_stderr"]
    assert (ess >= 1 - 1e-9).all() and (ess <= num_samples * (1 + 1e-9)).all()
    torch.testing.assert_close(num_samples / ess, 1 + (num_samples - 1) * stderr**2)
    assert (before["log_evidence"] >= log_weight.mean(0) - 1e-9).all()  # Jensen: above the ELBO
    assert before["khat"].isnan().all() == (num_samples < 25)


@pytest.mark.parametrize("name", PER_ROW)
def test_a_batch_equals_its_rows_and_its_blocks(name, monkeypatch):
    function = getattr(importance, name)
    log_weight = torch.cat(
        [normal_log_weights(100, 4, s) for s in (0.0, 1e-12, 0.1, 3.0, 600.0)], dim=1
    )
    batch = function(log_weight)
    rows = [function(log_weight[:, i : i + 1]) for i in range(20)]
    torch.testing.assert_close(torch.cat(rows, dim=-1), batch, equal_nan=True)
    monkeypatch.setattr(psis, "_BLOCK", 3 * psis._grid_size(20) * 20)  # blocks of 3 rows, 2 left
    torch.testing.assert_close(function(log_weight), batch, equal_nan=True)


def test_the_gradient_of_the_evidence_is_the_normalised_weight():
    log_weight = normal_log_weights(10, 3).requires_grad_()
    importance.log_evidence(log_weight).sum().backward()
    torch.testing.assert_close(log_weight.grad, log_weight.detach().softmax(0))
    for name in ("log_evidence_stderr", "effective_sample_size", "khat"):
        assert not getattr(importance, name)(log_weight).requires_grad, name


# --- rows without an ordinary answer ---


def degenerate(num_samples=100):
    """Name -> (log weights of a row, evidence, stderr, ess, khat); None: any finite number."""
    usual = normal_log_weights(num_samples, 1)[:, 0]
    level = torch.full_like(usual, -2.5)

    def first(count, value, rest=usual):
        return torch.cat([torch.full_like(usual[:count], value), rest[count:]])

    return {
        "equal": (level, -2.5, 0.0, 100.0, -INF),
        "equal to rounding": (level + 1e-13 * usual, None, None, None, -INF),
        "level tail": (first(80, -30.0, level), None, None, None, -INF),
        "one above many": (first(99, -60.0, level), None, 1.0, 1.0, INF),
        "tied with the cutoff": (first(95, -60.0), None, None, None, INF),
        "most are zero": (first(90, -INF), None, None, None, INF),
        "one is not zero": (first(99, -INF), None, 1.0, 1.0, INF),
        "hundreds of nats apart": (600 * usual, None, None, None, INF),
        "all are zero": (first(100, -INF), -INF, INF, 0.0, INF),
        "a nan": (first(1, NAN), NAN, NAN, NAN, NAN),
        "an infinite weight": (first(1, INF), INF, NAN, NAN, NAN),
        "nan and infinite": (first(1, NAN, first(2, INF)), NAN, NAN, NAN, NAN),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", degenerate())
def test_degenerate_rows_have_their_documented_value(name, dtype):
    row, *expected = degenerate()[name]
    # among ordinary rows, which must not notice
    usual = normal_log_weights(100, 2, seed=3)
    log_weight = torch.stack([usual[:, 0], row, usual[:, 1]], dim=1).to(dtype)
    for (function_name, function), value in zip(PER_ROW.items(), expected, strict=True):
        out = function(log_weight)
        assert out.dtype == dtype
        message = f"{function_name}: {out[1].item()}"
        if value is None:
            assert out[1].isfinite(), message
        else:
            assert out[1].item() == pytest.approx(value, nan_ok=True, abs=1e-6), message
        torch.testing.assert_close(out[::2], function(usual.to(dtype)))


def test_exactly_equal_weights_are_exact():
    for value in (-700.1, 0.3, 1e4):
        log_weight = torch.full((37, 2), value)
        assert (importance.log_evidence_stderr(log_weight) == 0).all()
        assert (importance.effective_sample_size(log_weight) == 37).all()
        torch.testing.assert_close(importance.log_evidence(log_weight), log_weight[0])


@pytest.mark.parametrize("num_samples", [1, 2, 24])
def test_few_draws_have_no_khat(num_samples):
    log_weight = normal_log_weights(num_samples, 3)
    assert importance.khat(log_weight).isnan().all()
    assert importance.log_evidence_stderr(log_weight).isnan().all() == (num_samples == 1)
    if num_samples == 1:
        torch.testing.assert_close(importance.log_evidence(log_weight), log_weight[0])
        assert (importance.effective_sample_size(log_weight) == 1).all()


@pytest.mark.parametrize("name", PER_ROW)
def test_shapes_and_types_are_checked(name):
    function = getattr(importance, name)
    assert function(torch.zeros(30, 0)).shape[-1] == 0
    for shape in [(5,), (0, 3), (2, 3, 4), ()]:
        with pytest.raises(ValueError, match=r"log_weight must have shape \(num_samples"):
            function(torch.zeros(shape))
    for wrong in [torch.zeros(30, 2, dtype=torch.long), np.zeros((30, 2)), [[0.0]]]:
        with pytest.raises(TypeError, match="log_weight must be a floating-point torch.Tensor"):
            function(wrong)
