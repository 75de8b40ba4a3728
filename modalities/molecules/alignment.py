"""Noise paired with molecules: the cheapest assignment of noise to atoms, then the rotation that fits it best.

Independent noise asks a network to move atoms through each other; paired noise makes the paths short and nearly
straight (Klein et al. 2023, Irwin et al. 2024). Both steps leave the noise a standard normal: its law does not change
under permutations and rotations. Paired with x0 it is no longer independent of it, so the probability-flow ODE is the
exact sampler of what is learned and stochastic samplers, which add independent noise, are not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotation_onto(moving: Tensor, fixed: Tensor) -> Tensor:
    """The orthogonal matrices (rotations and reflections) R that minimise ``|moving R - fixed|`` (Kabsch 1976).

    Args:
        moving, fixed: ``(batch, points, 3)``, each centred; padding is zero.

    Returns:
        ``(batch, 3, 3)``.
    """
    u, _, vh = torch.linalg.svd(moving.transpose(1, 2).double() @ fixed.double())
    return (u @ vh).to(moving.dtype)


def assign(noise: Tensor, x0: Tensor, counts: list[int]) -> Tensor:
    """Noise points permuted within each sample so that the squared distance to the data's points is least.

    Args:
        noise, x0: ``(batch, points, 3)``; the first ``counts[i]`` points of sample i are real.
    """
    from scipy.optimize import linear_sum_assignment

    costs = torch.cdist(x0.float(), noise.float()).square().cpu().numpy()
    order = torch.arange(noise.shape[1]).repeat(len(noise), 1)
    for i, count in enumerate(counts):
        order[i, :count] = torch.from_numpy(linear_sum_assignment(costs[i, :count, :count])[1])
    return noise.gather(1, order.to(noise.device)[..., None].expand_as(noise))


def random_rotations(generators: list[torch.Generator]) -> Tensor:
    """One orthogonal matrix from each generator, uniform on O(3): ``(batch, 3, 3)``."""
    q, r = torch.linalg.qr(torch.stack([torch.randn(3, 3, generator=g) for g in generators]))
    return q * torch.sign(torch.diagonal(r, dim1=1, dim2=2))[:, None]
