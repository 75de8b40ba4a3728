"""A sampler for each part of a product: atoms may be drawn while positions flow."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from ..predictions import Estimate
from ..samples import WHOLE, Sample, parts, pick, product
from ..schedules import Schedule
from .sampler import SAMPLERS, BoundDenoise, Sampler, State


@SAMPLERS.register("by_part")
class ByPart(Sampler):
    """Every part by a sampler of its own; all see the same call of the denoiser, so each makes one call a step.

    Args:
        samplers: by the part's name.
        other: for parts not named.
    """

    def __init__(self, samplers: Mapping[str, Any] | None = None, other: Any = "dpmpp_2m") -> None:
        self.samplers = {name: SAMPLERS.build(spec) for name, spec in (samplers or {}).items()}
        self.other: Sampler = SAMPLERS.build(other)
        every = [self.other, *self.samplers.values()]
        if slow := [type(one).__name__ for one in every if one.calls_per_step != 1]:
            raise ValueError(f"by_part needs samplers of one call a step, not {', '.join(slow)}")
        self.order = min(one.order for one in every)
        self.stochastic = any(one.stochastic for one in every)

    def of(self, name: str) -> Sampler:
        """The sampler of a part."""
        return self.samplers.get(name, self.other)

    def plan(self, schedule: Schedule, grid: Tensor) -> Sequence[Any]:
        named = {name: sampler.plan(schedule, grid) for name, sampler in self.samplers.items()}
        other = self.other.plan(schedule, grid)
        return [(grid[i], {name: moves[i] for name, moves in named.items()}, other[i]) for i in range(len(grid) - 1)]

    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Any, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        t, named, other = coefficients
        if unknown := [name for name in self.samplers if name not in parts(x)]:
            raise ValueError(f"no part {', '.join(unknown)} to sample. Parts: {', '.join(parts(x))}")
        estimate = denoise(x, t, state.x0)
        fresh = noise() if self.stochastic else None
        before = dict(state.records)
        moved: dict[str, Tensor] = {}
        after: list[tuple[str, State]] = []
        for name, part in parts(x).items():
            said = Estimate(pick(estimate.x0, name), partial(_noise_of, estimate, name))
            own = self.of(name)
            kept = before.get(name, State())
            moves = named.get(name, other)
            moved[name], now = own.step(partial(_said, said), part, moves, kept, partial(pick, fresh, name))  # type: ignore[assignment]
            after.append((name, now))
        out = moved[WHOLE] if isinstance(x, Tensor) else product(moved)
        return out, State(estimate.x0, tuple(after))


def _said(said: Estimate, *_: Any) -> Estimate:
    return said


def _noise_of(estimate: Estimate, name: str) -> Any:
    return pick(estimate.noise, name)
