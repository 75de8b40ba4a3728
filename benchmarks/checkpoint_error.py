"""How far solvers are from the solution on trained networks, by the calls that they make.

    python benchmarks/checkpoint_error.py [--checkpoints audio-digits ...] [--count 8] [--plot FILE.png] [--out FILE]

The solution is that of the same noise, guidance and conditions with ``--reference`` calls of dpmpp_2m on the same grid.
The error is the root mean square of the difference of the final states over that of the solution, the median over
samples. A solver of several calls a step gets as many steps as the budget allows.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch
from _tables import table, write_figures

import noiseloom
from noiseloom.core.pipeline import Pipeline
from noiseloom.core.pipeline.settings import sample_seeds
from noiseloom.core.samplers import SAMPLERS, trajectory
from noiseloom.core.samples import parts

REQUESTS: dict[str, dict[str, Any]] = {
    "audio-digits": {"label": list(range(8))},
    "video-digits": {"label": ["3", "1,7", "5", "0,8", "2", "4,9", "6", "2,6"]},
    "molecules-qm9": {},
}


def solution(pipeline: Pipeline, sampler: Any, steps: int, count: int, grid: Any) -> list[dict[str, torch.Tensor]]:
    """The final states of ``count`` samples, part by part."""
    name = Path(str(pipeline.config.get("run", ""))).name
    asked = {key: value[:count] for key, value in REQUESTS.get(name, {}).items()}
    modality: Any = pipeline.modality
    request = pipeline.request(**asked)
    seeds = sample_seeds(0, count, None)
    plans = modality.plans(request, seeds)
    order = sorted(range(count), key=lambda i: plans[i].size)
    layout = modality.layout(request, [plans[i] for i in order])
    denoise = pipeline.guided(precision="fp32")
    temperature = (pipeline.config.get("sampling") or {}).get("temperature", 1.0)
    if layout.wrap is not None:
        denoise = layout.wrap(denoise)
    with torch.no_grad():
        *_, last = trajectory(
            denoise, layout.start, sampler=sampler, steps=steps, grid=grid, seeds=[seeds[i] for i in order],
            space=layout.space, cond=layout.cond, known=layout.known, strength=layout.strength,
            schedule=pipeline.denoiser.schedule, temperature=temperature,
        )  # fmt: skip
    return [{part: value[i] for part, value in parts(last.x).items()} for i in range(count)]


def error(made: list[dict[str, torch.Tensor]], true: list[dict[str, torch.Tensor]]) -> float:
    """The median over samples of the relative error over all parts."""
    each = []
    for one, other in zip(made, true, strict=True):
        gap = sum(float(((one[part] - other[part]) ** 2).sum()) for part in other)
        each.append((gap / sum(float((value**2).sum()) for value in other.values())) ** 0.5)
    return statistics.median(each)


def draw(figures: dict[str, dict[str, dict[int, float]]], path: Path) -> None:
    """One plot for each checkpoint."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(figures), figsize=(4.2 * len(figures), 3.6), squeeze=False)
    for axis, (name, solvers) in zip(axes[0], figures.items(), strict=True):
        for solver, by_calls in solvers.items():
            axis.loglog(list(by_calls), list(by_calls.values()), marker="o", markersize=3, label=solver)
        ticks = sorted({calls for by_calls in solvers.values() for calls in by_calls})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set(title=name, xlabel="network calls", ylabel="relative error")
        axis.grid(alpha=0.3)
    axes[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=90)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", nargs="+", default=list(REQUESTS))
    parser.add_argument(
        "--solvers", nargs="+",
        default=["euler", "heun", "dpmpp_2m", "dpmpp_3m", "deis", "unipc", "ipndm", "abm"],
    )  # fmt: skip
    parser.add_argument("--budgets", nargs="+", type=int, default=[5, 8, 10, 15, 20])
    parser.add_argument("--count", type=int, default=8, help="samples")
    parser.add_argument("--reference", type=int, default=100, help="calls of the solution")
    parser.add_argument("--grid", help="by default the checkpoint's own")
    parser.add_argument("--plot", type=Path, help="also draw it")
    parser.add_argument("--out", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures: dict[str, dict[str, dict[int, float]]] = {}
    for name in arguments.checkpoints:
        pipeline = noiseloom.load(name)
        pipeline.config["run"] = name
        grid = arguments.grid or (pipeline.config.get("sampling") or {}).get("grid", "uniform")
        true = solution(pipeline, "dpmpp_2m", arguments.reference, arguments.count, grid)
        mine: dict[str, dict[int, float]] = {}
        for solver in arguments.solvers:
            per_step = SAMPLERS.build(solver).calls_per_step
            mine[solver] = {
                calls: error(solution(pipeline, solver, calls // per_step, arguments.count, grid), true)
                for calls in arguments.budgets
            }
        figures[name] = mine
        rows = [[solver, *(f"{value:.4f}" for value in by_calls.values())] for solver, by_calls in mine.items()]
        print(f"{name}, {arguments.count} samples, grid {grid}: error after network calls\n")
        print(table(["", *map(str, arguments.budgets)], rows) + "\n")
    if arguments.plot:
        draw(figures, arguments.plot)
    write_figures(arguments.out, {"figures": figures, "n": arguments.count, "reference": arguments.reference})


if __name__ == "__main__":
    main()
