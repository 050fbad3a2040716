"""Draws of rows' posteriors as a DataTree of ArviZ, which its plots and summaries read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.contract import check_contract
from pyro_vaeflow.inference.draws import trace_chunks
from pyro_vaeflow.inference.latent_vectors import Latents
from pyro_vaeflow.inference.noise import RowStream
from pyro_vaeflow.inference.parameters import Program, evaluating
from pyro_vaeflow.inference.refine import weighted_draws
from pyro_vaeflow.inference.scoring import warn_of_tails
from pyro_vaeflow.inference.student_mixtures import chosen, taken
from pyro_vaeflow.inference.traces import Args, as_args, of_rows, take_rows
from pyro_vaeflow.validation import check_size

if TYPE_CHECKING:
    from xarray import DataTree


def to_arviz(
    model: Program,
    guide: Program,
    x: Any,
    *,
    num_samples: int = 1000,
    refine: bool = False,
    seed: int = 0,
    plate: str = "data",
) -> "DataTree":
    r"""Draws of each row's posterior and of the guide, with their weights, for ArviZ to draw.

    Needs ``pip install 'pyro_vaeflow[arviz]'``. All draws are kept: pass the rows to look at. The
    groups, each variable with dimensions ``chain`` (of one), ``draw``, ``row``, and its own:

    - ``posterior``: draws of p(z | x), chosen by their weights from the guide's, or, with `refine`,
      from those of a proposal that is adapted to the row;
    - ``log_likelihood``: their log p(x | z), nats, under the name ``x``;
    - ``guide``: the guide's draws, the same as those of `score`;
    - ``sample_stats_guide``: their ``log_weight`` and ``log_likelihood``, nats;
    - ``scores``: for each ``row`` what the weights behind ``posterior`` are worth: `log_evidence`,
      `stderr`, `ess`, `khat`, `num_samples`, as in `Scores`.

    Args:
        model, guide: Pyro programs that meet the contract of `pyro_vaeflow.inference.contract`.
        x: tensor ``(num_data, ...)``, or a tuple of arguments that starts with it.
        num_samples: draws a row in each group.
        refine: whether the posterior is that of `pyro_vaeflow.inference.refine`, seconds a row,
            which stands where the guide's draws have a k-hat above 0.7; latents are continuous.

    Raises:
        ImportError: ``arviz-base`` is not installed.
        ValueError: the contract is broken, or a row has no finite evidence to weight draws by.

    Warns:
        KhatWarning: counts the rows whose k-hat is above 0.7.

    Example:
        >>> from pyro_vaeflow import Guide, Model, to_arviz
        >>> tree = to_arviz(Model(3), Guide(3), torch.rand(2, 3), num_samples=50)
        >>> tree.posterior["z"].dims
        ('chain', 'draw', 'row', 'z_dim_0')
    """
    try:
        from arviz_base import from_dict
        from xarray import Dataset, DataTree
    except ImportError as error:
        raise ImportError("to_arviz needs pip install 'pyro_vaeflow[arviz]'") from error
    args = as_args(x)
    check_size("rows of x", len(args[0]), 1)
    options: Any = {"seed": seed, "plate": plate}
    chunks = list(trace_chunks(model, guide, args, num_samples=num_samples, **options))
    drawn = _joined([chunk.latents for chunk in chunks])
    names, terms = ("log_weight", "log_likelihood"), [chunk.terms for chunk in chunks]
    stats = _joined([{name: getattr(term, name).T for name in names} for term in terms])
    if refine:
        posterior, log_likelihood, log_weight = _refined(model, guide, args, num_samples, **options)
    else:
        log_weight = stats["log_weight"]
        columns = [arg for arg, own in zip(args, of_rows(args), strict=True) if own]
        index = _chosen(log_weight, num_samples, RowStream(columns, seed))
        row = torch.arange(len(index), device=index.device).unsqueeze(-1)
        posterior = {name: values[row, index] for name, values in drawn.items()}
        log_likelihood = stats["log_likelihood"][row, index]
    estimate = importance.estimate(log_weight.T)
    lost = (~estimate["log_evidence"].isfinite()).nonzero().squeeze(-1).tolist()
    if lost:
        raise ValueError(
            f"rows {lost[:5]} of x have no finite log evidence, by which draws could be chosen: "
            "leave them out"
        )
    warn_of_tails(estimate["khat"])
    groups = {"posterior": posterior, "log_likelihood": {"x": log_likelihood}}
    groups |= {"guide": drawn, "sample_stats_guide": stats}
    arrays = {  # (num_data, num_samples, ...) as (chain, draw, row, ...)
        group: {name: v.transpose(0, 1).unsqueeze(0).cpu().numpy() for name, v in values.items()}
        for group, values in groups.items()
    }
    tree = from_dict(arrays, dims={name: ["row"] for part in groups.values() for name in part})
    scores = {name: ("row", value.cpu().numpy()) for name, value in estimate.items()}
    return tree.assign(scores=DataTree(Dataset(scores, {"row": tree.posterior["row"]})))


def _chosen(log_weight: torch.Tensor, num_samples: int, stream: RowStream) -> torch.Tensor:
    """Which draws of log weights ``(num_data, n)`` to take, ``(num_data, num_samples)``."""
    # points at even distances: less noise than independent choices
    places = torch.arange(num_samples, device=log_weight.device) + stream.uniform(1)
    return chosen(log_weight.double().softmax(-1), places / num_samples)


@torch.inference_mode(False)  # gradients, whatever the caller has switched off
def _refined(
    model: Program, guide: Program, args: Args, num_samples: int, seed: int, plate: str
) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]:
    """Draws of each row's posterior, their log p(x | z), and the weights they were chosen by."""
    way = check_contract(model, guide, args, plate=plate)
    parts = []
    for row in range(len(args[0])):
        with evaluating(model, guide, seed):
            latents = Latents(model, guide, take_rows(args, slice(row, row + 1)), way, plate)
            stream = RowStream(latents.columns, seed)
            u, log_weight = weighted_draws(latents, stream, seed)
            some = taken(u, _chosen(log_weight, num_samples, stream))
            parts.append((*latents.values(some), log_weight))
    values, log_likelihood, log_weights = zip(*parts, strict=True)
    return _joined(values), torch.cat(log_likelihood), torch.cat(log_weights)


def _joined(parts: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
