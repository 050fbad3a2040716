r"""Evidence of rows that the guide does not cover, by proposals that are adapted to each row.

A proposal of Student's t mixtures is adapted to each row's posterior in rounds. They begin far
around the prior and where the outermost hundredth of its draws is, as the posterior of an anomaly
is often there, and weights are raised to a power that keeps their effective size until 1 serves:
the proposal closes in on separate modes step by step. For the last rounds it is joined by the
guide's draws and by fits to populations that gradients lead to the posterior (`tempering`), which
find it in tens of dimensions too. All of these draws are then thrown away. The estimate is made of
fresh ones from the last proposal, from those fits and, to a fifth, from proposals before, so that
:math:`E[w] = p(x)`, whatever the adaptation has done. No log q(z | x) of the guide is needed:
guides that score only their own draws will do.
"""

import math
from contextlib import suppress
from dataclasses import dataclass, fields

import torch
from tqdm.auto import tqdm

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.adaptation import Rounds, around, fit_parts, outermost
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.latent_vectors import Latents, NoVectors
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.pairs import Way
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.student_mixtures import StudentMixture, joined, moments
from pyro_vaeflow.inference.tempering import Path, annealed_log_weights, tempered_draws
from pyro_vaeflow.inference.traces import Args, take_rows

FIRST = 2000  # draws of the prior and of the guide
WIDTHS = {1.0: 0.4, 2.0: 0.3, 4.0: 0.3}  # scales of the guide's draws, and their shares
BROAD = {1.5: 0.3, 3.0: 0.7}  # of the prior's draws
OUTER, OUTER_WIDTH = 0.01, 1.25  # share of the prior's draws that are outermost; their scale
ROUNDS, MORE = 8, 6  # of adaptation, before the guide's draws join in and after that
SHARES, EVERY = (0.5, 0.15, 0.15, 0.2), 3  # of the last fit, both paths', and each third before
NUMBERS = 30_000  # rows times draws of a round times dimensions: a round should fit the cache
ANNEALED = 1000, 32  # draws and steps of rows that no proposal suits
FOUND = 0.3  # nats beyond the guide's evidence that say its draws miss something
LOOK, LOOKS = 500, 6  # draws and rounds for what the guide's draws may miss


@dataclass(frozen=True)
class Effort:
    """How much is done for a row."""

    draws: int  # a round
    final: int  # fresh draws
    population: int  # draws on each path to the posterior
    steps: int  # along it
    content: float = 0.5  # the k-hat of a trial above which more is done


EFFORTS = Effort(2000, 4000, 200, 16), Effort(8000, 20_000, 500, 24, 0.6)


@dataclass(frozen=True)
class Refined:
    """Evidence of each row, fields as in `Scores`, ``(num_data,)``."""

    log_evidence: torch.Tensor
    stderr: torch.Tensor
    ess: torch.Tensor
    khat: torch.Tensor
    num_samples: torch.Tensor


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def refine(
    model: Program,
    guide: Program,
    args: Args,
    *,
    seed: int = 0,
    plate: str = "data",
    progress: bool = False,
) -> Refined:
    r"""Estimates each row's log p(x) by a proposal that is adapted to the row; nats.

    Where a trial of the proposal has a k-hat above 0.5, adaptation is done again with more draws;
    where its k-hat is above 0.6 even then, draws of what rounds and paths end with are annealed to
    the posterior. Rows and seed decide the result.

    References:
        J.-M. Cornuet, J.-M. Marin, A. Mira, C. Robert, Adaptive Multiple Importance Sampling, 2012,
        arXiv:0907.1254.
        O. Cappé, R. Douc, A. Guillin, J.-M. Marin, C. Robert, Adaptive Importance Sampling in
        General Mixture Classes, 2008, arXiv:0710.4242.

    Args:
        model, guide: Pyro programs that meet the contract; their latents are continuous.
        args: the programs' arguments, rows first.

    Raises:
        ValueError: the contract is broken, or a latent is discrete.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> refine(Model(3, 2), Guide(3, 2), (torch.rand(2, 3),)).log_evidence.shape
        torch.Size([2])
    """
    way = check_contract(model, guide, args, plate=plate)
    dim = _dim(model, guide, args, way, plate, seed)
    rows = torch.arange(len(args[0]), device=args[0].device)
    numbers = {f.name: torch.empty_like(rows, dtype=torch.float64) for f in fields(Refined)}
    for effort in EFFORTS:
        unsettled = [rows[:0]]
        chunks = rows.split(max(1, NUMBERS // (effort.draws * dim))) if len(rows) else ()
        for some in tqdm(chunks, desc="refine", unit="chunk", disable=not progress):
            with evaluating(model, guide, seed):
                latents = Latents(model, guide, take_rows(args, some), way, plate)
                stream = RowStream(latents.columns, seed)
                proposal, core = adapted(latents, effort, stream, seed)
                trial, log_weight = (
                    _log_weights(latents, proposal, count, stream)
                    for count in (EFFORTS[0].final, effort.final)
                )
                estimate = importance.estimate(log_weight)
                is_content = importance.khat(trial) <= effort.content
                if effort is EFFORTS[-1] and not is_content.all():
                    path = Path(latents.log_joint, core)
                    log_weight = annealed_log_weights(path, *ANNEALED, stream)
                    for name, value in importance.estimate(log_weight).items():
                        estimate[name] = torch.where(is_content, estimate[name], value)
            unsettled.append(some[~is_content])
            for name, value in estimate.items():
                numbers[name][some] = value.double()
        rows = torch.cat(unsettled)
    return Refined(**numbers)


def doubtful(
    model: Program,
    guide: Program,
    args: Args,
    log_evidence: torch.Tensor,
    khat: torch.Tensor,
    *,
    seed: int = 0,
    plate: str = "data",
    progress: bool = False,
) -> torch.Tensor:
    """Whether a row's evidence by draws of its guide needs refining, ``(num_data,)``.

    That is where their k-hat is above 0.7, or where a few rounds of adaptation from far around the
    prior find 0.3 nats more: draws that agree with each other and all miss a mode have a k-hat that
    looks well. Where evidence cannot be refined, as latents are discrete, k-hat alone decides.

    Args:
        log_evidence, khat: of the guide's draws, nats; rows with NaN are not in doubt.

    Raises:
        ValueError: the contract is broken.

    Example:
        >>> from pyro_vaeflow import Guide, Model
        >>> programs = Model(3, 2), Guide(3, 2), (torch.rand(2, 3),)
        >>> doubtful(*programs, torch.tensor([0.0, -99.0]), torch.zeros(2))
        tensor([False,  True])
    """
    is_doubtful = khat > importance.KHAT_LIMIT
    way = check_contract(model, guide, args, plate=plate)
    rows = (~is_doubtful & ~log_evidence.isnan()).nonzero().squeeze(-1)
    with suppress(NoVectors), torch.no_grad():
        dim = _dim(model, guide, args, way, plate, seed)
        chunks = rows.split(max(1, NUMBERS // (LOOK * dim))) if len(rows) else ()
        for some in tqdm(chunks, desc="look around", unit="chunk", disable=not progress):
            with evaluating(model, guide, seed):
                latents = Latents(model, guide, take_rows(args, some), way, plate)
                stream, (near, far) = RowStream(latents.columns, seed), starts(latents, seed)
                rounds, proposal = Rounds(latents, LOOK, stream), far
                for _ in range(LOOKS):
                    proposal = rounds.after(proposal)
                proposal = joined([proposal, near], [0.7, 0.3])
                log_weight = _log_weights(latents, proposal, LOOK, stream)
            found = log_weight.logsumexp(0) - math.log(LOOK)
            is_doubtful[some] = ~(found <= log_evidence[some] + FOUND)
    return is_doubtful


def starts(latents: Latents, seed: int) -> tuple[StudentMixture, StudentMixture]:
    """Where each row's posterior is looked for first: near the guide's draws, and far around.

    The outermost draws of a prior with a part that is wide and seldom are that part's, which all
    draws' moments hardly show.
    """
    prior, own = latents.first_draws(FIRST, seed)
    loc, factor = moments(prior)
    outer = outermost(prior, loc, factor, OUTER)
    scale = outer.std(1).maximum(0.1 * factor.diagonal(dim1=-2, dim2=-1))  # they may be equal
    outskirts = around(outer.mean(1), scale.diag_embed(), {OUTER_WIDTH: 1.0})
    far = joined([around(loc, factor, BROAD), outskirts], [0.5, 0.5])
    return around(*moments(own), WIDTHS), far


def adapted(
    latents: Latents, effort: Effort, stream: RowStream, seed: int
) -> tuple[StudentMixture, StudentMixture]:
    """The proposal of each row; and the part that rounds and paths end with, alone."""
    near, far = starts(latents, seed)
    rounds, proposal = Rounds(latents, effort.draws, stream), far
    for _ in range(ROUNDS):
        proposal = rounds.after(proposal)
    ends = _ends_of_paths(latents, [near, far], effort, stream)
    proposal = joined([proposal, near, *ends], [0.25] * 4)
    for _ in range(MORE):
        proposal = rounds.after(proposal)
    last, some_earlier = [proposal, *ends], rounds.proposals[::EVERY]
    shares = [*SHARES[:3], *[SHARES[3] / len(some_earlier)] * len(some_earlier)]
    return joined([*last, *some_earlier], shares), joined(last, SHARES[:3])


def weighted_draws(
    latents: Latents, stream: RowStream, seed: int, *others: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fresh draws ``(num_data, n, dim)`` of each row's proposal, and log weights, nats.

    Chosen by their weights ``(num_data, n)`` they are draws of the posterior. `others` are latents
    that come from elsewhere, ``(num_data, m, dim)``: they are weighted, too, after the draws.
    """
    proposal, _ = adapted(latents, EFFORTS[-1], stream, seed)
    u = torch.cat([latents.propose(proposal, EFFORTS[-1].final, stream), *others], 1)
    return u, latents.log_joint(u) - proposal.log_prob(u)


def _ends_of_paths(
    latents: Latents, origins: list[StudentMixture], effort: Effort, stream: RowStream
) -> list[StudentMixture]:
    """Fits to populations that went from each start to the posterior; each on a path of its own.

    In one population the draws of a start that is near would take the place of all others before
    these have found what is far.
    """
    count = len(origins)

    def log_joint(u: torch.Tensor) -> torch.Tensor:
        return torch.cat(latents.log_joint(torch.cat(u.chunk(count), 1)).chunk(count, 1))

    names = ("log_weights", "loc", "factor")
    whole = StudentMixture(*(torch.cat([getattr(s, name) for s in origins]) for name in names))
    streams = stream.repeated(count)
    path = Path(log_joint, whole)
    u = tempered_draws(path, effort.population, effort.steps, streams)
    fit = fit_parts(u, streams)
    parts = zip(*(getattr(fit, name).chunk(count) for name in names), strict=True)
    return [StudentMixture(*part) for part in parts]


def _log_weights(
    latents: Latents, proposal: StudentMixture, num_samples: int, stream: RowStream
) -> torch.Tensor:
    """Log weights of fresh draws, ``(num_samples, num_data)``, nats."""
    u = latents.propose(proposal, num_samples, stream)
    return (latents.log_joint(u) - proposal.log_prob(u)).T


def _dim(model: Program, guide: Program, args: Args, way: Way, plate: str, seed: int) -> int:
    with evaluating(model, guide, seed):
        few = take_rows(args, slice(0, 1))
        return Latents(model, guide, few, way, plate).first_draws(1, seed)[0].shape[-1]
