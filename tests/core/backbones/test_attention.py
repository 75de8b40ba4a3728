"""Full and factorised attention, causal attention and its key-value cache, time in seconds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones import DiT
from noiseloom.core.backbones.layers import attend
from tests.core.backbones.small import SMALL, awake, differ, random, same

BOTH = pytest.mark.parametrize("attention", ["full", "factorised"])


def video(*shape: int, **options: Any) -> tuple[DiT, Tensor, Tensor]:
    """A network of video, a batch for it and a time for each frame."""
    net = awake(patch=(1, 2, 2), depth=4, **options)
    shape = shape or (2, 5, 3, 4)
    return net, random(shape[0], 3, *shape[1:]), torch.rand(shape[:2], generator=torch.Generator().manual_seed(0))


def reach(net: DiT, x: Tensor, t: Tensor, frame: int, **cond: Tensor) -> Tensor:
    """Which places a change of the last place of a frame reaches: (frames, height, width)."""
    changed = x.clone()
    changed[:, :, frame, -1, -1] += 1
    return (net(changed, t, cond) - net(x, t, cond)).abs().amax((0, 1)) > 1e-6


def test_factorised_attention_is_in_turn_in_space_and_time() -> None:
    net, x, t = video(1, 4, 4, 6, attention="factorised")
    assert [block.axes for block in net.blocks] == ["space", "time", "space", "time"]
    one, two = (awake(patch=(1, 2, 2), depth=depth, attention="factorised") for depth in (1, 2))
    own = torch.zeros(4, 4, 6, dtype=torch.bool)
    own[2] = True
    assert torch.equal(reach(one, x, t, 2), own)  # its frame only
    assert reach(two, x, t, 2).all()  # then everything


@BOTH
def test_constant_times_are_one_time(attention: str) -> None:
    net, x, _ = video(attention=attention, element_times=False)
    expected = net(x, torch.tensor([0.3, 0.3]))
    for shape in ((), (2,), (1,), (2, 5), (2, 1, 3), (2, 5, 3), (2, 5, 3, 4), (2, 1, 5, 1, 1), (2, 3, 5, 3, 4)):
        same(net(x, torch.full(shape, 0.3)), expected)


@BOTH
@pytest.mark.parametrize("causal", [False, True])
def test_times_of_frames_and_of_elements_agree(attention: str, causal: bool) -> None:
    net, x, t = video(attention=attention, causal=causal)
    expected = net(x, t)
    same(net(x, t[:, :, None].expand(2, 5, 3)), expected)
    same(net(x, t[:, :, None, None].expand(2, 5, 3, 4)), expected)
    differ(net(x, t.flip(1)), expected)


@BOTH
@pytest.mark.parametrize("causal", [False, True])
def test_padding_has_no_effect(attention: str, causal: bool) -> None:
    """Also where a whole frame or a whole place is padding, and where samples differ in size and in spacing."""
    net, x, t = video(2, 3, 4, 4, attention=attention, causal=causal, context_dim=6)
    cond = {"context": random(2, 4, 6), "spacing": torch.rand(2, 3) + 0.5}
    sizes, padded, mask = [(2, 4, 3), (3, 2, 4)], torch.full((2, 3, 5, 6, 7), math.nan), torch.zeros(2, 5, 6, 7).bool()
    for i, (a, b, c) in enumerate(sizes):
        padded[i, :, :a, :b, :c], mask[i, :a, :b, :c] = x[i, :, :a, :b, :c], True
    out = net(padded, torch.nn.functional.pad(t, (0, 2)), cond | {"mask": mask})
    assert out[~mask[:, None].expand(out.shape)].abs().max() == 0
    for i, (a, b, c) in enumerate(sizes):
        own = {name: value[i : i + 1] for name, value in cond.items()}
        same(out[i : i + 1, :, :a, :b, :c], net(x[i : i + 1, :, :a, :b, :c], t[i : i + 1, :a], own))


@BOTH
def test_causal_attention_sees_no_later_frame(attention: str) -> None:
    net, x, t = video(2, 5, 3, 4, attention=attention, causal=True, element_times=True, context_dim=6)
    for frame in (0, 2, 4):
        reached = reach(net, x, t, frame, context=random(2, 3, 6))
        assert reached[frame:].all()
        assert not reached[:frame].any()
        later = t.clone()
        later[:, frame] = 1 - later[:, frame]
        assert torch.equal(net(x, later)[:, :, :frame], net(x, t)[:, :, :frame])
    for length in (1, 3):
        same(net(x[:, :, :length], t[:, :length]), net(x, t)[:, :, :length])
    assert reach(awake(patch=(1, 2, 2), attention=attention), x, t, 4).all()


@BOTH
@pytest.mark.parametrize("chunks", [(1, 1, 1, 1, 1, 1), (2, 1, 3), (4, 2)])
@pytest.mark.parametrize("last", [False, True])
def test_the_past_is_as_good_as_the_whole(attention: str, chunks: tuple[int, ...], last: bool) -> None:
    """Chunk by chunk, clean frames behind, all else as in one causal pass."""
    options = {"self_condition": True, "element_times": True, "labels": 5, "context_dim": 6, "concat": {"given": 2}}
    net, x, t = video(2, 6, 3, 4, attention=attention, causal=True, channels_last=last, **options)
    net = net.double()
    x, given = (y.double().movedim(1, -1 if last else 1) for y in (x, random(2, 2, 6, 3, 4)))
    own = {"label": torch.tensor([1, -1]), "context": random(2, 4, 6), "spacing": torch.rand(2, 3)}
    own["mask"] = torch.ones(2, 1, 3, 4, dtype=torch.bool)
    own["mask"][0, :, :, 2:] = False
    axis, start, past = 1 if last else 2, 0, {}
    for frames in chunks:
        stop = start + frames
        noise = random(*x.shape, seed=start).double()
        mixed = torch.cat((x.narrow(axis, 0, start), noise.narrow(axis, start, 6 - start)), axis)
        times = torch.where(torch.arange(6) < start, 0, t.double())
        whole = net(mixed, times, own | {"given": given}, previous=x).narrow(axis, start, frames)
        cond = own | {"given": given.narrow(axis, start, frames)}
        now, before = noise.narrow(axis, start, frames), x.narrow(axis, start, frames)
        same(net(now, times[:, start:stop], cond | past, previous=before), whole, 1e-12)
        if start:
            differ(net(now, times[:, start:stop], cond, previous=before), whole)
        past = {"past": net.remember(before, cond | past, previous=before)}
        start = stop
    assert past["past"].shape == (2, 6, 2 if attention == "factorised" else 4, 2, 4, 32)


def test_the_past_may_be_cut_at_its_front() -> None:
    """With one layer that sees other frames, these alone decide: the same whichever frames came before them."""
    net = awake(patch=(1, 2, 2), depth=2, attention="factorised", causal=True)
    x, t = random(1, 3, 6, 4, 4), torch.tensor([0.4])
    past = net.remember(x[:, :, :5])
    expected = net(x[:, :, 5:], t, {"past": net.remember(x[:, :, 3:5])})
    same(net(x[:, :, 5:], t, {"past": past[:, -2:]}), expected)
    differ(net(x[:, :, 5:], t, {"past": past}), expected)


def test_refusals_of_a_past() -> None:
    net, x, t = video(causal=True)
    past = net.remember(x)
    for wrong in (past[:1], past[:, :, :2], past[..., :3, :]):
        with pytest.raises(ValueError, match="does not fit"):
            net(x, t, {"past": wrong})
    other = video()[0]
    for act in (lambda: other(x, t, {"past": past}), lambda: other.remember(x)):
        with pytest.raises(ValueError, match="causal"):
            act()
    with pytest.raises(ValueError, match="full, factorised"):
        DiT(3, (1, 2), attention="axial", **SMALL)
    with pytest.raises(ValueError, match="an axis of time"):
        DiT(3, (2,), attention="factorised", **SMALL)
    for options in ({"attention": "factorised"}, {"causal": True}):
        with pytest.raises(ValueError, match="in front"):
            DiT(3, (1, 2), in_context=True, context_dim=4, **options, **SMALL)
    with pytest.raises(ValueError, match="where the first axis ends"):
        DiT(3, (1, 2), causal=True, edges=(0,), **SMALL)


@BOTH
@pytest.mark.parametrize("causal", [False, True])
def test_twice_the_spacing_is_every_second_position(attention: str, causal: bool) -> None:
    """A clip at half the frame rate is the clip at the full rate with every second frame unknown."""
    spacing = (0.1, 1.0, 1.0)
    net, x, t = video(2, 4, 4, 4, attention=attention, causal=causal, spacing=spacing)
    slow = net(x, t, {"spacing": torch.tensor([[0.2, 1.0, 1.0]]).repeat(2, 1)})
    full, mask = torch.zeros(2, 3, 7, 4, 4), torch.zeros(2, 7, dtype=torch.bool)
    full[:, :, ::2], mask[:, ::2] = x, True
    times = torch.zeros(2, 7)
    times[:, ::2] = t
    same(net(full, times, {"mask": mask})[:, :, ::2], slow)
    differ(net(x, t), slow)


@BOTH
def test_state_and_initial_output_are_alike(attention: str) -> None:
    net = DiT(3, (1, 2, 2), attention=attention, causal=True, **SMALL)
    assert list(net.state_dict()) == list(DiT(3, (1, 2, 2), **SMALL).state_dict())
    assert net(random(2, 3, 3, 4, 4), torch.rand(2)).abs().max() == 0


@BOTH
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(attention: str, checkpointing: bool) -> None:
    net, x, t = video(attention=attention, causal=True, checkpointing=checkpointing, context_dim=6)
    net(
        x, t, {"context": random(2, 4, 6), "mask": torch.arange(5) < torch.tensor([[5], [3]])}
    ).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@BOTH
def test_compiles(attention: str) -> None:
    """Into one graph, also with a past; and each kind of block once, for all blocks and sizes."""
    torch._dynamo.reset()
    net, x, t = video(attention=attention, causal=True)
    past = {"past": net.remember(x)}
    same(torch.compile(net, fullgraph=True, backend="eager")(x, t, past), net(x, t, past))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    expected = [net(x, t), net(x[:, :, :3], t[:, :3])]
    for block in net.regions():
        block.compile(dynamic=True, fullgraph=True, backend="eager")
    same(net(x, t), expected[0])
    same(net(x[:, :, :3], t[:, :3]), expected[1])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == (2 if attention == "factorised" else 1)


@BOTH
def test_precisions(attention: str) -> None:
    net, x, t = video(attention=attention, causal=True)
    past = net.remember(x)
    expected = net(x, t, {"past": past})
    with torch.autocast("cpu", torch.bfloat16):
        automatic = net(x, t, {"past": net.remember(x)})
    scale = expected.std()
    same(automatic / scale, expected / scale, 0.15)
    low = net.bfloat16()
    out = low(x.bfloat16(), t, {"past": low.remember(x.bfloat16())})
    assert out.dtype == torch.bfloat16
    same(out.float() / scale, expected / scale, 0.2)


@pytest.mark.parametrize("keys", [16, 300])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_of_few_and_of_many_keys_in_bfloat16(keys: int, autocast: bool) -> None:
    q, k, v = (random(1, 2, n, 8, seed=n).requires_grad_() for n in (10, keys, keys))
    mask = random(10, keys) > 0
    expected = torch.autograd.grad(attend(q, k, v, mask).square().sum(), (q, k, v))
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = attend(*((q, k, v.bfloat16()) if autocast else (q.bfloat16(), k.bfloat16(), v.bfloat16())), mask)
    assert out.dtype == torch.bfloat16
    for a, b in zip(torch.autograd.grad(out.float().square().sum(), (q, k, v)), expected, strict=True):
        same(a / expected[0].std(), b / expected[0].std(), 0.1)
