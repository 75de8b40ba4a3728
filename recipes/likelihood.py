"""``noiseloom likelihood``: how likely a checkpoint finds data."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import noiseloom
from noiseloom.core.bound import Bound, continuous_bound
from noiseloom.core.conditioning import null
from noiseloom.core.devices import move
from noiseloom.core.likelihood import Likelihood, log_likelihood
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.predictions import LearnedRange, Linear
from noiseloom.core.randomness import mix
from noiseloom.core.training import held_out_batches
from noiseloom.modalities.report import Report, Row, mean_row

from .schema import LikelihoodConfig, UsageError

DRAWS = 64  # of the bound, unless told otherwise


def run(config: LikelihoodConfig) -> None:
    """Print the figures, and write them to ``<out>/likelihood.json`` where a folder is given."""
    report = measure(config)
    print(report)
    if config.out:
        folder = Path(config.out)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "likelihood.json").write_text(report.to_json(), encoding="utf-8")
        print(f"\nwritten to {folder / 'likelihood.json'}")


def measure(config: LikelihoodConfig) -> Report:
    """The log-likelihood of the items of a data source, each on its own.

    Raises:
        UsageError: no data, or a checkpoint whose samples have no density.
    """
    data = dict(config.data)
    source = data.pop("source", None)
    if source is None:
        raise UsageError("no data: data.source=NAME_OR_FOLDER")
    pipeline = noiseloom.load(config.checkpoint)
    check_density(pipeline, config.checkpoint)
    modality: Any = pipeline.modality
    dataset = modality.dataset(str(source), config.split, **data)
    batches = held_out_batches(
        dataset.sizes, len(dataset), config.batch_size, config.count, config.seed, getattr(dataset, "shapes", None)
    )
    if not batches:
        raise UsageError(f"{source} has no items in its split {config.split!r}")
    bits, nats, dimensions = list[float](), list[float](), list[float]()
    for items in batches:
        found = _of_batch(pipeline, [dataset[i] for i in items], items, config)
        bits += found.bits_per_dimension(config.bin_width if isinstance(found, Likelihood) else None).tolist()
        nats += found.nats.tolist()
        dimensions += found.dimension.tolist()
    return _report(config, str(source), bits, nats, dimensions, _notes(pipeline, config))


def check_density(pipeline: Pipeline, name: str) -> None:
    """
    Raises:
        UsageError: parts of the sample are classes.
    """
    prediction = pipeline.denoiser.prediction
    each = prediction if isinstance(prediction, dict) else {"samples": prediction}
    classes = [part for part, one in each.items() if not isinstance(one, (Linear, LearnedRange))]
    if classes:
        raise UsageError(
            f"{name} has no likelihood in nats: its {', '.join(classes)} are classes, points at which the density of "
            "their noisy one-hots is infinite, and the other parts are not modelled without them"
        )


def _of_batch(
    pipeline: Pipeline, items: Sequence[Any], numbers: Sequence[int], config: LikelihoodConfig
) -> Likelihood | Bound:
    modality: Any = pipeline.modality
    example = move(modality.encode(items), pipeline.device)
    pipeline.denoiser.eval()
    common: dict[str, Any] = {
        "space": example.space,
        "cond": example.cond if config.conditions else null(example.cond),
        "known": example.known,
        "seeds": [mix(config.seed, number) for number in numbers],
    }
    if config.bound:
        draws = DRAWS if config.steps is None else config.steps
        ends: dict[str, Any] = {"time_min": config.time_min, "bin_width": config.bin_width}
        return continuous_bound(pipeline.denoiser, example.x0, draws=draws, **ends, **common)
    with torch.no_grad():
        return log_likelihood(
            pipeline.denoiser,
            example.x0,
            solver=config.solver,
            steps=config.steps,
            tolerance=config.tolerance,
            divergence=config.divergence,  # type: ignore[arg-type]
            probes=config.probes,
            **common,
        )


def _report(
    config: LikelihoodConfig,
    source: str,
    bits: Sequence[float],
    nats: Sequence[float],
    dimensions: Sequence[float],
    notes: Sequence[str],
) -> Report:
    if config.bound:
        levels = f"{config.steps or DRAWS} levels of noise an item"
        how = f"continuous variational bound, {levels} from t = {config.time_min:g} on"
    else:
        steps = f"tolerance {config.tolerance:g}" if config.tolerance else f"{config.steps or 50} steps"
        trace = "exact divergence" if config.divergence == "exact" else f"{config.probes} {config.divergence} probe(s)"
        how = f"probability-flow ODE, {config.solver}, {steps}, {trace}"
    scale = "of the density" if config.bin_width is None else f"of bins of width {config.bin_width:g}"
    rows = [
        mean_row("bits_per_dimension", bits, f"{how}; {scale}; mean over items", "bits", better="lower"),
        mean_row("log_likelihood", nats, f"of an item's density; {how}", "nats", better="higher"),
        Row("dimensions", sum(dimensions) / len(dimensions), len(dimensions), "real, unknown numbers of an item"),
    ]
    return Report(f"{config.checkpoint} on {source} ({config.split})", rows, notes=notes)


def _notes(pipeline: Pipeline, config: LikelihoodConfig) -> list[str]:
    told = "given their conditions" if config.conditions else "without conditions"
    notes = [
        f"the items {told}, in the space that the network sees ({pipeline.config['modality']['name']}, standardised): "
        "figures of one representation compare, those of two do not",
        "± is the 95 % interval, 1.96 standard errors",
    ]
    if config.bound:
        notes.append("a bound: the bits are at most these, and the log-likelihood at least this, up to its error")
    if getattr(pipeline.denoiser.network, "self_condition", False):
        notes.append("the network was trained with self-conditioning, and is asked without")
    return notes
