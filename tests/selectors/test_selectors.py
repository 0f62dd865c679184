"""The contract every selector keeps, run over the table in tests/cases.py, and each rule against its formula."""

import copy
import inspect
import math
import re
from itertools import product
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

from tests.cases import CASES, Case, Pool
from tests.choosing import choose, described, generator
from winnow import selectors
from winnow.selectors import GradNorm, Greats, Selector
from winnow.selectors.grad_norm import importance_weights
from winnow.signals import Needs

ROOT = Path(__file__).parents[2]
CARD = ("Needs", "Cost", "Rule", "Knobs", "Source", "Departures")


def over(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: f"{case.name}-{'+'.join(case.variants[0])}")


CONTRACT = [case for case in CASES if case.contract]
every_case = over(CONTRACT)


def that(promise):
    """The cases that have what a test is about, so that every row asserts something."""
    return over([case for case in CONTRACT if promise(case)])


def wanting(case, name):
    """The variants of a case that ask for a signal."""
    return [selector for selector in case.every() if getattr(selector.needs, name) not in (None, False)]


# The files that belong to a selector


def modules():
    folder = ROOT / "src" / "winnow" / "selectors"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem not in ("__init__", "base", "abilities"))


def presets():
    return sorted(path for path in (ROOT / "conf" / "selector").glob("*.yaml") if path.stem != "custom")


def preset(path):
    """A selector's YAML with the file it builds on, as Hydra composes them."""
    config = OmegaConf.load(path)
    parents = [name for name in config.pop("defaults", []) if name != "_self_"]
    return OmegaConf.merge(*(preset(path.parent / f"{name}.yaml") for name in parents), config)


def test_every_selector_has_a_row_a_config_and_is_exported():
    assert {case.name for case in CASES} == set(modules())
    assert {case.build.__name__ for case in CASES} | {"Selector"} == set(selectors.__all__)
    for case in CASES:
        assert case.build.__module__ == f"winnow.selectors.{case.name}"
        assert (ROOT / "conf" / "selector" / f"{case.name}.yaml").exists(), case.name
        assert (ROOT / "conf" / "baseline" / f"{case.name}.yaml").exists(), case.name
    baselines = {path.stem for path in (ROOT / "conf" / "baseline").glob("*.yaml")}
    assert baselines == set(modules())


@over(CASES)
def test_the_docstring_is_a_method_card(case):
    card = inspect.getdoc(case.build)
    headings = re.findall(r"^(\w+):", card, flags=re.MULTILINE)
    assert tuple(headings) == CARD
    for heading in CARD:
        assert re.search(rf"^{heading}:\s+\S", card, flags=re.MULTILINE), heading
    knobs = card.split("\nKnobs:")[1].split("\nSource:")[0]
    named = re.findall(r"^    (\w+):", knobs, flags=re.MULTILINE)
    assert named == list(inspect.signature(case.build).parameters)


@pytest.mark.parametrize("path", presets(), ids=lambda path: path.stem)
def test_a_preset_builds_its_selector(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith(f"# python train.py selector={path.stem}")
    for line in lines[2:]:  # every key says what it is
        assert re.search(r"\S\s+# \S", line) or re.match(r"(_target_: |defaults:$|  - \w+$)", line), line
    config = preset(path)
    # Without the rest of the configuration the groups it points into are these.
    config = OmegaConf.merge({"data": {"pool_size": 16}, "optimizer": {"lr": 1e-3}, "selector": config}, {})
    options = OmegaConf.to_container(config, resolve=True)["selector"]
    build = getattr(selectors, options.pop("_target_").removeprefix("winnow.selectors."))
    bound = inspect.signature(build).bind(**options)
    assert set(bound.arguments) == set(inspect.signature(build).parameters)  # every knob is in the file
    assert isinstance(build(**options), Selector)


@pytest.mark.parametrize("name", modules())
def test_a_baseline_overrides_the_selector(name):
    text = (ROOT / "conf" / "baseline" / f"{name}.yaml").read_text()
    assert text.startswith(f"# @package _global_\n# python train.py baseline={name}\n")
    held = OmegaConf.to_container(OmegaConf.create(text))
    assert held.pop("defaults") == [{"override /selector": name}]
    assert held in ({}, {"scoring": {"layers": "last:1"}})  # what a method is defined on; the rest is the protocol's


# The contract


@every_case
def test_what_is_kept(case):
    for selector in case.every():
        for seed in range(3):
            selection = choose(selector, Pool.draw(12, seed=seed), seed)
            count = len(selection)
            expected = {"k": count == 4, "up to k": 1 <= count <= 4, "all": count == 12}
            assert expected[case.keeps], (selector, count)
            assert (selection.weight > 0).all()
            assert all(math.isfinite(value) for value in selection.diagnostics.values())


@every_case
def test_float32_signals_give_float32_weights(case):
    for selector in case.every():
        assert choose(selector, Pool.draw(12), dtype=torch.float32).weight.dtype == torch.float32


@every_case
def test_the_same_seed_gives_the_same_choice_and_no_global_generator_is_touched(case):
    for selector in case.every():
        pool = Pool.draw(12)
        state = torch.random.get_rng_state()
        first, second = (choose(copy.deepcopy(selector), pool, seed=5) for _ in range(2))
        assert described(first) == described(second)
        assert torch.equal(torch.random.get_rng_state(), state)
        if case.draws:
            assert len({tuple(choose(copy.deepcopy(selector), pool, seed).index.tolist()) for seed in range(8)}) > 1
            with pytest.raises(ValueError, match="generator"):
                selector(pool.signals(selector.needs))


@that(lambda case: not case.draws)
def test_permuting_the_pool_permutes_the_choice(case):
    order = torch.randperm(12, generator=generator())
    for plain, permuted in zip(case.every(), case.every(), strict=True):
        pool = Pool.draw(12, seed=1)
        expected = choose(plain, pool).dense(12)[order]
        assert torch.allclose(choose(permuted, pool[order]).dense(12), expected, rtol=1e-9, atol=1e-12)


@every_case
def test_candidates_that_are_not_valid_are_never_kept(case):
    for selector in case.every():
        pool = Pool.draw(12, seed=2)
        pool.valid[[0, 3, 4, 7, 8, 9, 10, 11]] = False
        pool.spoil([0, 3], torch.nan)
        rest = [1, 2, 5, 6]
        selection = choose(selector, pool)
        assert len(selection) > 0 and set(selection.index.tolist()) <= set(rest)
        if not case.draws:
            alone = choose(selector, pool[rest])
            assert [rest[i] for i in alone.index.tolist()] == selection.index.tolist()
            assert torch.allclose(alone.weight, selection.weight, rtol=1e-9)


@that(lambda case: wanting(case, "forward"))
def test_scores_that_are_not_finite_are_never_kept(case):
    """As the scorer gives them if it lets one through: K has a row and a column that are not finite."""
    for selector in wanting(case, "forward"):
        pool = Pool.draw(12, seed=3)
        for bad in (torch.nan, torch.inf):
            pool.spoil(5, bad)
            selection = choose(selector, pool)
            assert len(selection) and 5 not in selection.index.tolist()


@that(lambda case: wanting(case, "gram"))
def test_an_inner_product_that_is_not_finite_costs_no_other_candidate(case):
    for selector in wanting(case, "gram"):
        pool = Pool.draw(12, seed=3)
        signals = pool.signals(selector.needs)
        signals.gram[5, :], signals.gram[:, 5] = torch.inf, torch.inf
        signals.gram[5, 5] = 1.0
        selection = selector(signals, generator())
        rest = [i for i in range(12) if i != 5]
        alone = choose(copy.deepcopy(selector), pool[rest])
        assert [rest[i] for i in alone.index.tolist()] == selection.index.tolist()


@every_case
def test_fewer_valid_candidates_than_filter_size_are_kept(case):
    for selector in case.every():
        pool = Pool.draw(12, seed=4)
        pool.valid[2:] = False
        assert 1 <= len(choose(selector, pool)) <= 2
        pool.valid[:] = False
        assert len(choose(selector, pool)) == 0


@every_case
def test_one_candidate_all_equal_and_k_equal_to_the_pool(case):
    options = {} if case.keeps == "all" else {"filter_size": 1}
    for selector in case.every(**options):
        selection = choose(selector, Pool.draw(1, seed=5))
        assert selection.index.tolist() == [0]
        if selector.__dict__.get("normalise") != "none":
            assert selection.weight.tolist() == [1.0]
    for selector in case.every():
        equal = Pool.draw(1, seed=5)[[0] * 6]
        assert 1 <= len(choose(selector, equal)) <= 6
    options = {} if case.keeps == "all" else {"filter_size": 12}
    for selector in case.every(**options):
        count = len(choose(selector, Pool.draw(12, seed=5)))
        assert count == 12 or (case.keeps == "up to k" and count >= 1)


@every_case
def test_all_zero_gradients_are_no_error(case):
    for selector in case.every():
        pool = Pool.draw(6)
        pool.gradients.zero_()
        selection = choose(selector, pool)
        assert len(selection) <= 6
        assert all(math.isfinite(value) for value in selection.diagnostics.values())


@that(lambda case: case.keeps != "all")
def test_more_than_the_pool_is_refused(case):
    for selector in case.every(filter_size=7):
        with pytest.raises(ValueError, match=r"selector\.filter_size=7.*6 candidates.*data\.pool_size"):
            choose(selector, Pool.draw(6))
    with pytest.raises(ValueError, match=r"selector\.filter_size"):
        case.build(filter_size=0)


@that(lambda case: wanting(case, "forward"))
def test_missing_signals_are_named(case):
    for selector in wanting(case, "forward"):
        with pytest.raises(ValueError, match=r"needs signals\."):
            selector(Pool.draw(6).signals(Needs()), generator())


@over([case for number, case in enumerate(CASES) if case.name not in {other.name for other in CASES[:number]}])
def test_only_what_is_needed_is_asked_for(case):
    needs = case.every()[0].needs
    assert (needs.forward, needs.backward, needs.target) == case.asks


def test_hidden_labels_reach_the_oracle_alone_and_recorded_ids_replay():
    allowed = {"oracle": {"group", "noise"}, "replay": {"id"}, "colm": {"source"}}
    for case in CASES:
        for selector in case.every():
            assert set(selector.needs.meta) == allowed.get(case.name, set()), case.name


STATEFUL = [case for case in CASES if case.state]


def test_what_has_state_is_marked():
    stateful = {case.name for case in CASES if hasattr(case.every()[0], "state_dict")}
    assert stateful == {case.name for case in STATEFUL} | {"replay"}


@over(STATEFUL)
def test_state_resumes_as_if_never_stopped(case, tmp_path):
    for options in ({}, case.small):
        for unbroken, broken, resumed in zip(*(case.every(**options) for _ in range(3)), strict=True):
            pools = [Pool.draw(12, seed=seed) for seed in range(6)]
            expected = [described(choose(unbroken, pool, seed)) for seed, pool in enumerate(pools)]
            first = [described(choose(broken, pool, seed)) for seed, pool in enumerate(pools[:3])]
            state = broken.state_dict()
            choose(broken, pools[5], 9)  # what is saved is a copy
            torch.save(state, tmp_path / "state")
            resumed.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
            rest = [described(choose(resumed, pool, seed)) for seed, pool in list(enumerate(pools))[3:]]
            assert first + rest == expected


@over([case for case in STATEFUL if case.small])
def test_state_is_bounded(case):
    for selector in case.every(**case.small):
        for seed in range(12):
            choose(selector, Pool.draw(12, seed=seed), seed)
        (bound,) = case.small.values()
        assert [len(value) for value in selector.state_dict().values()] == [bound]


# The baselines, each against its formula on dense gradients


def case_of(name) -> Case:
    return next(case for case in CASES if case.name == name)


@pytest.mark.parametrize("seed", range(4))
def test_top_rules(seed):
    pool = Pool.draw(12, seed=seed)
    scores = {
        "max_loss": [float(loss) for loss in pool.losses],
        "grad_norm": [math.sqrt(sum(float(x) ** 2 for x in row)) for row in pool.gradients],
        "tracin": [sum(float(x) * float(y) for x, y in zip(row, pool.target, strict=True)) for row in pool.gradients],
    }
    for name, values in scores.items():
        expected = sorted(sorted(range(12), key=lambda i, values=values: -values[i])[:4])
        assert described(choose(case_of(name).build(), pool)) == (expected, [1.0] * 4), name


def test_full_and_random():
    pool = Pool.draw(6)
    assert described(choose(selectors.Full(), pool)) == (list(range(6)), [1.0] * 6)
    counts = torch.zeros(6)
    for seed in range(600):
        counts += choose(selectors.Random(filter_size=2), pool, seed).dense(6).float()
    assert (counts / 600 - 1 / 3).abs().max() < 0.08  # four standard deviations


def test_importance_sampling_is_unbiased_for_the_pool_mean():
    pool = Pool.draw(4, width=5)
    norms = pool.gradients.norm(dim=1)
    chance = norms / norms.sum()
    expected = torch.zeros(5, dtype=torch.float64)
    for draws in product(range(4), repeat=3):  # every outcome of three draws, with its probability
        kept, weight = importance_weights(chance, torch.tensor(draws))
        expected += chance[list(draws)].prod() * (weight[:, None] * pool.gradients[kept]).mean(0)
    assert torch.allclose(expected, pool.gradients.mean(0), rtol=1e-12)


def test_importance_sampling_draws_in_proportion_to_the_norm():
    pool = Pool.draw(5)
    selector = GradNorm(filter_size=1, sampling="importance")
    counts = torch.zeros(5)
    for seed in range(800):
        counts += (choose(selector, pool, seed).dense(5) > 0).float()
    norms = pool.gradients.norm(dim=1)
    assert (counts / 800 - norms / norms.sum()).abs().max() < 0.07


def slow_greats(pool, k, first, second):
    """The rule, its sum over the kept written out."""
    kept = []
    for _ in range(k):
        scores = {
            i: first * float(pool.gradients[i] @ pool.target)
            - second * sum(float(pool.gradients[i] @ pool.gradients[j]) for j in kept)
            for i in range(len(pool))
            if i not in kept
        }
        kept.append(max(scores, key=scores.get))
    return sorted(kept)


@pytest.mark.parametrize("seed", range(6))
def test_greats(seed):
    pool = Pool.draw(10, seed=seed)
    for lr in (1e-6, 0.05, 0.5):
        released = choose(Greats(as_released=True, lr=lr), pool)
        assert described(released) == (slow_greats(pool, 4, lr, lr**2), [1.0] * 4)
    calibrated = choose(Greats(), pool)
    together = pool.gradients[(pool.gradients @ pool.target).argsort(descending=True)[:4]].sum(0)
    step = float(together @ pool.target / (together @ together))
    assert calibrated.index.tolist() == slow_greats(pool, 4, 1.0, step)
    assert calibrated.diagnostics["step"] == pytest.approx(step)


def test_greats_as_released_is_tracin_at_small_learning_rates_and_calibrated_is_not():
    differs = 0
    for seed in range(6):
        pool = Pool.draw(10, seed=seed)
        tracin = choose(selectors.TracIn(), pool).index.tolist()
        assert choose(Greats(as_released=True, lr=1e-6), pool).index.tolist() == tracin
        differs += choose(Greats(), pool).index.tolist() != tracin
    assert differs


def test_greats_as_released_needs_a_learning_rate():
    for lr in (None, 0.0, math.nan):
        with pytest.raises(ValueError, match=r"selector\.lr"):
            Greats(as_released=True, lr=lr)
    with pytest.raises(ValueError, match=r"selector\.sampling"):
        GradNorm(sampling="uniform")


def test_a_copy_is_worth_less_to_greats_than_to_tracin():
    """Of three copies of the best candidate TracIn keeps all; GREATS, calibrated, does not."""
    pool = Pool.draw(8, seed=1)
    best = int((pool.gradients @ pool.target).argmax())
    pool = pool[[*range(8), best, best]]
    copies = {best, 8, 9}
    assert copies <= set(choose(selectors.TracIn(filter_size=3), pool).index.tolist())
    assert not copies <= set(choose(Greats(filter_size=3), pool).index.tolist())
