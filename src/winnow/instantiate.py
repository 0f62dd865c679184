"""The only place that turns configuration into objects."""

from __future__ import annotations

from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf


def build(node: Any, **extra: Any) -> Any:
    """Instantiate a config node's ``_target_``, with plain lists and dicts as arguments.

    Args:
        node: a config node with ``_target_``.
        extra: objects passed beside the node's keys, untouched.

    Returns:
        The object.
    """
    return hydra.utils.instantiate(node, _convert_="all", **extra)


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
