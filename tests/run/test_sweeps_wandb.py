"""The sweeps as W&B sweeps: of W&B's own schema, over the same axes, and each job a command that runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastjsonschema
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.commands import ROOT, SMALL, SWEEPS, axes, compose, save_base
from tests.run.test_wandb import offline_runs

FILES = sorted((SWEEPS / "wandb").glob("*.yaml"))
SCHEMA = json.loads((ROOT / "tests" / "wandb_sweep_schema.json").read_text(encoding="utf-8"))


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def values(parameter: dict[str, Any]) -> list[Any]:
    return parameter["values"] if "values" in parameter else [parameter["value"]]


def command(sweep: dict[str, Any], point: dict[str, Any]) -> list[str]:
    """What W&B's agent would start for a point of the grid, by its own functions."""
    given = create_sweep_command_args({"args": {key: {"value": value} for key, value in point.items()}})
    given |= {"program": [sweep["program"]], "interpreter": [sys.executable], "env": []}
    line: list[str] = []
    for word in create_sweep_command(list(sweep["command"])):
        name = word.removeprefix("${").removesuffix("}")
        line += given[name] if word == f"${{{name}}}" else [word]
    return line


def first(sweep: dict[str, Any]) -> dict[str, Any]:
    return {key: values(parameter)[0] for key, parameter in sweep["parameters"].items()}


def test_every_sweep_is_there_twice() -> None:
    assert [path.stem for path in FILES] == sorted(path.stem for path in SWEEPS.glob("*.yaml"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_it_is_of_wandbs_schema_with_the_same_axes(path: Path) -> None:
    sweep = load(path)
    fastjsonschema.validate(SCHEMA, sweep)
    assert path.read_text().startswith(f"# wandb sweep sweeps/wandb/{path.stem}.yaml\n")
    assert sweep["method"] == "grid" and sweep["name"] == path.stem
    there = axes(compose(f"sweeps={path.stem}"))
    assert list(sweep["parameters"]) == list(there)
    for key, parameter in sweep["parameters"].items():
        # As Hydra reads them: what the agent writes of null or false has to arrive as such.
        read = [[f"{key}={value}" for value in found] for found in (values(parameter), there[key])]
        here, asked = ([one.value() for one in OverridesParser.create().parse_overrides(lines)] for lines in read)
        assert here == asked and [type(one) for one in here] == [type(one) for one in asked]


def test_the_schema_can_refuse() -> None:
    sweep = load(FILES[0])
    for wrong in ({"method": "gird"}, {"metric": {"goal": "minimize"}}, {"parameters": {"seed": {"valuse": [1]}}}):
        with pytest.raises(fastjsonschema.JsonSchemaValueException):
            fastjsonschema.validate(SCHEMA, {**sweep, **wrong})


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_command_of_its_first_job_composes(path: Path) -> None:
    sweep = load(path)
    line = command(sweep, first(sweep))
    assert line[:2] == [sys.executable, "train.py"]
    cfg = compose(*line[2:])
    assert cfg.logger.offline is False
    assert cfg.seed == first(sweep)["seed"]


def test_a_job_reports_the_metric_into_the_agents_run() -> None:
    save_base()
    sweep = load(SWEEPS / "wandb" / "baselines.yaml")
    line = command(sweep, {"baseline": "random", "seed": 0})
    line[1] = str(ROOT / line[1])
    agent = {"WANDB_RUN_ID": "abc123", "WANDB_SWEEP_ID": "s1", "WANDB_PROJECT": "winnow", "WANDB_MODE": "offline"}
    small = [one for one in SMALL if not one.startswith("logger")]
    done = subprocess.run([*line, *small], env={**os.environ, **agent}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(Path("outputs/wandb/s1/abc123/status.json").read_text())["state"] == "finished"
    (found,) = offline_runs(Path("outputs"))
    assert (found.run.run_id, found.run.sweep_id, found.exit) == ("abc123", "s1", 0)
    assert any(sweep["metric"]["name"] in row for row in found.rows)
