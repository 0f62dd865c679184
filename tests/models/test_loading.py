"""What does not go together is refused when the model is loaded, with the key to set; what does, loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import transformers

from tests import runs
from tests.commands import SMALL, configured, save_base
from winnow.models import from_config, load
from winnow.models.fits import check_length, check_trainable
from winnow.run import run
from winnow.run.instantiate import BuildError

WORDS = len(runs.tokenizer())
SHAPE: dict[str, Any] = {
    "vocab_size": WORDS, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1,
}  # fmt: skip


def save(model: Any) -> None:
    model.save_pretrained("base")
    runs.tokenizer().save_pretrained("base")


def llama(kind: str = "LlamaForCausalLM", **changes: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, kind)(transformers.LlamaConfig(**{**SHAPE, **changes}))


def bert(**changes: Any) -> Any:
    torch.manual_seed(0)
    return transformers.BertLMHeadModel(
        transformers.BertConfig(**{**SHAPE, "max_position_embeddings": 128, "initializer_range": 0.5, **changes})
    )


def small_vocabulary() -> None:
    save(llama(vocab_size=100))


def a_token_added() -> None:
    save(llama())
    words = transformers.AutoTokenizer.from_pretrained("base")
    words.add_tokens(["<new>"])
    words.save_pretrained("base")


def sees_ahead() -> None:
    save(bert(is_decoder=False))


def sequence_to_sequence() -> None:
    shape = {"vocab_size": WORDS, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2}
    more = {"decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    save(transformers.BartForConditionalGeneration(transformers.BartConfig(**shape, **more)))


def t5() -> None:
    shape = {"vocab_size": WORDS, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    save(transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)))


def classifier() -> None:
    save(llama("LlamaForSequenceClassification", tie_word_embeddings=True))


def vision() -> None:
    save(transformers.ViTModel(transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)))


def backbone() -> None:
    save(llama("LlamaModel", tie_word_embeddings=False))


def half_a_checkpoint() -> None:
    save(llama(tie_word_embeddings=False))
    held = safetensors.torch.load_file("base/model.safetensors")
    held = {name: value for name, value in held.items() if "layers.1" not in name}
    safetensors.torch.save_file(held, "base/model.safetensors", {"format": "pt"})


def another_shape() -> None:
    save(llama(tie_word_embeddings=False))
    config = json.loads(Path("base/config.json").read_text())
    Path("base/config.json").write_text(json.dumps({**config, "intermediate_size": 24}))


REFUSED: list[tuple[Callable[[], None], str]] = [
    (small_vocabulary, rf"the tokenizer has {WORDS} ids, the model 100 rows \(model.path=base\): set model.tokenizer"),
    (a_token_added, rf"the tokenizer has {WORDS + 1} ids, the model {WORDS} rows.*resize_token_embeddings"),
    (sees_ahead, r"model.path=base: BertLMHeadModel is not causal.*is_decoder=true"),
    (sequence_to_sequence, r"model.path=base is an encoder-decoder \(Bart.*decoder-only"),
    (t5, r"model.path=base is an encoder-decoder \(T5"),
    (classifier, r"model.path=base is a LlamaForSequenceClassification, whose head is no output layer"),
    (vision, r"model.path=base is of type 'vit', which has no causal language model"),
    (backbone, r"model.path=base lacks lm_head.weight of LlamaForCausalLM, which would start at random"),
    (half_a_checkpoint, r"model.path=base lacks model.layers.1.* and 6 more of LlamaForCausalLM"),
    (another_shape, r"model.path=base: model.layers.0.mlp.*16.*24.*another size in the checkpoint"),
]


@pytest.mark.parametrize(("made", "words"), REFUSED, ids=[made.__name__ for made, _ in REFUSED])
def test_what_does_not_go_together_is_refused(made: Callable[[], None], words: str) -> None:
    made()
    with pytest.raises(ValueError, match=words):
        load("base")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dtype": "float16"}, r"model.dtype=float16.*set model.dtype=bfloat16 or float32"),
        ({"dtype": "int8"}, r"model.dtype is one of float32, bfloat16, float64; got 'int8'"),
        ({"quantization": "4bit"}, r"model.quantization=4bit leaves no weight.*model/lora=default"),
        ({"quantization": "3bit"}, r"model.quantization must be 4bit, 8bit or null, got '3bit'"),
        (
            {"attn_implementation": "sdap"},
            r"'base' cannot be loaded: set model.attn_implementation=null \(it is sdap\)",
        ),
        ({"tokenizer": "nowhere"}, r"from model.tokenizer='nowhere'"),
    ],
)
def test_options_are_refused_by_key(options: dict[str, Any], words: str) -> None:
    save_base()
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        load("base", local_files_only=True, **options)


def test_a_model_from_a_config_is_held_to_its_tokenizer_too() -> None:
    save_base()
    with pytest.raises(ValueError, match=f"the tokenizer has {WORDS} ids, the model 100 rows"):
        from_config({"model_type": "llama", **SHAPE, "vocab_size": 100}, "base")
    with pytest.raises(ValueError, match="BertLMHeadModel is not causal"):
        from_config({"model_type": "bert", **SHAPE, "initializer_range": 0.5}, "base")
    assert from_config({"model_type": "llama", **SHAPE}, "base").model.training, "as transformers makes it"


FAMILIES: dict[str, Callable[[], Any]] = {
    "tied": lambda: llama(tie_word_embeddings=True),
    "decoder of an encoder's kind": lambda: bert(is_decoder=True),
    "gemma2": lambda: transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**SHAPE, sliding_window=8)),
    "gpt_oss": lambda: transformers.GptOssForCausalLM(
        transformers.GptOssConfig(**SHAPE, num_local_experts=4, num_experts_per_tok=2, sliding_window=8)
    ),
    "mamba": lambda: transformers.MambaForCausalLM(
        transformers.MambaConfig(vocab_size=WORDS, hidden_size=8, state_size=4, num_hidden_layers=2)
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=WORDS, n_embd=16, n_layer=1, n_head=2, n_positions=128)
    ),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_architecture_loads_with_the_attention_it_has(family: str) -> None:
    torch.manual_seed(0)
    save(FAMILIES[family]())
    model = load("base").model
    assert model.get_input_embeddings().weight.shape[0] == WORDS and not model.training


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mamba"])
def test_architectures_without_sdpa_train_by_default(family: str) -> None:
    """``scoring.verify``, on by default, holds their gradients to autograd's."""
    torch.manual_seed(0)
    save(FAMILIES[family]())
    with configured(*SMALL, "data.max_length=48", "trainer.max_steps=2", "export=false") as cfg:
        run(cfg)
    assert json.loads(Path("out/status.json").read_text())["state"] == "finished"


def opt() -> Any:
    shape = {"vocab_size": WORDS, "hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    return transformers.OPTForCausalLM(transformers.OPTConfig(**shape, max_position_embeddings=128))


def gptj() -> Any:
    shape = {"vocab_size": WORDS, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 128, "rotary_dim": 4}
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**shape))


@pytest.mark.parametrize("made", [FAMILIES["gpt2"], opt, gptj, bert], ids=["gpt2", "opt", "gptj", "bert"])
def test_rows_longer_than_the_table_of_positions_are_refused(made: Callable[[], Any]) -> None:
    model = made()
    check_length("m", model, 128)
    with pytest.raises(ValueError, match=r"data.max_length=129 is more than the 128 positions.*data.max_length=128"):
        check_length("m", model, 129)


def test_rotary_positions_beyond_those_trained_are_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    model = llama(max_position_embeddings=128)
    check_length("m", model, 128)
    assert not caplog.records
    check_length("m", model, 129)
    assert "data.max_length=129, and model.path=m was made for 128 positions" in caplog.text


def test_a_run_is_refused_for_its_length_and_where_nothing_is_trained() -> None:
    save(FAMILIES["gpt2"]())
    with (
        configured(*SMALL, "data.max_length=300") as cfg,
        pytest.raises(BuildError, match=r"data\.max_length=300 is more than the 128 positions that model\.path=base"),
    ):
        run(cfg)
    with pytest.raises(ValueError, match=r"every parameter of the model is frozen.*model/lora=default"):
        check_trainable("m", llama().requires_grad_(False))
