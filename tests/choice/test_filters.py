"""What each filter guarantees: against searches over all subsets, and slow versions written from the formula."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.cases import Pool
from winnow.choice import filters

exact = settings(derandomize=True, deadline=None, max_examples=60)
PURSUITS = [filters.omp, filters.nnls, filters.greedy]


@st.composite
def pools(draw, smallest=2, largest=8):
    """Dense vectors in general position, K and b of them."""
    pool = Pool.draw(draw(st.integers(smallest, largest)), draw(st.integers(3, 12)), draw(st.integers(0, 10_000)))
    return pool, *pool.products(0, 0)


def fit(pool, index):
    """Squared distance of the target from the cone of some candidates, by scipy."""
    if len(index) == 0:
        return float(pool.target.square().sum())
    return scipy.optimize.nnls(pool.gradients[list(index)].T.numpy(), pool.target.numpy())[1] ** 2


def slow_omp(pool, k, normalised=True):
    """Matching pursuit on the vectors themselves, refits by scipy."""
    vectors, residual, picked = pool.gradients.numpy(), pool.target.numpy(), []
    for _ in range(k):
        scores = vectors @ residual
        scores = scores / np.linalg.norm(vectors, axis=1) if normalised else scores
        scores[picked] = -np.inf
        if scores.max() <= 1e-9:
            break
        picked.append(int(scores.argmax()))
        weight, _ = scipy.optimize.nnls(vectors[picked].T, pool.target.numpy())
        residual = pool.target.numpy() - vectors[picked].T @ weight
    return picked


@exact
@given(pools(largest=10), st.integers(1, 10), st.booleans())
def test_omp_is_matching_pursuit_on_the_vectors(pool, k, normalised):
    dense, gram, alignment = pool
    k = min(k, len(dense))
    picked = filters.omp(gram, alignment, k, fill=False, normalised=normalised)
    assert picked.tolist() == slow_omp(dense, k, normalised)


@exact
@given(pools())
def test_omp_first_pick_is_the_best_single_candidate(pool):
    dense, gram, alignment = pool
    first = filters.omp(gram, alignment, 1, fill=False)
    best = min(fit(dense, [i]) for i in range(len(dense)))
    assert fit(dense, first.tolist()) == pytest.approx(best, rel=1e-9)


@exact
@given(pools(smallest=3), st.integers(1, 4))
def test_omp_is_between_the_best_subset_and_its_own_shorter_runs(pool, k):
    dense, gram, alignment = pool
    k = min(k, len(dense))
    best = min(fit(dense, subset) for subset in combinations(range(len(dense)), k))
    reached = [fit(dense, filters.omp(gram, alignment, n, fill=False).tolist()) for n in range(1, k + 1)]
    assert reached[-1] >= best - 1e-9
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(reached))


@exact
@given(st.integers(0, 10_000), st.integers(1, 5), st.sampled_from([0.0, 0.1]))
def test_omp_finds_the_best_subset_of_orthogonal_candidates(seed, k, ridge):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(9, 9, generator=generator, dtype=torch.float64)).Q[:7]
    dense = Pool.draw(7, 9, seed)
    dense.gradients = basis * (torch.rand(7, 1, generator=generator, dtype=torch.float64) + 0.2)
    gram, alignment = dense.products(0, 0)
    best = min(fit(dense, subset) for subset in combinations(range(7), k))
    picked = filters.omp(gram, alignment, k, ridge=ridge)  # the ridge shrinks, and does not reorder, what is orthogonal
    assert fit(dense, picked.tolist()) == pytest.approx(best, rel=1e-9)


def test_omp_skips_a_copy_where_top_and_cosine_keep_it():
    dense = Pool.draw(6, 20, seed=1)
    best = int(filters.cosine(dense.gradients @ dense.target, dense.gradients.norm(dim=1), 1))
    dense = dense[[*range(6), best]]
    gram, alignment = dense.products(0, 0)
    norms = gram.diagonal().sqrt()
    assert {best, 6} <= set(filters.cosine(alignment, norms, 3).tolist())
    assert not {best, 6} <= set(filters.omp(gram, alignment, 3, fill=False).tolist())
    assert not {best, 6} <= set(filters.nnls(gram, alignment, 3, fill=False).tolist())


@exact
@given(pools(), st.integers(1, 8))
def test_nnls_keeps_the_largest_coefficients(pool, k):
    dense, gram, alignment = pool
    weight, _ = scipy.optimize.nnls(dense.gradients.T.numpy(), dense.target.numpy())
    if len(dense) > dense.gradients.shape[1]:
        return  # the coefficients are not unique
    expected = [int(i) for i in np.argsort(-weight) if weight[i] > 1e-9][:k]
    assert filters.nnls(gram, alignment, k, fill=False).tolist() == expected


@exact
@given(pools(), st.integers(1, 8), st.sampled_from([0.0, 0.3]))
def test_greedy_adds_the_best_marginal_at_the_best_scale(pool, k, ridge):
    dense, gram, alignment = pool
    picked = filters.greedy(gram, alignment, k, ridge=ridge).tolist()
    shrink = ridge * float(gram.diagonal().mean())

    def value(subset):
        """max over s >= 0 of s 1'b - s^2 1'K1 / 2, or how nearly useful where it is zero."""
        total = dense.gradients[subset].sum(0)
        length = float(total.square().sum()) + shrink * len(subset)
        along = float(total @ dense.target)
        scale = max(along, 0.0) / length
        return (scale * along - scale**2 * length / 2, along / length**0.5)

    for n in range(1, min(k, len(dense)) + 1):
        others = [i for i in range(len(dense)) if i not in picked[: n - 1]]
        best = max(others, key=lambda i, n=n: value([*picked[: n - 1], i]))
        assert picked[n - 1] == best


@exact
@given(pools(smallest=3))
def test_greedy_stops_where_it_would_get_worse(pool):
    dense, gram, alignment = pool
    picked = filters.greedy(gram, alignment, len(dense), fill=False).tolist()
    cosines = [
        float(torch.nn.functional.cosine_similarity(dense.gradients[picked[:n]].sum(0), dense.target, dim=0))
        for n in range(1, len(picked) + 1)
    ]
    assert all(earlier < later for earlier, later in pairwise(cosines))
    left = [i for i in range(len(dense)) if i not in picked]
    for i in left:
        grown = dense.gradients[[*picked, i]].sum(0)
        cosine = float(torch.nn.functional.cosine_similarity(grown, dense.target, dim=0))
        assert cosine <= max([0.0, *cosines[-1:]]) + 1e-9


def test_top_and_cosine_sort():
    alignment, norms = torch.tensor([3.0, -1.0, 2.0, 2.0, 0.0]), torch.tensor([3.0, 0.1, 1.0, 4.0, 0.0])
    assert filters.top(alignment, 3).tolist() == [0, 2, 3]
    assert filters.cosine(alignment, norms, 5).tolist() == [2, 0, 3, 4, 1]


@pytest.mark.parametrize("pursuit", PURSUITS)
def test_fill_goes_on_to_k(pursuit):
    dense = Pool.draw(6, 20, seed=2)
    dense.gradients[:3] -= 5 * dense.target  # three candidates of negative utility
    gram, alignment = dense.products(0, 0)
    some = pursuit(gram, alignment, 6, fill=False).tolist()
    filled = pursuit(gram, alignment, 6).tolist()
    assert filled[: len(some)] == some and sorted(filled) == list(range(6))
    if pursuit is not filters.greedy:
        assert not {0, 1, 2} & set(some) and some


@pytest.mark.parametrize("pursuit", PURSUITS)
def test_degenerate_pools(pursuit):
    assert pursuit(torch.eye(1), torch.ones(1), 3).tolist() == [0]
    assert pursuit(torch.zeros(0, 0), torch.zeros(0), 2).tolist() == []
    assert sorted(pursuit(torch.zeros(4, 4), torch.zeros(4), 4).tolist()) == [0, 1, 2, 3]
    assert pursuit(torch.eye(3), -torch.ones(3), 2, fill=False).tolist() == []
    assert sorted(pursuit(torch.eye(3), -torch.ones(3), 3).tolist()) == [0, 1, 2]
    same = pursuit(torch.ones(5, 5), torch.ones(5), 2)
    assert same.tolist() == [0, 1]  # all equal: filled up, the first first


@pytest.mark.parametrize("pursuit", [*PURSUITS, lambda gram, b, k: filters.cosine(b, gram.diagonal().sqrt(), k)])
def test_permuting_the_pool_permutes_the_choice(pursuit):
    dense = Pool.draw(12, 30, seed=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    plain = pursuit(*dense.products(1, 1), 5)
    permuted = pursuit(*dense[order].products(1, 1), 5)
    assert order[permuted].tolist() == plain.tolist()


@pytest.mark.parametrize("pursuit", PURSUITS)
def test_lengths_of_candidates_do_not_matter_to_directions(pursuit):
    dense = Pool.draw(10, 30, seed=4)
    gram, alignment = dense.products(0, 0)
    for scale in (1e-12, 1e12):  # gradients of any magnitude
        assert pursuit(gram * scale**2, alignment * scale, 4).tolist() == pursuit(gram, alignment, 4).tolist()
