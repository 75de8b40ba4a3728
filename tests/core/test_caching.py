"""First-block caching: what is skipped and what it gives, row by row, in every kind of DiT."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.backbones import DiT
from noiseloom.core.caching import CACHING, FirstBlock, cached
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.guidance import ClassifierFree
from noiseloom.core.samplers import generate, trajectory
from tests.core.backbones.small import awake
from tests.core.toy_modality import pipeline

DEEP = {"depth": 5, "channels_last": True}
NETWORKS: dict[str, dict[str, Any]] = {
    "labels": {"labels": 4},
    "factorised": {"labels": 4, "attention": "factorised", "depth": 6},
    "causal": {"labels": 4, "causal": True},
    "causal factorised": {"labels": 4, "causal": True, "attention": "factorised", "depth": 6},
    "context": {"labels": 4, "context_dim": 3},
    "in context": {"labels": 4, "context_dim": 3, "in_context": True},
    "given": {"labels": 4, "concat": {"given": 2}, "element_times": True},
}


def calm(channels: int, patch: tuple[int, ...], **options: Any) -> DiT:
    """A network that changes slowly with time, as trained ones do."""
    network = awake(channels, patch, **options).eval()
    with torch.no_grad():
        for parameter in network.time.parameters():
            parameter *= 0.1
    return network


def denoiser(**options: Any) -> Denoiser:
    return Denoiser(calm(2, (1, 2, 2), **DEEP | {"labels": 4} | options), "flow", "velocity", 1.0)


def conditions(batch: int, frames: int = 3) -> dict[str, Any]:
    random = torch.Generator().manual_seed(5)
    mask = torch.ones(batch, frames, 4, 4, dtype=torch.bool)
    mask[0, -1] = False
    return {
        "label": torch.arange(batch) % 4,
        "context": torch.randn(batch, 2, 3, generator=random),
        "given": torch.randn(batch, frames, 4, 4, 2, generator=random),
        "spacing": 1 + torch.rand(batch, 3, generator=random),
        "mask": mask,
    }


def start(batch: int, frames: int = 3) -> Tensor:
    return torch.zeros(batch, frames, 4, 4, 2)


class Stack(nn.Module):
    """Blocks that add given numbers to one token a sample; counts the samples that each block sees."""

    def __init__(self, blocks: int = 3) -> None:
        super().__init__()
        self.seen = [0] * blocks

    def run_blocks(self, h: Tensor, arguments: Sequence[tuple], real: Any = None, start: int = 0) -> Tensor:
        for i, (added,) in enumerate(arguments, start):
            self.seen[i] += len(h)
            h = h + added
        return h


def added(*values: Sequence[float]) -> list[tuple[Tensor]]:
    """For each block the numbers that it adds to each sample."""
    return [(torch.tensor(one)[:, None, None, None],) for one in values]


def test_a_residual_is_used_again_while_the_first_one_changes_by_less_than_the_threshold() -> None:
    stack = Stack()
    cache = FirstBlock(stack, threshold=0.1)
    h = torch.zeros(2, 1, 1, 1)
    assert cache(h, added([1.0, 1.0], [2.0, 3.0], [4.0, 5.0])).flatten().tolist() == [7.0, 9.0]
    # Within 10 % for the first sample only: it keeps 2 + 4 although its blocks would say otherwise now.
    out = cache(h + 1, added([1.09, 1.11], [20.0, 30.0], [40.0, 50.0]))
    assert out.flatten().tolist() == pytest.approx([1 + 1.09 + 6, 1 + 1.11 + 80])
    # The change is from the last full computation of each sample, 1 and 1.11, not from the last call.
    out = cache(h, added([1.18, 1.18], [0.0, 0.0], [0.0, 0.0]))
    assert out.flatten().tolist() == pytest.approx([1.18, 1.18 + 80])
    assert cache(h, added([1.2, 1.2], [0.0, 0.0], [0.0, 0.0])).flatten().tolist() == pytest.approx([1.2, 81.2])
    assert cache.counts == Counter(calls=8, skipped=4)
    assert stack.seen == [8, 4, 4]
    # Another number of rows is another trajectory, or another set of branches.
    assert cache(h[:1], added([1.0], [2.0], [3.0])).item() == 6


def test_every_group_counts_for_itself_and_padding_does_not() -> None:
    cache = FirstBlock(Stack(2), threshold=0.1)
    first = torch.ones(2, 3, 2, 1)  # three frames of two tokens
    h, rest = torch.zeros(2, 3, 2, 1), torch.ones(2, 3, 2, 1)
    real = torch.ones(2, 6, dtype=torch.bool)
    real[1, 2:4] = False
    cache(h, [(first,), (rest,)], real)
    moved = first.clone()
    moved[:, 1] = 1.2  # of all tokens 6.7 %, of its frame 20 %; padding in the second sample
    assert cache(h, [(moved,), (0 * rest,)], real)[:, 0, 0, 0].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_threshold_of_zero_is_no_cache_bit_by_bit(name: str) -> None:
    net, cond = denoiser(**NETWORKS[name]), conditions(2)
    options = {"cond": cond, "steps": 4, "seeds": 0, "order": "pyramid"}
    counts: Counter[str] = Counter()
    fresh = cached(net, {"name": "first_block", "threshold": 0.0}, counts)
    assert torch.equal(generate(fresh, start(2), **options), generate(net, start(2), **options))
    assert counts == Counter(calls=12, skipped=0)
    assert isinstance(net.network.run_blocks(torch.zeros(1, 1, 1, 32), []), Tensor)  # the network is as it was


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("order", [None, "pyramid"])
def test_a_sample_does_not_depend_on_its_batch(name: str, order: str | None) -> None:
    """Some rows are computed while others are skipped, and each is what it is alone; one of them has padding."""
    net, cond, seeds = denoiser(**NETWORKS[name]), conditions(3), [4, 5, 6]
    spec, options = {"name": "first_block", "threshold": 0.25}, {"steps": 12, "sampler": "euler", "order": order}
    counts: Counter[str] = Counter()
    together = generate(cached(net, spec, counts), start(3), cond=cond, seeds=seeds, **options)
    alone: Counter[str] = Counter()
    for row in range(3):
        own = {key: value[row : row + 1] for key, value in cond.items()}
        out = generate(cached(net, spec, alone), start(1), cond=own, seeds=[seeds[row]], **options)
        torch.testing.assert_close(together[row : row + 1], out, atol=1e-4, rtol=1e-4)
    assert counts == alone
    assert 0 < counts["skipped"] < counts["calls"]
    plain = generate(net, start(3), cond=cond, seeds=seeds, **options)
    assert 1e-5 < float((together - plain).abs().max()) < 1


def test_rows_are_skipped_apart_in_the_tests_above() -> None:
    """That the batches of the test above do mix rows that are computed with rows that are not."""
    net, sizes = denoiser(), []
    hook = net.network.blocks[-1].register_forward_pre_hook(lambda block, inputs: sizes.append(len(inputs[0])))
    spec = {"name": "first_block", "threshold": 0.25}
    generate(
        cached(net, spec, Counter()), start(3), cond=conditions(3), seeds=[4, 5, 6], steps=12, sampler="euler",
        order="pyramid",
    )  # fmt: skip
    hook.remove()
    assert {1, 3} <= set(sizes) or {2, 3} <= set(sizes)


def test_branches_of_guidance_have_caches_of_their_own() -> None:
    """Guided sampling in one call is that of two denoisers, each with its own cache."""
    net, cond, scale = denoiser(), {"label": torch.tensor([1, 3])}, 1.7
    spec = {"name": "first_block", "threshold": 0.3}
    counts: Counter[str] = Counter()
    guided = ClassifierFree(cached(net, spec, counts), scale)
    out = generate(guided, start(2), cond=cond, seeds=0, steps=10, sampler="euler")
    apart: Counter[str] = Counter()
    with_label, without = (cached(net, spec, apart) for _ in range(2))

    def by_hand(x: Tensor, t: Tensor) -> Tensor:
        weak = without(x, t, {"label": torch.full((2,), -1)}).x0
        return weak + scale * (with_label(x, t, cond).x0 - weak)

    torch.testing.assert_close(generate(by_hand, start(2), seeds=0, steps=10, sampler="euler"), out)
    assert counts == apart
    assert 0 < counts["skipped"] < counts["calls"] == 40


def test_two_trajectories_may_take_turns() -> None:
    net, spec = denoiser(), {"name": "first_block", "threshold": 0.3}
    cond = {"label": torch.tensor([1])}

    def walk(seed: int) -> Any:
        return trajectory(cached(net, spec, Counter()), start(1), cond=cond, seeds=seed, steps=6, sampler="euler")

    with torch.no_grad():
        alone = [[step.x for step in walk(seed)][-1] for seed in (0, 1)]
        for first, second in zip(walk(0), walk(1), strict=True):
            together = [first.x, second.x]
    assert torch.equal(together[0], alone[0])
    assert torch.equal(together[1], alone[1])


def test_the_error_grows_with_the_threshold_and_so_does_what_is_saved() -> None:
    net, cond = denoiser(), {"label": torch.tensor([0, 1, 2])}
    options = {"cond": cond, "seeds": 0, "steps": 30, "sampler": "euler"}
    plain, saved, errors = generate(net, start(3), **options), [], []
    for threshold in (0.02, 0.1, 0.4):
        counts: Counter[str] = Counter()
        out = generate(cached(net, {"name": "first_block", "threshold": threshold}, counts), start(3), **options)
        saved.append(counts["skipped"] / counts["calls"])
        errors.append(float((out - plain).norm() / plain.norm()))
    assert saved == sorted(saved)
    assert errors == sorted(errors)
    assert saved[-1] > 0.5
    assert errors[0] < 0.02


def test_what_cannot_be_cached_is_refused() -> None:
    plain = pipeline()
    with pytest.raises(ValueError, match="ExactGaussian has no blocks to cache"):
        plain.sample(1, caching="first_block", progress=False)
    with pytest.raises(ValueError, match="Choices: first_block"):
        cached(denoiser(), "first_blok", Counter())
    with pytest.raises(ValueError, match="must not be negative"):
        CACHING.build({"name": "first_block", "threshold": -1.0}, network=Stack())


def test_a_pipeline_caches_orders_and_tells() -> None:
    """The settings of a checkpoint and of a call; each batch and each window has a cache of its own."""

    class Frames(nn.Module):
        """The numbers of the toy modality as frames of one element."""

        def __init__(self) -> None:
            super().__init__()
            self.dit = calm(1, (1,), depth=4, channels_last=True, scalars=("level",))

        def run_blocks(self, *arguments: Any, **options: Any) -> Tensor:
            return DiT.run_blocks(self.dit, *arguments, **options)

        def forward(self, x: Tensor, t: Tensor, cond: Any, previous: Any = None) -> Tensor:
            dit: Any = self.dit
            dit.run_blocks = self.run_blocks
            return dit(x[..., None], t, {"level": cond["level"][:, 0], "mask": cond["mask"]})[..., 0]

    pipe = pipeline(sampling={"steps": 8, "caching": {"name": "first_block", "threshold": 0.2}, "order": "pyramid"})
    plain = pipeline(sampling={"steps": 8})
    network = Frames()
    pipe.denoiser.network = plain.denoiser.network = network
    samples = pipe.sample(5, length=6, window=3, progress=False)
    assert 0 < samples.settings["skipped"] < 1
    again = pipe.sample(5, length=6, window=3, batch_size=2, progress=False)
    assert [one for row in again for one in row] == pytest.approx([one for row in samples for one in row], abs=1e-4)
    assert again.settings["skipped"] == samples.settings["skipped"]
    off = {"caching": {"name": "first_block", "threshold": 0.0}, "order": "full_sequence"}
    unchanged = pipe.sample(3, length=6, progress=False, **off)
    assert list(unchanged) == list(plain.sample(3, length=6, progress=False))
    assert unchanged.settings["skipped"] == 0
    assert "skipped" not in plain.sample(1, progress=False).settings
    (streamed,) = [[n for piece in pipe.stream(length=6, window=3, seed=0) for n in piece]]
    assert streamed == pytest.approx(samples[0], abs=1e-4)
