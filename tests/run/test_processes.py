"""One run in several processes: what it writes is what one process writes, and it ends as one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from tests import runs
from tests.commands import ROOT, SMALL, command_line, configured, save_base
from winnow.lm.passes import Pass
from winnow.parallel import Ranks, Stratified
from winnow.records.checkpoint import method_name
from winnow.run import run
from winnow.run.group import ProcessLost, lost
from winnow.run.processes import Place, asked, check, place, pooled
from winnow.run.trainer_options import check_trainer
from winnow.scorer.flops import Flops
from winnow.scorer.meter import Meter
from winnow.selectors import UDS, FilterWeight, Full, MaxLoss, Selector
from winnow.signals import Needs, Signals
from winnow.training.budget import Budget
from winnow.training.together import Together

EXACT = ("trainer.precision=64-true", "gate=ngrams", "scoring.period=2", "data.draw_size=16", "export=false")
IN_TURN = ("evaluation.batch_size=1", "evaluation.nll_limit=3", "evaluation.accuracy_limit=2")
"""One process measures two batches, the other one and the prompts; of validation there is one batch in all."""
ENV = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")}


def started(*arguments: str, out: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    line = [sys.executable, *launcher, str(ROOT / "train.py"), *SMALL, *arguments, f"hydra.run.dir={out}"]
    return subprocess.Popen(line, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def same_records(one: str, other: str, measuring: tuple[str, ...] = ()) -> None:
    """Ledgers row for row, and metrics but for the clock and what each process spends by itself."""
    left, right = (pd.read_parquet(f"{name}/ledger.parquet") for name in (one, other))
    assert len(left) and list(left.columns) == list(right.columns)
    for name in left.columns:
        if pd.api.types.is_float_dtype(left[name]):
            pd.testing.assert_series_equal(left[name], right[name], rtol=1e-4, atol=1e-5)
        else:
            assert left[name].equals(right[name]), name
    rows = [pd.read_csv(f"{name}/metrics.csv") for name in (one, other)]
    assert rows[0]["target/val_nll"].count() > 1  # of the batches that processes take in turn
    counted = [f"budget/{what}" for what in ("examples_trained", "examples_drawn", "updates", *measuring)]
    for name in (*counted, "select/kept", "train/loss", "target/val_nll"):
        pd.testing.assert_series_equal(rows[0][name], rows[1][name], rtol=1e-4, atol=1e-5)
    summaries = [json.loads(Path(f"{name}/summary.json").read_text()) for name in (one, other)]
    assert summaries[0]["after"] == pytest.approx(summaries[1]["after"], rel=1e-4)
    # A model is in shards from the start, in the precision of training, which one process takes on later.
    assert summaries[0]["before"] == pytest.approx(summaries[1]["before"], rel=1e-9 if measuring else 1e-6)
    for name in measuring:  # all that all processes ran, once
        assert summaries[0]["budget"][name] == pytest.approx(summaries[1]["budget"][name], rel=1e-9)


@pytest.mark.slow
def test_two_processes_write_what_one_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    two = started(*EXACT, *IN_TURN, "trainer.devices=2", out="two")
    command_line(monkeypatch, run, *SMALL, *EXACT, *IN_TURN, "hydra.run.dir=one")
    said = two.communicate(timeout=200)[0]
    assert two.returncode == 0, said
    same_records("one", "two", ("flops_evaluation",))
    assert json.loads(Path("two/status.json").read_text())["state"] == "finished"
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(
        {path.name for path in Path("one").iterdir()} | {"train.log"}
    )  # nothing of the second process, which had nothing to say
    sent = pd.read_csv("two/metrics.csv")["budget/bytes"].iloc[-1]
    trained = sum(
        value.numel() for value in torch.load("two/checkpoints/last.ckpt", weights_only=True)["state_dict"].values()
    )
    assert (
        sent > 4 * trained * 8
    )  # of four candidates in float64, half of it, in each of the two pools that were scored
    assert "budget/bytes" not in pd.read_csv("one/metrics.csv").columns


ADAPTER = ("model/lora=default", "model.lora.lora_dropout=0", "export=false")


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_a_base_in_shards_trains_the_adapter_as_one_process_does(update: str, monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    options = (*ADAPTER, *IN_TURN, "trainer.precision=64-true", f"scoring.update={update}")
    two = started(*options, "trainer.devices=2", "parallel.base=sharded", out="two")
    command_line(monkeypatch, run, *SMALL, *options, "hydra.run.dir=one")
    said = two.communicate(timeout=200)[0]
    assert two.returncode == 0, said
    same_records("one", "two")
    one, other = (
        torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for name in ("one", "two")
    )
    assert one.keys() == other.keys() and all("lora_" in name for name in one)
    # All pools send the same, whatever is measured in between and looked at in the first one: of the adapter halves of
    # what candidates, target and update have, of the base a half twice a pass. Sums over candidates are small.
    base = runs.model().double().parameters()
    share = sum(-(-len(held) // 2) * held[0].numel() * held.element_size() for held in base)
    adapter = sum(value.numel() * value.element_size() for value in one.values())
    sent = pd.read_csv("two/metrics.csv")["budget/bytes"].drop_duplicates().diff().to_numpy()[1:]
    gathered = share * (2 if update == "one_pass" else 4)
    assert len(sent) == 3 and ((sent > gathered + 4 * adapter) & (sent < gathered + 4 * adapter + 2000)).all()
    # P of the first step is taken from its pool.
    assert pd.read_csv("two/metrics.csv")["budget/bytes"][0] == sent[0] + adapter


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("update", ["one_pass", "two_pass"])
def test_a_model_in_rows_trains_saves_and_goes_on_as_one_process_does(
    update: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_base()
    options = ("trainer.precision=64-true", f"scoring.update={update}", "pools_per_update=2", "scoring.target_ema=0.5")
    many = ("trainer.devices=2", "parallel.base=sharded")
    whole = ("trainer.max_steps=6", "hydra.run.dir=one")
    command_line(monkeypatch, run, *SMALL, *options, *whole)
    # Saved after three pools by two processes, with half an update; gone on with by one; and by two again.
    two = started(*options, *many, "trainer.max_steps=2", out="two")
    said = two.communicate(timeout=300)[0]
    assert two.returncode == 0 and "parameters in rows over 2 processes, 0 whole in each" in said, said
    on = ("ckpt_path=two/checkpoints/last.ckpt", "trainer.max_steps=4", "hydra.run.dir=on")
    command_line(monkeypatch, run, *SMALL, *options, *on)
    last = started(*options, *many, "trainer.max_steps=6", "ckpt_path=on/checkpoints/last.ckpt", out="last")
    said = last.communicate(timeout=300)[0]
    assert last.returncode == 0, said
    same_records("one", "last")
    one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("one", "last"))
    for key in ("state_dict", "optimizer_states", "winnow"):
        equal_state(one[key], other[key], key)
    exported = [load_file(f"{name}/model/model.safetensors") for name in ("one", "last")]
    equal_state(*exported, "export")


FAILS_TO_LOAD = """
import os
from winnow.models import load as loaded

def load(**options):
    if os.environ["RANK"] == "1":
        raise OSError("no memory is left")
    return loaded(**options)
"""


@pytest.mark.slow
@pytest.mark.long
def test_a_model_that_one_process_cannot_load_ends_the_run_in_words() -> None:
    save_base()
    Path("own.py").write_text(FAILS_TO_LOAD)
    two = started("model._target_=own.load", "trainer.devices=2", "parallel.base=sharded", out="two")
    said = two.communicate(timeout=200)[0]
    told = "process 1 of this run could not load the model, and ends it for all: BuildError: model: no memory is left"
    assert two.returncode == 1 and told in said, said
    assert told in json.loads(Path("two/status.json").read_text())["error"]


CLOCK = ("seconds", "bytes", "flops", "tokens", "lengths")
"""Of a budget: what is not the same for every number of processes."""


def equal_state(one: Any, other: Any, where: str) -> None:
    """States of a run by one process and by two, to 1e-9."""
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key, value in one.items():
            if not str(key).startswith(CLOCK):
                equal_state(value, other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for at, value in enumerate(one):
            equal_state(value, other[at], f"{where}/{at}")
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12, msg=lambda said: f"{where}: {said}")
    elif isinstance(one, float):
        assert other == pytest.approx(one, rel=1e-9), where
    else:
        assert one == other, where


@pytest.mark.slow
@pytest.mark.long
def test_torchrun_starts_one_run_in_one_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port", str(port))
    two = started(*EXACT, out="two", launcher=torchrun)
    command_line(monkeypatch, run, *SMALL, *EXACT, "hydra.run.dir=one")
    said = two.communicate(timeout=200)[0]
    assert two.returncode == 0, said
    same_records("one", "two")


def until(path: Path, rows: int, process: subprocess.Popen[str]) -> None:
    for _ in range(1800):
        if path.is_file() and len(path.read_text().splitlines()) > rows:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    raise AssertionError(f"{path} has no {rows} rows")


@pytest.mark.slow
@pytest.mark.long
def test_a_signal_ends_both_after_the_same_pool_and_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    many = ("trainer.max_steps=40", *EXACT)
    two = started(*many, "trainer.devices=2", "callbacks.last.every=30", out="two")
    until(Path("two/metrics.csv"), 4, two)
    two.send_signal(signal.SIGTERM)
    said = two.communicate(timeout=100)[0]
    assert two.returncode == 143 and "This run can go on from" in said, said
    reached = torch.load("two/checkpoints/last.ckpt", weights_only=True)["winnow"]["budget"]["steps"]
    assert len(pd.read_parquet("two/ledger.parquet")["step"].unique()) == reached < 40
    command_line(monkeypatch, run, *SMALL, *many, "hydra.run.dir=on", "ckpt_path=two/checkpoints/last.ckpt")
    command_line(monkeypatch, run, *SMALL, *many, "hydra.run.dir=one")
    same_records("one", "on")


@pytest.mark.slow
@pytest.mark.long
def test_a_process_that_dies_ends_the_run_in_words_and_the_state_is_kept() -> None:
    save_base()
    two = started("trainer.max_steps=400", "trainer.devices=2", "callbacks.last.every=2", out="two")
    until(Path("two/metrics.csv"), 4, two)
    found = subprocess.run(["pgrep", "-P", str(two.pid), "-f", "winnow.run.member"], capture_output=True, text=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
    said = two.communicate(timeout=100)[0]
    status = json.loads(Path("two/status.json").read_text())
    assert two.returncode == 1 and status["state"] == "failed", said
    assert "ProcessLost: the other process of this run has ended" in status["error"]
    assert Path("two/checkpoints/last.ckpt").is_file() and "ckpt_path" in status


@pytest.mark.slow
@pytest.mark.long
def test_both_processes_killed_at_once_go_on_to_the_same_end() -> None:
    save_base()
    many = ("trainer.max_steps=24", "trainer.devices=2", "export=false", "resume=auto")
    two = started(*many, out="two")
    until(Path("two/metrics.csv"), 8, two)
    found = subprocess.run(["pgrep", "-P", str(two.pid), "-f", "winnow.run.member"], capture_output=True, text=True)
    for number in (two.pid, int(found.stdout.split()[0])):
        os.kill(number, signal.SIGKILL)
    two.communicate(timeout=100)
    assert json.loads(Path("two/status.json").read_text())["state"] == "running"
    for out in ("two", "one"):
        again = started(*many, out=out)
        said = again.communicate(timeout=300)[0]
        assert again.returncode == 0, said
    one, other = (torch.load(f"{out}/checkpoints/last.ckpt", weights_only=True) for out in ("one", "two"))
    assert all(torch.equal(value, other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert pd.read_parquet("one/ledger.parquet").equals(pd.read_parquet("two/ledger.parquet"))


@pytest.mark.parametrize(
    ("trainer", "count"),
    [
        ({"devices": 1}, 1), ({"devices": 3}, 3), ({"devices": "2"}, 2), ({"devices": [0, 2]}, 2), ({}, 1),
        ({"devices": "auto", "accelerator": "cpu"}, 1),
    ],
)  # fmt: skip
def test_devices_say_how_many_processes_there_are(trainer: dict[str, Any], count: int) -> None:
    assert asked(trainer) == count


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"RANK": "0", "WORLD_SIZE": "1"}, None),
        ({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}, Place(3, 4, 1, 2)),
        (
            {"SLURM_PROCID": "1", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_NODEID": "0", "SLURM_NNODES": "2",
             "SLURM_NODELIST": "node[7-8]", "SLURM_JOB_ID": "12345"},
            Place(1, 4, 1, 2),
        ),
    ],
)  # fmt: skip
def test_the_environment_says_which_process_this_is(
    env: dict[str, str], expected: Place | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(os.environ):
        if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.setenv(name, "")  # so that what is set by the call is put back
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert place() == expected
    if "SLURM_JOB_ID" in env:
        assert os.environ["MASTER_ADDR"] == "node7" and os.environ["RANK"] == "1"


@pytest.mark.parametrize(
    ("strategy", "remedy"),
    [
        ("ddp_spawn", "give back weights and no counters: use ddp"),
        ("ddp_fork", "give back weights and no counters: use ddp"),
        ("deepspeed_stage_3", "where a selection's cannot be put: use ddp"),
        ("horovod", "use ddp, which trainer.devices=N implies"),
    ],
)
def test_strategies_that_lose_something_are_refused_with_the_remedy(strategy: str, remedy: str) -> None:
    with pytest.raises(ValueError, match=f"trainer.strategy={strategy}: .*{remedy}"):
        check_trainer({"strategy": strategy})
    check_trainer({"strategy": "ddp", "devices": 2})


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("parallel.wire=fp8", "parallel.wire must be fp32, bf16 or null for the gradients' own; got 'fp8'"),
        ("parallel.base=split", "parallel.base must be whole or sharded, got 'split'"),
        ("parallel.pool=local", "parallel.pool must be global or per_rank, got 'local'"),
        ("parallel.timeout=0", "parallel.timeout must be a number of minutes above 0, got 0"),
        ("parallel.timeout=soon", "parallel.timeout must be a number of minutes above 0, got 'soon'"),
    ],
)
def test_options_of_several_processes_are_refused_before_any_is_started(option: str, message: str) -> None:
    with configured(*SMALL, option, "trainer.devices=2") as cfg, pytest.raises(ValueError, match=message):
        check(cfg, 2, sweeps=False)


def test_a_pool_of_each_process_is_refused_where_there_is_one_process() -> None:
    told = "there is one process: leave parallel.pool=global, or set trainer.devices=N"
    with configured(*SMALL, "parallel.pool=per_rank") as cfg, pytest.raises(ValueError, match=told):
        check(cfg, 1, sweeps=False)


class Three(Ranks):
    def __init__(self) -> None:
        self.rank, self.size = 0, 3


@pytest.mark.parametrize(
    ("selector", "pool", "message"),
    [
        (FilterWeight(filter_size=4), 12, "filter_size=4 is no multiple of 3: set selector.filter_size=6"),
        (FilterWeight(filter_size=2), 12, "filter_size=2 is no multiple of 3: set selector.filter_size=3"),
        (FilterWeight(filter_size=6), 7, "the last of 3 processes has 1, and keeps 2: set a data.pool_size that is a"),
        (Full(), 12, "share of selector.filter_size, and Full has none: leave parallel.pool=global"),
        (UDS(filter_size=3), 12, "and UDS goes by earlier pools, too: leave parallel.pool=global"),
    ],
)
def test_what_cannot_be_asked_of_each_process_is_refused(selector: Selector, pool: int, message: str) -> None:
    with configured(*SMALL, "parallel.pool=per_rank") as cfg, pytest.raises(ValueError, match=message):
        pooled(cfg, selector, pool, Three())
    with configured(*SMALL) as cfg:
        assert pooled(cfg, selector, pool, Three()) is selector


def test_a_selector_is_asked_for_a_part_of_every_process() -> None:
    signals = Signals(
        valid=torch.ones(7, dtype=torch.bool), tokens=torch.ones(7, dtype=torch.long),
        losses=torch.tensor([9.0, 8.0, 7.0, 0.0, 1.0, 2.0, 0.5]), meta={"id": list("abcdefg")},
    )  # fmt: skip
    asked = Stratified(MaxLoss(filter_size=3), 3)
    assert asked(signals).index.tolist() == [0, 5, 6] and asked.filter_size == 3 and asked.needs == Needs(losses=True)
    assert signals.part(slice(3, 5)).meta == {"id": ["d", "e"]}
    assert method_name(asked).endswith("Stratified(winnow.selectors.max_loss.MaxLoss)")
    assert asked(signals.part(slice(0, 3))).index.tolist() == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.long
def test_processes_that_choose_from_their_own_candidates_say_so() -> None:
    save_base()
    two = started("selector.filter_size=4", "parallel.pool=per_rank", "trainer.devices=2", out="two")
    said = two.communicate(timeout=200)[0]
    assert two.returncode == 0, said
    assert json.loads(Path("two/summary.json").read_text())["name"] == "filter_weight-per_rank"
    kept = pd.read_parquet("two/ledger.parquet")["kept"].to_numpy().reshape(4, 2, 4).sum(2)
    assert ((kept >= 1) & (kept <= 2)).all()  # two of four, less what is given no weight
    state = torch.load("two/checkpoints/last.ckpt", weights_only=True)["winnow"]
    assert state["method"].startswith("winnow.parallel.stratified.Stratified(")


class Sending(Ranks):
    """Processes of which this one alone is there, and sends eight bytes with every sum."""

    def __init__(self) -> None:
        self.size, self.rank, self.bytes, self.device = 2, 0, 0, torch.device("cpu")

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        self.bytes += 8
        return tensor


class Idle(Meter):
    """Of a pool without a pass, which runs a few tokens to find out what passes cost."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks

    def take(self, stepped: bool) -> tuple[Flops, list[Pass]]:
        self.ranks.bytes += 40
        return Flops(), []


def test_bytes_are_those_of_pools_and_not_of_measurements_in_between() -> None:
    ranks, budget = Sending(), Budget()
    together = Together(ranks)
    for pool in range(1, 3):
        ranks.bytes += 24  # a measurement, which a run that goes on makes at another time
        together.begin()
        ranks.bytes += 100
        together.spend(budget, Idle(ranks), False)
        assert budget.bytes == pool * 108


def test_a_broken_connection_is_told_apart_from_other_errors() -> None:
    other = RuntimeError("the size of tensor a must match")
    assert lost(other, 2) is other
    found = lost(RuntimeError("[gloo/transport/tcp/pair.cc:537] Connection reset by peer"), 2)
    assert isinstance(found, ProcessLost) and "one of the other 2 processes of this run has ended" in str(found)
