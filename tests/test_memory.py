"""Memory: chunks from a budget, and no growth with the rows."""

import pytest
import torch

from pyro_vaeflow import Guide, Model, score
from pyro_vaeflow.inference import draws
from pyro_vaeflow.inference.draws import peak_bytes
from tests.programs import ZOO


def test_bytes_are_counted_while_they_are_alive() -> None:
    x = torch.zeros(1000)
    assert peak_bytes(lambda: x[:10].view(2, 5)) == 0
    assert peak_bytes(lambda: (x + 1.0).add_(1.0).unsqueeze(0)) == 4000
    assert peak_bytes(lambda: [x + i for i in range(3)]) == 12_000
    assert peak_bytes(lambda: [(x + i).sum() for i in range(100)]) < 4800


@pytest.mark.parametrize("budget", [2**20, 2**23])
def test_a_chunk_stays_within_the_budget(monkeypatch, budget: int) -> None:
    monkeypatch.setattr(draws, "MEMORY_BUDGET", budget)
    monkeypatch.setattr(draws, "hold_memory", lambda: None)  # its block is never touched
    model, guide = Model(30), Guide(30, flow="planar", num_flows=3)
    x = torch.rand(60, 30)
    chunks = draws.trace_chunks(model, guide, x, num_samples=100)
    sizes = [len(guide_trace.nodes["_INPUT"]["args"][0]) for _, guide_trace in chunks]
    assert sum(sizes) == 60 and (sizes[0] < 60) == (budget == 2**20)
    one_chunk = draws.trace_chunks(model, guide, x[: sizes[0]], num_samples=100)
    assert peak_bytes(lambda: next(one_chunk)) <= budget


def test_the_budget_changes_no_score(monkeypatch) -> None:
    pair = ZOO["iaf"]()
    expected = score(pair.model, pair.guide, pair.x).log_evidence
    monkeypatch.setattr(draws, "MEMORY_BUDGET", 1)  # a row is the least
    torch.testing.assert_close(score(pair.model, pair.guide, pair.x).log_evidence, expected)


def test_memory_of_scores_does_not_grow_with_the_rows() -> None:
    model, guide = Model(20), Guide(20)
    x = torch.rand(2000, 20)
    few = peak_bytes(lambda: score(model, guide, x[:200], num_samples=100))
    many = peak_bytes(lambda: score(model, guide, x, num_samples=100))
    assert many - 10 * 2000 * 8 < 1.1 * few  # seven fields of each row stay, and their parts


def test_each_thread_adds_as_much_to_a_chunk(monkeypatch) -> None:
    monkeypatch.setattr("torch.get_num_threads", lambda: 3)
    monkeypatch.setattr(draws, "DRAWS_PER_CHUNK", 20)
    chunks = draws.trace_chunks(Model(5), Guide(5), torch.rand(15, 5), num_samples=10)
    sizes = [guide_trace.nodes["z"]["value"].shape[:2] for _, guide_trace in chunks]
    assert sizes == [(10, 6), (10, 6), (10, 3)]
