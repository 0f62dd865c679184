"""What was begun by the code of an earlier layout goes on: a checkpoint, and the sweep that it is of.

``tests/before`` holds a job of a sweep that was killed after three of its four pools, by commit bb674e2.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import SMALL, command_line, save_base
from winnow.records.ledger import read
from winnow.run import run

BEFORE = Path(__file__).parents[1] / "before"
OPTIONS = ("scoring.target_ema=0.5", "record_tasks=true", "optimizer=muon", "callbacks.progress=null", *SMALL)


def test_an_interrupted_sweep_of_an_earlier_layout_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    shutil.copytree(BEFORE, "sweep")
    job = Path("sweep/0-filter_weight")
    done = read(job).to_pandas()
    assert sorted(done["step"].unique()) == [0, 1]
    with caplog.at_level("WARNING", logger="winnow.records.folder"):
        command_line(monkeypatch, run, "-m", "seed=0", "hydra.sweep.dir=sweep", *OPTIONS)
    assert "running earlier, resumed from its last.ckpt" in caplog.text
    assert json.loads((job / "status.json").read_text())["state"] == "finished"
    rows = read(job).to_pandas()
    assert rows["step"].tolist() == [step for step in range(4) for _ in range(8)]
    assert rows[rows["step"] < 2].equals(done)


def test_a_checkpoint_of_an_earlier_layout_has_the_keys_of_todays(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    command_line(monkeypatch, run, "seed=0", "hydra.run.dir=now", *OPTIONS)
    old, new = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        for folder in (BEFORE / "0-filter_weight", Path("now"))
    )
    assert old.pop("callbacks").keys() == new.pop("callbacks").keys()
    assert not missing(keys(old), keys(new))
    added = {"intake"} | {name for name in new["winnow"]["budget"] if name not in old["winnow"]["budget"]}
    assert set(missing(keys(new), keys(old))) == added
    assert all(name.startswith(("flops_", "tokens_", "seconds_")) for name in added - {"intake", *COUNTED_NOW})


COUNTED_NOW = ("examples_drawn", "steps_scored", "bytes")


def missing(some: Any, others: Any) -> list[str]:
    """Names that the others lack, at whatever depth."""
    if not isinstance(some, dict):
        return []
    found = [name for name in some if name not in (others or {})]
    return found + [name for key in some if key not in found for name in missing(some[key], others[key])]


def keys(value: object) -> object:
    """Names of nested entries, as far as they are names."""
    if not isinstance(value, dict):
        return None
    return {name: keys(child) for name, child in value.items() if isinstance(name, str)}
