"""What the benchmarks of video share: real clips, predictions of them, and their tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from _tables import table

from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.report import Row, number
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.data import open_video
from noiseloom.modalities.video.frame_metrics import squared_error, ssim
from noiseloom.modalities.video.modality import Video
from noiseloom.modalities.video.prediction import BASELINES
from noiseloom.modalities.video.writing import write_mp4

_GROUP = 25  # inputs of one call: no more than the modality keeps in memory
METHODS = {"copy_last": "copy last", "linear": "linear", "": "one sample", "mean": "mean of {k}", "best": "best of {k}"}


def video_of(pipeline: Pipeline) -> Video:
    """The modality of a checkpoint of videos."""
    modality = pipeline.modality
    if not isinstance(modality, Video):
        raise SystemExit(f"this is a checkpoint of {type(modality).__name__}, not of videos")
    return modality


def real_clips(
    modality: Video, source: str | Path, frames: int, split: str = "test", count: int | None = None
) -> list[Clip]:
    """Windows of so many frames that do not overlap, of clips as this model sees them; ``count`` of them, evenly."""
    options = {"frames": frames, "stride": None, "factor": 1, "sizes": (modality.size,)}
    videos = open_video(source, split, preparation=replace(modality.preparation, **options))
    whole = [
        i for i, (_, start, length) in enumerate(videos.windows.tolist()) if length == frames and start % frames == 0
    ]
    kept = min(count or len(whole), len(whole))
    return [videos[whole[i * len(whole) // kept]] for i in range(kept)]


def predicted(pipeline: Pipeline, real: Sequence[Clip], known: int, samples: int, **options: Any) -> list[list[Clip]]:
    """So many samples of each clip, as long as it is, from its first ``known`` frames as a lossless MP4.

    Nothing but these frames is told, so that guidance would compare two equal estimates: there is none.
    """
    made: list[list[Clip]] = []
    with TemporaryDirectory() as folder:
        for first in range(0, len(real), _GROUP):
            group = real[first : first + _GROUP]
            paths = [
                str(write_mp4(Path(folder) / f"{first + i}.mp4", Clip(clip.frames[:known], clip.fps), quality=0))
                for i, clip in enumerate(group)
            ]
            told: dict[str, Any] = {"task": "predict", "input": paths, "known": known, "frames": len(group[0])}
            clips = pipeline.sample(samples * len(group), seed=first, guidance=1, **told, **options)
            if clips.failed:
                raise SystemExit(f"{clips.failed} of {len(clips)} samples are not finite")
            made += [list(clips[i :: len(group)]) for i in range(len(group))]
    if not all(np.array_equal(one.frames[:known], clip.frames[:known]) for own, clip in zip(made, real) for one in own):
        raise SystemExit("the frames that were given did not stay as they are")
    return made


def method_sets(
    samples: Sequence[Sequence[Clip]], real: Sequence[Clip], known: int
) -> dict[str, list[list[np.ndarray]]]:
    """By method the predicted frames (T - known, H, W, C) of each clip; one or several of each."""
    sets: dict[str, list[list[np.ndarray]]] = {
        name: [[baseline(clip.frames[:known], len(clip) - known)] for clip in real]
        for name, baseline in BASELINES.items()
    }
    sets[""] = [[one.frames[known:] for one in own] for own in samples]
    if len(samples[0]) > 1:
        sets["mean"] = [[np.mean(np.stack(own), axis=0)] for own in sets[""]]
        ends = [clip.frames[known:] for clip in real]
        sets["best"] = [
            [min(own, key=lambda one, end=end: squared_error(one, end).sum())]  # type: ignore[misc]
            for own, end in zip(sets[""], ends, strict=True)
        ]
    return sets


def by_frame(
    sets: Mapping[str, Sequence[Sequence[np.ndarray]]], real: Sequence[Clip], known: int
) -> dict[str, dict[str, list[float]]]:
    """By metric and method its value at each predicted frame, the mean over clips and samples."""
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
        "mse": squared_error,
        "ssim_uniform": lambda a, b: ssim(a, b, "uniform"),
    }

    def curve(metric: str, own: Sequence[Sequence[np.ndarray]]) -> list[float]:
        pairs = ((one, clip.frames[known:]) for some, clip in zip(own, real, strict=True) for one in some)
        return np.mean([metrics[metric](a, b) for a, b in pairs], axis=0).tolist()

    return {metric: {name: curve(metric, own) for name, own in sets.items()} for metric in metrics}


def method_table(rows: Sequence[Row], metrics: Mapping[str, str], names: Mapping[str, str]) -> str:
    """The rows of ``prediction_rows`` with a line for each method and a column for each metric, told by these names."""
    found = {row.name: row for row in rows}

    def cell(metric: str, name: str) -> str:
        row = found.get(f"{metric}_{name}" if name else metric)
        return "-" if row is None else number(row.value, row.unit, row.error)

    lines = [[told, *(cell(metric, name) for metric in metrics)] for name, told in names.items()]
    return table(["method", *metrics.values()], lines)


def curve_tables(curves: Mapping[str, Mapping[str, Sequence[float]]], names: Mapping[str, str]) -> str:
    """A table of ``by_frame`` for each metric."""
    parts = []
    for metric, by_name in curves.items():
        rows = [[names.get(name, name), *values] for name, values in by_name.items()]
        head = ["predicted frame", *(str(i + 1) for i in range(len(rows[0]) - 1))]
        parts.append(f"{metric} by frame\n\n{table(head, rows)}")
    return "\n\n".join(parts)
