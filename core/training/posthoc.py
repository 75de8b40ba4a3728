r"""Averages of weights chosen after training (Karras et al. 2024, EDM2, section 3).

The power-function average of exponent gamma at update t weighs the past, tau in [0, t], by ``p(tau) = (gamma + 1)
tau^gamma / t^(gamma + 1)``. A run stores snapshots of two such averages from time to time; any other one is nearly the
sum of snapshots whose profile is nearest to its own in the mean square (algorithm 3), from the inner products

    int p_a p_b = (gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) * min(t_a, t_b)^(gamma_a + gamma_b + 1)
                  / (t_a^(gamma_a + 1) t_b^(gamma_b + 1))
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from .checkpoint import CheckpointError, separate, step_directory
from .ema import EMA, power_function, power_function_exponent

FOLDER = "ema"  # of a run, which holds its snapshots


class Profile(NamedTuple):
    """An average: after ``updates``, of width ``std`` relative to them."""

    updates: int
    std: float


def inner_products(a: Sequence[Profile], b: Sequence[Profile]) -> np.ndarray:
    """``int p_a p_b`` of each pair, float64."""
    (t, gamma), (s, delta) = (
        (np.array([p.updates for p in some], float), np.array([power_function_exponent(p.std) for p in some]))
        for some in (a, b)
    )
    t, gamma = t[:, None], gamma[:, None]
    total = gamma + delta + 1
    shrink = total * np.log(np.minimum(t, s)) - (gamma + 1) * np.log(t) - (delta + 1) * np.log(s)
    return (gamma + 1) * (delta + 1) / total * np.exp(shrink)


def coefficients(stored: Sequence[Profile], wanted: Profile) -> np.ndarray:
    """The weight of each stored average in the wanted one."""
    return np.linalg.lstsq(inner_products(stored, stored), inner_products(stored, [wanted])[:, 0], rcond=1e-13)[0]


class Snapshots:
    """Averages of a module's parameters that are stored as training goes on.

    Args:
        module: whose weights to average.
        stds: the widths of the averages.
        folder: where their snapshots go.
    """

    def __init__(self, module: nn.Module, stds: Sequence[float], folder: Path) -> None:
        self.averages = {f"{std:g}": EMA(module, power_function(std)) for std in stds}
        self.folder = folder

    def update(self, t: int) -> None:
        """Take the module's weights in, as update ``t`` (from 1)."""
        for average in self.averages.values():
            average.update(t)

    def store(self, step: int, updates: int) -> None:
        """Write a snapshot of each average, as that of ``step``, in which there had been ``updates``."""
        from safetensors.torch import save

        folder = step_directory(self.folder, step)
        folder.mkdir(parents=True, exist_ok=True)
        for std, average in self.averages.items():
            content = save(separate(average.state_dict()), metadata={"profile": f"{updates} {std}"})
            unfinished = folder / f".{std}.unfinished"
            unfinished.write_bytes(content)
            os.replace(unfinished, folder / f"std-{std}.safetensors")

    def state_dict(self) -> dict[str, Tensor]:
        """All averages, by width and parameter."""
        return {
            f"{std}/{name}": value
            for std, average in self.averages.items()
            for name, value in average.state_dict().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for std, average in self.averages.items():
            own = {name.removeprefix(f"{std}/"): v for name, v in state.items() if name.startswith(f"{std}/")}
            average.load_state_dict(own)


def reconstruct(folder: Path, std: float, step: int | None = None) -> dict[str, Tensor]:
    """The average of width ``std`` from the snapshots in ``folder``, by parameter, float32.

    Args:
        step: where it ends, one that has snapshots; by default the last.

    Raises:
        CheckpointError: there are no snapshots, or none of ``step``.
        ValueError: a width out of range.
    """
    from safetensors import safe_open

    found: dict[Path, Profile] = {}
    for path in sorted(folder.glob("step_*/std-*.safetensors")):
        with safe_open(path, framework="pt") as file:
            updates, width = file.metadata()["profile"].split()
        found[path] = Profile(int(updates), float(width))
    if not found:
        raise CheckpointError(f"{folder} holds no snapshots: they are made by a run with trainer.ema_snapshots")
    ends = [path for path in found if step is None or path.parent == step_directory(folder, step)]
    if not ends:
        steps = sorted({int(path.parent.name.removeprefix("step_")) for path in found})
        raise CheckpointError(f"{folder} has no snapshots of step {step}; it has {', '.join(map(str, steps))}")
    wanted = Profile(max(found[path].updates for path in ends), std)
    used = {path: profile for path, profile in found.items() if 0 < profile.updates <= wanted.updates}
    total: dict[str, Tensor] = {}
    for path, weight in zip(used, coefficients(list(used.values()), wanted), strict=True):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                value = file.get_tensor(name).double() * float(weight)
                total[name] = total[name] + value if name in total else value
    return {name: value.to(torch.float32) for name, value in total.items()}
