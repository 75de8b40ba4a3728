"""Scheduler configurations of diffusers, and foreign networks. Its schedulers compute in float32: equal is to 1e-5."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
from torch import Generator, Tensor

from noiseloom.core.grids import GRIDS, make_grid
from noiseloom.core.interchange import (
    dit_from_diffusers,
    dit_options,
    from_diffusers,
    from_sigma,
    from_timestep,
    to_diffusers,
)
from noiseloom.core.interchange.tables import SCHEDULERS
from noiseloom.core.predictions import PREDICTIONS
from noiseloom.core.samplers import SAMPLERS, generate, sample
from noiseloom.core.samplers.exponential import moments
from noiseloom.core.schedules import SCHEDULES, Table
from noiseloom.core.spaces import Euclidean
from tests.oracles import Gaussian, exact_denoiser, final_std

diffusers = pytest.importorskip("diffusers", reason="compares with diffusers' schedulers")
warnings.filterwarnings("ignore", module="diffusers")

SHAPE = (2, 3, 4)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*differs from sampler.*")
        yield


def scheduler_of(config: Mapping[str, Any], steps: int, **options: Any) -> Any:
    theirs = getattr(diffusers, config["_class_name"]).from_config(dict(config))
    theirs.set_timesteps(steps, **options)
    return theirs


def network(told: float) -> Any:
    """A network of no special form; ``told``: how much it depends on the timestep."""
    return lambda x, timestep: torch.tanh(0.7 * x + 0.3 + told * torch.sin(timestep / 150).view(-1, 1, 1)) + 0.2 * x


def their_samples(
    config: Mapping[str, Any], steps: int, told: float, noises: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The start and what each call led to, of a loop over diffusers' scheduler; its noise is taken from ``noises``. Where it keeps a list of sigmas
    they must be those of our grid, to 1e-4 (1 - 0.9999 in float32), and are replaced by ours, in float64."""
    theirs, model = scheduler_of(config, steps), network(told)
    spec = from_diffusers(config)
    schedule = SCHEDULES.build(spec.schedule)
    alpha, sigma = schedule.alpha_sigma(make_grid(spec.grid, steps, schedule))
    if len(getattr(theirs, "sigmas", ())) == len(sigma):
        precise = sigma if schedule.scaling == "flow" else sigma / alpha
        torch.testing.assert_close(theirs.sigmas.double(), precise, rtol=1e-4, atol=0)
        theirs.sigmas = precise
    module = sys.modules[type(theirs).__module__]
    drawn = iter(noises[1:])
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(module, "randn_tensor"):
            patch.setattr(module, "randn_tensor", lambda shape, **_: next(drawn))
        x = start = noises[0] * float(theirs.init_noise_sigma if hasattr(theirs, "init_noise_sigma") else 1.0)
        path = []
        for timestep in theirs.timesteps:
            given = theirs.scale_model_input(x, timestep) if hasattr(theirs, "scale_model_input") else x
            x = theirs.step(model(given, timestep.double().expand(len(x))), timestep, x, return_dict=False)[0]
            path.append(x)
    return start, path


class Given(Euclidean):
    """Noise that was drawn before."""

    def __init__(self, noises: list[Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "drawn", iter(noises))

    def noise(self, like: Any, generators: Any) -> Tensor:
        return next(self.drawn)


def our_samples(
    config: Mapping[str, Any], steps: int, told: float, start: Tensor, noises: list[Tensor], explodes: bool
) -> tuple[list[Tensor], Tensor]:
    """What each step led to, and the grid."""
    spec = from_diffusers(config)
    schedule, edm = SCHEDULES.build(spec.schedule), "sigma_data" in config
    denoise = from_timestep(network(told), schedule, spec.prediction, config["sigma_data"] if edm else None)
    grid = make_grid(spec.grid, steps, schedule)
    x = start * float(schedule.alpha(grid[0])) if explodes else start
    sampler = SAMPLERS.build(spec.sampler)
    steps_of = sample(
        sampler, denoise, x, grid, schedule=schedule, space=Given(noises[1:]), generators=[Generator()] * len(x)
    )
    return [step.x for step in steps_of], grid


def assert_same(config: dict[str, Any], steps: int = 10, told: float = 0.5, but_the_last: bool = False) -> None:
    at = -2 if but_the_last else -1
    noises = list(torch.randn(steps + 1, *SHAPE, dtype=torch.float64, generator=Generator().manual_seed(0)))
    start, theirs = their_samples(config, steps, told, noises)
    explodes = SCHEDULERS[config["_class_name"]].kind == "sigmas"  # it keeps x / alpha
    ours, grid = our_samples(config, steps, told, start, noises, explodes)
    x = theirs[at].double() * (
        float(SCHEDULES.build(from_diffusers(config).schedule).alpha(grid[at])) if explodes else 1
    )
    torch.testing.assert_close(ours[at], x, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_options_and_their_defaults_are_those_of_diffusers(name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert SCHEDULERS[name].options == {key: p.default for key, p in parameters.items() if key != "self"}


CONFIGS = [(name, dict(row.options)) for name, entry in SCHEDULERS.items() for row in entry.samplers]


@pytest.mark.parametrize(("name", "options"), CONFIGS)
def test_a_configuration_comes_back(name: str, options: dict[str, Any]) -> None:
    spec = from_diffusers({"_class_name": name, **options})
    config = to_diffusers(*spec)
    assert from_diffusers(config) == spec
    getattr(diffusers, config["_class_name"]).from_config(config)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_predictions(prediction: str) -> None:
    assert_same({"_class_name": "DDIMScheduler", "clip_sample": False, "prediction_type": prediction})


@pytest.mark.parametrize(
    "betas",
    [
        {"beta_schedule": "linear"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"beta_schedule": "sigmoid"},
        {"trained_betas": torch.linspace(0.001, 0.03, 400).tolist(), "num_train_timesteps": 400},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
)
def test_schedules(betas: dict[str, Any]) -> None:
    assert_same({"_class_name": "DDPMScheduler", "clip_sample": False, **betas})


@pytest.mark.parametrize(
    "options",
    [
        {"timestep_spacing": "leading"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"timestep_spacing": "trailing"},
        {"set_alpha_to_one": False},
        {"set_alpha_to_one": False, "steps_offset": 1},
    ],
)
def test_ddim(options: dict[str, Any]) -> None:
    assert_same({"_class_name": "DDIMScheduler", "clip_sample": False, **options})


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddpm(variance: str, spacing: str) -> None:
    if (variance, spacing) == ("fixed_large", "trailing"):
        return  # theirs is not right, see below
    assert_same(
        {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": variance, "timestep_spacing": spacing}
    )


@pytest.mark.parametrize("name", ["Euler", "EulerAncestral", "Heun", "LMS", "KDPM2"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_methods_in_sigma(name: str, spacing: str) -> None:
    config = {"_class_name": f"{name}DiscreteScheduler", "timestep_spacing": spacing, "steps_offset": 1}
    assert_same(config, told=0.0, but_the_last=name == "LMS")


@pytest.mark.parametrize("spread", ["karras", "exponential", "beta"])
@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DPMSolverMultistepScheduler"])
def test_spread_sigmas(name: str, spread: str) -> None:
    assert_same({"_class_name": name, f"use_{spread}_sigmas": True}, told=0.0)


@pytest.mark.parametrize("spread", [{}, {"use_karras_sigmas": True}])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_the_network_is_told_their_timesteps(spacing: str, spread: dict[str, Any]) -> None:
    config = {"_class_name": "EulerDiscreteScheduler", "timestep_spacing": spacing, **spread}
    theirs, spec = scheduler_of(config, 7), from_diffusers(config)
    ours = make_grid(spec.grid, 7, SCHEDULES.build(spec.schedule))[:-1] * 1000 - 1
    # Between levels sigma is interpolated in another way: at most a fifth of a level.
    torch.testing.assert_close(ours, theirs.timesteps.double(), rtol=0, atol=0.2)


MULTISTEP = [row.options for row in SCHEDULERS["DPMSolverMultistepScheduler"].samplers if row.differs is None]


@pytest.mark.parametrize("options", MULTISTEP)
def test_dpm_solver_multistep(options: dict[str, Any]) -> None:
    final = {"final_sigmas_type": "sigma_min"} if options["algorithm_type"] == "dpmsolver" else {}
    assert_same({"_class_name": "DPMSolverMultistepScheduler", **options, **final}, steps=16)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_spacings_of_solvers(name: str, spacing: str) -> None:
    assert_same({"_class_name": name, "timestep_spacing": spacing})


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order: int) -> None:
    assert_same({"_class_name": "DEISMultistepScheduler", "solver_order": order, "lower_order_final": False})


@pytest.mark.parametrize(("order", "steps"), [(1, 10), (2, 10)])
def test_unipc(order: int, steps: int) -> None:
    assert_same({"_class_name": "UniPCMultistepScheduler", "solver_order": order}, steps)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_solvers_on_flows(name: str) -> None:
    flow = {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"}
    assert_same({"_class_name": name, **flow}, told=0.0)  # theirs tells whole timesteps


@pytest.mark.parametrize("stochastic", [False, True])
def test_flow_matching(stochastic: bool) -> None:
    assert_same({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": stochastic})


def test_flow_matching_by_heun() -> None:
    assert_same({"_class_name": "FlowMatchHeunDiscreteScheduler"}, but_the_last=True)


@pytest.mark.parametrize("steps", [1, 4, 7])
def test_lcm(steps: int) -> None:
    assert_same({"_class_name": "LCMScheduler"}, steps)


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
@pytest.mark.parametrize("spread", ["karras", "exponential"])
def test_edm(name: str, spread: str) -> None:
    assert_same({"_class_name": name, "sigma_data": 0.7, "sigma_schedule": spread})


# What is refused or reported.


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"_class_name": "SASolverScheduler"}, "sa_solver"),
        ({"_class_name": "EulerDiscretScheduler"}, "Did you mean 'EulerDiscreteScheduler'"),
        ({"_class_name": "DDIMScheduler", "sigma": 1}, "no option known here that is called 'sigma'"),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "solver_type='bh1'"),
        ({"_class_name": "DPMSolverMultistepScheduler", "use_lu_lambdas": True}, "use_lu_lambdas"),
        ({"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver"}, "sde-dpmsolver"),
        ({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "learned_range"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "laplace"}, "laplace"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "give mu"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift_terminal": 0.1}, "shift_terminal"),
    ],
)
def test_what_has_no_equal_is_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_diffusers(config)


def test_what_differs_is_reported() -> None:
    with pytest.warns(UserWarning, match="clips estimates"):
        from_diffusers({"_class_name": "DDPMScheduler"})
    with pytest.warns(UserWarning, match="half the integral's"):
        from_diffusers({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3})
    with pytest.warns(UserWarning, match="twice"):
        from_diffusers({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (("flow", "velocity", None, "edm"), "no scheduler of diffusers"),
        (("flow", "velocity", "uniform", "euler"), "its grid is"),
        (("linear", "noise", "karras", "dpmpp_2m"), "no timestep_spacing is"),
        (("vp", "noise", None, "ddim"), "no beta_schedule is"),
        (("linear", "velocity", None, "ddim"), "no prediction_type on this schedule is 'velocity'"),
        (("linear", "noise", "linspace", "lms"), "counts sigmas, not points"),
    ],
)
def test_what_diffusers_has_not_is_refused(spec: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_diffusers(*spec)


def test_a_table_becomes_trained_betas() -> None:
    betas = torch.linspace(1e-3, 0.03, 200, dtype=torch.float64)
    config = to_diffusers(Table(betas), "v", "trailing", "dpmpp_2m")
    assert config["_class_name"] == "DPMSolverMultistepScheduler" and config["num_train_timesteps"] == 200
    assert config["prediction_type"] == "v_prediction" and config["timestep_spacing"] == "trailing"
    torch.testing.assert_close(torch.tensor(config["trained_betas"], dtype=torch.float64), betas)


# Where diffusers is not right, and the closed form that shows it.


def test_flow_match_euler_shifts_its_smallest_sigma_twice() -> None:
    config = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    theirs, spec = scheduler_of(config, 20), from_diffusers(config)
    ours = make_grid(spec.grid, 20, SCHEDULES.build(spec.schedule))
    once = 3 * 1e-3 / (1 + 2 * 1e-3)
    assert float(ours[-2]) == pytest.approx(once, rel=1e-12) == pytest.approx(0.002994, abs=1e-6)
    assert float(theirs.sigmas[-2]) == pytest.approx(3 * once / (1 + 2 * once), rel=1e-5)
    # The right ones are shifts of equally spaced times: undone, their differences are equal.
    even = ours[:-1] / (3 - 2 * ours[:-1])
    torch.testing.assert_close(even.diff(), torch.full((19,), -0.999 / 19, dtype=torch.float64))


def test_ddim_steps_past_the_level_that_it_goes_on_from() -> None:
    """On standard normal data the DDIM step is the identity wherever it leads; of data of standard deviation s the
    network is told 845 while x has the noise of level 846: the spread that results is not the linear map's."""
    config = {"_class_name": "DDIMScheduler", "clip_sample": False, "timestep_spacing": "trailing"}
    spec = from_diffusers(config)
    schedule, data = SCHEDULES.build(spec.schedule), Gaussian(0.5)

    def spread(steps: int) -> tuple[float, float]:
        theirs, x = scheduler_of(config, steps), torch.ones(1, dtype=torch.float64)
        for level in theirs.timesteps:
            alpha, sigma = schedule.alpha_sigma((level.double() + 1) / 1000)
            x0 = data.x0(x, alpha, sigma)
            x = theirs.step((x - alpha * x0) / sigma, level, x, return_dict=False)[0]
        grid = make_grid(spec.grid, steps, schedule)
        return float(x), final_std(SAMPLERS.build("ddim"), schedule, grid, 1.0)

    levels = [int(level) for level in scheduler_of(config, 13).timesteps]
    assert (levels[1], levels[1] - 1000 // 13, levels[2]) == (922, 846, 845)
    theirs, right = spread(10)
    assert theirs == pytest.approx(right, rel=1e-5)
    theirs, right = spread(13)
    assert abs(theirs / right - 1) > 3e-3


def test_ddpm_of_large_variance_ends_in_noise() -> None:
    """At t = 0 there is none; theirs adds that of the whole last step, sigma(t)^2, unless the last level is 0."""
    config = {"_class_name": "DDPMScheduler", "clip_sample": False, "variance_type": "fixed_large"}
    theirs = scheduler_of(config | {"timestep_spacing": "trailing"}, 10)
    x = torch.zeros(1, 100_000, dtype=torch.float64)
    last = theirs.step(x, theirs.timesteps[-1], x, generator=Generator().manual_seed(0)).prev_sample
    assert float(last.std()) == pytest.approx(float(SCHEDULES.build("linear").sigma(0.1)), rel=0.01)


def test_third_order_weights_of_dpm_solver_are_not_those_of_third_order() -> None:
    """x0 quadratic in log-SNR is integrated exactly by the exact weights, and by diffusers' to second order only."""
    config = {"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3, "use_exponential_sigmas": True}
    spec = from_diffusers(config | {"final_sigmas_type": "sigma_min", "lower_order_final": False})
    schedule = SCHEDULES.build(spec.schedule)
    theirs = scheduler_of({**config, "final_sigmas_type": "sigma_min", "lower_order_final": False}, 40)
    grid = make_grid(spec.grid, 40, schedule)
    level = schedule.log_snr(grid) / 2
    x0 = level**2

    def exact(t: int, s: int, x: Tensor) -> Tensor:
        """x_s by the integral, ``int e^(l - l_s) l^2 dl`` by parts."""
        antiderivative = (level[[t, s]] ** 2 - 2 * level[[t, s]] + 2) * torch.exp(level[[t, s]] - level[s])
        shrink = schedule.sigma(grid[s]) / schedule.sigma(grid[t])
        return shrink * x + schedule.alpha(grid[s]) * (antiderivative[1] - antiderivative[0])

    x = torch.zeros(1, dtype=torch.float64)
    last = moments(level.diff(), 3)[2]
    ours = SAMPLERS.build("dpmpp_3m").plan(schedule, grid)
    for i in range(10):
        right = exact(i, i + 1, x)
        weights = ours[i].stages[0].weights
        mine = weights[0] * x + sum(w * x0[i - j] for j, w in enumerate(weights[1:]) if i >= j)
        sigma, alpha, alpha_s = schedule.sigma(grid[i]), schedule.alpha(grid[i]), schedule.alpha(grid[i + 1])
        other = theirs.step((x - alpha * x0[i]) / sigma, theirs.timesteps[i], x, return_dict=False)[0]
        if i >= 2:
            torch.testing.assert_close(mine, right, rtol=1e-12, atol=1e-12)
            missing = alpha_s * (level[i + 1] - level[i]) ** 2 * last[i] / 2  # half of the second difference's weight
            assert float(right - other) == pytest.approx(float(missing), rel=0.02)
        x = right


# Foreign networks.


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


def test_grids_are_registered_and_refuse_what_they_cannot() -> None:
    linear = SCHEDULES.build("linear")
    with pytest.raises(ValueError, match="table of levels"):
        make_grid("diffusers", 10, SCHEDULES.build("vp"))
    with pytest.raises(ValueError, match="spacing must be one of"):
        GRIDS.build({"name": "diffusers", "spacing": "even"})
    with pytest.raises(ValueError, match="do not fit"):
        make_grid({"name": "diffusers", "spacing": "original"}, 51, linear)
    with pytest.raises(ValueError, match="leads beyond"):
        make_grid({"name": "diffusers", "spacing": "leading", "offset": 100}, 10, linear)
    assert PREDICTIONS.build("velocity") is not None


# Weights.


def their_dit(**options: Any) -> Any:
    """A small random DiT of diffusers with one embedding for all blocks, as converted checkpoints have."""
    torch.manual_seed(0)
    small = {"num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 3, "in_channels": 4, "sample_size": 8}
    net = diffusers.DiTTransformer2DModel(**(small | {"num_embeds_ada_norm": 10} | options)).eval()
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
    assert output.shape == expected.shape and float(expected.std()) > 0.1
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


def test_what_a_dit_cannot_be_is_refused() -> None:
    theirs = their_dit()
    config, weights = dict(theirs.config), theirs.state_dict()
    with pytest.raises(ValueError, match="activation_fn='geglu'"):
        dit_from_diffusers(config | {"activation_fn": "geglu"}, weights)
    with pytest.raises(ValueError, match="called 'rope'"):
        dit_from_diffusers(config | {"rope": True}, weights)
    with pytest.raises(ValueError, match="lack proj_out_2.bias"):
        dit_from_diffusers(config, {key: value for key, value in weights.items() if key != "proj_out_2.bias"})
    with pytest.raises(ValueError, match=r"have controlnet\.weight"):
        dit_from_diffusers(config, weights | {"controlnet.weight": torch.zeros(1)})
    key = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_1.bias"
    with pytest.raises(ValueError, match=r"transformer_blocks\.1 embeds time"):
        dit_from_diffusers(config, weights | {key: weights[key] + 1})


def test_options_of_a_dit_of_diffusers_are_all_known() -> None:
    parameters = inspect.signature(diffusers.DiTTransformer2DModel.__init__).parameters
    config = {key: p.default for key, p in parameters.items() if key != "self"}
    assert dit_options(config)["width"] == 1152
