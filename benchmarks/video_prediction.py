"""Prediction of moving digits, 10 frames from 10, against no model at all; then 64 frames from 10: do they dissolve?

    python benchmarks/video_prediction.py [--checkpoint video-digits] [--count 200] [--samples 5] [--out FILE]

The clips are of "moving-digits-benchmark": two digits of MNIST's test half at the speed of Srivastava et al.'s test
set, drawn anew and stored as MP4. The error of a frame is the sum of its pixels' squared errors in [0, 1]; "ssim
uniform" has scikit-image's window: both as in the literature, means over frames and clips. "One sample" is the mean
over all samples, "best of k" the one with the least error, for each clip; "mean of k" their mean frame, which is what a
regressor would predict. Nothing is told of a clip but its first frames.

The rollout goes on window by window. Real clips of its length, the benchmark's continued, stand beside it: what the
judge sees in 17 frames at the beginning, in the middle and at the end; brightness, sharpness (the mean difference of
neighbouring pixels) and the number of lit pixels (at least half as bright as can be) over those of the real frames, for
16 frames at a time.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _tables import plain_rows, table, write_figures
from _video import METHODS, by_frame, curve_tables, method_sets, method_table, predicted, real_clips, video_of

import noiseloom
from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.report import share
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.digit_set import BENCHMARK, made
from noiseloom.modalities.video.extractors import Judge, find_judge
from noiseloom.modalities.video.prediction import prediction_rows

METRICS = {"mse": "MSE", "ssim_uniform": "SSIM uniform", "ssim": "SSIM", "psnr": "PSNR"}
PUBLISHED = {  # MSE and SSIM of deterministic regressors on 10,000 clips, 200 epochs (OpenSTL)
    "ConvLSTM-S": (29.80, 0.929),
    "PredRNN++": (22.06, 0.951),
    "SimVP": (32.15, 0.927),
    "TAU": (24.60, 0.945),
}
_WINDOW = 17  # frames that the judge looks at
_LIT = 128
_BLOCK = 16  # frames that are averaged


def frame_figures(clips: Sequence[Clip], known: int) -> dict[str, np.ndarray]:
    """By name (frames,): brightness, sharpness and lit pixels of each predicted frame, the mean over clips."""
    pixels = np.stack([clip.frames[known:] for clip in clips]).astype(np.float32)
    across, down = (np.abs(np.diff(pixels, axis=axis)).mean((0, 2, 3, 4)) for axis in (3, 2))
    lit = (pixels >= _LIT).sum((2, 3, 4)).mean(0)
    return {"brightness": pixels.mean((0, 2, 3, 4)), "sharpness": across + down, "lit pixels": lit}


def seen(judge: Judge, clips: Sequence[Clip], start: int, truth: Sequence[Clip]) -> Any:
    """The share of clips in whose window the judge sees exactly the digits."""
    labels = judge.labels_seen(judge.embed([Clip(clip.frames[start : start + _WINDOW], clip.fps) for clip in clips]))
    right = sum(label == clip.values["label"] for label, clip in zip(labels, truth, strict=True))
    return share("seen", right, len(clips), f"frames {start} to {start + _WINDOW - 1}")


def rollout(pipeline: Pipeline, judge: Judge | None, known: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Print the tables of long predictions; returns their figures."""
    long = replace(BENCHMARK, test=arguments.rollouts, frames=known + arguments.frames)
    real = real_clips(video_of(pipeline), made(long), long.frames)
    clips = [own[0] for own in predicted(pipeline, real, known, 1, **arguments.options)]
    last = len(real[0]) - _WINDOW
    places = {"first": known, "middle": (known + last) // 2, "last": last}
    print(f"\n{arguments.frames} frames predicted from {known}, {len(clips)} clips")
    figures: dict[str, Any] = {"n": len(clips), "frames": arguments.frames}
    if judge is not None and arguments.frames >= _WINDOW:
        both = {
            name: [seen(judge, some, start, real) for start in places.values()]
            for name, some in {"predicted": clips, "real": real}.items()
        }
        rows = [[name, *(f"{one.value:.1f} ± {one.error:.1f} %" for one in own)] for name, own in both.items()]
        head = ["exactly the digits seen", *(f"{name} {_WINDOW} frames" for name in places)]
        print(f"\n{table(head, rows)}")
        figures["seen"] = {
            name: dict(zip(places, (one.value for one in own), strict=True)) for name, own in both.items()
        }
    own, theirs = frame_figures(clips, known), frame_figures(real, known)
    starts = range(0, arguments.frames, _BLOCK)
    blocks = {
        name: [own[name][i : i + _BLOCK].sum() / theirs[name][i : i + _BLOCK].sum() for i in starts] for name in own
    }
    rows = [[f"{name}, of the real", *map(float, values)] for name, values in blocks.items()]
    head = ["predicted frames", *(f"{i + 1} to {min(i + _BLOCK, arguments.frames)}" for i in starts)]
    print("\n" + table(head, rows))
    figures["by_frame"] = {
        name: {key: values.tolist() for key, values in one.items()}
        for name, one in {"predicted": own, "real": theirs}.items()
    }
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="video-digits", help="a name or a folder")
    parser.add_argument("--judge", help="its name or folder; by default the checkpoint's own")
    parser.add_argument("--source", default=BENCHMARK.name)
    parser.add_argument("--known", type=int, default=10)
    parser.add_argument("--count", type=int, default=200, help="clips")
    parser.add_argument("--samples", type=int, default=5, help="of each")
    parser.add_argument("--rollouts", type=int, default=64, help="long clips; 0 for none")
    parser.add_argument("--frames", type=int, default=64, help="predicted in a long clip")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--device")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    arguments.options = {"steps": arguments.steps}
    pipeline = noiseloom.load(arguments.checkpoint, device=arguments.device)
    modality = video_of(pipeline)
    known, k = arguments.known, arguments.samples
    real = real_clips(modality, arguments.source, BENCHMARK.frames, count=arguments.count)
    samples = predicted(pipeline, real, known, k, **arguments.options)
    rows = prediction_rows(samples, real, known)
    names = {name: told.format(k=k) for name, told in METHODS.items() if k > 1 or name not in ("mean", "best")}
    size = " x ".join(map(str, modality.size))
    print(
        f"{len(real[0]) - known} frames predicted from {known}, {len(real)} clips of {size} pixels, {k} samples each\n"
    )
    print(method_table(rows, METRICS, names))
    if modality.size == (BENCHMARK.size, BENCHMARK.size):
        print("\npublished, 10 frames from 10 of the official 10,000 clips\n")
        print(table(["", "MSE", "SSIM uniform"], [[name, *values] for name, values in PUBLISHED.items()]))
    curves = by_frame(method_sets(samples, real, known), real, known)
    print("\n" + curve_tables(curves, names))
    figures = {"checkpoint": arguments.checkpoint, "n": len(real), "k": k, "known": known, "by_frame": curves}
    figures["rows"] = plain_rows(rows)
    if arguments.rollouts:
        spec = arguments.judge or modality.judge
        figures["rollout"] = rollout(pipeline, None if spec is None else find_judge(spec), known, arguments)
    write_figures(arguments.out, figures)


if __name__ == "__main__":
    main()
