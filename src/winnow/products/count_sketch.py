"""CountSketch: every coordinate of a gradient added to one of m buckets, with a random sign."""

from __future__ import annotations

import zlib

from jaxtyping import Float, Int
from torch import Tensor


class CountSketch:
    """A seeded linear map from gradients of any size to m numbers, with E<S u, S v> = <u, v>.

    Buckets and signs are a hash of the coordinate, so that nothing is stored and the order of adding is free.

    Args:
        size: m, >= 1; the error of an inner product falls as 1 / sqrt(m).
        seed: of the hash.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size, self.seed = size, seed

    def add(
        self,
        sketches: Float[Tensor, "batch size"],
        name: str,
        place: Int[Tensor, " columns"],
        values: Float[Tensor, "batch columns"],
    ) -> None:
        """Add some coordinates of one parameter to sketches, in place.

        Args:
            sketches: what to add to.
            name: the parameter; coordinates of different parameters are hashed apart.
            place: which coordinates of the flattened parameter.
            values: their values.
        """
        mixed = _mixed(place + zlib.crc32(f"{self.seed}/{name}".encode()) * 2**31)
        bucket = ((mixed >> 1) & (2**62 - 1)) % self.size
        sign = (1 - 2 * (mixed & 1)).to(values.dtype)
        sketches.index_add_(1, bucket, values * sign)


def _mixed(number: Int[Tensor, " columns"]) -> Int[Tensor, " columns"]:
    """The finaliser of splitmix64; products wrap around, shifts are made logical."""
    number = (number ^ ((number >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47
    number = (number ^ ((number >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return number ^ ((number >> 31) & (2**33 - 1))
