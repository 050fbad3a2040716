"""The stopping rule: flat is a slope below its noise, and the rate falls before training ends."""

import numpy as np
import pytest

from pyro_vaeflow import Cooldown, linear
from pyro_vaeflow.inference.cooldown import is_flat
from tests.programs import ZOO, rows


def test_noise_is_flat_and_a_slope_of_its_size_is_not() -> None:
    """A slope passes below its standard error in five of six windows of noise, by t's 6 degrees."""
    draw, steps = np.random.default_rng(0), np.arange(8.0)
    noise = draw.normal(size=(400, 8))
    assert 0.77 < np.mean([is_flat(steps, bounds) for bounds in noise]) < 0.88
    assert np.mean([is_flat(steps, bounds + steps) for bounds in noise]) < 0.01
    assert all(is_flat(steps, bounds - steps) for bounds in noise)


def test_training_goes_on_until_the_bound_is_flat_and_ends_once_the_rate_has_fallen() -> None:
    options = {"held_out": rows(50), "eval_every": 10, "num_steps": 800}
    rule = Cooldown(0.05)
    pair = ZOO["two_latents"]()
    history = pair.fit(learning_rate=rule, callbacks=[rule], **options)
    frame, flat_at = history.frame, rule.flat_at
    assert 80 <= flat_at < 600 and len(frame) == -(-flat_at * 5 // 40) * 10  # the evaluation after
    rate = frame["learning_rate"]
    assert (rate[:flat_at] == 0.05).all() and rate.is_monotonic_decreasing
    assert rate[flat_at + flat_at // 8] == pytest.approx(0.025, rel=0.05)
    assert rate.iloc[-1] < 5e-3
    assert frame["held_out_elbo"].max() > frame["held_out_elbo"][flat_at - 1] - 0.01


def test_the_bound_is_not_flat_while_annealing_changes_what_is_minimised() -> None:
    rule = Cooldown(0.0)  # flat from the start
    options = {"held_out": rows(20), "eval_every": 2, "num_steps": 100, "schedule": linear(40)}
    ZOO["diagonal"]().fit(learning_rate=rule, callbacks=[rule], **options)
    assert rule.flat_at == 40 + 8 * 2


def test_without_a_flat_bound_the_rate_falls_at_the_end_of_the_budget() -> None:
    rule = Cooldown(0.01, window=3, share=0.5)
    history = ZOO["diagonal"]().fit(learning_rate=rule, callbacks=[rule], num_steps=30)
    assert rule.flat_at == 20 and len(history.frame) == 30
    rate = history.frame["learning_rate"]
    np.testing.assert_allclose(rate[20:], 0.01 * (1.0 - np.arange(10) / 10))


@pytest.mark.parametrize("wrong", [{"window": 2}, {"share": 0.0}])
def test_a_bad_setting_is_named(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Cooldown(**wrong)
