"""Every form of P is a symmetric, positive power of one matrix, and takes any kind of gradients as it takes one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

import winnow.geometry as geometry
from tests.engine.test_factor_kinds import KINDS, SIDE, WIDTH
from tests.reference import normal
from winnow.geometry import Diagonal, Identity, Multiple, OneSided, Preconditioner, RankOne

MATRICES = [kind for kind in KINDS if len(KINDS[kind](1).shape) == 2]


def one_sided(right: bool) -> OneSided:
    side = WIDTH if right else SIDE
    root = normal(side, side, seed=20)
    return OneSided(*torch.linalg.eigh(root @ root.T + torch.eye(side, dtype=torch.float64)), right)


FORMS: dict[str, Callable[[], Preconditioner]] = {
    "Identity": Identity,
    "Diagonal": lambda: Diagonal(normal(SIDE, WIDTH, seed=21).exp()),
    "RankOne": lambda: RankOne(normal(SIDE, seed=22).exp(), normal(WIDTH, seed=23).exp()),
    "OneSided": lambda: one_sided(False),
    "OneSided, right": lambda: one_sided(True),
    "Multiple": lambda: Multiple(RankOne(normal(SIDE, seed=24).exp(), normal(WIDTH, seed=25).exp()), 0.3),
}
every_form = pytest.mark.parametrize("form", FORMS)


def test_every_form_has_a_row() -> None:
    forms = {name for name, kind in vars(geometry).items() if isinstance(kind, type) and hasattr(kind, "tensor")}
    assert forms - {"Preconditioner"} == {name.split(",")[0] for name in FORMS}


@every_form
def test_it_is_symmetric_positive_and_a_power(form: str) -> None:
    p = FORMS[form]()
    g, h = normal(SIDE, WIDTH, seed=26), normal(SIDE, WIDTH, seed=27)
    for power in (0.5, 1.0, 2.0):
        assert torch.allclose((p.tensor(g, power) * h).sum(), (g * p.tensor(h, power)).sum(), rtol=1e-10)
        assert (p.tensor(g, power) * g).sum() > 0
    assert torch.equal(p.tensor(g, 0.0), g)
    assert torch.allclose(p.tensor(p.tensor(g, 0.5), 0.5), p.tensor(g, 1.0), rtol=1e-10)
    assert torch.allclose(p.tensor(p.tensor(g, 1.0), 1.0), p.tensor(g, 2.0), rtol=1e-10)


@every_form
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("batch", [0, 3])
def test_any_kind_of_gradients_is_taken_as_one_gradient_is(form: str, kind: str, batch: int) -> None:
    p, factor = FORMS[form](), KINDS[kind](batch)
    g = factor.rows(slice(None))
    for power in (0.0, 0.5, 1.0):
        found = p.factor(factor, power).rows(slice(None))
        assert found.shape == g.shape
        for row in range(batch):
            assert torch.allclose(found[row], p.tensor(g[row], power), rtol=1e-9, atol=1e-12)
