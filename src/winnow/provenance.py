"""Where a result comes from, and how the run that made it ended."""

from __future__ import annotations

import errno
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from winnow.stopping import Terminated

PACKAGES = ("winnow-select", "torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "wandb", "numpy")
ROOT = Path(__file__).parents[2]
SOURCES = ("src", "conf", "sweeps", "train.py")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all.

    Args:
        path: the file.
        content: plain containers; NaN, which JSON does not have, is written as null.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(to_json(content) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file written beside its name and renamed once it is whole; nothing of it stays where writing fails.

    Args:
        path: the file's name.

    Yields:
        Where to write it.

    Raises:
        OSError: as the disk gives it, with the name of the file and, where the disk is full, what to do.
    """
    temporary = path.with_suffix(path.suffix + ".tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _full(error, path.parent):
            message = f"the disk of {path.parent} is full, {path.name} could not be written: free some of it and go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


def _full(error: BaseException, folder: Path) -> bool:
    # torch reports a full disk as a RuntimeError of its archive writer.
    return getattr(error, "errno", None) == errno.ENOSPC or (
        isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 2**20
    )


def to_json(content: Any) -> str:
    """JSON that any reader takes.

    Args:
        content: plain containers; other things are written as their text.

    Returns:
        Indented JSON, with null for NaN and text for infinities.
    """
    return json.dumps(_strict(content), indent=2, default=str, allow_nan=False)


def anonymous(content: Any) -> Any:
    """Take out of texts what says whose machine they come from.

    Paths below the working folder or the source tree become relative, a home folder becomes ``~``, and the
    machine's name becomes ``<host>``.

    Args:
        content: a text, or plain containers of texts.

    Returns:
        The same with its texts changed.
    """
    if isinstance(content, dict):
        return {name: anonymous(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [anonymous(value) for value in content]
    if not isinstance(content, str):
        return content
    for folder, short in ((Path.cwd(), ""), (ROOT, ""), (Path.home(), "~")):
        if len(folder.parts) > 1:  # not "/"
            found = rf"(?<![\w.~/-]){re.escape(str(folder))}"
            content = re.sub(rf"{found}/", f"{short}/" if short else "", content)
            content = re.sub(rf"{found}(?![\w.-])", short or ".", content)
    host = platform.node()
    if len(host) > 3 and host != "localhost":
        content = re.sub(rf"(?<![\w./=-]){re.escape(host)}(?![\w/=-])", "<host>", content)
    return content


def provenance() -> dict[str, Any]:
    """Versions, code state and machine, without anything that names the machine.

    Returns:
        Plain containers for ``provenance.json``.
    """
    versions: dict[str, str | None] = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    return {
        "time": _now(),
        "command": anonymous([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "python": platform.python_version(),
        "packages": versions,
        "git": code_state(ROOT),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


def code_state(root: Path) -> dict[str, Any]:
    """Commit of the source tree, and whether it was changed since.

    Args:
        root: top folder of the source tree.

    Returns:
        ``commit`` and ``dirty``: a tracked file was changed, or there is a new one among the sources. Both are
        None where ``root`` is no repository of its own, such as an installed package within somebody else's.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    added = _git(root, "status", "--porcelain", "--", *SOURCES)
    return {"commit": _git(root, "rev-parse", "HEAD"), "dirty": bool(changed or added)}


class Status:
    """``status.json``: running, finished, failed, interrupted or terminated, so that half a run is never taken for one.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "status.json"
        self.content: dict[str, Any] = {"state": "running", "started": _now()}
        write_json(self.path, self.content)

    def finished(self) -> None:
        """The run came to its end."""
        self._end("finished")

    def failed(self, error: BaseException, resume: Path | None) -> None:
        """The run was broken off.

        Args:
            error: by what; a keyboard interrupt counts as interrupted, SIGTERM as terminated.
            resume: a checkpoint it can go on from.
        """
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        state = "terminated" if isinstance(error, Terminated) else state
        text = anonymous(f"{type(error).__name__}: {error}")
        self._end(state, error=text, ckpt_path=None if resume is None else anonymous(str(resume)))

    def _end(self, state: str, **more: Any) -> None:
        write_json(self.path, {**self.content, "state": state, "ended": _now(), **more})


def _strict(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _strict(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_strict(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None if math.isnan(content) else str(content)
    return content


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
