"""Causal language models: the embedded one, a Hugging Face name, a local folder, or from a config."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)

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
            ``save_pretrained``, of a model or of an adapter, which goes on training; ``model.path``.
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
        ValueError: unknown dtype, or ``lora`` beside an adapter.
        FileNotFoundError: the model, or an adapter's base, is not there.
    """
    where = str(tiny_path()) if path == TINY else path
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_files_only or Path(where).is_dir(),
    }
    adapter = adapter_base(path, where)
    if adapter is not None and lora is not None:
        raise ValueError(
            f"model.path={path} holds an adapter, which goes on training as it is: leave model/lora out, or merge the "
            "adapter into its base first (peft's merge_and_unload, then save_pretrained)"
        )
    try:
        words = AutoTokenizer.from_pretrained(tokenizer or where, **options)
        if adapter is not None:
            options["local_files_only"] = local_files_only or Path(adapter).is_dir()
        model = AutoModelForCausalLM.from_pretrained(
            adapter or where,
            dtype=_dtype(dtype),
            attn_implementation=attn_implementation,
            use_safetensors=True,
            **options,
        )
    except OSError as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"no causal language model could be loaded from model.path={path!r}: {reason}\n"
            "Give a Hugging Face name you have access to (model=hub), or a folder of save_pretrained (model=local)."
        ) from error
    if adapter is not None:
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        log.info("model.path=%s is an adapter on %s, and goes on training", path, adapter)
        return LanguageModel(PeftModel.from_pretrained(model, where, is_trainable=True), words)
    return _prepare(model, words, gradient_checkpointing, lora)


def adapter_base(path: str, where: str) -> str | None:
    """The model below an adapter.

    Args:
        path: ``model.path``, for messages.
        where: the folder or name that stands for.

    Returns:
        Folder or Hugging Face name of the base; None where the folder holds a model, or is none.

    Raises:
        FileNotFoundError: the folder holds neither model nor adapter, or the adapter's weights or base are not there.
    """
    folder = Path(where)
    if not folder.is_dir():
        return None
    if not (folder / "adapter_config.json").is_file():
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(
                f"model.path={path}: the folder holds no model (config.json) and no adapter (adapter_config.json); "
                "give one that save_pretrained made, such as RUN/model"
            )
        return None
    if not (folder / "adapter_model.safetensors").is_file():
        raise FileNotFoundError(f"model.path={path}: the adapter has no weights (adapter_model.safetensors)")
    base = str(PeftConfig.from_pretrained(where).base_model_name_or_path)
    if base.endswith("winnow/models/tiny"):  # the embedded one, wherever it was installed then
        return str(tiny_path())
    if (base.startswith((".", "/", "~")) or base.count("/") > 1) and not Path(base).is_dir():
        raise FileNotFoundError(
            f"model.path={path} is an adapter on {base}, which is not there: put the base there, or its place into "
            "base_model_name_or_path of adapter_config.json"
        )
    return base


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
