"""Where a model stands on the target tasks' test splits: NLL and accuracy."""

from __future__ import annotations

from collections.abc import Sequence

from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from winnow.data.batch import collate, pad_token_id
from winnow.data.encode import PLAIN, Encoding, encode
from winnow.data.example import Target
from winnow.evaluation.generation import summed_scores
from winnow.evaluation.nll import summed_nll
from winnow.evaluation.turns import Turns, blank
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
    turns: Turns | None = None,
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
        turns: which batches are this process's, where several call this together; all of them by default. Of a model
            of which each holds a part, all processes run every generation, which has no number of calls to agree on.

    Returns:
        ``<target>/nll`` in nats per token, and ``<target>/accuracy`` where the task has a scorer; the same
        in every process.
    """
    turns, pad = turns or Turns(), pad_token_id(tokenizer)
    sums: dict[str, tuple[float, int]] = {}
    batches: list[dict[str, Tensor]] = []
    for target in targets if nll_limit != 0 else ():
        rows = [encode(example, tokenizer, max_length, encoding) for example in list(target.test)[:nll_limit]]
        rows.sort(key=lambda row: len(row.input_ids))
        batches = [collate(rows[at : at + batch_size], pad) for at in range(0, len(rows), batch_size)]
        sums[f"{target.name}/nll"] = summed_nll(model, batches, pack, passes, turns)
    if turns.owes:
        summed_nll(model, [blank(batches[0])], pack, passes)
    for target in targets:
        if accuracy_limit != 0 and target.score is not None:
            turn = None if turns.together else turns
            found = summed_scores(model, tokenizer, target, accuracy_limit, 2 * batch_size, encoding, passes, turn)
            sums[f"{target.name}/accuracy"] = (0.0, 0) if turns.together and turns.rank else found
    numbers = turns.totals([float(number) for pair in sums.values() for number in pair]) if sums else []
    means = {
        name: total / count if count else float("nan")
        for name, total, count in zip(sums, numbers[::2], numbers[1::2], strict=True)
    }
    order = [f"{target.name}/{what}" for target in targets for what in ("nll", "accuracy")]
    return {name: means[name] for name in order if name in means}
