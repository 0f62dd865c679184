"""Where a model stands on the target tasks' test splits: NLL and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from winnow.data.batch import collate, pad_token_id
from winnow.data.encode import PLAIN, Encoding, encode
from winnow.data.example import Target
from winnow.evaluation.generation import accuracy
from winnow.evaluation.nll import answer_nll
from winnow.lm.passes import Pass


def evaluate(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    targets: Sequence[Target],
    *,
    max_length: int,
    nll_limit: int | None = None,
    accuracy_limit: int | None = None,
    batch_size: int = 32,
    encoding: Encoding = PLAIN,
    pack: bool = False,
    passes: list[Pass] | None = None,
) -> dict[str, float]:
    """Answer NLL and accuracy on the test split of every target.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        targets: the tasks.
        max_length: longest sequence in tokens, for the NLL.
        nll_limit: test examples per target for the NLL; None for all, 0 for none.
        accuracy_limit: test examples per target to generate for; None for all, 0 for none.
        batch_size: examples per batch.
        encoding: what carries loss, what is cut.
        pack: lay the examples of the NLL end to end in rows in place of padding; the same numbers.
        passes: takes what goes through the model.

    Returns:
        ``<target>/nll`` in nats per token, and ``<target>/accuracy`` where the task has a scorer.
    """
    results: dict[str, float] = {}
    for target in targets:
        if nll_limit != 0:
            rows = [encode(example, tokenizer, max_length, encoding) for example in list(target.test)[:nll_limit]]
            rows.sort(key=lambda row: len(row.input_ids))
            pad = pad_token_id(tokenizer)
            batches = (collate(rows[at : at + batch_size], pad) for at in range(0, len(rows), batch_size))
            results[f"{target.name}/nll"] = answer_nll(model, batches, pack, passes)
        if accuracy_limit != 0 and target.score is not None:
            results[f"{target.name}/accuracy"] = accuracy(
                model, tokenizer, target, accuracy_limit, 2 * batch_size, encoding, passes
            )
    return results
