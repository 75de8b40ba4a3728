"""What diffusers' schedulers are called, which options they have, and which sampler of ours does the same.

Each row of ``samplers`` is read in both directions: the options of a configuration that select it, and the sampler.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

BETAS: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
LATENT_BETAS = BETAS | {"beta_start": 0.00085, "beta_end": 0.012}
SPACING = {"timestep_spacing": "linspace", "steps_offset": 0}
LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
THRESHOLDS = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
CLIPS = {"clip_sample": False, "clip_sample_range": 1.0}
FLOWS = {"use_flow_sigmas": False, "flow_shift": 1.0}
DYNAMIC = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
ZERO_SNR = {"rescale_betas_zero_snr": False}
FINAL = {"final_sigmas_type": "zero"}
SOLVER = {"solver_order": 2, "lower_order_final": True}
CLIPPED = {"lambda_min_clipped": -math.inf, "variance_type": None}
FEW = {"original_inference_steps": 50, "set_alpha_to_one": True, "timestep_scaling": 10.0}
EDM = {
    "sigma_min": 0.002,
    "sigma_max": 80.0,
    "sigma_data": 0.5,
    "sigma_schedule": "karras",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
    "rho": 7.0,
    "final_sigmas_type": "zero",
}

# Options that change nothing by themselves: what they belong to is reported or refused where it is on.
INERT = (
    *("_class_name", "_diffusers_version", "_use_default_values"),
    *("clip_sample_range", "dynamic_thresholding_ratio", "sample_max_value"),
    *("timestep_scaling", "time_shift_type", "num_train_timesteps"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
)

_EXACT = "its weight of the second difference is half the integral's: here it is whole, and the order 3"
_INNER = "it counts calls as steps and calls the network at the grid's times: here a step has its own inner points"


@dataclass(frozen=True)
class Row:
    """One sampler of a scheduler.

    Attributes:
        options: of the configuration, that select it.
        sampler: ours.
        differs: what is not the same, if anything.
    """

    options: Mapping[str, Any]
    sampler: Mapping[str, Any]
    differs: str | None = None


@dataclass(frozen=True)
class Scheduler:
    """What a class of diffusers is.

    Attributes:
        kind: how it spaces its timesteps (grid ``diffusers``), or ``flow`` or ``edm``.
        options: all its options and their defaults.
        samplers: what it does, the first row that fits.
        final: where it ends if no option says so.
    """

    kind: Literal["points", "sigmas", "intervals", "flow", "edm"]
    options: Mapping[str, Any]
    samplers: tuple[Row, ...]
    final: Literal["zero", "sigma_min"] = "zero"


def _only(name: str, differs: str | None = None, **options: Any) -> tuple[Row, ...]:
    return (Row({}, {"name": name, **options}, differs),)


_DDPM = (
    Row({"variance_type": "fixed_small"}, {"name": "ddpm", "variance": "small"}),
    Row({"variance_type": "fixed_small_log"}, {"name": "ddpm", "variance": "small"}),
    Row({"variance_type": "fixed_large"}, {"name": "ddpm", "variance": "large"}),
    Row({"variance_type": "learned_range"}, {"name": "ddpm", "variance": "learned"}),
)
_ODE, _SDE = {"algorithm_type": "dpmsolver++"}, {"algorithm_type": "sde-dpmsolver++"}
_OLD = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
_MULTISTEP = (
    Row(_ODE | {"solver_order": 1}, {"name": "dpmpp_1"}),
    Row(_ODE | {"solver_order": 2, "solver_type": "midpoint"}, {"name": "dpmpp_2m", "simplified": True}),
    Row(_ODE | {"solver_order": 2, "solver_type": "heun"}, {"name": "dpmpp_2m"}),
    Row(_ODE | {"solver_order": 3}, {"name": "dpmpp_3m"}, _EXACT),
    Row(_SDE | {"solver_order": 1}, {"name": "dpmpp_1_sde"}),
    Row(_SDE | {"solver_order": 2, "solver_type": "midpoint"}, {"name": "dpmpp_2m_sde", "simplified": True}),
    Row(_SDE | {"solver_order": 2, "solver_type": "heun"}, {"name": "dpmpp_2m_sde"}),
    Row(_SDE | {"solver_order": 3}, {"name": "dpmpp_3m_sde"}, _EXACT),
    Row(_OLD | {"solver_order": 1}, {"name": "dpm_1"}),
    Row(_OLD | {"solver_order": 2, "solver_type": "heun"}, {"name": "deis", "order": 2}),
)
_SINGLESTEP = (
    Row(_ODE | {"solver_order": 1}, {"name": "dpmpp_1"}),
    Row(_ODE | {"solver_order": 2}, {"name": "dpmpp_2s"}, _INNER),
    Row(_ODE | {"solver_order": 3}, {"name": "dpmpp_3s"}, _INNER),
)
_DEIS = tuple(
    Row({"algorithm_type": "deis", "solver_type": "logrho", "solver_order": k}, {"name": "deis", "order": k})
    for k in (1, 2, 3)
)
_UNIPC = tuple(
    Row(
        {"predict_x0": True, "solver_type": "bh2", "solver_order": k}, {"name": "unipc", "order": k, "simplified": True}
    )
    for k in (1, 2, 3)
)

SCHEDULERS: dict[str, Scheduler] = {
    "DDIMScheduler": Scheduler(
        "points",
        BETAS | LEADING | THRESHOLDS | CLIPS | ZERO_SNR | {"clip_sample": True, "set_alpha_to_one": True},
        _only("ddim"),
    ),
    "DDPMScheduler": Scheduler(
        "points",
        BETAS | LEADING | THRESHOLDS | CLIPS | ZERO_SNR | {"clip_sample": True, "variance_type": "fixed_small"},
        _DDPM,
    ),
    "PNDMScheduler": Scheduler(
        "points",
        BETAS | LEADING | {"skip_prk_steps": False, "set_alpha_to_one": False},
        (
            Row(
                {"skip_prk_steps": True},
                {"name": "ipndm"},
                "its first step is Heun's, with two calls: here it is Euler's, with one",
            ),
            Row(
                {"skip_prk_steps": False},
                {"name": "pndm"},
                "the middles of its first steps lie at the mean timestep: here at the mean sigma / alpha",
            ),
        ),
    ),
    "EulerDiscreteScheduler": Scheduler(
        "sigmas",
        BETAS
        | SPACING
        | SIGMAS
        | ZERO_SNR
        | FINAL
        | {"interpolation_type": "linear", "timestep_type": "discrete", "sigma_min": None, "sigma_max": None},
        _only("euler"),
    ),
    "EulerAncestralDiscreteScheduler": Scheduler("sigmas", BETAS | SPACING | ZERO_SNR, _only("ddim", eta=1.0)),
    "HeunDiscreteScheduler": Scheduler(
        "sigmas", LATENT_BETAS | SPACING | SIGMAS | CLIPS, _only("heun", coordinate="sigma")
    ),
    "LMSDiscreteScheduler": Scheduler(
        "sigmas",
        BETAS | SPACING | SIGMAS,
        _only("lms", "its last step, to t = 0, has its full order: here it is Euler's"),
    ),
    "KDPM2DiscreteScheduler": Scheduler("sigmas", LATENT_BETAS | SPACING | SIGMAS, _only("dpm_2", simplified=True)),
    "DPMSolverMultistepScheduler": Scheduler(
        "intervals",
        BETAS
        | SPACING
        | SIGMAS
        | THRESHOLDS
        | FLOWS
        | DYNAMIC
        | ZERO_SNR
        | FINAL
        | SOLVER
        | CLIPPED
        | {
            "algorithm_type": "dpmsolver++",
            "solver_type": "midpoint",
            "euler_at_final": False,
            "use_lu_lambdas": False,
        },
        _MULTISTEP,
    ),
    "DPMSolverSinglestepScheduler": Scheduler(
        "intervals",
        BETAS
        | SIGMAS
        | THRESHOLDS
        | FLOWS
        | DYNAMIC
        | FINAL
        | SOLVER
        | CLIPPED
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "lower_order_final": False},
        _SINGLESTEP,
    ),
    "DEISMultistepScheduler": Scheduler(
        "intervals",
        BETAS
        | SPACING
        | SIGMAS
        | THRESHOLDS
        | FLOWS
        | DYNAMIC
        | SOLVER
        | {"algorithm_type": "deis", "solver_type": "logrho"},
        _DEIS,
        final="sigma_min",
    ),
    "UniPCMultistepScheduler": Scheduler(
        "intervals",
        BETAS
        | SPACING
        | SIGMAS
        | THRESHOLDS
        | FLOWS
        | DYNAMIC
        | ZERO_SNR
        | FINAL
        | SOLVER
        | {
            "predict_x0": True,
            "solver_type": "bh2",
            "disable_corrector": [],
            "solver_p": None,
            "sigma_min": None,
            "sigma_max": None,
            "shift_terminal": None,
        },
        _UNIPC,
    ),
    "FlowMatchEulerDiscreteScheduler": Scheduler(
        "flow",
        SIGMAS
        | DYNAMIC
        | {
            "num_train_timesteps": 1000,
            "shift": 1.0,
            "base_shift": 0.5,
            "max_shift": 1.15,
            "base_image_seq_len": 256,
            "max_image_seq_len": 4096,
            "invert_sigmas": False,
            "shift_terminal": None,
            "stochastic_sampling": False,
        },
        (Row({"stochastic_sampling": False}, {"name": "euler"}), Row({"stochastic_sampling": True}, {"name": "lcm"})),
    ),
    "FlowMatchHeunDiscreteScheduler": Scheduler(
        "flow",
        {"num_train_timesteps": 1000, "shift": 1.0},
        _only("heun", "its last step, to t = 0, is Euler's: here it is Heun's as well", coordinate="flow"),
    ),
    "LCMScheduler": Scheduler(
        "points",
        LATENT_BETAS | LEADING | THRESHOLDS | CLIPS | ZERO_SNR | FEW | {"beta_schedule": "scaled_linear"},
        _only("lcm"),
    ),
    "TCDScheduler": Scheduler(
        "points",
        LATENT_BETAS | LEADING | THRESHOLDS | CLIPS | ZERO_SNR | FEW | {"beta_schedule": "scaled_linear"},
        _only("tcd", "it rounds the times that the network is taken to, and ends at the lowest level, not at t = 0"),
    ),
    "EDMEulerScheduler": Scheduler("edm", EDM, _only("euler")),
    "EDMDPMSolverMultistepScheduler": Scheduler(
        "edm",
        EDM
        | THRESHOLDS
        | SOLVER
        | {"algorithm_type": "dpmsolver++", "solver_type": "midpoint", "euler_at_final": False},
        _MULTISTEP[:-2],
    ),
}

# Schedulers that exist and have no equal here, and why.
REFUSED = {
    "SASolverScheduler": "its share of noise is a Python function of the timestep; sampler 'sa_solver' takes a range",
    "DPMSolverSDEScheduler": "its noise is a Brownian tree's and two calls make a step; 'dpmpp_2m_sde' is the nearest",
    "IPNDMScheduler": "its noise levels are of its own; sampler 'ipndm' runs on any schedule",
    "KDPM2AncestralDiscreteScheduler": "its middle is that of log sigma; sampler 'dpm2_ancestral' takes that of sigma",
    "ScoreSdeVeScheduler": "it has corrector steps at each level",
}
