"""A run that is killed and resumed ends bit for bit like one that never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tests import runs

ROOT = Path(__file__).parents[2]


@pytest.fixture
def world(tmp_path: Path) -> list[str]:
    """A saved model with dropout, a stream of 100 and a target, as files; the overrides that use them."""
    runs.model(dropout=0.1).save_pretrained(tmp_path / "base")
    runs.tokenizer().save_pretrained(tmp_path / "base")
    for name, numbers in {"stream": range(100), "val": range(1000, 1010), "test": range(2000, 2006)}.items():
        rows = [{"prompt": (e := runs.example(n)).prompt + f" ({n})", "response": e.response} for n in numbers]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=local",
        f"model.path={tmp_path / 'base'}",
        "data=jsonl",
        f"data.corpus.stream={tmp_path / 'stream.jsonl'}",
        *(f"data.corpus.targets.target.{split}={tmp_path / split}.jsonl" for split in ("val", "test")),
        "data.pool_size=8",
        "data.target_batch_size=4",
        "~selector",
        "+selector={_target_: tests.slow.SlowFilterWeight, filter_size: 3, seconds: 0.05}",
        "scoring.target_ema=0.5",
        "trainer.max_steps=30",
        "trainer.val_check_interval=5",
        "callbacks.last.every=5",
        "callbacks.progress=null",
        "trainer.enable_progress_bar=false",
        "evaluation.accuracy_limit=0",
        "logger=none",
    ]


STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def ended() -> Iterator[None]:
    """Nothing goes on after a test that failed in the middle."""
    yield
    for process in STARTED:
        if process.poll() is None:
            process.kill()
            process.communicate()
    STARTED.clear()


def start(folder: Path, overrides: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "train.py"), *overrides, f"hydra.run.dir={folder}"]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    STARTED.append(process)
    return process


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output


def metrics(folder: Path) -> pd.DataFrame:
    table = pd.read_csv(folder / "metrics.csv")
    return table[sorted(name for name in table.columns if not name.startswith("time/"))]


def test_killed_and_resumed_equals_uninterrupted(tmp_path: Path, world: list[str]) -> None:
    whole, killed, resumed = tmp_path / "whole", tmp_path / "killed", tmp_path / "resumed"
    uninterrupted = start(whole, world)
    victim = start(killed, world)
    deadline = time.time() + 240
    while time.time() < deadline:
        path = killed / "metrics.csv"
        if (killed / "checkpoints" / "last.ckpt").exists() and len(path.read_text().splitlines()) > 21:
            break
        assert victim.poll() is None, victim.communicate()[0]
        time.sleep(0.01)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert not (killed / "summary.json").exists(), "the run was to be killed in the middle"
    finish(uninterrupted)
    finish(start(resumed, [*world, f"ckpt_path={killed / 'checkpoints' / 'last.ckpt'}"]))

    state = [safetensors.torch.load_file(folder / "model" / "model.safetensors") for folder in (whole, resumed)]
    assert all(torch.equal(state[0][name], state[1][name]) for name in state[0])
    ledgers = [pq.read_table(folder / "ledger.parquet") for folder in (whole, resumed)]
    assert ledgers[0].num_rows == 30 * 8
    assert ledgers[0].equals(ledgers[1])
    pd.testing.assert_frame_equal(metrics(whole), metrics(resumed), check_exact=True)
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, resumed)]
    assert summaries[0]["after"] == summaries[1]["after"]
