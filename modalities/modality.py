"""The contract of a modality: all that a new kind of data must write.

The core knows tensors and spaces; a modality says what its data is, how a batch becomes an ``Example``, what a request
for samples means, and how a clean sample becomes something a person can open. Third parties register theirs with
``@MODALITIES.register("name")`` in a package that offers the entry point ``noiseloom.extensions``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from torch import Generator

from noiseloom.core.objectives import Example
from noiseloom.core.registry import Registry
from noiseloom.core.samples import Cond, Sample
from noiseloom.core.spaces import Space

from .report import Report

MODALITIES: Registry[Modality] = Registry("modality")


class Dataset(Protocol):
    """Items by index, counted."""

    @property
    def sizes(self) -> Sequence[int] | None:
        """How large each item is (atoms, frames), for batches of like size; None where all are equal."""

    @property
    def report(self) -> Any:
        """What was kept, and what was dropped and why; ``str(report)`` is a table for people."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


@dataclass(frozen=True)
class Layout:
    """What to generate, for one batch.

    Attributes:
        start: zeros of the shape to generate; known elements hold their clean values.
        space: the space of the batch, holding its masks.
        cond: conditions, with the mask under ``mask``.
        known: boolean, by part, left-aligned with the sample; None: nothing is known.
    """

    start: Sample
    space: Space
    cond: Cond
    known: Sample | None = None


class Modality(ABC):
    """A kind of data. Its constructor takes plain values only, and ``config`` gives them back."""

    #: the registered name
    name: ClassVar[str]
    #: a dataclass: what one can ask of a sample (its fields are the command line's options)
    Request: ClassVar[type]

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

    def couple(self, x0: Sample, noise: Sample, space: Space) -> Sample:
        """The noise paired with the data; independent by default."""
        return noise

    @abstractmethod
    def sizes(self, request: Any, seeds: Sequence[int]) -> list[int]:
        """How large each requested sample will be, so that batches hold like sizes; one per-sample seed each."""

    @abstractmethod
    def layout(self, request: Any, sizes: Sequence[int]) -> Layout:
        """The batch to generate for samples of these sizes, on the CPU."""

    @abstractmethod
    def decode(self, x0: Sample, layout: Layout) -> list[Any]:
        """Artifacts a person can use, one each; None for a sample that failed."""

    @abstractmethod
    def save(
        self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Report | None
    ) -> list[Path]:
        """Files and pictures of the artifacts; returns what was written, the page to open last."""

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
