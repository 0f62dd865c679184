"""A scheduler's signal loses no pool, ends with one code, and the same command goes on where it stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

from tests.commands import CONF, ROOT, SMALL, command_line, configured, save_base
from tests.run.test_ending import LONG, Signal, assert_same
from tests.run.test_run import go, read
from winnow.records.provenance import anonymous
from winnow.records.status import Terminated
from winnow.records.strict_json import write_json
from winnow.run import execute as running
from winnow.run import run
from winnow.run.again import going_on, newest, quoted
from winnow.run.instantiate import BuildError, plain
from winnow.run.leaving import again, ended_by_schedulers
from winnow.run.stages import lift_steps
from winnow.training import stopping
from winnow.training.stopping import Stop, handled


class Left(BaseException):
    """What os._exit was asked for."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still until it is put on, and an exit that can be looked at."""
    now = [0.0]
    monkeypatch.setattr(stopping, "monotonic", lambda: now[0])

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(os, "_exit", leave)
    return now


def test_a_signal_outside_training_is_obeyed_at_once_and_another_leaves_in_no_order(clock: list[float]) -> None:
    for number, code in ((signal.SIGTERM, 143), (signal.SIGUSR1, 143)):
        stop = Stop()
        with pytest.raises(Terminated) as caught:
            stop.handle(number)
        assert caught.value.code == code and str(caught.value) == signal.Signals(number).name
        clock[0] += 1
        with pytest.raises(Left) as left:
            stop.handle(number)
        assert left.value.args == (code,)


def test_one_in_training_waits_and_its_echo_is_not_a_second(clock: list[float]) -> None:
    stop = Stop(waits=True)
    stop.handle(signal.SIGTERM)
    stop.handle(signal.SIGTERM)  # `timeout` sends it to the process, and to its group
    assert stop.due()
    with pytest.raises(Terminated):
        stop.obey()
    clock[0] += 1
    with pytest.raises(Left):
        stop.handle(signal.SIGTERM)


def test_ctrl_c_waits_then_closes_then_leaves(clock: list[float]) -> None:
    stop = Stop(waits=True)
    stop.handle(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        stop.obey()
    clock[0] += 1
    with pytest.raises(KeyboardInterrupt):
        stop.handle(signal.SIGINT)
    clock[0] += 1
    with pytest.raises(Left) as left:
        stop.handle(signal.SIGINT)
    assert left.value.args == (130,)


def test_what_other_processes_were_asked_counts_too() -> None:
    stop = Stop(waits=True)
    asked: list[bool] = []

    def agree(own: bool) -> bool:
        asked.append(own)
        return True

    stop.agree = agree
    with pytest.raises(Terminated):
        stop.obey()
    assert asked == [False]


def test_a_launchers_own_handler_is_called_when_the_run_has_left() -> None:
    seen: list[int] = []

    def launchers(number: int, frame: Any) -> None:
        seen.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGUSR2, launchers)
        signal.signal(signal.SIGTERM, launchers)
        stop = Stop(waits=True)
        with handled(stop):
            os.kill(os.getpid(), signal.SIGUSR2)
            assert stop.due() and not seen
        stop.hand_on()
        assert seen == [signal.SIGUSR2] and signal.getsignal(signal.SIGUSR2) is launchers
        other = Stop(waits=True)
        with handled(other):
            os.kill(os.getpid(), signal.SIGTERM)
        other.hand_on()
        assert seen == [signal.SIGUSR2], "submitit lets SIGTERM pass; a run does not"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_a_signal_before_anything_is_there_ends_with_the_same_code() -> None:
    with pytest.raises(SystemExit) as caught, ended_by_schedulers():
        os.kill(os.getpid(), signal.SIGUSR1)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL


def test_lightning_gets_no_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its handlers on Slurm save in the middle of a pool, and it would leave the batch loop with code 0."""
    save_base()
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "winnow")
    with pytest.raises(Terminated):
        go(*LONG, f"+callbacks.end={{_target_: {Signal.__module__}.Signal, pool: 3, name: SIGUSR1}}")
    assert read("status.json")["state"] == "terminated" and read("status.json")["error"] == "Terminated: SIGUSR1"
    assert not list(Path("out").glob("hpc_ckpt*"))
    state = torch.load("out/checkpoints/last.ckpt", weights_only=True)
    assert state["winnow"]["budget"]["steps"] == 3 and pq.read_table("out/ledger.parquet").num_rows == 3 * 8


def test_without_a_checkpoint_it_is_said_that_nothing_is_saved(caplog: pytest.LogCaptureFixture) -> None:
    save_base()
    with pytest.raises(Terminated):
        go(
            "callbacks.last=null", "callbacks.best=null", "resume=auto",
            f"+callbacks.end={{_target_: {Signal.__module__}.Signal, pool: 2, name: SIGTERM}}",
        )  # fmt: skip
    assert "so a run that is stopped begins afresh" in caplog.text
    said = caplog.records[-1].getMessage()
    assert said.startswith("Nothing of this run was saved") and said.endswith("hydra.run.dir=out resume=auto")
    assert read("status.json")["ckpt_path"] is None and not Path("out/checkpoints/last.ckpt").exists()


class Ends(Signal):
    """A signal, if a file says so: the configuration is the same without."""

    def __init__(self, pool: int) -> None:
        super().__init__(pool, "SIGTERM")

    def on_before_optimizer_step(self, *arguments: Any) -> None:
        if Path("fatal").exists():
            super().on_before_optimizer_step(*arguments)


AGAIN = (*LONG, f"+callbacks.end={{_target_: {__name__}.Ends, pool: 3}}", "resume=auto")


def test_the_same_command_goes_on_in_a_fixed_folder_and_a_finished_run_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    go(*AGAIN, out="straight")
    Path("fatal").touch()
    with pytest.raises(Terminated):
        go(*AGAIN)
    Path("fatal").unlink()
    go(*AGAIN)
    assert "terminated earlier, resumed from its last.ckpt" in caplog.text
    assert_same("out", "straight")
    monkeypatch.setattr(running, "equip", lambda *unused: pytest.fail("trained again"))
    nll = read("summary.json")["after"]["chains/nll"]
    assert go(*AGAIN) == nll and "finished already, skipped" in caplog.text
    with pytest.raises(BuildError, match=r"out holds a job of another .*: seed was 0, is 1.*hydra\.run\.dir"):
        go(*AGAIN, "seed=1")


@pytest.mark.parametrize("given", ["resume=always", "resume=true"])
def test_resume_is_auto_or_nothing(given: str) -> None:
    save_base()
    with pytest.raises(BuildError, match="resume must be auto or null, got"):
        go(given)


def test_in_dated_folders_it_finds_the_newest_of_its_configuration(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save_base()
    small = (*SMALL, "trainer.max_steps=2", "export=false", "evaluation.nll_limit=0", "resume=auto")
    with caplog.at_level("WARNING"):
        command_line(monkeypatch, run, *small)
        (first,) = Path("outputs/filter_weight").iterdir()
        command_line(monkeypatch, run, *small)
        assert f"{first.name}: finished already" in caplog.text
    assert list(Path("outputs/filter_weight").iterdir()) == [first], "no folder of its own"
    line = [*small, "seed=1"]
    assert going_on(line, CONF, "train") == line, "another configuration begins afresh"
    (line[-1],) = ["data.pool_size=${oc.env:NOWHERE}"]
    assert going_on(line, CONF, "train") == line, "what is wrong with it is for the run to say"


def test_a_budget_in_place_of_steps_is_found_again() -> None:
    line = ["budget.flops=1e9", "logger=none", "resume=auto"]
    with configured(*line, out="outputs/filter_weight/2026-11-26_10-00-00") as cfg:
        lift_steps(cfg, line)
        assert cfg.trainer.max_steps == -1
        write_json(Path(cfg.out) / "config.json", anonymous(plain(cfg)))
    assert going_on(line, CONF, "train") == ["hydra.run.dir=outputs/filter_weight/2026-11-26_10-00-00", *line]


def test_which_folder_is_taken_up(tmp_path: Path) -> None:
    def folder(name: str, content: dict[str, Any] | str, at: int) -> Path:
        path = tmp_path / name / "config.json"
        path.parent.mkdir()
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        os.utime(path, (at, at))
        return path.parent

    mine: dict[str, Any] = {"seed": 0, "data": {"date": None}, "resume": "auto"}
    old = folder("a", mine, 1)
    new = folder("b", {**mine, "data": {"date": "2026-11-25"}, "resume": None}, 2)
    folder("c", {**mine, "seed": 1}, 3)
    folder("d", "{half", 4)
    (tmp_path / "e").mkdir()
    assert newest([*tmp_path.iterdir()], mine) == new
    assert newest([old, tmp_path / "c"], {**mine, "data": {"date": "2026-11-24"}}) is None, "a date that was asked for"
    assert newest([], mine) is None


def test_the_command_that_goes_on_is_written_as_it_was_given() -> None:
    typed = ["python", "train.py", "seed=1", "name=a b"]
    here = Path("outputs/a b,c/2026")
    said = again(here, typed)
    assert said == shlex.join([*typed, "hydra.run.dir='outputs/a b,c/2026'", "resume=auto"])
    assert again(here, ["python", "train.py", "hydra.run.dir=x", "resume=auto"]) == (
        "python train.py hydra.run.dir=x resume=auto"
    )
    assert again(Path("x"), ["winnow-train", "seed=1", "--config-name", "y"]) == (
        "winnow-train seed=1 hydra.run.dir=x resume=auto --config-name y"
    )
    from hydra.core.override_parser.overrides_parser import OverridesParser

    for text in ("plain/2026-11-26_10-00-00", "a b", "it's", "a,b=c", "[x]", 'say "no"', "back\\'s", "ümlaut"):
        (parsed,) = OverridesParser.create().parse_overrides([f"hydra.run.dir={quoted(text)}"])
        assert parsed.value() == text


class Requeues(Signal):
    """The signal by which submitit has a job requeue itself, once."""

    def __init__(self, pool: int) -> None:
        super().__init__(pool, "SIGUSR2")

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, *unused: Any) -> None:
        fatal = Path("fatal")
        if fatal.exists() and pl_module.budget.steps == self.pool - 1:
            fatal.unlink()
            super().on_before_optimizer_step(trainer, pl_module)


@pytest.mark.long
def test_a_job_of_submitit_requeues_itself_after_its_pool_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    save_base()
    sweep = ("-m", *SMALL, *LONG, "+callbacks.end={_target_: tests.run.test_preemption.Requeues, pool: 3}", "seed=0")
    command_line(monkeypatch, run, *sweep, "hydra.sweep.dir=alone")
    Path("fatal").touch()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    line = [sys.executable, str(ROOT / "train.py"), *sweep, "hydra.sweep.dir=queued"]
    line += ["hydra/launcher=submitit_local", "hydra.launcher.timeout_min=10"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert not Path("fatal").exists()
    said = "".join(path.read_text() for path in Path("queued/.submitit").rglob("*") if path.suffix in (".out", ".err"))
    assert "SIGUSR2: leaving after this pool" in said and "Requeued job" in said
    assert "terminated earlier, resumed from its last.ckpt" in said
    assert_same("queued/0-filter_weight", "alone/0-filter_weight")


@pytest.mark.long
def test_a_process_that_is_told_to_go_ends_with_143_and_the_line_it_prints_goes_on(tmp_path: Path) -> None:
    save_base()
    command = [
        sys.executable,
        str(ROOT / "train.py"),
        *SMALL,
        "trainer.max_steps=100000",
        "trainer.val_check_interval=null",
    ]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if "update" in line or "multiplications" in line:
            break
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 143, output
    last = output.strip().splitlines()[-1]
    (folder,) = Path("outputs/filter_weight").iterdir()
    steps = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["winnow"]["budget"]["steps"]
    assert pq.read_table(folder / "ledger.parquet").num_rows == steps * 8
    words = shlex.split(last.split("last.ckpt: ")[1])
    line = [word.replace("max_steps=100000", f"max_steps={steps + 1}") for word in words]
    refused = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert refused.returncode == 1 and "trainer.max_steps was 100000" in refused.stderr
