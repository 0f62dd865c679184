"""What is built holds what it needs: a wheel the configuration and a command, an sdist all of its tests."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.commands import ROOT
from winnow.train import conf_dir

LEFT_OUT = (".*", "outputs", "build", "dist", "*.egg-info", "__pycache__")
BUILD = "from setuptools import build_meta as b; b.build_sdist('dist'); b.build_wheel('dist')"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both, built offline by the setuptools that is installed, from a copy of the tree."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))
    (tree / "dist").mkdir()
    subprocess.run([sys.executable, "-c", BUILD], cwd=tree, check=True, capture_output=True)
    return tree


def below(tree: Path, *folders: str) -> set[str]:
    files = [path for folder in folders for path in (tree / folder).rglob("*") if path.is_file()]
    return {path.relative_to(tree).as_posix() for path in files if "__pycache__" not in path.parts}


def test_a_wheel_holds_the_configuration_and_a_command(built: Path) -> None:
    with zipfile.ZipFile(next((built / "dist").glob("*.whl"))) as wheel:
        names = set(wheel.namelist())
        entries = wheel.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert {f"winnow/{name}" for name in below(built, "conf", "sweeps")} <= names
    assert "winnow-train = winnow.train:command" in entries
    assert {"winnow/train.py", "winnow/py.typed", "winnow/models/tiny/config.json"} <= names


def test_an_sdist_holds_everything_that_is_tested(built: Path) -> None:
    with tarfile.open(next((built / "dist").glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert below(built, "conf", "sweeps", "tests", "docs", "benchmarks", "src/winnow") <= names
    assert {"train.py", "setup.py", "Makefile", "constraints.txt", "CHANGELOG.md", "CITATION.cff", "README.md"} <= names


def test_a_checkout_reads_its_own_configuration() -> None:
    assert conf_dir() == ROOT / "conf" and (conf_dir().parent / "sweeps").is_dir()
