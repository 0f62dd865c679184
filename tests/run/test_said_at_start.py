"""What would be wrong later is refused at the start, in the configuration's own keys; what is odd is said."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import runs
from tests.commands import CONF, commands, compose, configured, save_base
from tests.run.test_run import go, read
from winnow.models import load
from winnow.run.cli import check
from winnow.run.instantiate import BuildError, build
from winnow.run.options import check_options
from winnow.run.rows import datamodule
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
        ("+trainer.strategy=ddp_spawn", r"trainer\.strategy=ddp_spawn is for several processes"),
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
