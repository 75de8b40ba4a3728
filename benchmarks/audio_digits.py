"""The bundled digits beside real test clips and their round trips, by the bundled judge; speed and quality by calls.

    python benchmarks/audio_digits.py [--count 300] [--steps 6 12 25 50]

Three tables with the same protocol: the 300 clips of the official test split; the same through log-mel frames and the
vocoder; ``--count`` generated ones, as many of each digit, lengths and voices as the training data has them. Then, for
each number of steps, accuracy, Frechet distance and how many seconds of sound are made in a second.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch

import noiseloom
from noiseloom.core.pipeline import Pipeline
from noiseloom.modalities.audio.data import open_audio
from noiseloom.modalities.audio.modality import Audio
from noiseloom.modalities.audio.waveform import Waveform

ROWS = (
    "label_accuracy",
    "voice_accuracy",
    "voice_entropy",
    "frechet_distance",
    "kernel_distance",
    "density",
    "coverage",
    "nearest_training_ratio",
    "nearer_than_1_percent",
    "nearer_than_5_percent",
)


def round_trips(modality: Audio, clips: Sequence[Waveform]) -> list[Waveform]:
    made = []
    for clip in clips:
        frames = modality.representation.encode(torch.tensor(clip.samples)[None])
        samples = modality.representation.decode(frames, [clip.samples.shape[1]])[0].numpy()
        made.append(Waveform(samples, clip.rate, clip.name, clip.values))
    return made


def generated(pipeline: Pipeline, count: int, steps: int | None, **options: object) -> tuple[list[Waveform], float]:
    samples = pipeline.sample(count, label=list(range(10)), steps=steps, seed=0, **options)
    return [sample for sample in samples if sample is not None], samples.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="audio-digits")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--steps", type=int, nargs="*", default=[5, 10, 25])
    parser.add_argument("--guidance", type=float, nargs="*", default=[])
    arguments = parser.parse_args()
    pipeline = noiseloom.load(arguments.checkpoint)
    modality = pipeline.modality
    assert isinstance(modality, Audio)
    test = open_audio("fsdd", "test", preparation=modality.preparation)
    real = [test[i] for i in range(len(test))]
    clips, seconds = generated(pipeline, arguments.count, None)
    sets = {"real test clips": real, "their round trips": round_trips(modality, real), "generated": clips}
    for name, waves in sets.items():
        report = modality.report(waves)
        print(f"\n{name}\n{report}")
    print(f"\n{len(clips)} clips, {sum(c.seconds for c in clips):.0f} s of sound, in {seconds:.1f} s")
    runs = [(steps, None) for steps in arguments.steps] + [(None, scale) for scale in arguments.guidance]
    for steps, scale in runs:
        clips, seconds = generated(pipeline, arguments.count, steps, guidance=scale)
        report = modality.report(clips)
        rows = [row for row in report.rows if row.name in ROWS and row.value is not None]
        figures = ", ".join(f"{row.name} {row.value:.3g}" for row in rows)
        sound = sum(clip.seconds for clip in clips)
        print(f"steps {steps}, guidance {scale}: {sound / seconds:.2f} s of sound a second; {figures}", flush=True)


if __name__ == "__main__":
    main()
