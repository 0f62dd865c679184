"""A run that goes on in its own folder is the same W&B run, and its steps go on; in another folder it is a new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands import save_base
from tests.run.test_run import Stop, go, read
from tests.run.test_wandb import Offline, offline_runs
from winnow.records.tracked import AHEAD, FILE, Tracked, continued, counted, tracked

WANDB = ("logger=wandb", "export=false", "callbacks.tables.every=1")
STOP = f"+callbacks.stop={{_target_: {Stop.__module__}.Stop, error: failure, after: 3}}"


def broken(out: str = "out") -> Offline:
    """A run that fails in the third of its four pools."""
    save_base()
    with pytest.raises(ZeroDivisionError):
        go(*WANDB, STOP, out=out)
    (run,) = offline_runs(Path(out))
    return run


def steps(run: Offline) -> list[int]:
    return [row["_step"] for row in run.rows]


def test_resumed_in_its_folder_it_is_the_same_run_and_its_steps_go_on() -> None:
    before = broken()
    go(*WANDB, "ckpt_path=out/checkpoints/last.ckpt")
    first, second = offline_runs(Path("out"))
    assert first.run.run_id == before.run.run_id == second.run.run_id == read(FILE)["id"]
    assert first.folder != second.folder
    drawn = steps(first) + steps(second)
    assert drawn == sorted(set(drawn)), "a step that is there twice would be lost on wandb sync"
    seen = [row["budget/examples_seen"] for run in (first, second) for row in run.rows if "train/loss" in row]
    assert set(seen) == {8, 16, 24, 32} and seen[-1] == 32
    assert read(FILE)["step"] > max(drawn)


def test_resumed_in_another_folder_it_is_a_new_run_unless_asked() -> None:
    before = broken()
    go(*WANDB, "ckpt_path=out/checkpoints/last.ckpt", out="new")
    (new,) = offline_runs(Path("new"))
    assert new.run.run_id != before.run.run_id and min(steps(new)) == 0
    go(*WANDB, "ckpt_path=out/checkpoints/last.ckpt", f"logger.id={before.run.run_id}", out="asked")
    (asked,) = offline_runs(Path("asked"))
    assert asked.run.run_id == before.run.run_id and min(steps(asked)) > max(steps(before))


def test_what_a_folder_records_decides_which_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, other = tmp_path / "here", tmp_path / "other"
    for folder, name in ((here, "h"), (other, "o")):
        folder.mkdir()
        Tracked(name, 7).write(folder)
    own, foreign = (str(folder / "checkpoints" / "last.ckpt") for folder in (here, other))
    assert continued(here, None, None) is None, "begun afresh"
    assert continued(here, own, None) == Tracked("h", 7)
    assert continued(here, foreign, None) is None
    assert continued(here, foreign, "o") == Tracked("o", 7)
    assert continued(here, foreign, "x") == Tracked("x", 0)
    (here / FILE).write_text("{")
    assert tracked(here) is None and continued(here, own, None) is None


def test_the_record_is_ahead_of_what_was_logged_and_seldom_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = Tracked.write
    monkeypatch.setattr(Tracked, "write", lambda self, folder: (written.append(self.step), write(self, folder)))
    logged: list[int] = []
    log = counted(lambda row: logged.append(row), Tracked("a", 5), tmp_path)
    for number in range(5, 5 + 3 * AHEAD):
        log(number)
        found = tracked(tmp_path)
        assert found is not None and found.step > number
    assert logged == list(range(5, 5 + 3 * AHEAD)) and len(written) == 3
