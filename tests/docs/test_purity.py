"""The core is usable in anybody's loop: importing it brings none of the suite's heavier companions."""

import subprocess
import sys

import pytest

COMPANIONS = ("lightning", "hydra", "omegaconf", "transformers", "peft", "datasets", "pandas", "wandb")


@pytest.mark.slow
def test_the_core_loads_none_of_its_companions() -> None:
    code = f"import sys, winnow; print(*[name for name in {COMPANIONS} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
