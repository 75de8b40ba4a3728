"""A stream of chunks against sampling every chunk behind all frames before it, which costs more and more."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.denoiser import Denoiser
from noiseloom.core.grids import make_grid
from noiseloom.core.guidance import Autoguidance, ClassifierFree, PerCondition
from noiseloom.core.randomness import generator, mix
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.streaming import stream
from tests.core.backbones.small import awake, random, same

STEPS, CHUNK, COND = 4, 2, {"label": torch.tensor([1, 3])}


def denoiser(**options: Any) -> Denoiser:
    patch = {"patch": (1, 2, 2), "channels_last": True, "labels": 5, "concat": {"given": 2}}
    return Denoiser(awake(**patch | {"causal": True} | options).double(), sigma_data=0.5)


def given(index: int) -> dict[str, Tensor]:
    """Conditions of a chunk: also some on its grid."""
    return COND | {"given": random(2, CHUNK, 4, 4, 2, seed=index).double()}


def behind(denoise: Any, clean: Tensor, seeds: tuple[int, int], index: int, cond: dict[str, Tensor]) -> Tensor:
    """The chunk after the frames ``clean``, sampled together with them as known frames."""
    noise = torch.stack([torch.randn(CHUNK, 4, 4, 3, generator=generator(mix(seed, index))) for seed in seeds])
    x = torch.cat((clean, noise.double()), dim=1)
    known = (torch.arange(x.shape[1]) < clean.shape[1]).expand(2, -1)
    options = {"schedule": denoise.schedule, "cond": cond, "known": known, "known_x0": x}
    for step in sample(
        SAMPLERS.build("dpmpp_2m"), denoise, x, make_grid("uniform", STEPS, denoise.schedule), **options
    ):
        x = step.x
    return x[:, clean.shape[1] :]


@pytest.mark.parametrize("attention", ["full", "factorised"])
@pytest.mark.parametrize(
    "guide",
    [
        lambda denoise: denoise,
        lambda denoise: ClassifierFree(denoise, 3.0, interval=(0.4, 2.0), keep=("given",)),
        lambda denoise: ClassifierFree(denoise, 1.0),
        lambda denoise: PerCondition(denoise, {"given": 2.0, "label": 1.5}),
    ],
    ids=["plain", "interval", "scale one", "per condition"],
)
def test_a_chunk_is_that_behind_all_frames_before_it(attention: str, guide: Any) -> None:
    denoise = guide(denoiser(attention=attention))
    seeds, clean, maps = (3, 8), torch.zeros(2, 0, 4, 4, 3).double(), []
    chunks = stream(denoise, torch.zeros(2, CHUNK, 4, 4, 3).double(), cond=given, seeds=seeds, steps=STEPS)
    for index, chunk in enumerate(islice(chunks, 3)):
        maps.append(given(index)["given"])
        expected = behind(denoise, clean, seeds, index, COND | {"given": torch.cat(maps, dim=1)})
        same(chunk, expected, 1e-10)
        clean = torch.cat((clean, chunk), dim=1)


def test_frames_before_the_first_chunk() -> None:
    denoise, clean = denoiser(), random(2, 3, 4, 4, 3).double()
    past = denoise.remember(clean, COND)
    (chunk,) = islice(stream(denoise, clean[:, :CHUNK], cond=COND, past=past, seeds=(5, 6), steps=STEPS), 1)
    same(chunk, behind(denoise, clean, (5, 6), 0, COND), 1e-10)


def test_a_window_bounds_what_is_seen() -> None:
    seen = []
    denoise, x = denoiser(), torch.zeros(2, CHUNK, 4, 4, 3).double()

    def record(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(0 if inputs[2].get("past") is None else inputs[2]["past"].shape[1])

    whole = list(islice(stream(denoise, x, seeds=1, steps=STEPS), 4))
    denoise.network.register_forward_pre_hook(record)
    chunks = list(islice(stream(denoise, x, seeds=1, steps=STEPS, window=3), 4))
    assert seen == [0] * STEPS + [2] * STEPS + [3] * 2 * STEPS
    assert all(torch.equal(a, b) for a, b in zip(whole[:2], chunks, strict=False))
    assert not torch.allclose(whole[2], chunks[2], atol=1e-3)


def test_samples_do_not_depend_on_their_batch() -> None:
    denoise, x = denoiser(), torch.zeros(3, CHUNK, 4, 4, 3).double()
    one, three = (list(islice(stream(denoise, x[:n], seeds=7, steps=STEPS), 2)) for n in (1, 3))
    for alone, together in zip(one, three, strict=True):
        same(alone, together[:1], 1e-10)
    assert not torch.allclose(one[0], one[1], atol=1e-2)


def test_refusals() -> None:
    denoise, x = denoiser(), torch.zeros(1, CHUNK, 4, 4, 3).double()
    with pytest.raises(ValueError, match="Autoguidance has no past"):
        stream(Autoguidance(denoise, denoise), x)
    with pytest.raises(ValueError, match="window"):
        stream(denoise, x, window=0)
    with pytest.raises(ValueError, match="Identity has no past"):
        Denoiser(nn.Identity()).remember(x)
    with pytest.raises(ValueError, match="causal"):
        list(islice(stream(denoiser(causal=False), x, steps=1), 2))
