r"""What a sampler is: a plan of coefficients, made once for a whole grid, and a pure step that applies it.

Nearly every diffusion sampler is linear in x and in the estimates ``D_j`` of x0. One step from t to s is

    x_s = weights[0] x + weights[1] D_0 + weights[2] D_1 + ... + spread z

with ``D_0`` the estimate at t, older or intermediate ones after it, and z fresh noise. A linear sampler is therefore no
more than a table of coefficients, computed in float64 from (alpha, sigma, log-SNR) before the first step: plain Python
floats for a grid of numbers, so that a step adds tensors and nothing else, and tensors for a grid per element.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from ..predictions import Estimate, scale_like
from ..registry import Registry
from ..samples import Sample, product
from ..schedules import Schedule
from ..spaces import Space

SAMPLERS: Registry[Sampler] = Registry("sampler")

Weight: TypeAlias = "float | Tensor"


class BoundDenoise(Protocol):
    """A denoiser with its conditions; ``target``: where the step is to end, for a network of two times."""

    def __call__(self, x: Sample, t: Tensor, previous: Sample | None, target: Tensor | None = None) -> Estimate: ...


class State(NamedTuple):
    """What travels from step to step.

    Attributes:
        x0: the last estimate of x0.
        records: of the first call of each earlier step, newest first, as many as the sampler needs.
    """

    x0: Any = None
    records: tuple[Any, ...] = ()


class Sampler(ABC):
    """A sampler holds its options only; everything that changes is in its state.

    Attributes:
        order: the order of convergence of its deterministic part.
        calls_per_step: denoiser calls of a step; None where it depends on the grid or on the sample.
        stochastic: whether it draws noise.
        elementwise: whether an element's path depends on its own times alone, not on those of the sample's others.
        invariant: whether schedules of equal log-SNR give equal x / alpha.
    """

    order: int
    calls_per_step: int | None = 1
    stochastic: bool = False
    elementwise: bool = True
    invariant: bool = True

    @abstractmethod
    def plan(self, schedule: Schedule, grid: Tensor) -> Sequence[Any]:
        """The coefficients of each step. ``grid``: float64, ``(steps + 1, *time)``; where an element's time does not
        move (t = s) the step leaves it as it is."""

    def begin(self, space: Space) -> State:
        """The state before the first step; ``space``: for a sampler that measures what it does."""
        return State()

    @abstractmethod
    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Any, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        """One step. ``denoise(x, t, previous, target)`` has its conditions bound; ``noise()`` draws standard noise."""


class Stage(NamedTuple):
    """One call of the denoiser, at time ``t``, and the x that follows from it.

    Attributes:
        t: where the denoiser is called.
        weights: of (x at the start of the step, the estimate D, earlier records, newest first; those of this step's
            calls, then of earlier steps).
        record: what to keep of the call, as weights of (x at t, D); None keeps D, and () nothing.
        target: the time that the network is told the step ends at; None tells none.
        correct: if given, weights of (x, D, records): the start of the step, improved by D.
    """

    t: Tensor
    weights: tuple[Weight, ...]
    record: tuple[Weight, Weight] | tuple[()] | None = None
    correct: tuple[Weight, ...] | None = None
    target: Tensor | None = None


class Move(NamedTuple):
    """The coefficients of one step.

    Attributes:
        stages: the calls of the denoiser, in order.
        spread: the weight of the noise added at the end; None adds none.
        lift: weights of (x, noise) that raise the noise level before the first call.
        then: moves that follow in the same step.
    """

    stages: tuple[Stage, ...]
    spread: Weight | None = None
    lift: tuple[Weight, Weight] | None = None
    then: tuple[Move, ...] = ()


class LinearSampler(Sampler):
    """A sampler that is a table of coefficients: subclasses say how to ``plan``.

    Attributes:
        memory: how many records are kept from one step to the next.
    """

    memory: int = 0

    @abstractmethod
    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]: ...

    def step(
        self, denoise: BoundDenoise, x: Sample, coefficients: Move, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        for move in (coefficients, *coefficients.then):
            x, state = self._move(denoise, x, move, state, noise)
        return x, state

    def _move(
        self, denoise: BoundDenoise, x: Sample, move: Move, state: State, noise: Callable[[], Sample]
    ) -> tuple[Sample, State]:
        start = x if move.lift is None else combine(move.lift, (x, noise()))
        x, (x0, records) = start, state
        for stage in move.stages:
            told = () if stage.target is None else (stage.target,)
            estimate = denoise(x, stage.t, x0, *told)
            x0 = estimate.x0
            if stage.correct is not None:
                start = combine(stage.correct, (start, x0, *records))
            if estimate.shift is not None and stage is move.stages[0]:
                start, x = (combine((1.0, 1.0), (one, estimate.shift)) for one in (start, x))
            record = x0 if stage.record is None else combine(stage.record, (x, x0)) if stage.record else None
            x = combine(stage.weights, (start, x0, *records))
            records = records if record is None else (record, *records)
        if move.spread is not None:
            x = combine((1.0, move.spread), (x, noise()))
        later = max(len(records) - len(state.records) - 1, 0)  # calls after the first, newest first: not kept
        return x, State(x0, records[later : later + self.memory])


def combine(weights: Sequence[Weight], samples: Sequence[Any]) -> Sample:
    """``sum_i weights[i] samples[i]``, over as many as both have; weights per element are left-aligned."""
    if isinstance(samples[0], Tensor):
        return _combine(weights, samples)
    names = samples[0].keys()
    return product({name: _combine(weights, [x[name] for x in samples]) for name in names})


def _combine(weights: Sequence[Weight], tensors: Sequence[Tensor]) -> Tensor:
    if len(weights) == 2 and _convex(*weights) and tensors[0].dtype == tensors[1].dtype:
        return torch.lerp(tensors[0], tensors[1], weights[1])  # one pass over memory instead of two
    total, owned = None, True
    for weight, x in zip(weights, tensors, strict=False):
        if isinstance(weight, Tensor):
            term = x * scale_like(weight, x)
            total = term if total is None else total + term
        elif weight == 0:
            continue
        elif total is None:
            total, owned = (x, False) if weight == 1 else (x * weight, True)
        else:
            total, owned = (total.add_ if owned else total.add)(x, alpha=weight), True
    return torch.zeros_like(tensors[0]) if total is None else total


def _convex(a: Weight, b: Weight) -> bool:
    return isinstance(a, float) and isinstance(b, float) and abs(a + b - 1) < 1e-14


def rows(values: Tensor) -> list[Any]:
    """One coefficient for each step: floats for a grid of numbers, tensors for a grid per element."""
    return values.tolist() if values.ndim == 1 else list(values.unbind(0))
