"""What a data set says about its own files: they lie within it, and no file that a row names is opened."""

from __future__ import annotations

import json
import os.path
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from winnow.records.shown import shown

REMEDY = "look at what it is, and give the file's own folder as the path if you want it read"


def check_inside(files: Iterable[str], roots: Iterable[str], key: str) -> None:
    """Refuse files that a data set names outside of itself: by ``..``, from the root, or on another machine.

    Links are followed as everywhere else; a snapshot of the hub is made of them.

    Args:
        files: as the data set's card or its records give them, resolved.
        roots: folders, or beginnings of addresses, that they may be in.
        key: the config key of the data set, for messages.

    Raises:
        ValueError: one is elsewhere; names it.
    """
    allowed = [_ended(root) for root in roots]
    for file in files:
        plain = file if "://" in file else os.path.normpath(file)
        if ".." in file.split("/") or not any(plain.startswith(root) for root in allowed):
            raise ValueError(f"{key}: the data set names a file outside of itself, {shown(file)!r}: {REMEDY}")


def check_saved(folder: Path, key: str) -> None:
    """The same for a folder of ``save_to_disk``, whose state.json names the files of a split.

    Args:
        folder: with a split, or a folder for each.
        key: the config key of the data set, for messages.

    Raises:
        ValueError: a file is elsewhere, or a state cannot be read; names it.
    """
    states = [one for one in (folder / "state.json", *sorted(folder.glob("*/state.json"))) if one.is_file()]
    for state in states:
        try:
            named = [str(one["filename"]) for one in json.loads(state.read_text(encoding="utf-8"))["_data_files"]]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{key}: {shown(state)} is not what save_to_disk writes ({error!r})") from error
        check_inside([os.path.join(state.parent, name) for name in named], [str(state.parent)], key)


def without_opening(features: Any) -> None:
    """Leave pictures, sounds and films of rows as the paths and bytes they are: nothing that a row names is opened.

    Args:
        features: of a data set, or a part of them; changed in place.
    """
    if hasattr(features, "decode"):
        features.decode = False
    elif isinstance(features, Mapping):
        for one in features.values():
            without_opening(one)
    elif isinstance(features, list | tuple):
        for one in features:
            without_opening(one)
    elif hasattr(features, "feature"):
        without_opening(features.feature)


def _ended(root: str) -> str:
    return root if root.endswith(("/", "@")) else root + "/"
