"""Sound: clips of any length as frames of a representation, told by class, number, text and reference."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from noiseloom.core.editing import Looped
from noiseloom.core.objectives import Example
from noiseloom.core.registry import unknown
from noiseloom.core.samples import Sample
from noiseloom.core.spaces import Euclidean

from ..component import find_component
from ..conditions import LABEL, REFERENCE, TEXT, Conditions, each
from ..modality import MODALITIES, Layout, Modality, Plan, Run
from ..report import Report
from ..scale import moments
from . import components, energies  # noqa: F401  (registers them)
from .data import Preparation, open_audio
from .editing import Edit, closed, edit_of
from .frames import Frames, Item, frames_of, scale_warnings, statistics
from .inputs import Inputs
from .known import random_known
from .representation import REPRESENTATIONS, Mel, Representation, Wave
from .request import DURATION, AudioRequest
from .waveform import Waveform
from .windows import windows

_CHUNK = 4096  # frames of a long sound that are decoded at a time


@dataclass(frozen=True)
class AudioPlan(Plan):
    """What one sound is to be; ``length`` in samples."""

    length: int = 1


@dataclass(frozen=True)
class AudioLayout(Layout):
    """What to generate, and what its sounds will be.

    Attributes:
        lengths: samples of each sound; none: all that its frames hold.
        values: what each was asked to be.
        edit: what is kept of an input.
        loop: whether each sound leads back into itself.
    """

    lengths: Sequence[int] = ()
    values: Sequence[Mapping[str, Any]] = ()
    edit: Edit | None = None
    loop: bool = False


@MODALITIES.register("audio")
class Audio(Modality):
    """Clips in one representation.

    Args:
        representation: ``{"name": "mel" | "latent" | "wave", options}``.
        preparation: options of ``Preparation``, what clips go through before training; rate and channels are the
            representation's.
        mean, std: of each number of a frame over the training data.
        conditions: what the model can be told, see ``Conditions``.
        window: seconds; longer clips are cropped at random in training and made window by window in sampling.
        stretch: how far training clips are stretched or squeezed in time at random: 0.1 is up to 10 %.
        known_rate: the share of training batches with known parts, for editing.
        prediction: what the network says. The noise in ``velocity`` needs a network wider than a token has numbers
            (``patch`` x the frame's); ``x0`` does not.
        judge: a classifier component that listens to samples when they are scored; None: they are scored without one.
        judge_figures: what it scored on real clips.
    """

    name = "audio"
    Request = AudioRequest
    from_input = {"strength": 1.0}

    def __init__(
        self,
        representation: Mapping[str, Any] | Representation,
        mean: Sequence[float],
        std: Sequence[float],
        conditions: Mapping[str, Any],
        preparation: Mapping[str, Any] | None = None,
        window: float = 5.0,
        stretch: float = 0.0,
        known_rate: float = 0.25,
        prediction: str = "velocity",
        judge: Mapping[str, Any] | str | None = None,
        judge_figures: Mapping[str, float] | None = None,
    ) -> None:
        self.representation: Representation = REPRESENTATIONS.build(representation)
        if not len(mean) == len(std) == self.representation.width:
            raise ValueError(f"frames have {self.representation.width} numbers, not {len(mean)} means, {len(std)} stds")
        if min(std) <= 0:
            raise ValueError("every std must be positive")
        self.mean, self.std = torch.tensor(list(mean)), torch.tensor(list(std))
        self.conditions = Conditions(**conditions, positive=(DURATION,))
        self.options = dict(preparation or {})
        self.preparation = self._preparation(self.representation, self.options)
        self.inputs = Inputs(self.preparation)
        if window <= 0 or not 0 <= stretch < 1 or not 0 <= known_rate <= 1:
            raise ValueError("window must be positive, stretch in [0, 1), known_rate in [0, 1]")
        if stretch and isinstance(self.representation, Wave):
            raise ValueError("stretch is for frames that can be stretched: mel or latent, not wave")
        self.window, self.stretch, self.known_rate = float(window), float(stretch), float(known_rate)
        self.prediction = prediction
        self.judge: Any = None if judge is None else find_component(judge)
        if judge_figures:
            self.judge.figures = dict(judge_figures)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "representation": self.representation.config,
            "preparation": self.options,
            "mean": [round(v, 6) for v in self.mean.tolist()],
            "std": [round(v, 6) for v in self.std.tolist()],
            "conditions": self.conditions.config,
            "window": self.window,
            "stretch": self.stretch,
            "known_rate": self.known_rate,
            "prediction": self.prediction,
            "judge": None if self.judge is None else self.judge.spec(),
            "judge_figures": None if self.judge is None else dict(self.judge.figures),
        }

    @classmethod
    def fitted(
        cls,
        source: str,
        data: Mapping[str, Any] | None = None,
        representation: Mapping[str, Any] | str = "mel",
        preparation: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | str | None = None,
        reference: bool = False,
        drop: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Audio:
        """Conditions and the statistics of frames, measured on the training clips.

        Args:
            source, data: what to open, and the options of ``open_audio``.
            text: the encoder of the clips' texts; None: texts are not a condition.
            reference: whether a reference clip is one.
            drop: see ``Conditions``.
        """
        built: Representation = REPRESENTATIONS.build(representation)
        clips = open_audio(source, "train", preparation=cls._preparation(built, preparation or {}), **dict(data or {}))
        frames = frames_of(clips, built)
        mean, std = moments(frames.data)
        width = 2 * built.width if reference else None
        columns = {name: list(values) for name, values in clips.values.items()}
        columns[DURATION] = [round(samples / built.rate, 4) for samples in clips.samples.tolist()]
        conditions = Conditions.fitted(columns, text, width, drop)
        return cls(built, mean, std, conditions.config, preparation, **options)

    @staticmethod
    def _preparation(representation: Representation, options: Mapping[str, Any]) -> Preparation:
        choices = [entry.name for entry in fields(Preparation) if entry.name not in ("rate", "channels")]
        if wrong := [name for name in options if name not in choices]:
            raise ValueError(unknown("option of preparation", wrong[0], choices))
        return Preparation(rate=representation.rate, channels=representation.channels, **options)

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._parts().state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._parts().load_state_dict(dict(tensors))

    def _parts(self) -> nn.ModuleDict:
        judge = {} if self.judge is None else {"judge": self.judge}
        return nn.ModuleDict({"representation": self.representation, **judge})

    @property
    def most(self) -> int:
        """Frames of a window."""
        return self.representation.frames(round(self.window * self.representation.rate))

    @property
    def bands(self) -> int:
        """Frequency bands of each channel of a frame; 0 where a frame's numbers are no frequencies."""
        return self.representation.preset.bands if isinstance(self.representation, Mel) else 0

    def seconds(self, frames: int) -> float:
        """How long so many frames last."""
        return frames * self.representation.hop / self.representation.rate

    def network_options(self) -> dict[str, Any]:
        hop = self.representation.hop / self.representation.rate
        shape = {"channels": self.representation.width, "channels_last": True, "patch": [1], "spacing": [hop]}
        return {**shape, "element_times": True, **self.conditions.network_options()}

    def denoiser_options(self) -> dict[str, Any]:
        return {"prediction": self.prediction, "sigma_data": 1.0}

    @property
    def conditions_named(self) -> Sequence[str]:  # type: ignore[override]
        return [name for name in self.conditions.names if name not in (LABEL, TEXT, DURATION)]

    # Training

    def dataset(self, source: str, split: str, **data: Any) -> Frames:
        clips = open_audio(source, split, preparation=self.preparation, **data)
        return Frames(clips, frames_of(clips, self.representation))

    def warnings(self, dataset: Frames) -> list[str]:  # type: ignore[override]
        return scale_warnings(dataset, self.representation, self.mean.tolist(), self.std.tolist())

    def encode(self, items: Sequence[Item], generators: Sequence[Generator] | None = None) -> Example:
        own: Sequence[Generator | None] = generators or [None] * len(items)
        taken = [self._taken(item.frames, g) for item, g in zip(items, own, strict=True)]
        lengths = [len(frames) for frames in taken]
        x0 = torch.nn.utils.rnn.pad_sequence(taken, batch_first=True)
        mask = torch.arange(x0.shape[1]) < torch.tensor(lengths)[:, None]
        seconds = [self.seconds(length) for length in lengths]
        values = [{**item.values, DURATION: length} for item, length in zip(items, seconds, strict=True)]
        cond: dict[str, Any] = self.conditions.tensors(values)
        if self.conditions.reference is not None:
            cond[REFERENCE] = self._references(taken, generators)
        cond["mask"] = mask
        if generators is None:
            return Example(x0, Euclidean(mask), cond)
        cond = self.conditions.dropped(cond, generators)
        if float(torch.rand((), generator=generators[0])) >= self.known_rate:  # one coin a batch: one shape of times
            return Example(x0, Euclidean(mask), cond)
        known = torch.stack(
            [
                random_known(n, (x0.shape[1], x0.shape[2]), g, self.bands)
                for n, g in zip(lengths, generators, strict=True)
            ]
        )
        return Example(x0, Euclidean(mask, known), cond, known)

    def _taken(self, frames: np.ndarray, generator: Generator | None) -> Tensor:
        """Normalised frames of a window: of the middle, or with a generator stretched and from a random place."""
        x = (torch.tensor(frames, dtype=torch.float32) - self.mean) / self.std
        if generator is not None and self.stretch:
            factor = 1 + self.stretch * (2 * float(torch.rand((), generator=generator)) - 1)
            length = max(round(len(x) * factor), 1)
            x = F.interpolate(x.mT[None], size=length, mode="linear", align_corners=False)[0].mT
        most, spare = self.most, len(x) - self.most
        if spare <= 0:
            return x
        start = spare // 2 if generator is None else int(torch.randint(spare + 1, (), generator=generator))
        return x[start : start + most]

    def _references(self, clips: Sequence[Tensor], generators: Sequence[Generator] | None) -> Tensor:
        """Statistics of each clip, in training of a random half of it: what it sounds like, not what it says."""
        halves = []
        for index, clip in enumerate(clips):
            if generators is not None and len(clip) > 1:
                half = (len(clip) + 1) // 2
                start = int(torch.randint(len(clip) - half + 1, (), generator=generators[index]))
                clip = clip[start : start + half]
            halves.append(statistics(clip))
        return torch.stack(halves)

    # Sampling

    def plans(self, request: AudioRequest, seeds: Sequence[int]) -> list[Plan]:
        edit, hop, rate = self._edit(request), self.representation.hop, self.representation.rate
        plans: list[Plan] = []
        for index, seed in enumerate(seeds):
            asked = {name: each(name, value, index) for name, value in request.asked().items()}
            if edit is not None:  # what is not said of an input is left open
                values, length = self.conditions.checked(asked), edit.length
            else:
                values = self.conditions.drawn(asked, seed)
                length = max(round(values[DURATION] * rate), 1)
            if request.loop:  # whole frames, and none beyond them: the last one leads into the first
                length = -(-length // hop) * hop
            size = length // hop if request.loop else self.representation.frames(length)
            plans.append(AudioPlan(size, {**values, DURATION: length / rate}, length))
        return plans

    def layout(self, request: AudioRequest, plans: Sequence[Plan]) -> AudioLayout:
        edit, values = self._edit(request), [plan.values for plan in plans]
        sizes = torch.tensor([plan.size for plan in plans])
        mask = torch.arange(int(sizes.max())) < sizes[:, None]
        # As in training, the duration is that of the frames.
        cond: dict[str, Any] = {**self.conditions.tensors(values), **self._duration(sizes), "mask": mask}
        if self.conditions.reference is not None:
            cond[REFERENCE] = self._reference(request.reference).expand(len(plans), -1)
        elif request.reference:
            raise ValueError("this checkpoint was not trained with references")
        start, known = torch.zeros(*mask.shape, self.representation.width), None
        told: dict[str, Any] = {"values": values, "edit": edit, "loop": request.loop}
        if edit is not None:
            start[:] = self._normalised(edit.audio * np.float32(edit.gain))
            known = edit.known.expand(len(plans), -1, -1) if edit.known.any() else None
            told["strength"] = edit.strength
        if request.loop:
            if int(sizes.max()) > self.most:
                raise ValueError(f"a loop has at most {self.window:g} s, the window of this checkpoint")
            told["wrap"] = partial(Looped, lengths=sizes)
        lengths = [plan.length for plan in plans if isinstance(plan, AudioPlan)]
        return AudioLayout(start, Euclidean(mask, known), cond, known, lengths=lengths, **told)

    def _duration(self, frames: Tensor) -> dict[str, Tensor]:
        return {DURATION: self.conditions.standardised(DURATION, [self.seconds(n) for n in frames.tolist()])}

    def windows(self, layout: Layout, run: Run) -> Iterator[tuple[Sample, int]]:
        total, context = layout.start.shape[1], self.representation.context
        if total <= self.most:
            yield run(layout, 0, range(len(layout.start))), total
            return
        # What is joined to a kept sound, or decoded by all of its frames, is finished with the last window.
        whole = context is None or (isinstance(layout, AudioLayout) and layout.edit is not None)
        for x, made in windows(layout, run, self.most, self._duration):
            yield x, total if made == total else 0 if whole else max(made - (context or 0), 0)

    def decode(self, x0: Sample, layout: Layout) -> list[Any]:
        told = layout if isinstance(layout, AudioLayout) else AudioLayout(layout.start, layout.space, layout.cond)
        lengths = told.lengths or [self._samples(size) for size in layout.cond["mask"].sum(1).tolist()]
        frames = x0.float() * self.std + self.mean
        if told.loop:
            sounds = [closed(self.representation, own, n) for own, n in zip(frames, lengths, strict=True)]
        elif frames.shape[1] <= _CHUNK:
            sounds = [sound.numpy() for sound in self.representation.decode(frames, lengths)]
        else:
            sounds = [self._piece(own, n) for own, n in zip(frames, lengths, strict=True)]
        if told.edit is not None:
            sounds = [told.edit.splice(sound) for sound in sounds]
        return [
            Waveform(np.ascontiguousarray(sound), self.representation.rate, values=own)
            for sound, own in zip(sounds, told.values or [{}] * len(sounds), strict=True)
        ]

    def decode_part(self, x0: Sample, layout: Layout, start: int, stop: int) -> list[Any]:
        if stop - start == x0.shape[1]:
            return self.decode(x0, layout)
        assert isinstance(layout, AudioLayout)
        parts = zip(x0.float() * self.std + self.mean, layout.lengths, layout.values, strict=True)
        rate = self.representation.rate
        return [Waveform(self._piece(own, n, start, stop), rate, values=values) for own, n, values in parts]

    def _piece(self, frames: Tensor, length: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """The samples of frames ``start`` to ``stop`` of a sound of so many samples, (channels, n)."""
        pieces = self.representation.decode_chunks(frames, length, _CHUNK, start, stop)
        return torch.cat([torch.zeros(self.representation.channels, 0), *pieces], 1).numpy()

    def _samples(self, frames: int) -> int:
        """How many samples so many frames hold."""
        return (frames - self.representation.frames(0)) * self.representation.hop

    def _edit(self, request: AudioRequest) -> Edit | None:
        return edit_of(request, self.representation, self.inputs.edited, self.inputs.gain)

    def _normalised(self, audio: np.ndarray) -> Tensor:
        frames = self.representation.encode(torch.tensor(audio)[None])
        return (frames - self.mean) / self.std

    def _reference(self, path: str | None) -> Tensor:
        assert self.conditions.reference is not None
        if path is None:
            return torch.full((1, self.conditions.reference), torch.nan)
        return statistics(self._normalised(self.inputs.heard(path))[0])[None]

    # Results

    def report(self, artifacts: Sequence[Any]) -> Report:
        return self.evaluate(artifacts, options={"embedder": self.judge} if self.judge else None)

    def save(
        self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Report | None, **options: Any
    ) -> list[Path]:
        from .files import save

        return save(artifacts, directory, seeds=seeds, report=report, **options)

    @classmethod
    def load_artifacts(cls, path: Path) -> list[Any]:
        from .metrics import load

        return load(path)

    @classmethod
    def evaluate(
        cls, artifacts: Sequence[Any], reference: Path | None = None, options: Mapping[str, Any] | None = None
    ) -> Report:
        from .metrics import evaluate

        real = None if reference is None else cls.load_artifacts(reference)
        return evaluate(artifacts, real, **dict(options or {}))
