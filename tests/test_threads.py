"""One detector or pair in many threads, and callers that have switched gradients off."""

import asyncio
import os
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pandas as pd
import pyro
import pytest
import torch

from pyro_vaeflow import VAEFlowDetector, inference_gap, score
from pyro_vaeflow.inference.parameters import param_scope
from tests.programs import ZOO

DRAW = np.random.default_rng(0)
FRAME = pd.DataFrame({"size": DRAW.normal(size=120), "kind": DRAW.choice(["a", "b"], 120)})
QUICK = {"num_steps": 6, "num_samples": 3, "hidden_dims": (8,), "random_state": 0}
PARTS = [slice(start, start + 20) for start in range(0, 120, 20)] * 2


@pytest.fixture(scope="module")
def detector() -> VAEFlowDetector:
    return VAEFlowDetector(**QUICK).fit(FRAME)


@pytest.fixture(autouse=True)
def process_as_before():
    """Whatever the threads do, Pyro, torch and the filters of warnings are as they were."""
    filters, store = list(warnings.filters), dict(pyro.get_param_store().named_parameters())
    yield
    assert warnings.filters == filters and not pyro.poutine.runtime._PYRO_STACK
    assert dict(pyro.get_param_store().named_parameters()).keys() == store.keys()


def test_threads_give_the_scores_of_one(detector: VAEFlowDetector) -> None:
    alone = [detector.score_samples(FRAME.iloc[part]) for part in PARTS]
    reasons = detector.explain(FRAME.head(20)).to_numpy()

    def serve(part: slice) -> np.ndarray:
        assert np.array_equal(detector.explain(FRAME.head(20)).to_numpy(), reasons)
        return detector.score_samples(FRAME.iloc[part])

    async def served() -> list[np.ndarray]:
        return await asyncio.gather(*(asyncio.to_thread(serve, part) for part in PARTS[:8]))

    with ThreadPoolExecutor(8) as threads:
        assert all(map(np.array_equal, threads.map(serve, PARTS), alone))
    assert all(map(np.array_equal, asyncio.run(served()), alone))


def test_a_fit_beside_scoring_threads_ends_as_it_would_alone(detector: VAEFlowDetector) -> None:
    expected, ended = detector.model_.state_dict(), threading.Event()
    pair = ZOO["linear_gaussian"]()  # functions, whose parameters are in Pyro's store
    alone = score(*pair.programs, pair.x, num_samples=20).log_evidence

    def serve() -> bool:
        return all(
            [
                score(*pair.programs, pair.x, num_samples=20).log_evidence.equal(alone)
                for _ in iter(ended.is_set, True)
            ]
        )

    with ThreadPoolExecutor(3) as threads:
        served = [threads.submit(serve) for _ in range(2)]
        fresh = threads.submit(VAEFlowDetector(**QUICK).fit, FRAME).result().model_.state_dict()
        ended.set()
        assert all(future.result() for future in served)
    assert all(value.equal(expected[name]) for name, value in fresh.items())


def test_a_fork_waits_until_no_thread_is_in_a_run(detector: VAEFlowDetector) -> None:
    inside, expected = threading.Event(), detector.score_samples(FRAME.head(3))

    def stay() -> None:
        with param_scope(detector.model_, detector.guide_):
            inside.set()
            threading.Event().wait(0.3)

    with ThreadPoolExecutor(1) as threads:
        threads.submit(stay)
        inside.wait()
        if not (child := os.fork()):
            os._exit(not np.array_equal(detector.score_samples(FRAME.head(3)), expected))
        assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_fit_and_train_learn_whatever_the_caller_has_switched_off(detector, mode) -> None:
    pair = ZOO["linear_gaussian"]()
    fit = partial(pair.fit, num_steps=3)
    with mode():
        fresh = VAEFlowDetector(**QUICK).fit(FRAME)
        assert (fit().frame["grad_norm"] > 0).all()
    assert set(pyro.get_param_store()) == {"scale"}  # what `train` learned of functions is shown
    pyro.clear_param_store()
    assert fresh.history_["loss"].equals(detector.history_["loss"])
    assert np.array_equal(fresh.score_samples(FRAME), detector.score_samples(FRAME))


def test_gaps_are_measured_whatever_the_caller_has_switched_off() -> None:
    pair = ZOO["linear_gaussian"]()
    options = {"num_samples": 10, "num_steps": 5, "learning_rate": 0.1}
    alone = inference_gap(*pair.programs, pair.x[:3], **options)
    with torch.inference_mode():
        inside = inference_gap(*pair.programs, pair.x[:3], **options)
    assert inside.local_elbo.equal(alone.local_elbo) and (alone.amortization_gap > 0).any()


def test_fit_trains_whatever_torchs_default_type_is() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        assert VAEFlowDetector(**QUICK).fit(FRAME).score_samples(FRAME).shape == (120,)
    finally:
        torch.set_default_dtype(torch.float32)
