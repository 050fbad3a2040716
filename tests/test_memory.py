"""Memory: chunks from a budget, and no growth with the rows."""

import pyro
import pyro.distributions as dist
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
    sizes = [chunk.num_data for chunk in chunks]
    assert sum(sizes) == 60 and (sizes[0] < 60) == (budget == 2**20)
    one_chunk = draws.trace_chunks(model, guide, x[: sizes[0]], num_samples=100)
    assert peak_bytes(lambda: next(one_chunk)) <= budget


class AsRows(torch.nn.Module):
    """A pair whose decoder must see each draw as a row; it counts what its networks see."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(30, 4), torch.nn.Linear(2, 30)
        self.seen = {self.encoder: 0, self.decoder: 0}
        for net in self.seen:
            net.register_forward_hook(self.count)

    def count(self, net, args, output) -> None:
        self.seen[net] += output.numel() // output.shape[-1]

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z).cumsum(1), 1.0).to_event(1), obs=x)

    def guide(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def one_after_another(x):
    w = pyro.sample("w", dist.Normal(torch.zeros(30), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(x @ w, 1.0), obs=x[:, 0])


def of_weights(x):
    pyro.sample("w", dist.Normal(torch.zeros(30), 1.0).to_event(1))


@pytest.mark.parametrize("layout", ["rows", "runs"])
def test_slow_ways_stay_within_the_budget_too(monkeypatch, layout: str) -> None:
    monkeypatch.setattr(draws, "MEMORY_BUDGET", 2**20)
    monkeypatch.setattr(draws, "hold_memory", lambda: None)
    pair, x = AsRows(), torch.rand(300, 30)
    programs = (pair.model, pair.guide) if layout == "rows" else (one_after_another, of_weights)
    chunks = list(draws.trace_chunks(*programs, x, num_samples=50))
    assert len(chunks) > 1 and chunks[0].way.model == layout
    one_chunk = draws.trace_chunks(*programs, x[: chunks[0].num_data], num_samples=50)
    assert peak_bytes(lambda: next(one_chunk)) <= 2**20


def test_a_slow_way_costs_its_forward_passes_over_as_many_rows_as_draws() -> None:
    pair = AsRows()
    counts = []
    for num_data in (200, 300):
        pair.seen = dict.fromkeys(pair.seen, 0)
        score(pair.model, pair.guide, torch.rand(num_data, 30), num_samples=50)
        counts.append(list(pair.seen.values()))
    encoded, decoded = (more - less for less, more in zip(*counts, strict=True))
    assert encoded == 100 and decoded == 100 * 50  # the probe and the trial chunk are the same


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
    sizes = [chunk.latents["z"].shape[:2] for chunk in chunks]
    assert sizes == [(6, 10), (6, 10), (3, 10)]
