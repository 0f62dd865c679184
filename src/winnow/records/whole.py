"""Files and folders that are written whole or not at all, whatever happens to the process or the machine."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".tmp"
"""Ends the name of what is still being written."""


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[Path]:
    """A file written beside its name and renamed once it is whole; nothing of it stays where writing fails.

    Args:
        path: the file's name.
        durable: wait until the disk has it, so that it outlasts the machine and not only the process.

    Yields:
        Where to write it.

    Raises:
        OSError: as the disk gives it, with the name of the file and, where the disk is full, what to do.
    """
    temporary = path.with_suffix(path.suffix + UNFINISHED)
    try:
        yield temporary
        if durable:
            sync(temporary)
        os.replace(temporary, path)
        if durable:
            with suppress(OSError):  # some network file systems know no such thing of a folder
                sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if _full(error, path.parent):
            message = f"the disk of {path.parent} is full, {path.name} could not be written: free some of it and go on"
            raise OSError(errno.ENOSPC, message) from error
        raise


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A folder filled beside its name and renamed once it is whole.

    Args:
        path: the folder's name; one that is there is replaced.

    Yields:
        Where to write, an empty folder.
    """
    temporary, old = (path.with_name(path.name + more) for more in (UNFINISHED, f".old{UNFINISHED}"))
    for left in (temporary, old):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir(parents=True)
    yield temporary
    for file in temporary.rglob("*"):
        if file.is_file():
            sync(file)
    if path.exists():
        os.replace(path, old)
    os.replace(temporary, path)
    shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Wait until the disk has what was written to a file, or the names in a folder.

    Args:
        path: the file or folder.
    """
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def clear_unfinished(*folders: Path) -> None:
    """Take away what a process that was killed had begun to write.

    Args:
        *folders: where to look; nobody else may be writing there.
    """
    for left in (left for folder in folders for left in folder.glob(f"*{UNFINISHED}")):
        with suppress(OSError):
            if left.is_dir():
                shutil.rmtree(left)
            else:
                left.unlink()


def _full(error: BaseException, folder: Path) -> bool:
    # torch reports a full disk as a RuntimeError of its archive writer.
    return getattr(error, "errno", None) == errno.ENOSPC or (
        isinstance(error, RuntimeError) and shutil.disk_usage(folder).free < 2**20
    )
