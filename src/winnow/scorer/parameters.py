"""Which parameters take part in the geometry (``scoring.layers``)."""

from __future__ import annotations

import logging
import re
from collections import defaultdict
from collections.abc import Collection

from torch import nn

from winnow.gradients.capture import CaptureError

log = logging.getLogger(__name__)


def choose_parameters(model: nn.Module, layers: str = "all") -> dict[str, nn.Parameter]:
    """Trainable parameters whose gradients are scored.

    An embedding tied to the output layer stays out, since it is known to hurt the scores, unless a
    regex names it.

    Args:
        model: the model; frozen parameters never take part.
        layers: ``all``; ``linear`` (weights and biases of linear maps); ``lora``; ``last:N`` (the last
            N blocks of the longest list of blocks); or a regex searched for in parameter names.

    Returns:
        Parameters by their first name in the model.

    Raises:
        ValueError: nothing matches, the regex is malformed, or N is not a positive integer.
    """
    names: dict[int, list[str]] = defaultdict(list)
    embedded: set[int] = set()
    linear: set[int] = set()
    for path, module in model.named_modules():
        for local, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            names[id(parameter)].append(f"{path}.{local}" if path else local)
            if isinstance(module, nn.Embedding):
                embedded.add(id(parameter))
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":
                linear.add(id(parameter))
    trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    untied = {
        name: parameter
        for name, parameter in trainable.items()
        if not (id(parameter) in embedded and len(names[id(parameter)]) > 1)
    }
    if layers == "all":
        chosen = untied
    elif layers == "linear":
        chosen = {name: parameter for name, parameter in untied.items() if id(parameter) in linear}
    elif layers == "lora":
        chosen = {name: parameter for name, parameter in untied.items() if "lora_" in name}
    elif layers.startswith("last:"):
        prefixes = _last_blocks(model, layers.removeprefix("last:"))
        chosen = {name: parameter for name, parameter in untied.items() if name.startswith(prefixes)}
    else:
        try:
            pattern = re.compile(layers)
        except re.error as error:
            raise ValueError(f"scoring.layers={layers!r} is not a valid regex: {error}") from error
        chosen = {
            name: parameter
            for name, parameter in trainable.items()
            if any(pattern.search(alias) for alias in names[id(parameter)])
        }
    if not chosen:
        raise ValueError(
            f"scoring.layers={layers!r} matches none of the {len(trainable)} trainable parameters "
            f"({', '.join(list(trainable)[:3])}, ...); use all | linear | lora | last:N | a regex over their names"
        )
    return chosen


def _last_blocks(model: nn.Module, count: str) -> tuple[str, ...]:
    lists = [(path, module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    if not count.isdigit() or int(count) < 1:
        raise ValueError(f"scoring.layers=last:N takes a positive number of blocks, got {count!r}")
    if not lists:
        raise ValueError("scoring.layers=last:N needs a model with a list of blocks; use a regex instead")
    path, blocks = max(lists, key=lambda item: len(item[1]))
    return tuple(f"{path}.{index}." for index in range(max(0, len(blocks) - int(count)), len(blocks)))


def leave_out(parameters: dict[str, nn.Parameter], error: CaptureError) -> bool:
    """Take what cannot be captured out of the geometry.

    Args:
        parameters: those that take part; changed in place.
        error: names some that cannot.

    Returns:
        False if that leaves nothing, or is nothing.
    """
    # Of every layer and expert: which of them fail may change with the batch, what is compared must not.
    roles = {re.sub(r"\d+", "#", name) for name in error.names}
    left_out = [name for name in parameters if re.sub(r"\d+", "#", name) in roles]
    if not left_out or len(left_out) == len(parameters):
        return False
    for name in left_out:
        del parameters[name]
    log.warning(
        "%d parameters are left out of the geometry (%s, ...): %s", len(left_out), ", ".join(left_out[:2]), error
    )
    return True


def leave_outside(parameters: dict[str, nn.Parameter], names: Collection[str], share: float) -> None:
    """Take what is used outside its module's call out of the geometry; nothing of it was captured, or added up.

    Args:
        parameters: those that take part; changed in place.
        names: those of them to leave out.
        share: of the squared gradient norms, which is theirs.
    """
    kinds = dict.fromkeys(re.sub(r"(?<=\.)\d+(?=\.)", "#", name) for name in names)
    for name in names:
        del parameters[name]
    log.warning(
        "%d parameters are trained and left out of the geometry: %s. They are used outside the call of the module that "
        "owns them (short convolutions, added tokens), and theirs are %.1f %% of the squared gradient norms of a few "
        "candidates under P = I; K and b are exact of the rest",
        len(names), ", ".join(kinds), 100 * share,
    )  # fmt: skip
