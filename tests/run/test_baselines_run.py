"""``baseline=<each>`` trains the embedded default model on the embedded tasks, at the budget it says, and resumes."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch

from tests.cases import CASES
from tests.commands import CONF, compose, configured
from winnow import selectors
from winnow.models.loading import tiny_path
from winnow.run import run
from winnow.run.instantiate import build

BASELINES = sorted(path.stem for path in (CONF / "baseline").glob("*.yaml"))
STATEFUL = [
    name
    for name in BASELINES
    if hasattr(getattr(selectors, compose(f"baseline={name}").selector._target_.rpartition(".")[2]), "state_dict")
]
POOL, KEPT, STEPS = 4, 2, 2
SMALL = (
    f"data.pool_size={POOL}",
    "data.target_batch_size=2",
    "data.max_length=48",
    "data.corpus.val_size=4",
    "data.corpus.test_size=2",
    f"trainer.max_steps={STEPS}",
    "evaluation.accuracy_limit=0",
    "callbacks.best=null",
    "scoring.verify=false",  # costs as much as a step, and has its own tests
    "logger=none",
)
WHOLE_POOL = {"full", "adapt"}
UP_TO = {"filter_weight", "grad_match", "craig", "influence_distillation"}
"""May stop before filter_size, where no further candidate helps."""


OF_EACH_KIND = {"filter_weight", "max_loss", "full", "tracin", "gate_only", "rho_loss"}
"""Methods by products, by losses, by a reference, of the whole pool (by sketches: opus, with Muon, below); the others'
kept sizes and training are held by their contracts in tests/selectors and tests/training."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two methods choose by: a recorded run's folder, and reference losses of the stream by id."""
    folder = tmp_path_factory.mktemp("shared")
    go("baseline=random", f"selector.filter_size={KEPT}", "export=false", out=folder / "recorded")
    ids = pq.read_table(folder / "recorded" / "ledger.parquet")["id"].to_pylist()
    losses = {name: 1.0 + at % 5 for at, name in enumerate(dict.fromkeys(ids))}
    pd.DataFrame({"id": losses.keys(), "loss": losses.values()}).to_csv(folder / "reference.csv", index=False)
    return folder


def go(*overrides: str, out: Path) -> None:
    with configured(*SMALL, *overrides, out=str(out)) as cfg:
        run(cfg)


def arguments(name: str, shared: Path) -> list[str]:
    given = [f"baseline={name}"]
    if "filter_size" in compose(f"baseline={name}").selector:
        given.append(f"selector.filter_size={KEPT}")
    if name == "replay":
        given.append(f"selector.ledger={shared / 'recorded'}")
    if name == "gate_only":
        given.append("gate=ngrams")
    if name == "rho_loss":
        given.append(f"scoring.reference={shared / 'reference.csv'}")
    return given


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in OF_EACH_KIND else [pytest.mark.long]) for name in BASELINES]
)
def test_it_trains_the_default_model_at_its_budget(name: str, shared: Path, tmp_path: Path) -> None:
    go(*arguments(name, shared), "callbacks.last=null", out=tmp_path / "run")
    before, after = weights(tiny_path()), weights(tmp_path / "run" / "model")
    assert set(before) == set(after)
    for key, value in after.items():
        assert bool(value.isfinite().all()) and not torch.equal(value, before[key]), key

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["name"] == name
    budget, ledger = summary["budget"], pq.read_table(tmp_path / "run" / "ledger.parquet").to_pandas()
    kept = ledger[ledger["kept"]]
    assert len(ledger) == budget["examples_drawn"] == STEPS * POOL * (4 if name == "gate_only" else 1)
    assert ledger["passed"].sum() == budget["examples_seen"] == STEPS * POOL
    assert len(kept) == budget["examples_trained"]
    by_step = kept.groupby("step").size().reindex(range(STEPS), fill_value=0).tolist()
    if name in WHOLE_POOL:
        assert by_step == [POOL] * STEPS
    elif name in UP_TO:
        assert all(1 <= size <= KEPT for size in by_step)
    else:
        assert by_step == [KEPT] * STEPS
    needs = build(compose(*arguments(name, shared)).selector).needs
    asked = needs.target or name == "gate_only"  # which the gate in front of it learns from
    assert budget["examples_target"] == (2 * STEPS if asked else 0)


def test_opus_takes_the_updates_of_muon(tmp_path: Path) -> None:
    go("baseline=opus", "optimizer=muon", f"selector.filter_size={KEPT}", "callbacks.last=null", out=tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["budget"]["examples_trained"] == STEPS * KEPT
    before, after = weights(tiny_path()), weights(tmp_path / "run" / "model")
    assert all(not torch.equal(value, before[key]) for key, value in after.items())


def test_the_methods_with_a_state_are_those_known() -> None:
    assert sorted({case.name for case in CASES if case.state} | {"replay"}) == STATEFUL


# Lightning looks for the position in the data loader; it is in the data module (StepSampler).
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("name", STATEFUL)
def test_it_resumes_as_if_never_stopped(name: str, shared: Path, tmp_path: Path) -> None:
    given = arguments(name, shared)
    go(*given, "callbacks.last=null", out=tmp_path / "whole")
    go(*given, f"trainer.max_steps={STEPS // 2}", "callbacks.last.every=1", "export=false", out=tmp_path / "half")
    checkpoint = tmp_path / "half" / "checkpoints" / "last.ckpt"
    go(*given, f"ckpt_path={checkpoint}", "callbacks.last=null", out=tmp_path / "resumed")
    whole, resumed = (weights(tmp_path / folder / "model") for folder in ("whole", "resumed"))
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    ledgers = [pq.read_table(tmp_path / folder / "ledger.parquet") for folder in ("whole", "resumed")]
    assert ledgers[0].equals(ledgers[1]) and ledgers[0].num_rows == STEPS * POOL
