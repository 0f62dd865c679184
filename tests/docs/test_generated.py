"""What follows from other files is not stale, and what is made for a new method is what the suite takes."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import yaml

from tests.commands import ROOT


def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_nothing_is_stale() -> None:
    stale = [str(path.relative_to(ROOT)) for path in generator().stale()]
    assert not stale, "run: make generate"


def test_a_new_method_gets_its_baseline_and_its_place_on_the_axes(tmp_path: Path) -> None:
    made = generator()
    for name in ("conf", "sweeps", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name)
    (tmp_path / "conf" / "baseline" / "greats.yaml").unlink()
    sweep = tmp_path / "sweeps" / "baselines.yaml"
    sweep.write_text(sweep.read_text().replace(",greats", ""))
    stale = {path.relative_to(tmp_path).as_posix() for path in made.stale(tmp_path)}
    assert stale == {"conf/baseline/greats.yaml", "sweeps/baselines.yaml"} or stale == {
        "conf/baseline/greats.yaml",
        "sweeps/baselines.yaml",
        "sweeps/wandb/baselines.yaml",
    }
    wanted = made.generated(tmp_path)
    one = yaml.safe_load(wanted[tmp_path / "conf" / "baseline" / "greats.yaml"])
    assert one == {"defaults": [{"override /selector": "greats"}]}
    axis = yaml.safe_load(wanted[sweep])["hydra"]["sweeper"]["params"]["baseline"].split(",")
    assert axis[-1] == "greats" and "rho_loss" not in axis
    assert f"Runs: {5 * len(axis)}." in wanted[sweep] and ", greats x seed" in wanted[sweep]
    for_wandb = yaml.safe_load(wanted[tmp_path / "sweeps" / "wandb" / "baselines.yaml"])
    assert for_wandb["parameters"]["baseline"]["values"] == axis


def test_the_readme_names_every_method() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in (ROOT / "conf" / "baseline").glob("*.yaml"):
        assert f"`{path.stem}`" in text, path.stem
