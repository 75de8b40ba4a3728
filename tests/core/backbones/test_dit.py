from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones import NETWORKS, DiT
from noiseloom.core.conditioning import drop
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.guidance import ClassifierFree, PerCondition
from noiseloom.core.randomness import sample_generators
from tests.core.backbones.small import SMALL, awake, differ, random, same

EVERYTHING = {"labels": 5, "scalars": ("pitch", "level"), "context_dim": 6, "self_condition": True}


def conditions(batch: int) -> dict[str, Tensor]:
    return {
        "label": torch.arange(batch) % 5,
        "pitch": random(batch, seed=1),
        "level": random(batch, seed=2),
        "context": random(batch, 4, 6, seed=3),
        "context_mask": torch.tensor([[True, True, True, False]]).repeat(batch, 1),
    }


@pytest.mark.parametrize(("patch", "grid"), [((2,), (9,)), ((1, 2), (5, 7)), ((1, 2, 2), (3, 4, 5))])
def test_output_is_zero_at_initialisation(patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    net = DiT(3, patch, **SMALL, **EVERYTHING)
    x = random(2, 3, *grid)
    out = net(x, torch.rand(2), conditions(2), previous=x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.abs().max() == 0


@pytest.mark.parametrize(("patch", "grid"), [((2,), (9,)), ((1, 2), (5, 7)), ((1, 2, 2), (3, 4, 5))])
def test_elements_return_to_their_places(patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    """With the blocks switched off, a change reaches its own patch, all of it, and nothing else."""
    net = awake(patch=patch)
    for block in net.blocks:
        torch.nn.init.zeros_(block.modulation.weight)
        torch.nn.init.zeros_(block.modulation.bias)
    x, t = random(1, 3, *grid), torch.tensor([0.3])
    at = tuple(n - 1 for n in grid)
    changed = x.clone()
    changed[(0, 1, *at)] += 1.0
    moved = (net(changed, t) - net(x, t)).abs().amax((0, 1)) > 1e-6
    expected = torch.zeros(grid, dtype=torch.bool)
    expected[tuple(slice(i // p * p, (i // p + 1) * p) for i, p in zip(at, patch, strict=True))] = True
    assert torch.equal(moved, expected)


@pytest.mark.parametrize(("patch", "frames"), [(1, 6), (2, 6), (4, 6)])
@pytest.mark.parametrize("in_context", [False, True])
def test_padding_has_no_effect(patch: int, frames: int, in_context: bool) -> None:
    net = awake(patch=(patch,), **EVERYTHING, in_context=in_context)
    cond, t, x = conditions(2), torch.tensor([0.2, 0.7]), random(2, 3, frames)
    alone = net(x, t, cond, previous=x)
    for length, content in ((8, 5.0), (8, math.nan), (13, -1.0)):
        mask = (torch.arange(length) < frames).expand(2, -1)
        padded = torch.full((2, 3, length), content)
        padded[..., :frames] = x
        for time in (t, torch.where(mask, t[:, None], math.nan)):
            out = net(padded, time, cond | {"mask": mask}, previous=padded)
            same(out[..., :frames], alone)
            assert out[..., frames:].abs().max() == 0


def test_padding_differs_by_sample_and_axis() -> None:
    net = awake(patch=(1, 2, 2))
    sizes = [(2, 4, 3), (3, 3, 6)]
    x, t, mask = random(2, 3, 3, 4, 6), torch.tensor([0.2, 0.7]), torch.zeros(2, 3, 4, 6, dtype=torch.bool)
    for i, (a, b, c) in enumerate(sizes):
        mask[i, :a, :b, :c] = True
    out = net(x, t, {"mask": mask})
    for i, (a, b, c) in enumerate(sizes):
        same(out[i : i + 1, :, :a, :b, :c], net(x[i : i + 1, :, :a, :b, :c], t[i : i + 1]))
    for aligned in (mask[:, None], mask[:, None].expand(x.shape)):
        assert torch.equal(out, net(x, t, {"mask": aligned}))


def test_positions_are_relative() -> None:
    """A clip gives the same output wherever it lies among padding."""
    net = awake(patch=(1,))
    x, t = random(1, 3, 5), torch.tensor([0.4])
    for start in (0, 4):
        longer, mask = torch.zeros(1, 3, 9), torch.zeros(1, 9, dtype=torch.bool)
        longer[..., start : start + 5], mask[:, start : start + 5] = x, True
        same(net(longer, t, {"mask": mask})[..., start : start + 5], net(x, t))
    differ(net(x.flip(-1), t).flip(-1), net(x, t))  # but not absent


def test_a_sample_of_nothing_is_zero() -> None:
    net = awake(patch=(2,))
    mask = torch.tensor([[False] * 6, [True] * 6])
    out = net(random(2, 3, 6), torch.rand(2), {"mask": mask})
    out.sum().backward()
    assert out[0].abs().max() == 0
    assert out[1].abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


@pytest.mark.parametrize("in_context", [False, True])
def test_constant_times_are_one_time(in_context: bool) -> None:
    net = awake(patch=(1, 2, 2), context_dim=6, in_context=in_context)
    x, cond = random(2, 3, 3, 4, 5), {"context": random(2, 4, 6)}
    expected = net(x, torch.tensor([0.3, 0.3]), cond)
    for shape in ((), (2,), (1,), (2, 3), (2, 1, 4), (2, 3, 4, 5), (2, 1, 3, 1, 1), (2, 3, 3, 4, 5)):
        same(net(x, torch.full(shape, 0.3), cond), expected)
    same(net(x, 0.3, cond), expected)
    differ(net(x, torch.tensor([0.3, 0.6]), cond), expected)


def test_times_of_frames() -> None:
    net = awake(patch=(1, 2, 2))
    x, t = random(2, 3, 3, 4, 5), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    expected = net(x, t)
    same(net(x, t[:, :, None, None].expand(2, 3, 4, 5)), expected)  # by the token: other groups, same result
    same(net(x, t[:, None, :, None, None]), expected)
    differ(net(x, t.flip(1)), expected)


def test_a_patch_has_the_highest_time_of_its_elements() -> None:
    net = awake(patch=(2,))
    x = random(1, 3, 5)
    same(net(x, torch.tensor([[0.1, 0.2, 0.0, 0.7, 0.4]])), net(x, torch.tensor([[0.2, 0.2, 0.7, 0.7, 0.4]])), 0)


def test_channels_last() -> None:
    nets = awake(patch=(1, 2), self_condition=True), awake(patch=(1, 2), self_condition=True, channels_last=True)
    x, t, mask = random(2, 3, 4, 5), torch.rand(2, 4), torch.rand(2, 4, 5) < 0.7
    last = x.movedim(1, -1)
    expected = nets[0](x, t, {"mask": mask}, previous=2 * x).movedim(1, -1)
    assert torch.equal(nets[1](last, t, {"mask": mask}, previous=2 * last), expected)
    for aligned in (mask[..., None], mask[..., None].expand(last.shape)):
        assert torch.equal(nets[1](last, t, {"mask": aligned}, previous=2 * last), expected)


def test_modulation_is_computed_once_for_each_time() -> None:
    net = awake(patch=(1, 2, 2))
    x, shapes = random(2, 3, 3, 4, 4), []
    net.blocks[0].modulation.register_forward_pre_hook(lambda _, inputs: shapes.append(inputs[0].shape[:3]))
    net(x, torch.rand(2))
    net(x, torch.rand(2, 3))
    net(x, torch.rand(2, 3, 4, 4))
    assert shapes == [(2, 1, 1), (2, 3, 1), (2, 12, 1)]


@pytest.mark.parametrize("in_context", [False, True])
def test_not_given_is_absent(in_context: bool) -> None:
    net = awake(**EVERYTHING, in_context=in_context)
    x, t = random(3, 3, 4, 4), torch.rand(3)
    absent = {
        "label": torch.full((3,), -1),
        "pitch": torch.full((3,), math.nan),
        "level": torch.full((3,), math.nan),
        "context": torch.full((3, 4, 6), math.nan),
    }
    same(net(x, t), net(x, t, absent))
    same(net(x, t), net(x, t, absent | {"context": random(3, 4, 6), "context_mask": torch.zeros(3, 4).bool()}))
    # ... sample by sample, and without harm to its neighbours
    given = conditions(3)
    mixed = {
        name: torch.stack((value[0], absent[name][1], value[2])) for name, value in given.items() if name in absent
    }
    expected = net(x, t, given | {"context_mask": torch.ones(3, 4).bool()})
    same(net(x, t, mixed)[[0, 2]], expected[[0, 2]])
    same(net(x, t, mixed)[1], net(x, t)[1])


@pytest.mark.parametrize("in_context", [False, True])
def test_every_condition_has_an_effect(in_context: bool) -> None:
    net = awake(**EVERYTHING, in_context=in_context)
    x, t, cond = random(2, 3, 4, 4), torch.rand(2), conditions(2)
    expected = net(x, t, cond)
    for name in ("label", "pitch", "level", "context", "context_mask"):
        differ(net(x, t, {key: value for key, value in cond.items() if key != name}), expected)
    differ(net(x, t, cond, previous=x), expected)
    same(net(x, t, cond, previous=torch.zeros_like(x)), expected, 0)


def test_context_beyond_its_mask_has_no_effect() -> None:
    net = awake(context_dim=6)
    x, t, cond = random(2, 3, 4, 4), torch.rand(2), conditions(2)
    other = cond["context"].clone()
    other[:, 3] = math.nan
    same(net(x, t, cond | {"context": other}), net(x, t, cond))
    same(net(x, t, {"context": other}), net(x, t, cond))  # a NaN vector is not given


def test_several_labels() -> None:
    net = awake(labels=5)
    x, t = random(2, 3, 4, 4), torch.rand(2)
    same(net(x, t, {"label": torch.tensor([[3, 1], [0, 2]])}), net(x, t, {"label": torch.tensor([[1, 3], [2, 0]])}))
    same(net(x, t, {"label": torch.tensor([[3, 3], [0, 0]])}), net(x, t, {"label": torch.tensor([3, 0])}))
    same(net(x, t, {"label": torch.full((2, 2), -1)}), net(x, t))
    differ(net(x, t, {"label": torch.tensor([[3, 1], [0, 2]])}), net(x, t, {"label": torch.tensor([3, 0])}))


def test_what_is_not_configured_is_ignored() -> None:
    net = awake()
    x, t = random(2, 3, 4, 4), torch.rand(2)
    same(net(x, t, conditions(2), previous=x), net(x, t), 0)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("options", [{}, {"self_condition": True}, {"element_times": True, "self_condition": True}])
def test_maps_are_further_channels(last: bool, options: dict[str, Any]) -> None:
    """A sample whose grid patches do not divide, with padding and a time for each frame; NaN is not given."""
    net = awake(patch=(1, 2, 2), concat={"given": 2, "layout": 1}, channels_last=last, **options)
    at = -1 if last else 1
    x, given, layout = (random(3, n, 2, 3, 5, seed=n).movedim(1, at) for n in (3, 2, 1))
    t, mask = torch.rand(3, 2), torch.ones(3, 2, 3, 5, dtype=torch.bool)
    mask[0, :, 2], mask[1, 1] = False, False
    cond = {"given": given, "layout": layout, "mask": mask}
    expected = net(x, t, cond, previous=x)
    for name in ("given", "layout"):
        differ(net(x, t, {key: value for key, value in cond.items() if key != name}, previous=x), expected)
        absent = net(x, t, cond | {name: torch.full_like(cond[name], math.nan)}, previous=x)
        same(absent, net(x, t, cond | {name: torch.zeros_like(cond[name])}, previous=x), 0)
        same(absent, net(x, t, {key: value for key, value in cond.items() if key != name}, previous=x), 0)
    padded = torch.where(mask.unsqueeze(at), given, math.nan)  # what lies in the padding says nothing
    same(net(x, t, cond | {"given": padded}, previous=x), expected, 0)
    padded[(2, ..., 0) if last else (2, 0)][1, 2, 3] = math.nan  # one NaN at a real element takes all
    out = net(x, t, cond | {"given": padded}, previous=x)
    same(out[:2], expected[:2])
    same(out[2], net(x, t, {"layout": layout, "mask": mask}, previous=x)[2])


def test_maps_are_dropped_and_guided_by_name() -> None:
    net = awake(channels=2, patch=(1, 2), channels_last=True, labels=5, concat={"given": 3})
    x, t = random(4, 3, 4, 2), torch.rand(4, dtype=torch.float64)
    cond = {"given": random(4, 3, 4, 3), "label": torch.arange(4)}
    dropped = drop(cond, {"given": 0.5}, sample_generators(0, range(4)))
    gone = dropped["given"].isnan().flatten(1).any(1)
    assert 0 < gone.sum() < 4
    assert torch.equal(dropped["given"][~gone], cond["given"][~gone])
    without = net(x, t, cond | {"given": torch.zeros_like(cond["given"])})
    same(net(x, t, dropped), torch.where(gone[:, None, None, None], without, net(x, t, cond)))

    denoise = Denoiser(net)
    none, some = (denoise(x, t, one).x0 for one in ({"label": cond["label"]}, cond))
    same(PerCondition(denoise, {"given": 3.0})(x, t, cond).x0, none + 3 * (some - none))
    same(ClassifierFree(denoise, 3.0, keep=("label",))(x, t, cond).x0, none + 3 * (some - none))


def test_a_map_on_another_grid_is_refused() -> None:
    net = awake(concat={"given": 2})
    with pytest.raises(ValueError, match=r"given .*\(2, 2, 4, 5\).* fit \(2, 2, 4, 4\)"):
        net(random(2, 3, 4, 4), 0.5, {"given": random(2, 2, 4, 5)})


def test_spacing_of_a_sample() -> None:
    net = awake(patch=(1, 2), spacing=(0.1, 1.0), wavelengths=[(0.3, 30.0), (6.0, 600.0)])
    x, t = random(2, 3, 4, 6), torch.rand(2)
    spacing = torch.tensor([[0.1, 1.0], [math.nan, math.nan]])
    same(net(x, t, {"spacing": spacing}), net(x, t))
    faster = net(x, t, {"spacing": torch.tensor([[0.1, 1.0], [0.05, 1.0]])})
    same(faster[0], net(x, t)[0])
    differ(faster[1], net(x, t)[1])


@pytest.mark.parametrize("in_context", [False, True])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(in_context: bool, checkpointing: bool) -> None:
    net = awake(**EVERYTHING, in_context=in_context, checkpointing=checkpointing)
    x, cond = random(2, 3, 4, 5), conditions(2)
    cond |= {
        "label": torch.tensor([2, -1]),
        "pitch": torch.tensor([0.5, math.nan]),
        "level": torch.tensor([math.nan, 1]),
    }
    cond["mask"] = torch.tensor([[True] * 4, [True, True, False, False]])
    net(x, torch.rand(2), cond, previous=x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_checkpointing_changes_nothing() -> None:
    nets = awake(), awake(checkpointing=True)
    x, t = random(2, 3, 4, 4), torch.rand(2)
    for net in nets:
        net(x, t).square().mean().backward()
    for a, b in zip(*(net.parameters() for net in nets), strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize(
    ("options", "time"),
    [({}, (2,)), (EVERYTHING, (2, 3)), (EVERYTHING | {"in_context": True, "checkpointing": True}, (2,))],
    ids=["plain", "everything", "in context"],
)
def test_compiles_into_one_graph(options: dict[str, Any], time: tuple[int, ...]) -> None:
    torch._dynamo.reset()
    net = awake(patch=(1, 2), depth=1, **options)
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    x, t = random(2, 3, 3, 5), torch.rand(time)
    cond = conditions(2) | {"mask": torch.tensor([[True, True, True], [True, True, False]])} if options else {}
    same(compiled(x, t, cond), net(x, t, cond))
    gradients = []
    for network in (compiled, net):
        net.zero_grad()
        network(x, t, cond).square().mean().backward()
        gradients.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    for a, b in zip(*gradients, strict=True):
        same(a, b)


@pytest.mark.parametrize("in_context", [False, True])
def test_samples_do_not_depend_on_their_batch(in_context: bool) -> None:
    net = awake(**EVERYTHING, in_context=in_context)
    x, t, cond = random(5, 3, 4, 4), torch.rand(5), conditions(5)
    together = net(x, t, cond)
    for i in range(5):
        same(together[i : i + 1], net(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()}))


@pytest.mark.parametrize(("dtype", "atol"), [(torch.bfloat16, 0.15), (torch.float64, 1e-4)])
def test_precisions(dtype: torch.dtype, atol: float) -> None:
    net = awake(**EVERYTHING)
    x, t, cond = random(2, 3, 4, 4), torch.tensor([0.2, 0.9], dtype=torch.float64), conditions(2)
    expected = net(x, t, cond)
    scale = expected.std().item()
    with torch.autocast("cpu", torch.bfloat16):
        automatic = net(x, t, cond)
    assert automatic.dtype == torch.float32
    same(automatic / scale, expected / scale, 0.15)
    out = net.to(dtype)(x.to(dtype), t, {k: v.to(dtype) if v.is_floating_point() else v for k, v in cond.items()})
    assert out.dtype == dtype
    same(out.float() / scale, expected / scale, atol)
    same(net(x, t, cond) / scale, expected / scale, 0.15)  # a sample of another precision than the weights


def test_sizes_and_registry() -> None:
    net = NETWORKS.build({"name": "dit", "channels": 4, "patch": [2, 2], "size": "B", "depth": 1})
    assert net.embed.out_features == 768
    assert net.blocks[0].attention.heads == 12
    assert len(net.blocks) == 1
    with pytest.raises(ValueError, match="S, B, L, XL"):
        DiT(3, size="M")
    with pytest.raises(ValueError, match="no option 'widht'"):
        NETWORKS.build({"name": "dit", "channels": 4, "widht": 3})
    with pytest.raises(ValueError, match="5 heads"):
        DiT(3, width=32, heads=5)
    with pytest.raises(ValueError, match="2 axes"):
        DiT(3, spacing=(1.0, 1.0), wavelengths=[(1.0, 2.0)])


@pytest.mark.parametrize(
    ("x", "t", "mask", "message"),
    [
        ((2, 4, 4, 4), (2,), None, "expected 2 axes and 3 channels at 1"),
        ((2, 3, 4), (2,), None, "expected 2 axes"),
        ((2, 3, 4, 4), (3,), None, r"t of shape \(3,\) does not fit 2 samples of \(4, 4\)"),
        ((2, 3, 4, 4), (2, 3), None, "t of shape"),
        ((2, 3, 4, 4), (2, 3, 4, 5), None, "t of shape"),
        ((2, 3, 4, 4), (2,), (2, 5), "mask of shape"),
        ((2, 3, 4, 4), (2,), (2, 1, 4, 4, 1), "mask of shape"),
    ],
)
def test_errors(x: tuple[int, ...], t: tuple[int, ...], mask: tuple[int, ...] | None, message: str) -> None:
    cond = {} if mask is None else {"mask": torch.ones(mask).bool()}
    with pytest.raises(ValueError, match=message):
        DiT(3, **SMALL)(torch.zeros(x), torch.zeros(t), cond)


def test_element_times_reach_the_network_element_by_element() -> None:
    torch.manual_seed(0)
    net = awake(channels=3, patch=(2,), channels_last=True, element_times=True).double()
    x, per_sample = torch.randn(2, 8, 3).double(), torch.tensor([0.5, 0.9]).double()
    full = per_sample[:, None, None].expand(2, 8, 3).clone()
    alike = net(x, per_sample)
    assert torch.allclose(net(x, full), alike)
    assert torch.allclose(net(x, full[..., :1]), alike)
    full[:, 2, 1] = 0  # one element known: the sample's level stays, its token hears of it
    assert (net(x, full) - alike).abs().amax() > 1e-4


def test_padding_has_no_effect_on_element_times() -> None:
    torch.manual_seed(0)
    net = awake(channels=3, patch=(1,), channels_last=True, element_times=True).double()
    x, t = torch.randn(1, 5, 3).double(), torch.rand(1, 5, 3).double() * 0.5
    alone = net(x, t)
    mask = torch.arange(9)[None] < 5
    padded_t = torch.cat([t, torch.ones(1, 4, 3).double()], 1)
    padded = net(torch.cat([x, torch.randn(1, 4, 3).double()], 1), padded_t, {"mask": mask})
    assert torch.allclose(padded[:, :5], alone)


def test_labels_vectors_and_numbers_each_have_their_say() -> None:
    torch.manual_seed(0)
    net = awake(labels={"digit": 3, "voice": 2}, vectors={"text": 4}).double()
    x, t = torch.randn(2, 3, 8, 8).double(), torch.tensor([0.3, 0.8]).double()
    nothing = net(x, t)
    absent = {"digit": torch.tensor([-1, -1]), "voice": torch.tensor([-1, -1]), "text": torch.full((2, 4), torch.nan)}
    assert torch.allclose(net(x, t, absent), nothing)
    given = {"digit": torch.tensor([0, 2]), "voice": torch.tensor([1, 0]), "text": torch.randn(2, 4).double()}
    for name, value in given.items():
        assert (net(x, t, {name: value}) - nothing).abs().amax() > 1e-4, name
