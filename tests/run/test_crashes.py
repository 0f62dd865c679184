"""A process that dies at any call to the disk leaves the last good state, and the next one clears up after it."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest

from tests.run.test_records import written
from winnow.data.rejects import Reject, Rejects
from winnow.records import whole
from winnow.records.history import History
from winnow.records.ledger import Ledger, read
from winnow.records.preparation import Cost, write_scores
from winnow.records.status import Status
from winnow.records.strict_json import write_json
from winnow.records.whole import clear_unfinished, replacing, replacing_folder

CALLS = ((os, "replace"), (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "fsync"), (pq, "write_table"))


class Killed(BaseException):
    """The process is dead: nothing that is called after it has an effect."""


@contextmanager
def killed_at(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[list[int]]:
    """The process dies at the n-th call to the disk, before it has an effect, and never comes to clear up."""
    made = [0]

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def dies(*arguments: Any, **options: Any) -> Any:
            made[0] += 1
            if made[0] > call:
                raise Killed
            return real(*arguments, **options)

        return dies

    with monkeypatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, dying(getattr(module, name)))
        with suppress(Killed):
            yield made


def every_crash(monkeypatch: pytest.MonkeyPatch, prepare: Callable[[], Callable[[], Any]]) -> Iterator[int]:
    """Do the same again and again, each time dying one call later, until it goes through."""
    for call in range(200):
        shutil.rmtree("run", ignore_errors=True)
        work = prepare()
        with killed_at(monkeypatch, call) as made:
            work()
        yield call
        if made[0] <= call:
            return
    pytest.fail("it never went through")


def rows(count: int) -> Any:
    shutil.rmtree("rows", ignore_errors=True)
    book = written(Path("rows"), count)
    book.close()
    return read(Path("rows"))


def test_a_ledger_that_is_merged_is_whole_at_any_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, crashes = rows(10), 0

    def prepare() -> Callable[[], Any]:
        book = written(Path("run"), 10)
        book.flush()
        return book.close

    for _ in every_crash(monkeypatch, prepare):
        assert read(Path("run")).equals(whole)
        clear_unfinished(Path("run"), Path("run/ledger"))
        assert read(Path("run")).equals(whole)
        crashes += 1
    assert crashes > 8 and not list(Path("run").rglob("*.tmp"))


@pytest.mark.parametrize("merged", [True, False])
def test_a_ledger_that_is_taken_over_is_the_old_or_the_new_one(merged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """And being taken over once more, it comes out the same."""
    whole, cut = rows(10), rows(6)

    def prepare() -> Callable[[], Any]:
        book = written(Path("run"), 10)
        if merged:
            book.close()
        else:
            book.flush()
        return lambda: Ledger(Path("run")).resume(Path("run"), 5)

    seen = set()
    for _ in every_crash(monkeypatch, prepare):
        found = read(Path("run"))
        seen.add(found.num_rows)
        assert found.equals(whole) or found.equals(cut)
        clear_unfinished(Path("run"), Path("run/ledger"))
        book = Ledger(Path("run"))
        book.resume(Path("run"), 5)
        book.close()
        assert read(Path("run")).equals(cut) and not (Path("run") / "ledger-resumed.parquet").exists()
    assert seen == {whole.num_rows, cut.num_rows}


def test_metrics_are_rewritten_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare() -> Callable[[], Any]:
        book = History(Path("run/metrics.csv"))
        book.append(0, {"loss": 1.0})
        return lambda: book.append(1, {"loss": 0.5, "more": 2.0})

    for _ in every_crash(monkeypatch, prepare):
        assert pd.read_csv("run/metrics.csv")["loss"].tolist() in ([1.0], [1.0, 0.5])


def old_and_new(name: str) -> tuple[Callable[[], Any], Callable[[], Any], Callable[[], Any]]:
    """Of each writer: what writes the old state, what writes the new one, and how it is read."""
    path = Path("run") / name
    cost = [Cost("all", 1, 2, 3.0)]

    def folder(content: str) -> None:
        with replacing_folder(path) as temporary:
            (temporary / "part").write_text(content)
            (temporary / "other").write_text(content)

    def scores(number: float) -> None:
        write_scores(path, pd.DataFrame({"id": ["a"], "score": [number]}), {}, cost)

    def rejects(where: str) -> None:
        found = Rejects()
        found.listed.append(Reject("data.corpus.stream", where, "reason", "detail"))
        found.write(path)

    writers: dict[str, tuple[Callable[[Any], Any], tuple[Any, Any], Callable[[], Any]]] = {
        "config.json": (lambda content: write_json(path, content), ({"a": 1}, {"a": 2}), lambda: path.read_text()),
        "status.json": (
            lambda state: Status(Path("run")) if state == "running" else Status(Path("run")).finished(),
            ("running", "finished"),
            lambda: json.loads(path.read_text())["state"],
        ),
        "scores.parquet": (scores, (1.0, 2.0), lambda: pd.read_parquet(path)["score"].tolist()),
        "rejects.jsonl": (rejects, ("line 1", "line 2"), lambda: path.read_text()),
        "model": (folder, ("a", "b"), lambda: [one.read_text() for one in sorted(path.iterdir())]),
    }
    write, (old, new), reads = writers[name]
    return lambda: write(old), lambda: write(new), reads


@pytest.mark.parametrize("name", ["config.json", "status.json", "scores.parquet", "rejects.jsonl", "model"])
def test_every_other_writer_leaves_the_old_or_the_new(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, reads = old_and_new(name)
    Path("run").mkdir()
    old()
    before = reads()
    new()
    after = reads()
    assert before != after

    def prepare() -> Callable[[], Any]:
        Path("run").mkdir()
        old()
        return new

    states = []
    for _ in every_crash(monkeypatch, prepare):
        # An exported model is absent between its two renames: its run has not finished, and writes it again.
        states.append(reads() if (Path("run") / name).exists() else None)
        assert states[-1] in (before, after) or (name == "model" and states[-1] is None)
        clear_unfinished(Path("run"))
        assert not list(Path("run").glob("*.tmp"))
    assert states[0] == before and states[-1] == after


def test_a_process_killed_between_writing_and_renaming_leaves_the_old_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a real SIGKILL; what it had begun is cleared away by the next one."""
    path = Path("run/config.json")
    write_json(path, {"state": "old"})
    child = os.fork()
    if child == 0:
        os.replace = lambda *unused: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        write_json(path, {"state": "new"})
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert json.loads(path.read_text()) == {"state": "old"} and Path("run/config.json.tmp").exists()
    clear_unfinished(Path("run"), Path("run/checkpoints"))
    assert [one.name for one in Path("run").iterdir()] == ["config.json"]


def test_what_is_written_is_on_the_disk_before_it_has_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    replace = os.replace
    monkeypatch.setattr(whole, "sync", lambda path: done.append(f"sync {path}"))
    monkeypatch.setattr(os, "replace", lambda old, new: (done.append(f"rename {old}"), replace(old, new)))
    with replacing(Path("file")) as temporary:
        temporary.write_text("x")
    assert done == ["sync file.tmp", "rename file.tmp", "sync ."]
    with replacing(Path("other"), durable=False) as temporary:
        temporary.write_text("x")
    assert done[3:] == ["rename other.tmp"]
