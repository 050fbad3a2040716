"""Discrete latents summed out row by row, with Pyro's own contraction."""

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

import torch
from pyro.ops import packed
from pyro.ops.contract import contract_to_tensor
from pyro.ops.rings import LogRing
from pyro.poutine.trace_struct import Trace

from pyro_vaeflow.inference.traces import (
    DRAWS,
    RowTerms,
    guide_sites,
    guided_latents,
    is_data,
    latent_sites,
    plate_frame,
    sample_sites,
)

Packed = Any  # a tensor whose attribute `_pyro_dims` names its dimensions
Factor = tuple[frozenset[str], Packed]  # the plates around a site, its log probability


def enumerated_terms(model_trace: Trace, guide_trace: Trace, plate: str = "data") -> RowTerms:
    r"""The terms of rows where values of discrete sites lie along dimensions of their own.

    With k enumerated by the guide, m by the model alone, and z drawn:

    .. math:: w = \sum_k \frac{\sum_m p(x, z, k, m)}{q(z | k, x)}

    The terms but the weight are expectations over :math:`q(k | x)`. Values that ``TraceTMC_ELBO``
    has drawn count alike in place of :math:`q(k | x)`.
    """
    if not hasattr(guide_trace, "plate_to_symbol"):  # the loss has not packed them
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)
    rows = _Rows(model_trace, guide_trace, plate)
    alone = [s for s in latent_sites(model_trace) if s["name"] not in guide_trace.nodes]
    prior = rows.factors(guided_latents(model_trace, guide_trace)) + rows.chances_of(alone)
    joint = prior + rows.factors(s for s in sample_sites(model_trace) if is_data(s))
    in_guide = guide_sites(guide_trace, plate)
    guide = rows.factors(in_guide)
    rows.chances = rows.chances_of(in_guide)
    minus_guide = [(t, packed.neg(f)) for t, f in guide] + rows.chances
    log_prior = rows.expected(prior)
    return RowTerms(
        rows.expected(joint) - log_prior,
        log_prior,
        rows.expected(guide),
        rows.unpacked(rows.contracted(joint + minus_guide, rows.summed)),
    )


class _Rows:
    """Contraction of packed factors to rows and draws."""

    def __init__(self, model_trace: Trace, guide_trace: Trace, plate: str) -> None:
        self.plate, self.plates = plate, model_trace.plate_to_symbol | guide_trace.plate_to_symbol
        self.symbol_to_dim = guide_trace.symbol_to_dim | model_trace.symbol_to_dim
        self.sizes = dict.fromkeys(self.plates.values(), 1)  # packing drops dimensions of size 1
        self.symbols = [self.plates[p] for p in (plate, *DRAWS) if p in self.plates]
        self.chances: list[Factor] = []
        self.summed: set[str] = set()

    def factors(self, sites: Iterable[Any], masked: bool = True) -> list[Factor]:
        """The packed log probabilities of sites inside the plate."""
        found = []
        for site in sites:
            if plate_frame(site, self.plate) is None:
                continue
            parts = site["packed"]
            log_prob = parts["unscaled_log_prob"]
            if masked:
                log_prob = packed.scale_and_mask(log_prob, mask=parts["mask"])
            self.sizes |= zip(log_prob._pyro_dims, log_prob.shape, strict=True)
            self.summed |= set(log_prob._pyro_dims) - set(self.plates.values())
            frames = (f for f in site["cond_indep_stack"] if f.vectorized)
            found.append((frozenset(self.plates[f.name] for f in frames), log_prob))
        return found

    def chances_of(self, sites: Iterable[Any]) -> list[Factor]:
        """The log probability of each value of the enumerated ones; drawn ones count alike.

        Masked or not, the chances of a site's values add up to 1.
        """
        enumerated = [site for site in sites if "_enumerate_dim" in site["infer"]]
        found = self.factors(enumerated, masked=False)
        for place, (site, (plates, log_prob)) in enumerate(zip(enumerated, found, strict=True)):
            if (num_samples := site["infer"].get("num_samples")) is not None:
                constant: Packed = torch.full_like(log_prob, -math.log(num_samples))
                constant._pyro_dims = log_prob._pyro_dims
                found[place] = plates, constant
        return found

    def contracted(
        self, factors: list[Factor], summed: set[str], kept: frozenset[str] = frozenset()
    ) -> Packed:
        """log of the sum over `summed` of the product; of plates, rows, draws and `kept` stay."""
        tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
        for plates, factor in factors:
            tree.setdefault(plates | kept & set(factor._pyro_dims), []).append(factor)
        target = frozenset(self.symbols) | kept
        present = summed & {d for _, factor in factors for d in factor._pyro_dims}
        ring = LogRing(dim_to_size=self.sizes)
        return contract_to_tensor(tree, present, target_ordinal=target, ring=ring)

    def expected(self, factors: list[Factor]) -> torch.Tensor:
        """The expectation under the guide's chances of the sum of `factors`, in which the values
        that the model alone enumerates are summed out."""
        of_guide = {d for _, f in self.chances for d in f._pyro_dims} & self.summed
        alone = self.summed - of_guide
        hidden = [f for f in factors if not alone.isdisjoint(f[1]._pyro_dims)]
        total: Any = 0.0
        if hidden:
            seen = frozenset(d for _, f in hidden for d in f._pyro_dims if d in of_guide)
            log_sum = self.contracted(hidden, alone, seen)
            total = total + self._mean(self._rows_of(log_sum), log_sum, of_guide)
        for plates, factor in factors:
            if alone.isdisjoint(factor._pyro_dims):
                total = total + self._mean(plates, factor, of_guide)
        return total if isinstance(total, torch.Tensor) else torch.zeros(())

    def _rows_of(self, term: Packed) -> frozenset[str]:
        return frozenset(term._pyro_dims) & set(self.symbols)

    def _mean(self, plates: frozenset[str], term: Packed, of_guide: set[str]) -> torch.Tensor:
        """The mean over values of the guide, summed over all plates but rows and draws."""
        dims = set(term._pyro_dims) & of_guide
        ring = LogRing(dim_to_size=self.sizes)
        if dims:
            tree: OrderedDict[frozenset[str], list[Packed]] = OrderedDict()
            for around, chance in self.chances:
                tree.setdefault(around, []).append(chance)
            chance = contract_to_tensor(
                tree, of_guide, target_ordinal=plates, target_dims=dims, ring=ring
            )
            term, chance = packed.broadcast_all(term, chance)
            dims_of_both = term._pyro_dims
            term = torch.where(chance == -math.inf, 0.0, chance.exp() * term)
            term._pyro_dims = dims_of_both
        rows = self._rows_of(term)
        others = [i for i, d in enumerate(term._pyro_dims) if d not in rows]
        kept = "".join(d for d in term._pyro_dims if d in rows)
        term = term.sum(others) if others else term[...]
        term._pyro_dims = kept
        return self.unpacked(ring.broadcast(term, frozenset(self.symbols)))

    def unpacked(self, term: Packed) -> torch.Tensor:
        return packed.unpack(term, self.symbol_to_dim)
