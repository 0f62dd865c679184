"""The sweep files: their headers count their jobs, and every value they go through composes."""

import itertools
import math
import re
from pathlib import Path

import hydra
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from winnow import selectors

ROOT = Path(__file__).parents[2]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
BASELINES = sorted(path.stem for path in (ROOT / "conf" / "baseline").glob("*.yaml"))
QUESTIONS = {
    "filter_size", "weighting", "match", "filter_rule", "momentum", "target_batch_size", "refresh", "optimizer",
    "pool_size", "noise", "sketch", "baselines",
}  # fmt: skip


@pytest.fixture(autouse=True)
def composing(monkeypatch):
    monkeypatch.setenv("WINNOW_ROOT", str(ROOT))
    with hydra.initialize_config_dir(version_base="1.3", config_dir=str(ROOT / "conf")):
        yield


def axes(path):
    """Values by key, as they are written."""
    params = OmegaConf.load(path).hydra.sweeper.params
    OverridesParser.create().parse_overrides([
        f"{key}={value}" for key, value in params.items()
    ])  # it is Hydra's grammar
    return {key: str(values).split(",") for key, values in params.items()}


def test_every_question_has_its_sweep():
    assert {path.stem for path in SWEEPS} >= QUESTIONS


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_header_says_what_runs(path):
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1] == f"# python train.py -m sweeps={path.stem}"
    assert re.fullmatch(r"# Question: .*\?", lines[2])
    found = re.fullmatch(r"# Axes: .*\. Runs: (\d+)\.", lines[3])
    assert found is not None
    assert lines[3].startswith(
        "# Axes: " + " x ".join(f"{key.split('.')[-1]} {', '.join(values)}" for key, values in axes(path).items()) + "."
    )
    assert int(found[1]) == math.prod(len(values) for values in axes(path).values())
    assert len(axes(path)["seed"]) >= 3


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_value_of_a_sweep_composes_and_arrives(path):
    found = axes(path)
    jobs = [dict(zip(found, job, strict=True)) for job in itertools.islice(itertools.product(*found.values()), 2)]
    # Then every other value at least once, all axes moving together.
    jobs += [dict(zip(found, job, strict=True)) for job in itertools.zip_longest(*map(reversed, found.values()))]
    jobs = [{key: found[key][0] if value is None else value for key, value in job.items()} for job in jobs]
    for job in jobs:
        overrides = [f"{key}={value}" for key, value in job.items()]
        config = hydra.compose("train", [f"sweeps={path.stem}", *overrides], return_hydra_config=True)
        choices = config.hydra.runtime.choices
        for key, value in job.items():
            if key in choices:
                assert choices[key] == value
            else:
                assert OmegaConf.select(config, key) == OmegaConf.create(f"value: {value}").value


def test_the_baselines_sweep_leaves_out_only_what_needs_an_argument():
    (path,) = (path for path in SWEEPS if path.stem == "baselines")
    assert set(axes(path)["baseline"]) == set(BASELINES) - {"rho_loss", "replay", "gate_only"}


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_chooses_its_selector(name):
    config = hydra.compose("train", [f"baseline={name}"], return_hydra_config=True)
    assert config.hydra.runtime.choices.selector == name
    assert hasattr(selectors, config.selector._target_.removeprefix("winnow.selectors."))
    assert config.scoring.layers == ("last:1" if name == "colm" else "all")
