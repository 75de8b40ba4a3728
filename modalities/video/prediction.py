"""Predictions of clips whose first frames were given: against the truth, and beside what takes no model at all.

Several samples may be drawn for a clip. A row's value is the mean over all samples; "best" takes for each clip the
sample of the least squared error, "mean" scores the samples' mean frame, as a regressor would predict. Baselines:

    copy_last   the last given frame, for ever
    linear      the last given frame, changing as it last did, cut to the range of pixels
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from ..report import Row, mean_row
from .clip import Clip
from .frame_metrics import WINDOWS, critical_success, events, psnr, squared_error, ssim

_Metric = Callable[[np.ndarray, np.ndarray], np.ndarray]
_METRICS: Mapping[str, tuple[str, str, Literal["lower", "higher"], _Metric]] = {
    "mse": ("squared error of pixels in [0, 1], summed over a frame", "", "lower", squared_error),
    "psnr": ("8 bits", "dB", "higher", psnr),
    "ssim": ("Gaussian window of 11 x 11", "", "higher", ssim),
    "ssim_uniform": ("uniform window of 7 x 7", "", "higher", partial(ssim, window="uniform")),
}


def copy_last(given: np.ndarray, frames: int) -> np.ndarray:
    """(frames, H, W, C): the last of the given frames (T, H, W, C) again and again."""
    return np.repeat(given[-1:], frames, axis=0)


def linear(given: np.ndarray, frames: int) -> np.ndarray:
    """(frames, H, W, C) uint8: each pixel goes on as from the last but one of the given frames to the last."""
    last = given[-1].astype(np.float64)
    step = last - given[-2] if len(given) > 1 else np.zeros_like(last)
    ahead = last + step * np.arange(1, frames + 1)[:, None, None, None]
    return np.clip(np.rint(ahead), 0, 255).astype(np.uint8)


BASELINES = {"copy_last": copy_last, "linear": linear}


def prediction_rows(
    samples: Sequence[Sequence[Clip]], truth: Sequence[Clip], given: int, thresholds: Sequence[float] = ()
) -> list[Row]:
    """What predictions are off by.

    Args:
        samples: of each clip, one or several; whole clips, of which the given frames are left out.
        truth: the real clips, of the same shapes.
        given: how many of the first frames were known.
        thresholds: of 0 to 255: for each the critical success index of pixels at least as bright (radar's skill score).

    Raises:
        ValueError: not samples for each clip, clips of unequal shapes, or nothing to predict.
    """
    if len(samples) != len(truth) or not all(samples):
        raise ValueError(f"{len(samples)} predicted clips for {len(truth)} real ones: at least one sample for each")
    if not truth or not 0 < given < min(map(len, truth)):
        shortest = min(map(len, truth), default=0)
        raise ValueError(f"given={given}: at least 1 and fewer than the {shortest} frames of the shortest clip")
    measured: dict[tuple[str, str], list[float]] = {}
    happened: dict[tuple[float, str], np.ndarray] = {}
    for own, real in zip(samples, truth, strict=True):
        end = real.frames[given:]
        fits = min(end.shape[1:3]) >= max(WINDOWS.values())
        for name, predictions in _variants(own, real, given).items():
            for metric, (*_, measure) in _METRICS.items():
                if fits or not metric.startswith("ssim"):
                    mean = float(np.mean([measure(one, end) for one in predictions]))
                    measured.setdefault((metric, name), []).append(mean)
            for threshold in thresholds:
                counts = np.sum([events(one, end, threshold) for one in predictions], axis=0)
                happened[threshold, name] = happened.get((threshold, name), 0) + counts
    drawn = _span([len(own) for own in samples])
    told = {
        "": f"mean of {drawn} samples",
        "best": f"best of {drawn} samples",
        "mean": f"mean frame of {drawn} samples",
    }
    told |= {name: name.replace("_", " ") for name in BASELINES}
    protocol = f"{given} frames given, {_span([len(clip) - given for clip in truth])} predicted"
    rows = []
    for (metric, name), values in sorted(measured.items(), key=lambda item: [*_METRICS].index(item[0][0])):
        what, unit, better, _ = _METRICS[metric]
        how = f"{protocol}; {told[name]}; {what}, mean over frames and clips"
        rows.append(mean_row(_join(metric, name), values, how, unit, better=better))
    for (threshold, name), counts in happened.items():
        how = f"{protocol}; {told[name]}; hits / (hits + misses + false alarms) of pixels >= {threshold:g}"
        rows.append(Row(_join(f"csi_{threshold:g}", name), critical_success(counts), len(truth), how))
    return rows


def _variants(samples: Sequence[Clip], real: Clip, given: int) -> dict[str, list[np.ndarray]]:
    """What is scored against a clip's end, by name."""
    end, drawn = real.frames[given:], [sample.frames[given:] for sample in samples]
    variants = {"": drawn}
    if len(drawn) > 1:
        variants["best"] = [min(drawn, key=lambda one: float(squared_error(one, end).mean()))]
        variants["mean"] = [np.mean(np.stack(drawn), axis=0)]
    return variants | {name: [make(real.frames[:given], len(end))] for name, make in BASELINES.items()}


def _join(*parts: str) -> str:
    return "_".join(part for part in parts if part)


def _span(values: Sequence[int]) -> str:
    return " to ".join(str(value) for value in sorted({min(values), max(values)}))
