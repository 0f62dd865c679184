"""Methods at equal cost, and methods told apart by what is in front of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from scipy import stats

from tests.run.test_report import make
from winnow.records.history import History
from winnow.records.ledger import SCHEMA, Gated, Ledger, read
from winnow.records.strict_json import write_json
from winnow.report import compare, load
from winnow.report.compare import label
from winnow.report.composition import composition
from winnow.report.equal import equal_costs, winners
from winnow.report.plot import _over_seeds
from winnow.report.summary import cost_lines
from winnow.selection import Selection

COSTS = {"random": [1.0, 2.0, 3.0, 4.0], "gated": [2.0, 4.0, 6.0]}
LOSSES = {"random": [3.0, 2.5, 2.2, 2.0], "gated": [2.6, 1.8, 1.6]}


def spent(folder: Path, method: str, seed: int) -> Path:
    """A run with a curve against operations and seconds; the gated one is dearer by the step and better by the cost."""
    make(folder, method, seed)
    (folder / "metrics.csv").unlink()
    history = History(folder / "metrics.csv")
    for step, (cost, loss) in enumerate(zip(COSTS[method], LOSSES[method], strict=True)):
        history.append(
            step,
            {
                "target/val_nll": loss + 0.1 * seed * (method == "gated"),
                "budget/examples_trained": 4.0 * (step + 1),
                "budget/flops": cost * 1e9,
                "time/seconds": 9 * cost,
                "time/loading": cost,
            },
        )
    return folder


@pytest.fixture
def runs(tmp_path: Path) -> list[Any]:
    return [load(spent(tmp_path / f"{name}{seed}", name, seed)) for name in COSTS for seed in (0, 1, 2)]


def test_methods_are_compared_where_all_have_spent_as_much(runs: list[Any]) -> None:
    found = {(row.axis, row.method): row for row in equal_costs(compare(runs))}
    gated, control = found["flops", "gated"], found["flops", "random"]
    assert gated.at == control.at == 4e9, "what the cheapest run has spent in all"
    assert control.nll == pytest.approx(2.0) and gated.nll == pytest.approx(1.8 + 0.1)
    gaps = [1.8 + 0.1 * seed - 2.0 for seed in range(3)]
    expected = stats.ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert gated.difference == pytest.approx(np.mean(gaps))
    assert (gated.low, gated.high) == pytest.approx((expected.low, expected.high))
    # From 2.6 at 2 to 1.8 at 4, and a tenth higher for every seed: 2.0 is reached at 3.5, 3.75 and 4.
    assert gated.reached == pytest.approx(np.mean([3.5, 3.75, 4.0]) / 4)
    assert control.difference is None and control.reached is None
    examples = found["examples", "gated"]
    assert examples.at == 12 and examples.nll == pytest.approx(1.7)
    assert found["seconds", "gated"].nll == pytest.approx(gated.nll)


def test_who_wins_is_said_with_its_doubt(runs: list[Any]) -> None:
    sentences = winners(equal_costs(compare(runs)))
    assert sentences[0].startswith("at equal examples trained on: gated is lowest, -0.5000 to random")
    assert sentences[1].endswith("to random; the interval holds zero") and "operations" in sentences[1]
    single = winners(equal_costs(compare([runs[0], runs[3]])))
    assert all("one seed says little" in sentence for sentence in single)
    assert winners(equal_costs(compare(runs[:3]))) == []


def test_what_was_never_reached_and_what_was_not_counted(tmp_path: Path, runs: list[Any]) -> None:
    reverse = {(row.axis, row.method): row for row in equal_costs(compare(runs, "gated"))}
    assert reverse["flops", "random"].reached is None
    old = [load(make(tmp_path / f"old{method}", method, 0)) for method in COSTS]
    assert {row.axis for row in equal_costs(compare(old))} == {"examples"}, "earlier versions counted nothing else"


def test_curves_of_seeds_that_end_at_different_steps_keep_their_ends(tmp_path: Path) -> None:
    folders = [spent(tmp_path / str(seed), "random", seed) for seed in (0, 1)]
    table = pd.read_csv(folders[1] / "metrics.csv")
    table.loc[3, "step"] = 7  # a budget ends a run wherever it is spent
    table.to_csv(folders[1] / "metrics.csv", index=False)
    curve = _over_seeds([load(folder) for folder in folders], "flops")
    assert curve["cost"].tolist() == [1e9, 2e9, 3e9, 4e9]
    assert curve["nll"].tolist() == pytest.approx(LOSSES["random"])


def test_a_gate_and_its_settings_are_part_of_a_method_s_name(tmp_path: Path) -> None:
    def run(number: int, **config: Any) -> Any:
        folder = make(tmp_path / str(number), "filter_weight", number)
        known = json.loads((folder / "config.json").read_text())
        known["scoring"] |= config.pop("scoring", {})
        known["data"] |= config.pop("data", {})
        write_json(folder / "config.json", known | config)
        return load(folder)

    gate = {"_target_": "winnow.gates.LinearGate", "features": {"_target_": "winnow.gates.NGrams", "dim": 512}}
    other = {**gate, "features": {"_target_": "winnow.gates.Fields", "dim": 64}}
    assert label([run(0, gate={}), run(1, gate=gate, scoring={"period": 8}), run(2, gate=other)]) == [
        "filter_weight",
        "ngrams gate + filter_weight",
        "source gate + filter_weight",
    ]
    periods = [run(number, gate=gate, scoring={"period": period}) for number, period in ((3, 4), (4, 8))]
    assert label(periods) == [f"ngrams gate + filter_weight period={period}" for period in (4, 8)]
    assert label([run(5, gate=gate, data={"draw_size": size}) for size in (32,)]) == ["ngrams gate + filter_weight"]
    apart = compare(periods)
    assert not any("scoring.period" in warning for warning in apart.warnings)


def test_rejected_candidates_are_offered_and_could_not_be_chosen(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    meta = {"id": ["a", "b"], "source": ["s", "s"], "group": ["in", "far"], "noise": ["", ""]}
    rejected = {"id": ["c"], "source": ["t"], "group": ["far"], "noise": [""]}
    gated = Gated(
        torch.tensor([0.5, 0.1]),
        torch.tensor([False, True]),
        torch.tensor([0.4, torch.nan]),
        rejected,
        torch.tensor([-1.0]),
    )
    ledger.append(
        0, meta, torch.ones(2), None, Selection.of(torch.tensor([0])), valid=torch.tensor([True, True]), gated=gated
    )
    ledger.close()
    rows = read(tmp_path).to_pandas()
    assert rows["passed"].tolist() == [True, True, False] and rows["kept"].tolist() == [True, False, False]
    assert rows["predicted"].tolist() == pytest.approx([0.5, 0.1, -1.0]) and rows["exact"].notna().tolist() == [
        True,
        False,
        False,
    ]
    found = composition(tmp_path)
    assert found["far"] == {"seen": 2, "usable": 1, "kept": 0, "weight": 0.0}


def test_a_ledger_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    make(tmp_path, "random", 0)
    table = pq.read_table(tmp_path / "ledger.parquet")
    pq.write_table(table.drop_columns(["passed", "predicted", "at_random", "exact"]), tmp_path / "ledger.parquet")
    old = read(tmp_path)
    assert old.schema.names == SCHEMA.names and old["passed"].null_count == old.num_rows
    assert composition(tmp_path)["in"]["usable"] == composition(tmp_path)["in"]["seen"]


def test_cost_in_words() -> None:
    parts = {"flops_forward": 6e9, "flops_backward": 3e9, "flops_weights": 1e9, "flops_evaluation": 2e9}
    budget = {"tokens_forwarded": 1000, "tokens_backwarded": 500, "examples_seen": 10, "examples_drawn": 40, "steps": 4,
              "steps_scored": 1, "seconds_gate": 0.2, "seconds_features": 0.1}  # fmt: skip
    gate, flops, tokens = cost_lines(parts | budget)
    assert gate == "the gate passed on 10 of 40 raw candidates, and 1 of 4 pools were scored; it took 0.3 s"
    assert flops.startswith("1e+10 floating-point operations (forward 60 %, backward 30 %, weights 10 %)")
    assert tokens == "1,000 tokens forward, 500 backward through the model"
    assert cost_lines({"examples_seen": 3}) == []


def test_runs_that_spend_operations_are_held_to_operations(tmp_path: Path) -> None:
    def run(number: int, flops: float, trained: int) -> Any:
        folder = make(tmp_path / str(number), "random", number, trained=trained)
        config, summary = (json.loads((folder / name).read_text()) for name in ("config.json", "summary.json"))
        write_json(folder / "config.json", config | {"budget": {"flops": 1e9, "examples": None}})
        summary["budget"] |= {"flops_forward": flops, "flops_evaluation": 5e9}
        write_json(folder / "summary.json", summary)
        return load(folder)

    assert not compare([run(0, 1.00e9, 10), run(1, 1.03e9, 90)]).warnings
    (warning,) = compare([run(2, 1.00e9, 10), run(3, 1.20e9, 10)]).warnings
    assert warning == "not the same budget: from 1e+09 to 1.2e+09 operations (20.0 % more)"
