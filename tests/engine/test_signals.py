"""No field of the signals is dropped on the way: pools are joined along the axis that each field names."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from tests.cases import Pool
from winnow.signals import Needs, Signals

EVERYTHING = (
    Needs(
        losses=True,
        alignment=1,
        norms=2,
        target_norm=True,
        per_task=True,
        reference=True,
        predicted=True,
        meta=("id", "group"),
    ),
    Needs(losses=True, hidden="mean", target_hidden=True, nuclear=True),
)


@pytest.mark.parametrize("needs", EVERYTHING, ids=["gradients", "forward"])
def test_pools_joined_are_the_pool_they_were_cut_from(needs: Needs) -> None:
    pool = Pool.draw(9)
    whole = pool.signals(needs)
    joined = Signals.joined([
        pool[[0, 1, 2, 3]].signals(needs),
        pool[[4, 5]].signals(needs),
        pool[[6, 7, 8]].signals(needs),
    ])
    for one in fields(Signals):
        found, expected = getattr(joined, one.name), getattr(whole, one.name)
        assert type(found) is type(expected), one.name
        same = torch.allclose(found, expected, rtol=1e-12) if isinstance(expected, torch.Tensor) else found == expected
        assert same, one.name


def test_every_field_is_looked_at_by_these_tests() -> None:
    given = {
        one.name
        for needs in EVERYTHING
        for one in fields(Signals)
        if getattr(Pool.draw(3).signals(needs), one.name) is not None
    }
    assert given == {one.name for one in fields(Signals)} - {"gram", "curvature"}


@pytest.mark.parametrize("needs", [Needs(gram=1), Needs(alignment=1, curvature=True)], ids=["gram", "curvature"])
def test_what_stands_between_the_candidates_of_one_pool_is_not_joined(needs: Needs) -> None:
    with pytest.raises(ValueError, match=r"is of one pool"):
        Signals.joined([Pool.draw(3).signals(needs)])
    with pytest.raises(ValueError, match="no candidates"):
        Signals.joined([])


def test_what_is_moved_is_what_was_there() -> None:
    signals = Pool.draw(3).signals(EVERYTHING[0])
    assert replace(signals.cpu(), meta={}) is not signals
    assert all(
        torch.equal(value, getattr(signals.cpu(), name))
        for name, value in vars(signals).items()
        if isinstance(value, torch.Tensor)
    )
