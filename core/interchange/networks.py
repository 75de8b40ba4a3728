"""Networks of other libraries as denoisers, in one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ..denoiser import Denoiser, FunctionDenoiser
from ..predictions import Prediction, scale_like
from ..samples import Cond, Sample
from ..schedules import SCHEDULES, Schedule, Table


def from_sigma(
    function: Callable[[Tensor, Tensor], Tensor], schedule: Schedule | str | Mapping[str, Any] = "edm"
) -> FunctionDenoiser:
    """A network of k-diffusion's convention, ``function(x, sigma) -> denoised`` of ``x = x0 + sigma noise``.

    ``generate(from_sigma(model), torch.zeros(16, 3, 32, 32), sampler="dpmpp_2m", grid="karras", steps=20)``

    Args:
        function: takes x and sigma, ``(batch,)`` in the dtype of x.
        schedule: any schedule to sample it with whose sigma / alpha is finite on the grid.
    """
    schedule = SCHEDULES.build(schedule)

    def x0(x: Tensor, t: Any) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        return function(x * scale_like(1 / alpha, x), (sigma / alpha).to(x).expand(len(x)))

    return FunctionDenoiser(x0, schedule)


def from_timestep(
    model: Callable[[Tensor, Tensor], Tensor],
    schedule: Schedule | str | Mapping[str, Any] = "linear",
    prediction: Prediction | str | Mapping[str, Any] = "noise",
    sigma_data: float | None = None,
    levels: int = 1000,
) -> Denoiser:
    """A network of diffusers' convention, ``model(x, timestep) -> output``, and what its scheduler says.

    ``generate(from_timestep(lambda x, t: unet(x, t).sample, "scaled_linear", "noise"), x, grid="trailing", steps=20)``

    Args:
        model: takes x and the timestep, ``(batch,)`` in the dtype of x: the number of the level, from 0, on a table of
            levels; ``levels t`` on another schedule; ``log(sigma) / 4`` on one that explodes (EDM).
        schedule: the schedule that it was trained with.
        prediction: what its output means.
        sigma_data: scale x to unit variance on the way in, as EDM's networks expect.
        levels: T of a schedule that is not a table.
    """
    schedule = SCHEDULES.build(schedule)
    return Denoiser(_Told(model, schedule, levels), schedule, prediction, sigma_data)


class _Told(nn.Module):
    """A network that is told a timestep instead of the time."""

    def __init__(self, model: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, levels: int) -> None:
        super().__init__()
        self.model, self.schedule, self.levels = model, schedule, levels

    def forward(self, x: Tensor, t: Tensor, cond: Cond | None = None, previous: Sample | None = None) -> Tensor:
        if isinstance(self.schedule, Table):
            timestep = t * self.schedule.levels - 1
        elif self.schedule.scaling == "exploding":
            timestep = self.schedule.log_snr(t) / -8
        else:
            timestep = t * self.levels
        return self.model(x, timestep.to(x).expand(len(x)))
