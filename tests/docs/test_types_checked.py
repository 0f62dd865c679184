"""Every call that a test makes has its types and the shapes of its tensors checked: see tests/checking.py."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
from beartype import beartype
from beartype.roar import BeartypeCallHintParamViolation

from tests.checking import CHECKED
from winnow.gates.labels import check_label
from winnow.selection import Selection
from winnow.training.record import update_loss


def test_a_wrong_shape_is_an_error() -> None:
    selection = Selection(torch.tensor([0]), torch.ones(1))
    assert update_loss(torch.ones(3), selection) == 1.0
    with pytest.raises(jaxtyping.TypeCheckError, match=r"losses"):
        update_loss(torch.ones(3, 2), selection)


def test_a_wrong_type_is_an_error_where_nothing_has_a_shape() -> None:
    check_label("cosine")
    with pytest.raises(BeartypeCallHintParamViolation):
        check_label(5)  # type: ignore[arg-type]


def test_what_is_defined_within_a_function_is_checked_the_first_few_times() -> None:
    def outer() -> Callable[[torch.Tensor], None]:
        @jaxtyping.jaxtyped(typechecker=beartype)
        def inner(values: jaxtyping.Float[torch.Tensor, " n"]) -> None:
            """Takes a vector."""

        return inner

    for _ in range(CHECKED):
        with pytest.raises(jaxtyping.TypeCheckError, match=r"values"):
            outer()(torch.ones(2, 2))
    outer()(torch.ones(2, 2))
