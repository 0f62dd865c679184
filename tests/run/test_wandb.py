"""Weights & Biases: what an offline run holds, one run per job, closed either way, and never a question asked."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import wandb
from wandb.proto import wandb_internal_pb2 as protocol

from tests import runs
from winnow.callbacks import Progress, WandbTables
from winnow.selectors import FilterWeight, Random
from winnow.tracking import wandb_logger

ROOT = Path(__file__).parents[2]
BLOCK = 32768  # a run file is a LevelDB log


def records(path: Path) -> Iterator[tuple[str, Any]]:
    """The records of a run file, by kind."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        if at + 7 > len(data):
            return  # still being written
        _, length, part = struct.unpack_from("<IHB", data, at)
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if at > len(data):
            return
        if part in {1, 4}:  # whole, or the last part
            record = protocol.Record()
            record.ParseFromString(whole)
            whole = b""
            kind = record.WhichOneof("record_type")
            yield kind, getattr(record, kind)


class Offline:
    """An offline run as its file tells it."""

    def __init__(self, path: Path) -> None:
        self.folder = path.parent
        self.rows: list[dict[str, Any]] = []
        self.axes: dict[str, str] = {}
        self.config: dict[str, Any] = {}
        self.exit: int | None = None
        for kind, record in records(path):
            if kind == "run":
                self.run = record
            elif kind == "metric" and record.name:
                self.axes[record.name] = record.step_metric
            elif kind == "config":
                self.config |= {item.key: json.loads(item.value_json) for item in record.update}
            elif kind == "history":
                self.rows.append(self._row(record))
            elif kind == "exit":
                self.exit = record.exit_code

    @staticmethod
    def _row(record: Any) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for item in record.item:
            path = list(item.nested_key) or [item.key]
            place = row
            for name in path[:-1]:
                place = place.setdefault(name, {})
            place[path[-1]] = json.loads(item.value_json)
        return row


def offline_runs(folder: Path) -> list[Offline]:
    """The runs below a folder, each with its last record: W&B's service writes on after a run has finished."""
    found = []
    for path in sorted(folder.glob("**/wandb/offline-run-*/run-*.wandb")):
        deadline = time.monotonic() + 30
        while (run := Offline(path)).exit is None and time.monotonic() < deadline:
            time.sleep(0.05)
        found.append(run)
    return found


@pytest.fixture(autouse=True)
def no_run_left() -> Iterator[None]:
    yield
    left = wandb.run
    if left is not None:
        left.finish()
    assert left is None, "a test left a W&B run open"


def train(folder: Path, selector: Any = None, fails: bool = False, **options: Any) -> Any:
    """Six steps with a logger on; the run closed as the suite closes it."""
    logger = wandb_logger(offline=True, project="p", name="n-s0", group="n", tags=["n", "tasks"], save_dir=str(folder))
    tables = WandbTables(**{"every": 3, **options})
    module = runs.module(runs.model(), selector or FilterWeight(filter_size=3))
    trainer = runs.trainer(
        6,
        logger=logger,
        callbacks=[tables],
        log_every_n_steps=1,
        val_check_interval=3,
        check_val_every_n_epoch=None,
        limit_val_batches=1.0,
    )
    seen: list[Any] = []
    after = tables.on_train_batch_end

    def watch(trainer: Any, pl_module: Any, *rest: Any) -> None:
        seen.append(pl_module.last_step)
        after(trainer, pl_module, *rest)

    tables.on_train_batch_end = watch  # type: ignore[method-assign]
    try:
        trainer.fit(module, runs.datamodule())
    finally:
        logger.experiment.finish(exit_code=0)
    return seen, tables


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Any], Offline]:
    folder = tmp_path_factory.mktemp("wandb")
    seen, _ = train(folder)
    (run,) = offline_runs(folder)
    return seen, run


def test_a_run_has_its_name_group_and_tags_and_ends(world: tuple[list[Any], Offline]) -> None:
    _, found = world
    assert (found.run.project, found.run.display_name, found.run.run_group) == ("p", "n-s0", "n")
    assert list(found.run.tags) == ["n", "tasks"] and found.exit == 0


def test_tables_hold_the_kept_examples(world: tuple[list[Any], Offline]) -> None:
    seen, found = world
    rows = [row for row in found.rows if "kept/examples" in row]
    assert [row["budget/examples_seen"] for row in rows] == [24, 48]
    for row, steps in zip(rows, (seen[:3], seen[3:]), strict=True):
        table = json.loads((found.folder / "files" / row["kept/examples"]["path"]).read_text())
        expected = [
            [record.step, record.meta["id"][at], record.meta["source"][at], record.meta["response"][at]]
            for record in steps
            for at in record.selection.index.tolist()
        ]
        of = {name: [line[at] for line in table["data"]] for at, name in enumerate(table["columns"])}
        assert list(map(list, zip(*(of[n] for n in ("step", "id", "source", "response")), strict=True))) == expected
        weights = [weight for record in steps for weight in record.selection.weight.tolist()]
        assert of["weight"] == pytest.approx(weights, rel=1e-6)
        losses = [float(record.losses[at]) for record in steps for at in record.selection.index.tolist()]
        assert of["loss"] == pytest.approx(losses, rel=1e-6)
        assert all(isinstance(value, float) for value in of["alignment"])


def test_histograms_count_every_value_once(world: tuple[list[Any], Offline]) -> None:
    seen, found = world
    for row, steps in zip([row for row in found.rows if "kept/weight" in row], (seen[:3], seen[3:]), strict=True):
        kept = sum(len(record.selection) for record in steps)
        assert sum(row["kept/weight"]["values"]) == kept == sum(row["kept/alignment"]["values"])
        assert sum(row["pool/alignment"]["values"]) == sum(len(record.signals) for record in steps)
        highest = max(float(record.selection.weight.max()) for record in steps)
        assert row["kept/weight"]["bins"][-1] == pytest.approx(highest, rel=1e-5)


AXES = ("examples_trained", "tokens_trained", "examples_seen", "flops", "tokens_forwarded")


def test_every_curve_has_our_counter_as_its_axis_and_every_row_all_counters(
    world: tuple[list[Any], Offline],
) -> None:
    _, found = world
    counters = {"time/seconds", *(f"budget/{name}" for name in AXES)}
    drawn = {name for row in found.rows for name in row if not name.startswith(("_", "trainer/")) and name != "epoch"}
    drawn -= {*counters, "kept/examples"}
    assert {"train/loss", "target/val_nll", "kept_share/source/sums", "select/kept", "kept/weight"} <= drawn
    assert {found.axes.get(name) for name in drawn} == {"budget/examples_trained"}
    assert all(counters <= set(row) for row in found.rows)
    measured = [row for row in found.rows if "target/val_nll" in row]
    assert [row["budget/examples_seen"] for row in measured] == [24, 48]


def test_shares_are_of_everything_so_far_also_after_a_resume(tmp_path: Path) -> None:
    tables = WandbTables(every=100)
    network = runs.module(runs.model(), Random(filter_size=3))
    data = runs.datamodule(corpus=_two_sources())
    logger = wandb_logger(offline=True, save_dir=str(tmp_path), project="p")
    tables.load_state_dict({"kept": {"source/a": 5, "source/b": 1}, "pool": {"source/a": 8}})
    runs.trainer(2, logger=logger, callbacks=[tables], log_every_n_steps=1).fit(network, data)
    logger.experiment.finish()
    (found,) = offline_runs(tmp_path)
    (row,) = [row for row in found.rows if "kept_share/source/a" in row]
    state = tables.state_dict()
    assert sum(count for name, count in state["kept"].items() if name.startswith("source/")) == 6 + 2 * 3
    kept = {name: row[f"kept_share/source/{name}"] for name in ("a", "b")}
    assert kept == pytest.approx({name: state["kept"][f"source/{name}"] / 12 for name in ("a", "b")})
    assert row["pool_share/source/a"] + row["pool_share/source/b"] == pytest.approx(1.0)
    assert "pool/alignment" not in row, "random scores nothing"


def _two_sources() -> Any:
    from winnow.data import Corpus

    stream = runs.Listed([runs.example(number, "ab"[number % 2]) for number in range(64)])
    return Corpus(stream, runs.corpus().targets)


def test_long_texts_are_clipped_and_tables_bounded(tmp_path: Path) -> None:
    train(tmp_path, rows=2, clip=9, every=6)
    (found,) = offline_runs(tmp_path)
    (row,) = [row for row in found.rows if "kept/examples" in row]
    table = json.loads((found.folder / "files" / row["kept/examples"]["path"]).read_text())
    assert len(table["data"]) == 2 and {len(line[-1]) for line in table["data"]} == {9}


def test_without_wandb_the_callback_does_nothing(tmp_path: Path) -> None:
    tables = WandbTables(every=1)
    module = runs.fit(FilterWeight(filter_size=3), steps=2, callbacks=[tables])
    assert module.budget.updates == 2 and not tables.kept
    assert not list(tmp_path.glob("**/wandb"))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"every": 0}, "tables.every"), ({"rows": 0}, "tables.rows"), ({"x_axis": "epoch"}, "tables.x_axis")],
)
def test_settings_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WandbTables(**options)


# Through the command line


def overrides(folder: Path) -> list[str]:
    runs.model().save_pretrained(folder / "base")
    runs.tokenizer().save_pretrained(folder / "base")
    for name, numbers in {"stream": range(64), "val": range(1000, 1008), "test": range(2000, 2004)}.items():
        rows = [{"prompt": (e := runs.example(n)).prompt + f" ({n})", "response": e.response} for n in numbers]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        "model=local",
        f"model.path={folder / 'base'}",
        "data=jsonl",
        f"data.corpus.stream={folder}/stream.jsonl",
        f"data.corpus.targets.target.val={folder}/val.jsonl",
        f"data.corpus.targets.target.test={folder}/test.jsonl",
        "data.pool_size=8",
        "data.target_batch_size=4",
        "trainer.max_steps=2",
        "evaluation.accuracy_limit=0",
        "callbacks.last=null",
        "callbacks.best=null",
        "export=false",
    ]


def command(folder: Path, *arguments: str, **environment: str | None) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    clean |= {"PYTHONPATH": str(ROOT), "HOME": str(folder), "NETRC": str(folder / "none")}
    clean |= {name: value for name, value in environment.items() if value is not None}
    line = [sys.executable, str(ROOT / "train.py"), *overrides(folder), *arguments]
    return subprocess.run(
        line, env=clean, cwd=folder, capture_output=True, text=True, timeout=300, stdin=subprocess.DEVNULL
    )


@pytest.mark.slow
def test_the_jobs_of_a_sweep_are_runs_of_their_own_closed_on_success_and_failure(tmp_path: Path) -> None:
    result = command(
        tmp_path,
        "seed=4,5",
        "~selector",
        "+selector={_target_: tests.run.test_wandb.FailsWith, seed: ${seed}, filter_size: 3}",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "tags=[extra]",
        "-m",
    )
    assert result.returncode != 0 and "seed 5" in result.stdout + result.stderr
    found = {run.config["seed"]: run for run in offline_runs(tmp_path / "sweep")}
    assert set(found) == {4, 5} and found[4].run.run_id != found[5].run.run_id
    assert (found[4].exit, found[5].exit) == (0, 1)
    for seed, run in found.items():
        assert run.run.display_name.endswith(f"-s{seed}") and "extra" in run.run.tags and "jsonl" in run.run.tags
        assert run.config["data"]["pool_size"] == 8 and run.config["choices"]["model"] == "local"
    assert not [name for name in ("wandb", "outputs") if (tmp_path / name).exists()], "runs keep to their folder"


class FailsWith(Random):
    """Random selection that breaks in its second pool where the seed is 5."""

    def __init__(self, seed: int, filter_size: int) -> None:
        super().__init__(filter_size)
        self.seed, self.calls = seed, 0

    def __call__(self, signals: Any, generator: Any) -> Any:
        self.calls += 1
        if self.seed == 5 and self.calls == 2:
            raise RuntimeError("seed 5 breaks")
        return super().__call__(signals, generator)


@pytest.mark.slow
def test_online_without_an_account_is_an_error_not_a_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    # What makes W&B ask is a terminal to ask at.
    script = (
        "import pty, sys\n"
        "code = 'from winnow.tracking import wandb_logger\\n"
        'try: wandb_logger(offline=False, project="p")\\n'
        'except ValueError as error: print("REFUSED", error)\'\n'
        "sys.exit(pty.spawn([sys.executable, '-c', code]))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL
    )
    assert "REFUSED logger.offline=false needs a Weights & Biases account" in result.stdout
    assert "wandb login" in result.stdout and "logger.offline=true" in result.stdout
    assert "Enter your choice" not in result.stdout


def test_online_with_a_key_and_offline_by_environment_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(wandb, "login", lambda **options: asked.append(options) or True)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert wandb_logger(offline=False, project="p")._offline is False and not asked
    monkeypatch.delenv("WANDB_MODE")
    assert wandb_logger(offline=False, project="p")._offline is False
    assert asked == [{"prompt": False, "verify": False}]


# The progress bar


def progress(capsys: pytest.CaptureFixture[str], terminal: bool, **options: Any) -> str:
    bar = Progress(**options)
    bar.terminal = terminal
    trainer = lightning.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=8,
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        callbacks=[bar],
    )
    trainer.fit(runs.module(runs.model(), FilterWeight(filter_size=3)), runs.datamodule())
    return capsys.readouterr().out


def test_the_bar_shows_what_was_asked_for_and_no_second_bar(capsys: pytest.CaptureFixture[str]) -> None:
    text = progress(capsys, terminal=True)
    last = text.replace("\n", "\r").rstrip("\r").rsplit("\r", 1)[-1]
    for part in ("8/8", "loss=", "target=", "val=", "kept=3/8", "ess=", "tok/s=", "selecting="):
        assert part in last
    assert "Validation" not in text


def test_without_a_terminal_a_few_lines_are_printed(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="winnow.callbacks.progress"):
        text = progress(capsys, terminal=False, lines=4)
    assert "\r" not in text and "kept" not in text
    lines = [record.getMessage() for record in caplog.records if record.name == "winnow.callbacks.progress"]
    assert [line.split(":")[0] for line in lines] == [f"update {n} of 8" for n in (2, 4, 6, 8)]
    assert all("kept 3/8" in line and "selecting" in line and "target" in line for line in lines)
