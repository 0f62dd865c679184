"""Wherever the padding is, scores and update are those of the examples alone, one at a time and without padding."""

import logging
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.engine.test_scorer_one_pass import without_dropout
from tests.families import FAMILIES, VOCAB, build, double, ragged
from tests.reference import relative, warmed_up
from winnow.lm.layout import response_tokens, right_padded, take
from winnow.lm.losses import example_losses
from winnow.lm.packing import pack
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs

TIMES = 10 if settings.get_current_profile_name() == "thorough" else 1  # make test-all
PACKS = ("llama", "gpt2", "gpt_neox", "gemma3", "qwen2_moe", "qwen3")
"""Families whose attention keeps packed examples apart."""
DRAWN = ("mixtral", "qwen2_moe")
"""Families that choose experts, where rounding decides between two that are nearly level."""
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 0.1}
NEEDS = Needs(losses=True, alignment=1, gram=1, norms=2)

Example = tuple[list[int], int]  # token ids, and how many of them are the prompt


@dataclass(frozen=True)
class Case:
    """One draw: what is scored, how its examples lie in the batch, and how it is scored and trained."""

    family: str
    lora: bool
    precision: torch.dtype
    mode: str
    update: str
    micro: int | None
    packed: bool
    reduction: str
    pool: list[Example]
    target: list[Example]
    gaps: Callable[[int, int], list[int]]
    counted: bool


def kept_by(case: Case) -> Selection:
    """The first candidates that have a loss, unequally weighted."""
    index = [at for at, example in enumerate(case.pool) if labelled(example)][:3]
    return Selection(torch.tensor(index), torch.linspace(0.5, 1.5, len(index)))


def labelled(example: Example) -> int:
    """How many tokens have a loss: not the first one, which nothing predicts."""
    ids, prompt = example
    return len(ids) - max(1, prompt)


@st.composite
def cases(draw: Any) -> Case:
    family = draw(st.sampled_from(sorted(FAMILIES)))
    examples = st.lists(st.integers(2, VOCAB - 1), min_size=1, max_size=8).flatmap(
        lambda ids: st.tuples(st.just(ids), st.integers(0, len(ids)))
    )
    some = st.lists(examples, min_size=2, max_size=4).filter(lambda rows: any(labelled(row) > 0 for row in rows))
    update = draw(st.sampled_from(["one_pass", "two_pass", "micro"]))
    precision = draw(st.sampled_from([torch.float64, torch.float64, torch.float32, torch.bfloat16]))
    if family in DRAWN:
        precision = torch.float64
    side = draw(st.sampled_from(["left", "right", "both", "interior"]))
    extra = draw(st.integers(0, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))

    def gaps(length: int, width: int) -> list[int]:
        """Columns of an example's tokens."""
        width += extra
        if side == "interior":
            return torch.randperm(width, generator=generator)[:length].sort().values.tolist()
        room = width - length
        first = {"left": room, "right": 0, "both": room // 2}[side]
        return list(range(first, first + length))

    return Case(
        family,
        draw(st.booleans()),
        precision,
        draw(st.sampled_from(["exact", "sketch" if update == "micro" else "ghost", "auto", "sketch"])),
        "two_pass" if update == "micro" else update,
        draw(st.integers(1, 3)) if update == "micro" else None,
        draw(st.booleans()) and family in PACKS and precision != torch.bfloat16,
        draw(st.sampled_from(["mean", "sum"])),
        draw(some),
        draw(some),
        gaps,
        draw(st.booleans()),
    )


def laid(examples: list[Example], gaps: Callable[[int, int], list[int]], counted: bool = False) -> dict[str, Tensor]:
    """A batch with the tokens where ``gaps`` puts them, anything in the padding, and generation's own positions."""
    width = max(len(ids) for ids, _ in examples)
    places = [gaps(len(ids), width) for ids, _ in examples]
    shape = (len(examples), 1 + max(place[-1] for place in places))
    batch = {
        "input_ids": torch.randint(0, VOCAB, shape, generator=torch.Generator().manual_seed(0)),
        "attention_mask": torch.zeros(shape, dtype=torch.long),
        "labels": torch.full(shape, -100),
    }
    for row, ((ids, prompt), place) in enumerate(zip(examples, places, strict=True)):
        batch["input_ids"][row, place] = torch.tensor(ids)
        batch["attention_mask"][row, place] = 1
        batch["labels"][row, place[prompt:]] = torch.tensor(ids[prompt:], dtype=torch.long)
    if counted:  # as GenerationMixin makes them
        mask = batch["attention_mask"]
        batch["position_ids"] = (mask.cumsum(-1) - 1).masked_fill(mask == 0, 1)
    return batch


@cache
def model_of(family: str, lora: bool, precision: torch.dtype) -> nn.Module:
    model = without_dropout(build(family, lora, "sdpa" if family in ("gpt_neox", "qwen2_moe", "qwen3") else "eager"))
    return model.to(precision)


def alone(model: nn.Module, examples: list[Example], reduction: str) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Losses and gradients by autograd, an example at a time; shares nothing with the engine but the model."""
    held = {name: value for name, value in model.named_parameters() if value.requires_grad}
    losses, gradients = [], []
    for ids, prompt in examples:
        first = max(1, prompt)
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, first - 1 : len(ids) - 1].double()
        nll = -logits.log_softmax(-1).gather(1, torch.tensor(ids[first:], dtype=torch.long)[:, None])
        loss = nll.sum() if reduction == "sum" else nll.mean()  # NaN for an example without a response
        losses.append(loss.detach())
        found = torch.autograd.grad(nll.sum() if len(nll) == 0 else loss, list(held.values()), materialize_grads=True)
        gradients.append({name: value.double() for name, value in zip(held, found, strict=True)})
    return torch.stack(losses), gradients


def flat(gradient: dict[str, Tensor], names: Any) -> Tensor:
    return torch.cat([gradient[name].flatten().double() for name in names])


@pytest.mark.slow
@settings(derandomize=True, deadline=None, max_examples=50 * TIMES, phases=[Phase.generate])  # shrinking takes minutes
@given(case=cases())
def test_any_layout_is_scored_and_trained_as_its_examples_alone(case: Case) -> None:
    """One pass = two passes = autograd on single examples; K and b too, in the modes that do not sketch."""
    model, tolerance = model_of(case.family, case.lora, case.precision), TOLERANCE[case.precision]
    pool, target = laid(case.pool, case.gaps, case.counted), laid(case.target, case.gaps, case.counted)
    selection = kept_by(case)
    with double() if case.precision == torch.float64 else nullcontext():
        losses, gradients = alone(model, case.pool, case.reduction)
        scorer = Scorer(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            geometry="identity",
            layers=".",
            mode=case.mode,
            update=case.update,
            reduction=case.reduction,
            pool_micro_batch=case.micro,
            pack=case.packed,
        )
        signals = scorer(pool, target, NEEDS)
        assert signals.tokens.tolist() == [max(0, labelled(example)) for example in case.pool]
        assert signals.valid.tolist() == [labelled(example) > 0 for example in case.pool]
        valid = signals.valid
        assert signals.losses is not None and signals.gram is not None and signals.alignment is not None
        assert relative(signals.losses[valid].double(), losses[valid]) < tolerance
        model.zero_grad()
        trained, _ = scorer.backward(pool, selection)
        assert trained.index.tolist() == selection.index.tolist(), "all that was chosen is trained on"
        got = {name: held.grad for name, held in model.named_parameters() if held.grad is not None}
        model.zero_grad()
        names = [name for name, held in model.named_parameters() if held.requires_grad]
        expected = sum(
            weight * flat(gradients[at], names) / len(selection)
            for at, weight in zip(selection.index.tolist(), selection.weight.double(), strict=True)
        )
        zeros = {name: torch.zeros_like(gradients[0][name]) for name in names}
        assert relative(flat({**zeros, **got}, names), expected) < tolerance
        if case.mode != "sketch":
            own = list(scorer.parameters)
            g = torch.stack([flat(gradient, own) for gradient in gradients]) * valid[:, None]
            share = [labelled(example) > 0 for example in case.target]
            tau = torch.stack([flat(one, own) for one in alone(model, case.target, case.reduction)[1]])[share].mean(0)
            if case.micro is None or case.mode == "exact":
                assert relative(signals.gram.double(), g @ g.T) < tolerance
            bound = tolerance * float(g.norm(dim=1).max() * tau.norm())
            assert float((signals.alignment.double() - g @ tau).norm()) < bound


def left(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Right-padded examples padded on the left."""
    width = batch["input_ids"].shape[1]
    shift = width - batch["attention_mask"].sum(1)
    columns = (torch.arange(width) - shift[:, None]) % width
    return {key: value.gather(1, columns) for key, value in batch.items()}


POOL, TARGET = ragged([7, 5, 6], [2, 4, 3]), ragged([9, 4], seed=1)
CHOSEN = Selection(torch.tensor([1, 2]), torch.tensor([0.4, 1.6]))


def test_every_slice_of_tokens_is_the_same_from_any_side() -> None:
    """Rows taken, losses, counts and packed rows of left-padded examples are those of right-padded ones."""
    other = left(POOL)
    assert not torch.equal(other["attention_mask"], POOL["attention_mask"])
    for index in ([1], [0, 2]):
        some, same = take(other, torch.tensor(index)), take(POOL, torch.tensor(index))
        assert all(torch.equal(some[key], same[key]) for key in ("attention_mask", "labels"))
        assert torch.equal(some["input_ids"] * some["attention_mask"], same["input_ids"] * same["attention_mask"])
    assert torch.equal(response_tokens(other), response_tokens(POOL))
    assert torch.equal(pack(other).labels, pack(POOL).labels)
    with double():
        model = without_dropout(build("gpt2"))
        with torch.no_grad():
            assert relative(example_losses(model, other), example_losses(model, POOL)) < 1e-12


def test_a_batch_in_order_goes_through_untouched() -> None:
    assert right_padded(POOL) is POOL
    bools = {**POOL, "attention_mask": POOL["attention_mask"].bool()}
    assert torch.equal(right_padded(bools)["attention_mask"], POOL["attention_mask"])
    empty = {key: value.clone() for key, value in left(POOL).items()}
    empty["attention_mask"][0], empty["labels"][0] = 0, -100
    assert response_tokens(empty).tolist() == [0, 1, 3], "a row of padding alone has no tokens"


def without(key: str) -> dict[str, Tensor]:
    return {name: value for name, value in POOL.items() if name != key}


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        (without("attention_mask"), "has no attention_mask"),
        (without("labels"), "has no labels"),
        ({**POOL, "labels": POOL["labels"][:, 1:]}, r"differ in shape.*not shifted"),
        ({**POOL, "attention_mask": torch.zeros_like(POOL["labels"])}, "3 rows .* labels where attention_mask is 0"),
        ({**POOL, "attention_mask": 2 * POOL["attention_mask"]}, "zeros and ones, got"),
        ({**POOL, "position_ids": torch.arange(7).expand(3, 7) % 3}, "position_ids .* count otherwise"),
        ({key: value[:0] for key, value in POOL.items()}, "is empty"),
        ({key: value[0] for key, value in POOL.items()}, r"input_ids of .* must be a tensor of integers \[batch"),
        ({**POOL, "input_ids": POOL["input_ids"].float()}, "input_ids of .*torch.float32"),
    ],
)
def test_what_is_no_batch_is_refused_by_key(batch: dict[str, Tensor], words: str) -> None:
    model = without_dropout(build("llama"))
    scorer = Scorer(model, warmed_up(model))
    with pytest.raises(ValueError, match=f"pool.*{words}|{words}.*pool|{words}"):
        scorer(batch, TARGET, NEEDS)
    with pytest.raises(ValueError, match=words):
        example_losses(model, batch)
    with pytest.raises(ValueError, match="target batch"):
        scorer(POOL, batch, NEEDS)


def scored(update: str = "auto") -> tuple[Scorer, nn.Module]:
    model = without_dropout(build("llama")).float()
    scorer = Scorer(model, warmed_up(model), update=update)
    assert scorer(POOL, TARGET, NEEDS).valid.all()
    assert scorer.holds_update
    return scorer, model


def no_gradient(model: nn.Module) -> bool:
    return all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("update", ["auto", "one_pass"])
def test_factors_of_another_pool_are_refused(update: str) -> None:
    scorer, model = scored(update)
    another = ragged([7, 5, 6], [2, 4, 3], seed=5)
    with pytest.raises(RuntimeError, match=r"not the one that was scored last.*two_pass"):
        scorer.backward(another, CHOSEN)
    scorer(another, TARGET, NEEDS)
    with pytest.raises(RuntimeError, match="not the one that was scored last"):
        scorer.backward(POOL, CHOSEN)
    assert no_gradient(model)
    scorer.backward({key: value.clone() for key, value in another.items()}, CHOSEN)  # the same pool by value
    assert not no_gradient(model)


@pytest.mark.parametrize("way", [Scorer.assign_update, Scorer.weighted_gradients])
@pytest.mark.parametrize("moved", ["optimizer", "foreach", "storage", "pool", "fused"])
def test_factors_are_refused_once_anything_has_moved(moved: str, way: Any) -> None:
    model = without_dropout(build("llama")).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)  # counted by no version of a parameter
    scorer = Scorer(model, optimizer, update="auto")
    scorer(POOL, TARGET, NEEDS)
    parameter = next(model.parameters())
    with torch.no_grad():
        if moved == "fused":
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            parameter.grad = None
        elif moved == "optimizer":
            optimizer = torch.optim.AdamW([parameter], lr=1e-3)
            parameter.grad = torch.ones_like(parameter)
            optimizer.step()
            parameter.grad = None
        elif moved == "foreach":
            torch._foreach_add_([parameter], 1e-3)
        elif moved == "storage":
            parameter.data = parameter.data + 1e-3
        else:
            POOL["input_ids"].add_(0)
    with pytest.raises(RuntimeError, match=r"ha(s|ve) changed since .*scoring\.update"):
        way(scorer, CHOSEN)
    assert no_gradient(model)


@pytest.mark.parametrize(("index", "words"), [([0, 1], r"\[1\], which have no response"), ([0, 3], r"\[3\] of a pool")])
def test_a_candidate_that_is_not_valid_is_refused(index: list[int], words: str) -> None:
    model = without_dropout(build("llama")).float()
    scorer = Scorer(model, warmed_up(model), update="auto")
    pool = {**POOL, "labels": POOL["labels"].clone()}
    pool["labels"][1] = -100
    assert scorer(pool, TARGET, NEEDS).valid.tolist() == [True, False, True]
    with pytest.raises(ValueError, match=words):
        scorer.backward(pool, Selection.of(torch.tensor(index)))
    assert no_gradient(model)
    scorer.backward(pool, Selection.of(torch.tensor([0, 2])))
    assert not no_gradient(model)


@pytest.mark.parametrize(("family", "tied"), [("gemma", True), ("llama", False)])
def test_what_all_leaves_out_is_said_with_its_share(family: str, tied: bool, caplog: pytest.LogCaptureFixture) -> None:
    model = without_dropout(build(family))
    with double(), caplog.at_level(logging.INFO, logger="winnow.scorer"):
        scorer = Scorer(model, warmed_up(model))
        for _ in range(2):
            scorer(POOL, TARGET, NEEDS)
        squares = {
            name: sum(float(one[name].square().sum()) for one in alone(model, EXAMPLES, "mean")[1])
            for name, _ in model.named_parameters()
        }
    said = [record.getMessage() for record in caplog.records if "leaves out" in record.getMessage()]
    if not tied:
        assert not said
        return
    share = squares["model.embed_tokens.weight"] / sum(squares.values())
    assert len(said) == 1 and f"model.embed_tokens.weight (embeddings tied to the output layer): {share:.1%}" in said[
        0
    ].replace(" %", "%")


EXAMPLES: list[Example] = [
    (ids[:length].tolist(), prompt) for ids, length, prompt in zip(POOL["input_ids"], [7, 5, 6], [2, 4, 3], strict=True)
]
