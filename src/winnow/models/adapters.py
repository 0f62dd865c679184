"""Adapters of peft: a new one on a model, or one that a folder holds, which goes on training."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftModel
from safetensors import safe_open
from transformers import PreTrainedModel

from winnow.models.fits import embedding_rows

WEIGHTS = "adapter_model.safetensors"


def adapter_base(path: str, where: str, tiny: str) -> str | None:
    """The model below an adapter.

    Args:
        path: ``model.path``, for messages.
        where: the folder or name that stands for.
        tiny: folder of the embedded model.

    Returns:
        Folder or Hugging Face name of the base; None where the folder holds a model, or is none.

    Raises:
        FileNotFoundError: the folder holds neither model nor adapter, or the adapter's weights or base are not there.
        ValueError: the adapter's configuration names a module to import.
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
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"model.path={path}: the adapter has no weights ({WEIGHTS})")
    config = PeftConfig.from_pretrained(where)
    if getattr(config, "megatron_config", None):  # peft would import whatever module megatron_core names
        raise ValueError(
            f"model.path={path}: adapter_config.json has a module imported (megatron_core={config.megatron_core!r}): "
            "take megatron_config and megatron_core out of it; Megatron's layers are not for here"
        )
    base = str(config.base_model_name_or_path)
    if base.endswith("winnow/models/tiny"):  # the embedded one, wherever it was installed then
        return tiny
    if (base.startswith((".", "/", "~")) or base.count("/") > 1) and not Path(base).is_dir():
        raise FileNotFoundError(
            f"model.path={path} is an adapter on {base}, which is not there: put the base there, or its place into "
            "base_model_name_or_path of adapter_config.json"
        )
    return base


def continued(path: str, where: str, base: PreTrainedModel) -> PeftModel:
    """An adapter on its base, with its parameters trained on.

    Tokens that were added with the adapter are in its weights and not in the base's, which gets rows for them.

    Args:
        path: ``model.path``, for messages.
        where: the adapter's folder.
        base: the model below it.

    Returns:
        The two together.

    Raises:
        ValueError: the weights are not those of an adapter on this base.
    """
    rows = _rows(where)
    if rows is not None and rows != embedding_rows(base):
        base.resize_token_embeddings(rows, mean_resizing=False)
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            adapted = PeftModel.from_pretrained(base, where, is_trainable=True)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"model.path={path}: the adapter does not go with its base (base_model_name_or_path of "
            f"adapter_config.json): {first_line(error)}"
        ) from error
    if any("missing adapter keys" in str(one.message) for one in said):
        raise ValueError(
            f"model.path={path}: {WEIGHTS} lacks weights that adapter_config.json describes, which would start "
            "anew: give a folder whose two files were saved together"
        )
    for one in said:
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    return adapted


def first_line(error: BaseException) -> str:
    """What a library says, without the pages that follow.

    Args:
        error: its exception.

    Returns:
        The first sentence of the first line that is not empty and not a mere heading, or the kind of the error.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not line.endswith(":")] or lines
    return re.split(r"(?<=[a-z)])[.!] ", told[0])[0] if told else type(error).__name__


def _rows(where: str) -> int | None:
    """Rows of whole embeddings that an adapter holds."""
    with safe_open(str(Path(where) / WEIGHTS), "pt") as held:
        for name in held.keys():  # noqa: SIM118 -- safetensors' file is no mapping
            if name.endswith((".embed_tokens.weight", ".wte.weight", ".embed_in.weight", ".word_embeddings.weight")):
                return int(held.get_slice(name).get_shape()[0])
    return None


def check_single(lora: Any, adapter: str | None, path: str) -> None:
    """Refuse a second adapter on the first, which would start from the base alone.

    Args:
        lora: gives a new adapter's options; None for none.
        adapter: the base of the adapter that ``path`` is; None if it is a model.
        path: ``model.path``, for messages.

    Raises:
        ValueError: both are there.
    """
    if adapter is not None and lora is not None:
        raise ValueError(
            f"model.path={path} holds an adapter, which goes on training as it is: leave model/lora out, or merge the "
            "adapter into its base first (peft's merge_and_unload, then save_pretrained)"
        )
