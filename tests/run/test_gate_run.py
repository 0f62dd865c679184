"""A run behind a gate from its configuration: what it records, that it goes on exactly, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import safetensors.torch
import torch
from scipy.stats import spearmanr

from tests.commands import SMALL, compose, configured, save_base
from tests.run.test_run import go, read
from winnow.gates import Embeddings, Fields, NGrams
from winnow.ledger import main as ledger
from winnow.report.__main__ import main as report
from winnow.report.gate import gate_figures
from winnow.run import run
from winnow.run.instantiate import BuildError

GATED = ("gate=ngrams", "gate.features.dim=64", "scoring.period=2", "data.draw_size=24", "selector.filter_size=3")


@pytest.fixture(autouse=True)
def base() -> None:
    save_base()


def rows(out: str = "out") -> pd.DataFrame:
    return pq.read_table(Path(out) / "ledger.parquet").to_pandas()


def test_the_ledger_has_a_row_for_every_raw_candidate() -> None:
    go(*GATED, "trainer.max_steps=6")
    found, budget = rows(), read("summary.json")["budget"]
    assert budget["flops_evaluation"] > 0, "of before and after: no validation is in between"
    assert len(found) == budget["examples_drawn"] == 6 * 24
    assert found.groupby("step").size().eq(24).all()
    passed = found[found["passed"]]
    assert passed.groupby("step").size().tolist() == [8, 3] * 3 and len(passed) == budget["examples_seen"]
    assert (
        found["predicted"].notna().all()
        and found[~found["passed"]][["loss", "alignment", "exact"]].isna().to_numpy().all()
    )
    scored = passed[passed["step"] % 2 == 0]
    assert scored["exact"].notna().all() and (scored.groupby("step")["at_random"].sum() == 2).all()
    between = passed[passed["step"] % 2 == 1]
    assert between["kept"].all() and (between["weight"] == 1).all() and between["exact"].isna().all()
    assert budget["steps_scored"] == 3 and budget["examples_target"] == 3 * 2
    composition = read("summary.json")["composition"]
    assert sum(row["seen"] for row in composition.values()) == 6 * 24
    assert sum(row["usable"] for row in composition.values()) == len(passed)


# Lightning looks for the position in the data loader; it is in the data module (StepSampler).
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(
    "more",
    [
        ("gate=ngrams", "gate.explore=ucb", "scoring.between=predicted"),
        ("gate=embedding", "scoring.period=adaptive"),
        pytest.param(("gate=source", "gate.most_of_a_source=0.5"), marks=pytest.mark.long),
        ("gate=ngrams", "data.num_workers=1", "scoring.target_ema=0.5"),
    ],
    ids=lambda more: "+".join(more),
)
def test_a_run_that_is_resumed_ends_as_one_that_never_stopped(more: tuple[str, ...]) -> None:
    given = (*GATED[2:], *more)
    go(*given, "trainer.max_steps=8", out="whole")
    go(*given, "trainer.max_steps=3", "callbacks.last.every=1", "export=false", out="half")
    go(*given, "trainer.max_steps=8", "ckpt_path=half/checkpoints/last.ckpt", out="rest")
    models = [safetensors.torch.load_file(Path(out) / "model" / "model.safetensors") for out in ("whole", "rest")]
    assert all(torch.equal(value, models[1][name]) for name, value in models[0].items())
    pd.testing.assert_frame_equal(rows("whole"), rows("rest"), check_exact=True)
    tables = [pd.read_csv(Path(out) / "metrics.csv") for out in ("whole", "rest")]
    same = [one[sorted(name for name in one if not name.startswith("time/"))] for one in tables]
    wanted = same[0]["step"].to_frame().assign(**{name: same[0][name] for name in same[0]})
    pd.testing.assert_frame_equal(wanted[wanted["train/loss"].notna()], same[1][same[1]["train/loss"].notna()][
        wanted.columns], check_exact=True)  # fmt: skip


def test_figures_of_a_gate_are_those_of_its_ledger(capsys: pytest.CaptureFixture[str]) -> None:
    go(*GATED, "trainer.max_steps=24", "gate.random_share=0.5", "data.corpus.noise.wrong=0.3", out="run")
    figures, found = gate_figures(Path("run")), rows("run")
    assert figures is not None
    held = found[found["at_random"].fillna(False).astype(bool) & found["exact"].notna()]
    assert figures.pairs == len(held) == 12 * 4
    assert figures.correlation == pytest.approx(spearmanr(held["predicted"], held["exact"]).statistic)
    assert figures.low < figures.correlation < figures.high
    for name, part in {"offered": found, "passed": found[found["passed"]], "kept": found[found["kept"]]}.items():
        shares = part["source"].value_counts(normalize=True)
        assert figures.entropy[name] == pytest.approx(-(shares * np.log(shares)).sum())
        assert figures.spoilt[name] == pytest.approx(part["noise"].notna().mean())
        over = figures.over_time[figures.over_time["stage"] == name]
        assert set(over["tenth"]) == set(range(10))
        np.testing.assert_allclose(over.groupby("tenth")["share"].sum(), 1)
    assert len(figures.calibration) == 10
    assert figures.calibration["predicted"].is_monotonic_increasing
    assert (figures.calibration["exact"].mean()) == pytest.approx(held["exact"].mean(), abs=0.05)
    assert ledger(["run"]) == 0
    text = capsys.readouterr().out
    for words in (
        "rank correlation",
        "entropy over sources",
        "spoilt rows",
        "raw candidates",
        "floating-point operations",
    ):
        assert words in text
    assert report(["run", "--gate-out", "gate.png"]) == 0
    assert Path("gate.png").read_bytes()[:4] == b"\x89PNG"
    assert report(["run", "--gate-out", "gate.doc"]) == 2
    go("trainer.max_steps=2", out="plain")
    assert gate_figures(Path("plain")) is None
    assert report(["plain", "--gate-out", "gate.png"]) == 2
    assert "none of these runs has a gate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["data.draw_size=32"], r"data\.draw_size=32 raw candidates a step need a gate .*set gate=ngrams"),
        (["gate=ngrams", "data.draw_size=12"], r"data\.draw_size=12 must be a multiple of data\.pool_size=8"),
        (["gate=ngrams", "data.draw_size=2.5"], r"data\.draw_size must be a whole number, or null; got 2\.5"),
        (["gate=ngrams", "data.packing=true"], r"data\.packing joins them into rows: set gate=none"),
        (["gate=ngrams", "gate.features.dim=1"], r"gate\.features needs dim >= 2"),
        (["gate=ngrams", "gate.features.dim=many"], r"gate\.features\.dim must be a whole number, got 'many'"),
        (["gate=ngrams", "gate.label=loss"], r"gate\.label must be one of cosine, utility, weight; got 'loss'"),
        (["gate=ngrams", "gate.explore=greedy"], r"gate\.explore must be one of"),
        (["gate=ngrams", "gate.random_share=2.0"], r"gate\.random_share must be in \[0, 1\]"),
        (["gate=ngrams", "gate.forgetting=0.0"], r"gate\.forgetting must be in \(0, 1\]"),
        (["gate=ngrams", "gate.ridge=yes"], r"gate\.ridge must be a number, got 'yes'"),
        (["gate=ngrams", "gate._target_=winnow.selectors.Random"], r"gate: .*unexpected keyword|is no gate"),
        (["gate=ngrams", "selector=embedding"], r"the selector reads hidden states.*set gate\.label=weight"),
        (["selector=gate_only"], r"there is no gate: set gate=ngrams"),
        (["scoring.period=0"], r"scoring\.period must be a whole number >= 1, or adaptive; got 0"),
        (["scoring.period=1.5"], r"scoring\.period must be a whole number >= 1, or adaptive; got 1\.5"),
        (["scoring.period=adaptive"], r"scoring\.period=adaptive goes by a gate's predictions"),
        (["scoring.period=2", "selector=full"], r"Full has no filter_size; set scoring\.period=1"),
        (["scoring.between=predicted"], r"scoring\.between=predicted weighs by a gate's predictions"),
        (["scoring.between=none"], r"scoring\.between must be one of uniform, predicted"),
        (["scoring.max_tokens=1"], r"scoring\.max_tokens must be at least 2"),
        (["scoring.max_tokens=all"], r"scoring\.max_tokens must be a whole number or null, got 'all'"),
        (["scoring.max_tokens=8", "scoring.update=one_pass"], r"set scoring\.update=two_pass"),
        (["scoring.precision=fp8"], r"scoring\.precision must be bf16"),
        (["scoring.proxy=nowhere"], r"scoring\.proxy"),
        (["budget.flops=0.0"], r"budget\.flops must be a finite number > 0"),
        (["budget.examples=many"], r"budget\.examples must be a whole number or null, got 'many'"),
        (["budget.minutes=inf"], r"budget\.minutes must be a finite number > 0"),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else None,
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_the_configuration_s_keys(options: list[str], words: str) -> None:
    added = [f"+{one}" if one.startswith("data.packing") else one for one in options]
    with pytest.raises(BuildError, match=words):
        go(*added)
    assert not Path("out/metrics.csv").exists()


def test_a_recorded_run_is_not_replayed_behind_a_gate() -> None:
    go("selector=random", "trainer.max_steps=2", "export=false", out="recorded")
    with pytest.raises(BuildError, match=r"selector=replay was made for pools that are known .*set gate=none"):
        go("selector=replay", "selector.ledger=recorded", "gate=ngrams")


@pytest.mark.parametrize(
    ("gate", "kind"), [("ngrams", NGrams), ("embedding", Embeddings), ("source", Fields)], ids=lambda value: str(value)
)
def test_every_gate_of_conf_trains(gate: str, kind: type) -> None:
    go(f"gate={gate}", "trainer.max_steps=3")
    found = rows()
    assert len(found) == 3 * 32, "four pools by default"
    assert kind.__name__ in compose(f"gate={gate}").gate.features._target_
    assert found[found["step"] > 0]["predicted"].nunique() > 1


def test_a_budget_takes_the_place_of_a_number_of_steps(caplog: pytest.LogCaptureFixture) -> None:
    without = [one for one in SMALL if not one.startswith("trainer.max_steps")]
    with configured(*without, "budget.examples=14", "selector=random", "scheduler=cosine", out="a") as cfg:
        run(cfg)
    assert read("summary.json", "a")["budget"]["examples_trained"] == 16
    rates = pd.read_csv("a/metrics.csv")["optimizer/lr"].dropna()
    assert len(rates) == 4
    assert read("config.json", "a")["trainer"]["max_steps"] == -1
    go("budget.examples=1000", "selector=random", out="b")
    assert read("summary.json", "b")["budget"]["updates"] == 4, "given on the command line, it holds too"


def test_a_run_that_has_spent_its_budget_is_not_trained_further() -> None:
    go("budget.examples=8", "selector=random", "trainer.max_steps=-1", out="a")
    spent = read("summary.json", "a")["budget"]
    go(
        "budget.examples=8", "selector=random", "trainer.max_steps=-1", "ckpt_path=a/checkpoints/last.ckpt", out="b"
    )  # fmt: skip
    assert read("summary.json", "b")["budget"]["examples_trained"] == spent["examples_trained"] == 8


def test_equal_compute_is_one_option() -> None:
    cfg = compose("experiment=equal_compute", "gate=ngrams", "scoring.period=8")
    assert cfg.budget.flops > 0
    for given in (["baseline=random"], ["gate=ngrams", "scoring.period=4"], ["baseline=full"]):
        out = re.sub(r"\W+", "-", "+".join(given))
        go("experiment=equal_compute", "budget.flops=2e8", "trainer.max_steps=-1", *given, out=out)
        budget = read("summary.json", out)["budget"]
        spent = sum(value for name, value in budget.items() if name.startswith("flops_") and "evaluation" not in name)
        assert 2e8 <= spent < 4e8
    folders = [
        re.sub(r"\W+", "-", name) for name in ("baseline=random", "gate=ngrams+scoring.period=4", "baseline=full")
    ]
    assert report([*folders, "--json", "compare.json", "--out", "compare.png"]) == 0
    found = json.loads(Path("compare.json").read_text())["equal_costs"]
    assert {row["axis"] for row in found} == {"examples", "flops", "seconds"}
    assert {row["method"] for row in found} == {"random", "ngrams gate + filter_weight", "full"}


# Lightning looks for the position in the data loader; it is in the data module (StepSampler).
@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_what_was_learned_of_other_features_is_not_gone_on_with() -> None:
    go("gate=ngrams", "gate.features.dim=64", "trainer.max_steps=2", "export=false", out="half")
    for other in (("gate=source",), ("gate=ngrams", "gate.features.dim=64", "gate.label=utility")):
        with pytest.raises(ValueError, match=r"learned of NGrams and cosine, and this gate learns of .*begin anew"):
            go(*other, "trainer.max_steps=4", "ckpt_path=half/checkpoints/last.ckpt", out=other[-1].partition("=")[2])
