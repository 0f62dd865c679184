"""A fold is the same however it is taken. Not among the tests in float64, which hold every float32 up to it."""

import pytest
import torch

from tests.projections import projections
from tests.reference import normal, relative
from winnow.products.sketch import Sketch


@pytest.mark.parametrize("width", [256, 130, 250])
@pytest.mark.parametrize("strided", [False, True])
def test_a_fold_is_the_same_however_it_is_taken(width: int, strided: bool) -> None:
    """float64 is added up; float32 in one piece is convolved where buckets divide the side (64, 65, and not)."""
    sketch = Sketch("w", torch.Size((width, width)), 64, 0, torch.device("cpu"), torch.float64)
    assert sketch.columns is not None and sketch.columns.buckets == (65 if width == 130 else 64)
    tensor, scale = normal(9, 240, width), normal(width, seed=1).exp()
    rows, matrix = projections(sketch)
    single = tensor.float()
    single = single.transpose(0, 1).contiguous().transpose(0, 1) if strided else single
    assert sketch.columns._convolves(single) == (width != 250 and not strided and torch.backends.mkldnn.is_available())
    assert not sketch.columns._convolves(tensor)
    assert relative(sketch.fold_columns(tensor, scale), (tensor * scale) @ matrix) < 1e-12
    assert relative(sketch.fold_columns(single, scale.float()).double(), (tensor * scale) @ matrix) < 1e-6
    whole = normal(width, width, seed=2)
    assert relative(sketch.tensor(whole), (rows.T @ whole @ matrix).flatten()) < 1e-12


@pytest.mark.parametrize("shape", [(2**18,), (2048, 128), (2, 8, 128, 128)])
def test_a_fold_takes_any_dimensions_before_the_last(shape: tuple[int, ...]) -> None:
    """Convolved ones too, whose last two dimensions are one line of pixels."""
    sketch = Sketch("w", torch.Size((1, shape[-1])), 64, 0, torch.device("cpu"), torch.float32)
    tensor = normal(*shape).float()
    assert sketch.columns is not None
    assert sketch.columns._convolves(tensor) == torch.backends.mkldnn.is_available()
    expected = (tensor.double() * sketch.columns.signs.double()).unflatten(-1, (-1, 64)).sum(-2)
    rounding = torch.finfo(torch.float32).eps * (shape[-1] / 64) ** 0.5  # a bucket's entries are added in turn
    assert relative(sketch.fold_columns(tensor).double(), expected) < rounding
