"""Frames against frames of the same clip: what a prediction or a reconstruction is off by, frame by frame.

Clips are (T, H, W, C), uint8 or numbers of that range (0 to 255). None of these sees whether frames follow each other.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

Array = NDArray[np.float64]
Window = Literal["gaussian", "uniform"]

WINDOWS = {"gaussian": 11, "uniform": 7}  # pixels along a side
_SIGMA = 1.5  # pixels: the Gaussian's
_K1, _K2 = 0.01, 0.03  # of SSIM
_RANGE = 255.0
_MOST = 100.0  # dB: the PSNR of equal frames


def squared_error(a: np.ndarray, b: np.ndarray) -> Array:
    """(T,): the squared differences of pixels in [0, 1], summed over a frame, as MSE is told of moving digits."""
    x, y = _pair(a, b)
    error: Array = (((x - y) / _RANGE) ** 2).sum((1, 2, 3))
    return error


def mse(a: np.ndarray, b: np.ndarray) -> Array:
    """(T,): the mean squared difference of pixels in [0, 1]."""
    return squared_error(a, b) / a[0].size


def psnr(a: np.ndarray, b: np.ndarray) -> Array:
    """(T,): the peak signal-to-noise ratio in dB; 100 for equal frames."""
    return np.minimum(-10 * np.log10(np.maximum(mse(a, b), 10 ** (-_MOST / 10))), _MOST)


def ssim(a: np.ndarray, b: np.ndarray, window: Window = "gaussian") -> Array:
    """(T,): structural similarity (Wang et al. 2004), the mean over the places where the window fits, and colours.

        (2 mx my + c1) (2 sxy + c2) / ((mx^2 + my^2 + c1) (sx^2 + sy^2 + c2)),   c = (0.01 * 255)^2, (0.03 * 255)^2

    Args:
        window: of the means m and covariances s around a pixel: "gaussian", 11 x 11 with a deviation of 1.5, as
            published; "uniform", 7 x 7 with sample covariances, scikit-image's default and the one behind the figures
            of Moving MNIST.

    Raises:
        ValueError: frames that the window does not fit into.
    """
    x, y = _pair(a, b)
    side = WINDOWS[window]
    if min(x.shape[1:3]) < side:
        raise ValueError(f"SSIM needs frames of at least {side} x {side}, not {x.shape[1]} x {x.shape[2]}")
    places = np.arange(side) - side // 2
    weights = np.exp(-((places / _SIGMA) ** 2) / 2) if window == "gaussian" else np.ones(side)
    weights /= weights.sum()

    def mean(values: Array) -> Array:
        """Around each pixel where the window fits."""
        edge = slice(side // 2, -(side // 2))
        around: Array = convolve1d(convolve1d(values, weights, 1), weights, 2)[:, edge, edge]
        return around

    sample = side**2 / (side**2 - 1) if window == "uniform" else 1.0
    mx, my = mean(x), mean(y)
    sx, sy, sxy = (sample * (mean(p * q) - m * n) for p, q, m, n in ((x, x, mx, mx), (y, y, my, my), (x, y, mx, my)))
    c1, c2 = (_K1 * _RANGE) ** 2, (_K2 * _RANGE) ** 2
    similar: Array = (2 * mx * my + c1) * (2 * sxy + c2) / ((mx**2 + my**2 + c1) * (sx + sy + c2))
    return similar.mean((1, 2, 3))


def temporal_error(a: np.ndarray, b: np.ndarray) -> float:
    """How differently two clips change: mean |difference of their frame differences|, of pixels in [0, 1]; 0 for single
    frames."""
    x, y = _pair(a, b)
    return float(np.abs(np.diff(x - y, axis=0)).mean() / _RANGE) if len(x) > 1 else 0.0


def events(prediction: np.ndarray, truth: np.ndarray, threshold: float) -> NDArray[np.int64]:
    """Hits, misses and false alarms (3,) of pixels of at least ``threshold``, counted over all frames."""
    x, y = (values >= threshold for values in _pair(prediction, truth))
    return np.array([(x & y).sum(), (~x & y).sum(), (x & ~y).sum()])


def critical_success(counts: NDArray[np.int64]) -> float | None:
    """The critical success index of hits, misses and false alarms: hits over all three; None where nothing happened."""
    return float(counts[0] / counts.sum()) if counts.sum() else None


def _pair(a: np.ndarray, b: np.ndarray) -> tuple[Array, Array]:
    if a.shape != b.shape or a.ndim != 4:
        raise ValueError(f"clips are compared frame by frame: (T, H, W, C), not {a.shape} and {b.shape}")
    return a.astype(np.float64), b.astype(np.float64)
