"""Distances between two sets of embeddings, whatever was embedded: arrays (n, d), float64, one row an item.

Both distances between sets are of samples, so two sets of real data are not at 0: Frechet's is biased upwards by an
amount that falls with n, the kernel distance is unbiased and scatters around 0 (and so may be negative). Neither means
anything without that floor, measured at the same n, beside it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist, pdist

Array = NDArray[np.float64]

_BLOCK = 1 << 22  # distances held at once: 32 MiB


@dataclass(frozen=True)
class Gaussian:
    """What a Frechet distance needs of a set.

    Attributes:
        mean: (d,).
        covariance: (d, d), symmetric; of rank n - 1 where n <= d.
    """

    mean: Array
    covariance: Array

    @classmethod
    def of(cls, embeddings: Array) -> Gaussian:
        """Mean and unbiased covariance of (n, d).

        Raises:
            ValueError: fewer than two items, or a value that is not finite.
        """
        embeddings = checked(embeddings, 2)
        return cls(embeddings.mean(0), np.atleast_2d(np.cov(embeddings, rowvar=False)))


def frechet(a: Gaussian | Array, b: Gaussian | Array) -> float:
    """The squared 2-Wasserstein distance of the two Gaussians (Dowson and Landau 1982; Heusel et al. 2017).

        |m1 - m2|^2 + tr S1 + tr S2 - 2 sum_i sqrt(lambda_i),   lambda = eigenvalues of sqrt(S1) S2 sqrt(S1)

    The lambda_i are the squared singular values of sqrt(S1) sqrt(S2): never complex, never negative, and exact to
    rounding where a covariance is singular (n <= d), where the usual root of S1 S2 fails.

    Raises:
        ValueError: the widths differ, or a set is too small.
    """
    p, q = (x if isinstance(x, Gaussian) else Gaussian.of(x) for x in (a, b))
    if p.mean.shape != q.mean.shape:
        raise ValueError(f"embeddings of {p.mean.size} and {q.mean.size} numbers have no distance")
    overlap = np.linalg.svd(_root(p.covariance) @ _root(q.covariance), compute_uv=False).sum()
    spread = np.trace(p.covariance) + np.trace(q.covariance) - 2 * overlap
    return float(((p.mean - q.mean) ** 2).sum() + max(spread, 0.0))


def kernel_distance(x: Array, y: Array, bandwidth: float | None = None) -> tuple[float, float]:
    """The unbiased squared maximum mean discrepancy (Gretton et al. 2012), and its standard error.

        k(a, b) = (a.b / d + 1)^3                      as in "KID" (Binkowski et al. 2018), without a bandwidth
        k(a, b) = exp(-|a - b|^2 / (2 bandwidth^2))    as in "KAD" (Chung et al. 2025): bounded, so outliers weigh less

    All pairs are used, none drawn. The error is the two-sample jackknife's, in closed form from the sums of the rows of
    the kernel; it is on the safe side (up to about 1.4 times too large) where the two distributions are the same.

    Raises:
        ValueError: the widths differ, or a set has fewer than three items.
    """
    x, y = checked(x, 3), checked(y, 3)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"embeddings of {x.shape[1]} and {y.shape[1]} numbers have no distance")
    m, n = len(x), len(y)
    within_x, across, within_y = (_kernel(a, b, bandwidth) for a, b in ((x, x), (x, y), (y, y)))
    rows_x, rows_y = (k.sum(1) - np.diag(k) for k in (within_x, within_y))
    sum_x, sum_y, cross = rows_x.sum(), rows_y.sum(), across.sum()
    value = sum_x / (m * (m - 1)) + sum_y / (n * (n - 1)) - 2 * cross / (m * n)
    without_x = (sum_x - 2 * rows_x) / ((m - 1) * (m - 2)) - 2 * (cross - across.sum(1)) / ((m - 1) * n)
    without_y = (sum_y - 2 * rows_y) / ((n - 1) * (n - 2)) - 2 * (cross - across.sum(0)) / (m * (n - 1))
    variance = (m - 1) * without_x.var() + (n - 1) * without_y.var()
    return float(value), float(np.sqrt(variance))


def median_distance(x: Array) -> float:
    """The median distance between two different items: the usual bandwidth; 1 where all are the same.

    Raises:
        ValueError: fewer than two items.
    """
    x = checked(x, 2)
    return float(np.median(pdist(x))) or 1.0


def inception_score(probabilities: Array) -> tuple[float, float]:
    """exp E_x KL(p(y|x) || p(y)) of class probabilities (n, k), in one set, and its standard error.

    Between 1 (every item looks the same, or none is clear) and k (all clear, all classes equally often); Salimans et
    al. 2016. It falls short of its limit for small n.
    """
    p = checked(probabilities, 1)
    marginal = p.mean(0)
    divergence = np.where(p > 0, p * (np.log(np.maximum(p, 1e-300)) - np.log(np.maximum(marginal, 1e-300))), 0).sum(1)
    score = float(np.exp(divergence.mean()))
    return score, score * float(divergence.std() / np.sqrt(len(p)))


def entropy(counts: Array) -> float:
    """The entropy in nats of classes that occur so often (k,): at most ln k, where all occur equally often."""
    p = np.asarray(counts, np.float64)
    p = p[p > 0] / p.sum()
    return float(abs((p * np.log(p)).sum()))


def nearest(x: Array, y: Array, k: int = 1, *, same: bool = False) -> Array:
    """The distance (n,) of each of ``x`` from its ``k``-th nearest of ``y``; with ``same`` the sets are one, and an
    item is no neighbour of itself.

    Raises:
        ValueError: ``y`` has fewer than ``k`` neighbours to give.
    """
    x, y = checked(x, 0), checked(y, k + same)
    found = [np.partition(block, k - 1 + same, axis=1)[:, k - 1 + same] for block in _blocks(x, y)]
    return np.concatenate([np.zeros(0), *found])


def copied(ours: Array, theirs: Array, quantiles: tuple[float, ...] = (0.01, 0.05)) -> tuple[float, dict[float, float]]:
    """The test for copied training items, from distances to the nearest of them: ``ours`` (n,) of samples, ``theirs``
    (m,) of real items that were not trained on.

    Returns:
        The ratio of the medians (0 for copies, 1 for new items; NaN where ``theirs`` is 0), and for each quantile q the
        share of samples that are closer than that quantile of the real items (q itself for new items).
    """
    middle = float(np.median(theirs))
    ratio = float(np.median(ours)) / middle if middle > 0 else float("nan")
    return ratio, {q: float((ours < np.quantile(theirs, q)).mean()) for q in quantiles}


def density_coverage(samples: Array, real: Array, k: int = 5) -> tuple[float, float]:
    """Fidelity and variety (Naeem et al. 2020): each real item owns the ball out to its k-th nearest real neighbour.

    Density: in how many of the balls a sample lies, over k (1 for real data; may exceed 1). Coverage: the share of
    balls that hold a sample (for real data of equal n, 1 - 2^-k).

    Raises:
        ValueError: k or fewer real items, or no samples.
    """
    samples = checked(samples, 1)
    radii = nearest(real, real, k, same=True)
    inside = np.concatenate([block < radii[:, None] for block in _transposed(samples, checked(real, 1))], axis=1)
    return float(inside.sum() / (k * len(samples))), float(inside.any(1).mean())


def checked(values: Array, least: int) -> Array:
    """``values`` as a float64 matrix of at least so many rows.

    Raises:
        ValueError: it is none, it has fewer, or a value is not finite.
    """
    array = np.asarray(values, np.float64)
    if array.ndim != 2:
        raise ValueError(f"embeddings are (n, d), not of shape {array.shape}")
    if len(array) < least:
        raise ValueError(f"at least {least} items are needed, not {len(array)}")
    if not np.isfinite(array).all():
        raise ValueError(f"{int((~np.isfinite(array).all(1)).sum())} of {len(array)} embeddings are not finite")
    return array


def _kernel(a: Array, b: Array, bandwidth: float | None) -> Array:
    if bandwidth is None:
        cubic: Array = (a @ b.T / a.shape[1] + 1) ** 3
        return cubic
    return np.exp(cdist(a, b, "sqeuclidean") / (-2 * bandwidth**2))


def _root(covariance: Array) -> Array:
    """The symmetric root; what rounding made negative is 0."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root: Array = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    return root


def _blocks(x: Array, y: Array) -> Iterator[Array]:
    """Distances (rows, len(y)) of some rows of ``x`` at a time, from differences: a copy is at 0, not at rounding."""
    rows = max(_BLOCK // max(len(y), 1), 1)
    for start in range(0, len(x), rows):
        yield cdist(x[start : start + rows], y)


def _transposed(x: Array, y: Array) -> Iterator[Array]:
    return (block.T for block in _blocks(x, y))
