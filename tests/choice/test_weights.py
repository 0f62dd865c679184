"""Weights solve the problems they name: against scipy, and against a search over all active sets."""

from itertools import product

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from winnow.choice import weights
from winnow.choice.quadratic import minimise

exact = settings(derandomize=True, deadline=None, max_examples=150)


@st.composite
def problems(draw, largest=7):
    """(U, tau) with K = UU' and b = U tau: small integers make copies, zeros and dependent rows common."""
    size, width = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    entries = st.integers(-3, 3)
    rows = [[draw(entries) for _ in range(width)] for _ in range(size)]
    scale = [10.0 ** draw(st.integers(-3, 3)) for _ in range(size)] if draw(st.booleans()) else [1.0] * size
    target = [draw(entries) for _ in range(width)]
    vectors = torch.tensor(rows, dtype=torch.float64) * torch.tensor(scale, dtype=torch.float64)[:, None]
    return vectors, torch.tensor(target, dtype=torch.float64)


def products(vectors, target):
    return vectors @ vectors.T, vectors @ target


def objective(gram, alignment, weight):
    return float(weight @ gram @ weight / 2 - alignment @ weight)


def search(gram, alignment, upper=None, total=None):
    """The optimum of a convex QP by trying every set of free entries: one with a regular system attains it."""
    gram, alignment = gram.numpy(), alignment.numpy()
    size, best = len(alignment), np.inf
    for state in product((0, 1) if upper is None else (0, 1, 2), repeat=size):
        free = [i for i in range(size) if state[i] == 1]
        weight = np.array([upper if s == 2 else 0.0 for s in state])
        system, right = gram[np.ix_(free, free)], alignment[free] - gram[free] @ weight
        if total is not None:
            one = np.ones((len(free), 1))
            system = np.block([[system, one], [one.T, np.zeros((1, 1))]])
            right = np.append(right, total)
        if not free:
            if total is not None:
                continue
        else:
            scale = np.sqrt(np.abs(np.diag(system))) + (np.diag(system) == 0)
            if np.linalg.cond(system / np.outer(scale, scale)) > 1e9:
                continue
            weight[free] = np.linalg.solve(system, right)[: len(free)]
        if (weight < -1e-9).any() or (upper is not None and (weight > upper + 1e-9).any()):
            continue
        best = min(best, weight @ gram @ weight / 2 - alignment @ weight)
    return best


@exact
@given(problems())
def test_nnls_is_scipys(problem):
    vectors, target = problem
    gram, alignment = products(vectors, target)
    weight = weights.nnls(gram, alignment)
    assert (weight >= 0).all()
    _, residual = scipy.optimize.nnls(vectors.T.numpy(), target.numpy())
    ours = float((vectors.T @ weight - target).norm())
    assert ours == pytest.approx(residual, rel=1e-7, abs=1e-7)


@exact
@given(problems(), st.sampled_from([1e-3, 0.1, 2.0]))
def test_ridge_is_relative_to_the_mean_squared_length(problem, ridge):
    vectors, target = problem
    gram, alignment = products(vectors, target)
    if not gram.diagonal().any():
        return
    root = np.sqrt(ridge * float(gram.diagonal().mean()))
    stacked = np.vstack([vectors.T.numpy(), root * np.eye(len(vectors))])
    moving = vectors.numpy().any(1)
    expected = np.zeros(len(vectors))
    expected[moving], _ = scipy.optimize.nnls(stacked[:, moving], np.append(target.numpy(), np.zeros(len(vectors))))
    weight = weights.nnls(gram, alignment, ridge).numpy()
    sizes = vectors.norm(dim=1).numpy()
    np.testing.assert_allclose(weight * sizes, expected * sizes, rtol=1e-6, atol=1e-7)


@exact
@given(problems(largest=5), st.sampled_from([0.05, 0.3, 1.0]))
def test_box_is_the_best_of_all_active_sets(problem, upper):
    gram, alignment = products(*problem)
    weight = weights.box(gram, alignment, upper)
    assert (weight >= 0).all() and (weight <= upper).all()
    assert objective(gram, alignment, weight) == pytest.approx(search(gram, alignment, upper=upper), rel=1e-7, abs=1e-7)


@exact
@given(problems(largest=6))
def test_simplex_is_the_best_of_all_active_sets(problem):
    gram, alignment = products(*problem)
    weight = weights.simplex(gram, alignment)
    assert (weight >= 0).all() and float(weight.sum()) == pytest.approx(1, rel=1e-12)
    assert objective(gram, alignment, weight) == pytest.approx(search(gram, alignment, total=1.0), rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("bounds", [{}, {"upper": 0.02}, {"total": 1.0}], ids=str)
def test_larger_problems_meet_the_optimality_conditions(bounds):
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(150, 60, generator=generator, dtype=torch.float64) + 0.2  # singular: 150 vectors in 60 dims
    gram, alignment = products(vectors, torch.randn(60, generator=generator, dtype=torch.float64) + 0.2)
    weight = minimise(gram, alignment, **bounds)
    slope = alignment - gram @ weight
    free = (weight > 0) & (weight < bounds.get("upper", torch.inf))
    level = slope[free].mean() if "total" in bounds else 0.0
    tolerance = 1e-8 * float(alignment.abs().max())
    assert free.any()
    assert ((slope - level)[free].abs() <= tolerance).all()
    assert ((slope - level)[weight == 0] <= tolerance).all()
    assert ((slope - level)[weight == bounds.get("upper", torch.inf)] >= -tolerance).all()


def test_a_start_does_not_change_the_result():
    generator = torch.Generator().manual_seed(1)
    vectors = torch.randn(9, 20, generator=generator, dtype=torch.float64) + 0.3
    gram, alignment = products(vectors, torch.ones(20, dtype=torch.float64))
    cold = minimise(gram, alignment)
    warm = minimise(gram, alignment, start=torch.rand(9, generator=generator, dtype=torch.float64))
    assert torch.allclose(warm, cold, rtol=1e-9, atol=1e-12)


def test_nothing_of_positive_utility_gets_no_weight():
    gram = torch.eye(3) + 0.5
    for alignment in (torch.tensor([-1.0, -2.0, -0.1]), torch.zeros(3)):
        assert weights.nnls(gram, alignment).tolist() == [0, 0, 0]
        assert weights.box(gram, alignment).tolist() == [0, 0, 0]
        assert weights.proportional(alignment).tolist() == [0, 0, 0]
        assert float(weights.simplex(gram, alignment).sum()) == pytest.approx(1)


def test_candidates_without_gradient_get_no_weight():
    nothing = torch.zeros(3, 3)
    assert weights.nnls(nothing, torch.tensor([1.0, 0.0, -1.0])).tolist() == [0, 0, 0]
    assert weights.box(nothing, torch.tensor([1.0, 0.0, -1.0])).tolist() == [0, 0, 0]
    assert weights.simplex(nothing, torch.tensor([1.0, 3.0, -1.0])).tolist() == [0, 1, 0]
    for solve in (weights.nnls, weights.simplex, weights.box):
        assert len(solve(torch.zeros(0, 0), torch.zeros(0))) == 0


def test_a_problem_that_is_not_bounded_ends():
    gram = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    assert minimise(gram, torch.tensor([1.0, 2.0])).isfinite().all()  # b outside K's range: noise, or bad input


@exact
@given(problems(largest=5), st.data())
def test_a_copy_gets_no_weight_of_its_own(problem, data):
    vectors, target = problem
    which = data.draw(st.integers(0, len(vectors) - 1))
    doubled = torch.cat([vectors, vectors[which : which + 1]])
    assert len(weights.distinct(doubled @ doubled.T)) == len(weights.distinct(vectors @ vectors.T)) + (
        0 if vectors[which].any() else 1
    )
    one = weights.nnls(*products(vectors, target))
    pair = weights.nnls(*products(doubled, target))
    fit = vectors.T @ one - doubled.T @ pair
    assert float(fit.norm()) <= 1e-6 * max(float(target.norm()), 1.0)  # the fitted sum is unique, weights need not be
    independent = torch.linalg.matrix_rank(vectors) == len(vectors)
    if independent:
        assert float(pair[which] + pair[-1]) == pytest.approx(float(one[which]), rel=1e-6, abs=1e-9)


def test_distinct_keeps_the_first_of_equal_gradients():
    vectors = torch.tensor([[1.0, 0], [0, 1], [1, 1e-4], [0, 0], [0, 1], [0, 0], [1, 0.1]])
    assert weights.distinct(vectors @ vectors.T).tolist() == [0, 1, 3, 5, 6]


def test_closed_forms():
    alignment = torch.tensor([2.0, -1.0, 1.0, 1.0])
    assert weights.uniform(alignment).tolist() == [0.25] * 4
    assert weights.proportional(alignment).tolist() == [0.5, 0, 0.25, 0.25]
    assert weights.proportional(alignment * 1e-30).tolist() == [0.5, 0, 0.25, 0.25]
    scores = (alignment.double() - 0.75) / alignment.double().std(correction=0)
    expected = (scores / 0.5).exp() / (scores / 0.5).exp().sum()
    for scale in (1e-30, 1.0, 1e30):  # temperatures mean the same at every scale of gradients
        assert torch.allclose(weights.softmax(alignment * scale, 0.5), expected, rtol=1e-6)
    assert weights.softmax(torch.full((4,), 3.0)).tolist() == [0.25] * 4
    assert weights.softmax(alignment, 1e-3)[0] > 0.999


@pytest.mark.parametrize(
    "call",
    [
        lambda: weights.softmax(torch.ones(2), 0.0),
        lambda: weights.nnls(torch.eye(2), torch.ones(2), -1.0),
        lambda: weights.box(torch.eye(2), torch.ones(2), 0.0),
        lambda: minimise(torch.eye(2), torch.ones(2), upper=0.0),
        lambda: minimise(torch.eye(2), torch.ones(2), upper=1.0, total=1.0),
    ],
)
def test_values_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match=r"must be >|must be >= 0|> 0"):
        call()
