"""The latents of each row as one vector of real numbers, and the model's density of it."""

import math
from dataclasses import replace
from typing import Any

import torch
from pyro.poutine.condition_messenger import ConditionMessenger
from pyro.poutine.trace_struct import Trace
from torch.distributions import Transform, biject_to

from pyro_vaeflow.inference.noise import RowNoise, RowStream
from pyro_vaeflow.inference.pairs import (
    Draws,
    SeenRows,
    Way,
    draw_axes,
    join_draws,
    paired_traces,
    split_draws,
)
from pyro_vaeflow.inference.parameters import Program
from pyro_vaeflow.inference.student_mixtures import StudentMixture
from pyro_vaeflow.inference.traces import Args, is_data, latent_sites, of_rows, sample_sites


class NoVectors(ValueError):
    """Latents are discrete, or all rows share them."""


class Latents:
    """The latents of each row as one vector of real numbers, by the transforms of their supports.

    Vectors are ``(num_data, num_samples, dim)``, float64. Use it inside `evaluating`.
    """

    def __init__(self, model: Program, guide: Program, args: Args, way: Way, plate: str) -> None:
        if way.shared:
            raise NoVectors(
                "there are latents that all rows share; evidence can be refined where each row has "
                "latents of its own: pass refine=False"
            )
        self.model, self.guide, self.args = model, guide, args
        self.way, self.plate = way, plate
        self.columns = [arg for arg, own in zip(args, of_rows(args), strict=True) if own]
        self.sites: dict[str, tuple[Transform, tuple[int, int], torch.Size]] = {}

    def first_draws(self, num_samples: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Draws of the prior and of the guide, of each class in turn where some are summed out."""
        copies = num_samples if self.way.model == "rows" else 1
        noise = RowNoise(self.columns, seed, self.plate, copies, self.way.depth)
        try:
            prior = self._trace(num_samples, noise)
        except NotImplementedError as error:
            raise NoVectors(
                f"the model's latents cannot be drawn ({str(error).partition(chr(10))[0]}), and "
                "draws of them are where refining starts: pass refine=False"
            ) from error
        options: Any = {"way": self.way, "seed": seed, "plate": self.plate}
        programs = self.model, self.guide, self.args
        ((model_trace, _),) = paired_traces(*programs, num_samples=num_samples, **options).traces
        return self.vectors(prior, num_samples), self.vectors(model_trace, num_samples)

    def _trace(self, num_samples: int, handler: Any) -> Trace:
        seen = SeenRows(self.args, slice(None), num_samples, self.way, self.way.model)
        first_dim = -self.way.depth - 1 - (self.way.model == "left")
        return seen.trace(self.model, handler, first_dim=first_dim)

    def propose(
        self, proposal: StudentMixture, num_samples: int, stream: RowStream
    ) -> torch.Tensor:
        """Draws of a proposal, rounded as the programs will see them."""
        return proposal.draw(num_samples, stream).to(self.dtype).double()

    def log_joint(self, u: torch.Tensor) -> torch.Tensor:
        """log p(x, z(u)) + log |dz/du|, ``(num_data, num_samples)``, nats; -inf where undefined."""
        draws, _, log_volume = self._at(u)
        return (draws.terms.log_weight.T.double() + log_volume).nan_to_num(
            nan=-math.inf, posinf=math.inf
        )

    def values(self, u: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Each site's values ``(num_data, num_samples, ...)``, and their log p(x | z), nats."""
        draws, values, _ = self._at(u)
        ((trace, _),) = draws.traces
        log_joint, of_latents = draws.terms.log_weight, trace.copy()
        for site in sample_sites(trace):
            if is_data(site) and site["name"] not in self.sites:
                of_latents.remove_node(site["name"])
        log_prior = replace(draws, traces=[(of_latents, Trace())]).terms.log_weight
        for name, (transform, axes, _) in self.sites.items():
            more = transform.domain.event_dim - transform.codomain.event_dim
            places = axes[0] + more, axes[1] + more
            split = split_draws(values[name], places, self.way.model, u.shape[1])
            values[name] = split.transpose(0, 1)
        return values, (log_joint - log_prior).T

    def _at(self, u: torch.Tensor) -> tuple[Draws, dict[str, torch.Tensor], torch.Tensor]:
        """The model's trace at u, the values of its sites, and log |dz/du|."""
        values, log_volume = {}, torch.zeros_like(u[..., 0])
        sizes = [math.prod(shape) for *_, shape in self.sites.values()]
        for (name, site), part in zip(self.sites.items(), u.split(sizes, -1), strict=True):
            transform, axes, shape = site
            real = part.transpose(0, 1).reshape(u.shape[1], len(u), *shape)
            real = join_draws(real, axes, self.way.model)
            values[name] = transform(real.to(self.dtype))
            volume = transform.log_abs_det_jacobian(real, values[name])
            event = transform.domain.event_dim
            places = axes[0] + event, axes[1] + event
            volume = split_draws(volume, places, self.way.model, u.shape[1])
            log_volume += volume.transpose(0, 1).unsqueeze(-1).flatten(2).sum(-1)
        trace = self._trace(u.shape[1], ConditionMessenger(values))
        for name in self.sites:
            _unmask(trace.nodes[name])
        trace.compute_log_prob()
        draws = Draws([(trace, Trace())], u.shape[1], len(u), self.way, self.plate)
        return draws, values, log_volume

    def vectors(self, trace: Trace, num_samples: int) -> torch.Tensor:
        """The latents of a trace of the model, whose sites are from then on those of the rows."""
        parts = []
        for site in latent_sites(trace):
            if site["name"] in self.way.alone | self.way.unasked:
                continue
            support = site["fn"].support
            if support.is_discrete:
                raise NoVectors(
                    f"latent {site['name']!r} is discrete; evidence can be refined where all "
                    "latents are continuous: pass refine=False"
                )
            transform = biject_to(support)
            event = transform.domain.event_dim
            axes = draw_axes(site, self.way, self.way.model, self.plate, event)
            self.dtype = site["value"].dtype
            real = transform.inv(site["value"])
            real = split_draws(real, axes, self.way.model, num_samples).transpose(0, 1)
            if (extra := real.dim() - 1 - self.way.depth - event) > 0:  # of classes summed out
                real = real.flatten(2, 1 + extra)
                draw = torch.arange(num_samples, device=real.device)
                real = real[:, draw, draw % real.shape[2]]
            self.sites[site["name"]] = transform, axes, real.shape[2:]
            parts.append(real.reshape(*real.shape[:2], -1).double())
        if not parts:
            raise NoVectors(
                "each row's evidence is exact, as there are no latents or all are summed out: "
                "pass refine=False"
            )
        return torch.cat(parts, -1)


def _unmask(site: Any) -> None:
    """Gives a latent its density where rows mask it: for one row alone it must integrate to 1."""
    if isinstance(site["mask"], torch.Tensor):
        site["mask"] = None
    if isinstance(getattr(site["fn"], "_mask", None), torch.Tensor):  # under no public name
        site["fn"] = site["fn"].base_dist
