"""Each method against its formula, written out slowly on dense gradients, losses and embeddings."""

import math
from itertools import combinations

import numpy as np
import pytest
import scipy.optimize
import torch

from tests.cases import Pool
from tests.choosing import choose, chosen, frequencies
from winnow import selectors
from winnow.selectors.selective_backprop import percentiles

SEEDS = pytest.mark.parametrize("seed", range(4))


def best(scores, k=4):
    """Positions of the k largest of a list of numbers."""
    return sorted(sorted(range(len(scores)), key=lambda i: -scores[i])[:k])


# By loss


@SEEDS
def test_mid_ppl(seed):
    pool = Pool.draw(11, seed=seed)
    losses = pool.losses.tolist()
    middle = sorted(losses)[5]
    assert chosen(selectors.MidPPL(), pool) == best([-abs(loss - middle) for loss in losses])
    low = float(np.quantile(losses, 0.2))
    assert chosen(selectors.MidPPL(center=0.2), pool) == best([-abs(loss - low) for loss in losses])


def test_mid_ppl_draws_from_its_band_uniformly():
    pool = Pool.draw(11)
    inside = set(pool.losses.argsort()[2:9].tolist())  # ranks 0.2 to 0.8 of 11
    found = frequencies(selectors.MidPPL(filter_size=3, width=0.6), pool)
    assert {at for at in range(11) if found[at] > 0} == inside
    assert (found[list(inside)] - 3 / 7).abs().max() < 0.13
    full = selectors.MidPPL(filter_size=8, width=0.6)
    outside = [-abs(float(loss) - float(pool.losses.median())) if at not in inside else 9.0 for at, loss in
               enumerate(pool.losses)]  # fmt: skip
    assert chosen(full, pool) == best(outside, 8)


def test_selective_backprop_keeps_by_percentile_among_recent_losses():
    first, second = Pool.draw(6, seed=1), Pool.draw(4, seed=2)
    selector = selectors.SelectiveBackprop(filter_size=1, beta=2.0, window=8)
    choose(selector, first)
    recent = [*first.losses.tolist()[2:], *second.losses.tolist()]
    chance = np.array([(sum(other <= loss for other in recent) / 8) ** 2 for loss in second.losses.tolist()])
    counts = torch.zeros(4)
    state = selector.state_dict()
    for seed in range(300):
        selector.load_state_dict(state)
        counts[choose(selector, second, seed).index] += 1
    assert np.abs(counts.numpy() / 300 - chance / chance.sum()).max() < 0.11
    assert selector.recent.tolist() == recent


def test_selective_backprop_as_in_the_paper_keeps_each_by_its_own_chance():
    pool = Pool.draw(5)
    expected = (pool.losses.argsort().argsort() + 1) / 5
    counts = torch.zeros(5)
    for seed in range(300):
        counts[choose(selectors.SelectiveBackprop(filter_size=5, sampling="bernoulli"), pool, seed).index] += 1
    assert (counts / 300 - expected).abs().max() < 0.12
    assert percentiles(torch.tensor([2.0]).double(), torch.tensor([1.0, 2.0, 2.0, 3.0]).double()).tolist() == [0.75]


@SEEDS
def test_rho_loss(seed):
    pool = Pool.draw(10, seed=seed)
    gaps = [float(loss) - float(other) for loss, other in zip(pool.losses, pool.reference, strict=True)]
    assert chosen(selectors.RhoLoss(), pool) == best(gaps)
    pool.reference[best(gaps, 1)[0]] = torch.nan  # no reference loss, no choice
    assert best(gaps, 1)[0] not in chosen(selectors.RhoLoss(), pool)


# By embedding


def cosine(one, other):
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


@SEEDS
def test_embedding_and_adapt(seed):
    pool = Pool.draw(10, seed=seed)
    similar = [
        sum(float(share) * cosine(row, anchor) for share, anchor in zip(pool.share, pool.anchors, strict=True))
        for row in pool.hidden
    ]
    assert chosen(selectors.Embedding(), pool) == best(similar)
    soft = [1 / (1 + math.exp(-value / 0.3)) for value in similar]
    raw = choose(selectors.Adapt(temperature=0.3, normalise="none"), pool)
    assert raw.index.tolist() == list(range(10)) and raw.weight.tolist() == pytest.approx(soft, rel=1e-9)
    even = choose(selectors.Adapt(temperature=0.3), pool)
    assert even.weight.tolist() == pytest.approx([10 * value / sum(soft) for value in soft], rel=1e-9)


def test_uds_adds_richness_and_distance_to_those_kept_lately():
    pools = [Pool.draw(8, seed=seed) for seed in range(4)]
    selector = selectors.UDS(filter_size=3, alpha=0.7, buffer=5)
    buffer: list[np.ndarray] = []
    for pool in pools:
        far = [
            np.mean([np.linalg.norm(row - held) for held in buffer]) if buffer else 0.0 for row in pool.hidden.numpy()
        ]
        nuclear = pool.nuclear.numpy()
        scores = (nuclear - nuclear.mean()) / nuclear.std()
        if buffer:
            scores = scores + 0.7 * (np.array(far) - np.mean(far)) / np.std(far)
        expected = best(scores.tolist(), 3)
        assert chosen(selector, pool) == expected
        order = sorted(expected, key=lambda at: -scores[at])  # the best enters first, and leaves first
        buffer = [*buffer, *(pool.hidden.numpy()[at].astype(np.float32) for at in order)][-5:]
    assert np.allclose(selector.kept.numpy(), np.stack(buffer))


def test_uds_refuses_the_state_of_another_model():
    selector = selectors.UDS()
    selector.load_state_dict({"kept": torch.zeros(3, 5)})
    with pytest.raises(ValueError, match="width 5"):
        choose(selector, Pool.draw(8))


# By gradient


@SEEDS
def test_less(seed):
    pool = Pool.draw(10, seed=seed)
    updates = pool.gradients * pool.diagonal
    scores = [max(cosine(update, task) for task in pool.tasks) for update in updates]
    assert chosen(selectors.Less(), pool) == best(scores)


def test_less_serves_one_task_where_the_mean_serves_none():
    """Two opposite tasks: their mean gradient is nothing, and yet a candidate along one of them is kept."""
    pool = Pool.draw(6)
    pool.diagonal = torch.ones_like(pool.diagonal)
    pool.tasks = torch.stack([pool.tasks[0], -pool.tasks[0]])
    pool.gradients[2] = -pool.tasks[0] * 1e-3
    assert chosen(selectors.Less(filter_size=1), pool) == [2]


@SEEDS
def test_grad_match(seed):
    pool = Pool.draw(9, seed=seed)
    for match in ("pool", "target"):
        tau = (pool.gradients.mean(0) if match == "pool" else pool.target).numpy()
        rows = pool.gradients.numpy()
        ridge = 0.2 * float((rows**2).sum(1).mean())
        kept: list[int] = []
        weight = np.zeros(0)
        for _ in range(4):
            residual = rows @ (tau - (rows[kept].T @ weight if kept else 0))
            residual[kept] = -np.inf
            if residual.max() <= 0:
                break
            kept.append(int(residual.argmax()))
            # Ridge as more rows of a least-squares problem.
            tall = np.vstack([rows[kept].T, math.sqrt(ridge) * np.eye(len(kept))])
            weight = scipy.optimize.nnls(tall, np.concatenate([tau, np.zeros(len(kept))]))[0]
        expected = {at: value for at, value in zip(kept, weight, strict=True) if value > 0}
        selection = choose(selectors.GradMatch(match=match, ridge=0.2), pool)
        assert selection.index.tolist() == sorted(expected)
        scale = sum(expected.values()) / len(expected)
        assert selection.weight.tolist() == pytest.approx([expected[at] / scale for at in sorted(expected)], rel=1e-6)
        if match == "pool":
            left = np.linalg.norm(tau - rows[kept].T @ weight) ** 2 / np.linalg.norm(tau) ** 2
            assert selection.diagnostics["residual"] == pytest.approx(left, rel=1e-6)


def test_grad_match_of_two_opposite_candidates_trains_on_one():
    pool = Pool.draw(1)[[0, 0]]
    pool.gradients[1] = -pool.gradients[0]
    selection = choose(selectors.GradMatch(filter_size=2), pool)
    assert len(selection) == 1 and selection.diagnostics["empty"] == 1.0


@SEEDS
def test_craig(seed):
    pool = Pool.draw(9, seed=seed)
    rows = pool.gradients.tolist()
    apart = [[math.dist(a, b) for b in rows] for a in rows]
    largest = max(map(max, apart))
    kept: list[int] = []
    for _ in range(3):
        value = {
            j: sum(largest - min(apart[i][m] for m in [*kept, j]) for i in range(9)) for j in range(9) if j not in kept
        }
        kept.append(max(value, key=lambda j: value[j]))
    sizes = {j: sum(min(kept, key=lambda m, i=i: apart[i][m]) == j for i in range(9)) for j in kept}
    selection = choose(selectors.Craig(filter_size=3), pool)
    assert selection.index.tolist() == sorted(kept)
    assert selection.weight.tolist() == pytest.approx([sizes[j] / 3 for j in sorted(kept)])


def test_craig_stands_for_copies_by_weight():
    pool = Pool.draw(3, seed=2)[[0, 0, 0, 0, 1, 2]]
    selection = choose(selectors.Craig(filter_size=3), pool)
    assert len({(0, 0, 0, 0, 1, 2)[at] for at in selection.index.tolist()}) == 3
    assert sorted(selection.weight.tolist()) == [0.5, 0.5, 2.0]


@SEEDS
def test_colm(seed):
    pool = Pool.draw(12, seed=seed)
    pool.meta["source"] = ["flan"] * 9 + ["dolly", "cot", "cot"]
    updates = (pool.gradients * pool.diagonal).tolist()
    # Five of three sources: dolly's one is at most 5/3, cot's two are more.
    rest = [*range(9), 10, 11]
    apart = {(i, j): math.dist(updates[i], updates[j]) for i in rest for j in rest}
    largest = max(apart.values())
    kept: list[int] = []
    for _ in range(4):
        value = {j: sum(largest - min(apart[i, m] for m in [*kept, j]) for i in rest) for j in rest if j not in kept}
        kept.append(max(value, key=lambda j: value[j]))
    assert chosen(selectors.CoLM(filter_size=5), pool) == sorted([9, *kept])


def test_colm_keeps_small_sources_whole_within_the_budget():
    pool = Pool.draw(12)
    for sources in (["a"] * 12, [str(at) for at in range(12)], ["a"] * 10 + ["b", "c"], ["a", "b"] * 6):
        pool.meta["source"] = sources
        for size in (1, 4, 12):
            assert len(choose(selectors.CoLM(filter_size=size), pool)) == size


@SEEDS
def test_influence_distillation(seed):
    pool = Pool.draw(8, seed=seed)
    updates = pool.gradients * pool.diagonal
    gram, linear = (updates @ updates.T).numpy(), (updates @ pool.target).numpy()
    first = best(linear.tolist(), 3)
    step = linear[first].sum() / gram[np.ix_(first, first)].sum()
    penalty = 0.3 * np.abs(linear).max()
    for bound in (None, 1.5):
        found = scipy.optimize.minimize(
            lambda w: (-linear @ w + 0.7 * step / 2 * w @ gram @ w + penalty * w @ w) / penalty,
            np.full(8, 3 / 8),
            jac=lambda w: (-linear + 0.7 * step * gram @ w + 2 * penalty * w) / penalty,
            bounds=[(0, bound)] * 8,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 3, "jac": lambda w: np.ones(8)},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        weight = np.where(found.x > 1e-6, found.x, 0)
        expected = [at for at in best(weight.tolist(), 3) if weight[at] > 0]
        selector = selectors.InfluenceDistillation(filter_size=3, curvature=0.7, ridge=0.3, w_max=bound)
        selection = choose(selector, pool)
        assert selection.index.tolist() == expected
        assert selection.weight.tolist() == pytest.approx(
            (weight[expected] / weight[expected].mean()).tolist(), rel=1e-3
        )
        assert selection.diagnostics["step"] == pytest.approx(0.7 * step)


def test_influence_distillation_of_little_ridge_and_unit_bound_is_top_k():
    pool = Pool.draw(10)
    scores = ((pool.gradients * pool.diagonal) @ pool.target).tolist()
    selector = selectors.InfluenceDistillation(curvature=0.0, ridge=1e-6, w_max=1.0)
    assert chosen(selector, pool) == best(scores)


@SEEDS
def test_data_shapley_is_the_shapley_value_of_the_second_order_loss(seed):
    """phi_i by its definition, averaged over all coalitions of the other candidates."""
    pool, lr = Pool.draw(6, width=8, seed=seed), 0.4

    def utility(members):
        step = lr / 2 * pool.gradients[list(members)].sum(0)
        return float(step @ pool.target - step @ pool.hessian @ step / 2)

    value = []
    for i in range(6):
        others = [j for j in range(6) if j != i]
        total = 0.0
        for size in range(6):
            for members in combinations(others, size):
                gain = utility((*members, i)) - utility(members)
                total += gain / (6 * math.comb(5, size))
        value.append(total)
    second = selectors.DataShapley(filter_size=2, order="second", lr=lr)
    assert chosen(second, pool) == best(value, 2)
    kept = choose(second, pool)
    assert kept.diagnostics["value"] * lr / 2 == pytest.approx(sum(value[at] for at in best(value, 2)), rel=1e-9)
    first = [float(row @ pool.target) for row in pool.gradients]
    assert chosen(selectors.DataShapley(filter_size=2), pool) == best(first, 2)
    weighted = choose(selectors.DataShapley(filter_size=3, weighting="proportional"), pool)
    positive = [at for at in best(first, 3) if first[at] > 0]
    assert weighted.index.tolist() == positive
    mean = sum(first[at] for at in positive) / len(positive)
    assert weighted.weight.tolist() == pytest.approx([first[at] / mean for at in positive])


def test_data_shapley_of_nothing_useful_trains_on_the_best():
    pool = Pool.draw(6)
    pool.gradients = -pool.target * torch.arange(1, 7)[:, None]
    selection = choose(selectors.DataShapley(weighting="proportional"), pool)
    assert selection.index.tolist() == [0] and selection.weight.tolist() == [1.0]


def slow_opus(pool, first, second, temperature, standardised, order):
    """Probability of a sequence of draws."""
    updates = pool.gradients * pool.diagonal
    probability, kept = 1.0, []
    for pick in order:
        left = [i for i in range(len(pool)) if i not in kept]
        values = np.array([
            first * float(updates[i] @ pool.target) - second * sum(float(updates[i] @ updates[j]) for j in kept)
            for i in left
        ])
        if standardised:
            values = (values - values.mean()) / (values.std() or 1.0)
        chances = np.exp(values / temperature - (values / temperature).max())
        probability *= (chances / chances.sum())[left.index(pick)]
        kept.append(pick)
    return probability


@pytest.mark.parametrize("released", [False, True])
def test_opus(released):
    pool = Pool.draw(5, seed=3)
    updates = pool.gradients * pool.diagonal
    lr = 0.01
    pair = best((updates @ pool.target).tolist(), 2)
    both = updates[pair].sum(0)
    first = lr if released else 1.0
    second = lr**2 if released else max(float(both @ pool.target), 0.0) / float(both @ both)
    selector = selectors.Opus(filter_size=2, temperature=0.8, as_released=released, lr=lr, sketch=None)
    found: dict[tuple[int, ...], float] = {}
    for seed in range(300):
        key = tuple(choose(selector, pool, seed).index.tolist())
        found[key] = found.get(key, 0) + 1 / 300
    for one, other in combinations(range(5), 2):
        chance = sum(slow_opus(pool, first, second, 0.8, not released, order) for order in ((one, other), (other, one)))
        assert found.get((one, other), 0) == pytest.approx(chance, abs=0.01 + 4 * math.sqrt(chance / 300))


def test_opus_as_released_is_uniform_at_the_scale_of_fine_tuning_and_standardised_is_not():
    pool = Pool.draw(8)
    released = frequencies(selectors.Opus(filter_size=2, as_released=True, lr=1e-6), pool)
    standard = frequencies(selectors.Opus(filter_size=2), pool)
    assert (released - 0.25).abs().max() < 0.11
    assert (standard - 0.25).abs().max() > 0.3


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (selectors.MidPPL, {"center": 1.5}),
        (selectors.MidPPL, {"width": -0.1}),
        (selectors.SelectiveBackprop, {"beta": -1.0}),
        (selectors.SelectiveBackprop, {"window": 0}),
        (selectors.SelectiveBackprop, {"sampling": "top"}),
        (selectors.Opus, {"temperature": 0.0}),
        (selectors.Opus, {"sketch": 0}),
        (selectors.Opus, {"lr": 0.0, "as_released": True}),
        (selectors.GradMatch, {"match": "metric"}),
        (selectors.GradMatch, {"ridge": math.nan}),
        (selectors.UDS, {"alpha": -1.0}),
        (selectors.UDS, {"buffer": 0}),
        (selectors.InfluenceDistillation, {"curvature": -1.0}),
        (selectors.InfluenceDistillation, {"ridge": 0.0}),
        (selectors.InfluenceDistillation, {"w_max": 0.5}),
        (selectors.Adapt, {"temperature": 0.0}),
        (selectors.Adapt, {"normalise": "sum"}),
        (selectors.DataShapley, {"order": "third"}),
        (selectors.DataShapley, {"weighting": "nnls"}),
        (selectors.DataShapley, {"lr": -1.0, "order": "second"}),
    ],
    ids=str,
)
def test_what_a_method_does_not_know_is_refused_by_its_key(build, option):
    with pytest.raises(ValueError, match=rf"selector\.{next(iter(option))}"):
        build(**option)
