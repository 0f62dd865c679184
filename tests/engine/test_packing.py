"""Examples packed into rows are scored, and the update is made, as if each stood alone."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.engine.test_gradients_capture import Mixing, toy
from tests.engine.test_scorer_one_pass import without_dropout
from tests.families import build, double, ragged
from tests.reference import diagonal, relative, slow_matrix, warmed_up
from winnow.lm.losses import example_losses
from winnow.lm.packing import PackingError, _fit, pack
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs, Signals

# One without a response token, one of a single token, one whose prompt is a single token.
POOL, TARGET = ragged([7, 5, 9, 6, 4, 1, 3], [2, 4, 3, 6, 1, 1, 1]), ragged([10, 4, 6, 2], [2, 2, 2, 1], seed=1)
ALL = Needs(losses=True, alignment=1, gram=1, norms=2)
SELECTION = Selection(torch.tensor([0, 2, 6]), torch.tensor([0.4, 1.6, 1.0]))


def same(got: Signals, expected: Signals) -> None:
    assert torch.equal(got.valid, expected.valid)
    assert torch.allclose(got.losses, expected.losses, rtol=1e-9, equal_nan=True)  # type: ignore[arg-type]
    for name in ("alignment", "gram", "norms"):
        assert relative(getattr(got, name), getattr(expected, name)) < 1e-9, name


@pytest.mark.parametrize(
    ("family", "lora", "attention"),
    [
        ("llama", False, "sdpa"),
        ("llama", True, "eager"),
        ("gpt2", False, "eager"),
        ("gpt_neox", False, "sdpa"),
        ("gemma3", False, "eager"),
        ("qwen2_moe", False, "sdpa"),
        ("qwen3", True, "sdpa"),
    ],
)
def test_packed_and_padded_are_the_same(family: str, lora: bool, attention: str) -> None:
    """K, b, norms, losses and the one-pass update, the tied embedding among the scored where there is one."""
    with double():
        model = without_dropout(build(family, lora, attention))
        optimizer = warmed_up(model)
        options = {"update": "one_pass", "layers": "."}
        padded = Scorer(model, optimizer, **options)  # type: ignore[arg-type]
        packed = Scorer(model, optimizer, pack=True, **options)  # type: ignore[arg-type]
        fill = {"input_ids": 1, "attention_mask": 0, "labels": -100}
        other = {key: left(value, POOL["attention_mask"], fill[key]) for key, value in POOL.items()}
        for pool in (POOL, other) if family == "llama" else (POOL,):
            same(packed(pool, TARGET, ALL), padded(pool, TARGET, ALL))
            expected = padded.weighted_gradients(SELECTION)
            got = packed.weighted_gradients(SELECTION)
            assert set(got) == set(expected)
            for name, gradient in expected.items():
                assert float((got[name] - gradient).norm()) < 1e-9 * max(float(gradient.norm()), 1e-3), name
    assert packed.packed_share is not None and packed.packed_share < 0.65 and padded.packed_share is None


def left(tensor: Tensor, mask: Tensor, fill: int) -> Tensor:
    """The same examples padded on the left."""
    out = torch.full_like(tensor, fill)
    for row, length in enumerate(mask.sum(1).tolist()):
        out[row, len(out[row]) - length :] = tensor[row, :length]
    return out


def test_packed_gradients_are_those_of_examples_alone() -> None:
    with double():
        model = build("llama")
        optimizer = warmed_up(model)
        scorer = Scorer(model, optimizer, pack=True)
        names = list(scorer.parameters)
        g, tau = slow_matrix(model, POOL, names), slow_matrix(model, TARGET, names).mean(0)
        p = diagonal(optimizer, model, names)
        signals = scorer(POOL, TARGET, ALL)
    assert relative(signals.gram, (g * p) @ g.T) < 1e-9  # type: ignore[arg-type]
    assert relative(signals.alignment, (g * p) @ tau) < 1e-9  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"pool_micro_batch": 3}, {"mode": "auto", "reduction": "sum"}], ids=str)
def test_packed_in_every_mode(options: dict[str, Any]) -> None:
    with double():
        model = build("llama")
        optimizer = warmed_up(model)
        packed = Scorer(model, optimizer, pack=True, layers="last:1", **options)
        same(packed(POOL, TARGET, ALL), Scorer(model, optimizer, layers="last:1", **options)(POOL, TARGET, ALL))


def test_packing_under_gradient_checkpointing() -> None:
    with double():
        model: Any = build("llama")
        optimizer = warmed_up(model)
        plain = Scorer(model, optimizer)(POOL, TARGET, ALL)
        model.activation_checkpointing_enable({"use_reentrant": False})
        same(Scorer(model, optimizer, pack=True)(POOL, TARGET, ALL), plain)


def test_a_spoilt_candidate_does_not_spoil_its_row() -> None:
    with double():
        model: Any = build("llama")
        optimizer = warmed_up(model)
        pool = {key: value.clone() for key, value in POOL.items()}
        pool["input_ids"][1, 2] = 1
        model.get_input_embeddings().weight.data[1] = torch.nan
        padded, packed = Scorer(model, optimizer), Scorer(model, optimizer, pack=True)
        expected = padded(pool, TARGET, ALL)
        assert expected.valid.tolist() == [True, False, True, False, True, False, True]
        same(packed(pool, TARGET, ALL), expected)


def test_a_model_that_mixes_packed_examples_is_refused() -> None:
    """transformers 5.23 makes OPT's mask without the position ids, so that packed examples see one another."""
    with double():
        opt = build("opt")
        with pytest.raises(PackingError, match=r"OPTForCausalLM with attention 'eager'.*scoring\.pack=false"):
            Scorer(opt, warmed_up(opt), pack=True)(POOL, TARGET, ALL)
    model = toy(Mixing())
    with pytest.raises(PackingError, match=r"Toy takes no position_ids.*scoring\.pack=false"):
        Scorer(model, warmed_up(model), pack=True)(POOL, TARGET, ALL)


def test_rows_as_long_as_there_are_heads_go_padded() -> None:
    """[rows, heads, length, width] cannot be told from [rows, length, heads, width] then."""
    pool, target = ragged([2, 2, 1, 1], [1, 1, 1, 1]), ragged([2, 1], [1, 1], seed=1)
    with double():
        model = build("gemma3")
        optimizer = warmed_up(model)
        scorer = Scorer(model, optimizer, pack=True)
        same(scorer(pool, target, ALL), Scorer(model, optimizer)(pool, target, ALL))
    assert scorer.packed_share is not None and scorer.packed_share < 1, "rows were laid"


@pytest.mark.parametrize("one_row", [False, True])
def test_rows_hold_every_token_once(one_row: bool) -> None:
    rows = pack(TARGET, one_row)
    lengths = TARGET["attention_mask"].sum(1).tolist()
    assert rows.input_ids.shape == ((1, 22) if one_row else (3, 10))
    found = rows.place[rows.place >= 0]
    assert len(found.unique()) == len(found) == sum(lengths)
    for example, length in enumerate(lengths):
        cells = rows.place[example, :length]
        assert torch.equal(rows.input_ids.flatten()[cells], TARGET["input_ids"][example, :length])
        assert rows.position_ids.flatten()[cells].tolist() == list(range(length))
        assert torch.equal(rows.labels.flatten()[cells][:-1], TARGET["labels"][example, 1:length])
        assert rows.labels.flatten()[cells][-1] == -100
    model = build("llama").eval()
    assert torch.allclose(rows.losses(model, "sum"), example_losses(model, TARGET, "sum"), rtol=1e-5)


def test_rows_are_few_and_never_too_long() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        sizes = torch.randint(0, 50, (40,), generator=generator).tolist()
        rows, starts, count = _fit(sizes, max(sizes))
        for row in range(count):
            parts = sorted((starts[at], size) for at, size in enumerate(sizes) if rows[at] == row and size)
            assert all(start + size <= after for (start, size), (after, _) in pairwise(parts))
            assert sum(parts[-1]) <= max(sizes)
        assert count <= 1.3 * sum(sizes) / max(sizes) + 1
