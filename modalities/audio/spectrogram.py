"""Pictures of sounds: waveform and mel-spaced spectrogram with axes, and a sheet of many small ones.

Every picture of every sound has one scale of colours, -90 to -10 dB re full scale (a sine of amplitude 1 is 0 dB), so
two can be compared. A picture is an array of palette places: 0 to 63 run from the background to the colour of text, the
others are the colours of the spectrogram.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np

from ..extras import require
from .waveform import Waveform

WIDTH, HEIGHT = 720, 400  # pixels of a picture
LEFT, RIGHT = 56, 626  # of its plots, from the left
_STRIP, _PLOT = (12, 88), (100, 346)  # of the waveform and of the spectrogram, from the top
PLOTS = (_STRIP[0], _PLOT[1])  # of both
_TILE, _GAP = (228, 172), 14  # pixels of a sound in the sheet, and between two
_TILE_STRIP, _TILE_PLOT = 36, 96
_COLUMNS = 6  # of the sheet

FLOOR, CEILING = -90.0, -10.0  # dB
_WINDOW = 0.04  # seconds of the transform, to the nearest power of two in samples
_FRAMES = 512  # transformed at a time
_TEXT, _SOFT = 63, 44  # places of the palette: text, and text that is less to the point
_STOPS = ((14, 16, 24), (33, 26, 76), (94, 34, 122), (172, 48, 112), (232, 96, 72), (251, 176, 74), (255, 246, 208))
BACKGROUND, _FOREGROUND = (19, 22, 31), (214, 219, 228)
_WAVE = 178  # the place of the waveform's colour
_STEPS = [m * 10.0**e for e in range(-4, 4) for m in (1, 2, 5)]  # seconds between ticks
_TICKS = (0, 0.25, 0.5, 1, 2, 4, 8, 16, 32)  # kHz


def levels(samples: np.ndarray, rate: int, columns: int, rows: int) -> np.ndarray:
    """Power in dB, ``(channels, n)`` to ``(rows, columns)``, the highest band first, its centres even in mel.

    Hann windows, normalised so that a sine of amplitude 1 is 0 dB. The mean of channels, and of what falls together: of
    the bins in a band (where a sine is therefore less, up to 10 dB near 20 kHz) and of the windows in a column.
    """
    window = 2 ** max(4, round(math.log2(_WINDOW * rate)))
    n = samples.shape[1]
    each = max(
        1, math.ceil(n / columns / (window / 2))
    )  # windows to a column, so that none of the sound is passed over
    padded = np.pad(samples.astype(np.float32), ((0, 0), (window // 2, window // 2)), mode="symmetric")
    starts = ((np.arange(columns * each) + 0.5) * n / (columns * each)).astype(np.int64).reshape(columns, each)
    hann = np.hanning(window + 1)[:-1].astype(np.float32)
    hann *= 2 / hann.sum()
    bands, step = _bands(rate, window, rows), max(1, _FRAMES // each)
    power = np.empty((columns, rows), np.float32)
    for first in range(0, columns, step):
        places = starts[first : first + step, :, None] + np.arange(window)
        spectrum = np.fft.rfft(padded[:, places] * hann, 2 * window)
        power[first : first + step] = ((spectrum.real**2 + spectrum.imag**2).mean(0) @ bands).mean(1)
    decibels: np.ndarray = 10 * np.log10(np.maximum(power, 1e-12)).T[::-1]
    return decibels


def picture(wave: Waveform) -> bytes:
    """A PNG: the waveform over the spectrogram, with axes in seconds and kHz and the scale of colours."""
    canvas = _frame(wave.rate).copy()
    seconds, width = wave.seconds, RIGHT - LEFT
    canvas[slice(*_STRIP), LEFT:RIGHT] = _strip(wave.samples, width, _STRIP[1] - _STRIP[0])
    canvas[slice(*_PLOT), LEFT:RIGHT] = _heat(wave, width, _PLOT[1] - _PLOT[0])
    image, pen = _pen(canvas)
    step = next(step for step in (*_STEPS, seconds) if seconds / step <= 6)
    for tick in np.arange(0, seconds * 1.0001, step):
        x = LEFT + width * tick / seconds
        pen.line((x, _PLOT[1], x, _PLOT[1] + 6), _TEXT)
        pen.text((x, _PLOT[1] + 10), f"{round(tick, 4):g}", _TEXT, _font(21), anchor="ma" if tick else "la")
    peak = np.abs(wave.samples).max(initial=0)
    for y, text in (
        (_STRIP[0] + 14, "peak"),
        (_STRIP[0] + 40, f"{20 * math.log10(peak):.1f} dB" if peak else "silent"),
    ):
        pen.text((RIGHT + 12, y), text, _SOFT, _font(19))
    return _png(image)


def sheet(waves: Sequence[Waveform | None], captions: Sequence[str]) -> bytes:
    """A PNG of many small waveforms and spectrograms with captions; None is a sound that failed."""
    columns = min(_COLUMNS, len(waves))
    rows = -(-len(waves) // columns)
    (width, height), strip, plot = _TILE, _TILE_STRIP, _TILE_PLOT
    image, pen = _pen(np.zeros((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP), np.uint8))
    for index, (wave, caption) in enumerate(zip(waves, captions, strict=True)):
        x, y = (
            _GAP + size * place
            for size, place in zip((width + _GAP, height + _GAP), (index % columns, index // columns))
        )
        if wave is None:
            pen.rectangle((x, y, x + width - 1, y + strip + plot + 3), 6)
        else:
            tile = np.zeros((strip + 4 + plot, width), np.uint8)
            tile[:strip] = _strip(wave.samples, width, strip)
            tile[strip + 4 :] = _heat(wave, width, plot)
            image.paste(require("PIL.Image", "audio").fromarray(tile), (x, y))
        pen.text((x, y + strip + plot + 10), _fitted(caption, width), _TEXT, _font(17))
    return _png(image)


def _heat(wave: Waveform, columns: int, rows: int) -> np.ndarray:
    share = (levels(wave.samples, wave.rate, columns, rows) - FLOOR) / (CEILING - FLOOR)
    # every third colour: the file is half as large, and the eye sees no steps
    return (_TEXT + 1 + 3 * np.rint(63 * share.clip(0, 1))).astype(np.uint8)


def _strip(samples: np.ndarray, columns: int, rows: int) -> np.ndarray:
    """The range of the samples of each column, at the scale of the loudest; channels one below the other."""
    peak = np.abs(samples).max(initial=0) or 1.0
    edges = np.linspace(0, samples.shape[1], columns + 1)
    starts, stops = edges[:-1].astype(int), np.maximum(np.ceil(edges[1:]).astype(int), edges[:-1].astype(int) + 1)
    half = rows // len(samples) / 2
    out = np.zeros((rows, columns), np.uint8)
    for index, channel in enumerate(samples / peak):
        inside = np.stack([starts, np.minimum(stops, len(channel))], 1).ravel()
        padded = np.append(channel, channel[-1])
        high, low = (ufunc.reduceat(padded, inside)[::2] for ufunc in (np.maximum, np.minimum))
        middle = half * (2 * index + 1)
        heights = np.arange(rows)[:, None] + 0.5 - middle
        drawn = (heights >= -high * (half - 1) - 0.5) & (heights <= -low * (half - 1) + 0.5)
        out[drawn] = _WAVE
    return out


@cache
def _bands(rate: int, window: int, rows: int) -> np.ndarray:
    """Weights ``(bins, rows)``: triangles about centres even in mel, at least as wide as the bins are apart."""

    def mel(hertz: Any) -> Any:
        return np.log1p(hertz / 700)

    edges = 700 * np.expm1(np.linspace(0, mel(rate / 2), rows + 1))
    centres, widths = (edges[1:] + edges[:-1]) / 2, np.diff(edges)
    bins = np.linspace(0, rate / 2, window + 1)
    weights = np.clip(1 - np.abs(bins[:, None] - centres) / np.maximum(widths, bins[1]), 0, None)
    return (weights / weights.sum(0)).astype(np.float32)


@cache
def _frame(rate: int) -> np.ndarray:
    """What pictures of one rate share: the axis of frequency and the scale of colours."""
    top, bottom = _PLOT
    canvas = np.zeros((HEIGHT, WIDTH), np.uint8)
    bar = np.linspace(1, 0, bottom - top)[:, None]
    canvas[top:bottom, RIGHT + 16 : RIGHT + 30] = _TEXT + 1 + 3 * np.rint(63 * bar)
    image, pen = _pen(canvas)
    above = math.inf
    for tick in (tick for tick in _TICKS if tick <= rate / 2000):
        y = bottom - (bottom - top) * math.log1p(tick / 0.7) / math.log1p(rate / 1400)
        if above - y < 27:
            continue
        above = y
        pen.line((LEFT - 6, y, LEFT - 1, y), _TEXT)
        pen.text((LEFT - 10, min(max(y, top + 8), bottom - 8)), f"{tick:g}", _TEXT, _font(21), anchor="rm")
    for place, unit in (
        ((LEFT - 10, top - 12), "kHz"),
        ((RIGHT + 20, bottom + 28), "s"),
        ((RIGHT + 62, bottom + 28), "dB"),
    ):
        pen.text(place, unit, _SOFT, _font(19), anchor="rs")
    for level in (CEILING, (CEILING + FLOOR) / 2, FLOOR):
        y = bottom - (bottom - top - 18) * (level - FLOOR) / (CEILING - FLOOR) - 9
        pen.text((RIGHT + 42, y), f"{level:.0f}", _SOFT, _font(19), anchor="lm")
    return np.asarray(image)


def _pen(canvas: np.ndarray) -> tuple[Any, Any]:
    image = require("PIL.Image", "audio").fromarray(canvas)
    return image, require("PIL.ImageDraw", "audio").Draw(image)


@cache
def _font(size: int) -> Any:
    return require("PIL.ImageFont", "audio").load_default(size)


def _fitted(text: str, width: int) -> str:
    font = _font(17)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text.rstrip() + "..."


def _png(image: Any) -> bytes:
    image.putpalette(_palette())
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4)
    return buffer.getvalue()


@cache
def _palette() -> bytes:
    ramp = np.linspace(BACKGROUND, _FOREGROUND, _TEXT + 1)
    places = np.linspace(0, len(_STOPS) - 1, 256 - len(ramp))
    colours = np.stack([np.interp(places, range(len(_STOPS)), stop) for stop in zip(*_STOPS, strict=True)], 1)
    return np.concatenate([ramp, colours]).round().astype(np.uint8).tobytes()
