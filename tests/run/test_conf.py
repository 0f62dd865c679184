"""Every file of conf/ says which command uses it, that command composes, and its keys are real arguments."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from tests.commands import CONF, SWEEPS, commands, compose, configured
from winnow.data import SelectionDataModule
from winnow.data.encode import Encoding
from winnow.data.subset import restricted
from winnow.evaluation import evaluate
from winnow.run import assemble as running
from winnow.run import tracked
from winnow.run.cli import implied
from winnow.run.rows import encoding_of
from winnow.run.stages import PACE

FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = (
    "model",
    "data",
    "gate",
    "selector",
    "scoring",
    "optimizer",
    "scheduler",
    "trainer",
    "callbacks",
    "logger",
    "ngrams",
)


def choice(path: Path) -> tuple[str, str]:
    return str(path.parent.relative_to(CONF)), path.stem


def targets(node: Any, key: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_`` below a node, and where it is."""
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield key, node
        for name, child in node.items():
            yield from targets(child, f"{key}.{name}")


def bind(node: Mapping[str, Any]) -> None:
    """Raises TypeError where the target has no such arguments, or is not given all it needs."""
    signature = inspect.signature(hydra.utils.get_object(node["_target_"]))
    given = {name: value for name, value in node.items() if not name.startswith("_")}
    (signature.bind_partial if node.get("_partial_") else signature.bind)(**given)


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(choice(path)))
def test_the_command_of_a_file_composes_and_uses_it_with_real_arguments(path: Path) -> None:
    group, option = choice(path)
    found = commands(path)
    assert found, f"{path.name} does not begin with the command that uses it"
    for arguments in found if group == "." else found[:1]:
        if {"-m", "--help"} & set(arguments):
            continue
        cfg = copy.deepcopy(compose(*implied(arguments), config=option if group == "." else "train"))
        if group not in (".", "hydra"):
            assert cfg.hydra.runtime.choices[group] == option
        cfg.hydra.runtime.output_dir = "out"
        for name in GROUPS:
            for _key, node in targets(OmegaConf.to_container(cfg).get(name), name):
                if not node["_target_"].startswith("my_package."):  # a reader's own
                    bind({key: value for key, value in node.items() if name != "scoring" or key not in PACE})


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(choice(path)))
def test_a_file_has_no_trap(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert "mode: MULTIRUN" not in text, "breaks in Hydra 1.4"
    if choice(path)[0] in ("baseline", "experiment", "debug"):
        assert text.startswith("# @package _global_\n"), "Hydra reads this only in the first line"


def test_scoring_has_the_groups_of_a_run() -> None:
    run, score = (compose(config=name).hydra.runtime.choices for name in ("train", "score"))
    assert {name: choice for name, choice in score.items() if name != "logger"} == {
        name: choice for name, choice in run.items() if name not in ("logger", "sweeps", "gate")
    }


def test_arguments_that_the_run_passes_on_are_real() -> None:
    cfg = compose()
    inspect.signature(evaluate).bind(None, None, [], max_length=8, **cfg.evaluation)
    options = {name: value for name, value in cfg.data.items() if name not in ("corpus", "draw_size")}
    subset = {name: options.pop(name) for name in [*options] if name.startswith("subset")}
    inspect.signature(restricted).bind(None, **subset)
    assert encoding_of(options) == Encoding()
    inspect.signature(SelectionDataModule).bind(None, None, seed=0, **options)


def test_a_key_that_binds_to_nothing_is_found_by_these_tests() -> None:
    node = OmegaConf.to_container(compose("+selector.typo=1").selector)
    with pytest.raises(TypeError, match="typo"):
        bind(node)


@pytest.mark.parametrize("path", sorted((CONF / "baseline").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_baseline_sets_the_selector_of_its_name_and_names_the_run(path: Path) -> None:
    given = ["selector.ledger=x"] if path.stem == "replay" else []
    with configured(f"baseline={path.stem}", *given) as cfg:
        running.check(cfg)
        alone = compose(f"selector={path.stem}", *given).selector
        assert cfg.selector == alone, "nothing is left of the default selector"
        assert cfg.name == cfg.logger.group == path.stem


def test_name_tags_and_choices_are_what_was_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, Any] = {}
    monkeypatch.setattr(tracked, "build", lambda node, **extra: built.update(extra))
    with configured(
        "experiment=pretrain_tiny", "logger=wandb", "model.tokenizer=x", "tags=[mine]", "name=other"
    ) as cfg:
        tracked.logger_of(cfg)
        choices = tracked.choices_of_groups()
    assert built["tags"] == ["full", "pretrain", "scratch", "mine"]
    assert choices["selector"] == "full" and choices["experiment"] == "pretrain_tiny"
    assert not any(group.startswith("hydra") for group in choices)


def test_candidates_of_each_process_by_themselves_are_a_method_of_another_name(monkeypatch: pytest.MonkeyPatch) -> None:
    built: dict[str, Any] = {}
    monkeypatch.setattr(tracked, "build", lambda node, **extra: built.update(extra))
    with configured("baseline=greats", "parallel.pool=per_rank", "logger=wandb") as cfg:
        tracked.logger_of(cfg)
        assert cfg.name == cfg.logger.group == "greats-per_rank"
    assert built["tags"][:2] == ["greats", "per_rank"]


def test_two_methods_at_once_are_refused() -> None:
    with (
        configured("baseline=random", "selector=greats") as cfg,
        pytest.raises(ValueError, match="baseline=random and selector=greats contradict each other"),
    ):
        running.check(cfg)
    with configured("baseline=random", "selector=random") as cfg:
        running.check(cfg)


def test_values_that_are_missing_are_all_named() -> None:
    with (
        configured("model=local", "data=jsonl") as cfg,
        pytest.raises(
            ValueError, match=r"no value for data\.corpus\.stream, .*model\.path: give data\.corpus\.stream="
        ),
    ):
        running.check(cfg)


def test_runs_go_below_the_folder_one_is_in() -> None:
    cfg = compose("baseline=random")
    resolved = OmegaConf.to_container(cfg.hydra.run, resolve=False)
    assert resolved["dir"].startswith("outputs/${name}/")
    assert cfg.hydra.job.chdir is False, "relative paths on the command line mean what they say"


def test_configurations_are_found_from_any_folder() -> None:
    assert Path.cwd() != SWEEPS.parent
    cfg: DictConfig = compose("sweeps=filter_size")
    assert "selector.filter_size" in cfg.hydra.sweeper.params
