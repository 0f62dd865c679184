"""Where a result comes from, and how the run that made it ended."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("winnow-select", "torch", "lightning", "transformers", "peft", "datasets", "hydra-core", "wandb", "numpy")


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all.

    Args:
        path: the file.
        content: plain containers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)


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
    root = Path(__file__).parents[2]
    changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "time": _now(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": versions,
        "git": {"commit": _git(root, "rev-parse", "HEAD"), "dirty": None if changes is None else bool(changes)},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }


class Status:
    """``status.json``: running, finished, failed or interrupted, so that half a run is never taken for one.

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
            error: by what; a keyboard interrupt counts as interrupted.
            resume: a checkpoint it can go on from.
        """
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        self._end(state, error=f"{type(error).__name__}: {error}", ckpt_path=None if resume is None else str(resume))

    def _end(self, state: str, **more: Any) -> None:
        write_json(self.path, {**self.content, "state": state, "ended": _now(), **more})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        result = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None
