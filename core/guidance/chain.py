"""Guidance around guidance, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..denoiser import Denoise
from .guidance import GUIDANCE


@GUIDANCE.register("chain")
def chain(
    denoise: Denoise,
    links: Sequence[str | Mapping[str, Any]],
    modality: Any = None,
    load: Callable[[str], Denoise] | None = None,
) -> Any:
    """Several guidances, each around those before it: from the denoiser outwards.

    Args:
        denoise: the denoiser to guide.
        links: names or {"name": ..., options}.
        modality: what the samples are, for energies.
        load: finds the denoiser of a checkpoint by its name.

    Raises:
        ValueError: no links.
    """
    if isinstance(links, str | Mapping) or not links:
        raise ValueError(f"a chain needs links, [GUIDANCE, ...], not {links!r}")
    for link in links:
        denoise = GUIDANCE.build(link, denoise=denoise, modality=modality, load=load)
    return denoise
