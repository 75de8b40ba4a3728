"""Moving digits beside real test clips and broken ones, by a judge; then quality beside speed.

    python benchmarks/video_digits.py [--checkpoint video-digits] [--count 256] [--judge FOLDER] [--out FILE]

Labels are balanced: every second clip has one digit, the others two, each ordered pair as often as any other. Real
clips are of the test split; distances are measured from training clips, those of the judge's gallery or ``--training``
of them. The first table has the generated clips at the checkpoint's settings, real clips (for a distance: as many real
clips, the floor) and the controls, real clips broken so that no metric of frames can tell: static, shuffled, identity
swapped halfway. The second has the settings: other numbers of steps, the first-block cache, guidance in an interval of
noise, none. Calls are of the network for one clip; a guided step has two, and a cached one still computes a block.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _tables import plain_rows, table, write_figures
from _video import real_clips, video_of

import noiseloom
from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.report import Report, number
from noiseloom.modalities.video.changes import CONTROLS, control
from noiseloom.modalities.video.clip import Clip
from noiseloom.modalities.video.metrics import evaluate

ROWS = ("label_accuracy", "identity_stability", "natural_motion", "kernel_distance", "frechet_distance", "density")


def balanced(count: int) -> list[str]:
    """Labels of one digit and of two in turn; of 200 each digit comes 10 times alone, and each ordered pair once."""
    alone = [str(i % 10) for i in range(100)]
    pairs = [",".join(sorted((str(i % 10), str((i + i // 10 + 1) % 10)))) for i in range(100)]
    labels = [label for both in zip(alone, pairs, strict=True) for label in both]
    return [labels[i % len(labels)] for i in range(count)]


@dataclass(frozen=True)
class Run:
    """Clips, what was shown to the network for one of them, and how long they took."""

    clips: Sequence[Clip | None]
    calls: float
    skipped: float
    seconds: float


def generate(pipeline: Pipeline, labels: Sequence[str], **options: Any) -> Run:
    """Clips of these labels; those of the network's calls are counted that it is given, each row of a batch one."""
    rows = 0

    def count(_: torch.nn.Module, given: tuple[Any, ...]) -> None:
        nonlocal rows
        rows += len(given[0])

    hook = pipeline.denoiser.network.register_forward_pre_hook(count)
    try:
        samples = pipeline.sample(len(labels), label=list(labels), **options)
    finally:
        hook.remove()
    return Run(list(samples), rows / len(labels), samples.settings.get("skipped", 0.0), samples.seconds)


def settings_of(pipeline: Pipeline, arguments: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What is compared with the checkpoint's own settings, by the name it is printed with."""
    sampling = pipeline.config.get("sampling") or {}
    others = [steps for steps in arguments.steps if steps != sampling.get("steps")]
    runs: dict[str, dict[str, Any]] = {f"{steps} steps": {"steps": steps} for steps in others}
    caches = {
        f"first block, {threshold:g}": {"caching": {"name": "first_block", "threshold": threshold}}
        for threshold in arguments.thresholds
    }
    runs |= caches
    own = sampling.get("guidance")
    if own not in (None, 1, {}):
        spec = dict(own) if isinstance(own, dict) else {"name": "classifier_free", "scale": own}
        low, high = arguments.interval
        within = {"guidance": {**spec, "interval": [low, high]}}
        runs[f"guidance in {low:g} to {high:g}"] = within
        if caches:
            name, cache = next(iter(caches.items()))
            runs[f"{name}, guidance in {low:g} to {high:g}"] = {**cache, **within}
        runs["no guidance"] = {"guidance": 1}
    return runs


def sets_table(reports: dict[str, Report]) -> str:
    """Metrics of the generated clips and what real ones get, then of the controls."""
    made = reports["generated"]
    lines = []
    for row in made.rows:
        if any(row.name.endswith(f"_{name}") for name in CONTROLS):  # these have columns of their own
            continue
        others = [reports[name].values() for name in CONTROLS]
        distance = [made.values().get(f"{row.name}_{name}") for name in CONTROLS]
        cells = [
            mine if mine is not None else other.get(row.name) for mine, other in zip(distance, others, strict=True)
        ]
        told = [number(row.value, row.unit, row.error), number(row.real, row.unit)]
        lines.append([row.name.replace("_", " "), *told, *(number(cell, row.unit) for cell in cells)])
    return table(["", "generated", "real", *CONTROLS], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="video-digits", help="a name or a folder")
    parser.add_argument("--judge", help="its name or folder; by default the checkpoint's own")
    parser.add_argument("--source", default="moving-digits")
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--real", type=int, default=512, help="real test clips")
    parser.add_argument("--training", type=int, help="training clips; by default the judge's gallery")
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10, 25, 50])
    parser.add_argument(
        "--thresholds", type=float, nargs="*", default=[0.05, 0.1, 0.2], help="of the first-block cache"
    )
    parser.add_argument("--interval", type=float, nargs=2, default=[0.2, 5.0], help="of sigma / alpha, to guide in")
    parser.add_argument("--device")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    pipeline = noiseloom.load(arguments.checkpoint, device=arguments.device)
    modality = video_of(pipeline)
    real = real_clips(modality, arguments.source, modality.window, count=arguments.real)
    judge = arguments.judge or modality.judge
    known = {"count": arguments.training, "split": "train"}
    training = real_clips(modality, arguments.source, modality.window, **known) if arguments.training else None
    labels = balanced(arguments.count)

    def scored(clips: Sequence[Clip | None], title: str, controls: bool = False) -> Report:
        return evaluate(clips, real, judge=judge, training=training, controls=controls, title=title)

    pipeline.sample(1, label=labels[0], steps=2, progress=False)  # the first call takes longer
    run = generate(pipeline, labels, seed=arguments.seed)
    reports = {"generated": scored(run.clips, "generated", controls=True)}
    reports |= {name: scored(control(real[: len(labels)], name), name) for name in CONTROLS}
    print(f"{len(labels)} clips, labels balanced; {len(real)} real ones of the test split; {arguments.checkpoint}\n")
    print(sets_table(reports) + "\n")
    for row in reports["generated"].rows:
        print(f"- {row.name.replace('_', ' ')} (n = {row.n}): {row.protocol}")
    for note in reports["generated"].notes:
        print(f"- {note}")

    runs, kept, rows = {"as it is": run}, {"as it is": reports["generated"]}, []
    shown = [name for name in ROWS if name in reports["generated"].values()]
    for name, options in settings_of(pipeline, arguments).items():
        runs[name] = generate(pipeline, labels, seed=arguments.seed, **options)
        kept[name] = scored(runs[name].clips, name)
    for name, report in kept.items():
        one = runs[name]
        quality = [number(report[row].value, report[row].unit) for row in shown]
        speed = [f"{one.calls:.0f}", f"{one.skipped:.0%}", f"{len(labels) / one.seconds:.2f}"]
        rows.append([name, *quality, *speed, f"{run.seconds / one.seconds:.2f}"])
    rows.append(
        ["real clips", *(number(kept["as it is"][row].real, kept["as it is"][row].unit) for row in shown), *"----"]
    )
    head = ["", *(row.replace("_", " ") for row in shown), "calls", "cached", "clips a second", "speed"]
    print("\n" + table(head, rows))
    write_figures(
        arguments.out,
        {
            "checkpoint": arguments.checkpoint,
            "count": len(labels),
            "sets": {name: plain_rows(report.rows) for name, report in reports.items()},
            "settings": {
                name: {
                    **kept[name].values(),
                    "calls": one.calls,
                    "skipped": one.skipped,
                    "clips_a_second": len(labels) / one.seconds,
                }
                for name, one in runs.items()
            },
        },
    )


if __name__ == "__main__":
    main()
