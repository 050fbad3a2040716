"""The simulated queue of results/streaming/queueing.py obeys what is known of M/M/2 and D/D/2."""

import runpy
from pathlib import Path

import numpy as np
import pytest

QUEUEING = Path(__file__).parents[1] / "results" / "streaming" / "queueing.py"


def test_waits_are_those_that_theory_knows() -> None:
    queueing = runpy.run_path(str(QUEUEING))
    waits, lee_longton = queueing["waits"], queueing["lee_longton"]
    # Three at once, two workers: the third waits for the first that is done.
    np.testing.assert_array_equal(waits(np.zeros(3), np.array([5.0, 2.0, 1.0])), [0, 0, 2])
    assert not waits(np.arange(100.0), np.full(100, 1.9)).any()
    # The formula is exact for M/M/2; the mean of 100,000 waits is within 5 of 100 of it.
    rng = np.random.default_rng(0)
    services = rng.exponential(1.0, 100_000)
    arrivals = np.cumsum(rng.exponential(1 / 1.2, 100_000))
    exact = 0.6**2 / (1 - 0.6**2)
    assert lee_longton(1.2, services) == pytest.approx(exact, rel=0.02)
    assert waits(arrivals, services).mean() == pytest.approx(exact, rel=0.05)
    assert lee_longton(2.1, services) == np.inf
