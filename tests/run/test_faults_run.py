"""Disks that are full or cannot be written, and W&B without one: defined, said in a line, and nothing good is lost."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.commands import command_line, save_base
from tests.run.test_ending import LONG, assert_same
from tests.run.test_run import go, read
from winnow.records.folder import FolderInUse, occupied
from winnow.records.history import History
from winnow.run.cli import main
from winnow.run.instantiate import BuildError
from winnow.run.place import unwritable


class Full:
    """A disk that is full from a certain call on."""

    def __init__(self, real: Any, calls: int) -> None:
        self.real, self.left = real, calls

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.real(*arguments, **options)


@pytest.mark.parametrize("what", ["metrics", pytest.param("ledger", marks=pytest.mark.long)])
def test_records_that_find_no_room_end_the_run_with_its_last_checkpoint_whole(
    what: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    append, write = History.append, pq.write_table
    with monkeypatch.context() as patch:
        if what == "metrics":
            full = Full(append, 3)
            patch.setattr(History, "append", lambda self, *more: full(self, *more))
        else:
            patch.setattr(pq, "write_table", Full(write, 1))
        with pytest.raises(OSError, match=r"No space left|is full"):
            go(
                "trainer.max_steps=5",
                "trainer.val_check_interval=null",
                "callbacks.last.every=2",
                "callbacks.best=null",
            )
    assert read("status.json")["state"] == "failed"
    assert "is full: free some of it before the run goes on" in caplog.text
    assert torch.load("out/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"] == 2
    assert not list(Path("out").rglob("*.tmp"))
    assert caplog.records[-1].getMessage().endswith("hydra.run.dir=out resume=auto")


def test_a_folder_that_cannot_be_written_is_refused_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("file").write_text("in the way")
    for key, line in (
        ("hydra.run.dir", ["hydra.run.dir=file/run"]),
        ("hydra.sweep.dir", ["-m", "hydra.sweep.dir='file/x'"]),
    ):
        said = unwritable(line)
        assert said is not None and said.startswith(f"{key}=file/")
        assert said.endswith(f"Choose another folder with {key}=FOLDER.")
    asks = ["hydra.run.dir=file/run", "--cfg", "job"]
    for line in (asks, ["hydra.run.dir=${name}"], ["hydra.run.dir=new/${name}"], []):
        assert unwritable(line) is None
    assert Path("new").is_dir() and Path("outputs").is_dir()

    def read_only(self: Path, *unused: Any, **options: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(SystemExit) as caught:
        command_line(monkeypatch, main, "hydra.run.dir=file/run", "logger=none")
    assert caught.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    monkeypatch.setattr(Path, "mkdir", read_only)
    words = r"there cannot be written to \(Read-only file system\): choose another"
    with pytest.raises(FolderInUse, match=words), occupied(Path("there")):
        pytest.fail("written")


def test_wandb_without_a_folder_to_write_in_does_not_end_the_run() -> None:
    save_base()
    Path("out").mkdir()
    Path("out/wandb").write_text("in the way")
    go("logger=wandb", "export=false", "trainer.max_steps=2", "callbacks.best=null")
    assert read("status.json")["state"] == "finished" and read("summary.json")["budget"]["steps"] == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs rights that this user has not")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.mark.long
def test_a_disk_that_is_really_full_loses_nothing_that_was_saved(small_disk: Path) -> None:
    save_base()
    line = (*LONG[:1], "callbacks.last.every=1", "callbacks.best=null", "export=false", "resume=auto")
    out = str(small_disk / "out")
    go(*line, out="straight")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(small_disk_free(small_disk) - 300_000))  # room for one checkpoint and not for two
    with pytest.raises((OSError, RuntimeError)):
        go(*line, out=out)
    assert torch.load(f"{out}/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"] >= 1
    ballast.unlink()
    go(*line, out=out)
    assert_same(out, "straight")


@pytest.mark.long
def test_a_disk_that_is_really_read_only_is_refused(small_disk: Path) -> None:
    save_base()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(BuildError, match=r"out cannot be written to \(Read-only file system\)"):
        go(*LONG, out=str(small_disk / "out"))
    assert "nothing can be written there" in str(unwritable([f"hydra.run.dir={small_disk}/out"]))


@pytest.mark.long
def test_wandb_on_a_full_disk_does_not_end_the_run(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    (small_disk / "ballast").write_bytes(bytes(small_disk_free(small_disk) - 8192))
    go("logger=wandb", f"logger.save_dir={small_disk}", "export=false", "callbacks.tables.every=1")
    assert read("status.json")["state"] == "finished" and read("summary.json")["budget"]["steps"] == 4


def small_disk_free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize
