"""Freed memory is kept where glibc can be told to, and never against what the environment says."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from winnow.run.allocator import keep_freed_memory

MAPPED_AGAIN = """
import resource
from winnow.run.allocator import keep_freed_memory
assert keep_freed_memory()
faults = []
for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = bytearray(2**27)
    del block
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(*faults)
"""


def test_a_block_is_mapped_once() -> None:
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("no glibc here")
    done = subprocess.run([sys.executable, "-c", MAPPED_AGAIN], capture_output=True, text=True, check=False, env={})
    assert done.returncode == 0, done.stderr
    first, *later = map(int, done.stdout.split())
    assert max(later) < 0.1 * first, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["MALLOC_ARENA_MAX", "LD_PRELOAD", "GLIBC_TUNABLES"])
def test_an_allocator_that_the_user_set_up_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "x")
    assert not keep_freed_memory()
