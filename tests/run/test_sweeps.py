"""A sweep runs the jobs its header promises, each in a folder and a W&B run of its own."""

from __future__ import annotations

import json
import re
from math import prod
from pathlib import Path

import pytest
from omegaconf import DictConfig

from tests.commands import SMALL, SWEEPS, axes, command_line, commands, compose, configured, save_base
from winnow.run import run

FILES = sorted(SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_header_says_question_axes_and_number_of_runs(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    assert commands(path) == [["-m", f"sweeps={path.stem}"]]
    assert re.search(r"^# Question: .+\?$", text, re.M)
    swept = axes(compose(f"sweeps={path.stem}"))
    said = re.search(r"^# Axes: (.+)\. Runs: (\d+)\.$", text, re.M)
    assert said is not None
    assert int(said[2]) == prod(len(values) for values in swept.values())
    named = [f"{key.rpartition('.')[2]} {', '.join(values)}" for key, values in swept.items()]
    assert said[1] == " x ".join(named)


TWICE = ("filter_size", "baselines")
"""Sweeps whose second job runs in make test, too: seeds are drawn alike in all."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_value_of_an_axis_composes(path: Path) -> None:
    found = axes(compose(f"sweeps={path.stem}"))
    firsts = {key: values[0] for key, values in found.items()}
    for key, values in found.items():
        for value in values if key != "seed" else values[:1]:
            compose(f"sweeps={path.stem}", *(f"{name}={one}" for name, one in {**firsts, key: value}.items()))


@pytest.mark.parametrize(
    ("path", "count"),
    [
        *(pytest.param(path, 1, id=path.stem) for path in FILES if path.stem not in TWICE),
        *(pytest.param(path, 2, id=path.stem) for path in FILES if path.stem in TWICE),
        *(
            pytest.param(path, 2, id=f"{path.stem}, both", marks=pytest.mark.long)
            for path in FILES
            if path.stem not in TWICE
        ),
    ],
)
def test_its_first_jobs_run(path: Path, count: int) -> None:
    save_base()
    found = axes(compose(f"sweeps={path.stem}"))
    assert list(found)[-1] == "seed", "the last axis is the one that moves first"
    jobs = [{**{key: values[0] for key, values in found.items()}, "seed": seed} for seed in found["seed"][:count]]
    for number, job in enumerate(jobs):
        quick = (
            "trainer.max_steps=2",
            "callbacks.last=null",
            "callbacks.best=null",
            "export=false",
            "scoring.verify=false",
        )
        given = [f"{key}={value}" for key, value in job.items()]
        with configured(f"sweeps={path.stem}", *SMALL, *quick, *given, out=str(number)) as cfg:
            assert run(cfg) is not None
        summary = json.loads((Path(str(number)) / "summary.json").read_text())
        assert summary["budget"]["updates"] == 2 and summary["seed"] == int(job["seed"])
    texts = [(Path(str(number)) / "metrics.csv").read_text() for number in range(count)]
    assert len(set(texts)) == count


def test_a_sweep_is_found_from_another_folder_and_can_be_narrowed(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = []

    def record(cfg: DictConfig) -> None:
        jobs.append((cfg.selector.filter_size, cfg.seed, Path(cfg.out).relative_to(Path.cwd()).parts))

    command_line(monkeypatch, record, "-m", "sweeps=filter_size", "selector.filter_size=2,16", "seed=0,2")
    assert [job[:2] for job in jobs] == [(2, 0), (2, 2), (16, 0), (16, 2)]
    folders = [job[2] for job in jobs]
    assert {folder[:2] for folder in folders} == {("outputs", "multirun")}
    assert [folder[-1] for folder in folders] == [f"{number}-filter_weight" for number in range(4)]


def test_jobs_keep_to_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    first, second = list(axes(compose("sweeps=filter_size"))["seed"])[:2]
    command_line(
        monkeypatch,
        run,
        "-m",
        "sweeps=filter_size",
        "selector.filter_size=1",
        f"seed={first},{second}",
        "hydra.sweep.dir=sweep",
        *SMALL,
        "logger=wandb",
    )
    runs = [Path("sweep") / f"{number}-filter_weight" for number in range(2)]
    for seed, folder in zip((first, second), runs, strict=True):
        assert json.loads((folder / "status.json").read_text())["state"] == "finished"
        assert json.loads((folder / "config.json").read_text())["seed"] == int(seed)
        assert len(list((folder / "wandb").glob("offline-run-*/*.wandb"))) == 1
    losses = [(folder / "metrics.csv").read_text() for folder in runs]
    assert losses[0] != losses[1]


def test_a_failing_job_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_base()
    with pytest.raises(SystemExit) as ended:
        command_line(
            monkeypatch, run, "-m", "selector=random", "selector.filter_size=9,2", "hydra.sweep.dir=sweep", *SMALL
        )
    assert ended.value.code == 1
    states = [json.loads((Path("sweep") / f"{n}-random" / "status.json").read_text())["state"] for n in range(2)]
    assert states == ["failed", "finished"]
    said = capsys.readouterr().err
    assert "selector.filter_size=9 is more than the pool's 8 candidates" in said
    assert "Traceback" not in said
