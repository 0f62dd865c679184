"""What the README prints works: its Python lines run as they stand, and its commands compose."""

from __future__ import annotations

import copy
import re
import shlex
from pathlib import Path

import pytest
import torch

from tests import runs
from winnow import FilterWeight, Scorer
from winnow.run.cli import check

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands() -> list[str]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    hydra = ("python train.py", "python -m winnow.score")
    return [shlex.join(shlex.split(line, comments=True)) for line in lines if line.startswith(hydra)]


def batches(steps: int) -> list[tuple[dict, dict]]:
    data = runs.datamodule().steps
    return [(data[(0, step)]["pool"], data[(0, step)]["target"]) for step in range(steps)]


def test_the_plain_loop_runs_and_is_what_the_suite_trains() -> None:
    code = next(block for block in blocks("python") if "FilterWeight" in block)
    model = runs.model()
    start = copy.deepcopy(model)
    space = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
        "batches": batches(4),
    }
    exec(compile(code, "README.md", "exec"), space)
    assert space["scorer"].update == "auto"
    from winnow import FilterWeight

    module = runs.fit(FilterWeight(filter_size=4), steps=4)
    moved = 0.0
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(parameter, module.model.state_dict()[name], rtol=1e-3, atol=1e-4)
        moved += float((parameter - start.state_dict()[name]).norm())
    assert moved > 0.1


def test_the_loop_behind_a_gate_runs_and_the_gate_learns() -> None:
    code = next(block for block in blocks("python") if "LinearGate" in block)
    steps, model = runs.datamodule().steps, runs.model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    space = {
        "optimizer": optimizer,
        "scorer": Scorer(model, optimizer),
        "selector": FilterWeight(filter_size=4),
        "draws": [([steps.stream[at] for at in range(24 * n, 24 * n + 24)], steps.target_batch(n)) for n in range(3)],
        "tokenized": lambda examples: steps.pool(examples)["pool"],
    }
    before = copy.deepcopy(model.state_dict())
    exec(compile(code, "README.md", "exec"), space)
    assert space["gate"].model.weights.abs().max() > 0
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("command", commands())
def test_a_printed_command_composes(command: str) -> None:
    program, words = re.split(r"train\.py|winnow\.score", command, maxsplit=1)[0], shlex.split(command)
    config, words = ("score", words[3:]) if " -m " in program else ("train", words[2:])
    if words == ["--help"]:
        pytest.skip("tested as a process")
    for launcher in re.findall(r"hydra/launcher=([a-z]+)", command):
        pytest.importorskip(f"hydra_plugins.hydra_{launcher}_launcher")
    assert check(words, ROOT / "conf", config) == []


def test_files_named_exist() -> None:
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
    for module in re.findall(r"python -m (winnow[\w.]*)", README):
        path = ROOT / "src" / module.replace(".", "/")
        assert path.with_suffix(".py").exists() or (path / "__main__.py").exists(), module
