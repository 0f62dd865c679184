"""What is held for the update is the smaller of formed gradients and factors, and the update is the same."""

import pytest
import torch

from tests.families import build, ragged
from tests.reference import normal, relative, warmed_up
from winnow.geometry import Diagonal, Identity, OneSided, RankOne
from winnow.geometry.base import Preconditioner
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import LARGE, Dense
from winnow.gradients.factors.outer_product import OuterProduct
from winnow.products.mode import Mode
from winnow.products.parcel import Parcel, Tau
from winnow.products.products import Products
from winnow.products.sums import Sums
from winnow.scorer import Scorer
from winnow.selection import Selection
from winnow.signals import Needs

CPU = torch.device("cpu")
NEEDS = Needs(alignment=1, gram=1, norms=2)
FORMS: dict[str, Preconditioner] = {
    "identity": Identity(),
    "diagonal": Diagonal(normal(12, 10).exp()),
    "rank_one": RankOne(normal(12).exp(), normal(10).exp()),
}


def outer(tokens: int) -> OuterProduct:
    return OuterProduct(normal(6, tokens, 12), normal(6, tokens, 10, seed=1))


def products(factor: OuterProduct, p: Preconditioner, mode: str = "exact", ask: bool = True) -> tuple[Sums, list]:
    built = Products(NEEDS, len(factor), factor.dtype, CPU, Mode(mode, sketch_dim=3, chunk_elements=200))
    found: list[Factor] = []
    tau = Tau(lambda: normal(12, 10, seed=2))
    built.add(Parcel("w", factor, p, tau, on_formed=found.append if ask else None))
    return built.finish(), found


@pytest.mark.parametrize("form", FORMS)
def test_gradients_formed_once_serve_everything(form: str) -> None:
    factor = outer(tokens=20)
    built, found = products(factor, FORMS[form])
    expected, _ = products(factor, FORMS[form], ask=False)
    assert len(found) == 1
    assert relative(found[0].rows(slice(None)), factor.rows(slice(None))) < 1e-12
    for value, other in (
        (built.gram, expected.gram),
        (built.alignment, expected.alignment),
        (built.norms, expected.norms),
        (built.target_square, expected.target_square),
    ):
        assert value is not None and other is not None
        assert relative(value, other) < 1e-12
    weight, index = normal(2, seed=3), torch.tensor([1, 4])
    assert relative(found[0].combine(weight, index), factor.combine(weight, index)) < 1e-12


def test_factors_stay_where_they_are_smaller_or_gradients_are_not_formed() -> None:
    short, long = outer(tokens=5), outer(tokens=20)  # 110 and 440 numbers an example, where a gradient has 120
    assert products(short, FORMS["diagonal"])[1] == []
    assert products(long, OneSided(normal(12).exp(), torch.linalg.qr(normal(12, 12))[0], right=False))[1] == []
    assert products(long, FORMS["rank_one"], mode="sketch")[1] == []
    assert products(outer(tokens=7), FORMS["rank_one"], mode="ghost")[1] == [], "2 T^2 <= d p"
    assert len(products(long, FORMS["diagonal"], mode="sketch")[1]) == 1, "K is formed there"


@pytest.mark.parametrize(("tokens", "formed"), [(8, 0), (11, 1)])
def test_gradients_of_half_precision_factors_take_twice_the_room(tokens: int, formed: int) -> None:
    factor = outer(tokens).to(torch.bfloat16)
    assert len(products(factor, FORMS["diagonal"])[1]) == formed


def test_large_gradients_are_combined_one_at_a_time() -> None:
    values, weight, index = normal(5, LARGE // 16, 16), normal(3, seed=1), torch.tensor([0, 3, 4])
    expected = torch.tensordot(weight, values[index], dims=1)
    assert relative(Dense(values).combine(weight, index), expected) < 1e-12
    everyone = normal(5, seed=2)
    assert relative(Dense(values).combine(everyone), torch.tensordot(everyone, values, dims=1)) < 1e-12
    many = Dense(normal(64, LARGE // 16, 16, seed=3).abs().bfloat16())
    share = torch.full((64,), 1 / 64, dtype=torch.float64)
    wide = torch.tensordot(share, many.values.double(), dims=1)
    assert relative(many.combine(share).double(), wide) < 2**-8, "added in float32, rounded once"
    narrow = torch.zeros(many.shape, dtype=torch.bfloat16)
    for row in many.values:
        narrow.add_(row, alpha=1 / 64)
    assert relative(narrow.double(), wide) > 2**-8, "what adding in bfloat16 would give"


def test_a_pool_under_lora_is_held_as_gradients_and_not_as_activations() -> None:
    model = build("llama", lora=True).eval()  # dropout would take a second pass
    scorer = Scorer(model, warmed_up(model), update="one_pass")
    scorer(ragged([60, 50, 40], [2, 4, 3]), ragged([50, 40], seed=1), Needs(alignment=1, gram=1))
    assert scorer.holds_update
    assert {type(factor) for factor in scorer._update.held.factors.values()} == {Dense}
    assert scorer.weighted_gradients(Selection(torch.tensor([1]), torch.ones(1))).keys() == scorer.parameters.keys()
