"""What a sampling step costs beside the network: ours against diffusers' schedulers, method by method.

    python benchmarks/sampler_overhead.py [--rounds 15] [--steps 50] [--shape 4 4 32 32]

The "network" returns a tensor made beforehand, so that only the solver's arithmetic and bookkeeping are timed. Both
libraries run whole trajectories in this process by turns; the figures are medians over the rounds, a step each. Ours
is timed through ``sample``, with planning; theirs through ``set_timesteps``, ``scale_model_input`` and ``step``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.schedules import SCHEDULES

# method: (our sampler, our schedule, diffusers' class, its options)
PAIRS: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "Euler (flow)": ("euler", "flow", "FlowMatchEulerDiscreteScheduler", {}),
    "Euler (sigma)": ("euler", "linear", "EulerDiscreteScheduler", {}),
    "Euler ancestral": ({"name": "ddim", "eta": 1.0}, "linear", "EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("ddim", "linear", "DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("ddpm", "linear", "DDPMScheduler", {"clip_sample": False}),
    "Heun": ("heun", "edm", "HeunDiscreteScheduler", {}),
    "DPM-Solver++ 2M": ("dpmpp_2m", "linear", "DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 3M": ("dpmpp_3m", "linear", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM-Solver++ 2M SDE": (
        "dpmpp_2m_sde",
        "linear",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM-Solver++ 2S": ("dpmpp_2s", "linear", "DPMSolverSinglestepScheduler", {"solver_order": 2}),
    "DEIS": ({"name": "deis", "order": 2}, "linear", "DEISMultistepScheduler", {}),
    "UniPC": ("unipc", "linear", "UniPCMultistepScheduler", {}),
}


def ours(sampler: Any, schedule_name: str, shape: tuple[int, ...], steps: int) -> Callable[[], None]:
    schedule, solver = SCHEDULES.build(schedule_name), SAMPLERS.build(sampler)
    estimate = Estimate(torch.randn(shape), torch.randn(shape))
    x = torch.randn(shape)

    def run() -> None:
        grid = make_grid("uniform", steps, schedule)
        generators = sample_generators(0, range(shape[0]))
        for _ in sample(
            solver, lambda x, t, cond, previous: estimate, x, grid, schedule=schedule, generators=generators
        ):
            pass

    return run


def theirs(class_name: str, options: dict[str, Any], shape: tuple[int, ...], steps: int) -> Callable[[], None]:
    import diffusers

    scheduler = getattr(diffusers, class_name)(**options)
    output, start = torch.randn(shape), torch.randn(shape)
    # One generator for each sample, as ours has, where the scheduler draws noise.
    draws = "generator" in scheduler.step.__code__.co_varnames

    def run() -> None:
        scheduler.set_timesteps(steps)
        generators = [torch.Generator().manual_seed(i) for i in range(shape[0])]
        extra = {"generator": generators} if draws else {}
        x = start
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, **extra).prev_sample

    return run


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 4, 32, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shape, steps = tuple(arguments.shape), arguments.steps
    print(
        f"microseconds a step; {steps} steps, shape {shape}, median of {arguments.rounds} rounds by turns, 1 thread, cpu"
    )
    print(f"{'method':22}{'ours':>8}{'diffusers':>11}{'ratio':>8}")
    for method, (sampler, schedule, class_name, options) in PAIRS.items():
        runs = ours(sampler, schedule, shape, steps), theirs(class_name, options, shape, steps)
        for run in runs:
            run()
        times = [[seconds(run) for run in runs] for _ in range(arguments.rounds)]
        mine, other = (1e6 * statistics.median(column) / steps for column in zip(*times, strict=True))
        print(f"{method:22}{mine:8.1f}{other:11.1f}{mine / other:8.2f}")


if __name__ == "__main__":
    main()
