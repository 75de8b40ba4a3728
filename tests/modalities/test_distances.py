"""Distances between sets, against closed forms."""

import numpy as np
import pytest

from noiseloom.modalities.distances import (
    Gaussian,
    copied,
    density_coverage,
    entropy,
    frechet,
    inception_score,
    kernel_distance,
    median_distance,
    nearest,
)


def rotation(d, rng):
    return np.linalg.qr(rng.normal(size=(d, d)))[0]


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    rng = np.random.default_rng(0)
    basis = rotation(6, rng)
    p, q, shift = rng.uniform(0.1, 3, 6), rng.uniform(0.1, 3, 6), rng.normal(size=6)
    a = Gaussian(np.zeros(6), basis @ np.diag(p) @ basis.T)
    b = Gaussian(shift, basis @ np.diag(q) @ basis.T)
    assert frechet(a, b) == pytest.approx((shift**2).sum() + ((p**0.5 - q**0.5) ** 2).sum(), rel=1e-12)


def test_frechet_of_gaussians_that_do_not_commute_is_the_optimal_transport_between_them():
    """For a linear map y = A x with A symmetric positive, A is optimal: the distance is E |x - A x|^2."""
    rng = np.random.default_rng(1)
    root, half = rng.normal(size=(5, 5)), rng.normal(size=(5, 5))
    cov, a = root @ root.T, half @ half.T
    expected = np.trace((np.eye(5) - a) @ cov @ (np.eye(5) - a).T)
    assert frechet(Gaussian(np.zeros(5), cov), Gaussian(np.zeros(5), a @ cov @ a)) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("shape", [(50, 8), (8, 50), (2, 3), (300, 1)])
def test_frechet_of_a_set_with_itself_is_zero_and_is_symmetric(shape):
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=shape), rng.normal(size=shape) * 2
    assert 0 <= frechet(x, x) < 1e-9
    assert frechet(x, y) == pytest.approx(frechet(y, x), rel=1e-9)
    assert frechet(x, x + 3) == pytest.approx(9 * shape[1], rel=1e-9)


def test_frechet_of_singular_covariances_in_orthogonal_planes_is_the_sum_of_their_traces():
    x, y = np.zeros((4, 10)), np.zeros((4, 10))
    x[:, 0], y[:, 7] = [-1, 1, -1, 1], [-2, 2, -2, 2]
    assert frechet(x, y) == pytest.approx(4 / 3 + 16 / 3, rel=1e-9)


def test_frechet_is_never_negative_or_complex_on_badly_conditioned_sets():
    rng = np.random.default_rng(3)
    scales = np.logspace(-9, 3, 40)
    values = [frechet(rng.normal(size=(15, 40)) * scales, rng.normal(size=(15, 40)) * scales) for _ in range(20)]
    assert all(isinstance(v, float) and np.isfinite(v) and v >= 0 for v in values)


def cubic_mmd(shift):
    """MMD^2 of N(0, 1) and N(shift, 1) in one dimension: (ab + 1)^3 is the inner product of weighted moments."""
    moments = lambda m: np.array([m**3 + 3 * m, 3**0.5 * (m**2 + 1), 3**0.5 * m])  # noqa: E731
    return ((moments(shift) - moments(0)) ** 2).sum()


def gaussian_mmd(shift):
    """The same of the Gaussian kernel of bandwidth 1: the difference of two draws is N(shift, 2)."""
    return 2 / 3**0.5 * (1 - np.exp(-(shift**2) / 6))


@pytest.mark.parametrize("shift", [0.0, 0.5])
@pytest.mark.parametrize(("bandwidth", "closed_form"), [(None, cubic_mmd), (1.0, gaussian_mmd)])
def test_kernel_distance_is_unbiased_and_its_error_is_that_of_many_draws(bandwidth, closed_form, shift):
    rng = np.random.default_rng(4)
    draws = [
        kernel_distance(rng.normal(size=(40, 1)), shift + rng.normal(size=(30, 1)), bandwidth) for _ in range(1500)
    ]
    values, errors = np.array(draws).T
    spread = values.std()
    assert abs(values.mean() - closed_form(shift)) < 3 * spread / len(values) ** 0.5
    assert 0.8 < np.sqrt((errors**2).mean()) / spread < 1.6
    if shift == 0:
        assert (values < 0).mean() > 0.3  # an unbiased estimate of 0 is often negative


def test_kernel_distance_agrees_with_its_definition_and_a_jackknife_by_hand():
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(6, 3)), rng.normal(size=(5, 3)) + 1

    def mmd(x, y):
        k = lambda a, b: (a @ b / 3 + 1) ** 3  # noqa: E731
        xx = np.mean([k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j])
        yy = np.mean([k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j])
        return xx + yy - 2 * np.mean([k(a, b) for a in x for b in y])

    left_x = np.array([mmd(np.delete(x, i, 0), y) for i in range(6)])
    left_y = np.array([mmd(x, np.delete(y, i, 0)) for i in range(5)])
    value, error = kernel_distance(x, y)
    assert value == pytest.approx(mmd(x, y), rel=1e-10)
    assert error == pytest.approx(np.sqrt(5 * left_x.var() + 4 * left_y.var()), rel=1e-8)


def test_inception_score_spans_one_to_the_number_of_classes():
    assert inception_score(np.eye(7)[np.arange(70) % 7])[0] == pytest.approx(7)
    assert inception_score(np.full((20, 7), 1 / 7))[0] == pytest.approx(1)
    assert inception_score(np.eye(7)[np.zeros(20, int)])[0] == pytest.approx(1)
    p = np.array([[0.8, 0.2], [0.4, 0.6]])
    expected = np.exp(np.mean((p * np.log(p / p.mean(0))).sum(1)))
    assert inception_score(p)[0] == pytest.approx(expected)


def test_entropy_of_counts():
    assert entropy([5, 5, 5, 5]) == pytest.approx(np.log(4))
    assert entropy([9, 0, 0]) == 0


def test_nearest_finds_copies_at_exactly_zero_and_leaves_an_item_itself_out():
    rng = np.random.default_rng(6)
    y = rng.normal(size=(500, 20)) + 1e4
    assert (nearest(y[::7], y) == 0).all()
    assert (nearest(y, y, same=True) > 0).all()
    line = np.arange(6.0)[:, None]
    assert nearest(line, line, 2, same=True).tolist() == [2, 1, 1, 1, 1, 2]
    with pytest.raises(ValueError, match="at least 6"):
        nearest(line[:5], line[:5], 5, same=True)


def test_copies_are_told_from_new_items():
    rng = np.random.default_rng(7)
    training, real, new = (rng.normal(size=(n, 10)) for n in (400, 200, 400))
    theirs = nearest(real, training)
    ratio, below = copied(nearest(new, training), theirs)
    assert ratio == pytest.approx(1, abs=0.1)
    assert below[0.05] == pytest.approx(0.05, abs=0.04)
    near = nearest(training[:100] + 0.01 * rng.normal(size=(100, 10)), training)
    ratio, below = copied(near, theirs)
    assert ratio < 0.1
    assert below[0.01] == 1
    half = copied(np.concatenate([near, nearest(new[:100], training)]), theirs)[1]
    assert half[0.01] == pytest.approx(0.5, abs=0.05)
    assert np.isnan(copied(near, np.zeros(3))[0])


def test_density_and_coverage_of_real_data_and_of_a_collapsed_set():
    rng = np.random.default_rng(8)
    real, other = rng.normal(size=(2, 800, 2))
    density, coverage = density_coverage(other, real)
    assert density == pytest.approx(1, abs=0.1)
    assert coverage == pytest.approx(1 - 2**-5, abs=0.03)
    assert density_coverage(np.repeat(real[:1], 800, 0), real)[1] < 0.05
    assert density_coverage(real + 100, real) == (0, 0)


def test_median_distance():
    assert median_distance(np.array([[0.0], [1.0], [3.0]])) == 2
    assert median_distance(np.ones((4, 2))) == 1


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.ones(4), "shape"),
        (np.ones((1, 4)), "at least"),
        (np.full((5, 4), np.nan), "5 of 5 embeddings are not finite"),
        (np.ones((5, 3)), "have no distance"),
    ],
)
def test_bad_embeddings_are_refused_with_the_reason(x, message):
    good = np.random.default_rng(10).normal(size=(5, 4))
    for distance in (frechet, kernel_distance):
        with pytest.raises(ValueError, match=message):
            distance(x, good)
