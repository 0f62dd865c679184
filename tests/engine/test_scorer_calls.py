"""What the scorer does from call to call: what it computes, which layers, and the target gradient over time."""

import gc
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import build, double, ragged, rows
from tests.reference import relative, slow_gradients, slow_matrix, warmed_up
from winnow.gradients.factors.base import Factor
from winnow.lm.losses import example_losses
from winnow.products.parcel import Parcel
from winnow.products.sums import Sums
from winnow.scorer import Scorer, TargetNotFinite
from winnow.scorer.visit import Visit
from winnow.signals import Needs

RAW = Needs(alignment=0)
POOL, TARGETS = ragged([7, 5, 6]), [ragged([6, 4], seed=seed) for seed in range(1, 6)]


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def scorer(**options: Any) -> Scorer:
    model = build("llama")
    return Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def alignments(given: Scorer, targets: list[dict[str, Tensor] | None], needs: Needs = RAW) -> list[Tensor]:
    found = [given(POOL, target, needs).alignment for target in targets]
    assert all(alignment is not None for alignment in found)
    return found  # type: ignore[return-value]


def test_only_what_is_asked_for_is_computed() -> None:
    given = scorer()
    calls: list[bool] = []
    given.model.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    nothing = given(POOL, None, Needs())
    assert calls == [] and nothing.valid.all() and nothing.tokens.tolist() == [5, 3, 4] and nothing.losses is None
    forward = given(POOL, None, Needs(losses=True))
    assert calls == [False], "forward-only signals never pay for a backward"
    assert forward.losses is not None and forward.alignment is None and forward.gram is None and forward.norms is None
    both = given(POOL, TARGETS[0], Needs(gram=0))
    assert both.losses is None and both.alignment is None and both.norms is None and both.gram is not None
    assert calls[1] is True


def test_losses_are_those_of_the_model() -> None:
    """The mean or the sum over response tokens, whatever the padding; NaN where there are none."""
    given = scorer()
    batch = ragged([7, 5, 6], [2, 5, 3])
    losses = given(batch, None, Needs(losses=True)).losses
    assert losses is not None
    given.model.eval()
    for row in (0, 2):
        alone = rows(batch, slice(row, row + 1))
        own = given.model(**{key: value[:, : [7, 5, 6][row]] for key, value in alone.items()}).loss.detach()
        assert relative(losses[row : row + 1], own[None]) < 1e-12
    assert losses.isnan().tolist() == [False, True, False]
    sums = example_losses(given.model, batch, "sum").detach()
    assert relative(sums[[0, 2]], losses[[0, 2]] * torch.tensor([5, 3])) < 1e-12
    with pytest.raises(ValueError, match=r"scoring\.reduction"):
        example_losses(given.model, batch, "median")


def test_sum_reduction_scales_gradients_by_response_tokens() -> None:
    tokens = torch.tensor([5, 3, 4])
    mean, total = scorer()(POOL, None, Needs(gram=0)).gram, scorer(reduction="sum")(POOL, None, Needs(gram=0)).gram
    assert mean is not None and total is not None
    assert relative(total, mean * tokens[:, None] * tokens) < 1e-12


@pytest.mark.parametrize(
    ("layers", "lora", "expected"),
    [
        ("all", False, lambda name: True),
        ("linear", False, lambda name: "proj" in name or "lm_head" in name),
        ("last:1", False, lambda name: ".layers.1." in name),
        ("last:9", False, lambda name: ".layers." in name),
        (r"layers\.0\.mlp", False, lambda name: "layers.0.mlp" in name),
        ("lora", True, lambda name: "lora_" in name),
        ("all", True, lambda name: "lora_" in name),
    ],
)
def test_layers(layers: str, lora: bool, expected: Any) -> None:
    model = build("llama", lora)
    given = Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1), layers=layers)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and expected(name)]
    assert list(given.parameters) == names and names
    gram = given(POOL, None, Needs(gram=0)).gram
    g = slow_matrix(model, POOL, names)
    assert gram is not None and relative(gram, g @ g.T) < 1e-9


def test_the_empty_regex_matches_everything() -> None:
    assert len(scorer(layers="").parameters) == 21


@pytest.mark.parametrize("layers", ["lora", "nothing_like_it", "last:0", "last:x", "("])
def test_layers_that_match_nothing_are_refused(layers: str) -> None:
    with pytest.raises(ValueError, match=r"scoring\.layers"):
        scorer(layers=layers)


def test_target_weights_are_shares_of_the_target_gradient() -> None:
    """Two tasks, three and one examples, at 1:3: each task's mean gradient, weighted by the task."""
    given = scorer()
    target = ragged([6, 4, 5, 7], [2, 2, 5, 3], seed=1)  # the third has no response: its share goes to the others
    weight = torch.tensor([1.0, 1.0, 1.0, 3.0])
    names = list(given.parameters)
    g, t = slow_matrix(given.model, POOL, names), slow_matrix(given.model, target, names)
    alignment = given(POOL, target, RAW, weight).alignment
    assert alignment is not None and relative(alignment, g @ (t[0] + t[1] + 3 * t[3]) / 5) < 1e-9
    losses = given(target, None, Needs(losses=True)).losses
    given(POOL, target, RAW, weight)
    assert losses is not None and given.target_loss is not None
    assert relative(given.target_loss[None], ((losses[0] + losses[1] + 3 * losses[3]) / 5)[None]) < 1e-12
    for bad in (torch.ones(3), torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 1.0, 0.0])):
        with pytest.raises(ValueError, match="target"):
            given(POOL, target, RAW, bad)
    with pytest.raises(ValueError, match="target"):
        given(POOL, None, RAW)


def test_target_ema_is_the_bias_corrected_average() -> None:
    given = scorer(target_ema=0.7)
    names = list(given.parameters)
    g = slow_matrix(given.model, POOL, names)
    taus = [slow_matrix(given.model, target, names).mean(0) for target in TARGETS[:4]]
    found = alignments(given, list(TARGETS[:4]))
    for step in range(1, 5):
        average = sum(0.3 * 0.7 ** (step - s) * taus[s - 1] for s in range(1, step + 1)) / (1 - 0.7**step)
        assert relative(found[step - 1], g @ average) < 1e-9


def test_every_n_reuses_the_target_gradient_in_between() -> None:
    given = scorer(every=3)
    fresh = alignments(scorer(), list(TARGETS))
    assert given.target_due
    found = alignments(given, [TARGETS[0], None, None])
    assert given.target_due
    found += alignments(given, [TARGETS[3], None])
    for got, step in zip(found, [0, 0, 0, 3, 3], strict=True):
        assert relative(got, fresh[step]) < 1e-12
    with pytest.raises(ValueError, match=r"scoring\.every"):
        scorer(every=0)
    with pytest.raises(ValueError, match=r"scoring\.target_ema"):
        scorer(target_ema=1.0)


def test_state_resumes_bit_exactly() -> None:
    options = {"every": 2, "target_ema": 0.6}
    unbroken = scorer(**options)
    expected = alignments(unbroken, list(TARGETS))
    first, second = scorer(**options), scorer(**options)
    alignments(first, list(TARGETS[:3]))
    state = first.state_dict()

    def plain(value: Any) -> bool:
        return all(map(plain, value.values())) if isinstance(value, dict) else isinstance(value, int | Tensor)

    assert plain(state), "tensors and integers only: loadable with weights_only"
    second.load_state_dict(state)
    for got, wanted in zip(alignments(second, list(TARGETS[3:])), expected[3:], strict=True):
        assert torch.equal(got, wanted)
    with pytest.raises(ValueError, match=r"scoring\.layers"):
        scorer(layers="lm_head").load_state_dict(state)


@pytest.mark.parametrize("ema", [0.0, 0.5])
def test_a_target_that_is_not_finite(ema: float) -> None:
    """``skip`` raises; ``reuse`` takes the last good gradient, whose state is not touched by the bad one."""

    def broken(given: Scorer) -> dict[str, Tensor]:
        given.model.get_input_embeddings().weight.data[1] = torch.nan  # type: ignore[operator]
        target = {key: value.clone() for key, value in TARGETS[1].items()}
        target["input_ids"][1, 1] = 1
        return target

    skipping = scorer(target_ema=ema)
    with pytest.raises(TargetNotFinite):
        skipping(POOL, broken(skipping), RAW)
    assert skipping(POOL, TARGETS[0], RAW).valid.all(), "the next step goes on"

    reusing = scorer(target_ema=ema, on_target_nan="reuse")
    bad = broken(reusing)
    with pytest.raises(TargetNotFinite):
        reusing(POOL, bad, RAW)
    first, again, third = alignments(reusing, [TARGETS[0], bad, TARGETS[2]])
    assert relative(again, first) < 1e-12
    plain = alignments(scorer(target_ema=ema), [TARGETS[0], TARGETS[2]])
    assert relative(third, plain[1]) < 1e-12
    reusing(POOL, bad, RAW)
    assert reusing.target_reused
    reusing(POOL, TARGETS[0], RAW)
    assert not reusing.target_reused
    with pytest.raises(ValueError, match=r"scoring\.on_target_nan"):
        scorer(on_target_nan="ignore")


def test_chunks_change_nothing() -> None:
    model = build("gpt2")
    optimizer = warmed_up(model)
    needs = Needs(alignment=1, gram=1, norms=2)
    whole = Scorer(model, optimizer)(POOL, TARGETS[0], needs)
    for elements in (1, 100, 1000):
        part = Scorer(model, optimizer, chunk_elements=elements)(POOL, TARGETS[0], needs)
        for name in ("alignment", "gram", "norms"):
            assert relative(getattr(part, name), getattr(whole, name)) < 1e-12
    with pytest.raises(ValueError, match=r"scoring\.chunk_elements"):
        Scorer(model, optimizer, chunk_elements=0)(POOL, TARGETS[0], needs)


def test_training_is_untouched_by_scoring() -> None:
    """Gradients, buffers, parameters and generator after scoring are those without it."""
    given = scorer()
    before = {name: value.clone() for name, value in given.model.state_dict().items()}
    next(given.model.parameters()).grad = torch.ones_like(next(given.model.parameters()))
    generator = torch.get_rng_state()
    given(POOL, TARGETS[0], Needs(losses=True, alignment=1, gram=1))
    assert all(torch.equal(value, before[name]) for name, value in given.model.state_dict().items())
    assert [parameter.grad is not None for parameter in given.model.parameters()].count(True) == 1
    assert torch.equal(torch.get_rng_state(), generator)
    assert len(slow_gradients(given.model, POOL, ["lm_head.weight"])) == 3


@pytest.mark.parametrize("options", [{}, {"mode": "sketch"}, {"pool_micro_batch": 2}], ids=str)
def test_a_scored_pool_leaves_nothing_behind_for_the_garbage_collector(options: dict[str, Any]) -> None:
    """What holds per-example gradients is gone when the call is: memory does not wait for a collection."""
    given, target = scorer(**options), ragged([6, 4], seed=1)
    given(POOL, target, Needs(alignment=1, gram=1))  # the first call verifies
    gc.collect()
    gc.disable()
    try:
        given(POOL, target, Needs(alignment=1, gram=1))
        kinds = [type(one) for one in gc.get_objects()]  # isinstance would ask properties of whatever is alive
        left = [kind.__name__ for kind in kinds if issubclass(kind, Sums | Visit | Factor | Parcel)]
    finally:
        gc.enable()
    assert left == []
