"""Adapters go on training and score, measure and refer as models do; a quantised base stays as it is below them."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import safetensors.torch
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests import runs
from tests.commands import SMALL, configured, save_base
from tests.reference import relative
from winnow.lm.losses import example_losses
from winnow.models import load
from winnow.models.quantized import of_the_base
from winnow.run import run
from winnow.run.instantiate import BuildError
from winnow.run.score import run as score
from winnow.scorer import Scorer
from winnow.scorer.reference import load_second
from winnow.signals import Needs

needs_bits = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes")
NEEDS = Needs(alignment=True, gram=True)


def go(*overrides: str, out: str = "out") -> dict[str, Any]:
    with configured(*SMALL, "trainer.max_steps=2", *overrides, out=out) as cfg:
        run(cfg)
    summary: dict[str, Any] = json.loads((Path(out) / "summary.json").read_text())
    return summary


@pytest.fixture
def adapter() -> dict[str, Any]:
    """``base``, and an adapter on it in ``out/model``; the summary of the run that made it."""
    save_base()
    return go("model/lora=default", "model.lora.r=2")


def test_an_adapter_is_measured_scored_and_referred_to_as_it_is(adapter: dict[str, Any]) -> None:
    measured = go("model.path=out/model", "trainer.max_steps=0", "export=false", out="measured")
    assert measured["before"] == adapter["after"]
    for path, file in (("out/model", "a.parquet"), ("base", "b.parquet")):
        options = ("selector=max_loss", f"model.path={path}", "candidates=16", f"file={file}")
        with configured(*SMALL, *options, config="score", out="s") as cfg:
            score(cfg)
    ours, theirs = (pd.read_parquet(file)["loss"] for file in ("a.parquet", "b.parquet"))
    assert not ours.equals(theirs) and (ours - theirs).abs().max() < 1
    other = load_second("out/model", load("base").model, "scoring.reference")
    batch = _batch()
    with torch.no_grad():
        assert torch.equal(example_losses(other, batch), example_losses(load("out/model").model, batch))
    go("baseline=rho_loss", "scoring.reference=out/model", "export=false", out="referred")


def test_an_adapter_on_an_adapter_trains_what_the_first_left(adapter: dict[str, Any]) -> None:
    go("model.path=out/model", out="second")
    first, second = (safetensors.torch.load_file(f"{out}/model/adapter_model.safetensors") for out in ("out", "second"))
    assert first.keys() == second.keys() and not all(torch.equal(first[name], second[name]) for name in first)
    assert json.loads(Path("second/model/adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    with pytest.raises(BuildError, match="leave model/lora out"):
        go("model.path=out/model", "model/lora=default", out="third")


def test_a_damaged_adapter_is_refused(adapter: dict[str, Any]) -> None:
    file = "out/model/adapter_model.safetensors"
    held = safetensors.torch.load_file(file)
    safetensors.torch.save_file(dict(list(held.items())[1:]), file)
    with pytest.raises(ValueError, match=r"model\.path=out/model: adapter_model\.safetensors lacks weights"):
        load("out/model")
    safetensors.torch.save_file({name: value.repeat(2, 2) for name, value in held.items()}, file)
    with pytest.raises(ValueError, match=r"model\.path=out/model: the adapter does not go with its base"):
        load("out/model")
    with pytest.raises(ValueError, match=r"^scoring\.reference=out/model: the adapter does not"):
        load_second("out/model", load("base").model, "scoring.reference")


def test_tokens_that_were_added_with_an_adapter_come_with_it() -> None:
    save_base()
    base, words = load("base")
    words.add_tokens([f"<new{number}>" for number in range(4)])
    base.resize_token_embeddings(len(words), mean_resizing=False)
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    adapted = get_peft_model(base, options)
    adapted.save_pretrained("adapter", save_embedding_layers=True)
    words.save_pretrained("adapter")
    again = load("adapter").model
    assert len(again.get_input_embeddings().weight) == len(words)
    ids = torch.tensor([[5, len(words) - 1, 7]])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, adapted.eval()(ids).logits)


def _batch(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(2, 200, (3, 9), generator=torch.Generator().manual_seed(seed))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}


@pytest.fixture
def wide() -> None:
    """A base whose layers are wide enough for every kernel."""
    torch.manual_seed(0)
    shape = {"vocab_size": len(runs.tokenizer()), "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": None, "eos_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**shape, **heads, initializer_range=0.2)).save_pretrained("base")
    runs.tokenizer().save_pretrained("base")


@needs_bits
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_scores_are_exact_on_the_adapter_of_a_quantised_base(bits: str) -> None:
    save_base()
    model = load("base", quantization=bits, lora=lambda: LoraConfig(r=2, target_modules="all-linear")).model
    trained = {name: held for name, held in model.named_parameters() if held.requires_grad}
    assert all("lora_" in name and held.dtype == torch.float32 for name, held in trained.items())
    assert any(held.dtype == {"4bit": torch.uint8, "8bit": torch.int8}[bits] for held in model.parameters())
    torch.manual_seed(0)
    for held in trained.values():
        held.data = 0.1 * torch.randn_like(held)
    scorer = Scorer(model, torch.optim.SGD([*trained.values()]), geometry="identity")
    pool, target = _batch(), _batch(1)
    signals = scorer(pool, target, NEEDS)
    assert scorer.parameters.keys() == trained.keys()

    def each(batch: dict[str, Tensor]) -> Tensor:
        losses = example_losses(model, batch)
        parts = [torch.autograd.grad(loss, [*trained.values()], retain_graph=True) for loss in losses]
        return torch.stack([torch.cat([one.flatten() for one in part]) for part in parts]).double()

    # In one batch, as they are scored: eight bits share their outlier columns among its rows.
    both = each({name: torch.cat([pool[name], target[name]]) for name in pool})
    ours, theirs = both[:3], both[3:]
    assert signals.gram is not None and signals.alignment is not None
    assert relative(signals.gram.double(), ours @ ours.T) < 1e-5
    assert relative(signals.alignment.double(), ours @ theirs.mean(0)) < 1e-5


def test_a_base_of_four_bits_passes_gradients_on_as_its_dequantised_weights_do(wide: None) -> None:
    """After an evaluation too, for which bitsandbytes would lay weights out in a form without derivatives."""
    functional = pytest.importorskip("bitsandbytes").functional
    options = {"lora": lambda: LoraConfig(r=2, target_modules="all-linear")}
    packed, plain = load("base", quantization="4bit", **options).model, load("base", **options).model
    torch.manual_seed(0)
    for ours, theirs in zip(packed.named_modules(), plain.named_modules(), strict=True):
        assert ours[0] == theirs[0]
        if type(ours[1]).__name__ == "Linear4bit" and isinstance(theirs[1], torch.nn.Linear):
            theirs[1].weight.data = functional.dequantize_4bit(ours[1].weight.data, ours[1].weight.quant_state)
        elif ".lora_" in ours[0] and isinstance(ours[1], torch.nn.Linear):
            ours[1].weight.data = 0.1 * torch.randn_like(ours[1].weight)
            theirs[1].weight.data = ours[1].weight.data.clone()
    found = []
    for model in (packed, plain):
        with torch.no_grad():
            example_losses(model.eval(), _batch())
        trained = [held for held in model.train().parameters() if held.requires_grad]
        found.append(Scorer(model, torch.optim.SGD(trained), geometry="identity")(_batch(), _batch(1), NEEDS))
    assert found[0].gram is not None and found[1].gram is not None
    assert relative(found[0].gram, found[1].gram) < 1e-4
    assert found[0].alignment is not None and found[1].alignment is not None
    assert relative(found[0].alignment, found[1].alignment) < 1e-4


@needs_bits
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_a_quantised_run_trains_goes_on_and_comes_back(bits: str) -> None:
    save_base()
    quantised = (f"model.quantization={bits}", "model/lora=default")
    first = go(*quantised, "trainer.max_steps=4")
    assert first["after"] != first["before"]
    state = torch.load("out/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert state and all("lora_" in name for name in state), "no scale of the base is in a checkpoint"
    go(*quantised, out="short")
    resumed = go(*quantised, "trainer.max_steps=4", "ckpt_path=short/checkpoints/last.ckpt", out="short")
    assert resumed["after"] == first["after"]
    again = go("model.path=out/model", f"model.quantization={bits}", "trainer.max_steps=0", "export=false", out="again")
    assert again["before"] == first["after"]


@needs_bits
def test_a_checkpoint_that_is_quantised_takes_an_adapter_only() -> None:
    save_base()
    model, words = load("base", quantization="4bit", lora=lambda: LoraConfig(r=2, target_modules="all-linear"))
    model.unload().save_pretrained("packed")
    words.save_pretrained("packed")
    with pytest.raises(ValueError, match=r"model\.path=packed is a quantised checkpoint.*model/lora=default"):
        load("packed")
    assert load("packed", lora=lambda: LoraConfig(r=2, target_modules="all-linear")).model is not None


@needs_bits
def test_dora_is_for_four_bits() -> None:
    save_base()
    lora = {"lora": lambda: LoraConfig(r=2, target_modules="all-linear", use_dora=True)}
    with pytest.raises(ValueError, match=r"DoRA .*set model\.quantization=4bit"):
        load("base", quantization="8bit", **lora)
    model = load("base", quantization="4bit", **lora).model
    trained = [held for held in model.parameters() if held.requires_grad]
    scorer = Scorer(model, torch.optim.SGD(trained), geometry="identity")
    scorer(_batch(), _batch(1), NEEDS)
    assert len(scorer.parameters) == len(trained), "verified against autograd, and nothing left out"


def test_quantization_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    save_base()
    monkeypatch.setattr("winnow.models.quantized.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'needs bitsandbytes.*pip install "winnow-select\[quantization\]"'):
        load("base", quantization="4bit", lora=lambda: LoraConfig(r=2, target_modules="all-linear"))
    with pytest.raises(ValueError, match=r"set model\.dtype to one of them"):
        load("base", quantization="4bit", dtype="float64", lora=lambda: LoraConfig(r=2))


def test_scales_go_with_the_frozen_weights_they_are_of() -> None:
    base = {"a.weight", "a.weight.absmax", "a.weight.quant_state.nf4", "b.SCB", "b.weight_format"}
    assert of_the_base([*base, "a.weight_v", "c.buffer"], {"a.weight", "b.weight"}) == base
