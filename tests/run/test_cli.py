"""A mistyped command line is answered with what was meant, before anything is loaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

from tests.commands import CONF, ROOT, command_line
from winnow.run.cli import check
from winnow.train import command


def never(cfg: Any) -> None:
    raise AssertionError("no run was asked for")


def problems(*arguments: str) -> list[str]:
    return check(arguments, CONF, "train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["selector=filter_wieght"], "Could not find 'selector/filter_wieght'; did you mean filter_weight"),
        (["selector=xyz"], "Could not find 'selector/xyz'. Available: "),
        (["baseline=greets"], "Could not find 'baseline/greets'; did you mean greats?"),
        (["model/lora=papr"], "Could not find 'model/lora/papr'; did you mean paper? Available: default, paper."),
        (["logger=None"], "Could not find 'logger/None'; did you mean none?"),
        (["selctor=random"], "Key 'selctor' is not in the configuration; did you mean 'selector'?"),
        (["selector.filter_szie=8"], "Key 'filter_szie' is not in selector; did you mean 'selector.filter_size'"),
        (["data.pool_siez=8"], "Key 'pool_siez' is not in data; did you mean 'data.pool_size'?"),
        (["trainer.max_step=3"], "Key 'max_step' is not in trainer; did you mean 'trainer.max_steps'"),
        (["pool_size=8"], "Key 'pool_size' is not in the configuration; did you mean 'data.pool_size'?"),
        (["hydra.run.dri=x"], "Key 'dri' is not in hydra.run; did you mean 'hydra.run.dir'?"),
        (["~selectr"], "Key 'selectr' is not in the configuration; did you mean 'selector'"),
        (["selector.filter_size.x=3"], "selector.filter_size is a value and has no keys of its own"),
        (
            ["model.lora.r=4"],
            "Nothing is chosen from the group model/lora: add model/lora=OPTION, one of default, paper.",
        ),
        (["scheduler=null"], "scheduler=null: to leave the group out write ~scheduler; or choose one of constant,"),
        (["+selector=random"], "selector is set already; to change it write selector=random, without the +."),
        (["selector=random,greats"], "To sweep over it, add --multirun to your command line"),
        (["seed"], "'seed' sets nothing; write it as KEY=VALUE."),
        (["model.path=a=b"], "Quote what the shell or Hydra could take for syntax"),
        (
            ["--typo"],
            "There is no flag --typo. Values are set without dashes: typo=VALUE; flags: --help, --cfg job, -m.",
        ),
        (["--selector=random"], "There is no flag --selector. Values are set without dashes: selector=VALUE;"),
        (["--multirn"], "There is no flag --multirn; did you mean --multirun?"),
        (["sweeps=filter_size"], "would ignore it: add -m."),
        (["-m", "sweeps=filter_sise"], "Could not find 'sweeps/filter_sise'; did you mean filter_size or filter_rule?"),
        (["-m", "sweeps=filter_size", "baseline=full"], "Key 'filter_size' is not in selector."),
        (["-m", "selector.filter_szie=1,2"], "did you mean 'selector.filter_size'"),
        (["-m", "baseline=random,greets"], "Could not find 'baseline/greets'; did you mean greats?"),
        (["--cfg", "job", "selector=rendom"], "did you mean random?"),
        (["-m", "--cfg", "job"], "-m and --cfg ask for different things: give one of them (--cfg alone, without -m)."),
        (
            ["gate.foo=1"],
            "Nothing is chosen from the group gate (gate=none), so it has no key 'foo': choose one of emb",
        ),
        (["scheduler=none", "scheduler.foo=1"], "Nothing is chosen from the group scheduler (scheduler=none)"),
        (["seed=1", "--multirun", "selector=random,greats"], "All KEY=VALUE have to stand together"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_typo_names_what_was_meant(arguments: list[str], message: str) -> None:
    (found,) = problems(*arguments)
    assert message in found


def test_every_typo_is_named_at_once() -> None:
    found = problems("selector=random", "selector.filter_szie=8", "seed=1", "data.pool_siez=8")
    assert ["selector.filter_size" in found[0], "data.pool_size" in found[1], len(found)] == [True, True, 2]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["baseline=random", "selector.filter_size=8"],
        ["-m", "selector=random,greats", "seed=range(3)"],
        ["-m", "sweeps=filter_size", "seed=0"],
        ["--cfg", "job", "sweeps=filter_size"],
        ["+trainer.max_time=00:01:00:00", "~logger"],
        ["--help", "selctor=random"],
        ["--config-name=other"],
    ],
    ids=" ".join,
)
def test_what_composes_is_left_to_hydra(arguments: list[str]) -> None:
    assert problems(*arguments) == []
    assert not GlobalHydra.instance().is_initialized()


def test_a_value_of_a_sweep_is_tried_with_the_rest_of_the_line() -> None:
    # weight is a key of filter_weight only.
    (found,) = problems("-m", "selector=filter_weight,random", "selector.weight=uniform")
    assert found.startswith("Key 'weight' is not in selector") or "selector.weight" in found


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf" / "part").mkdir(parents=True)
    (tmp_path / "conf" / "main.yaml").write_text("defaults:\n  - part: good\n")
    (tmp_path / "conf" / "part" / "good.yaml").write_text("a: 1\n")
    (tmp_path / "conf" / "part" / "bad.yaml").write_text("a: [1\n")
    assert check([], tmp_path / "conf", "main") == []
    (found,) = check(["part=bad"], tmp_path / "conf", "main")
    assert "part=bad" in found and "bad.yaml" in found


def test_the_process_ends_with_code_2_and_loads_nothing() -> None:
    started = subprocess.run(
        [sys.executable, "-X", "importtime", str(ROOT / "train.py"), "selctor=random"],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert started.returncode == 2 and started.stdout == ""
    said = [line for line in started.stderr.splitlines() if not line.startswith("import time:")]
    assert said[0] == "Key 'selctor' is not in the configuration; did you mean 'selector'?"
    assert not any(line.endswith((" lightning", " transformers")) for line in started.stderr.splitlines())


def test_an_interrupt_ends_the_process_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(cfg: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, interrupted)
    assert ended.value.code == 130


@pytest.mark.parametrize("loaded", [False, True])
def test_threads_of_numpy_do_not_contend_with_torch_s(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which it reads when it is loaded: a word that comes later would only be believed."""
    found = []
    monkeypatch.setattr("winnow.train.main", lambda *_, **__: found.append(os.environ.get("OPENBLAS_NUM_THREADS")))
    monkeypatch.setattr("sys.modules", {name: held for name, held in sys.modules.items() if loaded or name != "numpy"})
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS")
    command()
    assert found == [None if loaded else "1"]


def test_help_names_every_group_and_sweep(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        command_line(monkeypatch, never, "--help")
    assert not ended.value.code
    text = capsys.readouterr().out
    for group in CONF.iterdir():
        if group.is_dir() and group.name != "hydra":
            options = sorted(file.stem for file in group.glob("*.yaml"))
            assert f"{group.name}: {', '.join(options)}\n" in text
    for sweep in (ROOT / "sweeps").glob("*.yaml"):
        assert sweep.stem in text.partition("-m sweeps=")[2]


def test_cfg_job_prints_the_configuration_and_runs_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command_line(monkeypatch, never, "--cfg", "job", "--package", "selector", "baseline=greats")
    assert "_target_: winnow.selectors.Greats\n" in capsys.readouterr().out
    assert list(Path.cwd().iterdir()) == []
