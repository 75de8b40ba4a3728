"""``noiseloom sample``: from a checkpoint to files a person can open."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import noiseloom
from noiseloom.core.pipeline import Pipeline, Samples

from .schema import SampleConfig, UsageError, chosen


def run(config: SampleConfig) -> None:
    """Sample, save, score and print the scores."""
    if config.count < 0:
        raise UsageError(f"count must not be negative, got {config.count}")
    pipeline = noiseloom.load(config.checkpoint)
    Path(config.out).mkdir(parents=True, exist_ok=True)  # a place that cannot be written to is told before the work
    if config.compile:
        pipeline.compile()
    samples = draw(pipeline, config)
    _tell(samples, samples.save(Path(config.out), **config.save))


def draw(pipeline: Pipeline, config: SampleConfig) -> Samples:
    """The samples that a configuration asks for; what it leaves open is the checkpoint's own setting."""
    return pipeline.sample(
        config.count,
        seed=config.seed,
        sampler=chosen(config.sampler),
        steps=config.steps,
        grid=chosen(config.grid),
        order=chosen(config.order),
        schedule=chosen(config.schedule),
        guidance=chosen(config.guidance),
        caching=chosen(config.caching),
        posterior=chosen(config.posterior),
        measurement=chosen(config.measurement),
        inpainting=chosen(config.inpainting),
        inversion=config.inversion,
        temperature=config.temperature,
        noise=config.noise,
        batch_size=config.batch_size,
        precision=config.precision,
        **config.request,
    )


def _tell(samples: Samples, written: list[Path]) -> None:
    if not written:  # not the first of several processes
        return
    print(samples.report)
    rate: Any = len(samples) / samples.seconds if samples.seconds else 0.0
    saved = f", {samples.settings['skipped']:.0%} of the network saved" if "skipped" in samples.settings else ""
    print(f"\n{len(samples)} samples in {samples.seconds:.1f} s ({rate:.1f} a second{saved}). Look at {written[-1]}")
