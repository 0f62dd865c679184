"""Tiny models of every supported family, built from config, and batches to run them on."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from winnow.gradients.layers import rms_norm

VOCAB, WIDTH = 23, 8

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": WIDTH,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
}


def _untied(config: Any, **changes: Any) -> Any:
    return config(**{**_SHAPE, "tie_word_embeddings": False, **changes})


FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: _untied(transformers.LlamaConfig),
    "qwen2": lambda: _untied(transformers.Qwen2Config),
    "qwen3": lambda: _untied(transformers.Qwen3Config, tie_word_embeddings=True),
    "gpt2": lambda: transformers.GPT2Config(
        vocab_size=VOCAB, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=32, resid_pdrop=0.1, embd_pdrop=0.1,
        attn_pdrop=0.1, bos_token_id=0, eos_token_id=0,
    ),
    "gpt_neox": lambda: transformers.GPTNeoXConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
        max_position_embeddings=32, hidden_dropout=0.1, attention_dropout=0.1,
    ),
    "gemma": lambda: _untied(transformers.GemmaConfig, tie_word_embeddings=True),
    "gemma3": lambda: _untied(transformers.Gemma3TextConfig, tie_word_embeddings=True, sliding_window=8),
    "opt": lambda: transformers.OPTConfig(
        vocab_size=VOCAB, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=2, ffn_dim=12,
        max_position_embeddings=32, word_embed_proj_dim=WIDTH, dropout=0.1, pad_token_id=1, do_layer_norm_before=True,
    ),
    "mixtral": lambda: _untied(transformers.MixtralConfig, num_local_experts=4, num_experts_per_tok=2),
    "qwen2_moe": lambda: _untied(
        transformers.Qwen2MoeConfig, num_experts=5, num_experts_per_tok=2, moe_intermediate_size=8,
        shared_expert_intermediate_size=10, norm_topk_prob=True,
    ),
}  # fmt: skip

LORA_TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "gpt_neox": ["query_key_value", "dense", "dense_h_to_4h"],
    "mixtral": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def build(family: str, lora: bool = False, attention: str = "eager", seed: int = 0) -> nn.Module:
    """A tiny float64 model in training mode, weights large enough for every gradient to matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = FAMILIES[family]()
        config._attn_implementation = attention
        config._experts_implementation = "eager"  # the default of transformers, grouped_mm, has no float64
        model = transformers.AutoModelForCausalLM.from_config(config).double()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        if lora:
            targets = LORA_TARGETS.get(family, "all-linear")
            fan = family == "gpt2"
            adapter = LoraConfig(
                r=3,
                lora_alpha=7,
                lora_dropout=0.2,
                target_modules=targets,
                fan_in_fan_out=fan,
                task_type="CAUSAL_LM",
            )
            with warnings.catch_warnings():  # peft 0.21 asks transformers 5.23 for an attribute it has renamed
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                model = get_peft_model(model, adapter).double()
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.data = 0.3 * torch.randn_like(parameter)
    return model.train()


def ragged(lengths: list[int], prompts: list[int] | None = None, seed: int = 0, pad: int = 0) -> dict[str, Tensor]:
    """Right-padded random examples; ``prompts`` says how many tokens of each carry no label."""
    generator = torch.Generator().manual_seed(seed)
    prompts = [2] * len(lengths) if prompts is None else prompts
    width = max(lengths)
    ids = torch.randint(2, VOCAB, (len(lengths), width), generator=generator)
    place = torch.arange(width)
    mask = place < torch.tensor(lengths)[:, None]
    labelled = mask & (place >= torch.tensor(prompts)[:, None])
    return {
        "input_ids": torch.where(mask, ids, pad),
        "attention_mask": mask.long(),
        "labels": torch.where(labelled, ids, -100),
    }


def rows(batch: dict[str, Tensor], index: Any) -> dict[str, Tensor]:
    """Some rows of a batch."""
    return {key: value[index] for key, value in batch.items()}


@contextmanager
def double() -> Iterator[None]:
    """Keep float64 throughout HF's models, so that 1e-9 is a meaningful tolerance.

    They upcast norms, rotary embeddings and softmax to float32, which is a downcast here. Patched
    rather than a TorchFunctionMode, since autograd leaves such modes during the backward.
    """
    to, to_float, softmax = Tensor.to, Tensor.float, torch.nn.functional.softmax

    def keep(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if tensor.dtype == torch.float64:
            args = tuple(torch.float64 if value is torch.float32 else value for value in args)
            kwargs = {key: torch.float64 if value is torch.float32 else value for key, value in kwargs.items()}
        return to(tensor, *args, **kwargs)

    def keep_float(tensor: Tensor) -> Tensor:
        return tensor if tensor.dtype == torch.float64 else to_float(tensor)

    def keep_softmax(tensor: Tensor, *args: Any, dtype: Any = None, **kwargs: Any) -> Tensor:
        return softmax(
            tensor,
            *args,
            dtype=None if tensor.dtype == torch.float64 else dtype,
            **kwargs,
        )

    with (
        mock.patch.dict(rms_norm._checked.answers, clear=True),  # norms that work in float32 now work in float64
        mock.patch.object(Tensor, "to", keep),
        mock.patch.object(Tensor, "float", keep_float),
        mock.patch.object(torch.nn.functional, "softmax", keep_softmax),
    ):
        yield
