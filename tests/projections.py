"""The dense matrices that a sketch multiplies by without forming them."""

import torch
from torch import Tensor

from winnow.products.sketch import Sketch


def projections(sketch: Sketch) -> tuple[Tensor, Tensor]:
    """R and Q of S(G) = R^T G Q: one sign in every row, in column i mod the number of buckets."""
    found = []
    for side in (sketch.rows, sketch.columns):
        assert side is not None and set(side.signs.tolist()) == {-1, 1}
        place = torch.arange(len(side.signs))
        matrix = torch.zeros(len(place), side.buckets, dtype=torch.float64)
        matrix[place, place % side.buckets] = side.signs
        found.append(matrix)
    return found[0], found[1]
