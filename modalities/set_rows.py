"""The rows of a report that compare a set of samples with real data, by embeddings of both, whatever was embedded.

What a distance between sets is worth, the distance between two sets of real data of the same size tells: that is the
figure of real data in its row. Real clips take part as three sets: ``target``, from which distances are measured;
``real``, whose distance is the floor; and the training clips, among which copies are looked for.

    training and reference given    target = training          real = reference
    only the reference              target, real = two random halves of it
    only training, or a gallery     target, real = two random halves of it
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .distances import Array, copied, density_coverage, frechet, kernel_distance, median_distance, nearest
from .report import Z95, Row, share

FEWEST = 10  # clips on either side of a distance between sets
_NEIGHBOURS = 5  # of density and coverage


@dataclass(frozen=True)
class Real:
    """Embeddings of real clips, and how they came about: see the module.

    Attributes:
        target, real: (m, d), (k, d).
        protocol: which they are, in words; ``{n}`` stands for how many of ``real`` are used.
        training: (l, d), those that were trained on.
        distances: of real clips from the nearest training clip; ``copying`` says of which.
    """

    target: Array
    real: Array
    protocol: str
    training: Array | None = None
    distances: Array | None = None
    copying: str = ""


def real_sets(held_out: Array, known: Array | None, called: str) -> Real | None:
    """The real clips' three parts; None where there are too few for any distance.

    Args:
        held_out: real clips that were not trained on; may be none.
        known: real clips that were trained on, called so.
    """
    if known is not None and len(held_out):
        protocol = f"from {len(known):,} {called}; real: {{n:,}} of the reference"
        distances = nearest(held_out, known)
        return Real(known, held_out, protocol, known, distances, f"of {len(held_out):,} clips of the reference")
    whole = held_out if known is None else known
    if len(whole) < 2:
        return None
    order = np.random.default_rng(0).permutation(len(whole))
    target, real = whole[order[::2]], whole[order[1::2]]
    what = "the reference" if known is None else called
    protocol = f"from half of {what} ({len(target):,}); real: {{n:,}} of its other half"
    if known is None:
        return Real(target, real, protocol)
    return Real(target, real, protocol, known, nearest(known, known, same=True), f"of {called} among themselves")


def set_rows(
    ours: Array, real: Real | None, embedder: str, controls: Sequence[tuple[str, str, Array]] = ()
) -> tuple[list[Row], list[str], Array | None]:
    """Distances between sets at one n, and the search for copies.

    Args:
        ours: (n, d), embeddings of the samples.
        embedder: its name and protocol.
        controls: what a distance must see: a name, what was done to real clips, and their embeddings.

    Returns:
        The rows, notes of what could not be measured, and the distances (n,) of the samples from the nearest training
        clip, where there is any.
    """
    if real is None:
        return [], [f"distances between sets need {FEWEST} clips of a reference or of the training data"], None
    if min(len(ours), len(real.real), len(real.target)) < FEWEST:
        return [], [f"distances between sets need {FEWEST} clips on either side"], None
    draw = np.random.default_rng(1)
    n = min(len(ours), len(real.real))
    made, floor, target = (x[draw.permutation(len(x))] for x in (ours, real.real, real.target))
    made, floor = made[:n], floor[:n]
    protocol = f"{embedder}; {real.protocol.format(n=n)}"
    width = median_distance(target)
    least, spread = kernel_distance(floor, target, width)
    kernel = f"{protocol} (± {1e3 * Z95 * spread:.2g}); unbiased MMD², Gaussian kernel of median width"
    balls = target[:n]
    (density, coverage), (dense, covered) = (density_coverage(x, balls, _NEIGHBOURS) for x in (made, floor))
    near = f"{embedder}; balls of {len(balls):,} real clips, out to neighbour {_NEIGHBOURS}"
    lowest = frechet(floor, target)

    def distances(name: str, made: Array, frechet_told: str, kernel_told: str) -> list[Row]:
        value, error = kernel_distance(made, target, width)
        return [
            Row(f"frechet_distance{name}", frechet(made, target), len(made), frechet_told, real=lowest, better="lower"),
            Row(
                f"kernel_distance{name}",
                1e3 * value,
                len(made),
                kernel_told,
                "×10⁻³",
                real=1e3 * least,
                error=1e3 * Z95 * error,
                better="lower",
            ),
        ]

    rows = distances("", made, protocol, kernel)
    for name, what, changed in controls:
        told = f"what a broken set gets: {what}; else as above"
        rows += distances(f"_{name}", changed[draw.permutation(len(changed))][:n], told, told)
    rows += [
        Row("density", density, n, f"{near}: how many a clip is in, over {_NEIGHBOURS}", real=dense, better="real"),
        Row("coverage", 100 * coverage, n, f"{near}: how many hold a clip", "%", 100 * covered),
    ]
    if real.training is None or real.distances is None:
        return rows, [], None
    found = nearest(ours, real.training)
    copies, notes = _copy_rows(found, real.distances, embedder, real.copying)
    return rows + copies, notes, found


def _copy_rows(ours: Array, theirs: Array, embedder: str, copying: str) -> tuple[list[Row], list[str]]:
    """Whether samples are nearer to training clips than real clips are."""
    ratio, below = copied(ours, theirs)
    if not np.isfinite(ratio):
        return [], ["most clips of the reference are among the training clips: copies cannot be told"]
    protocol = f"{embedder}; median distance to the nearest, over that {copying}; 0: copies"
    rows = [Row("nearest_training_ratio", ratio, len(ours), protocol, real=1.0)]
    for quantile, part in below.items():
        percent = round(100 * quantile)
        protocol = f"{embedder}; nearer to a training clip than {percent} % {copying}"
        row = share(f"nearer_than_{percent}_percent", part * len(ours), len(ours), protocol)
        rows.append(replace(row, real=100 * quantile, better="lower"))
    return rows, []
