"""How loud a sound is: peak, root mean square, and loudness by ITU-R BS.1770-4, in dB of full scale or LUFS."""

from __future__ import annotations

import math

import numpy as np

_BLOCK, _STEP = 0.4, 0.1  # seconds, of the gated blocks and from one to the next
_OFFSET = -0.691  # dB: what the standard adds to a weighted mean square, so that a sine of 997 Hz keeps its level
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0  # LUFS, and dB under the mean of the blocks above the first


def peak(samples: np.ndarray) -> float:
    """The largest magnitude."""
    return float(np.abs(samples).max(initial=0))


def rms(samples: np.ndarray) -> float:
    """The root of the mean square over samples and channels."""
    return math.sqrt(float(np.square(samples, dtype=np.float64).mean())) if samples.size else 0.0


def decibels(value: float) -> float:
    """20 log10; -200 for nothing at all, so that it stays a number."""
    return 20 * math.log10(max(value, 1e-10))


def loudness(samples: np.ndarray, rate: int) -> float:
    """The integrated loudness in LUFS of ``(channels, n)``, mono or stereo: K-weighted and gated.

    Torchaudio's limits what it filters to full scale and uses a rounded weighting: 0.3 dB off on a loud sine. A clip of
    less than 0.4 s, or all below the gate, has no loudness: for it, -0.691 + 10 log10 of the sum over channels of the
    mean square.
    """
    block, step = round(_BLOCK * rate), round(_STEP * rate)
    if samples.shape[1] >= block and step > 0:
        from scipy.signal import sosfilt

        power = np.square(sosfilt(k_weighting(rate), samples.astype(np.float64))).sum(0)
        sums = np.concatenate([[0.0], np.cumsum(power)])
        starts = np.arange(0, samples.shape[1] - block + 1, step)
        blocks = (sums[starts + block] - sums[starts]) / block
        loud = blocks[blocks > _mean_square(_ABSOLUTE_GATE)]
        if len(loud):
            loud = loud[loud > loud.mean() * 10 ** (_RELATIVE_GATE / 10)]
            return _OFFSET + 10 * math.log10(loud.mean())
    return _OFFSET + decibels(rms(samples)) + 10 * math.log10(samples.shape[0])


def k_weighting(rate: int) -> np.ndarray:
    """The standard's two filters, a shelf for the head and a high pass, as second-order sections ``(2, 6)``.

    The standard has them for 48 kHz only; these analogue prototypes give its coefficients there (Brecht De Man,
    "Evaluation of implementations of the EBU R128 loudness measurement", 2018).
    """
    gain, q, k = 3.999843853973347, 0.7071752369554196, math.tan(math.pi * 1681.974450955533 / rate)
    high, band = 10 ** (gain / 20), 10 ** (gain / 20 * 0.4996667741545416)
    norm = 1 + k / q + k * k
    shelf = [high + band * k / q + k * k, 2 * (k * k - high), high - band * k / q + k * k]
    sections = [[*(b / norm for b in shelf), 1, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]]
    q, k = 0.5003270373238773, math.tan(math.pi * 38.13547087602444 / rate)
    norm = 1 + k / q + k * k
    return np.array([*sections, [1, -2, 1, 1, 2 * (k * k - 1) / norm, (1 - k / q + k * k) / norm]])


def _mean_square(lufs: float) -> float:
    return 10 ** ((lufs - _OFFSET) / 10)
