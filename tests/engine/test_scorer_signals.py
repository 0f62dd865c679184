"""Signals beside K and b: hidden states, nuclear norms, tasks, sketches, curvature, reference losses, facts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

from tests.families import build, double, ragged, rows
from tests.reference import diagonal, relative, slow_matrix, warmed_up
from winnow.choice.similarity import cosines
from winnow.lm.hidden import LastHidden, nuclear_norms
from winnow.lm.losses import example_losses
from winnow.products.count_sketch import CountSketch
from winnow.scorer import Scorer
from winnow.scorer.reference import load_reference
from winnow.signals import Needs

LENGTHS, PROMPTS = [7, 5, 6, 14], [2, 3, 2, 1]  # the last response is longer than the model is wide
POOL, TARGET = ragged(LENGTHS, PROMPTS), ragged([6, 4, 5], seed=1)
IDS = {"id": [f"example-{at}" for at in range(4)], "source": ["a", "b", "a", "c"], "noise": ["", "wrong", "", ""]}


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def scorer(family: str = "llama", lora: bool = False, **options: Any) -> Scorer:
    model = build(family, lora)
    return Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def alone(model: nn.Module, batch: dict[str, Tensor], row: int) -> tuple[Tensor, Tensor]:
    """Last hidden states and logits of one example, unpadded."""
    length = int(batch["attention_mask"][row].sum())
    model.eval()
    with torch.no_grad():
        out = model(input_ids=batch["input_ids"][row : row + 1, :length], output_hidden_states=True, use_cache=False)
    return out.hidden_states[-1][0], out.logits[0]


FAMILIES = pytest.mark.parametrize(
    ("family", "lora"),
    [("llama", False), ("llama", True), ("gpt2", False), ("qwen3", False), ("opt", False), ("gpt_neox", False)],
)


@FAMILIES
def test_hidden_states_are_pooled_over_the_tokens_of_each_example(family: str, lora: bool) -> None:
    given = scorer(family, lora)
    for pooling in ("mean", "position"):
        found = given(POOL, TARGET, Needs(hidden=pooling, target_hidden=True))
        assert found.hidden is not None and found.target_hidden is not None and found.target_share is not None
        for batch, states in ((POOL, found.hidden), (TARGET, found.target_hidden)):
            for row, state in enumerate(states):
                own, _ = alone(given.model, batch, row)
                weight = torch.ones(len(own)) if pooling == "mean" else torch.arange(1, len(own) + 1)
                assert relative(state, (own * weight[:, None]).sum(0) / weight.sum()) < 1e-9
        assert found.target_share.tolist() == pytest.approx([1 / 3] * 3)
        assert found.alignment is None and found.losses is None and found.nuclear is None


@FAMILIES
def test_nuclear_norms_are_those_of_the_logits(family: str, lora: bool) -> None:
    given = scorer(family, lora)
    found = given(POOL, None, Needs(nuclear=True)).nuclear
    assert found is not None
    for row in range(4):
        _, logits = alone(given.model, POOL, row)
        response = logits[PROMPTS[row] - 1 : LENGTHS[row] - 1]
        assert relative(found[row : row + 1], torch.linalg.svdvals(response).sum()[None]) < 1e-6


def test_nuclear_norms_with_a_bias_and_of_rows_that_are_not_finite() -> None:
    model = build("llama")
    head: Any = model.get_output_embeddings()  # type: ignore[operator]
    head.bias = nn.Parameter(torch.randn(len(head.weight), dtype=torch.float64))
    with LastHidden(model) as last, torch.no_grad():
        logits = model(**{key: POOL[key] for key in ("input_ids", "attention_mask")}).logits
    assert last.states is not None
    response = logits[3, 0:13]
    assert (
        relative(
            nuclear_norms(model, last.states.detach(), POOL)[3:].detach(), torch.linalg.svdvals(response).sum()[None]
        )
        < 1e-6
    )
    spoilt = last.states.detach().clone()
    spoilt[1, 3] = torch.nan
    assert nuclear_norms(model, spoilt, POOL).isnan().tolist() == [False, True, False, False]


def test_forward_signals_run_no_backward_and_no_target_that_is_not_asked_for() -> None:
    given = scorer()
    seen: list[tuple[bool, int]] = []
    given.model.register_forward_hook(lambda m, a, k, o: seen.append((torch.is_grad_enabled(), len(k["input_ids"]))),
                                      with_kwargs=True)  # fmt: skip
    given(POOL, TARGET, Needs(hidden="mean"))
    given(POOL, TARGET, Needs(hidden="mean", target_hidden=True, nuclear=True, losses=True))
    assert seen == [(False, 4), (False, 7)]
    assert not any(module._forward_hooks for module in given.model.model.modules() if module is not given.model)  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="target batch"):
        given(POOL, None, Needs(hidden="mean", target_hidden=True))
    with pytest.raises(ValueError, match="backbone"):
        LastHidden(nn.Linear(2, 2))


def test_padding_may_hold_anything() -> None:
    given = scorer()
    longer = {
        key: torch.cat([value, torch.full((4, 3), -100 if key == "labels" else 0)], 1) for key, value in POOL.items()
    }
    for needs in (Needs(hidden="mean"), Needs(hidden="position"), Needs(nuclear=True)):
        one, other = given(POOL, None, needs), given(longer, None, needs)
        for name in ("hidden", "nuclear"):
            if getattr(one, name) is not None:
                assert relative(getattr(other, name), getattr(one, name)) < 1e-9


def test_cosines_of_zero_and_huge_vectors() -> None:
    huge = torch.tensor([[3e200, 4e200], [0.0, 0.0]], dtype=torch.float64)
    assert cosines(huge, torch.tensor([[1.0, 0.0]], dtype=torch.float64)).flatten().tolist() == pytest.approx([0.6, 0])


# By task


def test_alignment_by_task_is_that_of_each_tasks_own_gradient() -> None:
    model = build("llama")
    optimizer = warmed_up(model)
    given = Scorer(model, optimizer)
    target = ragged([6, 4, 5, 7], [2, 2, 5, 3], seed=1)  # the third has no response
    task, weight = torch.tensor([0, 0, 1, 2]), torch.tensor([1.0, 3.0, 1.0, 2.0])
    names = list(given.parameters)
    g, t = slow_matrix(model, POOL, names), slow_matrix(model, target, names)
    taus = torch.stack([(t[0] + 3 * t[1]) / 4, torch.zeros_like(t[0]), t[3]])
    found = given(POOL, target, Needs(alignment=1, norms=2, per_task=True), weight, target_task=task)
    assert found.task_alignment is not None and found.task_norms is not None and found.alignment is not None
    assert relative(found.task_alignment, taus @ (g * diagonal(optimizer, model, names)).T) < 1e-9
    assert relative(found.task_norms, taus.norm(dim=1)) < 1e-9
    whole = (t[0] + 3 * t[1] + 2 * t[3]) / 6
    assert relative(found.alignment, (g * diagonal(optimizer, model, names)) @ whole) < 1e-9
    one = given(POOL, target, Needs(alignment=1, per_task=True), weight)
    assert one.task_alignment is not None and relative(one.task_alignment[0], found.alignment) < 1e-9


def test_task_gradients_are_reused_and_resumed() -> None:
    needs, task = Needs(alignment=0, per_task=True), torch.tensor([0, 1, 1])
    given, other = scorer(every=3), scorer(every=3)
    first = given(POOL, TARGET, needs, target_task=task).task_alignment
    second = given(POOL, None, needs).task_alignment
    other.load_state_dict(given.state_dict())
    third = other(POOL, None, needs).task_alignment
    assert first is not None and second is not None and third is not None
    assert relative(second, first) < 1e-12 and torch.equal(second, third)
    with pytest.raises(ValueError, match=r"scoring\.layers"):
        scorer(layers="lm_head").load_state_dict(given.state_dict())


# Sketches


def test_count_sketch_is_unbiased_and_falls_with_its_size() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, 300, generator=generator, dtype=torch.float64)
    exact, errors = float(one @ other), {}
    for size in (16, 256):
        found = []
        for seed in range(100):
            sketches, sketch = torch.zeros(2, size, dtype=torch.float64), CountSketch(size, seed)
            sketch.add(sketches, "weight", torch.arange(300), torch.stack([one, other]))
            found.append(float(sketches[0] @ sketches[1]))
        values = torch.tensor(found, dtype=torch.float64)
        spread = float(values.std())
        assert abs(float(values.mean()) - exact) < 4 * spread / 100**0.5
        # The variance is (|u|^2 |v|^2 + <u, v>^2 - 2 sum u_i^2 v_i^2) / m (Charikar et al. 2002).
        variance = (one @ one) * (other @ other) + exact**2 - 2 * (one.square() @ other.square())
        assert spread == pytest.approx(float(variance / size) ** 0.5, rel=0.3)
        errors[size] = spread
    assert errors[256] < errors[16] / 2


def test_sketched_products_are_those_of_the_sketched_gradients() -> None:
    """S built densely from the same hash; every layer kind, whatever the chunks."""
    model = build("gpt2")
    optimizer = warmed_up(model)
    names = list(Scorer(model, optimizer).parameters)
    held = dict(model.named_parameters())
    scale = diagonal(optimizer, model, names)
    g = slow_matrix(model, POOL, names) * scale
    tau = slow_matrix(model, TARGET, names).mean(0)
    sketches, sketch, start = torch.zeros(5, 64, dtype=torch.float64), CountSketch(64, 3), 0
    for name in names:
        size = held[name].numel()
        block = torch.cat([g, tau[None]])[:, start : start + size]
        sketch.add(sketches, name, torch.arange(size), block)
        start += size
    for chunk in (2**23, 1000):
        given = Scorer(model, optimizer, chunk_elements=chunk, verify=False)
        found = given(POOL, TARGET, Needs(alignment=1, gram=2, sketch=64, sketch_seed=3))
        assert found.gram is not None and found.alignment is not None
        assert relative(found.gram, sketches[:4] @ sketches[:4].T) < 1e-9
        assert relative(found.alignment, sketches[:4] @ sketches[4]) < 1e-9
    wide = given(POOL, TARGET, Needs(alignment=1, gram=2, sketch=2**16))
    assert wide.gram is not None and relative(wide.gram, g @ g.T) < 0.1


# Curvature


@pytest.mark.parametrize(("family", "attention"), [("llama", "eager"), ("qwen3", "sdpa")])
def test_curvature_is_the_second_difference_of_the_target_loss(family: str, attention: str) -> None:
    model = build(family, attention=attention)
    given = Scorer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    names, held = list(given.parameters), dict(model.named_parameters())
    pool = ragged([7, 5, 6], [2, 5, 2])  # the second has no response
    found = given(pool, TARGET, Needs(alignment=0, curvature=True)).curvature
    g = slow_matrix(model, pool, names)
    total, before = g.sum(0), {name: held[name].detach().clone() for name in names}

    def moved(size: float) -> Tensor:
        start = 0
        for name in names:
            length = before[name].numel()
            held[name].data = before[name] + size * total[start : start + length].view_as(before[name])
            start += length
        return slow_matrix(model, TARGET, names).mean(0)

    size = 1e-4 / float(total.norm())
    bent = (moved(size) - moved(-size)) / (2 * size)
    assert found is not None and relative(found, g @ bent) < 1e-5
    assert found[1] == 0


# Reference losses and facts


def test_reference_losses_of_a_model_and_of_a_file(tmp_path: Path) -> None:
    other = build("llama", seed=1)
    other.save_pretrained(tmp_path / "reference")  # type: ignore[operator]
    expected = example_losses(other.eval(), POOL).detach()
    given = scorer(reference=str(tmp_path / "reference"))
    found = load_reference_without_tokenizer(given, other)
    assert relative(found(POOL, None), expected) < 1e-12
    table = pd.DataFrame({"id": IDS["id"], "loss": expected.tolist()})
    for name, write in (("a.csv", table.to_csv), ("b.parquet", table.to_parquet)):
        write(tmp_path / name, index=False)
        signals = scorer(reference=str(tmp_path / name))(POOL, None, Needs(losses=True, reference=True), meta=IDS)
        assert signals.reference is not None and relative(signals.reference, expected) < 1e-6
        total = scorer(reference=str(tmp_path / name), reduction="sum")(POOL, None, Needs(reference=True), meta=IDS)
        assert total.reference is not None and relative(total.reference, expected * signals.tokens) < 1e-6
    table.to_json(tmp_path / "c.jsonl", orient="records", lines=True)
    lines = scorer(reference=str(tmp_path / "c.jsonl"))(POOL, None, Needs(reference=True), meta=IDS)
    assert lines.reference is not None and relative(lines.reference, expected) < 1e-6


def load_reference_without_tokenizer(given: Scorer, other: nn.Module) -> Any:
    from unittest import mock

    from winnow.models.loading import LanguageModel

    loaded = LanguageModel(other, None)  # type: ignore[arg-type]
    with mock.patch("winnow.models.loading.load", return_value=loaded):
        return load_reference("named", given.model)


def test_references_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    needs = Needs(losses=True, reference=True)
    with pytest.raises(ValueError, match=r"scoring\.reference"):
        scorer()(POOL, None, needs)
    with pytest.raises(ValueError, match="no such file"):
        scorer(reference="nowhere.csv")(POOL, None, needs, meta=IDS)
    pd.DataFrame({"id": IDS["id"][:2], "loss": [1.0, 2.0]}).to_csv(tmp_path / "short.csv")
    with pytest.raises(ValueError, match=r"no loss for 2 of the 4.*example-2, example-3"):
        scorer(reference=str(tmp_path / "short.csv"))(POOL, None, needs, meta=IDS)
    with pytest.raises(ValueError, match="ids were not given"):
        scorer(reference=str(tmp_path / "short.csv"))(POOL, None, needs)
    pd.DataFrame({"id": ["a", "a"], "loss": [1.0, 2.0]}).to_csv(tmp_path / "twice.csv")
    with pytest.raises(ValueError, match="different losses for 1 ids"):
        scorer(reference=str(tmp_path / "twice.csv"))(POOL, None, needs, meta=IDS)
    pd.DataFrame({"id": ["a"]}).to_csv(tmp_path / "column.csv")
    with pytest.raises(ValueError, match="columns id and loss"):
        scorer(reference=str(tmp_path / "column.csv"))(POOL, None, needs, meta=IDS)
    wide = build("llama")
    wide.resize_token_embeddings(40)  # type: ignore[operator]
    given = scorer(reference="somewhere")
    with pytest.raises(ValueError, match="vocabulary of 40 tokens"):
        load_reference_without_tokenizer(given, wide)


def test_only_the_facts_asked_for_are_passed_on() -> None:
    given = scorer()
    assert given(POOL, None, Needs(losses=True), meta=IDS).meta == {}
    assert given(POOL, None, Needs(meta=("source",)), meta=IDS).meta == {"source": IDS["source"]}
    with pytest.raises(ValueError, match="group"):
        given(POOL, None, Needs(meta=("group",)), meta=IDS)
    assert rows(POOL, slice(0, 1))["labels"].shape[0] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"hidden": "max"}, "hidden"),
        ({"target_hidden": True}, "hidden"),
        ({"per_task": True}, "alignment"),
        ({"curvature": True}, "alignment"),
        ({"meta": ("answer",)}, "answer"),
        ({"nuclear": True, "gram": 0}, "forward alone"),
        ({"sketch": 8}, "sketch"),
        ({"sketch": 0, "gram": 0}, "sketch"),
        ({"sketch": 8, "gram": 2, "alignment": 0}, "negative power"),
    ],
    ids=str,
)
def test_needs_that_contradict_themselves_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Needs(**options)
