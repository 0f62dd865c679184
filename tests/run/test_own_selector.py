"""A selector of the user's own, from outside the package, is given its own arguments and no other method's."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from tests.commands import ROOT, SMALL, command_line, save_base
from winnow.run import run
from winnow.run.cli import implied

# temperature and filter_size are keys of filter_weight's file, too, with other values.
MODULE = """
from winnow.selectors.base import given, keep
from winnow.signals import Needs


class MySelector:
    needs = Needs(losses=True)

    def __init__(self, alpha: float, filter_size: int = 3, temperature: float = 0.25) -> None:
        self.alpha, self.filter_size, self.temperature = alpha, filter_size, temperature

    def __call__(self, signals, generator=None):
        chosen = given(signals.losses, "losses").topk(self.filter_size).indices
        return keep(signals, chosen, alpha=self.alpha, temperature=self.temperature)


class NoSelector:
    pass
"""
CLASS = "selector._target_=my_pkg.MySelector"


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    Path("my_pkg.py").write_text(MODULE)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "my_pkg", raising=False)


def check_records(folder: Path, alpha: float, filter_size: int) -> None:
    (out,) = (folder / "outputs" / "my_pkg.MySelector").iterdir()
    config = json.loads((out / "config.json").read_text())
    given = {"_target_": "my_pkg.MySelector", "alpha": alpha}
    assert config["selector"] == {**given, "filter_size": filter_size} if filter_size != 3 else given
    assert config["name"] == "my_pkg.MySelector"
    steps = pd.read_csv(out / "metrics.csv").dropna(subset=["train/loss"])
    assert set(steps["select/alpha"]) == {alpha} and set(steps["select/kept"]) == {float(filter_size)}
    assert set(steps["select/temperature"]) == {0.25}, "filter_weight's temperature is not the class's"
    ledger = pd.read_parquet(out / "ledger.parquet")
    for _, pool in ledger.groupby("step"):
        assert set(pool[pool["kept"]]["id"]) == set(pool.nlargest(filter_size, "loss")["id"])


@pytest.mark.usefixtures("mine")
def test_it_runs_by_its_class_alone_from_another_folder_than_the_suites() -> None:
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    line = [sys.executable, str(ROOT / "train.py"), CLASS, "+selector.alpha=0.3", *SMALL]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert Path.cwd() != ROOT
    check_records(Path.cwd(), alpha=0.3, filter_size=3)


@pytest.mark.usefixtures("mine")
def test_arguments_are_added_and_a_sweep_goes_through_them(monkeypatch: pytest.MonkeyPatch) -> None:
    command_line(monkeypatch, run, CLASS, "+selector.alpha=2.0", "+selector.filter_size=2", *SMALL)
    check_records(Path.cwd(), alpha=2.0, filter_size=2)
    jobs = []
    sweep = ("-m", CLASS, "+selector.alpha=1,2")
    command_line(monkeypatch, lambda cfg: jobs.append((cfg.name, cfg.selector.alpha)), *sweep)
    assert jobs == [("my_pkg.MySelector", 1), ("my_pkg.MySelector", 2)]


@pytest.mark.usefixtures("mine")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([CLASS], "selector: MySelector.__init__() missing 1 required positional argument: 'alpha'"),
        ([CLASS, "+selector.alpha=1", "+selector.weight=nnls"], "unexpected keyword argument 'weight'"),
        ([CLASS, "selector.alpha=1"], "To add a key that no file has, write +selector.alpha=1."),
        ([CLASS, "selector=filter_weight"], "and selector=filter_weight contradict each other: leave out the latter"),
        ([CLASS, "baseline=random"], "and baseline=random contradict each other: leave out the latter"),
        (["selector._target_=my_pkg.NoSelector"], "my_pkg.NoSelector is no selector: it needs a property `needs`"),
        (["selector._target_=my_pkg.Nope"], "Are you sure that 'Nope' is importable from module 'my_pkg'?"),
        (["selector=custom"], "no value for selector._target_: give selector._target_=..."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_fit_is_refused(
    arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, run, *arguments, *SMALL)
    assert ended.value.code
    assert message in capsys.readouterr().err


def test_only_the_class_implies_a_choice() -> None:
    assert implied(["seed=1", CLASS, "+selector.a=1"]) == ["seed=1", "selector=custom", CLASS, "+selector.a=1"]
    assert implied(["--cfg", "job", "--package", "selector", CLASS])[4:] == ["selector=custom", CLASS]
    for line in (["selector=custom", CLASS], ["baseline=random", CLASS], ["selector.alpha=1"], []):
        assert implied(line) == line
