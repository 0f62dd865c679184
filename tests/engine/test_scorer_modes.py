"""K and b by token products, by sketches, and of pools that go through the model in pieces."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import build, double, ragged
from tests.projections import projections
from tests.reference import normal, relative, warmed_up
from winnow.geometry import Diagonal, Identity, RankOne
from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.gradients.factors.scatter import Scatter
from winnow.gradients.factors.sum import Sum
from winnow.lm.losses import example_losses
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.products.sketch import Sketch
from winnow.products.sums import Sums
from winnow.products.token_products import tokens_are_cheaper
from winnow.scorer import Scorer, TargetNotFinite
from winnow.selection import Selection
from winnow.signals import Needs, Signals

POOL, TARGET = ragged([7, 5, 9, 6, 4], [2, 4, 3, 6, 2]), ragged([10, 4, 6], seed=1)
NEEDS = Needs(losses=True, alignment=1, gram=1, norms=2)

SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with double():
        yield


def same(got: Signals, expected: Signals, tolerance: float = 1e-9) -> None:
    assert torch.equal(got.valid, expected.valid)
    for name in ("alignment", "gram", "norms"):
        assert relative(getattr(got, name), getattr(expected, name)) < tolerance, name


@pytest.mark.parametrize("size", [2, 9])
def test_a_pool_in_pieces_is_the_pool_at_once(size: int) -> None:
    model = build("llama")
    optimizer = warmed_up(model)
    needs = Needs(losses=True, alignment=1, gram=1, norms=2, momentum=True)
    whole = Scorer(model, optimizer, target_ema=0.5)
    part = Scorer(model, optimizer, target_ema=0.5, pool_micro_batch=size, update="auto")
    for step in range(2):
        target = ragged([10, 4, 6], seed=step)
        expected, got = whole(POOL, target, needs), part(POOL, target, needs)
        assert expected.valid.tolist() == [True, True, True, False, True]
        same(got, expected)
        assert torch.allclose(got.losses, expected.losses, rtol=1e-9, equal_nan=True)  # type: ignore[arg-type]
        assert relative(part.target_loss[None], whole.target_loss[None]) < 1e-12  # type: ignore[index]
    assert not part.holds_update
    forward = part(POOL, None, Needs(losses=True)).losses
    assert torch.allclose(forward, expected.losses, rtol=1e-9, equal_nan=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["adamw", "adafactor"])
def test_pieces_share_the_whole_pools_mean_at_the_first_step(kind: str) -> None:
    model = build("gpt2", lora=True)
    held = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(held, eps=1e-4) if kind == "adamw" else torch.optim.Adafactor(held)
    expected = Scorer(model, optimizer)(POOL, TARGET, NEEDS)
    same(Scorer(model, optimizer, pool_micro_batch=2)(POOL, TARGET, NEEDS), expected)
    same(Scorer(model, optimizer, pool_micro_batch=2, mode="auto")(POOL, TARGET, NEEDS), expected)


def test_sketches_of_pieces_are_those_of_the_whole_with_b_exact() -> None:
    model = build("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    exact = Scorer(model, optimizer)(POOL, TARGET, NEEDS)
    whole = Scorer(model, optimizer, layers="linear", mode="sketch", sketch_dim=5)(POOL, TARGET, NEEDS)
    part = Scorer(model, optimizer, layers="linear", mode="sketch", sketch_dim=5, pool_micro_batch=2)
    got = part(POOL, TARGET, NEEDS)
    assert relative(got.gram, whole.gram) < 1e-9  # type: ignore[arg-type]
    assert relative(whole.gram, exact.gram) > 1e-3, "they are sketches"  # type: ignore[arg-type]
    linear = Scorer(model, optimizer, layers="linear")(POOL, TARGET, NEEDS)
    assert relative(got.alignment, linear.alignment) < 1e-9  # type: ignore[arg-type]


def test_a_spoilt_candidate_or_target_in_pieces() -> None:
    model = build("llama")
    optimizer = warmed_up(model)
    pool = {key: value.clone() for key, value in POOL.items()}
    pool["input_ids"][1, 2] = 1
    model.get_input_embeddings().weight.data[1] = torch.nan  # type: ignore[operator]
    expected = Scorer(model, optimizer, verify=False)(pool, TARGET, NEEDS)
    part = Scorer(model, optimizer, verify=False, pool_micro_batch=2)
    same(part(pool, TARGET, NEEDS), expected)
    with pytest.raises(TargetNotFinite):
        part(POOL, pool, NEEDS)


def test_the_update_in_pieces_is_the_update() -> None:
    model = build("llama")
    scorer = Scorer(model, warmed_up(model), pool_micro_batch=2)
    selection = Selection(torch.tensor([0, 2, 4]), torch.tensor([0.5, 1.5, 1.0]))
    scorer(POOL, TARGET, NEEDS)
    trained, losses = scorer.backward(POOL, selection)
    assert torch.equal(trained.index, selection.index) and torch.equal(trained.weight, selection.weight)
    assert losses.isfinite().tolist() == [True, False, True, False, True]
    got = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    (example_losses(model, POOL)[selection.index] @ selection.weight.double() / 3).backward()
    for name, parameter in model.named_parameters():
        assert relative(got[name], parameter.grad) < 1e-9  # type: ignore[arg-type]


def test_what_pieces_cannot_do_is_refused() -> None:
    model = build("llama")
    for options in ({"update": "one_pass"}, {"mode": "ghost"}):
        with pytest.raises(ValueError, match=r"scoring\.pool_micro_batch=2"):
            Scorer(model, warmed_up(model), pool_micro_batch=2, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scoring\.pool_micro_batch"):
        Scorer(model, warmed_up(model), pool_micro_batch=0)
    with pytest.raises(ValueError, match=r"scoring\.mode.*'fast'"):
        Scorer(model, warmed_up(model), mode="fast")
    with pytest.raises(ValueError, match=r"scoring\.sketch_dim"):
        Scorer(model, warmed_up(model), sketch_dim=0)


@pytest.mark.parametrize("options", [{"pool_micro_batch": 2}, {"mode": "ghost"}, {"mode": "auto"}], ids=str)
def test_count_sketches_are_the_same_in_pieces_and_beside_token_products(options: dict[str, Any]) -> None:
    model = build("llama")
    optimizer = warmed_up(model)
    for alignment in (1, None):
        needs = Needs(losses=True, alignment=alignment, gram=1 if alignment is None else 2, sketch=32, sketch_seed=3)
        expected = Scorer(model, optimizer)(POOL, TARGET, needs)
        got = Scorer(model, optimizer, **options)(POOL, TARGET, needs)
        assert relative(got.gram, expected.gram) < 1e-9  # type: ignore[arg-type]
        if alignment is not None:
            assert relative(got.alignment, expected.alignment) < 1e-9  # type: ignore[arg-type]


def test_tasks_and_curvature_beside_token_products() -> None:
    model = build("llama")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    needs, task = Needs(alignment=0, gram=0, per_task=True, curvature=True), torch.tensor([0, 1, 1])
    expected = Scorer(model, optimizer)(POOL, TARGET, needs, target_task=task)
    for mode in ("ghost", "auto"):
        got = Scorer(model, optimizer, mode=mode)(POOL, TARGET, needs, target_task=task)
        for name in ("gram", "alignment", "task_alignment", "task_norms", "curvature"):
            assert relative(getattr(got, name), getattr(expected, name)) < 1e-9, name


@pytest.mark.parametrize("size", [2, 9])
def test_forward_signals_are_the_same_in_pieces(size: int) -> None:
    model = build("llama")
    optimizer = warmed_up(model)
    seen: list[int] = []
    model.register_forward_hook(lambda m, a, k, o: seen.append(len(k["input_ids"])), with_kwargs=True)
    for pooling in ("mean", "position"):
        needs = Needs(hidden=pooling, target_hidden=True, nuclear=True)
        expected = Scorer(model, optimizer)(POOL, TARGET, needs)
        seen.clear()
        got = Scorer(model, optimizer, pool_micro_batch=size)(POOL, TARGET, needs)
        assert max(seen) <= size and sum(seen) == 8
        assert torch.equal(got.valid, expected.valid) and got.losses is None
        for name in ("hidden", "target_hidden", "target_share", "nuclear"):
            assert relative(getattr(got, name), getattr(expected, name)) < 1e-9, name


@pytest.mark.parametrize(
    ("wanted", "key"),
    [
        ({"per_task": True}, r"Needs\.per_task"),
        ({"curvature": True}, r"Needs\.curvature"),
        ({"gram": 0, "sketch": 8}, r"selector\.sketch=8"),
    ],
    ids=["per_task", "curvature", "sketch"],
)
def test_signals_that_sketches_or_pieces_cannot_give_are_refused(wanted: dict[str, Any], key: str) -> None:
    model = build("llama")
    needs = Needs(alignment=0, **wanted)
    with pytest.raises(ValueError, match=rf"{key}.*scoring\.mode=sketch.*set scoring\.mode to exact"):
        Scorer(model, warmed_up(model), mode="sketch")(POOL, TARGET, needs)
    if needs.sketch is None:
        with pytest.raises(ValueError, match=rf"{key}.*scoring\.pool_micro_batch=2.*scoring\.pool_micro_batch=null"):
            Scorer(model, warmed_up(model), pool_micro_batch=2)(POOL, TARGET, needs)


def outer(tokens: int = 4, rows: int = 12, columns: int = 10, batch: int = 6, seed: int = 0) -> OuterProduct:
    return OuterProduct(normal(batch, tokens, rows, seed=seed), normal(batch, tokens, columns, seed=seed + 1))


def products(factor: Factor, p: Preconditioner, needs: Needs, examples: Factor | None = None, **options: Any) -> Sums:
    """K and b of one parameter; tau is the weighted sum of ``examples``."""
    examples = outer(seed=20, batch=3) if examples is None else examples
    built = Products(needs, len(factor), torch.float64, torch.device("cpu"), Mode(**options))
    built.add(Parcel("w", factor, p, Tau(lambda: examples.combine(SHARES), lambda: examples, SHARES)))
    return built.finish()


FORMS = {"identity": Identity(), "rank_one": RankOne(normal(12).exp(), normal(10).exp())}


@pytest.mark.parametrize("mode", ["ghost", "auto"])
@pytest.mark.parametrize("tokens", [2, 40])
@pytest.mark.parametrize("form", FORMS)
def test_token_products_are_exact(mode: str, tokens: int, form: str) -> None:
    needs = Needs(alignment=1, gram=1, norms=2)
    factor = outer(tokens)
    g = (factor.left.transpose(1, 2) @ factor.right).flatten(1)
    p = FORMS[form].tensor(torch.ones(12, 10, dtype=torch.float64), 1.0).flatten()
    got = products(factor, FORMS[form], needs, mode=mode, chunk_elements=30)
    assert got.gram is not None and relative(got.gram, (g * p) @ g.T) < 1e-12
    assert got.alignment is not None and got.norms is not None
    assert relative(got.norms, (g * p).norm(dim=1)) < 1e-12
    examples = outer(seed=20, batch=3)
    tau = SHARES @ examples.rows(slice(None)).flatten(1)
    assert relative(got.alignment, (g * p) @ tau) < 1e-12


def test_token_products_where_they_are_cheap_and_never_where_tokens_are_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert tokens_are_cheaper(6, 2, torch.Size((200, 200)), alignment=False)
    assert not tokens_are_cheaper(6, 40, torch.Size((12, 10)), alignment=False)
    taken: list[int] = []

    def record(factor: OuterProduct, chunk_elements: int) -> Tensor:
        taken.append(factor.left.shape[1])
        return torch.zeros(len(factor), len(factor), dtype=torch.float64)

    monkeypatch.setattr("winnow.products.formed.token_gram", record)
    for mode in ("ghost", "auto", "exact"):
        for tokens in (2, 40):
            products(outer(tokens), Identity(), Needs(gram=0), mode=mode)
        products(
            outer(2), Diagonal(normal(12, 10).exp()), Needs(gram=1), mode=mode
        )  # an elementwise P has to be formed
    assert taken == [2, 2]


@pytest.mark.parametrize("form", FORMS)
def test_sketches_no_smaller_than_a_matrix_are_exact(form: str) -> None:
    needs = Needs(alignment=1, gram=1, norms=2)
    exact = products(outer(), FORMS[form], needs)
    got = products(outer(), FORMS[form], needs, mode="sketch", sketch_dim=12)
    for name in ("alignment", "gram", "norms"):
        assert relative(getattr(got, name), getattr(exact, name)) < 1e-12


def test_sketches_are_unbiased_and_their_error_falls_as_the_root_of_their_size() -> None:
    """Over 200 seeds: the mean is within 4.5 standard errors, and a size four times larger halves the error."""
    # Gradients that share a direction; of unrelated ones the error falls faster, as 1 / dim, until it meets the root.
    pool, examples = (outer(rows=300, columns=250, seed=seed, batch=3) for seed in (0, 20))
    factor, examples = (OuterProduct(one.left + 1, one.right + 1) for one in (pool, examples))
    needs, p = Needs(alignment=1, gram=1), RankOne((normal(300) / 3).exp(), (normal(250) / 3).exp())
    exact = products(factor, p, needs, examples)
    errors: dict[int, list[float]] = {}
    for dim in (4, 8, 32):
        found = [products(factor, p, needs, examples, mode="sketch", sketch_dim=dim, seed=seed) for seed in range(200)]
        for name in ("gram", "alignment"):
            samples, truth = torch.stack([getattr(one, name) for one in found]), getattr(exact, name)
            spread = samples.std(0) / len(found) ** 0.5
            assert ((samples.mean(0) - truth).abs() < 4.5 * spread + 1e-12).all(), (dim, name)
            errors.setdefault(dim, []).append(float((samples - truth).square().mean().sqrt()))
    for large, small in zip(errors[32], errors[8], strict=True):
        assert 0.4 < large / small < 0.6
    again = products(factor, p, needs, examples, mode="sketch", sketch_dim=4, seed=3)
    twice = products(factor, p, needs, examples, mode="sketch", sketch_dim=4, seed=3)
    assert torch.equal(again.gram, twice.gram)  # type: ignore[arg-type]


def test_sketches_and_an_elementwise_p() -> None:
    """K that needs P is exact; with K of plain gradients P moves to the target, and <S(G), S(P o V)> is sketched."""
    p = Diagonal(normal(12, 10).exp())
    needs = Needs(alignment=1, gram=1)
    exact, got = products(outer(), p, needs), products(outer(), p, needs, mode="sketch", sketch_dim=3)
    assert relative(got.gram, exact.gram) < 1e-12 and relative(got.alignment, exact.alignment) < 1e-12  # type: ignore[arg-type]
    moved = products(outer(), p, Needs(alignment=1, gram=0), mode="sketch", sketch_dim=3, seed=5)
    sketch = Sketch("w", torch.Size((12, 10)), 3, 5, torch.device("cpu"), torch.float64)
    r, q = projections(sketch)
    g, v = outer().rows(slice(None)), outer(seed=20, batch=3).combine(SHARES)
    s = (r.T @ g @ q).flatten(1)
    assert relative(moved.gram, s @ s.T) < 1e-12  # type: ignore[arg-type]
    tau = (r.T @ (v * p.diagonal) @ q).flatten()
    assert relative(moved.alignment, s @ tau) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["outer", "scatter", "sum", "dense"])
def test_a_sketch_is_the_projection_of_the_gradient(kind: str) -> None:
    scatter = Scatter(torch.tensor([[0, 11, 11], [5, 2, 5]]), normal(2, 3, 10), 12)
    dense, plain = Dense(normal(2, 12, 10, seed=4)), outer(batch=2)
    factor: Factor = {"outer": plain, "scatter": scatter, "dense": dense, "sum": Sum([plain, scatter, dense])}[kind]
    sketch = Sketch("w", factor.shape, 4, 0, torch.device("cpu"), torch.float64, 50)
    r, q = projections(sketch)
    g = factor.rows(slice(None))
    assert relative(sketch.factor(factor), (r.T @ g @ q).flatten(1)) < 1e-12
    assert relative(sketch.tensor(g[0]), (r.T @ g[0] @ q).flatten()) < 1e-12
    other = Sketch("v", factor.shape, 4, 0, torch.device("cpu"), torch.float64)
    assert not torch.equal(sketch.rows.signs, other.rows.signs), "parameters have signs of their own"  # type: ignore[arg-type]


@pytest.mark.parametrize("form", [*FORMS, "diagonal"])
@pytest.mark.parametrize("gram", [0, 1])
def test_sketching_candidates_and_target_as_one_changes_nothing(form: str, gram: int) -> None:
    p = FORMS.get(form, Diagonal(normal(12, 10).exp()))
    pool, examples = outer(), outer(seed=20, batch=3)
    joint = OuterProduct(torch.cat([pool.left, examples.left]), torch.cat([pool.right, examples.right]))
    found = []
    for together in (joint, None):
        built = Products(
            Needs(alignment=1, gram=gram),
            len(pool),
            torch.float64,
            torch.device("cpu"),
            Mode("sketch", sketch_dim=3),
        )
        tau = Tau(lambda: examples.combine(SHARES), lambda: examples, SHARES, together)
        built.add(Parcel("w", pool, p, tau))
        found.append(built.finish())
    assert relative(found[0].gram, found[1].gram) < 1e-12  # type: ignore[arg-type]
    torch.testing.assert_close(found[0].target_square, found[1].target_square, equal_nan=True)
    assert relative(found[0].alignment, found[1].alignment) < 1e-12  # type: ignore[arg-type]


@pytest.mark.parametrize(("mode", "tolerance"), [("ghost", 1e-9), ("auto", 1e-9), ("sketch", 1e-9)])
def test_modes_of_a_model_and_the_one_pass_update(mode: str, tolerance: float) -> None:
    """A sketch as large as every side is exact; the update is one of two, of factors or of gradients formed for K."""
    model = build("qwen2", lora=False)
    optimizer = torch.optim.Adafactor(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    optimizer.step()
    optimizer.zero_grad()
    exact = Scorer(model, optimizer, update="one_pass")
    other = Scorer(model, optimizer, update="one_pass", mode=mode, sketch_dim=64)
    same(other(POOL, TARGET, NEEDS), exact(POOL, TARGET, NEEDS), tolerance)
    selection = Selection(torch.tensor([0, 2]), torch.tensor([0.5, 1.5]))
    formed = exact.weighted_gradients(selection)
    exact(POOL, TARGET, Needs(alignment=1))  # forms none
    factors = exact.weighted_gradients(selection)
    assert any(not torch.equal(formed[name], value) for name, value in factors.items()), "some were formed"
    for name, value in other.weighted_gradients(selection).items():
        assert torch.equal(value, factors[name]) or (mode != "sketch" and torch.equal(value, formed[name]))
        assert relative(formed[name], factors[name]) < 1e-12
