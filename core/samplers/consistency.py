"""Few-step samplers of networks of two times, whose one step from t lands at s: consistency models, MeanFlow,
shortcuts, progressive students. A network of one time takes their steps for DDIM's."""

from __future__ import annotations

from torch import Tensor

from ..schedules import Schedule
from .exponential import Interval
from .overshoot import Overshoot
from .sampler import SAMPLERS, LinearSampler, Move, Stage, rows


@SAMPLERS.register("flow_map")
class FlowMap(LinearSampler):
    """Euler's method, the denoiser being told where the step ends: exact in any number of steps for an exact flow map
    (Boffi et al. 2025; Geng et al. 2025, alg. 2)."""

    order = 1

    def plan(self, schedule: Schedule, grid: Tensor) -> list[Move]:
        weights = zip(*map(rows, Interval(schedule, grid[:-1], grid[1:]).first_order()), strict=True)
        return [Move((Stage(t, row, target=s),)) for t, s, row in zip(grid[:-1], grid[1:], weights, strict=True)]


@SAMPLERS.register("lcm")
def lcm() -> Overshoot:
    """Multistep consistency sampling: to t = 0 at every step, then fresh noise up to s (Song et al. 2023, alg. 1; LCM,
    Luo et al. 2023)."""
    return Overshoot(FlowMap(), 1.0, "time")


@SAMPLERS.register("tcd")
def tcd(eta: float = 0.3) -> Overshoot:
    """Strategic stochastic sampling of trajectory consistency (Zheng et al. 2024, alg. 3).

    Args:
        eta: the paper's gamma: the network is taken to (1 - eta) s, then noise is added up to s; 0 is ``flow_map``, 1
            ``lcm``.
    """
    return Overshoot(FlowMap(), eta, "time")
