"""The contract of a modality: all that a new kind of data must write.

The core knows tensors and spaces; a modality says what its data is, how a batch becomes an ``Example``, what a request
for samples means, and how a clean sample becomes something a person can open. Third parties register theirs with
``@MODALITIES.register("name")`` in a package that offers the entry point ``noiseloom.extensions``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Generator, Tensor

from noiseloom.core.denoiser import Denoise
from noiseloom.core.objectives import Example
from noiseloom.core.registry import Registry
from noiseloom.core.samples import Cond, Sample, batch_size
from noiseloom.core.spaces import Space

from .report import Report

MODALITIES: Registry[Modality] = Registry("modality")


class Dataset(Protocol):
    """Items by index, counted.

    A data set whose items have different shapes and cannot share a batch (videos) also has ``shapes``: one tuple for
    each item, such as (frames, height, width). Batches then hold one shape, by ``trainer.tokens`` or ``batch_size``.
    """

    @property
    def sizes(self) -> Sequence[int] | None:
        """How large each item is (atoms, frames), for batches of like size; None where all are equal."""

    @property
    def report(self) -> Any:
        """What was kept, and what was dropped and why; ``str(report)`` is a table for people."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Plan:
    """What one sample is to be, decided by its own seed.

    Attributes:
        size: how large it is (atoms, frames): batches hold like sizes.
        values: what else was asked or drawn, by name: a class, a pitch.
    """

    size: int
    values: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """What to generate, for one batch. A modality may add what it needs to decode.

    Attributes:
        start: zeros of the shape to generate; known elements hold their clean values.
        space: the space of the batch, holding its masks.
        cond: conditions, with the mask under ``mask``.
        known: boolean, by part, left-aligned with the sample; None: nothing is known.
        strength: where in time to start: 1 is noise alone, less starts from ``start`` (SDEdit).
        wrap: a denoiser around the denoiser that these samples need; None: as it is.
    """

    start: Sample
    space: Space
    cond: Cond
    known: Sample | None = None
    strength: float = 1.0
    wrap: Callable[[Denoise], Denoise] | None = None


#: samples the layout of a window: ``run(layout, its number, which samples of the batch are in it)``
Run = Callable[[Layout, int, Sequence[int]], Sample]


class Modality(ABC):
    """A kind of data. Its constructor takes plain values only, and ``config`` gives them back."""

    #: the registered name
    name: ClassVar[str]
    #: a dataclass: what one can ask of a sample (its fields are the command line's options)
    Request: ClassVar[type]

    #: options of a request with which the layout's start holds all of its input, to be measured or inverted; None: it
    #: has no input but for what is known of it
    from_input: ClassVar[Mapping[str, Any] | None] = None

    #: conditions of this checkpoint that are options by themselves: they go into the request's ``conditions``
    conditions_named: Sequence[str] = ()

    @property
    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The constructor's arguments, as plain JSON values: stored with a checkpoint."""

    @abstractmethod
    def network_options(self) -> dict[str, Any]:
        """What the data dictates to a network (channel counts, conditions); a recipe adds its width and depth."""

    @abstractmethod
    def denoiser_options(self) -> dict[str, Any]:
        """The modality's ``prediction`` and ``sigma_data`` for ``core.denoiser.Denoiser``."""

    @classmethod
    @abstractmethod
    def fitted(cls, source: str, data: Mapping[str, Any] | None = None, **options: Any) -> Modality:
        """A modality with what it must know of a training set measured on it (scales, histograms, vocabulary).

        Args:
            source: a name or a path; ``data`` are options of reading it.
            options: the constructor's, where they are not measured.
        """

    @abstractmethod
    def dataset(self, source: str, split: str, **data: Any) -> Dataset:
        """The items of a source: ``train``, ``valid`` or ``test``."""

    @abstractmethod
    def encode(self, items: Sequence[Any], generators: Sequence[Generator] | None = None) -> Example:
        """A batch of items. With ``generators`` (training) it augments, drops conditions and draws known parts; without
        it (held-out evaluation) it is deterministic."""

    def warnings(self, dataset: Dataset) -> list[str]:
        """What is odd about the scale of a training set, a line each: told before the first step; by default none."""
        return []

    def couple(self, x0: Sample, noise: Sample, space: Space) -> Sample:
        """The noise paired with the data; independent by default."""
        return noise

    @abstractmethod
    def plans(self, request: Any, seeds: Sequence[int]) -> list[Plan]:
        """What each requested sample will be; one per-sample seed each, and nothing else is random."""

    @abstractmethod
    def layout(self, request: Any, plans: Sequence[Plan]) -> Layout:
        """The batch to generate for these samples, on the CPU."""

    def windows(self, layout: Layout, run: Run) -> Iterator[tuple[Sample, int]]:
        """Sample a layout, window by window where it is longer than the network has learned; by default at once.

        Yields:
            After each window the whole sample as far as it is made, and how many elements are finished: no later
            window changes what they decode to. Where it is 0 to the end, elements are not told apart.
        """
        yield run(layout, 0, range(batch_size(layout.start))), 0

    @abstractmethod
    def decode(self, x0: Sample, layout: Layout) -> list[Any]:
        """Artifacts a person can use, one each; None for a sample that failed."""

    def decode_part(self, x0: Sample, layout: Layout, start: int, stop: int) -> list[Any]:
        """Artifacts of finished elements ``start`` to ``stop``, for streams."""
        raise NotImplementedError(f"{self.name} counts no finished elements")

    def tensors(self) -> dict[str, Tensor]:
        """Weights of its own (a vocoder's, an autoencoder's), stored with a checkpoint; by default none."""
        return {}

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what ``tensors`` gave.

        Raises:
            ValueError: they do not fit.
        """
        if tensors:
            raise ValueError(f"{self.name} has no weights of its own, but was given {', '.join(tensors)}")

    def report(self, artifacts: Sequence[Any]) -> Report:
        """Scores of its own samples; by default those of ``evaluate``."""
        return self.evaluate(artifacts)

    @abstractmethod
    def save(
        self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Report | None, **options: Any
    ) -> list[Path]:
        """Files and pictures of the artifacts; returns what was written, the page to open last. ``options`` are the
        modality's own: a format."""

    @classmethod
    @abstractmethod
    def load_artifacts(cls, path: Path) -> list[Any]:
        """Artifacts from anyone's file or folder, for ``evaluate``; unreadable ones are None."""

    @classmethod
    @abstractmethod
    def evaluate(
        cls, artifacts: Sequence[Any], reference: Path | None = None, options: Mapping[str, Any] | None = None
    ) -> Report:
        """Scores, each with its protocol, n and the figure of real data."""
