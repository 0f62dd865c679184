"""Causal language models: the embedded one, a Hugging Face name, a local folder, or from a config."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from winnow.lm.finite import HALF
from winnow.models.adapters import adapter_base, check_single, continued, first_line
from winnow.models.fits import check_causal, check_kernels, check_kind, check_vocabulary, check_weights
from winnow.models.quantized import check_adapter, check_quantized, quantization_config
from winnow.models.templates import template_of

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}
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
    chat_template: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    local_files_only: bool = False,
    quantization: str | None = None,
    lora: Callable[[], LoraConfig] | None = None,
) -> LanguageModel:
    """Load a causal language model with its tokenizer, as safetensors only, and see that they go together.

    Args:
        path: ``tiny`` for the embedded model, a Hugging Face name, or a folder saved by
            ``save_pretrained``, of a model or of an adapter, which goes on training; ``model.path``.
        revision: branch, tag or commit on the hub.
        tokenizer: where the tokenizer comes from, if not from ``path``.
        chat_template: a file, or a stand-in of :mod:`winnow.models.templates`, in place of the tokenizer's own.
        dtype: of the parameters: float32, bfloat16 or float64.
        attn_implementation: ``sdpa``, ``eager``, ``flash_attention_2``; None for what the architecture has.
        gradient_checkpointing: recompute activations in the backward pass.
        trust_remote_code: run model code from the hub; off unless the user sets it.
        local_files_only: never ask the network.
        quantization: ``4bit`` | ``8bit`` for the base of an adapter; None leaves it as it is.
        lora: gives a peft ``LoraConfig``; None trains every parameter.

    Returns:
        Model and tokenizer. With an adapter, only that requires gradients.

    Raises:
        ValueError: unknown dtype, ``lora`` beside an adapter, or what :mod:`winnow.models.fits` refuses.
        FileNotFoundError: the model, or an adapter's base, is not there.
    """
    precision = _dtype(dtype)
    where = str(tiny_path()) if path == TINY else path
    options: dict[str, Any] = {
        "revision": revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": local_files_only or Path(where).is_dir(),
    }
    base = adapter_base(path, where, str(tiny_path()))
    check_single(lora, base, path)
    adapted = base is not None or lora is not None
    quantized = quantization_config(quantization, precision, adapted)
    words = load_tokenizer(tokenizer or where, (path, tokenizer), **options)
    if chat_template is not None:
        words.chat_template = template_of(chat_template)
    if base is not None:
        # Revision and files are the adapter's; its base has none of its own here.
        options |= {"local_files_only": local_files_only or Path(base).is_dir(), "revision": None}
    if quantized is not None:
        options["quantization_config"] = quantized
    model = _weights(path, base or where, attn_implementation, dtype=precision, **options)
    check_quantized(path, model, adapted)
    if base is None:
        return _prepare(path, model, words, gradient_checkpointing, lora)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    log.info("model.path=%s is an adapter on %s, and goes on training", path, base)
    return _checked(path, continued(path, where, model), words)


def load_tokenizer(
    where: str, named: tuple[str, str | None] | None = None, trust_remote_code: bool = False, **options: Any
) -> PreTrainedTokenizerBase:
    """A tokenizer, without code of its own unless that is trusted; nobody is asked at the terminal.

    Args:
        where: folder or Hugging Face name.
        named: ``model.path`` and ``model.tokenizer``, for messages; ``where`` is the tokenizer's if omitted.
        trust_remote_code: as in :func:`load`.
        options: of ``from_pretrained``.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it cannot be loaded, or brings code.
    """
    with explained(*(named or (where, where)), trusts=named is not None):
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            where, trust_remote_code=trust_remote_code, **options
        )
    return found


def from_config(
    config: Mapping[str, Any],
    tokenizer: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
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

    Raises:
        ValueError: unknown dtype, a vocabulary smaller than the tokenizer's, or a model that is not causal.
    """
    words = load_tokenizer(tokenizer)
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
    return _prepare(str(config.get("model_type")), model, words, gradient_checkpointing, lora)


@contextmanager
def explained(path: str, tokenizer: str | None = None, attn: str | None = None, trusts: bool = True) -> Iterator[None]:
    """Say what a library refuses in one line, after the key that helps.

    Args:
        path: ``model.path``.
        tokenizer: ``model.tokenizer``.
        attn: ``model.attn_implementation``.
        trusts: whether ``model.trust_remote_code`` is heeded there.

    Yields:
        Nothing.

    Raises:
        FileNotFoundError: there is no such model or tokenizer.
        ValueError: it cannot be loaded with these options.
    """
    what = f"model.path={path!r}" if tokenizer is None else f"model.tokenizer={tokenizer!r}"
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"no causal language model could be loaded from {what}: {first_line(error)}\n"
            "Give a Hugging Face name you have access to (model=hub), or a folder of save_pretrained (model=local)."
        ) from error
    except (ValueError, ImportError, KeyError, RuntimeError) as error:
        said, way_on = str(error), ""
        if "trust_remote_code" in said and not trusts:
            way_on = "it comes with code of its own, which is not run here; give another one: "
        elif "trust_remote_code" in said:
            way_on = "set model.trust_remote_code=true, if you have read the code that comes with it: "
        elif attn is not None and re.search(r"attention|attn|flash|kernel", said, re.IGNORECASE):
            way_on = f"set model.attn_implementation=null (it is {attn}), for what the architecture has: "
        elif tokenizer is None and "tokenizer" in said.lower():
            way_on = "set model.tokenizer to where its tokenizer is: "
        raise ValueError(f"{what} cannot be loaded: {way_on}{first_line(error)}") from error


def _weights(path: str, where: str, attn: str | None, **options: Any) -> PreTrainedModel:
    """The model, of the right kind and with every weight out of its checkpoint."""
    known = {name: value for name, value in options.items() if name not in ("dtype", "quantization_config")}
    with explained(path):
        config = AutoConfig.from_pretrained(where, **known)
    check_kind(path, config)
    check_kernels(path, config)
    with explained(path, attn=attn):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            where,
            attn_implementation=attn,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are in the info, and refused in our words
            **options,
        )
    model, info = loaded
    check_weights(path, model, info)
    found: PreTrainedModel = model
    return found


def _dtype(name: str) -> torch.dtype:
    if name == "float16":
        raise ValueError(f"model.dtype=float16: {HALF}; set model.dtype=bfloat16 or float32")
    if name not in DTYPES:
        raise ValueError(f"model.dtype is one of {', '.join(DTYPES)}; got {name!r}")
    return DTYPES[name]


def _prepare(
    path: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    gradient_checkpointing: bool,
    lora: Callable[[], LoraConfig] | None,
) -> LanguageModel:
    if gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return _checked(path, model if lora is None else get_peft_model(model, lora()), tokenizer)


def _checked(path: str, model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    check_adapter(model)
    check_vocabulary(path, model, tokenizer)
    check_causal(path, model)
    return LanguageModel(model, tokenizer)
