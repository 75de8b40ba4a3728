from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from noiseloom.core.backbones import NETWORKS, UNet
from noiseloom.core.backbones.unet_blocks import GroupNorm, ResidualBlock
from noiseloom.core.denoiser import Denoiser
from noiseloom.core.pipeline import pretrained
from noiseloom.core.samplers import generate
from noiseloom.core.schedules import SCHEDULES
from tests.core.backbones.small import differ, random, same

SMALL: dict[str, Any] = {"width": 16, "heads": 2, "depth": 3}  # of 8 features: enough for rotary in 3 axes
EVERYTHING = {"labels": 5, "scalars": ("pitch", "level"), "vectors": {"text": 3}, "context_dim": 6}
GRIDS = [((2,), (9,)), ((1, 2), (5, 7)), ((1, 1, 1), (3, 4, 5))]


def awake(channels: int = 3, patch: tuple[int, ...] = (1,), **options: Any) -> UNet:
    """A small network in float64 whose zeros are broken; the same for the same options."""
    torch.manual_seed(0)
    net = UNet(channels, patch, **SMALL | options).double()
    with torch.no_grad():
        for i, parameter in enumerate(net.parameters()):
            parameter += 0.1 * random(*parameter.shape, seed=i)
    return net


def noisy(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).double()


def conditions(batch: int) -> dict[str, Tensor]:
    return {
        "label": torch.arange(batch) % 5,
        "pitch": noisy(batch, seed=1),
        "level": noisy(batch, seed=2),
        "text": noisy(batch, 3, seed=4),
        "context": noisy(batch, 4, 6, seed=3),
        "context_mask": torch.tensor([[True, True, True, False]]).repeat(batch, 1),
    }


@pytest.mark.parametrize(("patch", "grid"), GRIDS)
def test_output_is_zero_at_initialisation(patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    net = UNet(3, patch, **SMALL, **EVERYTHING, self_condition=True, edges=[0], two_times=True)
    x = random(2, 3, *grid)
    cond = {name: value.float() if value.is_floating_point() else value for name, value in conditions(2).items()}
    out = net(x, torch.rand(2), cond | {"target": torch.zeros(2)}, previous=x)
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert out.abs().max() == 0
    residuals = (module for module in net.modules() if isinstance(module, ResidualBlock))
    h = random(2, 16, *grid)
    first = next(residuals)
    c = torch.ones(2, *[1] * len(grid), first.modulation.in_features)
    torch.testing.assert_close(first(h, c), h * math.sqrt(0.5))  # residuals begin at nothing


@pytest.mark.parametrize(("patch", "grid"), GRIDS)
def test_any_size_and_every_element_sees_every_other(patch: tuple[int, ...], grid: tuple[int, ...]) -> None:
    net, x = awake(patch=patch), noisy(1, 3, *grid)
    changed = x.clone()
    changed[(0, 1, *[-1] * len(grid))] += 1.0
    moved = (net(changed, 0.3) - net(x, 0.3)).abs().amax((0, 1))
    assert (moved > 1e-6).all()


@pytest.mark.parametrize("stride", [2, 3])
@pytest.mark.parametrize("patch", [1, 2])
@pytest.mark.parametrize("frames", [5, 8, 11])
def test_padding_has_no_effect(patch: int, frames: int, stride: int) -> None:
    net = awake(patch=(patch,), **EVERYTHING, self_condition=True, stride=stride, attention_levels=(0, 2))
    cond, t, x = conditions(2), torch.tensor([0.2, 0.7]), noisy(2, 3, frames)
    alone = net(x, t, cond, previous=x)
    for length, content in ((12, 5.0), (12, math.nan), (23, -1.0)):
        mask = (torch.arange(length) < frames).expand(2, -1)
        padded = torch.full((2, 3, length), content, dtype=torch.float64)
        padded[..., :frames] = x
        for time in (t, torch.where(mask, t[:, None], math.nan)):
            out = net(padded, time, cond | {"mask": mask}, previous=padded)
            torch.testing.assert_close(out[..., :frames], alone, atol=1e-9, rtol=1e-7)
            assert out[..., frames:].abs().max() == 0


@pytest.mark.parametrize("stride", [2, (1, 2, 2)])
def test_padding_differs_by_sample_and_axis(stride: Any) -> None:
    net = awake(patch=(1, 1, 1), stride=stride, multipliers=(1, 2))
    sizes = [(2, 4, 3), (3, 3, 6)]
    x, t, mask = noisy(2, 3, 3, 4, 6), torch.rand(2, 3), torch.zeros(2, 3, 4, 6, dtype=torch.bool)
    for i, (a, b, c) in enumerate(sizes):
        mask[i, :a, :b, :c] = True
    out = net(x, t, {"mask": mask})
    for i, (a, b, c) in enumerate(sizes):
        alone = net(x[i : i + 1, :, :a, :b, :c], t[i : i + 1, :a])
        torch.testing.assert_close(out[i : i + 1, :, :a, :b, :c], alone, atol=1e-9, rtol=1e-7)
    assert (out * ~mask[:, None]).abs().max() == 0


def test_a_sample_of_nothing_is_zero() -> None:
    net = awake()
    mask = torch.tensor([[False] * 6, [True] * 6])
    out = net(noisy(2, 3, 6), torch.rand(2), {"mask": mask})
    out.sum().backward()
    assert out[0].abs().max() == 0
    assert out[1].abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())


def test_the_norm_is_of_the_real_elements() -> None:
    norm = GroupNorm(12).double()
    assert norm.groups == 3
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    x, real = 5 + 3 * noisy(2, 12, 4, 5), torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    real[0, :, :3, :2], real[1] = True, True
    out = norm(x, real)
    torch.testing.assert_close(out[:1, :, :3, :2], norm(x[:1, :, :3, :2]))
    torch.testing.assert_close(out[1:], norm(x[1:]))
    plain = GroupNorm(12, affine=False)(x, real)[0, :4, :3, :2]
    assert abs(float(plain.mean())) < 1e-10
    assert abs(float(plain.var(correction=0)) - 1) < 1e-4


@pytest.mark.parametrize("stride", [2, (1, 2, 2)])
def test_constant_times_are_one_time(stride: Any) -> None:
    net = awake(patch=(1, 1, 1), stride=stride)
    x = noisy(2, 3, 3, 4, 5)
    expected = net(x, torch.tensor([0.3, 0.3]))
    for shape in ((), (2,), (1,), (2, 3), (2, 1, 4), (2, 3, 4, 5), (2, 1, 3, 1, 1), (2, 3, 3, 4, 5)):
        torch.testing.assert_close(net(x, torch.full(shape, 0.3, dtype=torch.float32)), expected)
    same(net(x, 0.3), expected)
    differ(net(x, torch.tensor([0.3, 0.6])), expected)


def test_frames_are_modulated_by_their_own_times() -> None:
    """Frames that see no others, but through the norms: with the norms' share taken out, a frame's time is its own."""
    net = awake(patch=(1, 1, 1), kernel=(1, 3, 3), stride=(1, 2, 2), attention_levels=())
    for module in net.modules():
        if isinstance(module, GroupNorm):
            module.forward = lambda x, real=None: x  # type: ignore[method-assign]
    x, t = noisy(2, 3, 3, 4, 5), torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
    out = net(x, t)
    for frame in range(3):
        torch.testing.assert_close(out[:, :, frame : frame + 1], net(x[:, :, frame : frame + 1], t[:, frame]))
    torch.testing.assert_close(net(x, t[:, None, :, None, None]), out)


def test_a_coarser_level_has_the_highest_time() -> None:
    net, seen = awake(patch=(1,), multipliers=(1, 1)), []
    net.middle[0].modulation.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = noisy(1, 3, 5)
    for times in ([0.1, 0.2, 0.0, 0.7, 0.4], [0.2, 0.2, 0.7, 0.7, 0.4], [0.2, 0.1, 0.7, 0.6, 0.3]):
        net(x, torch.tensor([times], dtype=torch.float64))
    assert seen[0].shape == (1, 3, 16)
    assert torch.equal(seen[0], seen[1])
    differ(seen[2], seen[0])


@pytest.mark.parametrize("stride", [2, (1, 2)])
def test_channels_last(stride: Any) -> None:
    nets = [awake(patch=(1, 2), stride=stride, self_condition=True, channels_last=last) for last in (False, True)]
    x, t, mask = noisy(2, 3, 4, 5), torch.rand(2, 4), torch.rand(2, 4, 5) < 0.7
    last = x.movedim(1, -1)
    expected = nets[0](x, t, {"mask": mask}, previous=2 * x).movedim(1, -1)
    assert torch.equal(nets[1](last, t, {"mask": mask}, previous=2 * last), expected)
    assert torch.equal(nets[1](last, t, {"mask": mask[..., None].expand(last.shape)}, previous=2 * last), expected)


def test_conditions_act_and_not_given_is_absent() -> None:
    net = awake(**EVERYTHING, self_condition=True)
    x, t, cond = noisy(3, 3, 6), torch.rand(3), conditions(3)
    expected = net(x, t, cond)
    for name in cond:
        differ(net(x, t, {key: value for key, value in cond.items() if key != name}), expected)
    differ(net(x, t, cond, previous=x), expected)
    absent: dict[str, Tensor] = {name: torch.full_like(cond[name], math.nan) for name in ("pitch", "level", "text")}
    absent |= {"label": torch.full((3,), -1), "context": torch.full((3, 4, 6), math.nan, dtype=torch.float64)}
    same(net(x, t), net(x, t, absent))
    mixed = {name: torch.stack((cond[name][0], value[1], cond[name][2])) for name, value in absent.items()}
    whole = net(x, t, cond | {"context_mask": torch.ones(3, 4).bool()})
    same(net(x, t, mixed)[[0, 2]], whole[[0, 2]])
    same(net(x, t, mixed)[1], net(x, t)[1])
    same(awake()(x, t, cond, previous=x), awake()(x, t), 0)  # what is not configured is ignored


def test_maps_and_element_times_are_further_channels() -> None:
    net = awake(patch=(1, 2), concat={"given": 2}, element_times=True, channels_last=True)
    x, t, given = noisy(2, 3, 5, 3), torch.tensor([0.5, 0.9], dtype=torch.float64), noisy(2, 3, 5, 2)
    expected = net(x, t, {"given": given})
    differ(net(x, t), expected)
    same(net(x, t, {"given": torch.full_like(given, math.nan)}), net(x, t), 0)
    full = t[:, None, None, None].expand(x.shape).clone()
    same(net(x, full, {"given": given}), expected)
    full[:, 1, 2, 1] = 0  # one element is known
    differ(net(x, full, {"given": given}), expected)


def test_a_step_has_an_end() -> None:
    """At first a network of two times is one of one; then the end says something, to frames their own."""
    one, two = awake(patch=(1, 1)), awake(patch=(1, 1), two_times=True)
    x, t = noisy(2, 3, 6, 4), torch.tensor([0.5, 0.9], dtype=torch.float64)
    differ(two(x, t, {"target": torch.zeros(2)}), two(x, t))
    same(two(x, t, {"target": t}), two(x, t), 0)
    ends = torch.tensor([0.2, 0.4], dtype=torch.float64)
    of_frames = two(x, t, {"target": ends[:, None].expand(2, 6)})
    same(of_frames, two(x, t, {"target": ends}))
    same(of_frames, two(x, t[:, None].expand(2, 6), {"target": ends}))
    differ(of_frames, two(x, t, {"target": torch.linspace(0, 0.4, 6).expand(2, 6)}))
    two.load_state_dict(one.state_dict() | {k: v for k, v in two.state_dict().items() if k.startswith("duration")})
    for name in ("weight", "bias"):
        nn.init.zeros_(getattr(two.duration.output, name))
    same(two(x, t, {"target": ends}), one(x, t), 0)
    fresh = UNet(3, (1, 1), **SMALL, two_times=True)
    assert not any(parameter.any() for parameter in fresh.duration.output.parameters())


def test_spacing_is_what_attention_measures() -> None:
    net = awake(patch=(1,), spacing=(0.1,))
    x, t = noisy(2, 3, 8), torch.rand(2)
    spacing = torch.tensor([[0.1], [math.nan]], dtype=torch.float64)
    same(net(x, t, {"spacing": spacing}), net(x, t))
    wider = net(x, t, {"spacing": torch.tensor([[0.1], [0.7]], dtype=torch.float64)})
    same(wider[0], net(x, t)[0])
    assert (wider[1] - net(x, t)[1]).abs().max() > 1e-6


def test_edges_tell_where_the_grid_ends() -> None:
    told, plain = awake(edges=[0]), awake()
    told.load_state_dict(plain.state_dict() | {"edges.weight": torch.zeros_like(told.edges.weight)})
    x = noisy(1, 3, 8)
    same(told(x, 0.5), plain(x, 0.5), 0)
    nn.init.normal_(told.edges.weight)
    differ(told(x, 0.5), plain(x, 0.5))


@pytest.mark.parametrize("stride", [2, (1, 2, 2)])
def test_gradients_reach_every_parameter(stride: Any) -> None:
    options = {"self_condition": True, "element_times": True, "two_times": True, "edges": [1, 2], "concat": {"g": 1}}
    net = awake(patch=(1, 1, 1), stride=stride, **EVERYTHING, **options)
    x, cond = noisy(2, 3, 3, 4, 5), conditions(2)
    cond |= {"label": torch.tensor([2, -1]), "g": noisy(2, 1, 3, 4, 5), "target": torch.zeros(2)}
    for name in ("pitch", "level", "text"):
        cond[name][1] = math.nan
    net(x, torch.rand(2), cond, previous=x).square().mean().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_samples_do_not_depend_on_their_batch() -> None:
    net = awake(patch=(1, 1), **EVERYTHING)
    x, t, cond = noisy(3, 3, 5, 4), torch.rand(3), conditions(3)
    together = net(x, t, cond)
    for i in range(3):
        same(together[i : i + 1], net(x[i : i + 1], t[i : i + 1], {k: v[i : i + 1] for k, v in cond.items()}))


def test_precisions() -> None:
    net = awake(patch=(1, 1), **EVERYTHING)
    x, t, cond = noisy(2, 3, 6, 5), torch.tensor([0.2, 0.9], dtype=torch.float64), conditions(2)
    cond["mask"] = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    expected = net(x, t, cond)
    scale = expected.std().item()
    for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 0.15)):
        given = {name: value.to(dtype) if value.is_floating_point() else value for name, value in cond.items()}
        out = net.to(dtype)(x.to(dtype), t, given)
        assert out.dtype == dtype
        same(out.double() / scale, expected / scale, atol)
    net.float()
    with torch.autocast("cpu", torch.bfloat16):
        automatic = net(x.float(), t, cond)
    assert automatic.dtype == torch.float32
    same(automatic.double() / scale, expected / scale, 0.15)


def test_the_blocks_of_a_level_compile_once_into_one_graph() -> None:
    torch._dynamo.reset()
    net = awake(patch=(1,), depth=8, multipliers=(1, 2))
    x, t, mask = noisy(2, 3, 7), torch.rand(2), torch.arange(7) < torch.tensor([[7], [5]])
    expected = net(x, t, {"mask": mask})
    graphs = []

    def counted(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    blocks = net.regions()
    assert len(blocks) == 8
    for block in blocks:
        block.compile(backend=counted, dynamic=True, fullgraph=True)
    same(net(x, t, {"mask": mask}), expected)
    net(noisy(3, 3, 12), torch.rand(3), {"mask": torch.arange(12) < torch.tensor([[12], [5], [2]])})
    assert len(graphs) == 2  # of two levels, whatever the size


@pytest.mark.parametrize("masked", [False, True])
def test_it_has_a_forward_derivative(masked: bool) -> None:
    """Along x, t and the end of the step, as flow maps are trained with it."""
    net = awake(patch=(1, 1), two_times=True, attention_levels=(0, -1))
    x, dx = noisy(2, 3, 4, 5), noisy(2, 3, 4, 5, seed=1)
    t, s = torch.tensor([0.5, 0.8], dtype=torch.float64), torch.tensor([0.1, 0.3], dtype=torch.float64)
    cond = {"mask": torch.arange(4) < torch.tensor([[4], [3]])} if masked else {}

    def along(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return net(x, t, cond | {"target": s})

    with torch.no_grad():
        _, derivative = torch.func.jvp(along, (x, t, s), (dx, torch.ones_like(t), torch.full_like(s, 0.5)))
        ahead, behind = (along(x + h * dx, t + h, s + h / 2) for h in (1e-6, -1e-6))
    scale = derivative.abs().max()  # some hundreds: embeddings of t have frequencies up to 1000
    torch.testing.assert_close(derivative / scale, (ahead - behind) / 2e-6 / scale, atol=1e-6, rtol=0)


def test_it_learns_and_samples() -> None:
    """Four pictures, told by class or not: the error comes close to the exact posterior's, samples are the pictures."""
    torch.manual_seed(0)
    pictures = torch.randn(4, 1, 6, 5).sign()
    net = UNet(1, (1, 1), width=16, multipliers=(1, 2), depth=2, labels=4)
    denoiser, schedule = Denoiser(net), SCHEDULES.build("flow")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)

    def errors(count: int) -> tuple[Tensor, ...]:
        """Of x0 by the network, the exact posterior mean, and the mean picture."""
        label, t = torch.randint(4, (count,)), 0.3 + 0.7 * torch.rand(count, dtype=torch.float64)
        x0 = pictures[label]
        alpha, sigma = (v.float().view(-1, 1, 1, 1) for v in schedule.alpha_sigma(t))
        x = alpha * x0 + sigma * torch.randn_like(x0)
        told = torch.where(torch.rand(count) < 0.5, -1, label)
        distance = (x[:, None] - alpha[:, None] * pictures).square().flatten(2).sum(2)
        logits = -distance / (2 * sigma.view(-1, 1) ** 2)
        known = torch.nn.functional.one_hot(label, 4).bool() | (told < 0)[:, None]
        exact = torch.einsum("bk,kchw->bchw", logits.masked_fill(~known, -math.inf).softmax(1), pictures)
        made = denoiser(x, t, {"label": told}).x0
        return tuple((one - x0).square().mean() for one in (made, exact, pictures.mean(0)))

    for _ in range(120):
        optimizer.zero_grad()
        errors(32)[0].backward()
        optimizer.step()
    with torch.no_grad():
        made, exact, chance = (float(one) for one in errors(512))
        assert made - exact < 0.2 * (chance - exact)  # 1 where it begins
        samples = generate(denoiser, torch.zeros(8, 1, 6, 5), cond={"label": torch.arange(8) % 4}, steps=8)
    assert (samples.sign() == pictures.repeat(2, 1, 1, 1)).float().mean() > 0.97


def test_a_checkpoint_makes_it_again(tmp_path: Path) -> None:
    options = {"name": "unet", "channels": 3, "patch": [1, 1], **SMALL, "stride": [1, 2], "attention_levels": [1, -1]}
    denoiser = Denoiser(NETWORKS.build(options)).eval()
    for i, parameter in enumerate(denoiser.parameters()):
        parameter.data += 0.1 * random(*parameter.shape, seed=i)
    config = {"network": options, "schedule": "flow", "prediction": "velocity", "sigma_data": 1.0}
    folder = pretrained.save_pretrained(tmp_path / "made", denoiser, {"modality": {"name": "none"}, **config}, "card")
    again = pretrained.build_denoiser(pretrained.load_pretrained(folder))
    x = random(2, 3, 4, 5)
    assert torch.equal(again(x, 0.5).x0, denoiser(x, 0.5).x0)
    assert again(x, 0.5).x0.abs().max() > 0


def test_depth_counts_blocks_and_heads_follow_the_width() -> None:
    net = UNet(3, (1, 1), width=16, heads=2, multipliers=(1, 2, 4), depth=7, attention_levels=(1, 2))
    assert len(net.regions()) == 12  # two at each of three levels, down and up
    heads = {block.attention.heads for block in net.regions() if block.attention is not None}
    assert heads == {4, 8}
    assert (net.width, net.token_numbers) == (16, 3)
    twice = UNet(3, (1, 2), **SMALL, channels_last=True, output_channels=6)
    assert twice(random(2, 4, 5, 3), 0.5).shape == (2, 4, 5, 6)  # the second half may be a variance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": (1, 1, 1, 1)}, "1 to 3 axes, not 4"),
        ({"kernel": 2}, r"odd along each axis, got \[2, 2\]"),
        ({"stride": (2,)}, "2 axes need as many kernels and strides"),
        ({"attention_levels": (3,)}, "no level 3"),
        ({"heads": 5}, "does not divide into"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UNet(**{"channels": 3, "patch": (1, 1), **SMALL, **options})


def test_errors() -> None:
    net = UNet(3, (1, 1), **SMALL)
    with pytest.raises(ValueError, match="expected 2 axes and 3 channels"):
        net(torch.zeros(2, 4, 4, 4), 0.5)
    with pytest.raises(ValueError, match="t of shape"):
        net(torch.zeros(2, 3, 4, 4), torch.rand(3))
    with pytest.raises(ValueError, match="no option 'causal'"):
        NETWORKS.build({"name": "unet", "channels": 3, "causal": True})
