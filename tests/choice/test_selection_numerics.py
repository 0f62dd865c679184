"""The routines that several selectors share, against brute force, enumeration and scipy."""

import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch

from tests.choosing import generator
from tests.reference import normal
from winnow.choice.bounded_simplex import minimise_bounded, project
from winnow.choice.facility import cluster_sizes, distances, medoids
from winnow.choice.quadratic import minimise
from winnow.choice.sampling import boltzmann, without_replacement

TIMES = 800  # draws; tolerances are four standard deviations


# Facility location


def covered(points, chosen):
    """sum_i max_{j in S} (c - d_ij), written out."""
    apart = [[math.dist(a, b) for b in points] for a in points]
    largest = max(map(max, apart))
    return sum(max(largest - apart[i][j] for j in chosen) for i in range(len(points)))


@pytest.mark.parametrize("seed", range(4))
def test_medoids_are_the_greedy_ones_and_near_the_best(seed):
    points = normal(9, 3, seed=seed)
    chosen = medoids(distances(points @ points.T), 3).tolist()
    slow = []
    for _ in range(3):
        slow.append(max((i for i in range(9) if i not in slow), key=lambda i: covered(points.tolist(), [*slow, i])))
    assert chosen == slow
    best = max(covered(points.tolist(), trio) for trio in itertools.combinations(range(9), 3))
    assert covered(points.tolist(), chosen) >= (1 - 1 / math.e) * best


def test_distances_and_clusters():
    points = normal(7, 2)
    apart = distances(points @ points.T)
    assert torch.allclose(apart, torch.cdist(points, points), atol=1e-7)
    chosen = torch.tensor([4, 0])
    nearest = [min((4, 0), key=lambda j, i=i: math.dist(points[i].tolist(), points[j].tolist())) for i in range(7)]
    assert cluster_sizes(apart, chosen).tolist() == [nearest.count(4), nearest.count(0)]


def test_medoids_of_nothing_of_one_and_of_copies():
    assert medoids(torch.zeros(0, 0), 3).tolist() == []
    assert cluster_sizes(torch.zeros(4, 4), torch.zeros(0, dtype=torch.long)).tolist() == []
    assert medoids(torch.zeros(1, 1), 3).tolist() == [0]
    copies = medoids(torch.zeros(5, 5), 2)
    assert copies.tolist() == [0, 1]
    assert cluster_sizes(torch.zeros(5, 5), copies).tolist() == [5, 0]


# Drawing


def sequences(chance, k):
    """Probability of every ordered draw of k without replacement."""
    found = {}
    for order in itertools.permutations(range(len(chance)), k):
        left, probability = sum(chance), 1.0
        for i in order:
            probability *= chance[i] / left
            left -= chance[i]
        found[order] = probability
    return found


def shares(draw, times=TIMES):
    counts = {}
    source = generator(1)
    for _ in range(times):
        order = tuple(draw(source).tolist())
        counts[order] = counts.get(order, 0) + 1 / times
    return counts


def test_gumbel_top_k_is_drawing_one_after_the_other():
    chance = [0.1, 0.2, 0.3, 0.4]
    found = shares(lambda source: without_replacement(torch.tensor(chance).log(), 2, source))
    for order, probability in sequences(chance, 2).items():
        assert found.get(order, 0) == pytest.approx(probability, abs=4 * math.sqrt(probability / TIMES))


def test_a_chance_of_zero_is_drawn_last():
    log_chance = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    for seed in range(20):
        assert set(without_replacement(log_chance, 2, generator(seed)).tolist()) == {1, 3}
    assert sorted(without_replacement(log_chance, 9, generator()).tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("standardised", [False, True])
def test_boltzmann_draws_in_proportion_to_the_exponential(standardised):
    scores, interaction = normal(4), normal(4, 4, seed=2).abs()
    found = shares(lambda source: boltzmann(scores, interaction, 2, 0.8, source, standardised))

    def chances(values):
        values = np.array(values)
        if standardised:
            values = (values - values.mean()) / values.std() if len(values) > 1 else values * 0
        return np.exp(values / 0.8) / np.exp(values / 0.8).sum()

    for first, chance in enumerate(chances(scores.tolist())):
        left = [i for i in range(4) if i != first]
        after = chances([float(scores[i] - interaction[first, i]) for i in left])
        for second, next_chance in zip(left, after, strict=True):
            probability = chance * next_chance
            assert found.get((first, second), 0) == pytest.approx(probability, abs=4 * math.sqrt(probability / TIMES))


def test_boltzmann_is_greedy_when_cold_and_uniform_when_hot():
    scores, interaction = normal(6), torch.zeros(6, 6, dtype=torch.float64)
    cold = boltzmann(scores, interaction, 3, 1e-6, generator())
    assert cold.tolist() == scores.argsort(descending=True)[:3].tolist()
    counts = torch.zeros(6)
    for seed in range(300):
        counts[boltzmann(scores, interaction, 1, 1e6, generator(seed))] += 1
    assert (counts / 300 - 1 / 6).abs().max() < 0.09
    with pytest.raises(ValueError, match=r"selector\.temperature"):
        boltzmann(scores, interaction, 1, 0.0, generator())


# The box with a sum


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("upper", [1.0, 1.3, 4.0])
def test_bounded_weights_are_the_minimum(seed, upper):
    vectors, target = normal(8, 5, seed=seed), normal(5, seed=seed + 50)
    gram, linear = vectors @ vectors.T + 0.2 * torch.eye(8), vectors @ target
    weight = minimise_bounded(gram, linear, 4.0, upper)
    assert float(weight.sum()) == pytest.approx(4, rel=1e-9)
    assert float(weight.min()) >= 0 and float(weight.max()) <= upper * (1 + 1e-12)
    found = scipy.optimize.minimize(
        lambda w: 0.5 * w @ gram.numpy() @ w - linear.numpy() @ w,
        np.full(8, 0.5),
        jac=lambda w: gram.numpy() @ w - linear.numpy(),
        bounds=[(0, upper)] * 8,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 4, "jac": lambda w: np.ones(8)},
        method="SLSQP",
        options={"ftol": 1e-12, "maxiter": 500},  # at 1e-15 its line search meets rounding, on some processors
    )
    assert found.success
    assert np.abs(weight.numpy() - found.x).max() < 1e-4
    # The conditions of a minimum, which need no solver: one slope where an entry is free, none better at a bound.
    slope = gram @ weight - linear
    low, high = weight < 1e-9, weight > upper - 1e-9
    free = ~low & ~high
    level = float(slope[free].mean()) if bool(free.any()) else float(slope[high].max() + slope[low].min()) / 2
    assert float((slope[free] - level).abs().max() if bool(free.any()) else 0) < 1e-4
    assert bool((slope[low] > level - 1e-4).all()) and bool((slope[high] < level + 1e-4).all())


def test_without_a_bound_it_is_the_active_set():
    vectors, target = normal(6, 9), normal(9, seed=1)
    gram, linear = vectors @ vectors.T, vectors @ target
    assert torch.allclose(
        minimise_bounded(gram, linear, 2.0, math.inf), minimise(gram, linear, total=2.0), rtol=1e-4, atol=1e-5
    )


def test_projection_is_the_nearest_feasible_point():
    for seed in range(5):
        point = normal(6, seed=seed)
        nearest = project(point, 2.0, 0.7)
        found = scipy.optimize.minimize(
            lambda w, point=point: ((w - point.numpy()) ** 2).sum(),
            np.full(6, 1 / 3),
            bounds=[(0, 0.7)] * 6,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 2},
            method="SLSQP",
            options={"ftol": 1e-14},
        )
        assert np.abs(nearest.numpy() - found.x).max() < 1e-5
        assert float(nearest.sum()) == pytest.approx(2, rel=1e-12)


def test_bounds_at_their_limits():
    linear = torch.tensor([3.0, 1.0, 2.0])
    assert minimise_bounded(torch.zeros(3, 3), linear, 2.0, 1.0).tolist() == [1.0, 0.0, 1.0]
    assert minimise_bounded(torch.eye(3), linear, 3.0, 1.0).tolist() == [1.0, 1.0, 1.0]
    with pytest.raises(ValueError, match=r"selector\.w_max"):
        minimise_bounded(torch.eye(3), linear, 4.0, 1.0)
    with pytest.raises(RuntimeError, match=r"selector\.ridge"):
        minimise_bounded(torch.diag(torch.tensor([1e8, 1.0, 2.0])), linear, 1.0, 1.0, steps=2)
