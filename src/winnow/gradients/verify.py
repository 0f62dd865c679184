"""A check, on the user's own model, that the captured gradients are the ones autograd computes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.gradients.autograd import gradients_of
from winnow.gradients.capture import Capture
from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.precision import accumulation_dtype
from winnow.lm.forward import Forward
from winnow.lm.layout import KEYS, Batch, right_padded
from winnow.lm.shards import held_as, number

TOLERANCE = {
    torch.float64: 1e-6,
    torch.float32: 1e-3,
    torch.bfloat16: 1e-1,
    torch.float16: 1e-1,
}
"""Largest relative error of a parameter's gradient, by the coarsest precision of any captured one."""


class GradientMismatch(RuntimeError):
    """The captured gradient of some parameter is not the one autograd computes."""


class UsedOutside(GradientMismatch):
    """Autograd has gradients of parameters whose modules are never called: nothing of them is captured.

    Args:
        names: those parameters.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        super().__init__(
            f"{', '.join(names[:3])}{' and others' if len(names) > 3 else ''}: used outside the call of the module "
            "that owns them (short convolutions, added tokens), so no gradient of an example can be captured: leave "
            "them out of the geometry with scoring.layers, and set scoring.update=two_pass or auto"
        )
        self.names = names


def verify_gradients(forward: Forward, parameters: Mapping[str, nn.Parameter], batch: Batch) -> None:
    """Compare captured gradients with autograd's own, on a weighted sum of the examples' losses.

    Every example has a weight of its own, so that gradients attributed to the wrong example show too.

    Args:
        forward: the model, as it is scored (dropout off); autograd's own gradients are of padded examples.
        parameters: the parameters that take part in the geometry.
        batch: a few examples, each with response tokens and a finite loss.

    Raises:
        GradientMismatch: a parameter's gradients disagree, though its module is called.
        UsedOutside: all of those agree, and there are others whose modules are never called.
    """
    batch = right_padded(batch)
    size, length = batch["input_ids"].shape
    weight = torch.arange(1, size + 1, device=batch["input_ids"].device) / size
    captured: dict[str, Tensor] = {}
    precision: set[torch.dtype] = set()

    def keep(name: str, factor: Factor) -> None:
        precision.add(factor.dtype)
        captured[name] = held_as(factor.to(accumulation_dtype(factor.dtype)).combine(weight), parameters[name])

    rows = forward.rows(batch)
    with torch.enable_grad(), Capture(forward.model, parameters, size, length, keep, rows) as capture:
        losses = forward.losses(batch) if rows is None else rows.losses(forward.model, forward.reduction)
        if not capture.ambiguous:
            capture.backward(losses.sum())
    if capture.ambiguous:
        verify_gradients(Forward(forward.model, forward.reduction), parameters, batch)
        return
    # Rounding anywhere reaches every gradient, so the coarsest precision sets the tolerance.
    tolerance = max((TOLERANCE[dtype] for dtype in precision), default=0.0)
    outside: list[str] = []
    for name, (expected, scale) in _autograd(forward, parameters, batch, weight).items():
        if name not in capture.called:
            # Zero on these examples, it may be another on others: a token that was added and does not occur. Of a
            # module that the loss does not come from, autograd knows nothing at all.
            outside += [name] * (expected is not None)
            continue
        expected = torch.zeros_like(parameters[name]) if expected is None else expected
        got = captured.get(name, torch.zeros_like(expected)).to(expected.dtype)
        error, norm = number((got - expected).norm()), number(expected.norm())
        # A gradient that is zero but for rounding (a key's bias) is compared with the whole gradient.
        if not error <= tolerance * max(norm, 1e-3 * scale):
            raise GradientMismatch(
                f"the captured gradient of {name!r} is off by {error:.3g} from autograd's, whose norm is {norm:.3g}: "
                f"the parameter is used outside its module's own call; leave it out of the geometry with "
                f"scoring.layers (or skip this check with scoring.verify=false, at your risk)"
            )
    if outside:
        raise UsedOutside(tuple(outside))


def share_left_out(
    forward: Forward, left_out: Collection[str], trainable: Mapping[str, nn.Parameter], batch: Batch
) -> float:
    """How much of the examples' gradients lies in some parameters, by autograd, an example at a time.

    Args:
        forward: the model, as it is scored (dropout off).
        left_out: names of the parameters that take no part.
        trainable: all that are trained, by name.
        batch: a few examples, each with response tokens and a finite loss.

    Returns:
        Share of the sum of squared gradient norms under P = I, the trace of K over all parameters; 0 without gradients.
    """
    outside = total = 0.0
    for row in range(len(batch["labels"])):
        one = {key: batch[key][row : row + 1] for key in KEYS}
        weight = torch.ones(1, device=batch["labels"].device)
        for name, (gradient, _) in _autograd(forward, trainable, one, weight).items():
            square = 0.0 if gradient is None else number(gradient.square().sum())
            total += square
            outside += square if name in left_out else 0.0
    return outside / total if total > 0 else 0.0


def _autograd(
    forward: Forward,
    parameters: Mapping[str, nn.Parameter],
    batch: Batch,
    weight: Float[Tensor, " batch"],
) -> dict[str, tuple[Tensor | None, float]]:
    """Gradients by name, None for what the loss does not depend on, and the norm of all of them."""
    flags = [(parameter, parameter.requires_grad) for parameter in forward.model.parameters()]
    chosen = {id(parameter) for parameter in parameters.values()}
    try:
        for parameter, _ in flags:
            parameter.requires_grad_(id(parameter) in chosen)
        with torch.enable_grad():
            losses = forward.losses(batch)
            loss = (losses * weight.to(losses.dtype)).sum()
            grads = gradients_of(loss, list(parameters.values()))
    finally:
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
    wide = [None if grad is None else grad.to(accumulation_dtype(grad.dtype)) for grad in grads]
    norms = [number(grad.norm()) for grad in wide if grad is not None]
    scale = math.hypot(*norms)
    return {name: (grad, scale) for name, grad in zip(parameters, wide, strict=True)}
