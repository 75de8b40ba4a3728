"""The options of each command: a dataclass gives each its type, its default and, in the docstring, its meaning.

YAML files hold values only. An option that names something registered is a mapping ``{name: ..., option: ...}``: the
name is looked up in the registry and the options belong to what it names. On the command line ``sampler=ddim`` is short
for ``sampler.name=ddim``.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from omegaconf import MISSING

Named = dict[str, Any]  # {name: ..., option: value}; empty: nothing is chosen

# option: the registry of its name, as `noiseloom list` calls it
REGISTERED = {
    "modality": "modalities",
    "component": "components",
    "network": "networks",
    "schedule": "schedules",
    "objective": "objectives",
    "method": "objectives",
    "sampler": "samplers",
    "grid": "grids",
    "order": "orders",
    "guidance": "guidance",
    "caching": "caching",
    "posterior": "posteriors",
    "measurement": "measurements",
    "inpainting": "inpainting",
}


class UsageError(ValueError):
    """A command that cannot be run as it is written."""


def named(name: str | None = None) -> Any:
    """A field for something registered, by default the one called ``name``."""
    return field(default_factory=lambda: {} if name is None else {"name": name})


@dataclass
class SampleConfig:
    """Make samples and write them as files a person can open. What is not given is the checkpoint's own setting.

    Attributes:
        checkpoint: a name of noiseloom list checkpoints, a folder or a hub repository.
        count: how many.
        out: the folder to write to.
        seed: sample i of a seed is the same in any batch.
        sampler: the solver.
        steps: its steps.
        grid: the times that it visits.
        order: in which order the frames of a video are made; by default all together.
        schedule: another schedule than the trained one.
        guidance: how hard to push towards a condition; guidance=2 is short for guidance.scale=2.
        caching: reuse what the network computed while little changes; for a network dit.
        posterior: make samples of which a measurement is what it is of the input, such as super-resolution.
        measurement: what is seen of the input, such as measurement=downsample measurement.factor=4.
        inpainting: how known parts are kept; repaint is for networks that have not learned with them.
        inversion: start from the noise behind the input, found by so many iterations a step; with sampler=ddim.
        temperature: a factor on the noise to start from; below 1 samples are more typical and less varied.
        noise: of a stochastic sampler: independent, or brownian: more steps then come nearer to the same sample.
        batch_size: samples at a time; changes speed and memory, not samples.
        precision: of the network's arithmetic, fp32 or bf16.
        compile: torch.compile the network; pays for thousands of samples.
        save: the modality's options of saving, such as save.format=flac.
        request: what to make, in the modality's own words; NAME=VALUE is short for request.NAME=VALUE.
    """

    checkpoint: str = MISSING
    count: int = 16
    out: str = "samples"
    seed: int = 0
    sampler: Named = named()
    steps: int | None = None
    grid: Named = named()
    order: Named = named()
    schedule: Named = named()
    guidance: Named = named()
    caching: Named = named()
    posterior: Named = named()
    measurement: Named = named()
    inpainting: Named = named()
    inversion: int | None = None
    temperature: Any = None
    noise: str | None = None
    batch_size: int | None = None
    precision: str | None = None
    compile: bool = False
    save: dict[str, Any] = field(default_factory=dict)
    request: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(scale := self.guidance.get("name"), int | float):
            self.guidance = {**self.guidance, "name": "classifier_free", "scale": scale}
        elif self.guidance:
            self.guidance = {"name": "classifier_free", **self.guidance}


@dataclass
class EvaluateConfig:
    """Score any file of samples, ours or another's.

    Attributes:
        modality: what the samples are.
        samples: a file or folder.
        reference: the training data, for novelty and distances.
        out: a folder for the scores (metrics.json); without it they are only printed.
        options: the modality's own.
    """

    modality: str = MISSING
    samples: str = MISSING
    reference: str | None = None
    out: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass
class LikelihoodConfig:
    """How likely a checkpoint finds data: nats, and bits for each dimension.

    Attributes:
        checkpoint: a name of noiseloom list checkpoints, a folder or a hub repository.
        data: where the data is: data.source=NAME_OR_FOLDER, and options of reading it.
        split: which items: train, valid or test.
        count: how many of them; all, where there are fewer.
        bound: instead of the exact likelihood, by an ODE, the variational bound on it.
        solver: of the ODE: heun, bosh3, rk4 or dopri5.
        steps: of the ODE, 50 by default; of the bound, noise levels of each item, 64 by default.
        time_min: of the bound, where its decoder takes over; too small for a network makes it loose.
        tolerance: instead of equal steps of the ODE, as long as this error allows; with bosh3, dopri5 or heun.
        divergence: rademacher or gaussian probes, or exact, a backward pass for each number of an item.
        probes: how many are averaged.
        bin_width: of data that was rounded, the distance of neighbouring values; by default the density is told.
        conditions: whether the model is told the items' conditions.
        seed: of the items, probes and noise.
        batch_size: items at a time; changes speed and memory only.
        out: a folder for the figures (likelihood.json); without it they are only printed.
    """

    checkpoint: str = MISSING
    data: dict[str, Any] = field(default_factory=dict)
    split: str = "valid"
    count: int = 64
    bound: bool = False
    solver: str = "rk4"
    steps: int | None = None
    time_min: float = 1e-3
    tolerance: float | None = None
    divergence: str = "rademacher"
    probes: int = 1
    bin_width: float | None = None
    conditions: bool = True
    seed: int = 0
    batch_size: int = 16
    out: str | None = None


@dataclass
class EmaConfig:
    """The averaged weights of another width, from the snapshots of a run (trainer.ema_snapshots).

    Attributes:
        run: the run's folder; finished.
        std: the width relative to the run, as trainer.ema_std.
        step: of the end of the average; by default the last snapshot's.
        out: the checkpoint's folder; by default RUN/ema-STD.
    """

    run: str = MISSING
    std: float = MISSING
    step: int | None = None
    out: str | None = None


@dataclass
class DemoConfig:
    """Sample everything that is bundled and make a page of it.

    Attributes:
        out: the folder to write to; open its index.html.
        seed: sample i of a seed is the same in any batch.
    """

    out: str = "noiseloom-demo"
    seed: int = 0


class Option(NamedTuple):
    """One option of a command.

    Attributes:
        key: its dotted key.
        default: its default; MISSING where one must be given.
        help: what it means.
        registry: the registry that its name is looked up in, if any.
        free: whether it is a mapping whose keys are not in the schema.
    """

    key: str
    default: Any
    help: str
    registry: str | None
    free: bool


def meanings(documented: type) -> dict[str, str]:
    """The ``Attributes:`` of a docstring, each on one line."""
    section = (inspect.getdoc(documented) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", section, flags=re.MULTILINE)
    lines = {name: " ".join(text.split()).replace("``", "") for name, text in entries}
    return {name: line if line.endswith("...") else line.removesuffix(".") for name, line in lines.items()}


def options(of: type, prefix: str = "") -> Iterator[Option]:
    """Every option of a schema by its dotted key, depth first."""
    meaning = meanings(of)
    for entry in dataclasses.fields(of):
        factory = entry.default_factory
        default = entry.default if factory is dataclasses.MISSING else factory()
        key = prefix + entry.name
        if dataclasses.is_dataclass(default):
            yield from options(type(default), f"{key}.")
        else:
            registry = None if prefix else REGISTERED.get(entry.name)
            yield Option(key, default, meaning.get(entry.name, ""), registry, isinstance(default, dict))


def chosen(spec: Named) -> Named | None:
    """A spec for ``Registry.build``, or None where nothing is chosen."""
    return spec if spec.get("name") is not None else None
