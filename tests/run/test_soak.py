"""The soak sees what it is there to see: a run that differs, a pool that is lost, memory that grows."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.endure import judged
from benchmarks.jobs import Command, apart, ended
from benchmarks.soak import check_same, done, where
from tests.commands import ROOT


def looks(growth: float, files: float = 0.0, count: int = 200) -> np.ndarray:
    """A run of 20,000 steps in 400 s: 500 MB and noise, and what grows per 1,000 steps."""
    steps = np.linspace(100, 19_999, count)
    noise = np.random.default_rng(0).normal(size=count) * 3
    columns = [steps / 50, steps, 500 + noise + growth * steps / 1000, 40 + np.round(files * steps / 1000)]
    return np.stack(columns, axis=1)


def test_growth_is_told_from_noise() -> None:
    assert judged(looks(0.0), 20_000)["problems"] == []
    found = judged(looks(5.0), 20_000)
    assert found["problems"] == [f"memory grows by {found['megabytes_per_1000_steps']:.2f} MB per 1,000 steps"]
    assert found["megabytes_per_1000_steps"] == pytest.approx(5.0, abs=0.2) and found["standard_error"] < 0.2
    (said,) = judged(looks(0.0, files=1.0), 20_000)["problems"]
    assert said.startswith("open files grow from 46 to ")
    pace = judged(looks(0.0), 20_000)["steps_per_second"]
    assert pace["first_half"] == pytest.approx(50, rel=0.01) == pace["second_half"]
    assert "too short to judge" in judged(looks(0.0)[:3], 20_000)["problems"][0]


def test_a_job_ends_with_its_code_or_its_signal(tmp_path: Path) -> None:
    log = tmp_path / "log"
    shell = Command(["/bin/sh", "-c", 'echo "$0"; exit 3'])
    assert ended(shell.start(["told"], log)) == 3 and log.read_text() == "told\n"
    asleep = Command(["/bin/sh", "-c", "sleep 60"]).start([], log)
    begun = time.monotonic()
    asleep.kill(signal.SIGKILL)
    assert ended(asleep) == -signal.SIGKILL and time.monotonic() - begun < 30
    with pytest.raises(TimeoutError):
        ended(Command(["/bin/sh", "-c", "sleep 60"]).start([], log), within=0.05)
    assert apart(lambda: None, log)
    assert not apart(lambda: pytest.fail("apart"), log) and "apart" in log.read_text()


def test_a_folder_says_how_far_its_run_was(tmp_path: Path) -> None:
    assert (done(tmp_path), where(tmp_path)) == (0, "before its first record")
    (tmp_path / "status.json").write_text("{}")
    assert where(tmp_path) == "before its first pool"
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n1,0.9\n1,\n")
    assert (done(tmp_path), where(tmp_path)) == (2, "training")
    (tmp_path / "metrics.csv").write_text("step,loss\n0,1.0\n1,0.9\n2")
    assert done(tmp_path) == 2, "a line that was cut off is no row"
    (tmp_path / "summary.json").write_text("{}")
    assert where(tmp_path) == "after training"


@pytest.mark.long
def test_a_short_soak_loses_nothing_and_its_comparison_can_fail() -> None:
    line = [sys.executable, "-m", "benchmarks.soak", "--kills", "2", "--terms", "1", "--steps", "0"]
    line += ["--folder", "soak", "--json", "soak.json"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stdout + process.stderr
    found = json.loads(Path("soak.json").read_text())["hits"]
    assert found["sent"] == {"SIGKILL": 2, "SIGTERM": 1} and found["pools_lost"] == 0
    assert found["same"] == found["runs"] > 0 and found["problems"] == []
    straight, other = Path("soak/straight"), Path("soak/other")
    shutil.copytree(straight, other)
    check_same(straight, other)
    rows = pq.read_table(other / "ledger.parquet")
    pq.write_table(rows.slice(0, rows.num_rows - 1), other / "ledger.parquet")
    with pytest.raises(AssertionError, match="ledgers of"):
        check_same(straight, other)
