"""How K and b are taken: of formed gradients, by token products, or of sketches."""

from __future__ import annotations

from dataclasses import dataclass, field

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.products.sketch import Sketch
from winnow.products.token_products import fits_token_products, tokens_are_cheaper

MODES = ("exact", "ghost", "sketch", "auto")
STORED_NUMBERS = 2**28
"""With ``auto``, gradients of a pool scored in pieces are stored as they are up to this many numbers."""


@dataclass
class Mode:
    """How products are taken.

    Args:
        mode: ``exact`` forms every example's gradient, a parameter at a time. ``ghost`` takes token
            products instead wherever P goes into the factors and T is short, 2 T^2 <= d p; ``auto``
            where they take fewer multiplications. ``sketch`` projects both sides of linear maps at
            random: K and b are then approximate; K is exact where P is elementwise and K needs it.
        sketch_dim: length that each side of a matrix is projected to.
        seed: of the projections, which stay the same over the steps.
        chunk_elements: per-example gradients are formed at most this many numbers at a time.

    Raises:
        ValueError: an argument is out of range.
    """

    mode: str = "exact"
    sketch_dim: int = 64
    seed: int = 0
    chunk_elements: int = 2**23
    _sketches: dict[str, Sketch] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)} (scoring.mode), got {self.mode!r}")
        if self.sketch_dim < 1:
            raise ValueError(f"sketch_dim must be >= 1 (scoring.sketch_dim), got {self.sketch_dim}")
        if self.chunk_elements < 1:
            raise ValueError(f"chunk_elements must be >= 1 (scoring.chunk_elements), got {self.chunk_elements}")

    def sketch(self, name: str, factor: Factor) -> Sketch:
        """The projections of a parameter.

        Args:
            name: the parameter.
            factor: its gradients.

        Returns:
            The same projections at every call.
        """
        if name not in self._sketches:
            sample = factor.rows(slice(0, 1))
            self._sketches[name] = Sketch(
                name,
                factor.shape,
                self.sketch_dim,
                self.seed,
                sample.device,
                accumulation_dtype(factor.dtype),
                self.chunk_elements,
            )
        return self._sketches[name]

    def takes_token_products(self, factor: Factor, alignment: bool) -> bool:
        """Whether a parameter's K is taken from token products.

        Args:
            factor: its gradients, P's root included.
            alignment: whether b is wanted too.

        Returns:
            True for token products.
        """
        if not factor.paired or factor.length is None:
            return False
        if self.mode == "ghost":
            return fits_token_products(factor.length, factor.shape)
        return self.mode == "auto" and tokens_are_cheaper(len(factor), factor.length, factor.shape, alignment)
