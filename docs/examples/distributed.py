"""One pair of programs trained by several processes, each with rows of its own.

torchrun --standalone --nproc-per-node 2 docs/examples/distributed.py trained.safetensors
"""

import sys

import pyro
import torch
import torch.distributed as processes
from pyro import poutine
from pyro.infer import Trace_ELBO
from safetensors.torch import load_file, save_file
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DistributedSampler

from pyro_vaeflow import Guide, Model, anneal, linear, score

BATCH_SIZE, NUM_EPOCHS = 64, 15  # a batch is what all processes take together


def make_elbo() -> torch.nn.Module:
    """The pair as Pyro's ``ELBOModule``: a torch module whose output is the loss."""
    sizes = {"latent_dim": 2, "hidden_dims": (16,), "dropout": 0.0}
    model = Model(5, likelihood="normal", **sizes)
    guide = Guide(5, flow="planar", num_flows=4, **sizes)
    return Trace_ELBO()(model, guide)


def make_rows(num_data: int = 512) -> torch.Tensor:
    """Rows of two factors; each process could as well read its own alone."""
    draw = torch.Generator().manual_seed(0)
    z, loadings = torch.randn(num_data, 2, generator=draw), torch.randn(2, 5, generator=draw)
    return z @ loadings + 0.1 * torch.randn(num_data, 5, generator=draw)


def annealed_loss(elbo: torch.nn.Module, batch: torch.Tensor, step: int) -> torch.Tensor:
    """Nats per row of the batch."""
    with anneal(linear(60)(step)), poutine.scale(scale=1.0 / len(batch)):
        return elbo(batch)


def train(x: torch.Tensor) -> tuple[torch.nn.Module, list[float]]:
    """The trained pair, the same in each process, and the loss of each step."""
    rank, size = processes.get_rank(), processes.get_world_size()
    pyro.set_rng_seed(rank)  # each process draws noise of its own
    elbo = DistributedDataParallel(make_elbo())  # start values are rank 0's
    optimizer = torch.optim.Adam(elbo.parameters(), lr=1e-2)
    sampler, losses = DistributedSampler(x, size, rank, drop_last=True), []
    for epoch in range(NUM_EPOCHS):
        sampler.set_epoch(epoch)  # rows in another order, on which all processes agree
        for rows in torch.tensor(list(sampler)).split(BATCH_SIZE // size):
            loss = annealed_loss(elbo, x[rows], step=len(losses))
            optimizer.zero_grad()
            loss.backward()  # each process gets the mean of all gradients
            optimizer.step()
            processes.all_reduce(mean := loss.detach() / size)
            losses.append(mean.item())
    return elbo.module, losses


if __name__ == "__main__":
    pyro.settings.set(module_local_params=True)  # parameters are the modules', not a name's
    processes.init_process_group("gloo")  # "nccl" between GPUs
    trained, losses = train(make_rows())
    if processes.get_rank() == 0:
        save_file(trained.state_dict(), sys.argv[1])
        (elbo := make_elbo()).load_state_dict(load_file(sys.argv[1]))
        evidence = score(elbo.model, elbo.guide, make_rows()).log_evidence
        print(f"loss {losses[0]:.2f} to {losses[-1]:.2f}, log evidence {evidence.mean():.2f}")
    processes.destroy_process_group()
