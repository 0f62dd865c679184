"""Hooks that hand over per-example gradients during one backward that computes no weight gradient."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from winnow.gradients.factors.base import Factor
from winnow.gradients.factors.sum import Sum
from winnow.gradients.layers import Call, Slot, differentiable, rule_for
from winnow.gradients.owners import owners
from winnow.gradients.probe import Probe
from winnow.lm.packing import Packing

OnGradient = Callable[[str, Factor], None]


class CaptureError(ValueError):
    """A module's per-example gradients cannot be told apart.

    Args:
        message: what is wrong, and the way out.
        names: the module's wanted parameters, by the name they were to be reported under.
    """

    def __init__(self, message: str, names: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.names = names


class Capture:
    """Context in which a forward and ``backward`` yield per-example gradients of chosen parameters.

    Inside it every parameter has ``requires_grad`` off; on leaving, by whatever way, hooks are removed
    and the flags are back. A parameter with several contributions is handed over once, as their sum.

    Args:
        model: the model to be called inside the context.
        parameters: the parameters wanted, by the name to report them under.
        size: number of examples in the batch.
        tokens: padded length of the batch, to recognise inputs flattened to [size * tokens, ...].
        on_gradient: called with a name and a ``Factor``, layer by layer during ``backward``, or after it if ``hold``.
        packing: how the examples lie in rows, if they are not a row each.
        hold: call ``on_gradient`` after the backward, which is faster where the gradients are held anyway: small
            operations between layers run cache-cold.

    Raises:
        ValueError: a wanted parameter belongs to no module of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        size: int,
        tokens: int,
        on_gradient: OnGradient,
        packing: Packing | None = None,
        hold: bool = False,
    ) -> None:
        self.model, self.size, self.tokens, self.on_gradient, self.packing = model, size, tokens, on_gradient, packing
        self.hold = hold
        self.owners = owners(model, parameters)
        self.anchor = torch.zeros((), requires_grad=True)
        self.valid: Bool[Tensor, " batch"] | None = None
        self.ambiguous = False
        """Whether some module's output can be read in two ways as packed rows."""
        self._expected: dict[str, int] = defaultdict(int)
        self._arrived: dict[str, list[Factor]] = defaultdict(list)
        self._held: deque[tuple[str, Factor]] = deque()
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._flags: list[tuple[nn.Parameter, bool]] = []
        self._counting = True
        self._inside_rule = False

    def __enter__(self) -> Capture:
        """Switch the parameters off and put the hooks on."""
        self._flags = [(parameter, parameter.requires_grad) for parameter in self.model.parameters()]
        for parameter, _ in self._flags:
            parameter.requires_grad_(False)
        for module, (path, names) in self.owners.items():
            self._handles.append(module.register_forward_hook(self._hook(module, path, names), with_kwargs=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take the hooks off and restore the flags."""
        for handle in self._handles:
            handle.remove()
        for parameter, flag in self._flags:
            parameter.requires_grad_(flag)
        self._handles, self._flags = [], []
        self._arrived.clear()
        self._held.clear()

    def backward(self, loss: Float[Tensor, ""], valid: Bool[Tensor, " batch"] | None = None) -> None:
        """Run the backward; ``on_gradient`` is called for each parameter on the way.

        Args:
            loss: the sum of the per-example losses, each seen by its own example only.
            valid: examples whose gradient counts; the others' is replaced by exact zeros, whatever
                NaN they hold.

        Raises:
            RuntimeError: no module that owns a wanted parameter took part in the loss.
        """
        self._counting, self.valid = (
            False,
            None if valid is None or bool(valid.all()) else valid,
        )
        if not loss.requires_grad:
            raise RuntimeError(
                "the loss depends on none of the chosen parameters' modules (they are used outside their modules' "
                "calls, or not at all); choose others with scoring.layers, or a selector that needs no gradients"
            )
        # The anchor's gradient is never computed: naming it as the only input makes autograd stop at
        # the lowest probe and skip every weight gradient.
        # Products are to be full precision, whatever autocast the caller scores under.
        with torch.autocast(loss.device.type, enabled=False):
            torch.autograd.grad(loss, self.anchor, allow_unused=True)
            for name in list(self._arrived):
                # A call whose output the loss did not use sends nothing: the gradient is what arrived.
                self._deliver(name)
            with torch.no_grad():
                while self._held:
                    self.on_gradient(*self._held.popleft())

    @property
    def called(self) -> frozenset[str]:
        """Names of the parameters whose module was called, by whatever the loss was then made of."""
        return frozenset(self._expected)

    def _deliver(self, name: str) -> None:
        parts = self._arrived.pop(name)
        gradient = parts[0] if len(parts) == 1 else Sum(parts)
        if self.hold:
            self._held.append((name, gradient))
        else:
            self.on_gradient(name, gradient)

    def _hook(self, module: nn.Module, path: str, names: Mapping[str, str]) -> Callable[..., Any]:
        rule = rule_for(module)
        with_output = rule.wants_output(module)

        def hook(
            module: nn.Module,
            args: tuple[Any, ...],
            kwargs: dict[str, Any],
            output: Any,
        ) -> Any:
            if self._inside_rule or not torch.is_grad_enabled():
                return None
            if not isinstance(output, Tensor | tuple) or not differentiable(output):
                raise CaptureError(
                    f"module {path!r} ({type(module).__name__}) returns {type(output).__name__}, neither a tensor nor "
                    f"a tuple: its parameters have no per-example gradient here; leave it out with scoring.layers",
                    tuple(names.values()),
                )
            if self._counting:  # checkpointing calls the hook again when it recomputes
                for name in names.values():
                    self._expected[name] += 1
            slots: dict[int | str, Any] = dict(enumerate(args)) | kwargs
            tensors = {key: value.detach() for key, value in slots.items() if isinstance(value, Tensor)}
            blank = {key: _detached(value) for key, value in slots.items()} | dict.fromkeys(tensors)
            outputs = differentiable(output)
            if self.packing is not None and any(map(self.packing.ambiguous, outputs)):
                self.ambiguous = True
            device = outputs[0].device.type
            autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None

            def receive(inputs: tuple[Tensor, ...], grads: tuple[Tensor, ...]) -> None:
                try:
                    slots = blank | dict(zip(tensors, inputs, strict=False))
                    call = self._call(path, module, slots, grads, inputs[-1] if held else None)
                except CaptureError as error:
                    error.names = tuple(names.values())
                    raise
                self._inside_rule = True  # the generic rule calls the module again
                try:
                    # A rule that calls the module again needs the autocast it was called under; backward has none.
                    with nullcontext() if autocast is None else torch.autocast(device, dtype=autocast):
                        factors = rule.gradients(module, call, tuple(names))
                finally:
                    self._inside_rule = False
                for local, factor in factors.items():
                    self._add(names[local], factor)

            # An output by heads goes to no linear map, which would hold it anyway.
            held = with_output and outputs[0].ndim <= 3
            saved = [*tensors.values(), *[outputs[0].detach()] * held]
            probed = iter(Probe.apply(receive, self.anchor, len(outputs), *outputs, *saved))
            if isinstance(output, Tensor):
                return next(probed)
            known = {id(part) for part in outputs}
            return tuple(next(probed) if id(part) in known else part for part in output)

        return hook

    def _add(self, name: str, factor: Factor) -> None:
        self._arrived[name].append(factor)
        if len(self._arrived[name]) == self._expected[name]:
            self._deliver(name)

    def _call(
        self,
        path: str,
        module: nn.Module,
        slots: Mapping[int | str, Any],
        grads: tuple[Tensor, ...],
        output: Tensor | None,
    ) -> Call:
        flat: set[Slot] = set()
        batched: set[Slot] = set()

        def by_example(key: Slot, value: Any) -> Any:
            found = self._by_example(value) if isinstance(value, Tensor) else None
            if found is None:
                return value
            batched.add(key)
            if found[1]:
                flat.add(key)
            return found[0]

        split: dict[int | str, Any] = {}
        for key, value in slots.items():
            if type(value) is tuple:  # cosines and sines of positions, for example
                split[key] = tuple(by_example((key, at), part) for at, part in enumerate(value))
            else:
                split[key] = by_example(key, value)
        args = tuple(value for key, value in split.items() if isinstance(key, int))
        kwargs = {key: value for key, value in split.items() if isinstance(key, str)}
        grads = tuple(self._split(path, module, grad) for grad in grads)
        output = None if output is None else self._split(path, module, output)
        return Call(args, kwargs, grads, frozenset(flat), frozenset(batched), output)

    def _by_example(self, tensor: Tensor) -> tuple[Tensor, bool] | None:
        """A tensor with examples in its first dimension, and whether they had been flattened; None if it has none."""
        if self.packing is not None:
            if not self.packing.holds(tensor):
                return None
            tensor, flattened = self.packing.split(tensor)
        elif tensor.ndim and tensor.shape[0] in (self.size, self.size * self.tokens):
            flattened = tensor.shape[0] != self.size
            tensor = tensor.unflatten(0, (self.size, self.tokens)) if flattened else tensor
        else:
            return None
        if self.valid is not None and tensor.is_floating_point():
            keep = self.valid.to(tensor.device).view(-1, *[1] * (tensor.ndim - 1))
            tensor = torch.where(keep, tensor, 0)
        return tensor, flattened

    def _split(self, path: str, module: nn.Module, tensor: Tensor) -> Tensor:
        found = self._by_example(tensor)
        if found is None:
            raise CaptureError(
                f"module {path!r} ({type(module).__name__}) works on a tensor of shape {tuple(tensor.shape)}, "
                f"whose first dimension is neither the {self.size} examples nor their {self.size * self.tokens} "
                f"tokens{'' if self.packing is None else ', and which is not packed as they are'}: rows cannot be told "
                f"apart by example (routed experts, broadcast parameters); leave it out of the geometry with "
                f"scoring.layers"
            )
        return found[0]


def _detached(value: Any) -> Any:
    """An argument that is held until the backward; tensors of its own are saved by the graph."""
    if type(value) is tuple:
        return tuple(part.detach() if isinstance(part, Tensor) else part for part in value)
    return value
