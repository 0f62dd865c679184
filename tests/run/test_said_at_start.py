"""What would be wrong later is refused at the start, in the configuration's own keys; what is odd is said."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping

from tests import runs
from tests.commands import CONF, commands, compose, configured, save_base
from tests.run.test_run import go, read
from winnow.models import load
from winnow.run.cli import check
from winnow.run.instantiate import BuildError, build
from winnow.run.rows import datamodule
from winnow.run.startup import check_callbacks, check_start
from winnow.run.trainer_options import PASSED_ON, REPLACED, check_intervals, check_trainer
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
        ("model.trust_remote_code=no", r"model\.trust_remote_code must be true or false, got 'no'"),
        ("model.local_files_only=off", r"model\.local_files_only must be true or false"),
        ("export='false'", "export must be true or false, got 'false'"),
        ("record_tasks=no", "record_tasks must be true or false"),
        ("scoring.verify=no", r"scoring\.verify must be true or false"),
        ("scoring.pack=null", r"scoring\.pack must be true or false, got None"),
        ("callbacks.records.ledger=off", r"callbacks\.records\.ledger must be true or false"),
        ("trainer.enable_progress_bar=no", r"trainer\.enable_progress_bar must be true or false"),
        ("scoring.pool_micro_batch=2.0", r"scoring\.pool_micro_batch must be a whole number or null, got 2\.0"),
        ("data.target_batch_size=1e30", r"data\.target_batch_size must be a whole number"),
        ("data.corpus.noise.wrong=nan", r"data\.corpus\.noise rates must be >= 0"),
        ("data.corpus.targets.chains=nan", "must be > 0"),
        ("data.corpus.mixture.chains.weight=null", r"data\.corpus\.mixture\.chains\.weight must be a number, got None"),
        ("optimizer.weight_decay=nan", r"optimizer\.weight_decay must be a number, got nan"),
        ("+data.val_limit=-3", r"data\.val_limit must be at least 1"),
        ("scoring.reduction=avg", r"scoring\.reduction.*got 'avg'"),
        ("trainer.check_val_every_n_epoch=0", r"trainer\.check_val_every_n_epoch must be"),
        ("+trainer.limit_test_batches=0.5", r"limit_test_batches=0\.5 .*evaluation\.nll_limit"),
        ("+trainer.gradient_clip_algorithm=value", "clip_norm=X clips by norm"),
        ("+trainer.reload_dataloaders_every_n_epochs=1", "drawn anew at every epoch"),
        ("+trainer.sync_batchnorm=true", "one process is what there is"),
        ("+trainer.logger=true", "use logger=wandb, csv"),
        ("+trainer.callbacks=[{}]", r"\+callbacks\.NAME="),
        ("+trainer.plugins=[x]", r"trainer\.plugins.* of their own"),
        ("+trainer.enable_checkpointing=false", r"callbacks\.last=null callbacks\.best=null"),
        ("+trainer.default_root_dir=x", r"hydra\.run\.dir=FOLDER"),
        ("+trainer.model_registry=x", "export=true"),
        ("+trainer.max_step=3", r"no option of lightning\.Trainer; did you mean trainer\.max_steps"),
        ("+trainer.min_steps=10", r"trainer\.min_steps=10 is more than trainer\.max_steps=4"),
        ("+trainer.min_epochs=-2", r"trainer\.min_epochs must be a whole number >= 0"),
        ("trainer.log_every_n_steps=-1", r"trainer\.log_every_n_steps must be"),
        ("trainer.num_sanity_val_steps=-3", r"trainer\.num_sanity_val_steps must be .* or -1 for all"),
        ("trainer.max_steps=null", r"trainer\.max_steps must be a whole number"),
        ("trainer.precision=fp8", r"trainer\.precision=fp8: give 32-true"),
        ("trainer.precision=transformer-engine", r"trainer\.precision=transformer-engine: give 32-true"),
        ("trainer.val_check_interval=0.5", r"set trainer\.check_val_every_n_epoch=1"),
        ("trainer.limit_val_batches=-1", r"trainer\.limit_val_batches must be a whole number of batches"),
        ("trainer.limit_val_batches=0.5", r"limit_val_batches=0\.5 of the 1 validation batches .*limit_val_batches=1"),
        ("callbacks.best.monitor=abc", r"callbacks\.best\.monitor=abc is measured nowhere: give target/val_nll"),
        ("callbacks.best.monitor=target/chains/val_nll", r"measured nowhere: give target/val_nll"),
        (
            "+callbacks.a={_target_:lightning.pytorch.callbacks.GradientAccumulationScheduler,scheduling:{0:2}}",
            r"callbacks\.a: GradientAccumulationScheduler .*pools_per_update=N",
        ),
        ("optimizer.eps=0", r"optimizer\.eps=0: .*above 0"),
        ("+model.lora={lora_dropout:-1}", r"model\.lora\.lora_dropout must be a share in \[0, 1\), got -1"),
        ("+model.lora={lora_dropout:1}", r"model\.lora\.lora_dropout must be"),
        ("+model.lora={lora_alpha:-1}", r"model\.lora\.lora_alpha must be above 0"),
        ("+model.lora={r:0}", r"model\.lora\.r must be a whole number >= 1"),
        ("ckpt_path=-1", r"ckpt_path must be the file of a checkpoint, such as .*; got -1"),
        ("ckpt_path=0", r"ckpt_path must be the file"),
        ("ckpt_path=true", r"ckpt_path must be the file"),
        (
            "+trainer.strategy=ddp_spawn",
            r"trainer\.strategy=ddp_spawn: its processes give back weights and no counters",
        ),
    ],
)
def test_an_option_out_of_range_is_refused_before_anything_is_measured(option: str, words: str) -> None:
    save_base()
    Path("empty").mkdir()
    with pytest.raises(BuildError, match=words) as caught:
        go(option)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["optimizer=muon", "optimizer.ns_steps=0"], r"optimizer\.ns_steps must be a whole number >= 1, got 0"),
        (["optimizer=muon", "optimizer.ns_steps=-2"], r"optimizer\.ns_steps must be a whole number >= 1"),
        (["optimizer=muon", "optimizer.adamw_eps=0"], r"optimizer\.adamw_eps=0"),
        (["optimizer=adafactor", "optimizer.eps=[0,0.001]"], r"optimizer\.eps=\[0, 0\.001\]"),
        (["+trainer.min_steps=2", "budget.examples=4"], r"trainer\.min_steps=2 would go on past what budget allows"),
        (["model/lora=default", "model.lora.target_modules=nothere"], "^model: Target modules nothere not found"),
        (
            ["trainer.val_check_interval=0.5", "trainer.check_val_every_n_epoch=1"],
            r"val_check_interval=0\.5 is a share of an epoch, and this stream is endless",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_measured(
    options: list[str], words: str
) -> None:
    save_base()
    with pytest.raises(BuildError, match=words):
        go(*options)
    assert not Path("out/metrics.csv").exists()


def test_every_option_of_lightnings_trainer_is_replaced_or_passed_on() -> None:
    """An option that a later version brings has to be looked at."""
    known = set(inspect.signature(lightning.Trainer.__init__).parameters) - {"self"}
    assert known == REPLACED.keys() | PASSED_ON and not REPLACED.keys() & PASSED_ON


def test_what_lightning_does_by_itself_is_let_through() -> None:
    check_trainer({
        "_target_": "lightning.Trainer", "max_steps": 8, "max_epochs": None, "min_steps": 2, "max_time": "00:01:00:00",
        "detect_anomaly": True, "deterministic": "warn", "profiler": "simple", "use_distributed_sampler": False,
        "precision": 64, "plugins": [], "overfit_batches": 0.0, "fast_dev_run": False, "accelerator": "cpu",
        "val_check_interval": "00:00:10:00", "limit_val_batches": 1.0, "num_sanity_val_steps": -1,
    })  # fmt: skip
    check_intervals({"limit_val_batches": 0.5, "val_check_interval": 3}, {"a": 2, "b": 3}, 3)
    with pytest.raises(ValueError, match=r"val_check_interval=4 is more than the 3 pools of an epoch"):
        check_intervals({"val_check_interval": 4}, {"a": 2}, 3)


class Logs(Callback):
    """Measures something of its own."""


def test_what_a_callback_of_ones_own_may_log_can_be_watched() -> None:
    watching = EarlyStopping(monitor="mine/score")
    check_callbacks({"stop": watching, "logs": Logs()}, ["a"])
    with pytest.raises(ValueError, match=r"callbacks\.stop\.monitor=mine/score is measured nowhere"):
        check_callbacks({"stop": watching}, ["a"])
    check_callbacks({"stop": EarlyStopping(monitor="target/a/val_nll")}, ["a", "b"])


def test_options_as_they_come_are_in_range() -> None:
    for experiment in ("demo", "reference"):
        check_start({"name": "a.B", "seed": 0})
        cfg: Any = compose(f"experiment={experiment}")
        check_start({"seed": cfg.seed, "reduction": cfg.reduction, "trainer": dict(cfg.trainer)})


@pytest.mark.parametrize("name", ["../../evil", "/tmp/evil", "..", "a\\b", "'x/y'"])
def test_a_name_that_leaves_its_folder_is_refused_before_hydra_makes_it(name: str) -> None:
    assert "the name of one folder" in check([f"name={name}"], CONF, "train")[0]
    assert "the name of one folder" in check(["-m", f"name=good,{name}"], CONF, "train")[0]
    assert not check(["name=my.run-1"], CONF, "train")


def test_a_name_is_looked_at_as_it_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVIL", "../../evil")
    assert "name=../../evil is part of the path" in check(["name='${oc.env:EVIL}'"], CONF, "train")[0]


def test_more_target_rows_than_there_are_is_said(caplog: pytest.LogCaptureFixture) -> None:
    runs.datamodule(target_batch_size=10)
    assert not caplog.records
    runs.datamodule(target_batch_size=11)
    assert "task0 has 10 validation examples, and every target batch 11" in caplog.text


def test_an_oracle_of_groups_that_the_stream_has_not_is_told_before_a_short_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of an endless stream a sample is looked at, which may miss a rare group: a warning, not a refusal."""
    save_base()
    go("baseline=oracle", "selector.groups=[alpha]", "export=false")
    assert "selector.groups=['alpha'] names, but 'far', 'in', 'near'" in caplog.text


def test_an_oracle_that_meets_none_of_its_groups_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    oracle = Oracle(filter_size=1)
    meta = {"group": ["maths", "code"], "noise": ["", ""]}
    signals = Signals(valid=torch.ones(2, dtype=torch.bool), tokens=torch.ones(2, dtype=torch.long), meta=meta)
    for _ in range(30):
        oracle(signals, torch.Generator())
    assert caplog.text.count("selector.groups=['in', 'near'] names, but 'code', 'maths'") == 1


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


def rows(path: str, start: int, **names: str) -> None:
    """A file of four questions, under names of fields of its own."""
    lines = [runs.example(start + number) for number in range(8)]
    texts = [json.dumps({names["prompt"]: f"{one.prompt} {start}", names["response"]: one.response}) for one in lines]
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("\n".join(texts) + "\n")


PRINTED = [command for name in ("jsonl", "hub") for command in commands(CONF / "data" / f"{name}.yaml") if command[1:]]


@pytest.mark.parametrize("command", PRINTED, ids=lambda command: command[0])
def test_a_printed_command_reads_data_as_it_stands(command: list[str]) -> None:
    """Built up to the first pool; of the hub's own data sets a folder stands in for what would be downloaded."""
    names = {"prompt": "question", "response": "answer"} if command[0] == "data=hub" else {}
    for at, split in enumerate(("train", "val", "test")):
        rows(f"{split}.jsonl", 100 * at, **{"prompt": "prompt", "response": "response", **names})
        rows(f"FOLDER/{split}.jsonl", 100 * at, **{"prompt": "prompt", "response": "response", **names})
    local = [
        f"data.corpus.targets.gsm8k.{one}={{path: FOLDER, name: main, split: {split}}}"
        for one, split in (("val", "validation"), ("test", "test"))
    ]
    with configured(*command, *(local if names else []), "data.pool_size=4") as cfg:
        batch = datamodule(cfg, build(cfg.data.corpus), runs.tokenizer()).steps[(0, 0)]
    assert len(batch["pool"]["labels"]) == 4 and len(batch["target"]["labels"]) == 8


def test_the_key_that_a_message_names_can_be_typed_as_it_stands() -> None:
    rows("train.jsonl", 0, prompt="q", response="a")
    rows("val.jsonl", 100, prompt="q", response="a")
    rows("test.jsonl", 200, prompt="q", response="a")
    command = PRINTED[0]
    with configured(*command) as cfg, pytest.raises(BuildError) as caught:
        build(cfg.data.corpus)
    key = re.findall(r"data\.corpus\.fields\.\w+", str(caught.value))[0]
    fixed = [*command, f"{key}=q", "data.corpus.fields.response=a"]
    assert not check(fixed, CONF, "train")
    with configured(*fixed) as cfg:
        assert build(cfg.data.corpus).stream.size == 8
