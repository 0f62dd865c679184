"""Where a result comes from, and how the run that made it ended."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("winnow-select", "torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "wandb", "numpy")
ROOT = Path(__file__).parents[3]
SOURCES = ("src", "conf", "sweeps", "train.py")


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
        "time": now(),
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


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
