"""A sweep gives the same runs through every launcher, with nothing changed in the suite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.commands import ROOT, SMALL, command_line, save_base
from winnow.run import run

SWEEP = ("-m", "selector=selective_backprop", "selector.filter_size=2", *SMALL, "callbacks.last=null", "export=false")
LAUNCHERS = {
    # Two workers and three jobs: one of them has its worker from another.
    "joblib": ("hydra_plugins.hydra_joblib_launcher", "hydra.launcher.n_jobs=2", "seed=0,1,2"),
    "submitit_local": ("hydra_plugins.hydra_submitit_launcher", "hydra.launcher.timeout_min=10", "seed=0,1"),
}


def outcome(folder: Path) -> list[Any]:
    found = []
    for job in sorted(folder.glob("?-selective_backprop")):
        assert json.loads((job / "status.json").read_text())["state"] == "finished"
        table = pd.read_csv(job / "metrics.csv")
        rows = table[sorted(name for name in table if not name.startswith("time/"))].fillna(-1).to_dict("records")
        found.append((rows, json.loads((job / "summary.json").read_text())["after"]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", pytest.param("submitit_local", marks=pytest.mark.long)])
def test_jobs_come_out_as_they_do_one_after_the_other(launcher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, option, seeds = LAUNCHERS[launcher]
    pytest.importorskip(module)
    save_base()
    command_line(monkeypatch, run, *SWEEP, seeds, "hydra.sweep.dir=alone")
    line = [sys.executable, str(ROOT / "train.py"), *SWEEP, seeds, f"hydra/launcher={launcher}", option]
    done = subprocess.run(line, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (folder,) = Path("outputs/multirun").iterdir()
    assert outcome(folder) == outcome(Path("alone")) and len(outcome(folder)) == seeds.count(",") + 1


def test_more_processes_in_a_job_are_refused_with_what_to_do_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base()
    with pytest.raises(SystemExit):
        command_line(monkeypatch, run, *SWEEP, "trainer.devices=2")
    said = capsys.readouterr().err
    assert "several processes cannot share them" in said and "do python train.py trainer.devices=2" in said
