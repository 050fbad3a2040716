"""What is known of rows' scores, and how it comes from their log weights."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import pandas as pd
import torch

from pyro_vaeflow.inference import importance
from pyro_vaeflow.inference.contract import RowTerms

TOGETHER = 500  # rows whose log weights are worked on at once


@dataclass(frozen=True)
class Scores:
    """What `score` knows of each row; every field is ``(num_data,)``, log probabilities in nats."""

    log_evidence: torch.Tensor
    """log (1/K) sum_k p(x, z_k) / q(z_k | x): importance-sampled log p(x), biased low."""
    stderr: torch.Tensor
    """Standard error of `log_evidence`."""
    ess: torch.Tensor
    """Effective sample size of the weights, between 1 and the number of draws."""
    khat: torch.Tensor
    """Pareto tail index of the weights; below 0.7 the evidence can be used."""
    expected_log_likelihood: torch.Tensor
    """E_q[log p(x | z)]."""
    elbo: torch.Tensor
    """E_q[log p(x, z) - log q(z | x)], the bound under the evidence."""
    num_samples: torch.Tensor
    """K, the draws behind the row's figures."""

    @property
    def importance(self) -> torch.Tensor:
        """The importance-sampled anomaly score, -log p(x) in nats: high = odd."""
        return -self.log_evidence

    @property
    def reconstruction(self) -> torch.Tensor:
        """The paper's A(x) = -E_q[log p(x | z)] in nats, Algorithm 1: high = odd."""
        return -self.expected_log_likelihood

    def to_frame(self) -> pd.DataFrame:
        """One row a data row, one column a field."""
        return pd.DataFrame({f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)})


def of_rows(terms: RowTerms) -> Scores:
    """The scores of the rows of these terms."""
    log_weight = terms.log_weight
    num_samples = torch.full(log_weight.shape[1:], len(log_weight), device=log_weight.device)
    return Scores(
        log_evidence=importance.log_evidence(log_weight),
        stderr=importance.log_evidence_stderr(log_weight),
        ess=importance.effective_sample_size(log_weight),
        khat=importance.khat(log_weight),
        expected_log_likelihood=terms.log_likelihood.mean(0),
        elbo=log_weight.mean(0),
        num_samples=num_samples,
    )


def in_place(chunks: Iterable[RowTerms], x: torch.Tensor) -> Scores:
    """Scores of chunks, at once where they belong: parts that stay would lie between freed ones."""
    place, whole = 0, Scores(**{f.name: x.new_empty(0) for f in fields(Scores)})
    for part in map(of_rows, together(chunks)):
        if place == 0:
            whole = Scores(**{n: v.new_empty(len(x)) for n, v in vars(part).items()})
        for name, value in vars(part).items():
            getattr(whole, name)[place : place + len(value)] = value
        place += len(part.khat)
    return whole


def together(chunks: Iterable[RowTerms]) -> Iterator[RowTerms]:
    """Chunks joined to about `TOGETHER` rows: so few log weights are hardly worth the calls."""
    waiting: list[RowTerms] = []
    for chunk in chunks:
        waiting.append(chunk)
        if sum(part.log_prior.shape[1] for part in waiting) >= TOGETHER:
            yield _as_one(waiting)
            waiting = []
    if waiting:
        yield _as_one(waiting)


def _as_one(parts: list[RowTerms]) -> RowTerms:
    names = [f.name for f in fields(RowTerms)]
    return RowTerms(*(torch.cat([getattr(p, name) for p in parts], 1) for name in names))
