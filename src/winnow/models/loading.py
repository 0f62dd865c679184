"""Causal language models: the embedded one, a Hugging Face name, a local folder, or from a config."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
TINY = "tiny"


class LanguageModel(NamedTuple):
    """A model and its tokenizer."""

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase


def tiny_path() -> Path:
    """Folder of the embedded tiny model."""
    return Path(str(files("winnow") / "models" / TINY))


def load(
    path: str,
    *,
    revision: str | None = None,
    tokenizer: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = "sdpa",
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    lora: Callable[[], LoraConfig] | None = None,
) -> LanguageModel:
    """Load a causal language model with its tokenizer, as safetensors only.

    Args:
        path: ``tiny`` for the embedded model, a Hugging Face name, or a folder saved by
            ``save_pretrained``; ``model.path``.
        revision: branch, tag or commit on the hub.
        tokenizer: where the tokenizer comes from, if not from ``path``.
        dtype: of the parameters: float32, bfloat16, float16 or float64.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; None lets transformers choose.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: run model code from the hub; off unless the user sets it.
        local_files_only: never ask the network.
        lora: gives a peft ``LoraConfig``; None trains every parameter.

    Returns:
        Model and tokenizer. With LoRA, only the adapter requires gradients.

    Raises:
        ValueError: unknown dtype.
        FileNotFoundError: the model is not there.
    """
    where = str(tiny_path()) if path == TINY else path
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_files_only or Path(where).is_dir(),
    }
    try:
        words = AutoTokenizer.from_pretrained(tokenizer or where, **options)
        model = AutoModelForCausalLM.from_pretrained(
            where, dtype=_dtype(dtype), attn_implementation=attn_implementation, use_safetensors=True, **options
        )
    except OSError as error:
        raise FileNotFoundError(
            f"no causal language model could be loaded from model.path={path!r}: {str(error).splitlines()[0]}\n"
            "Give a Hugging Face name you have access to (model=hub), or a folder of save_pretrained (model=local)."
        ) from error
    return _prepare(model, words, gradient_checkpointing, lora)


def from_config(
    config: Mapping[str, Any],
    tokenizer: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = "sdpa",
    gradient_checkpointing: bool = False,
    lora: Callable[[], LoraConfig] | None = None,
    seed: int = 0,
) -> LanguageModel:
    """A randomly initialised model, for pre-training or for timing a shape without its weights.

    Args:
        config: a Hugging Face config with ``model_type``; vocabulary and special tokens default to
            the tokenizer's.
        tokenizer: folder or name of the tokenizer.
        dtype: of the parameters.
        attn_implementation: as in :func:`load`.
        gradient_checkpointing: recompute activations in the backward pass.
        lora: as in :func:`load`.
        seed: of the initialisation.

    Returns:
        Model and tokenizer.
    """
    words = AutoTokenizer.from_pretrained(tokenizer)
    special = {
        "vocab_size": len(words),
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**{**special, **config}), attn_implementation=attn_implementation, dtype=_dtype(dtype)
        )
    return _prepare(model, words, gradient_checkpointing, lora)


def _dtype(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise ValueError(f"model.dtype is one of {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def _prepare(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    gradient_checkpointing: bool,
    lora: Callable[[], LoraConfig] | None,
) -> LanguageModel:
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if lora is None:
        return LanguageModel(model, tokenizer)
    adapted = get_peft_model(model, lora())
    return LanguageModel(adapted, tokenizer)
