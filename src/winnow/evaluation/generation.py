"""Exact match by greedy generation, scored by the task's own scorer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from jaxtyping import Int
from peft import PeftModel
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from winnow.data.batch import pad_token_id
from winnow.data.encode import PLAIN, Encoding, encode_prompt, stop_token_ids
from winnow.data.example import Example, Target
from winnow.evaluation.turns import Turns
from winnow.lm.passes import FORWARD, Pass


def generate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int = 64,
    encoding: Encoding = PLAIN,
    passes: list[Pass] | None = None,
) -> list[str]:
    """Greedy continuations of the examples' prompts.

    Args:
        model: the model; put in evaluation mode and back.
        tokenizer: its tokenizer.
        examples: whose prompts to continue; their responses are not looked at.
        max_new_tokens: length allowed to each continuation.
        batch_size: prompts per batch, padded on the left.
        encoding: how prompts become tokens.
        passes: takes what goes through the model.

    Returns:
        One text per example, without special tokens, in the order given.
    """
    found = _continuations(model, tokenizer, examples, max_new_tokens, batch_size, encoding, passes)
    return [found[at] for at in range(len(examples))]


@torch.no_grad()
def _continuations(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    examples: Sequence[Example],
    max_new_tokens: int,
    batch_size: int,
    encoding: Encoding,
    passes: list[Pass] | None,
    turns: Turns | None = None,
) -> dict[int, str]:
    """Texts by the example's place, of the batches that are this process's."""
    training = model.training
    model.eval()
    device = next(model.parameters()).device
    pad = pad_token_id(tokenizer)
    ends: set[int | None] = {*stop_token_ids(tokenizer)}
    configured = getattr(model.generation_config, "eos_token_id", None)
    ends |= set(configured) if isinstance(configured, list) else {configured}
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        pad_token_id=pad,
        eos_token_id=sorted(end for end in ends if end is not None) or None,
        use_cache=True,
    )
    prompts = [encode_prompt(example, tokenizer, encoding) or [pad] for example in examples]
    order = sorted(range(len(prompts)), key=lambda at: len(prompts[at]))
    texts: dict[int, str] = {}
    try:
        for start in range(0, len(order), batch_size):
            if turns is not None and not turns.mine():
                continue
            places = order[start : start + batch_size]
            length = max(len(prompts[at]) for at in places)
            ids = torch.tensor([[pad] * (length - len(prompts[at])) + prompts[at] for at in places], device=device)
            mask = torch.tensor(
                [[0] * (length - len(prompts[at])) + [1] * len(prompts[at]) for at in places], device=device
            )
            output = cast(Any, model).generate(input_ids=ids, attention_mask=mask, generation_config=config)
            if passes is not None:
                passes.append(_continued(output, length, int(mask.sum())))
            decoded = tokenizer.batch_decode(output[:, length:], skip_special_tokens=True)
            texts |= dict(zip(places, decoded, strict=True))
    finally:
        model.train(training)
    return texts


def accuracy(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Target,
    limit: int | None = None,
    batch_size: int = 64,
    encoding: Encoding = PLAIN,
    passes: list[Pass] | None = None,
) -> float:
    """Mean score of greedy generations on a target's test split.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        target: the task; it must have a scorer.
        limit: test examples to use; None for all.
        batch_size: prompts per batch.
        encoding: how prompts become tokens.
        passes: takes what goes through the model.

    Returns:
        Mean score in [0, 1].

    Raises:
        ValueError: the target has no scorer.
    """
    total, count = summed_scores(model, tokenizer, target, limit, batch_size, encoding, passes)
    return total / count


def summed_scores(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    target: Target,
    limit: int | None = None,
    batch_size: int = 64,
    encoding: Encoding = PLAIN,
    passes: list[Pass] | None = None,
    turns: Turns | None = None,
) -> tuple[float, int]:
    """What :func:`accuracy` is made of, of the batches that are this process's.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        target: the task; it must have a scorer.
        limit: test examples to use; None for all.
        batch_size: prompts per batch.
        encoding: how prompts become tokens.
        passes: takes what goes through the model.
        turns: which batches are this process's; all of them by default.

    Returns:
        The sum of scores, and the number of examples.

    Raises:
        ValueError: the target has no scorer.
    """
    if target.score is None:
        raise ValueError(f"target {target.name!r} has no scorer, so its accuracy is not defined")
    examples = list(target.test)[:limit]
    texts = _continuations(model, tokenizer, examples, target.max_new_tokens, batch_size, encoding, passes, turns)
    return float(sum(target.score(texts[at], examples[at]) for at in sorted(texts))), len(texts)


def _continued(output: Int[Tensor, "rows cells"], length: int, tokens: int) -> Pass:
    """Prompts in one pass, then a token of every row at a time, which attends to what is in the cache."""
    rows, cells = output.shape
    steps = range(length + 1, cells)  # the last token is not looked at any more
    pairs = length**2 + sum(steps)
    return Pass(FORWARD, rows, length + len(steps), 1 + len(steps), tokens + rows * len(steps), pairs)
