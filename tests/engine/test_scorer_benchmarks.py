"""What the benchmarks time is what they say: every case runs, and both ends do the same work."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import context, costs, packing, processes, scores
from benchmarks.cases import Bench, Case, Size, cases, gpu_cases
from benchmarks.measure import choosing, fidelity, peak, timed
from tests.reference import relative
from winnow.lm.losses import example_losses

TINY, CPU = Size(hidden=64, layers=1, vocab=50), torch.device("cpu")


def tiny(case: Case) -> Case:
    return dataclasses.replace(case, pool=3, target=2, keep=2, tokens=6, micro=case.micro and 2)


@pytest.mark.parametrize(
    "case",
    [*cases(quick=False), *(case for case in gpu_cases() if case.micro), context.cases()[0]],
    ids=lambda case: case.name,
)
def test_every_case_steps_on_both_sides(case: Case) -> None:
    bench = Bench(tiny(case), TINY, CPU, torch.float32)
    bench.plain()
    before = [parameter.detach().clone() for parameter in bench.model.parameters() if parameter.requires_grad]
    bench.select()
    after = [parameter for parameter in bench.model.parameters() if parameter.requires_grad]
    moved = [not torch.equal(old, new) for old, new in zip(before, after, strict=True)]
    assert not any(moved) if case.brute else all(moved)
    assert all(parameter.grad is None for parameter in after)


@pytest.mark.parametrize(
    "case", [case for case in cases(quick=False) if not case.brute and not case.period], ids=lambda case: case.name
)
def test_the_update_is_that_of_k_candidates(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even where the solver finds fewer of use, as it does among random tokens."""
    bench, kept = Bench(tiny(case), TINY, CPU, torch.float32), []
    update = bench.scorer.assign_update
    monkeypatch.setattr(bench.scorer, "assign_update", lambda found: (kept.append(len(found.index)), update(found)))
    monkeypatch.setattr(
        "benchmarks.cases.weighted_backward", lambda model, pool, found, micro_batch: kept.append(len(found.index))
    )
    for _ in range(3):
        bench.select()
    assert kept == [2, 2, 2]


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


def test_fidelity_is_that_of_the_sketch() -> None:
    exact, sketched = (case for case in cases(quick=False)[:2])
    assert fidelity(Bench(tiny(exact), TINY, CPU, torch.float32)) is None
    for dim, perfect in ((1000, True), (2, False)):
        bench = Bench(
            dataclasses.replace(tiny(sketched), scoring={"mode": "sketch", "sketch_dim": dim}), TINY, CPU, torch.float32
        )
        bench.plain()
        found = fidelity(bench)
        assert found is not None and (found["error_of_k"] < 1e-4) == perfect
        assert not perfect or found["rank_of_b"] == pytest.approx(1)


def test_the_cost_model_is_held_to_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "SHAPES", [(4, 2, 64, 64), (4, 200, 16, 16)])
    found = costs.measured(rounds=1)
    assert all(row["form"] > 0 and row["ghost"] > 0 for row in found)
    assert found[0]["expected"] < 1 < found[1]["expected"]
    rows = [{**found[0], "form": 2.0, "ghost": 1.0}, {**found[1], "form": 2.0, "ghost": 1.0}]
    assert costs.table(rows)[-1] == "the model takes the faster one in 1 of 2, and 50% more time in all"


def test_packed_and_padded_updates_are_timed_on_the_same_examples(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shape = ["--rounds", "2", "--examples", "4", "--longest", "40", "--hidden", "64", "--layers", "1"]
    monkeypatch.setattr(sys, "argv", ["packing", *shape, "--json", str(tmp_path / "found.json")])
    packing.main()
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    assert found["lengths"] == [16, 22, 29, 40] and found["padded"]["cells"] == 160 > found["packed"]["cells"] == 120
    assert found["difference"] < 1e-4 and found["ratio"]["min"] > 0
    assert "4 examples of 16 to 40 tokens, 107 in all" in capsys.readouterr().out


def test_long_contexts_are_plotted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"ratio": {"min": 0.9, "median": 1.0, "max": 1.1}, "peak_mib": {"ratio": 1.0}}
    rows = [{**dataclasses.asdict(case), **row} for case in context.cases()]
    assert {case.pool * case.tokens for case in context.cases()} == {context.POOL_TOKENS}
    rows[4]["ratio"] = {"min": 1.0, "median": 1.2, "max": 1.3}
    context.plot(rows, tmp_path / "plots" / "context.png")
    assert (tmp_path / "plots" / "context.png").stat().st_size > 10_000
    assert "full, exact, AdamW: the ratio at T=4096 is 1.20 of that at T=256" in capsys.readouterr().out


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


@pytest.mark.slow
def test_timing_and_memory_look_at_both_sides() -> None:
    bench = Bench(tiny(cases(quick=False)[4]), TINY, CPU, torch.float32)
    calls: list[str] = []
    bench.plain = lambda: calls.append("plain")  # type: ignore[method-assign]
    bench.select = lambda: calls.append("select")  # type: ignore[method-assign]
    timed(bench, 2, CPU)
    assert calls == ["plain", "select", "select", "plain", "plain", "select"], "the first round does not count"
    memory = peak(bench, CPU, times=2)
    assert memory is None or memory["plain"] > 0
    assert len(choosing(2, 12, 3)) == 2


def test_behind_a_gate_one_step_in_so_many_is_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = (case for case in cases(quick=False) if case.period)
    bench, scored, trained = Bench(tiny(case), TINY, CPU, torch.float32), [], []
    score, train = bench._scored, bench._train
    monkeypatch.setattr(bench, "_scored", lambda needs: (scored.append(needs), score(needs))[1])
    monkeypatch.setattr(bench, "_train", lambda found: (trained.append(len(found)), train(found))[1])
    bench.select()
    assert len(scored) == 1 and trained == [2] * 7 and bench.in_gate > 0
    trained.clear()
    bench.plain()
    assert trained == [2] * 8, "as many examples on the other side"
    assert bench.gate.model.weights.abs().max() > 0


@pytest.mark.slow
@pytest.mark.long
def test_cheaper_scores_are_compared_with_exact_ones_of_the_same_state() -> None:
    found = scores.measured(seed=0, steps=3, every=2)
    assert set(found) == {way.name for way in scores.WAYS}
    exact = found["exact"]
    assert exact.rank == [pytest.approx(1.0)] and exact.common == [1.0]
    for name, one in found.items():
        assert len(one.rank) == len(one.flops) == len(one.seconds) == 1 and all(-1 <= rank <= 1 for rank in one.rank)
        if name.startswith(("scoring.layers", "scoring.max_tokens=24")):
            assert sum(one.flops) < 0.75 * sum(exact.flops)


@pytest.mark.slow
@pytest.mark.long
def test_two_processes_are_timed_beside_ddp_and_fsdp2(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    assert processes.started(2, ["--quick", "--rounds=1", "--only=LoRA", f"--json={file}"]) == 0
    whole, sharded = json.loads(file.read_text())["cases"]
    assert "whole (DDP)" in whole["name"] and "in shards (FSDP2)" in sharded["name"]
    for case in (whole, sharded):
        assert case["ratio"]["median"] > 0
    # Half of 16 candidates' gradients, the target's twice a half, and the update's: one of DDP is twice a half.
    assert whole["megabytes"] / whole["megabytes_plain"] == pytest.approx(16 / 2 + 1 + 1, rel=0.05)
    # In shards both sides gather the base twice, of which an adapter is small.
    gathered = sharded["megabytes_plain"] - whole["megabytes_plain"]
    assert sharded["megabytes"] - whole["megabytes"] == pytest.approx(gathered) and gathered > whole["megabytes_plain"]
