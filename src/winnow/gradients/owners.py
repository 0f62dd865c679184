"""Which module owns a parameter, and so whose calls tell the gradients of examples apart."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

HOLDERS = ("lora_embedding_A", "lora_embedding_B")
"""Dictionaries of parameters, called by nobody, that the module above uses in its own call: peft's, of embeddings."""


def owners(model: nn.Module, parameters: Mapping[str, nn.Parameter]) -> dict[nn.Module, tuple[str, dict[str, str]]]:
    """Modules that own chosen parameters; a tied parameter has several.

    Args:
        model: the model.
        parameters: chosen parameters by the name to report them under.

    Returns:
        For each module its path, and local to reported names of its chosen parameters.

    Raises:
        ValueError: a parameter belongs to no module of the model.
    """
    reported = {id(parameter): name for name, parameter in parameters.items()}
    found: dict[nn.Module, tuple[str, dict[str, str]]] = {}
    for path, module in model.named_modules():
        names = {local: reported[id(parameter)] for local, parameter in _own(module) if id(parameter) in reported}
        if names:
            found[module] = (path, names)
    missing = set(parameters) - {name for _, names in found.values() for name in names.values()}
    if missing:
        raise ValueError(f"parameters {sorted(missing)} belong to no module of the model")
    return found


def _own(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """A module's parameters, with those that it keeps in a dictionary of its own."""
    held = [(name, getattr(module, name, None)) for name in HOLDERS]
    return [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *(
            (f"{name}.{local}", parameter)
            for name, some in held
            if isinstance(some, nn.ParameterDict)
            for local, parameter in some.items()
        ),
    ]
