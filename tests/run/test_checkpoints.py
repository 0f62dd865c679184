"""A checkpoint is resumed from whole, undamaged and by the run it fits, or refused in one line that says why."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch

from tests.commands import save_base
from tests.run.test_run import go, read
from winnow.records.checkpoint import DIGEST, digest, read_checkpoint
from winnow.records.folder import changes
from winnow.run.instantiate import BuildError

LAST = "out/checkpoints/last.ckpt"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_base()
        go("trainer.max_steps=2", "export=false")
    return folder


@pytest.fixture
def here(finished: Path) -> None:
    """The finished run, copied to where the test is."""
    shutil.copytree(finished, ".", dirs_exist_ok=True)


def altered(change: Callable[[dict[str, Any]], None], sealed: bool = False) -> None:
    state = torch.load(LAST, weights_only=True)
    change(state)
    if sealed:
        state[DIGEST] = digest(state)
    torch.save(state, LAST)


def bit(state: dict[str, Any]) -> None:
    name = next(name for name in state["state_dict"] if "q_proj" in name)
    state["state_dict"][name].view(-1)[0] += 1e-3


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state["state_dict"].clear(), r"holds no parameters \(state_dict\)"),
        (lambda state: state.pop("state_dict"), r"holds no parameters \(state_dict\)"),
        (lambda state: state["optimizer_states"].clear(), r"holds no optimizer state"),
        (lambda state: state.pop("loops"), r"holds no training progress"),
        (lambda state: state["winnow"].pop("budget"), r"holds no counters \(winnow\.budget\)"),
        (bit, "is damaged"),
        (lambda state: state["optimizer_states"][0]["state"].clear(), "is damaged"),
        (lambda state: state["winnow"].update(idle=7), "is damaged"),
    ],
)
def test_a_checkpoint_that_is_not_whole_is_refused(change: Any, words: str) -> None:
    altered(change)
    with pytest.raises(ValueError, match=rf"ckpt_path=\S+ .*{words}.*use another"):
        read_checkpoint(LAST)


@pytest.mark.usefixtures("here")
def test_an_earlier_checkpoint_without_a_digest_is_taken_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    altered(lambda state: state.pop(DIGEST))
    read_checkpoint(LAST)
    assert "without a digest" in caplog.text


def lost(state: dict[str, Any]) -> None:
    state["state_dict"].pop("model.lm_head.weight")


def wider(state: dict[str, Any]) -> None:
    state["state_dict"]["model.lm_head.weight"] = torch.zeros(3, 4)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        (lost, (), r"another model or adapter: it has no 1 parameters \(model\.lm_head\.weight\)"),
        (wider, (), r"1 parameters \(model\.lm_head\.weight\) differ in shape, \[3, 4\] in the checkpoint"),
        (None, ("model/lora=default",), r"another model or adapter.*changed: .*model\.lora"),
        (None, ("optimizer=sgd",), r"another optimizer \(AdamW.*optimizer=SGD.*changed: .*optimizer"),
        (None, ("baseline=random",), r"of a run of winnow\.selectors\.filter_weight\.FilterWeight .*resume_method=any"),
        (None, ("resume_method=all",), "resume_method must be same or any"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused_by_what_differs(
    change: Any, options: tuple[str, ...], words: str
) -> None:
    if change is not None:
        altered(change, sealed=True)
    with pytest.raises(BuildError, match=words):
        go(*options, f"ckpt_path={LAST}", out="other")


@pytest.mark.usefixtures("here")
def test_another_method_takes_over_where_that_is_said_and_a_run_at_its_end_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    go("baseline=random", "resume_method=any", f"ckpt_path={LAST}", "callbacks.best=null", "export=false", out="other")
    assert read("summary.json", "other")["budget"]["steps"] == 4
    assert "nothing is left to train" not in caplog.text
    go("trainer.max_steps=2", f"ckpt_path={LAST}", "export=false")
    assert "trainer.max_steps=2, and ckpt_path" in caplog.text and "nothing is left to train" in caplog.text


@pytest.mark.usefixtures("here")
def test_no_step_from_a_checkpoint_measures_the_checkpoint() -> None:
    then = read("summary.json")
    go("trainer.max_steps=0", f"ckpt_path={LAST}", "export=false", out="other")
    now = read("summary.json", "other")
    assert now["before"] == then["before"] and now["after"] == then["after"] != then["before"]
    assert now["budget"]["steps"] == 2 and now["composition"] == then["composition"]


@pytest.mark.usefixtures("here")
def test_a_checkpoint_copied_alone_goes_on_and_says_what_is_missing(caplog: pytest.LogCaptureFixture) -> None:
    Path("alone").mkdir()
    shutil.copy(LAST, "alone/last.ckpt")
    go("ckpt_path=alone/last.ckpt", "callbacks.best=null", "export=false", out="other")
    assert "no ledger in" in caplog.text and "begin at pool 2" in caplog.text
    assert pq.read_table("other/ledger.parquet")["step"].unique().to_pylist() == [2, 3]


def test_the_last_checkpoint_knows_the_measurement_before_it() -> None:
    save_base()
    go("export=false")
    kept = torch.load(LAST, weights_only=True)["callbacks"]
    best = next(state["best_model_score"] for name, state in kept.items() if name.startswith("ModelCheckpoint"))
    measured = pd.read_csv("out/metrics.csv")["target/val_nll"].dropna()
    assert len(measured) == 2 and measured.iloc[-1] < measured.iloc[0]
    assert float(best) == pytest.approx(measured.iloc[-1])


def test_a_run_in_float64_goes_on_without_rounding_to_float32() -> None:
    save_base()
    exact = ("trainer.precision=64-true", "baseline=random", "export=false")
    go(*exact)
    whole = read_checkpoint(LAST)["state_dict"]
    go(*exact, "trainer.max_steps=2", out="on")
    go(*exact, "ckpt_path=on/checkpoints/last.ckpt", out="rest")
    rest = read_checkpoint("rest/checkpoints/last.ckpt")["state_dict"]
    assert {value.dtype for value in whole.values()} == {torch.float64}
    assert all(torch.equal(rest[name], value) for name, value in whole.items())


def test_a_short_folder_name_within_other_words_is_no_change_of_options(finished: Path) -> None:
    shutil.copytree(finished / "out", "on")  # as in mean_one
    text = Path("on/config.json").read_text()
    Path("on/config.json").write_text(re.sub(r'(?<=: )"out(?=["/])', '"on', text))
    assert changes("on/checkpoints/last.ckpt", json.loads(text) | {"ckpt_path": "on/checkpoints/last.ckpt"}) == []
