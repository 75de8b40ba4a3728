"""The fundamental frequency of a sound, by YIN (no weights) or by CREPE (where torchcrepe is installed)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.signal import resample_poly

from ..extras import require
from .spectral import SILENT, Array, mono

FMIN, FMAX = 50.0, 2000.0  # Hz
_HOP = 0.01  # s from frame to frame
_THRESHOLD = 0.15  # YIN's absolute threshold on the normalised difference
_FINE = 32000  # Hz: the rate at which a period is read; coarser sound is interpolated first
_LOUD = 20.0  # dB below the loudest frame: where the steady part ends
_VOICED = 0.3  # the share of the steady part that must have a pitch, for the clip to have one


@dataclass(frozen=True)
class Track:
    """A pitch every 10 ms.

    Attributes:
        hz: (frames,), NaN where there is none.
        level: (frames,), dBFS.
    """

    hz: NDArray[np.float64]
    level: NDArray[np.float64]


def yin(audio: Array, rate: int, fmin: float = FMIN, fmax: float = FMAX) -> Track:
    """YIN (de Cheveigne and Kawahara 2002), all frames at once.

        d(tau) = sum_j (x_j - x_(j + tau))^2,   d'(tau) = d(tau) tau / sum_(k <= tau) d(k)

    The period is the first dip of d' below 0.15, refined by a parabola; there is no pitch where none is so deep. Sound
    of less than 32 kHz is interpolated first: at 8 kHz a period of 1 kHz is 8 samples, too few for a parabola.
    """
    audio = mono(audio)
    audio = audio - (audio.mean() if len(audio) else 0)  # a constant has no period, nor must interpolating give it one
    if (factor := -(-_FINE // rate)) > 1 and len(audio):
        audio, rate = resample_poly(audio, factor, 1), rate * factor
    longest = int(np.ceil(rate / fmin)) + 1
    hop, size = max(round(_HOP * rate), 1), 2 * longest + 1
    if len(audio) < size:
        return Track(np.zeros(0), np.zeros(0))
    frames = np.lib.stride_tricks.sliding_window_view(audio, size)[::hop]
    # d = energy of the window + energy of the shifted window - 2 their product, which is a correlation
    window, n_fft = size - longest - 1, 1 << (size + longest).bit_length()
    shifted = np.fft.rfft(frames, n_fft)
    product = np.fft.irfft(shifted * np.fft.rfft(frames[:, :window], n_fft).conj(), n_fft)[:, : longest + 2]
    sums = np.cumsum(np.pad(frames**2, ((0, 0), (1, 0))), axis=1)
    energy = sums[:, window : window + longest + 2] - sums[:, : longest + 2]
    difference = np.maximum(energy[:, :1] + energy - 2 * product, 0)
    difference[:, 0] = 0
    total = np.cumsum(difference, axis=1)
    lags = np.arange(longest + 2)
    moves = total > 1e-9 * lags * energy[:, :1]  # what does not move differs by rounding only
    normal = np.where(moves, difference * lags / np.maximum(total, 1e-300), 1.0)
    hz = rate / _periods(normal, max(int(rate / fmax), 2))
    level = 10 * np.log10(np.maximum((frames**2).mean(1), 1e-20))
    return Track(hz, level)


def crepe(audio: Array, rate: int, fmin: float = FMIN, fmax: float = FMAX, model: str = "tiny") -> Track:
    """CREPE (Kim et al. 2018) by torchcrepe, ``tiny`` or, twenty times slower, ``full``: no pitch where its confidence
    is below one half.

    Raises:
        MissingExtra: torchcrepe is not installed.
    """
    torchcrepe = require("torchcrepe", "audio-eval")
    audio = mono(audio).astype(np.float32)
    hop = max(round(_HOP * rate), 1)
    if len(audio) < hop:
        return Track(np.zeros(0), np.zeros(0))
    found, confidence = torchcrepe.predict(
        torch.from_numpy(audio)[None],
        rate,
        hop,
        fmin,
        fmax,
        model,
        decoder=torchcrepe.decode.weighted_argmax,
        return_periodicity=True,
        batch_size=256,
    )
    hz = np.where(confidence[0].numpy() >= 0.5, found[0].numpy(), np.nan).astype(np.float64)
    power = np.pad(audio.astype(np.float64) ** 2, (hop // 2, hop))
    level = [power[k * hop : k * hop + hop].mean() for k in range(len(hz))]
    return Track(hz, 10 * np.log10(np.maximum(level, 1e-20)))


#: by name: audio, rate to a track
TRACKERS: dict[str, Callable[[Array, int], Track]] = {"yin": yin, "crepe": crepe}


def pitch(audio: Array, rate: int, tracker: str = "yin") -> float | None:
    """The one pitch of a clip in Hz: the median over its steady part (within 20 dB of its loudest frame); None where it
    is silent, too short, or less than 30 % of that part has a pitch."""
    track = TRACKERS[tracker](audio, rate)
    if not len(track.hz) or track.level.max() < SILENT:
        return None
    steady = track.hz[track.level >= track.level.max() - _LOUD]
    voiced = steady[np.isfinite(steady)]
    return float(np.median(voiced)) if len(voiced) >= max(_VOICED * len(steady), 1) else None


def hz_of_midi(number: float) -> float:
    """The frequency of a MIDI key: 69 is 440 Hz."""
    return 440.0 * 2.0 ** ((number - 69) / 12)


def cents(hz: float, reference: float) -> float:
    """How far ``hz`` is above ``reference``: 100 to a semitone."""
    return 1200 * float(np.log2(hz / reference))


def _periods(normal: NDArray[np.float64], shortest: int) -> NDArray[np.float64]:
    """The period in samples, (frames,), NaN for none, from the normalised difference (frames, lags)."""
    inner = normal[:, 1:-1]
    dips = (inner <= normal[:, :-2]) & (inner < normal[:, 2:]) & (inner < _THRESHOLD)
    dips[:, : shortest - 1] = False
    found, rows = dips.any(1), np.arange(len(normal))
    lag = np.argmax(dips, axis=1) + 1
    before, at, after = normal[rows, lag - 1], normal[rows, lag], normal[rows, lag + 1]
    bend = before + after - 2 * at
    shift = np.where(bend > 0, (before - after) / np.where(bend > 0, 2 * bend, 1), 0)
    return np.where(found, lag + shift, np.nan)
