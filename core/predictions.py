r"""What the network's output means. One linear map serves every usual choice.

A linear prediction is a mixture ``output = u x0 + w noise`` with (u, w) depending on (alpha, sigma) only. Together
with ``x = alpha x0 + sigma noise`` it is a 2 x 2 system of determinant ``d = alpha w - sigma u``:

    x0 = (w x - sigma output) / d          noise = (alpha output - u x) / d

    name       u                          w                          d
    noise      0                          1                          alpha
    x0         1                          0                          -sigma
    v          -sigma                     alpha                      alpha^2 + sigma^2
    velocity   -1                         1                          alpha + sigma
    score      0                          -1 / sigma                 -alpha / sigma
    edm        sigma / (s sqrt(V))        -alpha s / sqrt(V)         -sqrt(V) / s        V = alpha^2 s^2 + sigma^2

``categorical`` is the exception: the output is logits over the classes of a scaled one-hot, trained by cross-entropy,
and x0 is the posterior mean (Dieleman et al. 2022).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .registry import Registry
from .samples import Sample, align_left

PREDICTIONS: Registry[Prediction] = Registry("prediction")

_INFINITE = 1e30  # a coefficient beyond this marks a part that x and the output do not determine: it is set to 0


class Estimate:
    """What a denoiser says of ``x_t``: the clean sample ``x0`` and the ``noise``, computed on first use.

    ``alpha x0 + sigma noise`` is ``x_t``, moved by ``shift`` where a denoiser says that a step is to start elsewhere.
    ``variance``, where it says one, is that of a reverse step: how far its logarithm lies from the smallest, 0, to the
    largest, 1.
    """

    __slots__ = ("_noise", "shift", "variance", "x0")

    def __init__(
        self,
        x0: Sample,
        noise: Sample | Callable[[], Sample],
        shift: Sample | None = None,
        variance: Sample | None = None,
    ) -> None:
        self.x0 = x0
        self._noise = noise
        self.shift = shift
        self.variance = variance

    @property
    def noise(self) -> Sample:
        if callable(self._noise):
            self._noise = self._noise()
        return self._noise


def scale_like(values: Tensor | float, x: Tensor) -> Tensor | float:
    """Float64 coefficients in the dtype and on the device of ``x``, left-aligned with it; 0-d ones become a float."""
    if not isinstance(values, Tensor):
        return values
    if values.ndim == 0 and values.device.type == "cpu":
        return values.item()
    return align_left(values.to(device=x.device, dtype=x.dtype), x)


class Prediction(ABC):
    """The meaning of a network's output at noise level (alpha, sigma); all arguments are single tensors."""

    @abstractmethod
    def estimate(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        """x0, and a function that gives the noise; finite at alpha = 0 and at sigma = 0."""

    @abstractmethod
    def error(self, x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The elementwise loss of ``output`` at ``x = alpha x0 + sigma noise``; its last dimension may shrink to 1."""

    @abstractmethod
    def x0_per_output(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """``|d x0 / d output|``: a loss weight w on the error of x0 is ``w * x0_per_output^2`` on the output's."""

    def variance(self, x: Tensor, output: Tensor) -> Tensor | None:
        """What the output says of a reverse step's variance (``Estimate.variance``); most say nothing."""
        return None


class Linear(Prediction):
    """A prediction that is the mixture ``u x0 + w noise``."""

    def __init__(self, mixture: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]) -> None:
        self.mixture = mixture

    def coefficients(self, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(a, b, c, d) with ``x0 = a x + b output`` and ``noise = c x + d output``."""
        tiny = 1e-150
        alpha, sigma = alpha.clamp(min=tiny), sigma.clamp(min=tiny)
        u, w = self.mixture(alpha, sigma)
        determinant = alpha * w - sigma * u
        values = (w / determinant, -sigma / determinant, -u / determinant, alpha / determinant)
        return tuple(torch.where(v.abs() > _INFINITE, 0.0, v) for v in values)  # type: ignore[return-value]

    def estimate(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        a, b, c, d = (scale_like(v, x) for v in self.coefficients(alpha, sigma))
        return a * x + b * output, lambda: c * x + d * output

    def target(self, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What the network should have said."""
        u, w = (scale_like(v, x0) for v in self.mixture(alpha, sigma))
        return u * x0 + w * noise

    def error(self, x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return (output.float() - self.target(x0, noise, alpha, sigma).float()) ** 2

    def x0_per_output(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.coefficients(alpha, sigma)[1].abs()


@PREDICTIONS.register("noise")
def noise() -> Linear:
    """The noise (Ho et al. 2020)."""
    return Linear(lambda alpha, sigma: (torch.zeros_like(alpha), torch.ones_like(alpha)))


@PREDICTIONS.register("x0")
def x0() -> Linear:
    """The clean sample."""
    return Linear(lambda alpha, sigma: (torch.ones_like(alpha), torch.zeros_like(alpha)))


@PREDICTIONS.register("v")
def v() -> Linear:
    """``alpha noise - sigma x0`` (Salimans and Ho 2022)."""
    return Linear(lambda alpha, sigma: (-sigma, alpha))


@PREDICTIONS.register("velocity")
def velocity() -> Linear:
    """``noise - x0``, the velocity of rectified flow (Liu et al. 2023)."""
    return Linear(lambda alpha, sigma: (-torch.ones_like(alpha), torch.ones_like(alpha)))


@PREDICTIONS.register("score")
def score() -> Linear:
    """``-noise / sigma``, the gradient of the log-density of x (Song et al. 2021). Its error grows as 1 / sigma^2: the
    weighting ``snr`` makes it that of the noise, ``likelihood`` the bound on the likelihood."""
    return Linear(lambda alpha, sigma: (torch.zeros_like(alpha), torch.where(sigma > 0, -1 / sigma, 0.0)))


@PREDICTIONS.register("edm")
def edm(sigma_data: float = 0.5) -> Linear:
    """A target of unit variance whose error in x0 vanishes with sigma (Karras et al. 2022, table 1), for any scaling.

    Args:
        sigma_data: standard deviation of the data; measure it, 0.5 is an image constant.
    """
    if sigma_data <= 0:
        raise ValueError(f"sigma_data must be positive, got {sigma_data}")

    def mixture(alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        root = torch.sqrt(alpha**2 * sigma_data**2 + sigma**2)
        return sigma / (sigma_data * root), -alpha * sigma_data / root

    return Linear(mixture)


def convert(output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, of: Linear, to: Linear) -> Tensor:
    """What the network would have said of ``x``, had it been trained to predict ``to`` instead of ``of``."""
    x0, noise = of.estimate(x, output, alpha, sigma)
    return to.target(x0, noise(), alpha, sigma)


@PREDICTIONS.register("categorical")
class Categorical(Prediction):
    """Logits over the classes (last dimension) of a one-hot times ``scale``.

    The exact likelihood of the noisy one-hot, ``log p(x | class k) = alpha scale x_k / sigma^2 + const``, is added to
    the network's logits, so that the network learns the rest only and x0 is exact as sigma goes to 0.
    """

    def __init__(self, scale: float = 1.0) -> None:
        if scale <= 0:
            raise ValueError(f"scale must be positive, got {scale}")
        self.scale = scale

    def logits(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Posterior logits: the network's plus the likelihood's; float32."""
        evidence = scale_like(alpha * self.scale / (sigma**2).clamp(min=1e-8), x.float())
        return output.float() + evidence * x.float()

    def estimate(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        mean = (self.scale * torch.softmax(self.logits(x, output, alpha, sigma), -1)).to(x.dtype)
        per_x = torch.where(sigma > 0, 1 / sigma.clamp(min=1e-150), 0.0)
        a, b = scale_like(per_x, x), scale_like(-alpha * per_x, x)
        return mean, lambda: a * x + b * mean

    def error(self, x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """KL divergence in nats, ``(..., 1)``, from the classes that ``x0`` is a mean of (cross-entropy of one)."""
        log_posterior = torch.log_softmax(self.logits(x, output, alpha, sigma), -1)
        classes = x0.float().clamp(min=0)
        classes = classes / classes.sum(-1, keepdim=True).clamp(min=1e-12)
        return (torch.xlogy(classes, classes) - classes * log_posterior).sum(-1, keepdim=True)

    def x0_per_output(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)


@PREDICTIONS.register("learned_range")
class LearnedRange(Prediction):
    """Another prediction and, in as many channels more, the variance of the reverse step: 0 halfway between the
    smallest and the largest logarithm, -1 and 1 at these (Nichol and Dhariwal 2021, eq. 15). ``error`` is that of the
    other prediction; the objective ``hybrid`` trains both.

    Args:
        of: the other prediction.
    """

    def __init__(self, of: Prediction | str | Mapping[str, Any] = "noise") -> None:
        self.of = PREDICTIONS.build(of)

    def split(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor]:
        """The two halves of the output, along the dimension that is twice as long as that of ``x``."""
        twice = [i for i, (a, b) in enumerate(zip(output.shape, x.shape, strict=True)) if a == 2 * b]
        if len(twice) != 1 or output.numel() != 2 * x.numel():
            raise ValueError(f"learned_range needs twice the channels of {tuple(x.shape)}, got {tuple(output.shape)}")
        said, variance = output.chunk(2, twice[0])
        return said, variance

    def estimate(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        return self.of.estimate(x, self.split(x, output)[0], alpha, sigma)

    def error(self, x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.of.error(x, self.split(x, output)[0], x0, noise, alpha, sigma)

    def x0_per_output(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return self.of.x0_per_output(alpha, sigma)

    def variance(self, x: Tensor, output: Tensor) -> Tensor:
        return (self.split(x, output)[1] + 1) / 2


@PREDICTIONS.register("classes")
class Classes(Prediction):
    """Logits over the classes of a token of ``core.categorical``, trained by cross-entropy.

    Args:
        prior: ``absorbing``: the last class is the mask, which is never predicted; a token that shows is its own x0,
            and only masked ones count in the loss. ``uniform``: all count.
    """

    def __init__(self, prior: str = "absorbing") -> None:
        if prior not in ("absorbing", "uniform"):
            raise ValueError(f"prior must be 'absorbing' or 'uniform', got {prior!r}")
        self.absorbing = prior == "absorbing"

    def _logits(self, output: Tensor) -> Tensor:
        output = output.float()
        return (
            torch.cat((output[..., :-1], torch.full_like(output[..., -1:], -torch.inf)), -1)
            if self.absorbing
            else output
        )

    def estimate(self, x: Tensor, output: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Callable[[], Tensor]]:
        x0 = torch.softmax(self._logits(output), -1).to(x.dtype)
        x0 = torch.where(x[..., -1:] > 0, x0, x) if self.absorbing else x0
        return x0, lambda: x

    def error(self, x: Tensor, output: Tensor, x0: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Cross-entropy of the true class, in nats, ``(..., 1)``."""
        log_likely = torch.log_softmax(self._logits(output), -1)
        loss = -log_likely.gather(-1, x0.argmax(-1, keepdim=True))
        return torch.where(x[..., -1:] > 0, loss, 0.0) if self.absorbing else loss

    def x0_per_output(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        return torch.ones_like(alpha)
