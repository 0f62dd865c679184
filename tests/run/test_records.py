"""Ledger, history, budget, status and provenance: exact, whole on disk, and silent about whose machine it was."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from winnow import ledger as ledgers
from winnow.records import provenance as provenances
from winnow.records.history import History
from winnow.records.ledger import SCHEMA, Ledger, read
from winnow.records.provenance import anonymous, code_state, provenance
from winnow.records.status import Status
from winnow.records.strict_json import write_json
from winnow.report.composition import composition
from winnow.report.ledger import summarise
from winnow.scorer.flops import Flops
from winnow.selection import Selection
from winnow.training.budget import Budget

POOL = 6


def pools(count: int, start: int = 0) -> list[dict]:
    """Pools of random candidates with a NaN loss here and there; the same every time."""
    rng = np.random.default_rng(7)
    made = []
    for step in range(start + count):
        kept = np.sort(rng.choice(POOL, rng.integers(0, 4), replace=False))
        weight = rng.random(len(kept)).astype(np.float32)
        losses = rng.random(POOL).astype(np.float32)
        losses[rng.random(POOL) < 0.2] = np.nan
        made.append({
            "step": step,
            "meta": {
                "id": [f"e{number}" for number in rng.integers(0, 9, POOL)],
                "source": rng.choice(["a", "b"], POOL).tolist(),
                "group": rng.choice(["in", "far"], POOL).tolist(),
                "noise": rng.choice(["", "", "wrong"], POOL).tolist(),
            },
            "losses": torch.from_numpy(losses),
            "alignment": torch.from_numpy(rng.standard_normal(POOL).astype(np.float32)),
            "selection": Selection(torch.from_numpy(kept), torch.from_numpy(weight)),
        })
    return made[start:]


def written(folder: Path, count: int = 10, flush_every: int = 3, start: int = 0) -> Ledger:
    book = Ledger(folder, flush_every)
    for pool in pools(count, start):
        book.append(**pool)
    return book


def frame(count: int = 10) -> pd.DataFrame:
    """The same pools as a table, made row by row without the ledger."""
    rows = []
    for pool in pools(count):
        chosen = dict(zip(pool["selection"].index.tolist(), pool["selection"].weight.tolist(), strict=True))
        rows += [
            {
                "step": pool["step"],
                **{name: pool["meta"][name][at] for name in ("id", "source", "group")},
                "noise": pool["meta"]["noise"][at] or None,
                "loss": float(pool["losses"][at]),
                "alignment": float(pool["alignment"][at]),
                "kept": at in chosen,
                "weight": chosen.get(at, 0.0),
            }
            for at in range(POOL)
        ]
    return pd.DataFrame(rows)


# Ledger


def test_a_closed_ledger_has_a_row_per_candidate_and_step(tmp_path: Path) -> None:
    written(tmp_path).close()
    table = pq.read_table(tmp_path / "ledger.parquet")
    assert table.schema.remove_metadata() == SCHEMA and not (tmp_path / "ledger").exists()
    found, expected = table.to_pandas(), frame()
    assert len(found) == 10 * POOL
    for name in expected.columns:
        if expected[name].dtype == float:
            np.testing.assert_array_equal(found[name].to_numpy(), expected[name].to_numpy().astype(np.float32))
        else:
            assert found[name].where(found[name].notna(), None).tolist() == expected[name].tolist()


def test_what_was_flushed_survives_a_kill(tmp_path: Path) -> None:
    book = written(tmp_path, count=8, flush_every=3)
    assert read(tmp_path).num_rows == 6 * POOL, "two whole parts; the rest was only in memory"
    (tmp_path / "ledger" / "part-000002.tmp").write_bytes(b"half a part")
    assert read(tmp_path).num_rows == 6 * POOL
    book.close()
    assert read(tmp_path).equals(_closed(tmp_path / "whole", 8))


def _closed(folder: Path, count: int) -> pa.Table:
    written(folder, count).close()
    return read(folder)


@pytest.mark.parametrize("same", [True, False], ids=["same folder", "new folder"])
@pytest.mark.parametrize("closed", [True, False], ids=["closed", "killed"])
def test_resumed_equals_uninterrupted(tmp_path: Path, same: bool, closed: bool) -> None:
    old = tmp_path / "old"
    first = written(old, count=7, flush_every=2)
    if closed:
        first.close()
    new = old if same else tmp_path / "new"
    again = Ledger(new, flush_every=2)
    again.resume(old, step=4)
    for pool in pools(5, start=5):
        again.append(**pool)
    again.close()
    assert read(new).equals(_closed(tmp_path / "whole", 10))
    assert same or read(old).num_rows >= 6 * POOL, "the earlier run keeps its rows"
    assert sorted(path.name for path in new.iterdir()) == ["ledger.parquet"]


def test_an_earlier_run_in_the_folder_does_not_mix_in(tmp_path: Path) -> None:
    written(tmp_path, count=9, flush_every=1)
    written(tmp_path, count=2, flush_every=1).close()
    assert read(tmp_path)["step"].to_pylist() == [0] * POOL + [1] * POOL


def test_an_empty_id_stays_what_it_is(tmp_path: Path) -> None:
    (pool,) = pools(1)
    pool["meta"]["id"][0] = pool["meta"]["source"][0] = ""
    book = Ledger(tmp_path)
    book.append(**pool)
    book.close()
    rows = read(tmp_path).to_pydict()
    assert rows["id"][0] == "" and rows["source"][0] is None


def test_closing_twice_and_closing_nothing_are_harmless(tmp_path: Path) -> None:
    book = written(tmp_path)
    book.close()
    before = read(tmp_path)
    book.close()
    assert read(tmp_path).equals(before)
    Ledger(tmp_path / "none").close()
    with pytest.raises(FileNotFoundError, match="no ledger"):
        read(tmp_path / "none")
    with pytest.raises(ValueError, match="got 0"):
        Ledger(tmp_path, flush_every=0)


def test_composition_is_by_noise_else_group_else_source(tmp_path: Path) -> None:
    written(tmp_path).close()
    rows = frame()
    rows["of"] = [
        noise if isinstance(noise, str) else group for noise, group in zip(rows["noise"], rows["group"], strict=True)
    ]
    for by, column in ((None, "of"), ("source", "source"), ("group", "group")):
        found = composition(tmp_path, by)
        assert set(found) == set(rows[column])
        for name, counts in found.items():
            mine = rows[rows[column] == name]
            assert (counts["seen"], counts["kept"]) == (len(mine), mine["kept"].sum())
            assert counts["weight"] == pytest.approx(mine["weight"].sum(), rel=1e-6)
    plain = Ledger(tmp_path / "plain")
    for pool in pools(3):
        plain.append(**{**pool, "meta": {**pool["meta"], "group": [""] * POOL, "noise": [""] * POOL}})
    plain.close()
    assert set(composition(tmp_path / "plain")) == {"a", "b"}


def test_summary_equals_pandas(tmp_path: Path) -> None:
    written(tmp_path).close()
    found, rows = summarise(tmp_path, top=2), frame()
    kept, left = rows[rows["kept"]], rows[~rows["kept"]]
    assert (found["steps"], found["seen"], found["kept"]) == (10, len(rows), len(kept))
    assert found["distinct_kept"] == kept["id"].nunique()
    for name in ("loss", "alignment"):
        assert found[name]["kept"] == pytest.approx(np.nanmean(kept[name]), rel=1e-6)
        assert found[name]["rejected"] == pytest.approx(np.nanmean(left[name]), rel=1e-6)
    sums = {(row["id"], row["source"]): row["sum"] for row in found["heaviest"]}
    pairs = kept.groupby(["id", "source"])["weight"].sum().nlargest(2)
    assert sums == pytest.approx(pairs.to_dict(), rel=1e-6)


def test_the_ledger_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    book = Ledger(tmp_path)
    pool = pools(1)[0]
    book.append(**{**pool, "alignment": None})
    book.close()
    assert ledgers.main([str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"1 steps, {POOL} candidates seen" in text and "not computed" in text
    assert ledgers.main([str(tmp_path / "ledger.parquet"), "--json"]) == 0
    strict = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert strict["seen"] == POOL and strict["alignment"]["kept"] is None
    assert ledgers.main([str(tmp_path / "nothing")]) == 2
    assert "no ledger" in capsys.readouterr().err
    (tmp_path / "bad.parquet").write_bytes(b"not parquet at all")
    assert ledgers.main([str(tmp_path / "bad.parquet")]) == 2
    assert "bad.parquet" in capsys.readouterr().err


# History


def test_history_reads_back_exactly_and_grows_its_header(tmp_path: Path) -> None:
    history = History(tmp_path / "new" / "metrics.csv")
    history.append(0, {"a": 0.1 + 0.2, "b": float("nan")})
    history.append(1, {"a": 1e-300, "c": float("inf")})
    text = (tmp_path / "new" / "metrics.csv").read_text()
    assert text.splitlines() == ["step,a,b,c", f"0,{0.1 + 0.2!r},,", "1,1e-300,,inf"]
    assert [float(line.split(",")[1]) for line in text.splitlines()[1:]] == [0.1 + 0.2, 1e-300]


def test_resumed_history_equals_uninterrupted(tmp_path: Path) -> None:
    def write(history: History, steps: range) -> None:
        for step in steps:
            history.append(step, {"x": step / 3, **({"late": 1.0} if step >= 6 else {})})

    whole, old = History(tmp_path / "whole.csv"), History(tmp_path / "old.csv")
    write(whole, range(9))
    write(old, range(7))
    with open(tmp_path / "old.csv", "a") as file:
        file.write("7,0.6")  # killed in the middle of a row
    new, same = History(tmp_path / "new.csv"), History(tmp_path / "old.csv")
    new.resume(tmp_path / "old.csv", step=4)
    same.resume(tmp_path / "old.csv", step=4)
    write(new, range(5, 9))
    write(same, range(5, 9))
    expected = (tmp_path / "whole.csv").read_text()
    assert (tmp_path / "new.csv").read_text() == expected == (tmp_path / "old.csv").read_text()


def test_a_history_that_is_not_resumed_replaces_an_old_one(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        History(tmp_path / "m.csv").append(0, {"x": value})
    assert pd.read_csv(tmp_path / "m.csv")["x"].tolist() == [2.0]


# Budget


def test_budget_counts_and_survives_its_state() -> None:
    budget = Budget()
    more = {"examples": 8, "truncated": 0, "drawn": 8, "scored": 1}
    first = {"tokens": 80, "kept": 3, "kept_tokens": 30, "target": 4, "excluded": 1}
    budget.step(**more | first | {"drawn": 32, "truncated": 2}, updated=True)
    second = {"tokens": 70, "kept": 0, "kept_tokens": 0, "target": 4, "excluded": 8}
    budget.step(**more | second | {"scored": 0}, updated=False)
    restored = Budget()
    restored.load_state_dict(json.loads(json.dumps(budget.state_dict())))
    assert restored.state_dict() == budget.state_dict()
    third = {"tokens": 10, "kept": 1, "kept_tokens": 5, "target": 0, "excluded": 0}
    restored.step(**more | third, updated=True)
    assert {name: value for name, value in restored.metrics().items() if name.startswith("budget/")} == {
        "budget/steps": 3,
        "budget/updates": 2,
        "budget/examples_seen": 24,
        "budget/tokens_seen": 160,
        "budget/examples_trained": 4,
        "budget/tokens_trained": 35,
        "budget/examples_target": 8,
        "budget/examples_excluded": 9,
        "budget/examples_truncated": 2,
        "budget/examples_drawn": 48,
        "budget/steps_scored": 2,
        "budget/tokens_forwarded": 0,
        "budget/tokens_backwarded": 0,
        "budget/flops": 0,
        **dict.fromkeys((f"budget/flops_{part}" for part in (*vars(Flops()), "evaluation")), 0),
    }


def test_budget_times_steps_and_the_selecting_in_them() -> None:
    budget = Budget()
    counts = {
        "examples": 1, "tokens": 50, "kept": 1, "kept_tokens": 1, "target": 0, "excluded": 0, "truncated": 0,
        "drawn": 1, "scored": 1,
    }  # fmt: skip
    begun = perf_counter()
    budget.start()
    while perf_counter() - begun < 0.02:
        pass
    budget.lap("selecting")
    budget.step(**counts, updated=True)
    took = perf_counter() - begun
    assert 0.02 <= budget.seconds_selecting <= budget.seconds <= took
    assert 50 / took <= budget.metrics()["time/tokens_per_second"] <= 50 / 0.02
    before = budget.seconds
    budget.step(**counts, updated=True)  # not started: no time is counted twice
    assert budget.seconds == before


# Status and provenance


def test_status_tells_how_a_run_ended(tmp_path: Path) -> None:
    def state() -> dict:
        return json.loads((tmp_path / "status.json").read_text())

    status = Status(tmp_path)
    assert state()["state"] == "running", "which is what a killed run leaves"
    status.failed(KeyboardInterrupt(), resume=None)
    assert state()["state"] == "interrupted" and state()["ckpt_path"] is None
    assert state()["error"] == "KeyboardInterrupt: SIGINT"
    status.failed(AssertionError(), resume=None)
    assert state()["error"] == "AssertionError: no message"
    status.failed(ValueError("bad"), resume=Path("a/last.ckpt"))
    assert (state()["state"], state()["error"], state()["ckpt_path"]) == ("failed", "ValueError: bad", "a/last.ckpt")
    status.finished()
    assert state()["state"] == "finished" and "error" not in state() and state()["ended"] >= state()["started"]


def test_records_do_not_say_whose_machine_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, work = tmp_path / "home" / "ada", tmp_path / "home" / "ada" / "project"
    work.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(work)
    monkeypatch.setattr(platform, "node", lambda: "adas-laptop")
    monkeypatch.setattr(
        sys,
        "argv",
        [str(work / "train.py"), f"data.stream={work}/s.jsonl", f"model.path={home}/m", f"x={work}", "y=/a/b"],
    )
    assert provenance()["command"] == ["train.py", "data.stream=s.jsonl", "model.path=~/m", "x=.", "y=/a/b"]
    Status(work / "run").failed(
        FileNotFoundError(f"[Errno 2] '{home}/data/x.jsonl' on adas-laptop, not {home}-old or train.py"),
        resume=work / "run" / "last.ckpt",
    )
    text = (work / "run" / "status.json").read_text()
    assert json.loads(text)["ckpt_path"] == "run/last.ckpt"
    assert "'~/data/x.jsonl' on <host>" in text and f"{home}-old" in text and "train.py" in text
    for record in (text, json.dumps(provenance())):
        assert f"{home}/" not in record and "adas-laptop" not in record
    assert anonymous({"a": [f"{home}/x", 3, None]}) == {"a": ["~/x", 3, None]}


def test_a_commit_is_given_only_for_the_source_tree_itself(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "a.py").write_text("")
    assert code_state(tmp_path) == {"commit": None, "dirty": None}
    git("init")
    git("add", ".")
    git("commit", "-m", "x")
    clean = code_state(tmp_path)
    assert len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "notes.txt").write_text("not code")
    assert code_state(tmp_path)["dirty"] is False
    (tmp_path / "src" / "b.py").write_text("")
    assert code_state(tmp_path)["dirty"] is True
    (tmp_path / "lib").mkdir()
    assert code_state(tmp_path / "lib") == {"commit": None, "dirty": None}, "that is another project's commit"


def test_json_is_whole_and_strict(tmp_path: Path) -> None:
    path = tmp_path / "new" / "x.json"
    write_json(path, {"a": float("nan"), "b": [float("inf"), 1.5], "c": Path("p"), 3: None})
    assert json.loads(path.read_text(), parse_constant=lambda _: pytest.fail("not JSON")) == {
        "a": None,
        "b": ["inf", 1.5],
        "c": "p",
        "3": None,
    }
    assert [file.name for file in path.parent.iterdir()] == ["x.json"]


def test_provenance_names_versions_and_machine() -> None:
    found = provenance()
    assert found["packages"]["torch"] == torch.__version__
    assert found["python"] == platform.python_version() and found["cpus"] == os.cpu_count()
    assert set(provenances.PACKAGES) == set(found["packages"])
