"""A folder, model or checkpoint of somebody else's runs nothing: no pickle, no code, nothing that a config names."""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.commands import ROOT, SMALL, command_line, configured, save_base
from tests.run.test_run import go
from winnow import ledger
from winnow.data.__main__ import main as look_at_data
from winnow.evaluate import MEASURE_ONLY
from winnow.models import from_config, load
from winnow.records.checkpoint import read_checkpoint
from winnow.records.folder import FolderInUse, earlier_job
from winnow.records.table import read_table
from winnow.records.tracked import Tracked, tracked
from winnow.report.__main__ import main as report
from winnow.run.instantiate import BuildError
from winnow.run.score import run as score

MARK = Path("RAN")
CALL = {"_target_": "builtins.open", "file": "RAN", "mode": "w"}
LAST = "bad/checkpoints/last.ckpt"


class Poison:
    """Writes a file where it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("RAN", "w")


@pytest.fixture(autouse=True)
def nothing_ran(isolated: None) -> Any:
    yield
    assert not MARK.exists()


def test_the_poison_works() -> None:
    pickle.loads(pickle.dumps(Poison())).close()
    assert MARK.exists()
    MARK.unlink()


def calls(names: set[str]) -> list[tuple[str, ast.Call]]:
    """Calls of these names in the package, with the file they stand in."""
    last = tuple({name.rsplit(".", 1)[-1] for name in names})
    return [
        (path.relative_to(ROOT / "src" / "winnow").as_posix(), node)
        for path in sorted((ROOT / "src").rglob("*.py"))
        if any(name in (text := path.read_text(encoding="utf-8")) for name in last)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in names
    ]


def test_only_helping_processes_of_our_own_are_sent_pickles() -> None:
    loads = {f"{one}.{name}" for one in ("pickle", "cloudpickle", "dill", "joblib") for name in ("load", "loads")}
    assert {file for file, _ in calls(loads | {"pickle.Unpickler", "pd.read_pickle"})} == {"data/helpers.py"}
    safe = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
    for name, option in safe.items():
        found = calls({name})
        assert found and all(option in ast.unparse(call) for _, call in found)
    fits = [ast.unparse(call) for _, call in calls({"made.trainer.fit"})]
    assert fits and all("weights_only=True" in call for call in fits)


def test_one_module_makes_objects_of_configurations_and_says_of_every_download_whether_code_is_run() -> None:
    makers = {f"hydra.utils.{name}" for name in ("instantiate", "call", "get_class", "get_method", "get_object")}
    assert {file for file, _ in calls(makers)} == {"run/instantiate.py"}
    found = calls({f"{one}.from_pretrained" for one in ("AutoTokenizer", "AutoConfig", "AutoModelForCausalLM")})
    assert {file for file, _ in found} == {"models/loading.py"}
    for _, call in found:
        # `options` and `known` hold the setting of the run.
        assert any(word in ast.unparse(call) for word in ("trust_remote_code=", "**options", "**known"))
    assert any("use_safetensors=True" in ast.unparse(call) for _, call in found)


def legacy(path: Path) -> None:
    torch.save({"winnow": Poison(), "optimizer_states": []}, path, _use_new_zipfile_serialization=False)


def bare(path: Path) -> None:
    path.write_bytes(pickle.dumps(Poison()))


@pytest.mark.parametrize("write", [lambda path: torch.save({"x": Poison()}, path), legacy, bare])
def test_a_checkpoint_is_not_unpickled(write: Callable[[Path], None]) -> None:
    write(Path("last.ckpt"))
    with pytest.raises(ValueError, match=r"ckpt_path=last\.ckpt cannot be read as a checkpoint"):
        read_checkpoint("last.ckpt")


def test_weights_that_are_pickles_are_not_read() -> None:
    save_base()
    Path("base/model.safetensors").unlink()
    torch.save({"lm_head.weight": Poison()}, "base/pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match=r"no causal language model could be loaded from model\.path='base'"):
        load("base")
    Path("adapter").mkdir()
    Path("adapter/adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "base"}))
    torch.save(Poison(), "adapter/adapter_model.bin")
    with pytest.raises(FileNotFoundError, match=r"the adapter has no weights \(adapter_model\.safetensors\)"):
        load("adapter")


def test_tables_and_configurations_that_are_pickles_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bare(Path("scores.pkl"))
    with pytest.raises(ValueError, match=r"data\.subset=scores\.pkl must end in one of \.parquet, \.csv, \.jsonl"):
        read_table("scores.pkl", "data.subset", ("id",))
    for full in ("0", "1"):
        monkeypatch.setenv("HYDRA_FULL_ERROR", full)
        with pytest.raises(SystemExit, match="2"):
            command_line(monkeypatch, print, "--experimental-rerun", "scores.pkl")
        assert "Hydra reads the configuration from a pickle" in capsys.readouterr().err


def with_code(folder: str) -> None:
    """A model whose config and tokenizer name code beside them."""
    save_base()
    shutil.move("base", folder)
    Path(folder, "custom.py").write_text(
        f"open({str(MARK.absolute())!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast\n"
        "class C(LlamaConfig):\n    model_type = 'custom_llama'\n"
        "class M(LlamaForCausalLM):\n    config_class = C\n"
        "class T(PreTrainedTokenizerFast):\n    pass\n"
    )
    named = {
        "config.json": {
            "model_type": "custom_llama",
            "auto_map": {"AutoConfig": "custom.C", "AutoModelForCausalLM": "custom.M"},
        },
        "tokenizer_config.json": {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": [None, "custom.T"]}},
    }
    for file, more in named.items():
        path = Path(folder, file)
        path.write_text(json.dumps(json.loads(path.read_text()) | more))


def test_code_that_comes_with_a_model_is_run_only_where_it_is_trusted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_code("coded")
    save_base()
    way_on = "set model.trust_remote_code=true, if you have read the code that comes with it"
    monkeypatch.setattr("builtins.input", lambda *asked: pytest.fail("asked at the terminal"))
    for refused in (
        lambda: load("coded"),
        lambda: load("coded", tokenizer="base"),
        lambda: load("base", tokenizer="coded"),
    ):
        with pytest.raises(ValueError, match=way_on):
            refused()
    with pytest.raises(ValueError, match="code of its own, which is not run here"):
        from_config({"model_type": "llama"}, "coded")
    Path("rows.jsonl").write_text(json.dumps({"prompt": "a", "response": "b"}))
    assert look_at_data(["rows.jsonl", "--model", "coded"]) == 2
    assert "code of its own, which is not run here" in capsys.readouterr().out
    assert not MARK.exists()
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(Path("modules").absolute()))
    monkeypatch.syspath_prepend(str(Path("modules").absolute()))
    assert type(load("coded", tokenizer="base", trust_remote_code=True).model).__name__ == "M"
    MARK.unlink()


@pytest.mark.parametrize("key", ["_attn_implementation", "attn_implementation"])
def test_a_kernel_that_a_config_names_is_refused_before_it_is_fetched(key: str) -> None:
    save_base()
    config = Path("base/config.json")
    config.write_text(json.dumps(json.loads(config.read_text()) | {key: "somebody/kernel"}))
    with pytest.raises(
        ValueError, match=r"model\.path=base: its config\.json has code of the hub run .*somebody/kernel"
    ):
        load("base")
    with pytest.raises(ValueError, match=r"name it in model\.attn_implementation"):
        load("base", attn_implementation="eager")


def test_a_module_that_an_adapter_names_is_not_imported() -> None:
    Path("adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "megatron_config": {"a": 1}, "megatron_core": "x"}
    Path("adapter/adapter_config.json").write_text(json.dumps(config))
    Path("adapter/adapter_model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match=r"adapter_config\.json has a module imported \(megatron_core='x'\)"):
        load("adapter")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrusted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        save_base()
        go("trainer.max_steps=2", out="bad")
    config = json.loads((folder / "bad/config.json").read_text())
    (folder / "bad/config.json").write_text(json.dumps(poisoned(config) | {"more": CALL}))
    return folder


def poisoned(value: Any) -> Any:
    """A configuration whose every ``_target_`` is one that leaves a mark."""
    if not isinstance(value, dict):
        return value
    changed = {key: poisoned(child) for key, child in value.items()}
    return changed | (CALL if "_target_" in value else {})


@pytest.fixture
def here(finished: Path) -> None:
    """A run's folder, ``bad``, whose configuration would leave a mark if anything in it were built."""
    shutil.copytree(finished, ".", dirs_exist_ok=True)


def goes_on() -> None:
    go("trainer.max_steps=3", f"ckpt_path={LAST}", "export=false", out="on")


def evaluates() -> None:
    go(*MEASURE_ONLY[:2], "model.path=bad/model", out="measured")


def scores() -> None:
    small = [one for one in SMALL if not one.startswith(("callbacks", "logger", "evaluation", "trainer.val"))]
    options = (*small, "selector=max_loss", f"ckpt_path={LAST}", "candidates=8", "file=scores.parquet")
    with configured(*options, config="score") as cfg:
        score(cfg)


def reports() -> None:
    assert report(["bad"]) == 0
    assert ledger.main(["bad"]) == 0


def is_a_job_of_a_sweep() -> None:
    with pytest.raises(FolderInUse, match=r"holds a job of another configuration: .*_target_ was builtins\.open"):
        earlier_job(Path("bad"), {"selector": {"_target_": "winnow.FilterWeight"}})


def resumes_by_itself() -> None:
    with pytest.raises(BuildError, match=r"holds a job of another configuration: .*_target_ was builtins\.open"):
        go("trainer.max_steps=2", "resume=auto", out="bad")


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("use", [goes_on, evaluates, scores, reports, is_a_job_of_a_sweep, resumes_by_itself])
def test_nothing_is_built_of_a_configuration_that_comes_with_a_run(use: Callable[[], None]) -> None:
    use()


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("day", [CALL, "${oc.env:HOME}", 5])
def test_the_day_of_a_run_that_goes_on_is_a_day(day: Any) -> None:
    path = Path("bad/config.json")
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"data": {**config["data"], "date": day}}))
    with pytest.raises(BuildError, match=r"bad/config\.json: data\.date is .*, no day such as"):
        go("trainer.max_steps=3", f"ckpt_path={LAST}", out="on")


@pytest.mark.parametrize(
    ("name", "kept"), [("abc123", True), ("my run", True), ("../x", False), ("${oc.env:HOME}", False), ("a\nb", False)]
)
def test_the_run_elsewhere_that_a_folder_names_is_an_id(name: str, kept: bool) -> None:
    Path("tracking.json").write_text(json.dumps({"id": name, "step": 3}))
    assert tracked(Path()) == (Tracked(name, 3) if kept else None)
