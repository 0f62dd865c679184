"""One side of a matrix folded to a few buckets."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

BLOCK = 2**19
"""On a CPU a side is folded this many numbers at a time: products are still in the cache when they are added."""

WORTH_IT = 2**18
"""On a CPU a side of at least as many numbers is folded by a convolution, whose call costs more."""

MKLDNN = torch.backends.mkldnn.is_available()
"""Without oneDNN the depthwise convolution is slower than the plain sum."""


@dataclass(frozen=True)
class Fold:
    """Count sketch of a dimension: entry i, times its sign, is added to bucket i mod ``buckets``.

    Args:
        signs: +1 or -1.
        buckets: how many there are, no more than entries.
    """

    signs: Float[Tensor, " side"]
    buckets: int

    def __call__(
        self, tensor: Float[Tensor, "*middle side"], scale: Float[Tensor, " side"] | None = None
    ) -> Float[Tensor, "*middle numbers"]:
        """Fold the last dimension.

        Args:
            tensor: any.
            scale: multipliers of the last dimension; ones if None.

        Returns:
            A tensor whose last dimension is the buckets.
        """
        if self._convolves(tensor):
            return self._convolved(tensor, scale)
        signs = self.signs.to(tensor.dtype)
        return self._added(tensor, signs if scale is None else signs * scale)

    def first(self, matrix: Float[Tensor, "side columns"]) -> Float[Tensor, "numbers columns"]:
        """Fold the first dimension.

        Args:
            matrix: any.

        Returns:
            A matrix of as many rows as there are buckets.
        """
        whole = len(matrix) // self.buckets * self.buckets
        signed = matrix * self.signs.to(matrix.dtype)[:, None]
        out = signed[:whole].unflatten(0, (-1, self.buckets)).sum(0)
        out[: len(matrix) - whole] += signed[whole:]
        return out

    def _convolves(self, tensor: Tensor) -> bool:
        return (
            tensor.numel() >= WORTH_IT
            and tensor.is_cpu
            and tensor.dtype == torch.float32
            and tensor.shape[-1] % self.buckets == 0
            and tensor.is_contiguous()
            and MKLDNN
        )

    @cached_property
    def _kernels(self) -> Tensor:
        return self.signs.float().view(-1, self.buckets).T.contiguous()

    def _convolved(self, tensor: Tensor, scale: Tensor | None) -> Tensor:
        """Each bucket a channel, the entries that share it neighbouring pixels: one pass over memory, with no copy."""
        # All tokens of an example are one line of pixels: a call of the kernel for each token costs more.
        line, side, kernels = tensor.shape[-2:].numel(), tensor.shape[-1], self._kernels
        pixels = tensor.as_strided(
            (tensor.numel() // line, self.buckets, 1, line // self.buckets), (line, 1, line, self.buckets)
        )
        if scale is not None:
            kernels = kernels * scale.reshape(-1, self.buckets).T
        folded = torch.conv2d(pixels, kernels[:, None, None], stride=(1, side // self.buckets), groups=self.buckets)
        return folded.permute(0, 2, 3, 1).reshape(*tensor.shape[:-1], self.buckets)

    def _added(self, tensor: Tensor, signs: Tensor) -> Tensor:
        whole = tensor.shape[-1] // self.buckets * self.buckets
        out = tensor.new_empty(*tensor.shape[:-1], self.buckets)
        step = len(tensor) if tensor.device.type != "cpu" else max(1, BLOCK * len(tensor) // max(1, tensor.numel()))
        for block, folded in zip(tensor.split(step), out.split(step), strict=True):
            torch.sum((block[..., :whole] * signs[:whole]).unflatten(-1, (-1, self.buckets)), -2, out=folded)
        if whole < tensor.shape[-1]:
            out[..., : tensor.shape[-1] - whole] += tensor[..., whole:] * signs[whole:]
        return out


def folded(side: Fold | None, tensor: Tensor, scale: Tensor | None) -> Tensor:
    """A tensor times ``scale``, its last dimension folded where there is a fold."""
    if side is not None:
        return side(tensor, scale)
    return tensor if scale is None else tensor * scale
