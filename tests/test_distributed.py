"""The example of distributed training: two processes train as one that takes both their batches."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pyro
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import DistributedSampler

from pyro_vaeflow import score

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "distributed.py"


def trained_by_one_process(example: dict) -> tuple[torch.nn.Module, list[float]]:
    """Gradients of both processes' rows, each with its own noise, added up before a step."""
    x, states, losses = example["make_rows"](), [], []
    for seed in (1, 0):
        pyro.set_rng_seed(seed)
        elbo = example["make_elbo"]()
        states.insert(0, torch.get_rng_state())
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    samplers = [DistributedSampler(x, 2, rank, drop_last=True) for rank in (0, 1)]
    for epoch in range(example["NUM_EPOCHS"]):
        for sampler in samplers:
            sampler.set_epoch(epoch)
        parts = [torch.tensor(list(s)).split(example["BATCH_SIZE"] // 2) for s in samplers]
        for of_ranks in zip(*parts, strict=True):
            optimizer.zero_grad()
            losses.append(0.0)
            for rank, rows in enumerate(of_ranks):
                torch.set_rng_state(states[rank])
                loss = example["annealed_loss"](elbo, x[rows], len(losses) - 1) / 2
                loss.backward()
                losses[-1] += loss.item()
                states[rank] = torch.get_rng_state()
            optimizer.step()
    return elbo, losses


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pyro_vaeflow.inference.scoring.KhatWarning")
def test_two_processes_train_as_one(tmp_path: Path) -> None:
    out, torchrun = tmp_path / "trained", [sys.executable, "-m", "torch.distributed.run"]
    command = [*torchrun, "--standalone", "--nproc-per-node", "2", __file__, str(out)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert run.returncode == 0 and "log evidence" in run.stdout, run.stderr
    first, second = (load_file(f"{out}.{rank}") for rank in (0, 1))
    torch.testing.assert_close(first, second, rtol=0.0, atol=0.0)
    example, losses = runpy.run_path(str(EXAMPLE)), first.pop("losses")
    assert losses[-10:].mean() < losses[:10].mean() - 1.0
    with pyro.settings.context(module_local_params=True):
        elbo, expected = trained_by_one_process(example)
        torch.testing.assert_close(losses, torch.tensor(expected), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(first, dict(elbo.state_dict()), rtol=1e-4, atol=1e-4)
        elbo.load_state_dict(load_file(out))
    evidence = score(elbo.model, elbo.guide, example["make_rows"]()).log_evidence
    assert evidence.isfinite().all() and evidence.mean() > -losses[0]


if __name__ == "__main__":  # by torchrun: the example, and what each process ends with
    names = runpy.run_path(str(EXAMPLE), run_name="__main__")
    state = names["trained"].state_dict() | {"losses": torch.tensor(names["losses"])}
    save_file(state, f"{sys.argv[1]}.{os.environ['RANK']}")
