"""How far solvers are from the solution, by the calls of the denoiser that they may make: ours beside others'.

    python benchmarks/sampler_error.py [--kdiffusion FOLDER] [--azula FOLDER] [--schedules flow linear edm]
                                       [--mixture oracle] [--plot FILE.png]

The data is a mixture of normals in one dimension, of which the exact denoiser and the exact solution of the
probability-flow ODE are known (tests/oracles), in float64. 256 quantiles of the noise at t = 1 are taken to t = 0 by
each solver, with as many steps as the calls allow; the error is the mean distance from the exact solution, so it shows
the solver alone: there is no network to be wrong. Only solvers without noise have such an error.

Each solver of the others is run on all the grids that its library offers for it, of which the least error is kept at
each number of calls ("its best"), and on our recommended grid where it takes any ("same grid"). ``FOLDER`` holds the
source of k-diffusion (crowsonkb/k-diffusion) or azula (probabilists/azula); diffusers is imported where it is there.
They are told the exact noise level of each call, whatever their rounding of timesteps.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from _solvers import BUDGETS, Problem, Row, azula_rows, diffusers_rows, errors, kdiffusion_rows, least, problem

from noiseloom.core.grids import make_grid
from noiseloom.core.predictions import Estimate
from noiseloom.core.samplers import SAMPLERS, sample
from noiseloom.core.schedules import SCHEDULES
from tests.oracles import Mixture

MIXTURES = {
    "oracle": Mixture(),
    "narrow": Mixture((0.5, 0.3, 0.2), (-1.2, 0.2, 1.3), (0.05, 0.1, 0.3)),
    "wide": Mixture((0.6, 0.4), (-0.8, 0.9), (0.5, 0.6)),
}
RECOMMENDED = "abm", "logistic"
OURS: list[Any] = [
    "abm", {"name": "abm", "order": 2}, "ddim", "dpmpp_2m", {"name": "dpmpp_2m", "simplified": True}, "dpmpp_3m",
    {"name": "unipc", "order": 1}, "unipc", {"name": "unipc", "simplified": True}, {"name": "unipc", "order": 3},
    {"name": "deis", "order": 2}, "deis", "lms", "ipndm", "pndm", "heun", "midpoint",
    "dpmpp_2s", "dpmpp_3s", "dpm_2", "dpm_3", "res_2s", "res_3s",
]  # fmt: skip
GRIDS: list[Any] = ["logistic", "uniform", "karras", "log_snr"]


def ours(task: Problem, sampler: Any, grid: Any) -> list[float]:
    solver, calls = SAMPLERS.build(sampler), [0]

    def denoise(x: Tensor, t: Any, cond: Any = None, previous: Any = None) -> Estimate:
        calls[0] += 1
        alpha, sigma = task.schedule.alpha_sigma(t)
        x0 = task.x0(x, alpha, sigma)
        return Estimate(x0, lambda: (x - alpha * x0) / sigma)

    def run(steps: int) -> tuple[Tensor, int]:
        calls[0], x = 0, task.x
        for step in sample(solver, denoise, x, make_grid(grid, steps, task.schedule), schedule=task.schedule):
            x = step.x
        return x, calls[0]

    return errors(task, run, solver.calls_per_step or 1)


def our_rows(task: Problem) -> Iterator[Row]:
    for sampler in OURS:
        for grid in GRIDS:
            yield Row("noiseloom", label(sampler), label(grid), ours(task, sampler, grid))


def label(spec: Any) -> str:
    if isinstance(spec, str):
        return spec
    options = ",".join(f"{key}={value}" for key, value in spec.items() if key != "name")
    return f"{spec['name']}({options})" if options else str(spec["name"])


LIBRARIES = [(name, grid) for name in ("diffusers", "k-diffusion", "azula") for grid in ("its best", "same grid")]


def summary(rows: Sequence[Row]) -> str:
    """The recommended default, and the least error of each library."""
    best = next(row for row in rows if row[:3] == ("noiseloom", *map(label, RECOMMENDED)))
    lines = [line("recommended: " + best.method + " on " + best.grid, best.errors)]
    for library, grid in LIBRARIES:
        if theirs := [row for row in rows if (row.library, row.grid) == (library, grid)]:
            lowest = least([row.errors for row in theirs])
            who = [next((row.method for row in theirs if row.errors[i] == value), "") for i, value in enumerate(lowest)]
            lines.append(line(f"least of {library}, {grid}", lowest) + "   " + ", ".join(who))
    return "\n".join(lines)


def line(name: str, values: Sequence[float]) -> str:
    return f"{name:58}" + "".join(f"{value:10.2e}" for value in values)


SHOWN = {
    "abm": ("abm", "logistic"),
    "unipc": ("unipc", "logistic"),
    "dpmpp_2m": ("dpmpp_2m", "logistic"),
    "heun": ("heun", "logistic"),
    "ddim": ("ddim", "logistic"),
    "dpmpp_2m, uniform": ("dpmpp_2m", "uniform"),
}


def plot(found: dict[str, list[Row]], path: Path) -> None:
    """Error against calls, one panel for each schedule."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), sharey=True, squeeze=False)
    for axis, (name, rows) in zip(axes[0], found.items(), strict=True):
        by_name = {row[1:3]: row.errors for row in rows if row.library == "noiseloom"}
        for text, key in SHOWN.items():
            axis.plot(BUDGETS, by_name[key], "o-", ms=3, lw=2.2 if text == "abm" else 1.2, label=text)
        for style, library in zip((":", "--", "-."), ("diffusers", "k-diffusion", "azula"), strict=True):
            if theirs := [row.errors for row in rows if row.library == library]:
                axis.plot(BUDGETS, least(theirs), f"k{style}", lw=1, label=f"least of {library}")
        axis.set(title=f"schedule {name}", xlabel="calls of the denoiser", xscale="log", yscale="log")
        axis.set_xticks(BUDGETS, [str(budget) for budget in BUDGETS])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("mean error")
    figure.legend(*axes[0][-1].get_legend_handles_labels(), loc="lower center", ncol=9, fontsize=8, columnspacing=1)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    figure.savefig(path, dpi=85)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kdiffusion", type=Path)
    parser.add_argument("--azula", type=Path)
    parser.add_argument("--schedules", nargs="+", default=["flow", "linear", "edm"])
    parser.add_argument("--mixture", default="oracle", choices=list(MIXTURES))
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found: dict[str, list[Row]] = {}
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for name in arguments.schedules:
        task, same = problem(name, SCHEDULES.build(name), MIXTURES[arguments.mixture]), RECOMMENDED[1]
        rows = found[name] = list(our_rows(task))
        if importlib.util.find_spec("diffusers"):
            rows += diffusers_rows(task, same)
        rows += kdiffusion_rows(task, same, arguments.kdiffusion) if arguments.kdiffusion else []
        rows += azula_rows(task, same, arguments.azula) if arguments.azula else []
        print(f"\nSchedule {name}, mixture {arguments.mixture}: mean error at so many calls\n")
        print(f"{'':58}" + "".join(f"{budget:>10}" for budget in BUDGETS))
        for row in rows:
            print(line(f"{row.library:12}{row.method:30}{row.grid}", row.errors))
        print("\n" + summary(rows), flush=True)
    if arguments.plot:
        plot(found, arguments.plot)


if __name__ == "__main__":
    main()
