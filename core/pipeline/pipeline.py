"""A trained denoiser and its modality: load, sample, save, share."""

from __future__ import annotations

import dataclasses
import difflib
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from ..caching import cached
from ..denoiser import Denoise, Denoiser
from ..devices import compile_network, move
from ..grids import GRIDS, make_grid
from ..guidance import GUIDANCE
from ..orders import ORDERS
from ..predictions import Estimate
from ..randomness import mix
from ..samplers import SAMPLERS
from ..samples import Cond, Sample, Time, map_parts, parts
from ..schedules import SCHEDULES
from ..training.config import PRECISIONS
from .batches import best_device, cut, gathered, processes
from .card import model_card
from .pretrained import CheckpointError, build_denoiser, find_pretrained, load_pretrained, save_pretrained
from .samples import Samples
from .settings import DEFAULTS, combined, either, known_settings, sample_seeds
from .walk import Walk, of_input

_WINDOW = -8  # a key of the noise of later windows


class SampledModality(Protocol):
    """What a pipeline needs of a modality (the contract of modalities has it all)."""

    Request: ClassVar[type]

    @property
    def conditions_named(self) -> Sequence[str]: ...
    @property
    def config(self) -> dict[str, Any]: ...
    def plans(self, request: Any, seeds: Sequence[int]) -> Sequence[Any]: ...
    def layout(self, request: Any, plans: Sequence[Any]) -> Any: ...
    def windows(self, layout: Any, run: Any) -> Iterator[tuple[Sample, int]]: ...
    def decode(self, x0: Sample, layout: Any) -> list[Any]: ...
    def decode_part(self, x0: Sample, layout: Any, start: int, stop: int) -> list[Any]: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None: ...


class Pipeline:
    """Samples of one trained model.

    Args:
        modality: what the samples are.
        denoiser: with the weights to sample from.
        config: the checkpoint's configuration (see ``pretrained``); its ``sampling`` holds the default settings.
    """

    open: Callable[[str], Pipeline] | None = None  # finds another checkpoint by its name

    def __init__(self, modality: SampledModality, denoiser: Denoiser, config: Mapping[str, Any] | None = None) -> None:
        self.modality, self.denoiser, self.config = modality, denoiser, dict(config or {})
        self._others: dict[str, Pipeline] = {}  # checkpoints that guide this one

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        build_modality: Callable[[Mapping[str, Any]], SampledModality],
        *,
        revision: str | None = None,
        device: str | torch.device | None = None,
    ) -> Pipeline:
        """A checkpoint folder, or a repository of the Hugging Face hub. ``noiseloom.load`` calls this.

        Args:
            source: the folder, or ``owner/name``.
            build_modality: from the configuration's ``{"name": ..., options}``: ``MODALITIES.build``.
            revision: a branch, tag or commit of the repository.
            device: by default the best there is.

        Raises:
            CheckpointError: the checkpoint is missing, broken or refused; one line says why.
            UnknownName: it names a network or modality that is not registered.
        """
        pretrained = load_pretrained(find_pretrained(source, revision))
        modality = build_modality(pretrained.config["modality"])
        denoiser = build_denoiser(pretrained)
        try:
            modality.load_tensors(pretrained.modality_tensors)
        except (ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{pretrained.path}: weights of the modality do not fit: {reason}") from None
        pipeline = cls(modality, denoiser, pretrained.config)
        return pipeline.to(device or best_device())

    def save_pretrained(
        self, directory: str | Path, *, name: str | None = None, text: str = "", half: bool = False
    ) -> Path:
        """Write ``config.json``, ``model.safetensors`` and a model card.

        Args:
            directory: made if needed.
            name: what others will load it by; by default the folder's name.
            text: what else the card says, in Markdown.
            half: store float16 numbers, half the size; they are float32 again once loaded.
        """
        card = model_card(name or Path(directory).name, self.config, text)
        own = self.modality.tensors()
        return save_pretrained(directory, self.denoiser, self.config, card, modality_tensors=own, half=half)

    def push_to_hub(self, repo_id: str, *, private: bool = False, token: str | None = None, text: str = "") -> str:
        """Upload to the Hugging Face hub; returns the address."""
        from tempfile import TemporaryDirectory

        from huggingface_hub import HfApi

        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, name=repo_id, text=text)
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="noiseloom"))

    @property
    def device(self) -> torch.device:
        return next(self.denoiser.parameters()).device

    def to(self, device: str | torch.device) -> Pipeline:
        """Move the network."""
        self.denoiser.to(device)
        return self

    def compile(self) -> Pipeline:
        """torch.compile the network, in place; pays for thousands of samples."""
        compile_network(self.denoiser.network)
        return self

    def request(self, **values: Any) -> Any:
        """The modality's request. Conditions of the checkpoint that are no field of it go into its ``conditions``.

        Raises:
            ValueError: an option that is neither; the message lists the choices.
        """
        fields = [field.name for field in dataclasses.fields(self.modality.Request)]
        named = [name for name in self.modality.conditions_named if name not in fields]
        for key in values:
            if key not in (*fields, *named):
                close = difflib.get_close_matches(key, [*fields, *named], n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                choices = ", ".join([*DEFAULTS, *fields, *named])
                raise ValueError(f"no option {key!r} to sample with.{hint} Choices: {choices}")
        if conditions := {name: values.pop(name) for name in named if name in values}:
            values["conditions"] = {**(values.get("conditions") or {}), **conditions}
        return self.modality.Request(**values)

    def sample(
        self,
        count: int | None = None,
        *,
        steps: int | None = None,
        sampler: Any = None,
        grid: Any = None,
        order: Any = None,
        schedule: Any = None,
        guidance: Any = None,
        caching: Any = None,
        posterior: Any = None,
        measurement: Any = None,
        inpainting: Any = None,
        inversion: int | None = None,
        temperature: float | Mapping[str, float] | None = None,
        noise: str | None = None,
        seed: int | Sequence[int] = 0,
        batch_size: int | None = None,
        precision: str | None = None,
        progress: bool = True,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: Generator | Sequence[Generator] | None = None,
        **request: Any,
    ) -> Samples:
        """Make samples. What is not given is the checkpoint's own setting.

        Sample i of a seed is the same in any batch; under ``accelerate launch`` or ``torchrun`` each process makes its
        share of the batches and all of them return all samples.

        Args:
            count: how many; by default 1, or as many as there are seeds.
            steps: of the sampler.
            sampler, grid, schedule: names, ``{"name": ..., options}`` or objects; a schedule other than the trained
                one is matched in log-SNR.
            order: in which order the frames of a sequence are made: a name, ``{"name": ..., options}`` or an object.
            guidance: a scale, or a name with options.
            caching: a name or ``{"name": ..., options}``: reuse what the network computed while little changes.
            posterior, measurement: names or ``{"name": ..., options}``: samples whose measurement is that of the input,
                such as super-resolution: ``posterior="pigdm", measurement="downsample", input="clip.mp4"``.
            inpainting: how known parts are kept: "known", or "repaint" for a network that has not learned with them.
            inversion: start from the noise behind the input, found by so many iterations a step (``editing.invert``),
                in place of drawn noise; for samplers without noise or history.
            temperature: a factor on the noise to start from, for all parts or by part; below 1 samples are more
                typical and less varied.
            noise: of a stochastic sampler's steps: "independent", or "brownian", one path for each sample, so that more
                steps come nearer to the same sample.
            seed: one number, or one for each sample (``Samples.seeds``).
            batch_size: the most samples at a time; changes speed and memory, not the samples (beyond rounding).
            precision: "fp32", or "bf16" (autocast).
            progress: show a bar, counting samples x steps.
            num_inference_steps, guidance_scale, generator: other names of ``steps``, ``guidance`` and ``seed``.
            request: what to make, in the modality's own words (its ``Request``).

        Raises:
            ValueError: unknown names or options, in one line that lists the choices.
        """
        started = time.perf_counter()
        asked = {
            "sampler": sampler,
            "steps": either("steps", steps, "num_inference_steps", num_inference_steps),
            "grid": grid,
            "order": order,
            "schedule": schedule,
            "guidance": either("guidance", guidance, "guidance_scale", guidance_scale),
            "caching": caching,
            "posterior": posterior,
            "measurement": measurement,
            "inpainting": inpainting,
            "inversion": inversion,
            "temperature": temperature,
            "noise": noise,
            "batch_size": batch_size,
            "precision": precision,
        }
        settings, wanted = self._settings({**asked, **request})
        seeds = sample_seeds(seed, count, generator)
        counts: Counter[str] = Counter()
        fresh, options = self._plan(settings, asked["steps"] is not None, counts)
        plans = self.modality.plans(wanted, seeds)
        batches = cut([plan.size for plan in plans], settings["batch_size"])
        rank, world = processes(self.device)
        mine = batches[rank::world]
        made: dict[int, Any] = {}
        with _bar(sum(map(len, mine)), len(options["grid"]) - 1, progress and rank == 0) as bar:
            for batch in mine:
                layout = self.modality.layout(wanted, [plans[i] for i in batch])
                own = [seeds[i] for i in batch]
                *_, (x0, _) = self._windows(fresh, layout, options, own, bar)
                made.update(zip(batch, self._decode(x0, layout), strict=True))
        artifacts, counts = gathered(made, counts, world)
        settings |= {"steps": len(options["grid"]) - 1, "seed": seed, "request": request}
        if counts["calls"]:  # of a cache
            settings["skipped"] = counts["skipped"] / counts["calls"]
        seconds = time.perf_counter() - started
        return Samples([artifacts[i] for i in range(len(seeds))], seeds, self.modality, settings, seconds)

    def stream(self, *, seed: int = 0, progress: bool = False, **options: Any) -> Iterator[Any]:
        """One sample piece by piece, each as soon as no later window changes it: long sounds and videos.

        Args:
            seed: joined, the pieces are the sample that ``sample(1, seed=seed, ...)`` makes.
            options: as for ``sample``.

        Raises:
            ValueError: as ``sample``; and where the sample is not finite.
        """
        settings, wanted = self._settings(options)
        fresh, plan = self._plan(settings, options.get("steps") is not None, Counter())
        seeds = sample_seeds(seed, 1, None)
        layout = self.modality.layout(wanted, self.modality.plans(wanted, seeds))
        finished = 0
        with _bar(1, len(plan["grid"]) - 1, progress) as bar:
            for x0, done in self._windows(fresh, layout, plan, seeds, bar):
                if not all(bool(part.isfinite().all()) for part in parts(x0).values()):
                    raise ValueError("the sample is not finite")
                if done > finished:
                    yield self.modality.decode_part(x0, layout, finished, done)[0]
                    finished = done
        if not finished:
            yield self.modality.decode(x0, layout)[0]

    def guided(self, **options: Any) -> Denoise:
        """The denoiser of one trajectory as ``sample`` would use it with these options: guided, in its precision."""
        return self._denoise(self._settings(options)[0], Counter())

    def _settings(self, options: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """The sampling settings, the checkpoint's own where none are given, and the request of the other options."""
        asked = {key: value for key, value in options.items() if key in DEFAULTS and value is not None}
        rest = {key: value for key, value in options.items() if key not in DEFAULTS}
        settings = combined(known_settings(self.config.get("sampling") or {}), asked)
        return settings, self.request(**{**of_input(settings, self.modality, rest), **rest})

    def _plan(
        self, settings: Mapping[str, Any], steps_asked: bool, counts: Counter[str]
    ) -> tuple[Callable[..., Denoise], dict[str, Any]]:
        """What makes the denoiser of each trajectory, and the options of ``trajectory``."""
        schedule = SCHEDULES.build(settings["schedule"] or self.denoiser.schedule)
        rule = GRIDS.build(settings["grid"])
        times_given = isinstance(rule, Tensor) and not steps_asked  # the default number of steps does not count then
        grid = make_grid(rule, None if times_given else settings["steps"], schedule)
        fresh = partial(self._denoise, settings, counts)
        fresh()  # what cannot be built is told before the work
        order = None if settings["order"] is None else ORDERS.build(settings["order"])
        named = {"schedule": schedule, "sampler": SAMPLERS.build(settings["sampler"]), "order": order}
        walk = Walk(settings, partial(self._denoise, {**settings, "guidance": None}, Counter()))
        return fresh, {"walk": walk, "grid": grid, **named, **{key: settings[key] for key in ("temperature", "noise")}}

    def _denoise(
        self,
        settings: Mapping[str, Any],
        counts: Counter[str],
        knowing: Callable[[Denoise], Denoise] = lambda denoise: denoise,
    ) -> Denoise:
        """The denoiser of one trajectory; its cache adds to ``counts``, and what is guided is ``knowing`` it."""
        denoiser = self.denoiser
        if settings["caching"] not in (None, {}):
            denoiser = cached(denoiser, settings["caching"], counts)
        denoise: Denoise = knowing(_InPrecision(denoiser, settings["precision"]))
        if settings["guidance"] not in (None, 1, {}):
            guidance = settings["guidance"]
            spec = {"name": "classifier_free", "scale": guidance} if isinstance(guidance, int | float) else guidance
            load = partial(self._other, settings["precision"])
            denoise = GUIDANCE.build(spec, denoise=denoise, modality=self.modality, load=load)
        return denoise

    def _other(self, precision: str, name: str) -> Denoise:
        """The denoiser of another checkpoint, which is to guide this one."""
        if name not in self._others:
            if self.open is None:
                raise ValueError(f"noiseloom.load finds checkpoints by name, such as {name!r}")
            self._others[name] = self.open(name)
        other = self._others[name]
        mine, theirs = ((one.config["modality"]["name"], one.config["schedule"]) for one in (self, other))
        if mine != theirs:
            raise ValueError(f"{name} cannot guide this checkpoint: it is of {theirs}, not {mine} (modality, schedule)")
        return _InPrecision(other.denoiser.to(self.device).eval(), precision)

    def _windows(
        self, fresh: Callable[..., Denoise], layout: Any, options: dict[str, Any], seeds: list[int], bar: Any
    ) -> Iterator[tuple[Sample, int]]:
        """The samples of one batch, on the CPU, after each of their windows; the first has the samples' own noise."""

        def run(part: Any, index: int, rows: Sequence[int]) -> Sample:
            own = [seeds[row] if index == 0 else mix(seeds[row], _WINDOW, index) for row in rows]
            if index > 0 and bar.total is not None:
                bar.total += len(own) * (len(options["grid"]) - 1)
            return self._run(fresh, part, options, own, bar)

        return self.modality.windows(layout, run)

    @torch.no_grad()
    def _run(
        self, fresh: Callable[..., Denoise], layout: Any, options: dict[str, Any], seeds: list[int], bar: Any
    ) -> Sample:
        """The samples of one window, on the CPU."""
        self.denoiser.eval()
        local, walk = move(layout, self.device), options["walk"]
        denoise = fresh(walk.knowing(local))
        denoise = denoise if local.wrap is None else local.wrap(denoise)
        x, told = local.start, {key: value for key, value in options.items() if key != "walk"}
        for step in walk(denoise, local, seeds=seeds, **told):
            x = step.x
            if step.index == 0 and bar.total is not None:  # an order takes more steps, a strength fewer
                bar.total += len(seeds) * (step.steps + 1 - len(options["grid"]))
            bar.update(len(seeds))
        return x.cpu()

    def _decode(self, x0: Sample, layout: Any) -> list[Any]:
        """Artifacts of a batch; a sample that is not finite is a failed one."""
        broken = torch.stack([~part.isfinite().flatten(1).all(1) for part in parts(x0).values()]).any(0).tolist()
        artifacts = self.modality.decode(map_parts(torch.nan_to_num, x0), layout)
        return [None if bad else artifact for artifact, bad in zip(artifacts, broken, strict=True)]


class _InPrecision:
    """A denoiser under autocast."""

    def __init__(self, denoiser: Denoiser, precision: str) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}. Choices: {', '.join(PRECISIONS)}")
        self.denoiser, self.schedule = denoiser, denoiser.schedule
        self.device, self.low = next(denoiser.parameters()).device.type, precision == "bf16"

    def __call__(self, x: Sample, t: Time, cond: Cond | None = None, previous: Sample | None = None) -> Estimate:
        with torch.autocast(self.device, torch.bfloat16, enabled=self.low):
            return self.denoiser(x, t, cond, previous)


def _bar(count: int, steps: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=count * steps, desc=f"{count} samples x {steps} steps", unit="", disable=not shown, leave=False)
