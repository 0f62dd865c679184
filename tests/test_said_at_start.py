"""What would be wrong later is refused at the start, in the configuration's own keys; what is odd is said."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.commands import CONF, compose, save_base
from tests.test_run import go, read
from winnow.cli import check
from winnow.instantiate import BuildError
from winnow.models import load
from winnow.options import check_options
from winnow.selectors import Oracle
from winnow.signals import Signals


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("reduction=avg", "reduction must be mean or sum, got 'avg'"),
        ("seed=null", "seed must be a whole number, got None"),
        ("seed=-1", "seed must be a whole number from 0"),
        ("seed=1e30", "seed must be a whole number"),
        ("seed=true", "seed must be a whole number"),
        ("trainer.val_check_interval=0", r"trainer\.val_check_interval must be a number of pools >= 1"),
        ("trainer.val_check_interval=-2", r"trainer\.val_check_interval"),
        ("trainer.max_steps=-2", r"trainer\.max_steps must be"),
        ("trainer.max_epochs=true", r"trainer\.max_epochs must be"),
        ("evaluation.batch_size=0", r"evaluation\.batch_size must be a whole number >= 1"),
        ("evaluation.accuracy_limit=-3", r"evaluation\.accuracy_limit must be .* >= 0, or null for all"),
        ("evaluation.nll_limit=0.5", r"evaluation\.nll_limit must be"),
        ("+trainer.gradient_clip_val=1.0", r"trainer\.gradient_clip_val=1\.0 .*clip_norm=X"),
        ("+trainer.accumulate_grad_batches=4", r"accumulate_grad_batches=4 .*pools_per_update=N"),
        ("+trainer.fast_dev_run=true", r"trainer\.fast_dev_run=True .*debug=quick"),
        ("+trainer.overfit_batches=2", r"trainer\.overfit_batches=2 .*data\.corpus\.limit"),
        ("+trainer.limit_train_batches=2", r"trainer\.limit_train_batches=2 .*trainer\.max_steps"),
        ("data.num_workers=-1", r"data\.num_workers must be at least 0"),
        ("data.pool_size=null", r"data\.pool_size must be a whole number, got None"),
        ("data.pool_size=true", r"data\.pool_size must be a whole number, got True"),
        ("data.pool_size=0", r"data\.pool_size must be at least 1"),
        ("selector.filter_size=true", r"selector\.filter_size must be a whole number, got True"),
        ("model.path=empty", r"model\.path=empty: the folder holds no model \(config\.json\) and no adapter"),
        ("name=a/b", "name=a/b is part of the path"),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_measured(option: str, words: str) -> None:
    save_base()
    Path("empty").mkdir()
    with pytest.raises(BuildError, match=words) as caught:
        go(option)
    assert "\n" not in str(caught.value)


def test_options_as_they_come_are_in_range() -> None:
    for experiment in ("demo", "reference"):
        check_options({"name": "a.B", "seed": 0})
        cfg: Any = compose(f"experiment={experiment}")
        check_options({"seed": cfg.seed, "reduction": cfg.reduction, "trainer": dict(cfg.trainer)})


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a\\b", "'x/y'"])
def test_a_name_that_leaves_its_folder_is_refused_before_hydra_makes_it(name: str) -> None:
    assert "the name of one folder" in check([f"name={name}"], CONF, "train")[0]
    assert "the name of one folder" in check(["-m", f"name=good,{name}"], CONF, "train")[0]
    assert not check(["name=my.run-1"], CONF, "train")


def test_more_target_rows_than_there_are_is_said(caplog: pytest.LogCaptureFixture) -> None:
    runs.datamodule(target_batch_size=10)
    assert not caplog.records
    runs.datamodule(target_batch_size=11)
    assert "task0 has 10 validation examples, and every target batch 11" in caplog.text


def test_an_oracle_of_groups_that_the_stream_has_not_stops_by_name() -> None:
    oracle = Oracle(filter_size=1)
    meta = {"group": ["maths", "code"], "noise": ["", ""]}
    signals = Signals(valid=torch.ones(2, dtype=torch.bool), tokens=torch.ones(2, dtype=torch.long), meta=meta)
    for _ in range(9):
        oracle(signals, torch.Generator())
    with pytest.raises(ValueError, match=r"selector\.groups=\['in', 'near'\].*code, maths"):
        oracle(signals, torch.Generator())


def test_an_adapter_goes_on_from_where_it_was() -> None:
    save_base()
    go("model/lora=default")
    first = read("summary.json")
    assert first["after"] != first["before"]
    go("model.path=out/model", out="second")
    assert read("summary.json", "second")["before"] == first["after"]
    adapted = load("out/model").model
    trained = [name for name, held in adapted.named_parameters() if held.requires_grad]
    assert trained and all("lora_" in name for name in trained)
    with pytest.raises(BuildError, match=r"model\.path=out/model holds an adapter.*leave model/lora out"):
        go("model.path=out/model", "model/lora=default", out="third")
    shutil.move("base", "elsewhere")
    Path("out/model/adapter_model.safetensors").rename("adapter.bin")
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load("out/model")


def test_an_adapter_is_a_reference_too() -> None:
    save_base()
    go("model/lora=default", "evaluation.nll_limit=0")
    go("baseline=rho_loss", "scoring.reference=out/model", "evaluation.nll_limit=0", "export=false", out="second")
    assert read("status.json", "second")["state"] == "finished"
