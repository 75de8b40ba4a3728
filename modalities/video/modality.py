"""Video: clips as latents or pixels, told by classes, texts, numbers, and by whatever pixels are known."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from noiseloom.core.objectives import Example
from noiseloom.core.registry import unknown
from noiseloom.core.samples import Sample
from noiseloom.core.spaces import Euclidean

from ..component import find_component
from ..conditions import LABEL, TEXT, Conditions, each
from ..modality import MODALITIES, Layout, Modality, Plan, Run
from ..report import Report
from . import components  # noqa: F401  (registers them)
from .clip import Clip, signed, unsigned
from .data import Preparation, open_video
from .guess import GUESSES
from .inputs import Given, given, taken
from .known import GIVEN, given_cells, given_width
from .latents import Item, Latents, scale_warnings, statistics
from .representation import REPRESENTATIONS, Representation
from .request import VideoRequest
from .tasks import checked_shares, random_known
from .windows import VideoLayout, windows

_AXES = ("time", "height", "width")  # of frames, after the batch
GUESS = "guess"  # what the network calls it


@dataclass(frozen=True)
class VideoPlan(Plan):
    """What one video is to be; ``index`` says which of several inputs is its own."""

    index: int = 0


@MODALITIES.register("video")
class Video(Modality):
    """Clips in one representation.

    Args:
        representation: ``{"name": "latent" | "pixels" | "diffusers", options}``.
        mean, std: of each number of a latent position over the training data.
        conditions: what the model can be told, see ``Conditions``.
        size: height and width that it makes by default.
        fps: frames a second of the training data.
        preparation: options of ``Preparation``, what clips go through before training.
        known_rate: the share of training clips of which pixels are known, for all tasks but generating.
        tasks: how often each is drawn for those, by name; others are not. By default ``tasks.SHARES``.
        guess: where all of some frame is known, the network corrects a guess of the clip, one of ``GUESSES``: "held",
            what is known of a pixel at the nearest time, or "moved", which moves on as the known frames did. For x0.
        mirror: axes, of "time", "height" and "width", along which training clips are mirrored, each for half of them.
        prediction: what the network says. The noise in ``velocity`` needs a network wider than a token has numbers;
            ``x0`` does not.
        judge: a judge component that looks at samples when they are scored; None: they are scored without one.
        judge_figures: what it scored on real clips.
    """

    name = "video"
    Request = VideoRequest
    from_input = {"task": "vary", "strength": 1.0}

    def __init__(
        self,
        representation: Mapping[str, Any] | Representation,
        mean: Sequence[float],
        std: Sequence[float],
        conditions: Mapping[str, Any],
        size: Sequence[int] = (64, 64),
        fps: float = 10.0,
        preparation: Mapping[str, Any] | None = None,
        known_rate: float = 0.5,
        tasks: Mapping[str, float] | None = None,
        guess: str | None = None,
        mirror: Sequence[str] = (),
        prediction: str = "velocity",
        judge: Mapping[str, Any] | str | None = None,
        judge_figures: Mapping[str, float] | None = None,
    ) -> None:
        self.representation: Representation = REPRESENTATIONS.build(representation).eval()
        if not len(mean) == len(std) == self.representation.channels:
            channels = self.representation.channels
            raise ValueError(f"latents have {channels} channels, not {len(mean)} means and {len(std)} deviations")
        if min(std) <= 0:
            raise ValueError("every std must be positive")
        if not 0 <= known_rate <= 1:
            raise ValueError(f"known_rate lies in [0, 1], got {known_rate}")
        self.mean, self.std = torch.tensor(list(mean)), torch.tensor(list(std))
        self.conditions = Conditions(**conditions)
        self.options = dict(preparation or {})
        self.preparation = self._preparation(self.representation, self.options)
        self.size, self.fps = (int(size[0]), int(size[1])), float(fps)
        if wrong := [axis for axis in mirror if axis not in _AXES]:
            raise ValueError(unknown("axis to mirror", str(wrong[0]), _AXES))
        if mirror and self.representation.cached:
            raise ValueError("mirror needs a representation whose latents are not cached, such as pixels")
        self.known_rate, self.prediction = float(known_rate), prediction
        self.tasks = checked_shares(tasks)
        if guess is not None and guess not in GUESSES:
            raise ValueError(unknown("guess", guess, GUESSES))
        if guess and prediction != "x0":
            raise ValueError(f"guess={guess} needs prediction=x0, not {prediction}")
        self.guess, self.mirror = guess, [axis for axis in _AXES if axis in mirror]
        self.judge: Any = None if judge is None else find_component(judge)
        if judge_figures:
            self.judge.figures = dict(judge_figures)

    @property
    def config(self) -> dict[str, Any]:
        return {
            "representation": self.representation.config,
            "mean": [round(v, 6) for v in self.mean.tolist()],
            "std": [round(v, 6) for v in self.std.tolist()],
            "conditions": self.conditions.config,
            "size": list(self.size),
            "fps": self.fps,
            "preparation": self.options,
            "known_rate": self.known_rate,
            "tasks": self.tasks,
            "guess": self.guess,
            "mirror": self.mirror,
            "prediction": self.prediction,
            "judge": None if self.judge is None else self.judge.spec(),
            "judge_figures": None if self.judge is None else dict(self.judge.figures),
        }

    @classmethod
    def fitted(
        cls,
        source: str,
        data: Mapping[str, Any] | None = None,
        representation: Mapping[str, Any] | str = "pixels",
        preparation: Mapping[str, Any] | None = None,
        text: Mapping[str, Any] | str | None = None,
        drop: Mapping[str, float] | None = None,
        **options: Any,
    ) -> Video:
        """Conditions, the usual size and rate, and the statistics of latents, measured on the training clips.

        Args:
            source, data: what to open, and the options of ``open_video``.
            text: the encoder of the clips' texts; None: texts are not a condition.
            drop: see ``Conditions``.
        """
        built: Representation = REPRESENTATIONS.build(representation).eval()
        videos = open_video(source, "train", preparation=cls._preparation(built, preparation or {}), **dict(data or {}))
        mean, std = statistics(Latents.of(videos, built))
        columns = {name: list(values) for name, values in videos.values.items() if name != TEXT or text}
        conditions = Conditions.fitted(columns, text, None, drop)
        sizes, counts = np.unique(videos.shapes[:, 1:], axis=0, return_counts=True)
        shown = {"size": sizes[counts.argmax()].tolist(), "fps": float(np.median(videos.rates))}
        return cls(built, mean, std, conditions.config, preparation=preparation, **{**shown, **options})

    @staticmethod
    def _preparation(representation: Representation, options: Mapping[str, Any]) -> Preparation:
        own: dict[str, Any] = {"channels": representation.colours, "factor": representation.factors[0]}
        choices = [entry.name for entry in fields(Preparation) if entry.name not in own]
        if wrong := [name for name in options if name not in choices]:
            raise ValueError(unknown("option of preparation", wrong[0], choices))
        preparation = Preparation(**own, **options)
        for height, width in preparation.sizes:
            representation.check(1, height, width)
        return preparation

    def tensors(self) -> dict[str, Tensor]:
        return dict(self._parts().state_dict())

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        self._parts().load_state_dict(dict(tensors))

    def _parts(self) -> nn.ModuleDict:
        judge = {} if self.judge is None else {"judge": self.judge}
        return nn.ModuleDict({"representation": self.representation, **judge})

    @cached_property
    def window(self) -> int:
        """The most frames that the network sees at a time."""
        ft = self.representation.factors[0]
        return (self.preparation.frames - 1) // ft * ft + 1

    def network_options(self) -> dict[str, Any]:
        """Time in seconds, height and width in pixels."""
        ft, fh, fw = self.representation.factors
        known = given_width(self.representation.factors, self.representation.colours)
        shape = {"channels": self.representation.channels, "channels_last": True, "edges": [0, 1, 2]}
        guess = {GUESS: self.representation.channels} if self.guess else {}
        told = {"spacing": [ft / self.fps, fh, fw], "concat": {GIVEN: known, **guess}}
        if guess:
            told["skip"] = GUESS
        return {**shape, **told, **self.conditions.network_options()}

    def denoiser_options(self) -> dict[str, Any]:
        return {"prediction": self.prediction, "sigma_data": 1.0}

    @property
    def conditions_named(self) -> Sequence[str]:  # type: ignore[override]
        return [name for name in self.conditions.names if name not in (LABEL, TEXT)]

    # Training

    def dataset(self, source: str, split: str, **data: Any) -> Latents:
        return Latents.of(open_video(source, split, preparation=self.preparation, **data), self.representation)

    def warnings(self, dataset: Latents) -> list[str]:  # type: ignore[override]
        return scale_warnings(dataset, self.mean.tolist(), self.std.tolist())

    def encode(self, items: Sequence[Item], generators: Sequence[Generator] | None = None) -> Example:
        latents = torch.from_numpy(np.stack([item.latents for item in items])).float()
        frames = signed(np.stack([item.clip.frames for item in items]))
        if generators is not None and self.mirror:
            frames = self._mirrored(frames, generators)
            latents = self.representation.encode(frames)
        x0 = (latents - self.mean) / self.std
        cond: dict[str, Any] = self.conditions.tensors([item.clip.values for item in items])
        spacing = self._spacing([item.clip.fps for item in items])
        if generators is None:  # nothing is known: the task that says most of the model
            return Example(x0, Euclidean(), {**cond, **spacing})
        cond = self.conditions.dropped(cond, generators)
        shape = items[0].clip.frames.shape[:3]
        known = torch.stack([random_known(shape, own, self.known_rate, self.tasks) for own in generators])
        return Example(x0, Euclidean(), {**cond, **spacing, **self._given(frames, known)})

    def _mirrored(self, frames: Tensor, generators: Sequence[Generator]) -> Tensor:
        """Clips (batch, T, H, W, colours), each mirrored along a random choice of the axes."""
        axes = [1 + _AXES.index(axis) for axis in self.mirror]
        drawn = [[axis - 1 for axis in axes if float(torch.rand((), generator=own)) < 0.5] for own in generators]
        return torch.stack([clip.flip(dims) for clip, dims in zip(frames, drawn, strict=True)])

    def _given(self, frames: Tensor, known: Tensor) -> dict[str, Tensor]:
        told = {GIVEN: given_cells(frames, known, self.representation.factors)}
        if self.guess is None:
            return told
        some = known.flatten(2).all(2).any(1).view(-1, 1, 1, 1, 1)
        return {**told, GUESS: torch.where(some, self._coded(GUESSES[self.guess](frames, known)), 0)}

    def _spacing(self, fps: Sequence[float]) -> dict[str, Tensor]:
        """How far apart latent frames are, where the rate is not that of the training data."""
        if all(abs(one / self.fps - 1) < 1e-3 for one in fps):
            return {}
        ft, fh, fw = self.representation.factors
        return {"spacing": torch.tensor([[ft / one, fh, fw] for one in fps], dtype=torch.float64)}

    # Sampling

    def plans(self, request: VideoRequest, seeds: Sequence[int]) -> list[Plan]:
        plans: list[Plan] = []
        for index, seed in enumerate(seeds):
            asked = {name: each(name, value, index) for name, value in request.asked().items()}
            free = request.input is None  # what is not said of an input is left open
            values = self.conditions.drawn(asked, seed) if free else self.conditions.checked(asked)
            plans.append(VideoPlan(request.frames or self.window, values, index % max(len(request.inputs), 1)))
        return plans

    def layout(self, request: VideoRequest, plans: Sequence[Plan]) -> VideoLayout:
        height, width = request.size or self.size
        self.representation.check(1, height, width)
        places = [plan.index for plan in plans if isinstance(plan, VideoPlan)]
        known = [self._known(request, place, (height, width)) for place in places]
        if len({(one.frames.shape, one.fps) for one in known}) > 1:
            raise ValueError("the inputs make videos of unequal length or rate: give frames=N and fps=N")
        frames, seen = signed(np.stack([one.frames for one in known])), torch.stack([one.known for one in known])
        values, fps = [plan.values for plan in plans], known[0].fps
        history = self.window // 2 if request.history is None else request.history
        if history >= self.window > 1:
            raise ValueError(f"history={history}: a window has {self.window} frames, and takes over fewer")
        length = min(frames.shape[1], self.window)
        start = torch.zeros(len(plans), *self.representation.latent_shape(length, height, width), len(self.mean))
        cond = {**self.conditions.tensors(values), **self._spacing([fps] * len(plans))}
        told: dict[str, Any] = {"frames": frames, "seen": seen, "fps": fps, "values": values, "history": history}
        told["resembled"] = request.task == "vary"
        return VideoLayout(start, Euclidean(), cond, strength=known[0].strength, **told)

    def _known(self, request: VideoRequest, place: int, size: tuple[int, int]) -> Given:
        """What is known of one result."""
        colours = self.representation.colours
        if request.input is None:
            frames = np.zeros((request.frames or self.window, *size, colours), np.uint8)
            return Given(frames, torch.zeros(frames.shape[:3], dtype=torch.bool), request.fps or self.fps)
        return given(request, taken(request, place, size, colours, self.fps), self.window)

    def windows(self, layout: Layout, run: Run) -> Iterator[tuple[Sample, int]]:
        assert isinstance(layout, VideoLayout)
        return windows(layout, run, self.window, self._given, self._coded, self._decoded)

    def _coded(self, frames: Tensor) -> Tensor:
        return (self.representation.encode(frames) - self.mean) / self.std

    def _decoded(self, latents: Tensor, frames: int) -> Tensor:
        with torch.no_grad():
            return self.representation.decode(latents.float() * self.std + self.mean, frames)

    def decode(self, x0: Sample, layout: Layout) -> list[Any]:
        if isinstance(layout, VideoLayout):
            return self.decode_part(x0, layout, 0, layout.frames.shape[1])
        assert isinstance(x0, Tensor)  # latents as in training, which are no frames yet
        frames = self._decoded(x0, self.representation.frames(x0.shape[1]))
        return [Clip(own, self.fps) for own in unsigned(frames)]

    def decode_part(self, x0: Sample, layout: Layout, start: int, stop: int) -> list[Any]:
        assert isinstance(layout, VideoLayout)
        assert isinstance(x0, Tensor)
        pixels = unsigned(x0[:, start:stop])
        return [Clip(own, layout.fps, values=values) for own, values in zip(pixels, layout.values, strict=True)]

    # Results

    def report(self, artifacts: Sequence[Any]) -> Report:
        return self.evaluate(artifacts, options={"judge": self.judge} if self.judge else None)

    def save(
        self, artifacts: Sequence[Any], directory: Path, *, seeds: Sequence[int], report: Report | None, **options: Any
    ) -> list[Path]:
        from .files import save

        return save(artifacts, directory, seeds=seeds, report=report, **options)

    @classmethod
    def load_artifacts(cls, path: Path) -> list[Any]:
        from .files import load

        return load(path)

    @classmethod
    def evaluate(
        cls, artifacts: Sequence[Any], reference: Path | None = None, options: Mapping[str, Any] | None = None
    ) -> Report:
        from .metrics import evaluate

        real = None if reference is None else cls.load_artifacts(reference)
        return evaluate(artifacts, real, **dict(options or {}))
