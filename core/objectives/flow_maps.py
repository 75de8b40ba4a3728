r"""Flow maps: denoisers of two times, whose one step from t to s lands where the ODE would.

``cond["target"]`` is s. What such a denoiser says is its estimate (x0, noise) at (x, t, s), of which a step is made as
any other, ``x_s = alpha_s x0 + sigma_s noise``, where ``x_t = alpha_t x0 + sigma_t noise``: two equations, so that a
jump and an estimate say the same,

    x0 = (sigma_t x_s - sigma_s x_t) / d      noise = (alpha_s x_t - alpha_t x_s) / d
    d = alpha_s sigma_t - alpha_t sigma_s

At s = t the estimate is the ordinary one, and ``noise - x0`` the velocity of the flow schedule; for any schedule it is
the velocity of x / (alpha + sigma) in sigma / (alpha + sigma). With s = 0 the jump is x0: a consistency model.

All objectives of the family are the denoising objective with another (x0, noise) in place of the data's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Generator, Tensor

from ..denoiser import Denoise, Denoiser
from ..predictions import scale_like
from ..randomness import StepRandomness
from ..samplers import SAMPLERS, Sampler, Step, noised, sample
from ..samples import Cond, Sample, Time, align_left, known_at_zero, map_parts
from ..schedules import Schedule
from ..spaces import Product, Space
from .denoising import QUANTILES, Couple, Example, build_pairing, held_out_generators, sum_losses
from .objective import Losses, Objective
from .times import TIME_DISTRIBUTIONS
from .weightings import robust


def told(cond: Cond, target: Tensor) -> dict[str, Any]:
    """The conditions, with the time that a step is to reach."""
    return {**cond, "target": target}


def landing(estimate: Any, s: Time, schedule: Schedule) -> Sample:
    """Where the step of an estimate to times ``s`` lands."""
    return noised(estimate.x0, estimate.noise, s, schedule)


def implied(x: Sample, x_s: Sample, t: Time, s: Time, schedule: Schedule) -> tuple[Sample, Sample]:
    """The estimate (x0, noise) whose step from ``x`` at times t lands at ``x_s`` at times s. Elements that do not move
    are their own x0."""

    def mixtures(time: Any, end: Any) -> tuple[Tensor, ...]:
        (alpha, sigma), (alpha_s, sigma_s) = schedule.alpha_sigma(time), schedule.alpha_sigma(end)
        d = alpha_s * sigma - alpha * sigma_s
        still = d <= 0
        d = torch.where(still, 1.0, d)
        weights = (-sigma_s / d, sigma / d, alpha_s / d, -alpha / d)
        return tuple(torch.where(still, rest, w) for w, rest in zip(weights, (1.0, 0.0, 0.0, 0.0), strict=True))

    def clean(part: Tensor, end: Tensor, time: Any, stop: Any) -> Tensor:
        a, b, _, _ = mixtures(time, stop)
        return scale_like(a, part) * part + scale_like(b, part) * end

    def noisy(part: Tensor, end: Tensor, time: Any, stop: Any) -> Tensor:
        _, _, c, d = mixtures(time, stop)
        return scale_like(c, part) * part + scale_like(d, part) * end

    return map_parts(clean, x, x_s, t, s), map_parts(noisy, x, x_s, t, s)


def solve(
    denoise: Denoise, example: Example, x: Sample, grid: Tensor, schedule: Schedule, sampler: Sampler
) -> Iterator[Step]:
    """The steps of a solver from ``x`` at ``grid[0]``, in the space of the example and with what it knows."""
    clean = None if example.known is None else example.x0
    return sample(
        sampler, denoise, x, grid, schedule=schedule, space=example.space, cond=example.cond,
        known=example.known, known_x0=clean,
    )  # fmt: skip


def noise_share(schedule: Schedule, t: Time) -> Tensor:
    """``sigma / (alpha + sigma)``: the time of the flow schedule with the same signal-to-noise ratio."""
    alpha, sigma = schedule.alpha_sigma(t)  # type: ignore[arg-type]
    return sigma / (alpha + sigma)


def fine(x: Tensor) -> Tensor:
    """``x`` in float32, or in float64 where it is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def take(value: Any, rows: Tensor) -> Any:
    """Some samples of a batch; ``value``: a sample, times, conditions, a space or a whole example."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.ndim else value
    if hasattr(value, "batch_size"):
        return map_parts(lambda part: part[rows.to(part.device)], value)
    if isinstance(value, Mapping):
        return {name: take(one, rows) for name, one in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: take(getattr(value, f.name), rows) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **fields)
    return value


def put(values: Sample, rows: Tensor, some: Sample) -> Sample:
    """A batch with some of its samples replaced."""
    return map_parts(lambda part, new: part.index_copy(0, rows.to(part.device), new.to(part)), values, some)


def check_flat(space: Space) -> None:
    """
    Raises:
        ValueError: a space whose paths are not straight lines.
    """
    for one in space.spaces.values() if isinstance(space, Product) else (space,):
        if type(one).noised is not Space.noised:
            raise ValueError(f"a flow map needs a flat space, which {type(one).__name__.lower()} is not")


class FlowMapObjective(Objective):
    """What objectives of two times share: times, paired noise, and the estimate to go by, which is the data's or a
    teacher's. ``time_min`` and others are as of ``Denoising``.

    Args:
        teacher: a denoiser with all its guidance, under the schedule of the model; frozen. It is no submodule: it is
            neither trained nor saved, and whoever gives it sees to its device.
        times: the distribution of training times.
        part_weights: how much each part counts; 1 where not named.
        power, floor: of the ``robust`` loss.
    """

    def __init__(
        self,
        teacher: Denoise | None,
        times: Any,
        part_weights: Mapping[str, float] | None,
        power: float,
        floor: float,
        couple: Couple | None,
        pairing: Any,
        time_min: float,
    ) -> None:
        super().__init__()
        if not 0 <= power <= 1 or floor <= 0:
            raise ValueError(f"power lies in [0, 1] and floor is positive, got {power} and {floor}")
        self._teacher = (teacher,)  # in a tuple, where a module does not look for submodules
        self.times = TIME_DISTRIBUTIONS.build(times)
        self.part_weights = dict(part_weights or {})
        self.power, self.floor, self.time_min = power, floor, time_min
        self.couple, self.pairing = couple, build_pairing(pairing)

    @property
    def teacher(self) -> Denoise | None:
        return self._teacher[0]

    def required_teacher(self) -> Denoise:
        """The teacher.

        Raises:
            ValueError: there is none.
        """
        if self.teacher is None:
            raise ValueError(f"{type(self).__name__} learns from a teacher: teacher=CHECKPOINT")
        return self.teacher

    def draw_noise(self, example: Example, generators: Sequence[Generator]) -> Sample:
        """Noise paired with the data, as that of the teacher was when it was trained."""
        check_flat(example.space)
        noise = example.space.noise(example.x0, generators)
        if self.pairing is not None:
            noise = self.pairing(example, noise, generators)
        return noise if self.couple is None else self.couple(example.x0, noise, example.space)

    def draw_times(self, model: Denoiser, random: StepRandomness) -> Tensor:
        """Times ``(batch,)``, float64 on the CPU."""
        return self.times(random.uniform(), model.schedule).clamp(self.time_min, 1.0)

    @torch.no_grad()
    def guide(self, example: Example, x: Sample, times: Time, noise: Sample) -> tuple[Sample, Sample]:
        """The (x0, noise) that a path follows at ``x``: the data's, or the teacher's estimate."""
        if self.teacher is None:
            return example.x0, noise
        estimate = self.teacher(x, times, example.cond)
        return estimate.x0, estimate.noise

    def losses(
        self, example: Example, errors: Mapping[str, Tensor], t: Tensor, adapted: bool, weight: Tensor | None = None
    ) -> Losses:
        """Losses of elementwise errors; ``adapted``: made robust, and weighted per sample, as training does."""

        def adapt(name: str, loss: Tensor) -> Tensor:
            loss = robust(loss, self.power, self.floor)
            return loss if weight is None else loss * weight.to(loss)

        return sum_losses(example, errors, t, self.part_weights, adapt if adapted else lambda name, loss: loss)

    def views(
        self, model: Denoiser, example: Example, items: Sequence[int], seed: int, at: Callable[[Tensor, Sample], Losses]
    ) -> Iterator[tuple[str, Losses]]:
        """``at(t, noise)`` of held-out items at each of ``QUANTILES`` of the training times."""
        for k, u in enumerate(QUANTILES):
            noise = self.draw_noise(example, held_out_generators(seed, items, k))
            t = self.times(torch.full((len(items),), u, dtype=torch.float64), model.schedule)
            yield f"u{u:.4f}", at(t.clamp(self.time_min, 1.0), noise)


def state(example: Example, noise: Sample, t: Tensor, schedule: Schedule) -> tuple[Sample, Time]:
    """The noisy state at ``t``, and the time of each of its elements: 0 where it is known."""
    times = known_at_zero(t, example.known, example.x0)
    return noised(example.x0, noise, times, schedule), times


def start(example: Example, noise: Sample, t: Tensor, temperature: Any, schedule: Schedule) -> Sample:
    """What sampling starts from at time ``t``, 0-d: noise times a temperature, and what is known as it is."""
    clean = map_parts(torch.zeros_like, example.x0)
    x = noised(clean, example.space.tempered(noise, temperature), t, schedule)
    return impose(example, x)


def impose(example: Example, x: Sample) -> Sample:
    """``x`` with what is known put in."""
    if example.known is None:
        return x

    def one(part: Tensor, own: Tensor, flags: Tensor) -> Tensor:
        return torch.where(align_left(flags, part), own, part)

    return map_parts(one, x, example.x0, example.known)


def deterministic(sampler: Any) -> Sampler:
    """A solver from its name.

    Raises:
        ValueError: it draws noise, so that its end is no function of its start.
    """
    built = SAMPLERS.build(sampler)
    if built.stochastic:
        raise ValueError(f"a path to be learned needs a deterministic sampler, which {sampler!r} is not")
    return built
