"""The inference gap in its parts, from log weights under the amortized q and the local one.

Tensors in, tensors out: nothing here knows of the programs that made the weights.
"""

from dataclasses import dataclass, fields

import pandas as pd
import torch

from pyro_vaeflow.inference import importance


@dataclass(frozen=True)
class Gaps:
    """What `inference_gap` knows of each row; fields are ``(num_data,)``, nats but for k-hat."""

    log_evidence: torch.Tensor
    """log p(x), importance-sampled under the local q, or under the amortized where that gives
    significantly more: each is biased low."""
    local_elbo: torch.Tensor
    """The ELBO with q optimised for the row alone."""
    elbo: torch.Tensor
    """The ELBO with the amortized q."""
    approximation_gap: torch.Tensor
    """log_evidence - local_elbo: what no member of the guide's family can reach."""
    amortization_gap: torch.Tensor
    """local_elbo - elbo: what one set of parameters for all rows loses."""
    approximation_stderr: torch.Tensor
    """Monte Carlo standard error of `approximation_gap`."""
    amortization_stderr: torch.Tensor
    """Monte Carlo standard error of `amortization_gap`."""
    khat: torch.Tensor
    """Pareto tail index of the weights behind `log_evidence`; above 0.7 that is too low."""

    @property
    def inference_gap(self) -> torch.Tensor:
        """log_evidence - elbo, the KL divergence of the amortized q from the posterior, nats."""
        return self.approximation_gap + self.amortization_gap

    def to_frame(self) -> pd.DataFrame:
        """One row a data row, one column a field."""
        return pd.DataFrame({f.name: getattr(self, f.name).cpu().numpy() for f in fields(self)})

    def summary(self) -> pd.DataFrame:
        """Means over the rows in nats, and the standard errors of those means over rows."""
        frame = self.to_frame().iloc[:, :5].assign(inference_gap=self.inference_gap.cpu().numpy())
        return pd.DataFrame({"mean": frame.mean(), "stderr": frame.sem()})


def split_gap(amortized: torch.Tensor, local: torch.Tensor) -> Gaps:
    r"""The gaps of each row from the log weights of the two q, nats.

    A draw k of one and of the other should come from the same noise: what they share then cancels
    in the standard error of the amortization gap. The standard error of
    :math:`\log \bar w - \overline{\log w^*}` is that of the mean of
    :math:`w_k / \bar w - \log w^*_k`, by the delta method.

    Args:
        amortized, local: shape ``(num_samples, num_data)``, nats, at least two samples.

    Example:
        >>> amortized, local = torch.randn(100, 5), 0.1 * torch.randn(100, 5)
        >>> split_gap(amortized, local).inference_gap.shape
        torch.Size([5])
    """
    log_weight = torch.where(_needs_amortized(amortized, local), amortized, local)
    log_evidence = importance.log_evidence(log_weight)
    elbo, local_elbo = amortized.mean(0), local.mean(0)
    return Gaps(
        log_evidence=log_evidence,
        local_elbo=local_elbo,
        elbo=elbo,
        approximation_gap=log_evidence - local_elbo,
        amortization_gap=local_elbo - elbo,
        approximation_stderr=_stderr((log_weight - log_evidence).exp() - local),
        amortization_stderr=_stderr(local - amortized),
        khat=importance.khat(log_weight),
    )


def _stderr(draws: torch.Tensor) -> torch.Tensor:
    return draws.std(0) / len(draws) ** 0.5


def _needs_amortized(amortized: torch.Tensor, local: torch.Tensor) -> torch.Tensor:
    """Whether the amortized q gives significantly more evidence than the local, which is nearer.

    Each estimate is low on average, so the larger would do if they had no noise. But the larger of
    two noisy ones is high: with 50 planar layers on KDD Cup 99 and 1,000 draws its root mean square
    error was 0.12 nats, that of the local one alone 0.07.
    """
    lead = importance.log_evidence(amortized) - importance.log_evidence(local)
    errors = [importance.log_evidence_stderr(log_weight) for log_weight in (amortized, local)]
    return lead > 3.0 * torch.hypot(*errors)
