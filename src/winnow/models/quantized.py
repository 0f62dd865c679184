"""A base in four or eight bits, through bitsandbytes, with an adapter on top (QLoRA)."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig

BITS = ("4bit", "8bit")


def quantization_config(quantization: str | None, dtype: torch.dtype, adapted: bool) -> BitsAndBytesConfig | None:
    """What ``model.quantization`` asks for.

    Four bits are QLoRA's: NF4, with the scales quantised too, multiplied in ``dtype``. Eight are LLM.int8's.

    Args:
        quantization: ``4bit`` | ``8bit``; None for none.
        dtype: of what is not quantised.
        adapted: whether an adapter is trained on the base.

    Returns:
        transformers' options; None for none.

    Raises:
        ValueError: neither of them, no adapter, float64, or bitsandbytes is not installed.
    """
    if quantization is None:
        return None
    if quantization not in BITS:
        raise ValueError(f"model.quantization must be 4bit, 8bit or null, got {quantization!r}")
    if not adapted:
        raise ValueError(
            f"model.quantization={quantization} leaves no weight of the base that could be trained: train an adapter "
            "on it (model/lora=default), or set model.quantization=null"
        )
    if dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(
            f"model.quantization={quantization} multiplies in float32 or bfloat16: set model.dtype to one of them"
        )
    if find_spec("bitsandbytes") is None:
        raise ValueError(
            f"model.quantization={quantization} needs bitsandbytes, which is not installed: "
            'pip install "winnow-select[quantization]"'
        )
    if quantization == "8bit":
        # A line for every product of every layer says that eight bits pass through sixteen.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )


def check_quantized(path: str, model: nn.Module, adapted: bool) -> None:
    """Refuse to train the weights of a checkpoint that is quantised already, and keep gradients through a base whole.

    Args:
        path: ``model.path``, for messages.
        model: the model.
        adapted: whether an adapter is trained on it.

    Raises:
        ValueError: it is, and there is no adapter.
    """
    if getattr(model, "is_quantized", False) and not adapted:
        raise ValueError(
            f"model.path={path} is a quantised checkpoint, whose weights cannot be trained: train an adapter on it "
            "(model/lora=default)"
        )
    for module in model.modules():
        # On a CPU with AVX512-BF16, the first evaluation would lay the weights out for a product that has no
        # derivative, for good: gradients of what is below the layer would be cut off without a word.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def check_adapter(model: Any) -> None:
    """Refuse an adapter that cannot be on a base of eight bits: peft's DoRA takes the scales away from it.

    Args:
        model: the model, with an adapter or not.

    Raises:
        ValueError: the base is in eight bits and the adapter is DoRA.
    """
    options = getattr(model, "peft_config", None) or {}
    if getattr(model, "is_loaded_in_8bit", False) and any(getattr(one, "use_dora", False) for one in options.values()):
        raise ValueError(
            "DoRA (use_dora) does not work on a base of eight bits: set model.quantization=4bit, or "
            "+model.lora.use_dora=false"
        )


def of_the_base(names: Iterable[str], frozen: Collection[str]) -> set[str]:
    """Entries of a state that belong to frozen parameters: themselves, and the scales of those that are quantised.

    Args:
        names: of the state's entries.
        frozen: names of the frozen parameters.

    Returns:
        Those that can be loaded again with the base.
    """
    inside = tuple(f"{name}." for name in frozen)
    beside = {name.removesuffix("weight") + ending for name in frozen for ending in ("SCB", "weight_format")}
    return {name for name in names if name in frozen or name in beside or name.startswith(inside)}
