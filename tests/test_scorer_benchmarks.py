"""What the benchmarks time is what they say: every case runs, and both ends do the same work."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks.cases import Bench, Case, Size, cases
from benchmarks.measure import choosing, peak, timed
from tests.reference import relative
from winnow.losses import example_losses

TINY, CPU = Size(hidden=64, layers=1, vocab=50), torch.device("cpu")


def tiny(case: Case) -> Case:
    return dataclasses.replace(case, pool=3, target=2, keep=2, tokens=6)


@pytest.mark.parametrize("case", cases(quick=False), ids=lambda case: case.name)
def test_every_case_steps_on_both_sides(case: Case) -> None:
    bench = Bench(tiny(case), TINY, CPU, torch.float32)
    bench.plain()
    before = [parameter.detach().clone() for parameter in bench.model.parameters() if parameter.requires_grad]
    bench.select()
    after = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert not any(moved) if case.brute else all(moved)
    assert all(parameter.grad is None for parameter in after)


def test_the_one_pass_side_makes_the_update_that_plain_training_of_the_kept_would() -> None:
    bench = Bench(tiny(cases(quick=False)[0]), TINY, CPU, torch.float64)
    bench.plain()
    signals = bench.scorer(bench.pool, bench.target, bench.selector.needs)
    selection = bench.selector(signals, bench.generator)
    got = bench.scorer.weighted_gradients(selection)
    losses = example_losses(bench.model, bench.pool)[selection.index]
    (losses @ selection.weight.to(losses.dtype) / len(selection)).backward()
    for name, parameter in bench.model.named_parameters():
        assert parameter.grad is not None and relative(got[name], parameter.grad) < 1e-4  # HF norms work in float32


def test_floors_are_those_of_the_design() -> None:
    found = {case.name: case.floor for case in cases(quick=False)}
    assert found["full, exact, AdamW"] == pytest.approx(1.13, abs=0.01)
    assert found["full, sketched, AdamW, match=target"] == pytest.approx(0.89, abs=0.05)
    assert found["max_loss, two passes"] == pytest.approx((2 * 16 + 6 * 8) / (6 * 24))


def test_what_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(command, "cases", lambda quick: [tiny(cases(quick)[0])])
    file = tmp_path / "found" / "bench.json"
    argv = ["benchmarks", "--quick", "--rounds", "2", "--hidden", "64", "--layers", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", argv)
    command.main()
    report = json.loads(file.read_text(encoding="utf-8"))
    (case,) = report["cases"]
    assert len(case["seconds"]["plain"]) == len(case["seconds"]["select"]) == 2
    ratios = [ours / theirs for ours, theirs in zip(case["seconds"]["select"], case["seconds"]["plain"], strict=True)]
    assert case["ratio"]["min"] == min(ratios) and case["ratio"]["max"] == max(ratios)
    assert report["machine"]["torch"] == torch.__version__
    assert "full, exact, AdamW" in capsys.readouterr().out


def test_timing_and_memory_look_at_both_sides() -> None:
    bench = Bench(tiny(cases(quick=False)[4]), TINY, CPU, torch.float32)
    calls: list[str] = []
    bench.plain = lambda: calls.append("plain")  # type: ignore[method-assign]
    bench.select = lambda: calls.append("select")  # type: ignore[method-assign]
    timed(bench, 2, CPU)
    assert calls == ["plain", "select", "select", "plain", "plain", "select"], "the first round does not count"
    memory = peak(bench, CPU)
    assert memory is None or memory["plain"] > 0
    assert len(choosing(2, 12, 3)) == 2
