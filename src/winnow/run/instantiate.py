"""The only place that turns configuration into objects."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial, wraps
from typing import Any

import hydra
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf

from winnow.records.shown import shown

NULL = {"None", "NoneType", "Optional"}
NUMBERS = {"int", "float", "Tensor", "torch.Tensor", "Union", *NULL}
"""Annotations that mean a number; text is refused for them."""


class BuildError(CompactHydraException):
    """A run that cannot be built as configured; Hydra prints the message alone, without a traceback.

    Args:
        message: shown as it stands, whatever data or file names it quotes.
    """

    def __init__(self, message: str) -> None:
        super().__init__(shown(message, keep="\n\t"))


@contextmanager
def blaming(key: str) -> Iterator[None]:
    """Turn whatever is raised inside into a :class:`BuildError` that says where it comes from.

    Args:
        key: config key of what is being built; empty where there is no single one.

    Yields:
        Nothing.

    Raises:
        BuildError: with the message of the component that refused, and the key unless the message names it.
    """
    try:
        yield
    except BuildError:
        raise
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        # OmegaConf adds lines to its messages that say nothing new.
        lines = [line for line in str(cause).splitlines() if not line.strip().startswith(("full_key:", "object_type="))]
        text = "\n".join(lines) or type(cause).__name__
        # "the base model. Please" names no key.
        named = not key or re.search(rf"(?<![\w.]){re.escape(key)}[.=]\S", text) is not None
        raise BuildError(text if named else f"{key}: {text}") from error


def build(node: Any, **extra: Any) -> Any:
    """Instantiate a config node's ``_target_``, with plain lists and dicts as arguments.

    Args:
        node: a config node with ``_target_``.
        extra: objects passed beside the node's keys, untouched.

    Returns:
        The object. For a node with ``_partial_``, a function of the arguments that are left.

    Raises:
        BuildError: an argument that is to be a number is none, or the component refused its arguments, now or when
            the rest of them is given.
    """
    key = str(node._get_full_key(None))
    with blaming(key):
        _check_nested(node, key)
        built = hydra.utils.instantiate(node, _convert_="all", **extra)
    if not isinstance(built, partial):
        return built

    @wraps(built.func)  # its signature says what arguments are left
    def complete(*arguments: Any, **more: Any) -> Any:
        with blaming(key):
            return built(*arguments, **more)

    return complete


def _check_nested(node: Any, key: str) -> None:
    """Hold a node's arguments, and those of every node within it, to the signatures of their targets."""
    target = node.get("_target_")
    if isinstance(target, str):
        with suppress(Exception):  # instantiate says what is wrong with a target
            target = hydra.utils.get_object(target)
    if callable(target):
        check_numbers(target, node, key)
    for name in node:
        child = None if OmegaConf.is_missing(node, name) else node[name]
        if isinstance(child, DictConfig) and not child._is_none():
            _check_nested(child, f"{key}.{name}" if key else str(name))


def check_numbers(target: Callable[..., Any], values: Mapping[str, Any], key: str = "") -> None:
    """Refuse what is no number where one is meant, and no truth value where one is meant, by a target's signature.

    Text is true whatever it says: ``no``, ``off`` and a quoted ``false`` would switch things on.

    Args:
        target: what is to be called.
        values: its arguments by name; others are passed over.
        key: config key of the group they are in; empty for the top.

    Raises:
        ValueError: an argument is of another kind than its annotation, or NaN; names its config key.
    """
    try:
        parameters = inspect.signature(target).parameters
    except (TypeError, ValueError):  # some built-in callables have no signature
        return
    for name in parameters.keys() & values.keys():
        annotation = inspect.formatannotation(parameters[name].annotation)
        kinds = set(re.findall(r"[\w.]+", annotation))
        either = "bool" in kinds and kinds <= {"bool", *NULL}
        if not either and (not kinds & {"int", "float"} or not kinds <= NUMBERS):
            continue
        value = values[name]
        if value is None:
            # Others may annotate None away and take it all the same.
            wrong = not kinds & NULL and str(getattr(target, "__module__", "")).startswith("winnow")
        elif either:
            wrong = not isinstance(value, bool)
        else:
            fraction = isinstance(value, float) and ("float" not in kinds or value != value)
            wrong = isinstance(value, str | bool) or fraction
        if wrong:
            what = "true or false" if either else "a number" if "float" in kinds else "a whole number"
            what += " or null" if kinds & NULL else ""
            raise ValueError(f"{key}{'.' if key else ''}{name} must be {what}, got {value!r}")


def build_all(node: DictConfig | None) -> dict[str, Any]:
    """Instantiate every entry of a group that has a ``_target_``; entries set to null are left out.

    Args:
        node: a mapping of names to nodes.

    Returns:
        The objects by name.
    """
    if not node:
        return {}
    return {str(name): build(child) for name, child in node.items() if child and "_target_" in child}


def plain(node: Any) -> Any:
    """A config node as plain dicts and lists, interpolations resolved.

    Args:
        node: any config node.

    Returns:
        Plain Python containers.
    """
    return OmegaConf.to_container(node, resolve=True)
