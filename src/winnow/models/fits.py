"""Whether model, tokenizer and length go together: looked at when a model is loaded, refused with the key to set."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from winnow.records.shown import shown

log = logging.getLogger(__name__)

OTHER_HEAD = re.compile(r"For(?!CausalLM|ConditionalGeneration|ImageTextToText)[A-Z]\w*$|(?:Reward|DoubleHeads)Model$")
"""Names of models whose last layer gives something else than the next token."""
TABLE = re.compile(r"(^|\.)(wpe|\w*position\w*|\w*pos_emb\w*)$")
"""Names of learned position tables."""
PROBED = 8
"""Tokens in a row of the causality probe."""
TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest change of earlier logits that is rounding, as a share of the largest; 2 % in coarser precision."""


def check_kind(path: str, config: PretrainedConfig) -> None:
    """Refuse, before any weight is read, what is no decoder with an output layer over the vocabulary.

    Args:
        path: ``model.path``, for messages.
        config: the model's.

    Raises:
        ValueError: an encoder-decoder, a head of another kind, or an architecture without a causal language model.
    """
    kind = getattr(config, "model_type", "")
    made = " ".join(getattr(config, "architectures", None) or ())
    other = [name for name in made.split() if OTHER_HEAD.search(name)]
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model.path={path} is an encoder-decoder ({made or kind}), whose response is not the rest of its prompt: "
            "give a decoder-only causal language model (Llama, Qwen, Gemma, GPT-2, ...)"
        )
    if other:
        raise ValueError(
            f"model.path={path} is a {other[0]}, whose head is no output layer over the vocabulary: give the causal "
            "language model that it was made from"
        )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not remote:
        raise ValueError(
            f"model.path={path} is of type {kind!r}, which has no causal language model in transformers: give a "
            "decoder-only model"
        )


def check_kernels(path: str, config: PretrainedConfig) -> None:
    """Refuse a config.json that has a kernel of the hub run in place of the architecture's own code.

    Args:
        path: ``model.path``, for messages.
        config: the model's; configurations within it are looked at, too.

    Raises:
        ValueError: it names one.
    """
    for one in (config, *(value for value in vars(config).values() if isinstance(value, PretrainedConfig))):
        for key in ("_attn_implementation", "_experts_implementation"):
            named = getattr(one, key, None)
            if isinstance(named, str) and "/" in named:
                raise ValueError(
                    f"model.path={path}: its config.json has code of the hub run ({key}={shown(named)!r}): take that "
                    "out of config.json; if you have read it, name it in model.attn_implementation"
                )


def check_weights(path: str, model: nn.Module, info: Mapping[str, Collection[Any]]) -> None:
    """Refuse a model some of whose weights did not come from its checkpoint: they start at random.

    Args:
        path: ``model.path``, for messages.
        model: the model.
        info: what transformers says of its loading; tied weights are not missing.

    Raises:
        ValueError: weights are missing, or of another size.
    """
    missing, sizes = sorted(info.get("missing_keys") or ()), sorted(info.get("mismatched_keys") or ())
    if missing:
        raise ValueError(
            f"model.path={path} lacks {_some(missing)} of {type(model).__name__}, which would start at random: give a "
            "complete checkpoint of a causal language model (model=scratch trains one from nothing)"
        )
    if sizes:
        name, found, wanted = (*sizes[0], None, None)[:3] if isinstance(sizes[0], tuple) else (sizes[0], None, None)
        of = "" if found is None else f" ({tuple(found)}, and config.json says {tuple(wanted)})"
        raise ValueError(
            f"model.path={path}: {name}{of} is of another size in the checkpoint than in config.json: give a folder "
            "whose config.json and weights were saved together"
        )


def check_vocabulary(path: str, model: Any, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse a tokenizer that gives ids for which the model has no embedding.

    Args:
        path: ``model.path``, for messages.
        model: the model.
        tokenizer: what gives the ids.

    Raises:
        ValueError: there are more ids than rows.
    """
    ids, rows = max([len(tokenizer), *(at + 1 for at in tokenizer.get_vocab().values())]), embedding_rows(model)
    if ids > rows:
        raise ValueError(
            f"the tokenizer has {ids} ids, the model {rows} rows (model.path={path}): set model.tokenizer to the one "
            "the model was made with; or, if tokens were added to it, resize the model's embeddings "
            "(resize_token_embeddings) and save the two together"
        )


def embedding_rows(model: Any) -> int:
    """Rows of a model's input embeddings, wrapped by an adapter or not.

    Args:
        model: a Hugging Face model.

    Returns:
        How many ids it can read.
    """
    return int(model.get_input_embeddings().weight.shape[0])


def check_causal(path: str, model: nn.Module) -> None:
    """Refuse a decoder in which a later token changes what was said of earlier ones.

    Two rows that differ in their last token go through the model; the logits before it have to agree.

    Args:
        path: ``model.path``, for messages.
        model: the model, on whatever device; left as it was.

    Raises:
        ValueError: the model is not causal.
    """
    embeddings: Any = model.get_input_embeddings()  # type: ignore[operator]
    rows, device = embedding_rows(model), embeddings.weight.device
    if device.type == "meta" or rows < 4:
        return
    ids = (2 + torch.arange(PROBED, device=device) * max(1, rows // PROBED)).remainder(rows).repeat(2, 1)
    ids[1, -1] = (ids[0, -1] + 1).remainder(rows)
    training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    except (RuntimeError, ImportError, ValueError, TypeError, AssertionError) as error:
        # Kernels of a GPU's attention do not run where the model was loaded.
        log.info("model.path=%s: causality could not be probed on %s (%s)", path, device, type(error).__name__)
        return
    finally:
        model.train(training)
    earlier = logits[:, : PROBED - 1].double()
    change, largest = float((earlier[0] - earlier[1]).abs().max()), float(earlier.abs().max())
    if change > TOLERANCE.get(logits.dtype, 2e-2) * max(largest, 1e-30):
        raise ValueError(
            f"model.path={path}: {type(model).__name__} is not causal: another last token changes the logits before it "
            f"by {change:.2g} (of {largest:.2g}), so a loss would see what it is to predict. Give a decoder, or one "
            "whose config.json has is_decoder=true"
        )


def check_length(path: str, model: nn.Module, max_length: int) -> None:
    """Refuse rows longer than a learned table of positions; warn where rotary positions go beyond those trained.

    Args:
        path: ``model.path``, for messages.
        model: the model.
        max_length: ``data.max_length``.

    Raises:
        ValueError: there are positions without an embedding.
    """
    config: Any = getattr(model, "config", None)
    known = getattr(config, "max_position_embeddings", None)
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and TABLE.search(name)
    ]
    # Fixed sines stand in a buffer of as many rows.
    tables += [len(held) for name, held in model.named_buffers() if name.endswith("embed_positions")]
    if tables:
        rows = min([*tables, *([known] if isinstance(known, int) and known > 0 else [])])
        if max_length > rows:
            raise ValueError(
                f"data.max_length={max_length} is more than the {rows} positions that model.path={path} has: set "
                f"data.max_length={rows} or less"
            )
        return
    # Rotary, relative or no positions: computed for any length.
    if isinstance(known, int) and 0 < known < max_length and hasattr(config, "rope_parameters"):
        log.warning(
            "data.max_length=%d, and model.path=%s was made for %d positions: rows that are longer are at positions it "
            "may never have seen (data.max_length=%d)", max_length, path, known, known,
        )  # fmt: skip


def check_trainable(path: str, model: nn.Module) -> None:
    """Refuse a model in which nothing is trained, before an optimizer does in words of its own.

    Args:
        path: ``model.path``, for messages.
        model: the model.

    Raises:
        ValueError: every parameter is frozen.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(
            f"model.path={path}: every parameter of the model is frozen, so there is nothing to train: train an "
            "adapter on it (model/lora=default), or give a model whose parameters require gradients"
        )


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
