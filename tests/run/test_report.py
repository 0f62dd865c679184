"""The report tells what its runs' folders hold, and says so when they cannot be compared."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from scipy import stats

from winnow.records.history import History
from winnow.records.ledger import Ledger
from winnow.records.strict_json import write_json
from winnow.report import compare, load
from winnow.report.__main__ import main
from winnow.report.compare import figures
from winnow.report.composition import composition
from winnow.report.plot import _over_seeds, plot
from winnow.report.summary import print_summary
from winnow.report.tables import print_comparison
from winnow.selection import Selection


def make(
    folder: Path,
    method: str,
    seed: int,
    nll: float = 2.0,
    state: str = "finished",
    selector: dict[str, Any] | None = None,
    trained: int = 12,
    pool_size: int = 4,
    noise: bool = True,
) -> Path:
    """A run's folder, its records written by the suite's own writers."""
    config = {
        "name": method,
        "seed": seed,
        "out": str(folder),
        "selector": {"_target_": method, **(selector or {})},
        "data": {"pool_size": pool_size, "corpus": {"seed": seed}},
        "scoring": {"sketch_seed": seed},
        "logger": {"name": f"{method}-s{seed}"},
    }
    write_json(folder / "config.json", config)
    write_json(folder / "status.json", {"state": state, **({"error": "ValueError: x"} if state == "failed" else {})})
    write_json(folder / "provenance.json", {"git": {"commit": "c", "dirty": False}, "packages": {"torch": "2"}})
    history = History(folder / "metrics.csv")
    for step in range(3):
        history.append(step, {"train/loss": 1.0, "budget/examples_trained": 4.0 * (step + 1)})
        history.append(step, {"target/val_nll": nll + 1 - 0.5 * step, "budget/examples_trained": 4.0 * (step + 1)})
    ledger = Ledger(folder)
    meta = {
        "id": list("abcd"),
        "source": ["s1", "s1", "s2", "s2"],
        "group": ["in", "far", "near", "in"] if noise else [""] * 4,
        "noise": ["", "", "", "wrong"] if noise else [""] * 4,
    }
    for step in range(3):
        ledger.append(step, meta, torch.ones(4), None, Selection.of(torch.tensor([0, 3 if step else 1])))
    ledger.close()
    if state == "finished":
        budget = {
            "steps": 3,
            "examples_trained": trained,
            "examples_seen": 48,
            "tokens_trained": 120,
            "tokens_seen": 480,
            "examples_excluded": 0,
            "examples_truncated": 2,
            "seconds": 10.0,
            "seconds_selecting": 4.0,
        }
        write_json(
            folder / "summary.json",
            {
                "name": method,
                "seed": seed,
                "before": {"sums/nll": 3.0, "sums/accuracy": 0.0},
                "after": {"sums/nll": nll, "sums/accuracy": 0.25 + seed / 10},
                "budget": budget,
                "seconds": 12.0,
                "composition": composition(folder),
            },
        )
    return folder


NLLS = {"random": [2.5, 2.3, 2.6], "filter_weight": [2.1, 2.2, 2.0]}


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    return [
        make(tmp_path / f"{method}-{seed}", method, seed, nll)
        for method, values in NLLS.items()
        for seed, nll in enumerate(values)
    ]


def test_interval_is_the_paired_t_interval_of_scipy(folders: list[Path]) -> None:
    found = {d.figure: d for d in compare([load(folder) for folder in reversed(folders)]).differences}["nll"]
    expected = stats.ttest_rel(NLLS["filter_weight"], NLLS["random"]).confidence_interval(0.95)
    assert found.method == "filter_weight" and found.seeds == (0, 1, 2)
    assert found.mean == pytest.approx(np.mean(np.subtract(NLLS["filter_weight"], NLLS["random"])))
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_only_seeds_that_both_have_are_paired(folders: list[Path]) -> None:
    found = compare([load(folder) for folder in folders if folder.name != "random-1"]).differences[0]
    assert found.seeds == (0, 2)
    assert found.mean == pytest.approx(((2.1 - 2.5) + (2.0 - 2.6)) / 2)
    single = compare([load(folders[0]), load(folders[3])]).differences[0]
    assert single.low is None and single.mean == pytest.approx(2.1 - 2.5)


def test_the_control_is_random_unless_another_is_named(folders: list[Path]) -> None:
    runs = [load(folder) for folder in folders]
    assert compare(runs).control == "random"
    named = compare(runs, "filter_weight")
    assert {d.method for d in named.differences} == {"random"}
    assert named.differences[0].mean == pytest.approx(-compare(runs).differences[0].mean)
    assert compare(runs[3:]).control is None and compare(runs[3:]).differences == ()
    with pytest.raises(ValueError, match=r"--control greats.*random, filter_weight"):
        compare(runs, "greats")


def test_unfinished_runs_are_marked_and_count_nowhere(tmp_path: Path, folders: list[Path]) -> None:
    half = [make(tmp_path / state, "random", 7, nll=0.1, state=state) for state in ("failed", "running", "interrupted")]
    whole, found = compare([load(f) for f in folders]), compare([load(f) for f in [*folders, *half]])
    assert found.differences == whole.differences
    assert [run.seed for run in found.methods["random"]] == [0, 1, 2]
    for folder in half:
        assert any(str(folder) in warning and "did not finish" in warning for warning in found.warnings)
    assert any("ValueError: x" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"pool_size": 8}, r"data\.pool_size is 4 or 8"), ({"trained": 24}, "from 12 to 24 examples .*100.0 % more")],
)
def test_what_makes_runs_incomparable_is_said(tmp_path: Path, change: dict[str, int], message: str) -> None:
    first, same = make(tmp_path / "a", "random", 0), make(tmp_path / "b", "filter_weight", 1, selector={"ridge": 1})
    assert compare([load(first), load(same)]).warnings == ()
    other = make(tmp_path / "c", "filter_weight", 0, **change)
    (warning,) = compare([load(first), load(other)]).warnings
    assert re.search(message, warning)


def test_runs_of_other_code_or_uncommitted_code_are_named(tmp_path: Path) -> None:
    a, b = make(tmp_path / "a", "random", 0), make(tmp_path / "b", "full", 0)
    write_json(b / "provenance.json", {"git": {"commit": "d", "dirty": True}, "packages": {"torch": "2"}})
    warnings = " ".join(compare([load(a), load(b)]).warnings)
    assert "commit: c or d" in warnings and "uncommitted" in warnings and "torch" not in warnings


def test_methods_of_one_name_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    runs = [
        load(make(tmp_path / f"k{size}", "filter_weight", 0, selector={"filter_size": size, "ridge": 0}))
        for size in (4, 8)
    ]
    labels = [label for label, _ in compare(runs).runs]
    assert labels == ["filter_weight filter_size=4", "filter_weight filter_size=8"]


def test_the_same_run_twice_is_refused(folders: list[Path]) -> None:
    with pytest.raises(ValueError, match="both random with seed 0"):
        compare([load(folders[0]), load(folders[0])])


def test_several_targets_are_averaged_and_shown(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "random", 0)
    summary = json.loads((folder / "summary.json").read_text())
    summary["after"] = {"x/nll": 1.0, "y/nll": 2.0, "y/accuracy": 0.5}
    write_json(folder / "summary.json", summary)
    assert figures(load(folder), "after") == {"nll": 1.5, "x/nll": 1.0, "y/nll": 2.0, "accuracy": 0.5}


def test_the_curve_is_the_mean_over_seeds_of_metrics_csv(folders: list[Path]) -> None:
    curve = _over_seeds([load(folder) for folder in folders[:3]], "examples")
    np.testing.assert_allclose(curve["nll"], np.mean(NLLS["random"]) + np.array([1.0, 0.5, 0.0]))
    assert list(curve["cost"]) == [4.0, 8.0, 12.0]
    np.testing.assert_allclose(curve["high"] - curve["low"], 0.3)


def test_two_runs_stand_side_by_side_in_a_narrow_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main([str(make(tmp_path / name, name, 0)) for name in ("filter_weight", "random")]) == 0
    text = capsys.readouterr().out
    assert "filter_weight ┃" in text and "random ┃" in text
    for shown in ("3.0000 → 2.0000", "0.0 % → 25.0 %", "12 of 48", "120 of 480"):
        assert text.count(shown) == 2


@pytest.mark.parametrize("noise", [True, False])
def test_the_command_prints_plots_and_writes_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, noise: bool
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    folders = [make(tmp_path / f"{m}{s}", m, s, noise=noise) for m in ("random", "filter_weight") for s in (0, 1)]
    out, data = tmp_path / "sub" / "compare.png", tmp_path / "sub" / "compare.json"
    assert main([*map(str, folders), "--out", str(out), "--json", str(data)]) == 0
    text = capsys.readouterr().out
    assert "3.0000 → 2.0000" in text and "0.0 % → 25.0 %" in text and "12 / 48" in text and "120 / 480" in text
    # Kept: a, b, a, d, a, d; offered: a, b, c, d three times.
    row = ["50.0 %", "0.0 %", "16.7 %", "33.3 %"] if noise else ["66.7 %", "33.3 %"]
    (line,) = [line for line in text.splitlines() if "random, seed 1" in line]
    assert [cell.strip() for cell in line.split("│")[2:-1]] == row
    assert out.read_bytes()[:4] == b"\x89PNG"
    content = json.loads(data.read_text())
    assert [run["after"]["nll"] for run in content["runs"]] == [2.0] * 4 and content["control"] == "random"


def test_exit_codes(tmp_path: Path, folders: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "not a run's folder" in capsys.readouterr().err
    half = make(tmp_path / "half", "random", 0, state="failed")
    assert main([str(half)]) == 1
    assert main([str(folders[0]), "--out", str(tmp_path / "x.gif2")]) == 2
    assert "png" in capsys.readouterr().err
    (folders[0] / "summary.json").unlink()
    assert main([str(folders[0])]) == 2
    (folders[1] / "status.json").write_text("{")
    assert main([str(folders[1])]) == 2
    assert "status.json is not JSON" in capsys.readouterr().err


def test_a_plot_needs_a_measurement(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "random", 0)
    (folder / "metrics.csv").write_text("step,train/loss\n0,1.0\n")
    with pytest.raises(ValueError, match="val_nll"):
        plot(compare([load(folder)]), tmp_path / "x.png")


def test_the_summary_shows_figures_composition_budget_and_seconds(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "random", 0)
    console = Console(file=io.StringIO(), width=120)
    print_summary(json.loads((folder / "summary.json").read_text()), folder, console)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert ["sums: answer NLL, nats per token", "3.0000", "2.0000"] in rows
    assert ["sums: exact match", "0.0 %", "25.0 %"] in rows
    assert ["clean: in", "25.0 %", "50.0 %", "50.0 %"] in rows
    assert ["spoilt: wrong", "25.0 %", "33.3 %", "33.3 %"] in rows
    assert ["trained on", "12", "120"] in rows and ["seen", "48", "480"] in rows
    assert "10 s in 3 steps, 4 s (40 %) of them scoring and selecting; 12 s with" in text
    assert "2 candidates were cut" in text and str(folder) in text


def test_labels_of_the_users_own_are_called_neither_clean_nor_spoilt(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "random", 0)
    summary = json.loads((folder / "summary.json").read_text())
    summary["composition"] = {name: {"seen": 4, "kept": 2, "weight": 2.0} for name in ("far", "shuffled_response")}
    console = Console(file=io.StringIO(), width=120)
    print_summary(summary, folder, console)
    assert "│ shuffled_response " in console.file.getvalue() and "clean: far" in console.file.getvalue()


def test_what_was_spent_before_training_is_shown_and_a_chosen_part_is_a_method_of_its_own(tmp_path: Path) -> None:
    runs = [make(tmp_path / f"{at}", "random", at % 2) for at in range(4)]
    for at in (2, 3):
        config, summary = (json.loads((runs[at] / f"{name}.json").read_text()) for name in ("config", "summary"))
        config["data"] |= {"subset": f"seed{at}/scores.parquet", "subset_size": 8, "subset_by": "score"}
        parts = [{"what": "warm-up training", "seconds": 30.0}, {"what": "scoring", "seconds": 12.0}]
        summary["preparation"] = {"examples": 2400, "tokens": 9999, "seconds": 42.0, "parts": parts, "unknown": []}
        write_json(runs[at] / "config.json", config)
        write_json(runs[at] / "summary.json", summary)
    found = compare([load(folder) for folder in runs])
    assert set(found.methods) == {"random", "random of scores.parquet, 8"} and found.control == "random"
    assert not any("data.subset" in warning for warning in found.warnings)
    console = Console(file=io.StringIO(), width=200)
    print_comparison(found, console)
    lines = [line for line in console.file.getvalue().splitlines() if "12 / 48" in line]
    assert [line.split("│")[-2].strip() for line in lines if "mean" not in line] == ["0, 0"] * 2 + ["2,400, 42"] * 2
    console = Console(file=io.StringIO(), width=200)
    print_summary(json.loads((runs[2] / "summary.json").read_text()), runs[2], console)
    assert (
        "2,400 examples, 9,999 response tokens and 42 s (warm-up training 30 s, scoring 12 s)"
        in console.file.getvalue()
    )


@pytest.mark.parametrize(("usable", "title"), [(True, "stream"), (False, "what could be chosen")])
def test_kept_examples_are_compared_with_what_could_be_chosen_and_it_is_called_so(
    tmp_path: Path, usable: bool, title: str
) -> None:
    folder = make(tmp_path / "run", "random", 0)
    ledger = Ledger(folder)
    meta = {"id": list("ab"), "source": ["s1"] * 2, "group": ["in", "far"], "noise": [""] * 2}
    valid = torch.tensor([True, usable])
    ledger.append(0, meta, torch.ones(2), None, Selection.of(torch.tensor([0])), valid=valid)
    ledger.close()
    out = io.StringIO()
    print_comparison(compare([load(folder)]), Console(file=out, width=200))
    assert re.search(rf"│ {title} +│", out.getvalue())
