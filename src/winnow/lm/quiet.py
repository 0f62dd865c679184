"""A model as it is scored: without dropout, without touching a random generator, not compiled."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_UNUSED = ("summary", "classifier")
"""Dropout options of heads that a causal language model does not have."""


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Switch dropout off and fork the generators; on leaving, everything is as it was.

    Only what needs it leaves training mode, since gradient checkpointing is active in training mode
    alone: ``nn.Dropout`` modules, and the whole model if its config has functional dropout. A
    compiled model runs as written, since its compiled code would not call the hooks. Reentrant
    gradient checkpointing, which sees no hook's graph, becomes non-reentrant: the same numbers.

    Args:
        model: the model about to be scored.

    Yields:
        Nothing.
    """
    modules = list(model.modules())  # once: a walk through a large model takes milliseconds
    flags = [(module, module.training) for module in modules]
    parameters = [parameter for module in modules for parameter in module._parameters.values() if parameter is not None]
    devices = {parameter.device for parameter in parameters if parameter.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), _uncompiled(modules), _not_reentrant(modules):
        try:
            if functional_dropout(model):
                model.eval()
            for module, _ in flags:
                if isinstance(module, nn.modules.dropout._DropoutNd):
                    module.training = False
            yield
        finally:
            for module, flag in flags:
                module.training = flag


def _uncompiled(modules: list[nn.Module]) -> AbstractContextManager[object]:
    if not any(module.__dict__.get("_compiled_call_impl") or "_orig_mod" in module._modules for module in modules):
        return nullcontext()
    return torch.compiler.set_stance("force_eager")


@contextmanager
def _not_reentrant(modules: list[nn.Module]) -> Iterator[None]:
    held: list[tuple[nn.Module, Any]] = []
    try:
        for module in modules:
            function: Any = module.__dict__.get("_gradient_checkpointing_func")  # of Hugging Face's layers
            if function is checkpoint or getattr(function, "keywords", {}).get("use_reentrant"):
                held.append((module, function))
                module.__dict__["_gradient_checkpointing_func"] = functools.partial(function, use_reentrant=False)
        yield
    finally:
        for module, function in held:
            module.__dict__["_gradient_checkpointing_func"] = function


def has_dropout(model: nn.Module) -> bool:
    """Whether a training pass of the model would be random.

    Args:
        model: a model, in training mode or not.

    Returns:
        True if any dropout would be active.
    """
    modules = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    return any(module.training and module.p > 0 for module in modules) or (model.training and functional_dropout(model))


def functional_dropout(model: nn.Module) -> bool:
    """Whether the model's config switches on randomness that no ``nn.Dropout`` module shows.

    Args:
        model: a model, with a Hugging Face config or without.

    Returns:
        True if any dropout, drop or jitter rate of the config is positive.
    """
    config: Any = getattr(model, "config", None)
    options = config.to_dict() if hasattr(config, "to_dict") else dict(config) if isinstance(config, dict) else {}
    return any(
        isinstance(value, float | int)
        and value > 0
        and any(word in key for word in ("drop", "pdrop", "jitter"))
        and not key.startswith(_UNUSED)
        for key, value in options.items()
    )
