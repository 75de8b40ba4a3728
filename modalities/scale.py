"""What training data is normalised by, and what is odd about its scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor, nn

_STILL = 1e-3  # a deviation below which a number says nothing
_BLOCK = 1 << 22  # numbers that are looked at at a time


def weight_sums(module: nn.Module) -> list[list]:
    """What tells apart modules of one architecture, as plain values: for the cache of what they made."""
    return [[name, float(v.double().sum()), float(v.double().abs().sum())] for name, v in module.state_dict().items()]


def moments(data: np.ndarray) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each column of (n, width) numbers, a block at a time.

    One that hardly changes is given the others' deviation: in an item to edit it may change.
    """
    width = data.shape[1]
    count, mean, square, rows = 0, np.zeros(width), np.zeros(width), max(_BLOCK // width, 1)
    for start in range(0, len(data), rows):
        block = np.asarray(data[start : start + rows], np.float64)
        # Chan, Golub & LeVeque 1983: moments of two parts to those of both.
        total, off = count + len(block), block.mean(0) - mean
        mean = mean + off * len(block) / total
        square = square + ((block - block.mean(0)) ** 2).sum(0) + off**2 * count * len(block) / total
        count = total
    std = np.sqrt(square / count).clip(1e-4)
    moves = std >= _STILL
    std = np.where(moves | ~moves.any(), std, std[moves].mean() if moves.any() else 0.0)
    return mean.round(6).tolist(), std.round(6).tolist()


def oddities(
    data: np.ndarray, mean: Sequence[float], std: Sequence[float], own: Tensor | None, element: str, items: str
) -> list[str]:
    """What is wrong with the scale of (n, width) numbers of some training items, a line each.

    Args:
        mean, std: by which they are normalised.
        own: their deviations over the training items of the autoencoder that made them; None: there is none.
        element: what has ``width`` numbers, for the messages: a frame.
        items: what it is of: sounds.
    """
    data = np.asarray(data, np.float64)
    if bad := int((~np.isfinite(data)).any(1).sum()):
        return [f"{bad:,} of {len(data):,} {element}s hold numbers that are not finite"]
    measured, told = data.std(0), np.asarray(std)
    still, lines = measured < _STILL, []
    if still.any():
        lines.append(
            f"{still.sum()} of {len(still)} numbers of a {element} hardly change (deviation below {_STILL:g}): the "
            f"{items} hold nothing there, or the autoencoder is untrained"
        )
    if still.all():
        return lines
    ratio = _ratio(measured[~still], told[~still])
    offset = float(np.median(np.abs(data.mean(0) - np.asarray(mean))[~still] / told[~still]))
    if not 0.5 < ratio < 2 or offset > 1:
        lines.append(
            f"{element}s deviate {ratio:.2g} times as much as the stored statistics say, and their means lie "
            f"{offset:.2g} deviations off: the statistics are of other data"
        )
    if own is not None and not 1 / 3 < (ratio := _ratio(measured[~still], own.double().cpu().numpy()[~still])) < 3:
        lines.append(
            f"latents deviate {ratio:.2g} times as much as the autoencoder's own training items did: it is untrained, "
            f"or was trained on other {items}"
        )
    return lines


def _ratio(measured: np.ndarray, told: np.ndarray) -> float:
    return float(np.exp(np.log(measured / told).mean()))
