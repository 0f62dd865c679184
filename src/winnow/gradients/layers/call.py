"""One call of a module, split by example, and what a rule makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.dense import Dense

Slot = int | str | tuple[int | str, int]
"""Where an argument stands: position or key, and the place in it where it is a tuple."""


@dataclass(frozen=True)
class Call:
    """One call of a module, split by example.

    Args:
        args: positional arguments; tensors that belong to examples have them in their first dimension.
        kwargs: keyword arguments, likewise.
        grads: gradient of the loss with respect to the output, or to each floating-point tensor of it.
        flat: slots of the tensors that the module saw as [batch * tokens, ...].
        batched: slots of the tensors that belong to examples.
        output: the output, if the rule ``wants_output`` of the module.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    grads: tuple[Tensor, ...]
    flat: frozenset[Slot]
    batched: frozenset[Slot]
    output: Tensor | None = None

    @property
    def grad(self) -> Float[Tensor, " batch *out"]:
        """Gradient of the first output, the only one of modules with a closed form."""
        return self.grads[0]

    @property
    def input(self) -> Tensor:
        """The first argument, by position or by key."""
        return self.args[0] if self.args else next(iter(self.kwargs.values()))

    def shortened(self, examples: int, tokens: int) -> Call:
        """The same call for the first examples and tokens, where every argument is positional and by token.

        Args:
            examples: how many to keep.
            tokens: how many of each.

        Returns:
            The smaller call.
        """
        args = tuple(value[:examples, :tokens] for value in self.args)
        return replace(self, args=args, grads=tuple(grad[:examples, :tokens] for grad in self.grads))


def _never(module: nn.Module) -> bool:
    return False


@dataclass(frozen=True)
class LayerRule:
    """How the parameters of one kind of module get their per-example gradients.

    Args:
        matches: whether a module is of that kind; a subclass with a forward of its own usually is not.
        gradients: a function of module, call and the local names wanted; gives gradients by local name.
        wants_output: whether calls of a module are to come with its output.
    """

    matches: Callable[[nn.Module], bool]
    gradients: Callable[[nn.Module, Call, Iterable[str]], dict[str, Factor]]
    wants_output: Callable[[nn.Module], bool] = _never


def summed_over_tokens(grad: Float[Tensor, "batch *middle width"]) -> Dense:
    """Gradients of a bias: output gradients summed over everything between example and width."""
    return Dense(grad.reshape(len(grad), -1, grad.shape[-1]).sum(1))


def by_token(
    tensor: Float[Tensor, "batch *middle width"],
) -> Float[Tensor, "batch tokens width"]:
    """Everything between example and width as one dimension of tokens."""
    return tensor.reshape(len(tensor), -1, tensor.shape[-1])


def differentiable(output: Any) -> tuple[Tensor, ...]:
    """The tensors of a module's output that may have a gradient.

    Args:
        output: a tensor, or a tuple or list with tensors in it.

    Returns:
        Those of floating point, in order.
    """
    parts = (output,) if isinstance(output, Tensor) else output
    return tuple(part for part in parts if isinstance(part, Tensor) and part.is_floating_point())
