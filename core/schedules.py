r"""How signal becomes noise: ``x_t = alpha(t) x0 + sigma(t) noise``, t in [0, 1], t = 0 is data, t = 1 is noise.

A schedule is a curve ``log_snr(t) = log(alpha^2 / sigma^2)``, strictly decreasing from +inf at t = 0, together with
a *scaling* that says how large x_t is:

    preserving   alpha^2 + sigma^2 = 1        alpha = sqrt(sigmoid(l)),  sigma = sqrt(sigmoid(-l))
    flow         alpha + sigma = 1            alpha = sigmoid(l / 2),    sigma = sigmoid(-l / 2)
    sub          alpha^2 + sigma = 1          alpha = 2 / (q + sqrt(q^2 + 4)), sigma = q alpha, q = exp(-l / 2)
    exploding    alpha = 1                    sigma = exp(-l / 2)

All arithmetic is float64, on the device of ``t`` (the CPU in samplers and in training). Solvers only ever use alpha,
sigma and log-SNR, so every solver runs on every schedule; two schedules with equal log-SNR differ by a factor of x.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .registry import Registry

Scaling = Literal["preserving", "flow", "sub", "exploding"]
SCHEDULES: Registry[Schedule] = Registry("schedule")


def scales(log_snr: Tensor, scaling: Scaling) -> tuple[Tensor, Tensor]:
    """``(alpha, sigma)`` of a log-SNR under a scaling; exact at +-inf."""
    if scaling == "preserving":
        return torch.sigmoid(log_snr).sqrt(), torch.sigmoid(-log_snr).sqrt()
    if scaling == "flow":
        return torch.sigmoid(log_snr / 2), torch.sigmoid(-log_snr / 2)
    if scaling == "sub":
        snr = torch.exp(log_snr)  # each form is exact at both ends
        return 2 / (torch.exp(-log_snr / 2) + torch.sqrt(1 / snr + 4)), 2 / (1 + torch.sqrt(1 + 4 * snr))
    return torch.ones_like(log_snr), torch.exp(-log_snr / 2)


def _double(t: float | Tensor) -> Tensor:
    return torch.as_tensor(t, dtype=torch.float64)


class Schedule(ABC):
    """A noise schedule. Subclasses give ``log_snr``, its inverse and a ``scaling``; the rest follows."""

    scaling: Scaling

    @abstractmethod
    def log_snr(self, t: float | Tensor) -> Tensor:
        """``log(alpha^2 / sigma^2)`` at times ``t`` in [0, 1]; float64, the shape of ``t``."""

    @abstractmethod
    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        """The inverse of ``log_snr``, clipped to [0, 1]."""

    def alpha_sigma(self, t: float | Tensor) -> tuple[Tensor, Tensor]:
        """``(alpha, sigma)`` at times ``t``; float64, the shape of ``t``."""
        return scales(self.log_snr(t), self.scaling)

    def alpha(self, t: float | Tensor) -> Tensor:
        """The signal's coefficient at times ``t``."""
        return self.alpha_sigma(t)[0]

    def sigma(self, t: float | Tensor) -> Tensor:
        """The noise's coefficient at times ``t``."""
        return self.alpha_sigma(t)[1]


@SCHEDULES.register("flow")
class Flow(Schedule):
    """Rectified flow, the straight line: alpha = 1 - t, sigma = t (Liu et al. 2023, Lipman et al. 2023)."""

    scaling: Scaling = "flow"

    def log_snr(self, t: float | Tensor) -> Tensor:
        t = _double(t)
        return 2 * (torch.log1p(-t) - torch.log(t))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        return torch.sigmoid(-_double(log_snr) / 2)


@SCHEDULES.register("trig")
class Trig(Schedule):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (TrigFlow; the continuous cosine schedule)."""

    scaling: Scaling = "preserving"

    def log_snr(self, t: float | Tensor) -> Tensor:
        angle = _double(t) * (math.pi / 2)
        # cos(pi/2) is 6e-17 in floating point: at t = 1 the signal is exactly gone.
        value = 2 * (torch.log(torch.cos(angle)) - torch.log(torch.sin(angle)))
        return torch.where(angle >= math.pi / 2, torch.full_like(angle, -math.inf), value)

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        return torch.atan(torch.exp(-_double(log_snr) / 2)) * (2 / math.pi)


SCHEDULES.register("gvp")(Trig)  # the name that it has in stochastic interpolants (Ma et al. 2024, SiT)


class _LinearBeta(Schedule):
    """SDEs whose rate of noise grows linearly from ``beta_min`` to ``beta_max`` (Song et al. 2021, section 3.4)."""

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min < beta_max:
            raise ValueError(f"needs 0 < beta_min < beta_max, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = beta_min, beta_max

    def _log_alpha2(self, t: float | Tensor) -> Tensor:
        t = _double(t)
        return -(t * t * (self.beta_max - self.beta_min) / 2 + t * self.beta_min)

    def _time_of_decay(self, decay: Tensor) -> Tensor:
        """The time at which -log alpha^2 is ``decay``."""
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * decay)
        return (2 * decay / (self.beta_min + root)).clamp(0, 1).nan_to_num(1.0)


@SCHEDULES.register("vp")
class VP(_LinearBeta):
    """The continuous variance-preserving SDE with a linear beta (Song et al. 2021, eq. 11):
    ``log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2``."""

    scaling: Scaling = "preserving"

    def log_snr(self, t: float | Tensor) -> Tensor:
        log_alpha2 = self._log_alpha2(t)
        return log_alpha2 - torch.log(-torch.expm1(log_alpha2))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        return self._time_of_decay(nn.functional.softplus(-_double(log_snr), threshold=1e9))


@SCHEDULES.register("sub_vp")
class SubVP(_LinearBeta):
    """The sub-VP SDE: alpha as that of ``vp``, and less noise, sigma = 1 - alpha^2 (Song et al. 2021, section 3.4)."""

    scaling: Scaling = "sub"

    def log_snr(self, t: float | Tensor) -> Tensor:
        log_alpha2 = self._log_alpha2(t)
        return log_alpha2 - 2 * torch.log(-torch.expm1(log_alpha2))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        alpha, sigma = scales(_double(log_snr), "sub")
        return self._time_of_decay(torch.where(sigma < 0.5, -torch.log1p(-sigma), -2 * torch.log(alpha)))


@SCHEDULES.register("laplace")
class Laplace(Schedule):
    """Log-SNR with the quantiles of a Laplace distribution: uniform times spend most training where it is near
    ``mean`` (Hang et al. 2024, table 1).

    Args:
        mean: of log-SNR.
        scale: of its distribution, b.
    """

    scaling: Scaling = "preserving"

    def __init__(self, mean: float = 0.0, scale: float = 0.5) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.mean, self.scale = mean, scale

    def log_snr(self, t: float | Tensor) -> Tensor:
        t = _double(t)
        return self.mean + self.scale * torch.where(t < 0.5, -torch.log(2 * t), torch.log(2 * (1 - t)))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        place = (_double(log_snr) - self.mean) / self.scale
        tail = torch.exp(-place.abs()) / 2
        return torch.where(place > 0, tail, 1 - tail)


@SCHEDULES.register("ve")
class VE(Schedule):
    """The variance-exploding SDE (Song et al. 2021): ``sigma^2(t) = sigma_min^2 ((sigma_max / sigma_min)^2t - 1)``,
    the variance that the SDE has added since t = 0."""

    scaling: Scaling = "exploding"

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"ve needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}")
        self.sigma_min, self.sigma_max = sigma_min, sigma_max

    def log_snr(self, t: float | Tensor) -> Tensor:
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return -2 * math.log(self.sigma_min) - torch.log(torch.expm1(rate * _double(t)))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        rate = 2 * math.log(self.sigma_max / self.sigma_min)
        return (torch.log1p(torch.exp(-_double(log_snr)) / self.sigma_min**2) / rate).clamp(0, 1)


@SCHEDULES.register("edm")
class EDM(Schedule):
    """sigma(t) = sigma_max t^rho, alpha = 1: uniform times are the grid of Karras et al. 2022 (eq. 5) with its
    smallest sigma at zero."""

    scaling: Scaling = "exploding"

    def __init__(self, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        if sigma_max <= 0 or rho <= 0:
            raise ValueError(f"edm needs sigma_max > 0 and rho > 0, got {sigma_max} and {rho}")
        self.sigma_max, self.rho = sigma_max, rho

    def log_snr(self, t: float | Tensor) -> Tensor:
        return -2 * (math.log(self.sigma_max) + self.rho * torch.log(_double(t)))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        log_sigma = -_double(log_snr) / 2
        return torch.exp((log_sigma - math.log(self.sigma_max)) / self.rho).clamp(0, 1)


@SCHEDULES.register("table")
class Table(Schedule):
    """A discrete schedule of T noise levels, ``betas[i] = 1 - alpha_i^2 / alpha_{i-1}^2``, level i at t = (i + 1) / T.

    Between levels alpha is linear in t (alpha = 1 at t = 0), which stays exact for a last alpha of zero.
    """

    scaling: Scaling = "preserving"

    def __init__(self, betas: Sequence[float] | Tensor) -> None:
        betas = _double(torch.as_tensor(betas))
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"a table needs at least 2 betas in one dimension, got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas <= 1)).all()) or bool((betas[:-1] == 1).any()):
            raise ValueError("betas must lie in (0, 1); only the last may be 1")
        self._set_alphas(torch.cumprod(1 - betas, 0).sqrt())

    @classmethod
    def from_alphas(cls, alphas: Tensor) -> Table:
        """From the signal coefficients alpha (not squared), decreasing."""
        table = cls.__new__(cls)
        table._set_alphas(_double(alphas))
        return table

    def _set_alphas(self, alphas: Tensor) -> None:
        self.alphas = torch.cat([torch.ones(1, dtype=torch.float64), alphas])
        self.levels = len(alphas)

    def log_snr(self, t: float | Tensor) -> Tensor:
        t = _double(t)
        alphas = self.alphas.to(t.device)
        place = (t * self.levels).clamp(0, self.levels)
        # (i + 1) / T * T may miss the integer by one ulp: a level must be hit exactly.
        place = torch.where((place - place.round()).abs() < 1e-9, place.round(), place)
        left = place.floor().clamp(max=self.levels - 1).long()
        alpha = torch.lerp(alphas[left], alphas[left + 1], place - left)
        return 2 * torch.log(alpha) - torch.log((1 - alpha) * (1 + alpha))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        alpha, _ = scales(_double(log_snr), "preserving")
        falling = self.alphas.to(alpha.device)
        right = torch.searchsorted(-falling, -alpha.contiguous()).clamp(1, self.levels)
        high, low = falling[right - 1], falling[right]
        return ((right - 1 + (high - alpha) / (high - low)) / self.levels).clamp(0, 1)


@SCHEDULES.register("linear")
def linear(beta_start: float = 1e-4, beta_end: float = 0.02, levels: int = 1000) -> Table:
    """Betas equally spaced (Ho et al. 2020)."""
    return Table(torch.linspace(beta_start, beta_end, levels, dtype=torch.float64))


@SCHEDULES.register("scaled_linear")
def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012, levels: int = 1000) -> Table:
    """Square roots of the betas equally spaced (latent diffusion, Rombach et al. 2022)."""
    return Table(torch.linspace(beta_start**0.5, beta_end**0.5, levels, dtype=torch.float64) ** 2)


@SCHEDULES.register("cosine")
def cosine(offset: float = 0.008, max_beta: float = 0.999, levels: int = 1000) -> Table:
    """alpha^2 ~ cos^2((t + s) / (1 + s) pi / 2), betas clipped (Nichol and Dhariwal 2021, eq. 17)."""
    t = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    alpha2 = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
    return Table((1 - alpha2[1:] / alpha2[:-1]).clamp(max=max_beta))


@SCHEDULES.register("sigmoid")
def sigmoid(start: float = -3.0, end: float = 3.0, tau: float = 1.0, levels: int = 1000) -> Table:
    """alpha^2 ~ sigmoid(-(start + (end - start) t) / tau), rescaled to run from 1 to 0 (Jabri et al. 2023)."""
    t = torch.linspace(0, 1, levels + 1, dtype=torch.float64)
    low, high = (torch.sigmoid(_double(v) / tau) for v in (start, end))
    alpha2 = (high - torch.sigmoid((start + (end - start) * t) / tau)) / (high - low)
    alpha2 = alpha2 / alpha2[0]
    return Table((1 - alpha2[1:] / alpha2[:-1]).clamp(max=0.999))


@SCHEDULES.register("sigmoid_beta")
def sigmoid_beta(beta_start: float = 1e-4, beta_end: float = 0.02, levels: int = 1000) -> Table:
    """Betas that rise as a sigmoid from -6 to 6 does (Xu et al. 2022, GeoDiff)."""
    rise = torch.sigmoid(torch.linspace(-6, 6, levels, dtype=torch.float64))
    return Table(beta_start + (beta_end - beta_start) * rise)


@SCHEDULES.register("shifted")
class Shifted(Schedule):
    """Noise scaled by ``shift``: log_snr(t) - 2 log(shift). On the flow schedule this is the resolution shift
    ``shift t / (1 + (shift - 1) t)`` (Esser et al. 2024, eq. 23); on others the log-SNR shift of Hoogeboom 2023."""

    def __init__(self, schedule: Schedule | str = "flow", shift: float = 3.0) -> None:
        if shift <= 0:
            raise ValueError(f"shift must be positive, got {shift}")
        self.schedule, self.shift = SCHEDULES.build(schedule), shift
        self.scaling = self.schedule.scaling

    def log_snr(self, t: float | Tensor) -> Tensor:
        return self.schedule.log_snr(t) - 2 * math.log(self.shift)

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        return self.schedule.time_of_log_snr(_double(log_snr) + 2 * math.log(self.shift))


@SCHEDULES.register("zero_terminal_snr")
def zero_terminal_snr(schedule: Schedule | str = "scaled_linear", levels: int = 1000) -> Table:
    """A variance-preserving schedule rescaled so that the last level holds no signal (Lin et al. 2024, alg. 1):
    ``alpha <- (alpha - alpha_T) alpha_1 / (alpha_1 - alpha_T)``."""
    schedule = SCHEDULES.build(schedule)
    if schedule.scaling != "preserving":
        raise ValueError(f"zero_terminal_snr needs a variance-preserving schedule, not a {schedule.scaling!r} one")
    levels = schedule.levels if isinstance(schedule, Table) else levels
    alphas = schedule.alpha(torch.arange(1, levels + 1, dtype=torch.float64) / levels)
    return Table.from_alphas((alphas - alphas[-1]) * (alphas[0] / (alphas[0] - alphas[-1])))


@SCHEDULES.register("learned")
class Learned(nn.Module, Schedule):
    """Another schedule whose time is warped by a learned monotone function, with both ends where they are (Kingma et
    al. 2021): piecewise linear, so that its inverse is exact. Its parameters are a denoiser's, trained with it.

    Args:
        schedule: the one that is warped; untrained, it is this one.
        pieces: of equal length in t.
    """

    def __init__(self, schedule: Schedule | str | Mapping[str, Any] = "flow", pieces: int = 32) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"pieces must be at least 1, got {pieces}")
        self.schedule, self.pieces = SCHEDULES.build(schedule), pieces
        self.scaling = self.schedule.scaling
        self.steepness = nn.Parameter(torch.zeros(pieces))

    def _knots(self, device: torch.device) -> Tensor:
        rises = torch.softmax(self.steepness.to(device, torch.float64), 0).cumsum(0)
        return torch.cat([rises.new_zeros(1), rises[:-1], rises.new_ones(1)])

    def log_snr(self, t: float | Tensor) -> Tensor:
        t = _double(t)
        knots, place = self._knots(t.device), t * self.pieces
        left = place.detach().floor().clamp(0, self.pieces - 1).long()
        return self.schedule.log_snr(torch.lerp(knots[left], knots[left + 1], place - left))

    def time_of_log_snr(self, log_snr: float | Tensor) -> Tensor:
        time = self.schedule.time_of_log_snr(log_snr)
        knots = self._knots(time.device)
        left = (torch.searchsorted(knots.detach(), time.detach().contiguous(), right=True) - 1).clamp(
            0, self.pieces - 1
        )
        return ((left + (time - knots[left]) / (knots[left + 1] - knots[left])) / self.pieces).clamp(0, 1)
