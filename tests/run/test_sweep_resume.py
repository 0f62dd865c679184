"""A sweep that was interrupted goes on with the same command: nothing is run twice, and nothing comes out different."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tests.commands import ROOT, SMALL, command_line, save_base
from winnow.records.folder import FolderInUse, differences, occupied
from winnow.run import run
from winnow.run.cli import sweep_name
from winnow.selectors import Random


class DiesOnce(Random):
    """Random selection; its process is killed after so many pools as a file says, if there is one."""

    def __init__(self, filter_size: int, seed: int) -> None:
        super().__init__(filter_size)
        self.seed, self.calls = seed, 0

    def __call__(self, signals: Any, generator: Any = None) -> Any:
        fatal = Path(f"die-{self.seed}")
        if fatal.exists() and self.calls == int(fatal.read_text()):
            os.kill(os.getpid(), signal.SIGKILL)
        self.calls += 1
        return super().__call__(signals, generator)


SWEEP = (
    "-m",
    "selector._target_=tests.run.test_sweep_resume.DiesOnce",
    "+selector.filter_size=2",
    "+selector.seed=${seed}",
    "seed=0,1,2",
    *SMALL,
)


def states(folder: Path) -> list[str]:
    found = [path / "status.json" for path in sorted(folder.glob("?-*"))]
    return [json.loads(path.read_text())["state"] for path in found]


def outcome(folder: Path) -> list[Any]:
    found = []
    for job in sorted(folder.glob("?-*")):
        weights = safetensors.torch.load_file(job / "model" / "model.safetensors")
        ledger = pq.read_table(job / "ledger.parquet").to_pydict()
        after = json.loads((job / "summary.json").read_text())["after"]
        found.append((job.name, torch.cat([value.flatten() for value in weights.values()]).tolist(), ledger, after))
    return found


def test_the_same_command_skips_resumes_and_begins_what_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    command_line(monkeypatch, run, *SWEEP, "hydra.sweep.dir=whole")
    Path("die-1").write_text("3")  # SMALL saves a checkpoint every second pool
    line = [sys.executable, str(ROOT / "train.py"), *SWEEP]
    killed = subprocess.run(line, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    (folder,) = Path("outputs/multirun").iterdir()
    assert states(folder) == ["finished", "running"]
    (done,) = folder.glob("0-*")
    first = {path: path.stat().st_mtime_ns for path in done.glob("*.*") if path.suffix != ".log"}

    Path("die-1").unlink()
    with caplog.at_level("WARNING", logger="winnow.records.folder"):
        command_line(monkeypatch, run, *SWEEP)
    said = [record.getMessage() for record in caplog.records if record.name == "winnow.records.folder"]
    assert len(said) == 2
    assert "0-" in said[0] and "finished already, skipped" in said[0]
    assert "1-" in said[1] and "resumed from its last.ckpt" in said[1]
    assert states(folder) == ["finished"] * 3
    assert {path: path.stat().st_mtime_ns for path in first} == first
    assert outcome(folder) == outcome(Path("whole"))


def test_what_left_no_checkpoint_begins_afresh_and_a_changed_configuration_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base()
    sweep = ("-m", "baseline=random", "seed=0,1", "hydra.sweep.dir=sweep", *SMALL)
    command_line(monkeypatch, run, *sweep)
    whole, job = outcome(Path("sweep")), Path("sweep/1-random")
    shutil.rmtree(job / "checkpoints")
    (job / "summary.json").unlink()
    left = "step,train/loss\n0,9.9\n"
    (job / "metrics.csv").write_text(left)
    (job / "status.json").write_text('{"state": "failed"}')

    with pytest.raises(SystemExit):
        command_line(monkeypatch, run, *sweep, "selector.filter_size=3", "data.pool_size=6")
    said = capsys.readouterr().err
    assert "0-random holds a job of another configuration: " in said
    assert "selector.filter_size was 4, is 3" in said and "data.pool_size was 8, is 6" in said
    assert "hydra.sweep.dir=FOLDER" in said
    assert (job / "metrics.csv").read_text() == left

    with caplog.at_level("WARNING", logger="winnow.records.folder"):
        command_line(monkeypatch, run, *sweep)
    assert "failed earlier without a checkpoint, started afresh" in caplog.text
    # A whole line: the digits alone may stand in any figure of the new run.
    assert outcome(Path("sweep")) == whole and "0,9.9" not in (job / "metrics.csv").read_text().splitlines()


def test_a_folder_in_use_is_left_alone() -> None:
    busy = Path("busy")
    with occupied(busy), pytest.raises(FolderInUse, match="another process is writing in busy"), occupied(busy):
        pytest.fail("two at once")
    with occupied(busy):
        pass


def test_configurations_are_compared_key_by_key_wherever_their_folders_are() -> None:
    before = {"out": "/a/b", "seed": 0, "save": {"dir": "/a/b/x", "every": 2}, "gone": None, "list": [1]}
    after = {"out": "c", "seed": 1, "save": {"dir": "c/x", "every": 2}, "list": [1, 2], "new": {}}
    assert differences(before, after) == [
        "seed was 0, is 1",
        "gone was None, is absent",
        "list was [1], is [1, 2]",
        "new was absent, is {}",
    ]
    assert differences(before, before) == []


def test_the_folder_is_the_commands_own() -> None:
    assert sweep_name(["-m", "sweeps=filter_size"]) == "filter_size"
    named = sweep_name(["-m", "sweeps=filter_size", "seed=0"])
    assert named == sweep_name(["sweeps=filter_size", "seed=0", "hydra/launcher=joblib", "--multirun"])
    assert named.startswith("filter_size-") and named != sweep_name(["-m", "sweeps=filter_size", "seed=1"])
    assert sweep_name(["-m", "seed=0,1"]).startswith("sweep-")
