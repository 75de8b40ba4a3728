"""Network + schedule + prediction = Denoiser.

Everything that samples sees ``denoise(x, t, cond, previous) -> Estimate(x0, noise)``. Guidance, editing and caching are
denoisers around denoisers with the same signature.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from .predictions import PREDICTIONS, Estimate, Prediction, scale_like
from .samples import WHOLE, Cond, Sample, Time, align_left, map_parts, parts, pick, product
from .schedules import SCHEDULES, Schedule


class Denoise(Protocol):
    """The calling convention of every denoiser.

    Args:
        x: the noisy sample at time ``t``.
        t: time in [0, 1], float64: 0-d, ``(batch,)`` or left-aligned per element; a ``TensorDict`` where parts differ.
        cond: conditions, batch-first tensors by name; ``mask`` marks real elements.
        previous: the last estimate of x0 (self-conditioning), or None.
    """

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate: ...


class Denoiser(nn.Module):
    """A network that has learned to denoise under one schedule.

    Args:
        network: ``network(x, t, cond, previous) -> output``, with x scaled to unit variance.
        schedule: the schedule of training.
        prediction: what the output means; one for all parts, or one for each part by name.
        sigma_data: standard deviation of the data, by part where parts differ; scales the network's input to unit
            variance, ``x / sqrt(alpha^2 sigma_data^2 + sigma^2)``. None leaves x as it is.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule | str | Mapping[str, Any] = "flow",
        prediction: Prediction | str | Mapping[str, Any] = "velocity",
        sigma_data: float | Mapping[str, float] | None = 1.0,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = SCHEDULES.build(schedule)
        self.prediction = build_predictions(prediction)
        self.sigma_data = sigma_data

    def part_prediction(self, name: str) -> Prediction:
        """The prediction of a part."""
        return self.prediction[name] if isinstance(self.prediction, Mapping) else self.prediction

    def output(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Sample:
        """The raw output of the network at ``x``, scaled to unit variance on the way in."""
        t = map_parts(lambda part, time: torch.as_tensor(time, dtype=torch.float64), x, t) if _mixed(t) else _time(t)
        return self.network(self._scaled(x, t), t, cond, previous)

    def _scaled(self, x: Sample, t: Time) -> Sample:
        def scaled(part: Tensor, time: Tensor, sigma_data: float | None) -> Tensor:
            if sigma_data is None:
                return part
            alpha, sigma = self.schedule.alpha_sigma(time)
            return part * scale_like(1 / torch.sqrt((alpha * sigma_data) ** 2 + sigma**2), part)

        return map_parts(scaled, x, t, self.sigma_data)

    def remember(self, x0: Sample, cond: Cond | None = None) -> Tensor:
        """What a causal network keeps of the clean frames ``x0``, the condition ``past`` of later ones.

        Raises:
            ValueError: a network that is not causal.
        """
        if not hasattr(self.network, "remember"):
            raise ValueError(f"{type(self.network).__name__} has no past: that is for the network dit, causal")
        return self.network.remember(self._scaled(x0, _time(0.0)), cond, x0)  # type: ignore[operator]

    def estimate(self, x: Sample, t: Time, output: Sample) -> Estimate:
        """What an output says of x0 and the noise. An element at sigma = 0 (a known one) is its own x0."""
        x0s: dict[str, Tensor] = {}
        noises: dict[str, Callable[[], Tensor]] = {}
        variances: dict[str, Tensor | None] = {}
        for name, part in parts(x).items():
            time = _time(pick(t, name))
            alpha, sigma = self.schedule.alpha_sigma(time)
            prediction, said = self.part_prediction(name), pick(output, name)
            x0, noises[name] = prediction.estimate(part, said, alpha, sigma)
            variances[name] = prediction.variance(part, said)
            if time.ndim > 1:  # per-element time: some elements may be known
                known = align_left((sigma == 0).to(part.device), part)
                x0 = torch.where(known, part / scale_like(alpha, part), x0)
            x0s[name] = x0
        if isinstance(x, Tensor):
            return Estimate(x0s[WHOLE], noises[WHOLE], variance=variances[WHOLE])
        told = {name: variance for name, variance in variances.items() if variance is not None}
        variance = product(told) if len(told) == len(variances) else None
        return Estimate(
            product(x0s), lambda: product({name: noise() for name, noise in noises.items()}), variance=variance
        )

    def forward(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        return self.estimate(x, t, self.output(x, t, cond, previous))


class UnderSchedule:
    """A trained denoiser seen under another schedule: matched in log-SNR, x rescaled (Karras et al. 2022, app. B).

    Args:
        denoise: a denoiser of ``trained``.
        trained: the schedule that ``denoise`` expects.
        schedule: the schedule to sample with.
    """

    def __init__(self, denoise: Denoise, trained: Schedule, schedule: Schedule) -> None:
        self.denoise, self.trained, self.schedule = denoise, trained, schedule

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        def trained_time(part: Tensor, time: Any) -> Tensor:
            return self.trained.time_of_log_snr(self.schedule.log_snr(_time(time)))

        def rescaled(part: Tensor, time: Any, own: Tensor, power: float = 0.5) -> Tensor:
            (alpha, sigma), (alpha_own, sigma_own) = (
                self.schedule.alpha_sigma(_time(time)),
                self.trained.alpha_sigma(own),
            )
            ratio = (alpha_own**2 + sigma_own**2) / (alpha**2 + sigma**2)
            return part * scale_like(ratio**power, part)

        own = map_parts(trained_time, x, t) if _mixed(t) else trained_time(torch.empty(0), t)
        estimate = self.denoise(map_parts(rescaled, x, t, own), own, cond, previous)
        if estimate.shift is None:
            return estimate
        shift = map_parts(rescaled, estimate.shift, t, own, -0.5)
        return Estimate(estimate.x0, lambda: estimate.noise, shift, estimate.variance)


class FunctionDenoiser:
    """Any ``f(x, t) -> x0`` as a denoiser under a schedule; ``t`` reaches ``f`` as the float64 tensor it is here."""

    def __init__(self, function: Callable[..., Sample], schedule: Schedule) -> None:
        self.function, self.schedule = function, schedule

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        x0 = self.function(x, t)
        return Estimate(x0, lambda: implied_noise(x, x0, t, self.schedule))


def implied_noise(x: Sample, x0: Sample, t: Time, schedule: Schedule) -> Sample:
    """The noise that goes with an estimate of x0, ``(x - alpha x0) / sigma``; 0 at sigma = 0."""

    def one(part: Tensor, clean: Tensor, time: Any) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(_time(time))
        inverse = torch.where(sigma > 0, 1 / sigma.clamp(min=1e-150), 0.0)
        return scale_like(inverse, part) * (part - scale_like(alpha, part) * clean)

    return map_parts(one, x, x0, t)


def _time(t: Any) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


def _mixed(t: Time) -> bool:
    return hasattr(t, "items") and not isinstance(t, Tensor)


def build_predictions(spec: Any) -> Prediction | dict[str, Prediction]:
    """One prediction from a name or ``{"name": ...}``; one for each part from ``{part: spec}``."""
    if isinstance(spec, Mapping) and "name" not in spec:
        return {str(part): PREDICTIONS.build(one) for part, one in spec.items()}
    return PREDICTIONS.build(spec)
