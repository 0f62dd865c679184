"""A run leaves its records whatever ends it, says how to go on, and leaves the process as it was."""

from __future__ import annotations

import json
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from lightning.pytorch.callbacks import Callback
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.commands import SMALL, configured, save_base
from winnow.lm.finite import NotFinite
from winnow.records.folder import changes
from winnow.run import execute as running
from winnow.run import run
from winnow.run.instantiate import BuildError

IDS = torch.arange(12).reshape(1, 12)
ERRORS = {"interrupt": KeyboardInterrupt, "failure": ZeroDivisionError}


class Stop(Callback):
    """Ends the run after a number of pools."""

    def __init__(self, error: str, after: int) -> None:
        self.error, self.after = ERRORS[error], after

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        if pl_module.budget.steps == self.after:
            raise self.error("stopped by the test")


class Disturb(Callback):
    """Does to the process what loggers do, and looks at the model in training."""

    seen: tuple[bool, ...] = ()

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        os.environ["WINNOW_DISTURBED"] = "1"
        warnings.filterwarnings("ignore")
        type(self).seen += (all(part.training for part in pl_module.modules()),)


def go(*overrides: str, out: str = "out") -> float | None:
    with configured(*SMALL, *overrides, out=out) as cfg:
        return run(cfg)


def read(name: str, out: str | Path = "out") -> Any:
    return json.loads((Path(out) / name).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float | None]:
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_base()
        return folder, go()


def test_a_finished_run_leaves_its_records(finished: tuple[Path, float | None]) -> None:
    folder, nll = finished
    out = folder / "out"
    assert read("status.json", out)["state"] == "finished"
    assert read("config.json", out)["trainer"]["max_steps"] == 4
    assert read("config.json", out)["name"] == "filter_weight", "the configuration is written as resolved"
    assert read("provenance.json", out)["packages"]["torch"] == torch.__version__
    summary = read("summary.json", out)
    assert nll == summary["after"]["chains/nll"] != summary["before"]["chains/nll"]
    assert summary["budget"]["examples_seen"] == 4 * 8
    assert sum(row["kept"] for row in summary["composition"].values()) == summary["budget"]["examples_trained"]
    metrics = pd.read_csv(out / "metrics.csv")
    assert sorted(set(metrics["step"])) == [0, 1, 2, 3]
    assert metrics["target/val_nll"].count() == 2
    ledger = pq.read_table(out / "ledger.parquet").to_pandas()
    assert len(ledger) == 4 * 8 and ledger["kept"].sum() == summary["budget"]["examples_trained"]
    for name in ("last", "best"):
        state = torch.load(out / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert ("optimizer_states" in state) == (name == "last")


def test_the_exported_model_is_the_trained_one_to_plain_transformers(finished: tuple[Path, float | None]) -> None:
    folder, _ = finished
    state = torch.load(folder / "out" / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    trained = AutoModelForCausalLM.from_pretrained(folder / "base")
    before = trained(IDS).logits
    trained.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    exported = AutoModelForCausalLM.from_pretrained(folder / "out" / "model")
    assert torch.equal(exported(IDS).logits, trained(IDS).logits)
    assert not torch.equal(exported(IDS).logits, before)


def test_the_exported_adapter_is_the_trained_one_to_plain_peft() -> None:
    save_base()
    go("model/lora=default", "model.lora.r=2")
    adapter = safetensors.torch.load_file("out/model/adapter_model.safetensors")
    state = torch.load("out/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert {name.replace(".default", "").removeprefix("model.") for name in state} == set(adapter)
    base = AutoModelForCausalLM.from_pretrained("base")
    before = base(IDS).logits
    loaded = PeftModel.from_pretrained(base, "out/model")
    held = {name: value for name, value in loaded.state_dict().items() if "lora_" in name}
    assert all(torch.equal(state[f"model.{name}"], value) for name, value in held.items())
    assert not torch.equal(loaded(IDS).logits, before)


@pytest.mark.parametrize(("error", "ended"), [("interrupt", "interrupted"), ("failure", "failed")])
def test_what_a_broken_run_had_is_kept_and_it_says_how_to_go_on(
    error: str, ended: str, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(ERRORS[error]):
        go(f"+callbacks.stop={{_target_: {__name__}.Stop, error: {error}, after: 3}}")
    assert signal.getsignal(signal.SIGINT) is handler
    status = read("status.json")
    assert status["state"] == ended and ERRORS[error].__name__ in status["error"]
    assert Path(status["ckpt_path"]) == Path("out/checkpoints/last.ckpt")
    assert "This run can go on from" in caplog.text and "last.ckpt" in caplog.records[-1].getMessage()
    assert pq.read_table("out/ledger.parquet").num_rows == 3 * 8
    assert not Path("out/summary.json").exists()

    if error == "interrupt":
        go(f"ckpt_path={status['ckpt_path']}")
        assert read("status.json")["state"] == "finished"
        assert pq.read_table("out/ledger.parquet").num_rows == 4 * 8, "resumed in its own folder"


@pytest.mark.parametrize("method", ["selector=filter_weight", "baseline=max_loss", "baseline=random"])
def test_a_run_whose_losses_are_all_nan_stops_at_once(method: str) -> None:
    save_base()
    with pytest.raises(
        NotFinite, match=r"pool 1: none of its 8 losses is finite; .*learning rate of 1e\+30.*optimizer\.lr"
    ):
        go(
            method,
            "optimizer.lr=1e30",
            "scheduler=none",
            "clip_norm=null",
            "trainer.max_steps=50",
            "callbacks.last.every=1",
        )
    assert read("status.json")["state"] == "failed"
    assert pd.read_csv("out/metrics.csv")["step"].max() == 0
    state = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    assert state["winnow"]["budget"]["steps"] == 1, "what was good is not overwritten"


def test_the_process_is_left_as_it_was_and_dropout_is_on_in_training() -> None:
    save_base(dropout=0.5)
    Disturb.seen = ()
    disturbed = f"+callbacks.disturb={{_target_: {__name__}.Disturb}}"
    with configured(*SMALL, disturbed, "~scheduler", "evaluation.nll_limit=0") as cfg:
        environment, filters = dict(os.environ), list(warnings.filters)
        assert run(cfg) is None, "not measured"
        assert dict(os.environ) == environment and list(warnings.filters) == filters
    assert Disturb.seen == (True,) * 4


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["selector.filter_size=9"], r"filter_size=9 is more than the pool's 8 candidates: lower selector.filter_size"),
        (["selector.filter_size=0"], "selector.filter_size"),
        (["selector.filter=foo"], "selector.filter must be one of top, cosine, omp, nnls, greedy; got 'foo'"),
        (["+selector.foo=1"], r"selector: .*unexpected keyword argument 'foo'"),
        (["selector=custom", "selector._target_=winnow.Foo"], r"selector: Error loading 'winnow.Foo'"),
        (["scoring.geometry=foo"], "'auto', 'identity' or a Geometry"),
        (["scoring.layers=nosuch"], "layers"),
        (["optimizer=sgd", "optimizer._target_=torch.optim.RMSprop"], "no geometry is known for the optimizer RMSprop"),
        (
            ["baseline=less", "optimizer=sgd", "optimizer._target_=torch.optim.RMSprop"],
            "no geometry is known for the optimizer RMSprop",
        ),
        (["optimizer.lr=-1"], "optimizer: Invalid learning rate: -1"),
        (["optimizer.betas=1"], "optimizer: "),
        (["clip_norm=-1.0"], "clip_norm must be a number > 0"),
        (["pools_per_update=two"], "pools_per_update must be a whole number, got 'two'"),
        (["seed=x"], "seed must be a whole number, got 'x'"),
        (["scoring.sketch_dim=8.5"], "scoring.sketch_dim must be a whole number, got 8.5"),
        (["scoring.pool_micro_batch=two"], "scoring.pool_micro_batch must be a whole number or null, got 'two'"),
        (["data.pool_size=x"], "data.pool_size must be a whole number, got 'x'"),
        (["optimizer.lr=fast"], "optimizer.lr must be a number, got 'fast'"),
        (["pools_per_update=0"], "pools_per_update must be a whole number, at least 1"),
        (["data.pool_size=0", "selector.filter_size=0"], "data.pool_size must be at least 1"),
        (["data.loss_on=all"], "data.loss_on must be one of assistant, last; got 'all'"),
        (["data.truncate=middle"], "data.truncate must be one of right, left, drop; got 'middle'"),
        (["data.join_turns=maybe"], "data.join_turns must be true or false, got 'maybe'"),
        (["data.cache_dir=7"], "data.cache_dir must be a folder, or null, got 7"),
        (["+data.foo=1"], "data: .*unexpected keyword argument 'foo'"),
        (["trainer.precision=foo"], "trainer.precision=foo"),
        (["model.path=nowhere"], "model.path='nowhere'"),
        (["model.path=???"], "no value for model.path: give model.path="),
        (["baseline=full", "selector=random"], "contradict each other"),
        (["ckpt_path=nowhere.ckpt"], "ckpt_path=nowhere.ckpt: no such file"),
        (["ckpt_path=base/config.json"], "ckpt_path=base/config.json cannot be read as a checkpoint"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_built_is_refused_before_anything_is_measured(
    overrides: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base()
    monkeypatch.setattr(running, "evaluate", lambda *_args, **_more: pytest.fail("measured first"))
    with pytest.raises(BuildError, match=message):
        go(*overrides)
    status = read("status.json")
    assert status["state"] == "failed" and status["error"].startswith("BuildError: ")


@pytest.mark.parametrize("method", ["random", "max_loss", "tracin"])
def test_an_optimizer_of_unknown_geometry_trains_with_what_asks_nothing_of_it(method: str) -> None:
    save_base()
    go(f"baseline={method}", "optimizer=sgd", "optimizer._target_=torch.optim.RMSprop", "trainer.max_steps=2")
    assert read("summary.json")["budget"]["updates"] == 2


def test_a_run_resumed_with_other_options_says_which(caplog: pytest.LogCaptureFixture) -> None:
    save_base()
    go()
    last = "out/checkpoints/last.ckpt"
    assert changes(last, read("config.json") | {"ckpt_path": last}) == []
    go(f"ckpt_path={last}", "trainer.max_steps=6", "scoring.update=one_pass")
    message = next(record.getMessage() for record in caplog.records if "other options" in record.getMessage())
    assert sorted(message.split("options: ")[1].split("; ")) == [
        "scoring.update was two_pass, is one_pass",
        "trainer.max_steps was 4, is 6",
    ]
    assert read("summary.json")["budget"]["steps"] == 6


def test_a_checkpoint_that_is_not_there_is_no_way_to_go_on(caplog: pytest.LogCaptureFixture) -> None:
    save_base()
    with pytest.raises(BuildError, match="no such file"):
        go("ckpt_path=nowhere.ckpt")
    assert "can go on" not in caplog.text
    assert read("status.json")["ckpt_path"] is None


def test_weights_alone_are_no_place_to_resume_from(finished: tuple[Path, float | None]) -> None:
    folder, _ = finished
    with pytest.raises(BuildError, match=r"best\.ckpt holds weights only .* use last\.ckpt"):
        go(f"model.path={folder / 'base'}", f"ckpt_path={folder / 'out' / 'checkpoints' / 'best.ckpt'}")


def test_a_folder_with_a_run_in_it_is_not_written_over(finished: tuple[Path, float | None]) -> None:
    folder, _ = finished
    kept = {path: path.read_bytes() for path in (folder / "out").glob("*.*")}
    says = r"holds a run already \(metrics\.csv.*hydra\.run\.dir.*ckpt_path=.*last\.ckpt"
    with pytest.raises(BuildError, match=says):
        go(f"model.path={folder / 'base'}", out=str(folder / "out"))
    assert {path: path.read_bytes() for path in (folder / "out").glob("*.*")} == kept


def test_two_runs_do_not_share_a_folder_at_the_same_time() -> None:
    Path("out").mkdir()
    Path("out/status.json").write_text('{"state": "running"}')
    with pytest.raises(BuildError, match=r"status\.json \(running\)"):
        go()


def test_a_replay_whose_ids_are_not_in_the_stream_is_refused_before_anything_is_measured(
    finished: tuple[Path, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted over the whole ledger: with another seed all of it, in pools of another size what moved."""
    ledger = finished[0] / "out" / "ledger.parquet"
    rows = pq.read_table(ledger).to_pandas()
    kept = rows[rows["kept"]]
    save_base()
    again = ("baseline=replay", f"selector.ledger={ledger}")
    monkeypatch.setattr(running, "evaluate", lambda *_args, **_more: pytest.fail("measured first"))
    with pytest.raises(
        BuildError, match=rf"^{len(kept)} of the {len(kept)} examples .* {kept['id'].nunique()} of these"
    ):
        go(*again, "seed=1")
    moved = [int(name.rsplit("-", 1)[1]) // 16 != step for step, name in zip(kept["step"], kept["id"], strict=True)]
    with pytest.raises(BuildError, match=rf"^{sum(moved)} of the {len(kept)} .*; 0 of these .* first 4 pools"):
        go(*again, "data.pool_size=16", out="pools")
    assert 0 < sum(moved) < len(kept)
    with pytest.raises(BuildError, match=r"ends after 4 pools: set trainer\.max_steps to that, not 5"):
        go(*again, "trainer.max_steps=5", out="long")


def test_a_replay_of_the_same_stream_keeps_the_same(finished: tuple[Path, float | None]) -> None:
    save_base()
    go("baseline=replay", f"selector.ledger={finished[0] / 'out'}")
    first, second = (pq.read_table(at / "ledger.parquet").to_pandas() for at in (finished[0] / "out", Path("out")))
    assert first[["id", "kept", "weight"]].equals(second[["id", "kept", "weight"]])
