"""Guidance by another network."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..denoiser import Denoise
from ..samples import Cond, Sample, Time
from ..schedules import Schedule
from .guidance import GUIDANCE, Ladder


@GUIDANCE.register("autoguidance")
class Autoguidance(Ladder):
    """Autoguidance (Karras et al. 2024b): the weak estimate is a smaller or less trained denoiser's.

    Args:
        guide: the weak denoiser, of the same schedule, or the name of its checkpoint.
        load: finds the denoiser of a checkpoint by its name.

    Raises:
        ValueError: a name, and no way to find it.
    """

    def __init__(
        self,
        denoise: Denoise,
        guide: Denoise | str,
        scale: float = 2.0,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
        schedule: Schedule | None = None,
        load: Callable[[str], Denoise] | None = None,
    ) -> None:
        super().__init__(denoise, scale, interval, rescale, schedule)
        if isinstance(guide, str):
            if load is None:
                raise ValueError(f"no checkpoint {guide!r} can be loaded here: guide is a denoiser")
            guide = load(guide)
        self.guide = guide

    def ladder(self, x: Sample, t: Time, cond: Cond | None, previous: Sample | None) -> Sequence[Sample]:
        return self.guide(x, t, cond, previous).x0, self.denoise(x, t, cond, previous).x0
