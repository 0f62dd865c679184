"""The only place that turns configuration into objects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial, wraps
from typing import Any

import hydra
from hydra.errors import CompactHydraException, InstantiationException
from omegaconf import DictConfig, OmegaConf


class BuildError(CompactHydraException):
    """A run that cannot be built as configured; Hydra prints the message alone, without a traceback."""


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
        named = not key or f"{key}." in text or f"{key}=" in text
        raise BuildError(text if named else f"{key}: {text}") from error


def build(node: Any, **extra: Any) -> Any:
    """Instantiate a config node's ``_target_``, with plain lists and dicts as arguments.

    Args:
        node: a config node with ``_target_``.
        extra: objects passed beside the node's keys, untouched.

    Returns:
        The object. For a node with ``_partial_``, a function of the arguments that are left.

    Raises:
        BuildError: the component refused its arguments, now or when the rest of them is given.
    """
    key = str(node._get_full_key(None))
    with blaming(key):
        built = hydra.utils.instantiate(node, _convert_="all", **extra)
    if not isinstance(built, partial):
        return built

    @wraps(built.func)  # its signature says what arguments are left
    def complete(*arguments: Any, **more: Any) -> Any:
        with blaming(key):
            return built(*arguments, **more)

    return complete


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
