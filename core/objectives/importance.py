"""Times drawn where the loss is large."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..schedules import Schedule
from .objective import Losses
from .times import TIME_DISTRIBUTIONS


@TIME_DISTRIBUTIONS.register("loss_second_moment")
class LossSecondMoment(nn.Module):
    """Times with density proportional to ``sqrt(E[L^2 | t])``, which gives the loss its least variance; each loss is
    divided by the density, so that its mean is that of uniform times (Nichol and Dhariwal 2021, section 3.3).

    The second moments are averages over past steps in each of ``bins`` of t. They are buffers: a checkpoint has them,
    every process holds the same, and they change between steps only, so that neither the number of processes nor of
    accumulated parts matters. Held-out losses are measured at uniform times.

    Args:
        bins: of equal length in t.
        decay: of the averages, for each sample that a bin has seen; 0.9 remembers about 10.
        uniform: the share of times that are uniform.
        warm: samples that every bin must have seen before; until then times are uniform.
    """

    moments: Tensor
    seen: Tensor
    sums: Tensor
    counts: Tensor
    step: Tensor

    def __init__(self, bins: int = 100, decay: float = 0.9, uniform: float = 0.001, warm: int = 10) -> None:
        super().__init__()
        if bins < 1 or not 0 <= decay < 1 or not 0 < uniform <= 1:
            raise ValueError("loss_second_moment needs bins >= 1, 0 <= decay < 1 and 0 < uniform <= 1")
        self.bins, self.decay, self.uniform, self.warm = bins, decay, uniform, warm
        for name in ("moments", "seen", "sums", "counts"):
            self.register_buffer(name, torch.zeros(bins))
        self.register_buffer("step", torch.tensor(-1))

    @torch.no_grad()
    def start(self, step: int) -> None:
        """Take in what the steps before ``step`` have seen."""
        if step == int(self.step):
            return
        kept = self.decay**self.counts * (self.seen > 0)  # the first losses of a bin stand for themselves
        self.moments.mul_(kept).add_((1 - kept) * self.sums / self.counts.clamp(min=1))
        self.seen.add_(self.counts)
        self.sums.zero_()
        self.counts.zero_()
        self.step.fill_(step)

    def probabilities(self) -> Tensor:
        """Of each bin; float64 on the CPU."""
        flat = torch.full((self.bins,), 1 / self.bins, dtype=torch.float64)
        weights = self.moments.cpu().double().sqrt()
        if not bool((self.seen >= self.warm).all()) or not bool(weights.sum() > 0):
            return flat
        return torch.lerp(weights / weights.sum(), flat, self.uniform)

    def forward(self, u: Tensor, schedule: Schedule) -> Tensor:
        if not self.training:
            return u
        if int(self.step) < 0:
            raise ValueError("times 'loss_second_moment' learn from the losses of the objective 'denoising' only")
        ends = torch.cat([torch.zeros(1, dtype=torch.float64), self.probabilities().cumsum(0)])
        ends[-1] = 1
        place = (torch.searchsorted(ends, u.contiguous(), right=True) - 1).clamp(0, self.bins - 1)
        return (place + (u - ends[place]) / (ends[place + 1] - ends[place])) / self.bins

    @torch.no_grad()
    def _see(self, place: Tensor, loss: Tensor) -> None:
        found = torch.zeros(2, self.bins, device=self.sums.device)
        finite = loss.isfinite()
        squares = torch.stack([torch.where(finite, loss, 0.0).float() ** 2, finite.float()]).to(found)
        found.index_add_(1, place.to(found.device), squares)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(found)
        self.sums.add_(found[0])
        self.counts.add_(found[1])

    def corrected(self, losses: Losses) -> Losses:
        """The losses of a training batch, over the density of their times; they are noted for later steps."""
        if not self.training or losses.t is None:
            return losses
        place = (losses.t * self.bins).floor().clamp(0, self.bins - 1).long().cpu()
        weight = (1 / (self.probabilities()[place] * self.bins)).to(losses.total)
        self._see(place, losses.total.detach())
        return Losses(losses.total * weight, {name: part * weight for name, part in losses.parts.items()}, losses.t)
