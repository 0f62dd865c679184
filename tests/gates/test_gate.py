"""The gate's contract: what it passes on, what it learns from, what it remembers."""

from __future__ import annotations

import logging
import math
from collections import Counter

import pytest
import torch
from scipy.stats import spearmanr

from tests.cases import Pool
from tests.gates.test_features import Text
from winnow.gates import Cadence, Calibration, Coverage, Draw, Gate, LinearGate, NGrams
from winnow.gates.coverage import Recent
from winnow.gates.labels import LABELS, labels_of
from winnow.selection import Selection
from winnow.signals import Needs, Signals

SIZE, COUNT = 32, 8


def word(number: int) -> str:
    """A word of its own for every number: numbers all count as one."""
    return "w" + "".join(chr(97 + int(digit)) for digit in str(number))


def texts(seed: int, size: int = SIZE) -> list[Text]:
    """Half of them sums, the other half about animals."""
    numbers = torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:size].tolist()
    return [
        Text(f"what is {number} plus {at}", word(number), "sums")
        if at % 2
        else Text(f"the cat saw {word(number)}", word(number), "animals")
        for at, number in enumerate(numbers)
    ]


def draw(gate: Gate, seed: int = 0, size: int = SIZE) -> Draw:
    return Draw.of(texts(seed, size), gate.features)


def gate(**options: object) -> LinearGate:
    return LinearGate(NGrams(64), **options)  # type: ignore[arg-type]


def chance(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scored(labels: torch.Tensor, invalid: tuple[int, ...] = ()) -> tuple[Signals, Selection]:
    """Signals whose cosines are the labels."""
    valid = torch.ones(len(labels), dtype=torch.bool)
    valid[list(invalid)] = False
    signals = Signals(
        valid=valid, tokens=torch.full((len(labels),), 3), alignment=6 * labels.double(),
        norms=torch.full((len(labels),), 2.0).double(), target_norm=torch.tensor(3.0).double(),
    )  # fmt: skip
    return signals, Selection(torch.tensor([0]), torch.ones(1))


def taught(**options: object) -> LinearGate:
    """Knows that sums help and animals do not."""
    made = gate(**options)
    for seed in range(12):
        seen = draw(made, 100 + seed)
        passed = made.admit(seen, COUNT, chance(seed))
        worth = torch.tensor([0.4 if seen.sources[at] == "sums" else -0.2 for at in passed.index.tolist()])
        made.learn(seen, passed, *scored(worth))
    return made


EXPLORE = pytest.mark.parametrize("explore", ["thompson", "ucb", "none"])


@EXPLORE
def test_a_pool_is_as_large_as_asked_and_reproducible(explore: str) -> None:
    for made in (gate(explore=explore), taught(explore=explore)):
        state = made.state_dict()
        passed = made.admit(draw(made), COUNT, chance(5))
        assert isinstance(made, Gate) and len(passed) == COUNT and passed.index.max() < SIZE
        assert passed.predicted.shape == (SIZE,) and passed.at_random.sum() == 2
        other = gate(explore=explore)
        other.load_state_dict(state)
        again = other.admit(draw(other), COUNT, chance(5))
        assert torch.equal(passed.index, again.index) and torch.equal(passed.predicted, again.predicted)


@EXPLORE
def test_what_was_worth_scoring_is_passed_on(explore: str) -> None:
    made = taught(explore=explore)
    seen = draw(made, 7)
    passed = made.admit(seen, COUNT, chance(1))
    chosen = [seen.sources[at] for at in passed.index[~passed.at_random].tolist()]
    assert Counter(chosen) == {"sums": 6}
    best = made.best(seen, 4, chance(1))
    assert {seen.sources[at] for at in best.index.tolist()} == {"sums"} and not best.at_random.any()
    assert set(best.index.tolist()) == set(made.model.predict(seen.vectors).topk(4).indices.tolist())


def test_those_at_random_are_drawn_whatever_is_predicted() -> None:
    made, counts, rounds = taught(), torch.zeros(SIZE), 4000
    seen = draw(made, 7)
    for seed in range(rounds):
        passed = made.admit(seen, COUNT, chance(seed))
        counts[passed.index[passed.at_random]] += 1
    expected = rounds * 2 / SIZE
    assert ((counts - expected).abs() < 5 * expected**0.5).all()


def test_thompson_explores_what_is_not_known_and_less_of_what_is() -> None:
    def variety(made: LinearGate) -> int:
        seen = draw(made, 7)
        passed = [made.admit(seen, COUNT, chance(seed)) for seed in range(30)]
        return len({at for one in passed for at in one.index[~one.at_random].tolist()})

    assert variety(gate()) == SIZE and variety(taught()) < SIZE
    assert variety(taught(explore="none", random_share=0.0)) <= COUNT + 1  # two may be equal


def test_ucb_is_the_bound_it_says() -> None:
    made = taught(explore="ucb", width=2.0, random_share=0.0)
    seen = draw(made, 9)
    hopes = made.model.predict(seen.vectors) + 2 * made.model.deviation(seen.vectors)
    passed = made.admit(seen, COUNT, chance())
    assert set(passed.index.tolist()) == set(hopes.topk(COUNT).indices.tolist())


def test_nothing_known_is_nothing_preferred() -> None:
    made, counts = gate(explore="none", random_share=0.0), torch.zeros(SIZE)
    seen = draw(made)
    for seed in range(2000):
        counts[made.admit(seen, COUNT, chance(seed)).index] += 1
    assert ((counts - 500).abs() < 100).all()


def test_copies_are_passed_on_last() -> None:
    made = taught(random_share=0.5)
    ten = [Text("what is 1 plus 1", "same", "sums")] * 10 + texts(3, 10)
    seen = Draw.of(ten, made.features)
    assert (made.admit(seen, COUNT, chance()).index < 10).sum() <= 1
    assert (made.best(seen, COUNT, chance()).index < 10).sum() <= 1
    assert len(made.admit(seen, 15, chance())) == 15, "where nothing else is left"


def test_a_source_is_bounded() -> None:
    made, counts = taught(most_of_a_source=0.6), Counter()
    for seed in range(60):
        seen = draw(made, 200 + seed)
        counts.update(seen.sources[at] for at in made.best(seen, COUNT, chance(seed)).index.tolist())
    # Not before 200 were passed on; from then on no more than its share.
    assert 0.55 < counts["sums"] / counts.total() < 0.75
    free = taught()
    for seed in range(60):
        free.best(draw(free, 200 + seed), COUNT, chance(seed))
    assert free.coverage.passed["source"].share("sums") > 0.95


def test_a_gate_that_comes_down_to_one_source_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    made = taught(random_share=0.0)
    with caplog.at_level(logging.WARNING):
        for seed in range(80):
            few = [one for at, one in enumerate(texts(seed)) if one.source == "animals" or at % 4 == 1]
            made.best(Draw.of(few, made.features), 4, chance(seed))
    (warning,) = [record.getMessage() for record in caplog.records if "one source" in record.getMessage()]
    assert "'sums'" in warning and "gate.most_of_a_source" in warning


def test_a_stream_of_one_source_is_no_collapse(caplog: pytest.LogCaptureFixture) -> None:
    made = gate()
    with caplog.at_level(logging.WARNING):
        for seed in range(80):
            made.best(Draw.of([one for one in texts(seed) if one.source == "sums"], made.features), 4, chance(seed))
    assert "one source" not in caplog.text
    assert made.metrics()["gate/source_entropy"] == 0


def test_passing_on_the_same_texts_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    made = gate()
    with caplog.at_level(logging.WARNING):
        for seed in range(80):
            made.best(draw(made, 1, 8), 8, chance(seed))
    assert made.metrics()["gate/repeated"] == pytest.approx(79 / 80)
    assert sum("passed on before" in record.getMessage() for record in caplog.records) == 1


@pytest.mark.parametrize("label", LABELS)
def test_labels_are_what_they_say(label: str) -> None:
    pool = Pool.draw(9)
    pool.valid[3] = False
    pool.gradients[5] = 0
    needs = gate(label=label).needs(Needs(gram=1, alignment=1))
    signals, selection = pool.signals(needs), Selection(torch.tensor([1, 4]), torch.tensor([0.5, 1.5]))
    found = labels_of(label, signals, selection)
    scaled, tau = pool.gradients * pool.diagonal.sqrt(), pool.target * pool.diagonal.sqrt()
    for at, label_found in enumerate(found.tolist()):
        utility, length = float(scaled[at] @ tau), float(scaled[at].norm())
        others = [float(one.norm()) for number, one in enumerate(scaled) if number not in (3, 5)]
        expected = {
            "cosine": utility / length / float(tau.norm()) if length else math.nan,
            "utility": utility / (sum(one**2 for one in others) / len(others)) ** 0.5 if length else math.nan,
            "weight": {1: 0.5, 4: 1.5}.get(at, 0.0),
        }[label]
        assert label_found == pytest.approx(math.nan if at == 3 else expected, rel=1e-9, nan_ok=True)


def test_what_the_selector_does_not_ask_for_is_computed_for_the_gate() -> None:
    made = gate()
    assert made.needs(Needs()) == Needs(alignment=1, norms=1, target_norm=True)
    assert made.needs(Needs(losses=True, gram=0)) == Needs(losses=True, gram=0, alignment=1, target_norm=True)
    assert gate(label="weight").needs(Needs(losses=True)) == Needs(losses=True)
    with pytest.raises(ValueError, match=r"set gate\.label=weight"):
        made.needs(Needs(hidden="mean", target_hidden=True))


def test_what_says_nothing_is_not_learned_from() -> None:
    made = gate(random_share=1.0)
    seen = draw(made)
    passed = made.admit(seen, COUNT, chance())
    before = made.model.weights.clone()
    labels = made.learn(seen, passed, *scored(torch.full((COUNT,), 0.3), tuple(range(COUNT))))
    assert labels.isnan().all() and torch.equal(made.model.weights, before)
    labels = made.learn(seen, passed, *scored(torch.full((COUNT,), 0.3), (1,)))
    assert labels.isnan().tolist() == [at == 1 for at in range(COUNT)]
    assert not torch.equal(made.model.weights, before) and math.isnan(made.correlation[0])


def test_calibration_is_of_the_random_part_alone_and_before_learning() -> None:
    made, pairs = gate(random_share=0.5), []
    for seed in range(30):
        seen = draw(made, seed)
        passed = made.admit(seen, COUNT, chance(seed))
        worth = torch.randn(COUNT, generator=chance(seed)) + torch.tensor([
            1.0 if seen.sources[at] == "sums" else -1.0 for at in passed.index.tolist()
        ])
        pairs += list(
            zip(
                passed.predicted[passed.index][passed.at_random].tolist(), worth[passed.at_random].tolist(), strict=True
            )
        )
        made.learn(seen, passed, *scored(worth))
    expected = spearmanr(*zip(*pairs[-64:], strict=True)).statistic
    assert made.correlation[0] == made.metrics()["gate/correlation"] == pytest.approx(expected)
    assert made.correlation[0] > 0.4


def test_entropies_are_of_what_was_offered_and_of_what_was_passed_on() -> None:
    made = gate()
    for seed in range(20):
        made.admit(draw(made, seed), COUNT, chance(seed))
    found = made.metrics()
    assert found["gate/source_entropy_offered"] == pytest.approx(math.log(2))
    counts = Counter(made.coverage.passed["cluster"].values)
    total = counts.total()
    entropy = -sum(count / total * math.log(count / total) for count in counts.values())
    assert found["gate/cluster_entropy"] == pytest.approx(entropy)


def test_the_latest_are_counted_as_one_by_one_would() -> None:
    """However many draws are counted at once; entropies do not go by the order values came in, which no state keeps."""
    recent, kept, numbers = Recent(50), [], chance()
    for number in range(100):
        values = torch.randint(9, (int(torch.randint(70, (), generator=numbers)),), generator=numbers).tolist()
        recent.add(values)
        kept = (kept + values)[-50:]
        if number % 3:
            continue
        assert list(recent.values) == kept and dict(recent.counts) == Counter(kept)
        again = Recent(50)
        again.load(recent.values)
        assert again.entropy == recent.entropy


def test_what_is_passed_on_is_what_a_loop_would_choose() -> None:
    """The highest prediction first, copies last, and of equals the first of the order that was drawn."""
    made = taught(explore="none", random_share=0.25)
    for seed in range(20):
        seen = Draw.of([*texts(seed, 20), *texts(seed + 1, 8), *texts(seed, 12)], made.features)
        passed, order = made.admit(seen, 12, chance(seed)), torch.randperm(40, generator=chance(seed)).tolist()
        predicted = passed.predicted.tolist()
        copies = [at for at in range(40) if seen.texts[at] in seen.texts[:at]]
        order = [at for at in order if at not in copies] + [at for at in order if at in copies]
        free, rest = order[:3], order[3:]
        rest.sort(key=lambda at: (at in copies, -predicted[at] if at not in copies else 0))  # stable
        assert passed.index.tolist() == sorted(free + rest[:9])
        assert passed.index[passed.at_random].tolist() == sorted(free)


@EXPLORE
def test_a_state_goes_on_as_if_never_stopped(explore: str) -> None:
    whole, part = taught(explore=explore, most_of_a_source=0.7), gate(explore=explore, most_of_a_source=0.7)
    part.load_state_dict(whole.state_dict())
    for seed in range(30):
        results = []
        for made in (whole, part):
            seen = draw(made, seed)
            passed = made.admit(seen, COUNT, chance(seed)) if seed % 2 else made.best(seen, COUNT, chance(seed))
            made.learn(seen, passed, *scored(torch.randn(COUNT, generator=chance(seed))))
            results.append((passed.index.tolist(), made.metrics()))
        assert repr(results[0]) == repr(results[1])  # NaN is not equal to itself


# Cadence


def steps(cadence: Cadence, correlations: list[tuple[float, float]]) -> list[int]:
    """Steps that are scored, where the k-th scoring finds the k-th correlation."""
    found, at = [], 0
    for step in range(200):
        if cadence.due:
            found.append(step)
            at = min(len(found), len(correlations)) - 1
        cadence.count(lambda at=at: correlations[at])
    return found


@pytest.mark.parametrize("period", [1, 2, 5])
def test_every_nth_step_is_scored(period: int) -> None:
    assert steps(Cadence(period), [(0.0, 0.0)]) == list(range(0, 200, period))


def test_scoring_is_seldom_while_predictions_hold_and_often_while_they_do_not() -> None:
    good, bad, falling, unknown = (0.6, 0.6), (0.1, 0.1), (0.6, 0.2), (math.nan, math.nan)
    assert steps(Cadence("adaptive"), [unknown]) == list(range(200))
    assert steps(Cadence("adaptive"), [good])[:7] == [0, 2, 6, 14, 30, 46, 62]
    assert steps(Cadence("adaptive", longest=4), [good])[:5] == [0, 2, 6, 10, 14]
    assert steps(Cadence("adaptive"), [good, good, good, bad])[:9] == [0, 2, 6, 14, 18, 20, 21, 22, 23]
    assert steps(Cadence("adaptive"), [good, good, falling, falling, falling])[:8] == [0, 2, 6, 8, 9, 10, 11, 12]


def trusted() -> tuple[float, float]:
    return 0.6, 0.6


def test_a_cadence_goes_on_where_it_was() -> None:
    for period in (3, "adaptive"):
        whole, expected = Cadence(period), steps(Cadence(period), [trusted()])
        for step in range(11):
            assert whole.due == (step in expected)
            whole.count(trusted)
        rest = Cadence(period)
        rest.load_state_dict(whole.state_dict())
        for step in range(11, 80):
            assert rest.due == (step in expected), step
            rest.count(trusted)


@pytest.mark.parametrize("period", [0, -1, True, "often"])
def test_a_period_that_is_none_is_refused(period: object) -> None:
    with pytest.raises(ValueError, match=r"scoring\.period must be a whole number >= 1, or adaptive"):
        Cadence(period)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "bad",
    [{"label": "loss"}, {"explore": "greedy"}, {"random_share": 1.5}, {"width": -1.0}, {"most_of_a_source": 0.0}],
    ids=lambda bad: next(iter(bad)),
)
def test_what_makes_no_sense_is_refused(bad: dict) -> None:
    with pytest.raises(ValueError, match=rf"gate\.{next(iter(bad))} must be"):
        gate(**bad)


def test_a_calibration_of_too_few_or_equal_pairs_is_not_known() -> None:
    calibration = Calibration()
    calibration.add(torch.arange(7.0), torch.arange(7.0))
    assert math.isnan(calibration.correlation)
    calibration.add(torch.tensor([8.0, 9.0]), torch.tensor([8.0, math.nan]))
    assert calibration.correlation == 1.0
    flat = Calibration()
    flat.add(torch.zeros(20), torch.arange(20.0))
    assert math.isnan(flat.correlation)
    assert Coverage(4).metrics()["gate/repeated"] == 0
