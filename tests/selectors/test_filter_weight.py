"""Filter-then-weight solves the problem that each matching names, and weighs what it kept as it says."""

import math

import pytest
import scipy.optimize
import torch

from tests.cases import Pool
from tests.choosing import choose, described
from winnow.choice import weights
from winnow.selectors import FilterWeight
from winnow.signals import Needs


@pytest.mark.parametrize(
    ("match", "powers"), [("metric", (1, 1)), ("target", (0, 1)), ("update", (2, 1)), ("raw", (0, 0))]
)
@pytest.mark.parametrize("momentum", [False, True])
def test_match_is_the_least_squares_problem_it_names(match, powers, momentum):
    selector = FilterWeight(filter_size=5, match=match, momentum=momentum, normalise="none")
    assert selector.needs == Needs(gram=powers[0], alignment=powers[1], momentum=momentum)
    pool = Pool.draw(9, seed=6)
    # u_i and tau as the table in docs/METHOD.md has them.
    root, whole = pool.diagonal.sqrt(), pool.diagonal
    target = pool.target - pool.momentum if momentum else pool.target
    vectors, tau = {
        "metric": (pool.gradients * root, root * target),
        "target": (pool.gradients, whole * target),
        "update": (pool.gradients * whole, target),
        "raw": (pool.gradients, target),
    }[match]
    scores = vectors @ tau / vectors.norm(dim=1)
    kept = scores.argsort(descending=True)[:5].sort().values
    weight, _ = scipy.optimize.nnls(vectors[kept].T.numpy(), tau.numpy())
    positive = torch.from_numpy(weight) > 0
    selection = choose(selector, pool)
    assert selection.index.tolist() == kept[positive].tolist()
    coefficient = selection.weight / len(selection)
    assert torch.allclose(coefficient, torch.from_numpy(weight)[positive], rtol=1e-7)
    utility = float((coefficient[:, None] * pool.gradients[selection.index]).sum(0) @ (whole ** powers[1] * target))
    assert selection.diagnostics["utility"] == pytest.approx(utility, rel=1e-7)
    assert selection.diagnostics["scale"] == pytest.approx(float(weight.sum()), rel=1e-7)


def test_mean_one_keeps_the_step_size_and_the_ratios():
    pool = Pool.draw(12, seed=7)
    raw, mean_one = (choose(FilterWeight(normalise=name), pool) for name in ("none", "mean_one"))
    assert float(mean_one.weight.mean()) == pytest.approx(1, rel=1e-12)
    assert torch.allclose(mean_one.weight / mean_one.weight[0], raw.weight / raw.weight[0], rtol=1e-12)


@pytest.mark.parametrize("normalise", ["mean_one", "none"])
@pytest.mark.parametrize("size", [1, 3, 7, 12])
def test_uniform_weights_are_exactly_one(normalise, size):
    for name in ("top", "cosine", "omp", "nnls", "greedy"):
        selector = FilterWeight(filter_size=size, filter=name, weight="uniform", normalise=normalise)
        selection = choose(selector, Pool.draw(12, seed=8), dtype=torch.float32)
        assert selection.weight.tolist() == [1.0] * size


def test_no_candidate_of_positive_utility():
    pool = Pool.draw(12, seed=9)
    pool.gradients = pool.gradients - 20 * pool.target / pool.target.norm() ** 2 * pool.gradients.norm(dim=1)[:, None]
    cosines = (pool.gradients * pool.diagonal) @ pool.target / (pool.gradients.square() * pool.diagonal).sum(1).sqrt()
    assert (cosines < 0).all()
    order = cosines.argsort(descending=True).tolist()
    for weight in ("nnls", "box", "proportional"):
        for name in ("cosine", "omp", "greedy", "nnls"):
            for fill in (True, False):
                best, uniform, skip = (
                    choose(FilterWeight(filter=name, weight=weight, on_empty=rule, fill=fill), pool)
                    for rule in ("best", "uniform", "skip")
                )
                assert described(best) == ([order[0]], [1.0])
                assert len(uniform) == 4 and uniform.weight.tolist() == [1.0] * 4
                assert len(skip) == 0
                for selection in (best, uniform, skip):
                    assert selection.diagnostics["empty"] == 1.0
    assert choose(FilterWeight(), Pool.draw(12)).diagnostics["empty"] == 0.0


@pytest.mark.parametrize("weight", weights.SOLVED)
@pytest.mark.parametrize("ridge", [0.0, 0.5])
def test_a_pair_of_copies_gets_no_more_weight_than_one_alone(weight, ridge):
    kept = 0
    for seed in range(5):
        alone = Pool.draw(5, seed=seed)
        pair = alone[[0, 1, 2, 3, 4, 2]]
        options = {"weight": weight, "ridge": ridge, "normalise": "none", "w_max": 0.2}
        one = choose(FilterWeight(filter_size=5, **options), alone)
        two = choose(FilterWeight(filter_size=6, **options), pair)
        # Coefficients, so that the weights of others and the number kept do not enter.
        single = float(one.dense(5)[2]) / len(one)
        joint = float(two.dense(6)[[2, 5]].sum()) / len(two)
        assert joint <= single * (1 + 1e-9)
        kept += single > 0
    assert kept


@pytest.mark.parametrize(
    "options",
    [
        {"filter": "best"},
        {"weight": "ols"},
        {"match": "adam"},
        {"normalise": "sum"},
        {"on_empty": "raise"},
        {"ridge": -0.1},
        {"ridge": math.nan},
        {"temperature": 0.0},
        {"w_max": 0.0},
    ],
    ids=str,
)
def test_filter_weight_refuses_what_it_does_not_know(options):
    with pytest.raises(ValueError, match=rf"selector\.{next(iter(options))} must be"):
        FilterWeight(**options)
