"""However a run ends, its state is saved, its record is written before it is printed, and it says how to go on."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback

from tests.commands import CONF, compose, save_base
from tests.run.test_run import go, read
from winnow.evaluate import MEASURE_ONLY, with_defaults
from winnow.records import strict_json
from winnow.records.status import Terminated
from winnow.records.whole import replacing
from winnow.run.cli import check


class Signal(Callback):
    """Sends this process a signal in the middle of a pool."""

    def __init__(self, pool: int, name: str) -> None:
        self.pool, self.name = pool, name

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == self.pool - 1:
            os.kill(os.getpid(), getattr(signal, self.name))


class FailMeasuring(Callback):
    """An error in the middle of a measurement of the target."""

    def on_validation_batch_start(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == 4:
            raise ZeroDivisionError("by the test")


class Fail(Callback):
    """An error between two pools."""

    def __init__(self, pool: int) -> None:
        self.pool = pool

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == self.pool:
            raise ZeroDivisionError("by the test")


def weights(out: str) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(f"{out}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    return state


def assert_same(one: str, other: str) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    assert pq.read_table(f"{one}/ledger.parquet").equals(pq.read_table(f"{other}/ledger.parquet"))
    times = "time"  # seconds are never the same
    tables = [pd.read_csv(f"{out}/metrics.csv") for out in (one, other)]
    pd.testing.assert_frame_equal(*(table.loc[:, ~table.columns.str.startswith(times)] for table in tables))
    assert read("summary.json", one)["after"] == read("summary.json", other)["after"]


def test_an_error_while_measuring_loses_no_measurement() -> None:
    save_base()
    go("trainer.max_steps=6", "callbacks.last.every=3", out="straight")
    with pytest.raises(ZeroDivisionError):
        go("trainer.max_steps=6", "callbacks.last.every=3", f"+callbacks.end={{_target_: {__name__}.FailMeasuring}}")
    assert torch.load("out/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"] == 3
    go("trainer.max_steps=6", "callbacks.last.every=3", "ckpt_path=out/checkpoints/last.ckpt")
    assert_same("out", "straight")


def test_a_save_that_fails_does_not_hide_the_error_that_came_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", full)
    with pytest.raises(ZeroDivisionError):
        go(*LONG, "callbacks.best=null", f"+callbacks.end={{_target_: {__name__}.Fail, pool: 3}}")
    assert "last.ckpt could not be written" in caplog.text and "by the test" in read("status.json")["error"]


LONG = ("trainer.max_steps=6", "callbacks.last.every=50")


@pytest.mark.parametrize(
    ("name", "pool"),
    [
        pytest.param("SIGTERM", 3, marks=pytest.mark.long),
        ("SIGTERM", 4),
        pytest.param("SIGINT", 3, marks=pytest.mark.long),
        pytest.param("error", 3, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_goes_on_from_its_last_pool_as_if_nothing_had_been(
    name: str, pool: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Pools between two saves and before a measurement of the target alike; a measurement follows the fourth."""
    save_base()
    go(*LONG, out="straight")
    callback = f"{{_target_: {__name__}.Fail, pool: {pool}}}"
    if name != "error":
        callback = f"{{_target_: {__name__}.Signal, pool: {pool}, name: {name}}}"
    error = {"SIGTERM": Terminated, "SIGINT": KeyboardInterrupt, "error": ZeroDivisionError}[name]
    with pytest.raises(error) as caught:
        go(*LONG, f"+callbacks.end={callback}")
    if name == "SIGTERM":
        assert caught.value.code == 143
    status = read("status.json")
    assert status["state"] == {"SIGTERM": "terminated", "SIGINT": "interrupted", "error": "failed"}[name]
    error_said = {"SIGTERM": "Terminated: SIGTERM", "SIGINT": "KeyboardInterrupt: SIGINT"}
    assert status["error"] == error_said.get(name, status["error"]) and not status["error"].endswith(": ")
    said = caplog.records[-1].getMessage()
    assert status["ckpt_path"] in said and said.endswith("hydra.run.dir=out resume=auto")
    assert pq.read_table("out/ledger.parquet").num_rows == pool * 8, "no pool is lost"
    go(*LONG, f"ckpt_path={status['ckpt_path']}")
    assert_same("out", "straight")


def test_the_end_is_saved_and_a_longer_run_goes_on_from_it() -> None:
    save_base()
    go(*LONG, out="straight")
    go("trainer.max_steps=3", "callbacks.last.every=50")
    assert torch.load("out/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"] == 3
    go(*LONG, "ckpt_path=out/checkpoints/last.ckpt")
    assert_same("out", "straight")


@pytest.mark.parametrize("bound", ["trainer.max_steps=0", "trainer.max_epochs=0"])
def test_no_step_measures_the_model_as_it_is(bound: str) -> None:
    save_base()
    nll = go(bound)
    summary = read("summary.json")
    assert summary["before"] == summary["after"] and nll == summary["after"]["chains/nll"]
    assert summary["budget"]["steps"] == 0 and read("status.json")["state"] == "finished"
    assert not Path("out/checkpoints").exists()


def test_evaluating_is_training_nothing_by_name() -> None:
    for given in ([], ["--cfg", "job"], ["seed=3", "--cfg", "job"], ["-m", "seed=1,2"]):
        line = with_defaults(given)
        assert not check(line, CONF, "train")
        assert [word for word in line if word not in MEASURE_ONLY] == given
    composed = compose(*with_defaults(["seed=3", "export=true"]))
    assert composed.trainer.max_steps == 0 and composed.seed == 3 and composed.export, "what is given outweighs it"


class Broken(io.StringIO):
    """An output that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [BrokenPipeError(errno.EPIPE, "pipe"), OSError(errno.ENOSPC, "no space left")])
def test_a_result_that_cannot_be_printed_is_a_result(
    error: OSError, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", Broken(error))
        assert go("trainer.max_steps=1") is not None
    assert read("status.json")["state"] == "finished" and read("summary.json")["budget"]["steps"] == 1
    assert "is recorded and could not be printed" in caplog.text


def full(*arguments: Any, **options: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_last_checkpoint_and_says_which_disk(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    saved = TorchCheckpointIO.save_checkpoint
    calls = []

    def save(self: Any, checkpoint: Any, path: Any, *unused: Any) -> None:
        calls.append(path)
        if "last" not in str(path) or checkpoint["winnow"]["budget"]["steps"] <= 2:
            saved(self, checkpoint, path)
            return
        Path(path).write_bytes(b"half")
        monkeypatch.setattr(strict_json, "to_json", full)  # nor can the status be written
        full()

    monkeypatch.setattr(TorchCheckpointIO, "save_checkpoint", save)
    with pytest.raises(OSError, match=r"the disk of .*checkpoints is full, last\.ckpt could not be written"):
        go(*LONG, "callbacks.last.every=2")
    assert not list(Path("out").rglob("*.tmp"))
    assert torch.load("out/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"] == 2
    assert "status.json could not be written" in caplog.text
    assert caplog.records[-1].getMessage().startswith("This run can go on from ")


def test_what_is_not_whole_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "file"
    path.parent.mkdir()
    path.write_text("old")

    def write() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old" and [each.name for each in path.parent.iterdir()] == ["file"]
