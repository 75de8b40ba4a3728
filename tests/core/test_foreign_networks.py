"""Networks of other libraries as denoisers, and weights of diffusers' DiT in ours."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

from noiseloom.core.backbones import DiT
from noiseloom.core.interchange import dit_from_diffusers, dit_options, from_sigma, from_timestep
from noiseloom.core.samplers import generate
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Gaussian, exact_denoiser


def diffusers() -> Any:
    return pytest.importorskip("diffusers", reason="needs diffusers, of the extra 'benchmarks'")


def test_a_network_of_sigma_is_a_denoiser_in_one_line() -> None:
    data = Gaussian(0.5)

    def foreign(x: Tensor, sigma: Tensor) -> Tensor:
        assert sigma.shape == (len(x),)
        return data.x0(x, torch.ones_like(sigma)[:, None], sigma[:, None])

    x = torch.zeros(4, 8, dtype=torch.float64)
    for schedule in ("edm", "vp", "ve"):
        options = {"sampler": "dpmpp_2m", "steps": 12, "seeds": 0}
        ours = generate(exact_denoiser(data, SCHEDULES.build(schedule)), x, **options)
        torch.testing.assert_close(generate(from_sigma(foreign, schedule), x, **options), ours)


def test_a_network_of_timesteps_is_a_denoiser_in_one_line() -> None:
    data, schedule = Gaussian(0.5), SCHEDULES.build("scaled_linear")
    told = []

    def foreign(x: Tensor, timestep: Tensor) -> Tensor:
        told.append(timestep)
        alpha, sigma = (v[:, None] for v in schedule.alpha_sigma((timestep.double() + 1) / 1000))
        return (x - alpha * data.x0(x, alpha, sigma)) / sigma

    x = torch.zeros(4, 8, dtype=torch.float64)
    options = {"sampler": "dpmpp_2m", "grid": "trailing", "steps": 10, "seeds": 0}
    ours = generate(exact_denoiser(data, schedule), x, **options)
    torch.testing.assert_close(generate(from_timestep(foreign, "scaled_linear", "noise"), x, **options), ours)
    assert [round(float(t[0]), 9) for t in told] == [999 - 100 * i for i in range(10)]


def test_a_flow_is_told_its_time_in_thousandths() -> None:
    told: list[float] = []

    def foreign(x: Tensor, timestep: Tensor) -> Tensor:
        told.append(float(timestep[0]))
        return torch.zeros_like(x)

    grid = {"name": "shifted", "shift": 3.0, "last": 0.001}
    generate(
        from_timestep(foreign, "flow", "velocity"), torch.zeros(1, 2), grid=grid, sampler="euler", steps=3, seeds=0
    )
    even = torch.linspace(1, 0.001, 3, dtype=torch.float64)
    assert told == pytest.approx((3000 * even / (1 + 2 * even)).tolist(), rel=1e-6)


# Weights.


def their_dit(**options: Any) -> Any:
    """A small random DiT of diffusers with one embedding for all blocks, as converted checkpoints have."""
    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "in_channels": 4, "sample_size": 8}
    net = diffusers().DiTTransformer2DModel(**(small | {"num_embeds_ada_norm": 10} | options)).eval()
    for block in net.transformer_blocks:
        block.norm1.emb.load_state_dict(net.transformer_blocks[0].norm1.emb.state_dict())
    return net


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"out_channels": 8, "num_embeds_ada_norm": 3},
        {"attention_bias": False, "norm_eps": 1e-6},
        {"patch_size": 4, "num_attention_heads": 3},
    ],
)
def test_a_dit_of_diffusers_has_the_same_outputs_here(options: dict[str, Any]) -> None:
    theirs = their_dit(**options)
    ours = dit_from_diffusers(dict(theirs.config), theirs.state_dict())
    x, level, label = torch.randn(4, 4, 8, 8), torch.tensor([0, 17, 500, 999]), torch.tensor([0, 1, 2, -1])
    null = torch.where(label < 0, theirs.config.num_embeds_ada_norm, label)
    with torch.no_grad():
        expected = theirs(x, level, null).sample
        output = ours(x, (level.double() + 1) / 1000, {"label": label})
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_what_a_dit_cannot_be_is_refused() -> None:
    theirs = their_dit()
    config, weights = dict(theirs.config), theirs.state_dict()
    with pytest.raises(ValueError, match="activation_fn='geglu'"):
        dit_from_diffusers(config | {"activation_fn": "geglu"}, weights)
    with pytest.raises(ValueError, match="called 'rope'"):
        dit_from_diffusers(config | {"rope": True}, weights)
    with pytest.raises(ValueError, match=r"lack proj_out_2\.bias"):
        dit_from_diffusers(config, {key: value for key, value in weights.items() if key != "proj_out_2.bias"})
    with pytest.raises(ValueError, match=r"have controlnet\.weight"):
        dit_from_diffusers(config, weights | {"controlnet.weight": torch.zeros(1)})
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match=r"transformer_blocks\.1 embeds time"):
        dit_from_diffusers(config, weights | {key: weights[key] + 1})


def test_options_of_a_dit_of_diffusers_are_all_known() -> None:
    parameters = inspect.signature(diffusers().DiTTransformer2DModel.__init__).parameters
    config = {key: p.default for key, p in parameters.items() if key != "self"}
    assert dit_options(config)["width"] == 1152


def test_options_of_a_foreign_dit_are_off_by_default() -> None:
    plain = DiT(4, width=32, depth=1, heads=2)
    assert not [name for name in plain.state_dict() if name.startswith("blocks.0.mlp") and name.endswith("bias")]
    assert "blocks.0.attention.query_gain" in plain.state_dict()
    with pytest.raises(ValueError, match="Choices: rotary, sincos"):
        DiT(4, width=32, depth=1, heads=2, positions="absolute")
    with pytest.raises(ValueError, match="needs rotary"):
        DiT(4, width=32, depth=1, heads=2, positions="sincos", causal=True)
    with pytest.raises(ValueError, match="divides by 4"):
        DiT(4, width=30, depth=1, heads=1, positions="sincos")(torch.zeros(1, 4, 4, 4), 0.5)


def test_absolute_positions_tell_places_apart() -> None:
    """Attention without positions gives tokens of equal content equal outputs; rotary positions too, for equal values
    average to themselves wherever they lie."""
    torch.manual_seed(0)
    for positions, varies in (("sincos", True), ("rotary", False)):
        net = DiT(1, width=32, depth=1, heads=2, positions=positions)
        for parameter in net.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
        out = net(torch.ones(1, 1, 8, 8), 0.5).unfold(2, 2, 2).unfold(3, 2, 2).flatten(2, 3)[0, 0]
        assert bool((out - out[:1]).abs().amax() > 1e-2) == varies
