"""What a sampling step costs beside the network: ours against diffusers' schedulers, method by method.

    python benchmarks/sampler_overhead.py [--rounds 25] [--steps 50] [--shape 4 4 32 32]

The "network" returns a tensor made beforehand, so that only the solver's arithmetic and bookkeeping are timed, in CPU
time of one thread. Both libraries run whole trajectories in this process by turns; the ratio is the median of the
rounds' ratios. Ours is timed through ``sample``, theirs through ``scale_model_input`` and ``step``. The set-up (our
plan of coefficients, their ``set_timesteps``) is done once for a trajectory and shown apart. Needs diffusers.
"""

from __future__ import annotations

import argparse
import inspect
import logging
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import Estimate
from noiseloom.core.randomness import sample_generators
from noiseloom.core.samplers import SAMPLERS, Step, sample
from noiseloom.core.schedules import SCHEDULES

Run = Callable[[Any], int]

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}

# method: (our sampler, our schedule, diffusers' class, its options)
PAIRS: dict[str, tuple[Any, str, str, dict[str, Any]]] = {
    "Euler (flow)": ("euler", "flow", "FlowMatchEulerDiscreteScheduler", {}),
    "Euler (sigma)": ("euler", "linear", "EulerDiscreteScheduler", {}),
    "Euler ancestral": ("euler_ancestral", "linear", "EulerAncestralDiscreteScheduler", {}),
    "DDIM": ("ddim", "linear", "DDIMScheduler", {"clip_sample": False}),
    "DDPM": ("ddpm", "linear", "DDPMScheduler", {"clip_sample": False}),
    "Heun": ("heun", "edm", "HeunDiscreteScheduler", {}),
    "LMS": ("lms", "linear", "LMSDiscreteScheduler", {}),
    "PNDM": ("ipndm", "linear", "PNDMScheduler", {"skip_prk_steps": True}),
    "DPM-2": ({"name": "dpm_2", "simplified": True}, "linear", "KDPM2DiscreteScheduler", {}),
    "DPM-Solver++ 2M": ("dpmpp_2m", "linear", "DPMSolverMultistepScheduler", {}),
    "DPM-Solver++ 3M": ("dpmpp_3m", "linear", "DPMSolverMultistepScheduler", {"solver_order": 3}),
    "DPM-Solver++ 2M SDE": (
        "dpmpp_2m_sde",
        "linear",
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    "DPM-Solver++ 2S": ("dpmpp_2s", "linear", "DPMSolverSinglestepScheduler", {"lower_order_final": True}),
    "DEIS": ({"name": "deis", "order": 2}, "linear", "DEISMultistepScheduler", {}),
    "UniPC": ({"name": "unipc", "simplified": True}, "linear", "UniPCMultistepScheduler", {}),
    "ABM (flow), UniPC": ("abm", "flow", "UniPCMultistepScheduler", FLOW),
    "LCM": ("lcm", "scaled_linear", "LCMScheduler", {}),
    "TCD": ("tcd", "scaled_linear", "TCDScheduler", {}),
}


def ours(sampler: Any, schedule_name: str, shape: tuple[int, ...], steps: int) -> tuple[Callable[[], Any], Run]:
    schedule, solver = SCHEDULES.build(schedule_name), SAMPLERS.build(sampler)
    estimate, x = Estimate(torch.randn(shape), torch.randn(shape)), torch.randn(shape)

    def denoise(x: torch.Tensor, t: Any, cond: Any, previous: Any) -> Estimate:
        return estimate

    def start() -> Iterator[Step]:
        grid = make_grid("uniform", steps, schedule)
        generators = sample_generators(0, range(shape[0]))
        return sample(solver, denoise, x, grid, schedule=schedule, generators=generators)

    def run(trajectory: Iterator[Step]) -> int:
        for _ in trajectory:
            pass
        return steps * (solver.calls_per_step or 1)

    return start, run


def theirs(
    class_name: str, options: dict[str, Any], shape: tuple[int, ...], steps: int
) -> tuple[Callable[[], Any], Run]:
    import diffusers

    scheduler = getattr(diffusers, class_name)(**options)
    output, noise = torch.randn(shape), torch.randn(shape)
    draws = "generator" in inspect.signature(scheduler.step).parameters

    def start() -> dict[str, Any]:
        scheduler.set_timesteps(steps)
        generators = [torch.Generator().manual_seed(i) for i in range(shape[0])]  # one for each sample, as ours
        return {"generator": generators} if draws else {}

    def run(extra: dict[str, Any]) -> int:
        x = noise
        for t in scheduler.timesteps:
            if hasattr(scheduler, "scale_model_input"):
                scheduler.scale_model_input(x, t)
            x = scheduler.step(output, t, x, return_dict=False, **extra)[0]
        return len(scheduler.timesteps)

    return start, run


def timed(start: Callable[[], Any], run: Run) -> tuple[float, float]:
    """Microseconds of the set-up, and of a call."""
    begin = time.thread_time_ns()
    state = start()
    middle = time.thread_time_ns()
    calls = run(state)
    return (middle - begin) / 1e3, (time.thread_time_ns() - middle) / 1e3 / calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--shape", type=int, nargs="+", default=[4, 4, 32, 32])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    shape, steps = tuple(arguments.shape), arguments.steps
    print(f"Shape {shape}, {steps} steps, 1 thread on the CPU; medians of {arguments.rounds} rounds by turns.")
    print("Microseconds a call of the network, network excluded; and of the set-up, once for a trajectory.\n")
    print(f"{'method':22}{'ours':>9}{'diffusers':>11}{'ratio':>8}{'set-up: ours':>15}{'diffusers':>11}")
    for method, (sampler, schedule, class_name, options) in PAIRS.items():
        pair = ours(sampler, schedule, shape, steps), theirs(class_name, options, shape, steps)
        for start, run in pair:
            run(start())
        rounds = [[timed(*one) for one in pair] for _ in range(arguments.rounds)]
        columns = [
            [statistics.median(figures) for figures in zip(*side, strict=True)] for side in zip(*rounds, strict=True)
        ]
        (set_up, mine), (their_set_up, other) = columns
        ratio = statistics.median(a[1] / b[1] for a, b in rounds)
        print(f"{method:22}{mine:9.1f}{other:11.1f}{ratio:8.2f}{set_up:15.0f}{their_set_up:11.0f}")


if __name__ == "__main__":
    main()
