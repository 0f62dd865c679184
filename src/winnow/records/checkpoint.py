"""Checkpoints taken at their word or not at all: whole, undamaged, and of the run that resumes from them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

log = logging.getLogger(__name__)

DIGEST = "winnow_digest"
HASHED = ("state_dict", "optimizer_states", "winnow")
"""What the digest is over: parameters, optimizer state, and the suite's own."""


def digest(checkpoint: Mapping[str, Any]) -> str:
    """A hash over everything in a checkpoint that training goes on from.

    Args:
        checkpoint: as Lightning saves it.

    Returns:
        SHA-256 in hexadecimal, of names, types, shapes and every byte of every tensor.
    """
    found = hashlib.sha256()
    _update(found, {key: checkpoint.get(key) for key in HASHED})
    return found.hexdigest()


def read_checkpoint(ckpt_path: str) -> dict[str, Any]:
    """A checkpoint that training can go on from.

    Args:
        ckpt_path: a file, saved by :class:`winnow.callbacks.LastCheckpoint`; no pickle in it is run.

    Returns:
        Its content.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, a part of it is missing or empty, or its digest says that it has changed.
    """
    path = Path(ckpt_path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(
            f"ckpt_path={ckpt_path}: no such file; a run keeps its own in <run>/checkpoints/last.ckpt"
        )
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"ckpt_path={ckpt_path} cannot be read as a checkpoint; use a run's last.ckpt") from error
    if not isinstance(state, dict) or "winnow" not in state or "optimizer_states" not in state:
        raise ValueError(f"ckpt_path={ckpt_path} holds weights only and cannot be resumed from; use last.ckpt")
    budget = (state["winnow"] or {}).get("budget") or {}
    parts = {
        "parameters (state_dict)": state.get("state_dict"),
        "optimizer state (optimizer_states)": state["optimizer_states"],
        "training progress (loops)": state.get("loops"),
        "counters (winnow.budget)": "steps" in budget,
    }
    missing = [name for name, part in parts.items() if not part]
    if missing:
        raise ValueError(f"ckpt_path={ckpt_path} is not whole: it holds no {' and no '.join(missing)}; use another one")
    if DIGEST not in state:
        log.warning("ckpt_path=%s is of an earlier version, without a digest: damage would not be noticed", ckpt_path)
    elif state[DIGEST] != digest(state):
        raise ValueError(f"ckpt_path={ckpt_path} is damaged: its content is not what was saved; use another one")
    return state


def check_fits(
    state: Mapping[str, Any], module: Any, optimizer: torch.optim.Optimizer, changed: Sequence[str], any_method: bool
) -> None:
    """Refuse a checkpoint of another model, optimizer or method than those of this run.

    Args:
        state: from :func:`read_checkpoint`.
        module: the ``SelectionModule`` that is to go on.
        optimizer: its optimizer.
        changed: options that this run has otherwise, for the message.
        any_method: whether another method may go on from the checkpoint.

    Raises:
        ValueError: they differ; says how, and which options have changed.
    """
    because = f" (changed: {'; '.join(changed)})" if changed else ""
    held, saved = module.state_dict(), state["state_dict"]
    for names, what in (
        (sorted(held.keys() - saved.keys()), "has no"),
        (sorted(saved.keys() - held.keys()), "has, and this model has not,"),
    ):
        if names:
            raise ValueError(f"ckpt_path is of another model or adapter: it {what} {_some(names)}{because}")
    odd = [name for name, value in held.items() if value.shape != saved[name].shape]
    if odd:
        shapes = f"{list(saved[odd[0]].shape)} in the checkpoint, {list(held[odd[0]].shape)} here"
        raise ValueError(f"ckpt_path is of another model or adapter: {_some(odd)} differ in shape, {shapes}{because}")
    then, now = state["optimizer_states"][0]["param_groups"], optimizer.param_groups
    kind = state["winnow"].get("optimizer", type(optimizer).__name__)
    same_keys = all(one.keys() - {"params"} == other.keys() - {"params"} for one, other in zip(then, now, strict=False))
    sizes = [[len(group["params"]) for group in groups] for groups in (then, now)]
    if kind != type(optimizer).__name__ or not same_keys or sizes[0] != sizes[1]:
        raise ValueError(
            f"ckpt_path is of another optimizer ({kind}, parameters by group {sizes[0]}) than optimizer="
            f"{type(optimizer).__name__} ({sizes[1]}){because}"
        )
    method, own = state["winnow"].get("method"), method_name(module.selector)
    if method not in (None, own) and not any_method:
        raise ValueError(
            f"ckpt_path is of a run of {method} and this one is of {own}, under whose name its records would go on: "
            "give the same selector, or resume_method=any to let this one take over"
        )


def method_name(selector: Any) -> str:
    """What a selector is called in checkpoints.

    Args:
        selector: the selector.

    Returns:
        Its class by dotted name; of one that asks another, that one's in brackets.
    """
    within = getattr(selector, "selector", None)
    return f"{type(selector).__module__}.{type(selector).__qualname__}" + (f"({method_name(within)})" if within else "")


def _some(names: Sequence[str]) -> str:
    return f"{len(names)} parameters ({', '.join(names[:2])}{', ...' if len(names) > 2 else ''})"


def _update(found: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        found.update(f"{value.dtype}{list(value.shape)}".encode())
        found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        for key in sorted(value, key=str):
            found.update(f"{key}:".encode())
            _update(found, value[key])
    elif isinstance(value, list | tuple):
        found.update(f"[{len(value)}]".encode())
        for one in value:
            _update(found, one)
    else:
        found.update(repr(value).encode())
