"""Processes of one machine load the model one after the other, and a failure of one ends all in words."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
from typing import Any

import pytest

from tests.commands import ROOT
from tests.run import turns

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the three processes has to tell."""
    out = tmp_path_factory.mktemp("turns")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1", "MASTER_PORT": port}
    command = [sys.executable, "-W", "ignore", turns.__file__, str(out)]
    ended = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert ended.returncode == 0, ended.stdout[-3000:]
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(3)]


def test_one_process_of_a_machine_loads_at_a_time(found: list[dict[str, Any]]) -> None:
    first, second, elsewhere = found
    assert first["begun"] < first["ended"] < second["begun"] < second["ended"]
    assert first["ended"] < elsewhere["begun"]  # the first one of all reads and downloads by itself


def test_what_is_no_share_of_a_process_is_dropped(found: list[dict[str, Any]]) -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("no glibc here")
    for one in found:
        assert 0.3 < one["rows"] < 0.35
        assert one["grown"] < one["rows"] + 0.35


def test_a_model_that_one_process_cannot_load_ends_all_in_words(found: list[dict[str, Any]]) -> None:
    told = "NotLoaded: process 1 of this run could not load the model, and ends it for all: ValueError: no such model"
    assert [one["refused"] for one in found] == [told, "ValueError: no such model", told]


def test_a_process_that_dies_as_it_loads_keeps_nobody_waiting(found: list[dict[str, Any]]) -> None:
    for one in (found[0], found[2]):
        assert one["lost"].startswith("ProcessLost: one of the other 2 processes of this run has ended")
