"""A logger that is lost costs one warning; training and the run's own records go on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import wandb
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger

from tests.commands import save_base
from tests.run.test_run import go, read
from winnow.run.instantiate import BuildError


class Dying(CSVLogger):
    """Fails from its third call on."""

    calls = 0

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        type(self).calls += 1
        if self.calls > 2:
            raise ConnectionResetError("Connection lost")
        super().log_metrics(metrics, step)


class Kill(Callback):
    """Kills W&B's service after the second pool, as the kernel does where memory runs out."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == 2:
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    words = (entry / "cmdline").read_bytes()
                    parent = (entry / "stat").read_text().rsplit(")", 1)[1].split()[1]
                except OSError:
                    continue
                if b"wandb" in words and int(parent) == os.getpid():
                    os.kill(int(entry.name), signal.SIGKILL)
            time.sleep(0.5)


def test_csv_files_of_lightning_beside_our_own() -> None:
    save_base()
    go("logger=csv", "export=false")
    assert pd.read_csv("out/csv/metrics.csv")["test/chains/nll"].notna().any()
    assert len(pd.read_csv("out/metrics.csv")) >= 4


@pytest.mark.parametrize(("logger", "package"), [("tensorboard", "tensorboard"), ("mlflow", "mlflow")])
def test_a_logger_that_is_not_installed_is_refused_by_name(logger: str, package: str) -> None:
    save_base()
    try:
        __import__(package)
    except ImportError:
        with pytest.raises(BuildError, match=f"logger.*{package}"):
            go(f"logger={logger}")
    else:
        go(f"logger={logger}", "export=false")


def test_a_logger_that_dies_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    save_base()
    Dying.calls = 0
    go("logger=csv", f"logger._target_={__name__}.Dying", "export=false")
    said = [record for record in caplog.records if "is lost" in record.getMessage()]
    assert len(said) == 1 and "Dying is lost (ConnectionResetError: Connection lost)" in said[0].getMessage()
    assert Dying.calls == 3, "it is not asked again"
    assert read("status.json")["state"] == "finished" and pd.read_csv("out/metrics.csv")["step"].max() == 3
    assert read("summary.json")["budget"]["steps"] == 4


def test_wandb_that_cannot_begin_does_not_keep_a_run_from_beginning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def init(*unused: Any, **options: Any) -> None:
        raise wandb.errors.CommError("no network")

    save_base()
    monkeypatch.setattr(wandb, "init", init)
    go("logger=wandb", "export=false")
    assert "WandbLogger is lost (CommError: no network)" in caplog.text
    assert read("status.json")["state"] == "finished" and pd.read_csv("out/metrics.csv")["step"].max() == 3


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for W&B's service among the processes of /proc")
def test_wandb_killed_in_the_middle_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    save_base()
    go("logger=wandb", f"+callbacks.kill={{_target_: {__name__}.Kill}}", "callbacks.tables.every=1", "export=false")
    assert "WandbLogger is lost" in caplog.text
    assert read("status.json")["state"] == "finished" and pd.read_csv("out/metrics.csv")["step"].max() == 3
