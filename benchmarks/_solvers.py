"""Solvers of diffusers, k-diffusion and azula on a problem whose exact denoiser is known, for sampler_error.py."""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from noiseloom.core.grids import make_grid
from noiseloom.core.schedules import Schedule
from tests.oracles import Mixture

BUDGETS = (5, 8, 10, 15, 20)
Run = Callable[[int], tuple[Tensor, int]]  # steps to (the end, calls)
TINY = 1e-3  # azula's smallest alpha and sigma


class Problem(NamedTuple):
    """Where to start, the exact end, and the exact denoiser in any scaling of x."""

    name: str
    schedule: Schedule
    mixture: Mixture
    x: Tensor
    exact: Tensor

    def x0(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        return self.mixture.x0(x, *(torch.as_tensor(v, dtype=torch.float64).reshape(1) for v in (alpha, sigma)))

    def ratios(self, grid: Any, steps: int) -> Tensor:
        """sigma / alpha of a grid."""
        alpha, sigma = self.schedule.alpha_sigma(make_grid(grid, steps, self.schedule))
        return sigma / alpha


class Row(NamedTuple):
    library: str
    method: str
    grid: str
    errors: list[float]


def problem(name: str, schedule: Schedule, mixture: Mixture) -> Problem:
    """256 quantiles of the noise at t = 1, and where the ODE takes them."""
    quantiles = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    x = torch.special.ndtri(quantiles).unsqueeze(1) * schedule.sigma(1.0)
    return Problem(name, schedule, mixture, x, mixture.flow_map(x, schedule, 1.0, 0.0))


def errors(task: Problem, run: Run, calls_per_step: int = 1) -> list[float]:
    """The error at each budget, with the most steps whose calls it allows; NaN where none can be made."""
    found = []
    for budget in BUDGETS:
        value = math.nan
        for steps in range(budget // calls_per_step + 1, 0, -1):
            with contextlib.suppress(ValueError, IndexError, RuntimeError):  # a grid or a solver of more steps
                x, calls = run(steps)
                if calls <= budget:
                    value = float((x.double() - task.exact).abs().mean())
                    break
        found.append(value)
    return found


def least(rows: Sequence[Sequence[float]]) -> list[float]:
    return [min((v for v in column if not math.isnan(v)), default=math.nan) for column in zip(*rows, strict=True)]


# diffusers: class, options, calls a step, whether any list of sigmas can be put in the place of its own.
TABLE: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "DDIM": ("DDIMScheduler", {"clip_sample": False}, 1, False),
    "PNDM": ("PNDMScheduler", {"skip_prk_steps": True}, 1, False),
    "Euler": ("EulerDiscreteScheduler", {}, 1, True),
    "Heun": ("HeunDiscreteScheduler", {}, 2, False),
    "KDPM2": ("KDPM2DiscreteScheduler", {}, 2, False),
    "LMS": ("LMSDiscreteScheduler", {}, 1, True),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", {}, 1, True),
    "DPM++ 2M heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, 1, True),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", {"solver_order": 3}, 1, True),
    "DPM++ 2S": ("DPMSolverSinglestepScheduler", {"solver_order": 2, "lower_order_final": True}, 1, True),
    "DPM++ 3S": ("DPMSolverSinglestepScheduler", {"solver_order": 3, "lower_order_final": True}, 1, True),
    "DEIS 2": ("DEISMultistepScheduler", {"solver_order": 2}, 1, False),
    "DEIS 3": ("DEISMultistepScheduler", {"solver_order": 3}, 1, False),
    "UniPC 2": ("UniPCMultistepScheduler", {"solver_order": 2}, 1, True),
    "UniPC 3": ("UniPCMultistepScheduler", {"solver_order": 3}, 1, True),
}
_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
FLOW: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "FlowMatchEuler": ("FlowMatchEulerDiscreteScheduler", {}, 1, True),
    "FlowMatchHeun": ("FlowMatchHeunDiscreteScheduler", {}, 2, False),
    "DPM++ 2M": ("DPMSolverMultistepScheduler", _FLOW, 1, True),
    "DPM++ 3M": ("DPMSolverMultistepScheduler", _FLOW | {"solver_order": 3}, 1, True),
    "UniPC 2": ("UniPCMultistepScheduler", _FLOW, 1, True),
    "UniPC 3": ("UniPCMultistepScheduler", _FLOW | {"solver_order": 3}, 1, True),
}
EDM: dict[str, tuple[str, dict[str, Any], int, bool]] = {
    "EDM Euler": ("EDMEulerScheduler", {}, 1, True),
    "EDM DPM++ 2M": ("EDMDPMSolverMultistepScheduler", {}, 1, True),
    "EDM DPM++ 3M": ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}, 1, True),
}
METHODS = {"linear": TABLE, "flow": FLOW, "edm": EDM}


def their_grids(task: Problem, known: Sequence[str]) -> list[dict[str, Any]]:
    """The spacings that a class of diffusers offers."""
    if task.name == "edm":
        return [{"sigma_schedule": spread} for spread in ("karras", "exponential")]
    if task.name == "flow":
        name = "shift" if "shift" in known else "flow_shift"
        return [{name: shift} for shift in (0.5, 1.0, 2.0, 3.0)]
    spacings = (
        [{"timestep_spacing": s} for s in ("leading", "linspace", "trailing")] if "timestep_spacing" in known else [{}]
    )
    spreads = [key for key in ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas") if key in known]
    return spacings + [{key: True} for key in spreads]


def diffusers_rows(task: Problem, same: Any) -> Iterator[Row]:
    import diffusers

    logging.getLogger("diffusers").setLevel(logging.CRITICAL)
    for method, (class_name, options, per_step, any_sigmas) in METHODS[task.name].items():
        cls = getattr(diffusers, class_name)
        own = [
            errors(task, diffusers_run(task, cls(**options, **grid), None), per_step)
            for grid in their_grids(task, list(cls().config))
        ]
        yield Row("diffusers", method, "its best", least(own))
        if any_sigmas:
            yield Row("diffusers", method, "same grid", errors(task, diffusers_run(task, cls(**options), same)))


def diffusers_run(task: Problem, scheduler: Any, grid: Any) -> Run:
    name = type(scheduler).__name__
    flow, edm = task.name == "flow", task.name == "edm"
    # Euler, Heun, LMS and KDPM2 keep x / alpha.
    keeps_ratio = name.startswith(("EulerDiscrete", "LMS", "HeunDiscrete", "KDPM2"))

    def level(i: int, timestep: Tensor) -> tuple[Tensor, Tensor]:
        if not hasattr(scheduler, "sigmas"):  # DDIM, PNDM
            alpha = scheduler.alphas_cumprod[int(timestep)].double().sqrt()
            return alpha, (1 - alpha**2).sqrt()
        middle = name.startswith("KDPM2") and i % 2
        sigma = (scheduler.sigmas_interpol if middle else scheduler.sigmas)[i].double()
        if flow:
            return 1 - sigma, sigma
        alpha = torch.ones_like(sigma) if edm or keeps_ratio else (1 + sigma**2).rsqrt()
        return alpha, sigma * alpha

    def run(steps: int) -> tuple[Tensor, int]:
        scheduler.set_timesteps(steps)
        x = task.x
        if grid is not None:
            alpha, sigma = task.schedule.alpha_sigma(make_grid(grid, steps, task.schedule))
            if flow and not name.startswith("FlowMatch"):
                sigma = sigma.clamp(max=1 - 1e-6)  # as UniPC does, whose log-SNR must be finite
            scheduler.sigmas = sigma if flow else sigma / alpha
        if keeps_ratio:
            x = x / task.schedule.alpha(1.0)
        for i, timestep in enumerate(scheduler.timesteps):
            alpha, sigma = level(i, timestep)
            x0 = task.x0(x.double(), alpha, sigma)
            if flow:
                output = (x - x0) / sigma
            elif edm:
                data = scheduler.config.sigma_data
                spread = (sigma**2 + data**2).sqrt()
                output = (x0 - x * (data / spread) ** 2) * spread / (sigma * data)
            else:
                output = (x - alpha * x0) / sigma
            x = scheduler.step(output, timestep, x, return_dict=False)[0]
        return x, len(scheduler.timesteps)

    return run


def load(folder: Path, package: str, module: str) -> Any:
    """A module of a package that lies in a folder, without what the package imports for other purposes."""
    for name, needed in (("torchdiffeq", "odeint"), ("torchsde", ""), ("torchvision.transforms", "functional")):
        try:
            importlib.import_module(name)
        except ImportError:  # not for what is measured here
            for part in (name.partition(".")[0], name):
                sys.modules[part] = types.ModuleType(part)
            setattr(sys.modules[name], needed, None)
    if package not in sys.modules:
        bare = types.ModuleType(package)
        bare.__path__ = [str(folder / package)]
        sys.modules[package] = bare
    return importlib.import_module(f"{package}.{module}")


def kdiffusion_rows(task: Problem, same: Any, folder: Path) -> Iterator[Row]:
    if task.name == "flow":
        return  # it starts from a finite sigma / alpha
    k = load(folder, "k_diffusion", "sampling")
    alpha, sigma = task.schedule.alpha_sigma(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    high, low = (sigma / alpha).tolist()
    low = 0.002 if task.name == "edm" else low
    silent = {"eta": 0.0, "noise_sampler": lambda *_: 0.0}
    methods: dict[str, tuple[Any, dict[str, Any], int]] = {
        "euler": (k.sample_euler, {}, 1),
        "heun": (k.sample_heun, {}, 2),
        "dpm_2": (k.sample_dpm_2, {}, 2),
        "lms": (k.sample_lms, {}, 1),
        "dpmpp_2m": (k.sample_dpmpp_2m, {}, 1),
        "dpmpp_2s": (k.sample_dpmpp_2s_ancestral, silent, 2),
        "dpmpp_2m_sde, eta=0": (k.sample_dpmpp_2m_sde, silent, 1),
        "dpmpp_2m_sde heun, eta=0": (k.sample_dpmpp_2m_sde, silent | {"solver_type": "heun"}, 1),
        "dpmpp_3m_sde, eta=0": (k.sample_dpmpp_3m_sde, silent, 1),
    }
    own = [
        lambda n: k.get_sigmas_karras(n, low, high),
        lambda n: k.get_sigmas_exponential(n, low, high),
        lambda n: k.get_sigmas_polyexponential(n, low, high, rho=2.0),
        *([lambda n: k.get_sigmas_vp(n)] if task.name == "linear" else []),
    ]

    def run(function: Any, options: dict[str, Any], sigmas: Callable[[int], Tensor] | None) -> Run:
        def of(steps: int) -> tuple[Tensor, int]:
            calls = [0]

            def model(x: Tensor, sigma: Tensor) -> Tensor:
                calls[0] += 1
                return task.x0(x.double(), 1.0, sigma[:1])

            x = task.x / task.schedule.alpha(1.0)
            if sigmas is None:
                x = function(model, x, low, high, steps, disable=True, **options)
            else:
                x = function(model, x, sigmas(steps).double(), disable=True, **options)
            return x, calls[0]

        return of

    for name, (function, options, per_step) in methods.items():
        best = least([errors(task, run(function, options, one), per_step) for one in own])
        yield Row("k-diffusion", name, "its best", best)
        ours = errors(task, run(function, options, lambda n: task.ratios(same, n)), per_step)
        yield Row("k-diffusion", name, "same grid", ours)
    fast = errors(task, run(k.sample_dpm_fast, {"noise_sampler": lambda *_: 0.0}, None))
    yield Row("k-diffusion", "dpm_fast", "its best", fast)


def azula_rows(task: Problem, same: Any, folder: Path) -> Iterator[Row]:
    """azula takes equal steps of the time of any schedule: of ours, and of ours at the times of our grid."""
    samplers = load(folder, "azula", "sample")

    class Denoiser(torch.nn.Module):
        def __init__(self, times: Tensor | None) -> None:
            super().__init__()
            self.times, self.calls = times, 0

        def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
            t = t.double()
            if self.times is not None:
                place = (1 - t) * (len(self.times) - 1)
                left = place.floor().clamp(0, len(self.times) - 2).long()
                t = torch.lerp(self.times[left], self.times[left + 1], place - left)
            alpha, sigma = task.schedule.alpha_sigma(t)
            return alpha.clamp(min=TINY), sigma.clamp(min=TINY)

        def forward(self, x: Tensor, t: Tensor) -> Any:
            self.calls += 1
            return types.SimpleNamespace(mean=task.x0(x, *self.schedule(t)))

    def run(cls: Any, options: dict[str, Any], grid: Any) -> Run:
        def of(steps: int) -> tuple[Tensor, int]:
            denoiser = Denoiser(None if grid is None else make_grid(grid, steps, task.schedule))
            sampler = cls(denoiser, steps=steps, silent=True, dtype=torch.float64, **options)
            return sampler(task.x), denoiser.calls

        return of

    multistep = [
        (getattr(samplers, f"{name}Sampler"), order)
        for name in ("zAB", "vAB", "zEAB", "xEAB", "REAB")
        for order in (2, 3)
    ]
    plain = [(samplers.DDIMSampler, None, 1), (samplers.EulerSampler, None, 1), (samplers.HeunSampler, None, 2)]
    for cls, order, per_step in [*plain, *((cls, order, 1) for cls, order in multistep)]:
        name = f"{cls.__name__.removesuffix('Sampler')}{order or ''}"
        options = {} if order is None else {"order": order}
        for grid, where in ((None, "its best"), (same, "same grid")):
            yield Row("azula", name, where, errors(task, run(cls, options, grid), per_step))
