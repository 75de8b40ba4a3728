"""Prediction of weather radar, 8 frames from 8, on tiles of the country that the model has not seen.

    python benchmarks/video_radar.py --checkpoint FOLDER [--samples 5] [--rates 0.5 2 8] [--out FILE]

Clips of 16 frames (2 minutes apart) of the test split of "radar", east of 84 W, at the checkpoint's size. The error of
a frame is the sum of its pixels' squared errors in [0, 1]. The critical success index (CSI) of a rain rate is hits over
hits, misses and false alarms of pixels with at least that much rain, counted over all frames and clips. "One sample" is
the mean over all samples, "mean of k" their mean frame, "best of k" the one with the least error, for each clip.

    copy last   the last frame persists
    linear      each pixel goes on changing as it last did
    advection   the last frame moves on as one: phase correlation of frames 4 apart (``guess.moved``)
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from math import log10
from pathlib import Path

import numpy as np
import torch
from _tables import plain_rows, write_figures
from _video import METHODS, by_frame, curve_tables, method_sets, method_table, predicted, real_clips, video_of

import noiseloom
from noiseloom.modalities.video.clip import Clip, signed, unsigned
from noiseloom.modalities.video.guess import moved
from noiseloom.modalities.video.prediction import prediction_rows

ADVECTION = "advection"


def grey(rate: float) -> float:
    """The pixel of a rain rate in mm/h, 0.1 to 100."""
    return 1 + 254 * log10(rate / 0.1) / 3


def advected(given: np.ndarray, frames: int) -> np.ndarray:
    """(frames, H, W, C) uint8: the last given frame, moved on; what comes in from outside is the edge's."""
    clip = signed(np.concatenate([given, np.repeat(given[-1:], frames, 0)])[None])
    known = (torch.arange(clip.shape[1]) < len(given)).view(1, -1, 1, 1).expand(clip.shape[:4])
    return unsigned(moved(clip, known)[:, len(given) :])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="a name or a folder")
    parser.add_argument("--source", default="radar")
    parser.add_argument("--known", type=int, default=8)
    parser.add_argument("--frames", type=int, default=8, help="predicted")
    parser.add_argument("--count", type=int, help="clips; by default all")
    parser.add_argument("--samples", type=int, default=5, help="of each")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.5, 2, 8], help="mm/h, 0.1 to 100")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    if any(not 0.1 <= rate <= 100 for rate in arguments.rates):
        parser.error("rates are 0.1 to 100 mm/h")
    pipeline = noiseloom.load(arguments.checkpoint, device=arguments.device)
    modality = video_of(pipeline)
    known, k, thresholds = arguments.known, arguments.samples, [round(grey(rate), 2) for rate in arguments.rates]
    real = real_clips(modality, arguments.source, known + arguments.frames, count=arguments.count)
    samples = predicted(pipeline, real, known, k, steps=arguments.steps)
    moved = {clip.name: advected(clip.frames[:known], arguments.frames) for clip in real}
    whole = [[Clip(np.concatenate([clip.frames[:known], moved[clip.name]]), clip.fps)] for clip in real]
    rows = prediction_rows(samples, real, known, thresholds)
    for row in prediction_rows(whole, real, known, thresholds):
        if not row.name.endswith(("copy_last", "linear")):
            rows.append(
                replace(
                    row, name=f"{row.name}_{ADVECTION}", protocol=row.protocol.replace("mean of 1 samples", ADVECTION)
                )
            )
    names = {name: told.format(k=k) for name, told in METHODS.items() if k > 1 or name not in ("mean", "best")}
    names = {"copy_last": "copy last", "linear": "linear", ADVECTION: ADVECTION} | names
    metrics = {"mse": "MSE", "ssim": "SSIM", "psnr": "PSNR"}
    metrics |= {f"csi_{t:g}": f"CSI {rate:g} mm/h" for t, rate in zip(thresholds, arguments.rates, strict=True)}
    size = " x ".join(map(str, modality.size))
    print(f"{arguments.frames} frames predicted from {known}, {len(real)} clips of {size} pixels, {k} samples each\n")
    print(method_table(rows, metrics, names))
    curves = by_frame({**method_sets(samples, real, known), ADVECTION: [[moved[c.name]] for c in real]}, real, known)
    print("\n" + curve_tables(curves, names))
    facts = {"checkpoint": arguments.checkpoint, "n": len(real), "k": k, "known": known, "rates": arguments.rates}
    write_figures(arguments.out, {**facts, "rows": plain_rows(rows), "by_frame": curves})


if __name__ == "__main__":
    main()
