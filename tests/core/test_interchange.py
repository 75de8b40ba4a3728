"""Scheduler configurations of diffusers. Its schedulers compute in float32: equal is to 1e-5."""

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
from noiseloom.core.interchange import from_diffusers, from_timestep, to_diffusers
from noiseloom.core.interchange.tables import SCHEDULERS
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.schedules import SCHEDULES, Table
from noiseloom.core.spaces import Euclidean
from tests.core.their_schedulers import scheduler_of

diffusers = pytest.importorskip("diffusers", reason="needs diffusers, of the extra 'benchmarks'")
warnings.filterwarnings("ignore", module="diffusers")

SHAPE = (2, 3, 4)


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*differs from sampler.*")
        yield


def network(told: float, learned: bool = False) -> Any:
    """A network of no special form; ``told``: how much it depends on the timestep; ``learned``: it says a variance."""

    def output(x: Tensor, timestep: Tensor) -> Tensor:
        said = torch.tanh(0.7 * x + 0.3 + told * torch.sin(timestep / 150).view(-1, 1, 1)) + 0.2 * x
        return torch.cat((said, torch.sin(3 * x)), 1) if learned else said

    return output


def their_samples(
    config: Mapping[str, Any], steps: int, told: float, noises: list[Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The start and what each call led to, of a loop over diffusers' scheduler; its noise is from ``noises``. Where it
    keeps a list of sigmas they must be those of our grid, to 1e-4 (1 - 0.9999 in float32), and are replaced by
    ours, in float64."""
    theirs, model = scheduler_of(config, steps), network(told, config.get("variance_type") == "learned_range")
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
    model = network(told, config.get("variance_type") == "learned_range")
    denoise = from_timestep(model, schedule, spec.prediction, config["sigma_data"] if edm else None)
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


@pytest.mark.parametrize(
    ("variance", "spacing"),
    [("fixed_small", "trailing")]  # theirs is not right for the others
    + [(v, s) for v in ("fixed_small", "fixed_large", "learned_range") for s in ("leading", "linspace")],
)
def test_ddpm(variance: str, spacing: str) -> None:
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
        ({"_class_name": "DDPMScheduler", "variance_type": "learned"}, "variance_type='learned'"),
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
        (("linear", {"name": "learned_range"}, None, "ddim"), "go together"),
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
    told = {key: config[key] for key in ("_class_name", "num_train_timesteps", "prediction_type", "timestep_spacing")}
    assert list(told.values()) == ["DPMSolverMultistepScheduler", 200, "v_prediction", "trailing"]
    torch.testing.assert_close(torch.tensor(config["trained_betas"], dtype=torch.float64), betas)


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
