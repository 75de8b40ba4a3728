"""A trained denoiser and its modality: load, sample, save, share."""

from __future__ import annotations

import dataclasses
import difflib
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Generator, Tensor

from ..denoiser import Denoise, Denoiser
from ..devices import compile_network, move
from ..grids import GRIDS, make_grid
from ..guidance import GUIDANCE
from ..predictions import Estimate
from ..randomness import mix
from ..samplers import SAMPLERS, trajectory
from ..samples import Cond, Sample, Time, map_parts, parts
from ..schedules import SCHEDULES
from ..training.config import PRECISIONS
from .card import model_card
from .pretrained import build_denoiser, find_pretrained, load_pretrained, save_pretrained
from .samples import Samples

DEFAULTS: dict[str, Any] = {
    "sampler": "dpmpp_2m",
    "steps": 50,
    "grid": "uniform",
    "schedule": None,
    "guidance": None,
    "temperature": 1.0,
    "batch_size": 128,
    "precision": "fp32",
}


class SampledModality(Protocol):
    """What a pipeline needs of a modality (the contract of modalities has it all)."""

    Request: ClassVar[type]

    @property
    def config(self) -> dict[str, Any]: ...
    def sizes(self, request: Any, seeds: Sequence[int]) -> list[int]: ...
    def layout(self, request: Any, sizes: Sequence[int]) -> Any: ...
    def decode(self, x0: Sample, layout: Any) -> list[Any]: ...


class Pipeline:
    """Samples of one trained model.

    Args:
        modality: what the samples are.
        denoiser: with the weights to sample from.
        config: the checkpoint's configuration (see ``pretrained``); its ``sampling`` holds the default settings.
    """

    def __init__(self, modality: SampledModality, denoiser: Denoiser, config: Mapping[str, Any] | None = None) -> None:
        self.modality, self.denoiser, self.config = modality, denoiser, dict(config or {})

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
        pipeline = cls(modality, build_denoiser(pretrained), pretrained.config)
        return pipeline.to(device or _best_device())

    def save_pretrained(self, directory: str | Path, *, name: str | None = None, text: str = "") -> Path:
        """Write ``config.json``, ``model.safetensors`` and a model card.

        Args:
            directory: made if needed.
            name: what others will load it by; by default the folder's name.
            text: what else the card says, in Markdown.
        """
        card = model_card(name or Path(directory).name, self.config, text)
        return save_pretrained(directory, self.denoiser, self.config, card)

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
        """The modality's request.

        Raises:
            ValueError: a field that it does not have; the message lists the choices.
        """
        fields = [field.name for field in dataclasses.fields(self.modality.Request)]
        for key in values:
            if key not in fields:
                close = difflib.get_close_matches(key, fields, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"no option {key!r} to sample with.{hint} Choices: {', '.join([*DEFAULTS, *fields])}")
        return self.modality.Request(**values)

    def sample(
        self,
        count: int | None = None,
        *,
        steps: int | None = None,
        sampler: Any = None,
        grid: Any = None,
        schedule: Any = None,
        guidance: Any = None,
        temperature: float | Mapping[str, float] | None = None,
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
            guidance: a scale, or a name with options.
            temperature: a factor on the noise to start from, for all parts or by part; below 1 samples are more
                typical and less varied.
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
            "steps": _alias("steps", steps, "num_inference_steps", num_inference_steps),
            "grid": grid,
            "schedule": schedule,
            "guidance": _alias("guidance", guidance, "guidance_scale", guidance_scale),
            "temperature": temperature,
            "batch_size": batch_size,
            "precision": precision,
        }
        asked = {key: value for key, value in asked.items() if value is not None}
        settings = DEFAULTS | known_settings(self.config.get("sampling") or {}) | asked
        seeds = _seeds(seed, count, generator)
        wanted = self.request(**request)
        denoise, options = self._plan(settings, "steps" in asked)
        sizes = self.modality.sizes(wanted, seeds)
        batches = _batches(sizes, settings["batch_size"])
        rank, world = _processes(self.device)
        mine = batches[rank::world]
        made: dict[int, Any] = {}
        with _bar(sum(map(len, mine)), len(options["grid"]) - 1, progress and rank == 0) as bar:
            for batch in mine:
                layout = self.modality.layout(wanted, [sizes[i] for i in batch])
                x0 = self._run(denoise, layout, options, [seeds[i] for i in batch], bar)
                made.update(zip(batch, self._decode(x0, layout), strict=True))
        artifacts = _gathered(made, world)
        settings |= {"steps": len(options["grid"]) - 1, "seed": seed, "request": request}
        seconds = time.perf_counter() - started
        return Samples([artifacts[i] for i in range(len(seeds))], seeds, self.modality, settings, seconds)

    def _plan(self, settings: Mapping[str, Any], steps_asked: bool) -> tuple[Denoise, dict[str, Any]]:
        """The denoiser to sample with, and the options of ``trajectory``."""
        schedule = SCHEDULES.build(settings["schedule"] or self.denoiser.schedule)
        rule = GRIDS.build(settings["grid"])
        times_given = isinstance(rule, Tensor) and not steps_asked  # the default number of steps does not count then
        grid = make_grid(rule, None if times_given else settings["steps"], schedule)
        denoise: Denoise = _InPrecision(self.denoiser, settings["precision"])
        if settings["guidance"] not in (None, 1, {}):
            guidance = settings["guidance"]
            spec = {"name": "classifier_free", "scale": guidance} if isinstance(guidance, int | float) else guidance
            denoise = GUIDANCE.build(spec, denoise=denoise)
        sampler, temperature = SAMPLERS.build(settings["sampler"]), settings["temperature"]
        return denoise, {"schedule": schedule, "sampler": sampler, "grid": grid, "temperature": temperature}

    @torch.no_grad()
    def _run(self, denoise: Denoise, layout: Any, options: dict[str, Any], seeds: list[int], bar: Any) -> Sample:
        """The samples of one batch, on the CPU."""
        self.denoiser.eval()
        local = move(layout, self.device)
        x = local.start
        place = {"space": local.space, "cond": local.cond, "known": local.known}
        for step in trajectory(denoise, x, seeds=seeds, **place, **options):
            x = step.x
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


def known_settings(sampling: Mapping[str, Any]) -> dict[str, Any]:
    """The sampling settings of a checkpoint.

    Raises:
        ValueError: a setting that does not exist.
    """
    if unknown := [key for key in sampling if key not in DEFAULTS]:
        raise ValueError(f"there is no sampling setting {', '.join(unknown)}. Choices: {', '.join(DEFAULTS)}")
    return dict(sampling)


def _alias(name: str, value: Any, other: str, same: Any) -> Any:
    if value is not None and same is not None:
        raise ValueError(f"{name} and {other} are the same option: give one of them")
    return same if value is None else value


def _seeds(
    seed: int | Sequence[int], count: int | None, generator: Generator | Sequence[Generator] | None
) -> list[int]:
    if generator is not None:
        seed = generator.initial_seed() if isinstance(generator, Generator) else [g.initial_seed() for g in generator]
    if isinstance(seed, int):
        count = 1 if count is None else count
        if count < 0:
            raise ValueError(f"count must not be negative, got {count}")
        return [mix(seed, index) >> 10 for index in range(count)]  # 53 bits: exact in JSON and in spreadsheets
    if count not in (None, len(seed)):
        raise ValueError(f"{count} samples need as many seeds, got {len(seed)}")
    return [int(one) for one in seed]


def _batches(sizes: Sequence[int], batch_size: int) -> list[list[int]]:
    """Samples of like size together. The cut does not depend on the number of processes, so neither do the samples."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    order = sorted(range(len(sizes)), key=lambda i: sizes[i])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def _processes(device: torch.device) -> tuple[int, int]:
    """This process's rank and the number of processes."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return 0, 1
    from accelerate import PartialState

    state = PartialState(cpu=device.type == "cpu")
    return state.process_index, state.num_processes


def _gathered(made: dict[int, Any], world: int) -> dict[int, Any]:
    if world == 1:
        return made
    from accelerate.utils import gather_object

    return {index: artifact for part in gather_object([made]) for index, artifact in part.items()}


def _bar(count: int, steps: int, shown: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(total=count * steps, desc=f"{count} samples x {steps} steps", unit="", disable=not shown, leave=False)


def _best_device() -> torch.device:
    return (
        torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
