"""From a layout to its trajectory: what is asked of an input besides keeping parts of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..conditioning import null
from ..denoiser import Denoise
from ..editing import INPAINTING, invert
from ..measurements import MEASUREMENTS, Measurement
from ..posterior import POSTERIORS
from ..samplers import Step
from ..samples import Sample, batch_size, map_parts


def of_input(settings: Mapping[str, Any], modality: Any, request: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a request whose input is measured or inverted: those with which a layout starts from all of it.

    Raises:
        ValueError: the modality's requests have no such input, or this one has none.
    """
    asked = [name for name in ("posterior", "measurement", "inversion") if settings[name] not in (None, {})]
    if not asked:
        return {}
    if (options := getattr(modality, "from_input", None)) is None:
        raise ValueError(f"{asked[0]} is for an input; what is known of these samples is kept exactly instead")
    if "input" in (field.name for field in dataclasses.fields(modality.Request)) and request.get("input") is None:
        raise ValueError(f"{asked[0]} is for an input: give it as input=FILE")
    return dict(options)


class Walk:
    """The steps of one batch.

    Args:
        settings: of sampling.
        plain: the denoiser without guidance, by which inputs are inverted.

    Raises:
        ValueError: a posterior without a measurement or the other way round, or what cannot be built.
    """

    def __init__(self, settings: Mapping[str, Any], plain: Callable[[], Denoise]) -> None:
        self.posterior, self.inversion, self.plain = settings["posterior"], settings["inversion"], plain
        measurement, guidance = settings["measurement"], settings["guidance"]
        self.keep = guidance.get("keep", ()) if isinstance(guidance, Mapping) else ()
        self.inpainting = INPAINTING.build(settings["inpainting"])
        self.measurement: Measurement | None = None
        if bool(self.posterior) != bool(measurement):
            raise ValueError("posterior and measurement go together: posterior=pigdm measurement=downsample")
        if self.posterior:
            if settings["caching"]:
                raise ValueError("a posterior needs the gradients of every call: leave out caching")
            self.measurement = MEASUREMENTS.build(measurement)
            self._given(
                plain(), y=torch.zeros(1, 1), measurement=self.measurement
            )  # what cannot be built is told before the work

    def __call__(self, denoise: Denoise, layout: Any, **options: Any) -> Iterator[Step]:
        """The steps of a layout, on its device; ``options`` are those of ``trajectory``."""
        place = {"space": layout.space, "strength": layout.strength}
        if self.inversion is not None:
            plain = self.plain() if layout.wrap is None else layout.wrap(self.plain())
            told = {name: options[name] for name in ("schedule", "sampler", "grid")}
            cond = null(layout.cond, self.keep)
            found = invert(plain, layout.start, iterations=self.inversion, cond=cond, **place, **told)
            options["start"] = found
        return self.inpainting(denoise, layout.start, cond=layout.cond, known=layout.known, **place, **options)

    def knowing(self, layout: Any) -> Callable[[Denoise], Denoise]:
        """What makes a denoiser know the measurement of a layout's input. Guidance goes around it, so that each of its
        estimates agrees with the measurement, and then what it extrapolates does."""
        if self.measurement is None:
            return lambda denoise: denoise
        look, space, count = self.measurement, layout.space, batch_size(layout.start)

        def seen(x0: Sample) -> Sample:  # padding is not; guidance asks for several copies of the batch
            copies = [look(space.project(copy)) for copy in x0.split(count)]
            return copies[0] if len(copies) == 1 else map_parts(lambda *parts: torch.cat(parts), *copies)

        return partial(self._given, y=seen(layout.start), measurement=seen)

    def _given(self, denoise: Denoise, y: Tensor | Sample, measurement: Measurement) -> Denoise:
        given: Denoise = POSTERIORS.build(self.posterior, denoise=denoise, y=y, measurement=measurement)
        return given
