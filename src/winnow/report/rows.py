"""What rows become: their tokens with those that carry loss marked, and what they come to in all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.console import Console
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from winnow.data.chat import spoken
from winnow.data.encode import Encoded, Encoding, encode
from winnow.data.example import Example
from winnow.data.parts import place_of
from winnow.data.rejects import BadRow, Rejects
from winnow.data.render import turns_of_example
from winnow.data.tokens import decoded, token_ids
from winnow.lm.losses import IGNORE
from winnow.records.shown import PlainTable, shown

LOSS = "bold green"
CONTEXT = "dim"


@dataclass
class Totals:
    """Counts over rows.

    Args:
        rows: encoded.
        cut: of these, longer than what is kept.
        lost: tokens that were cut off.
        tokens: of all rows, before that.
        loss: of what is kept, tokens that carry loss.
        turns: of the assistant's.
        trained: of these, turns that carry loss.
        parted: rows in which a generation would be opened otherwise.
        roles: tokens of the turns' texts by role, without what a template adds.
    """

    rows: int = 0
    cut: int = 0
    lost: int = 0
    tokens: int = 0
    loss: int = 0
    turns: int = 0
    trained: int = 0
    parted: int = 0
    roles: Counter[str] = field(default_factory=Counter)

    def add(self, example: Example, row: Encoded, tokenizer: PreTrainedTokenizerBase) -> None:
        """Count a row.

        Args:
            example: the example.
            row: it as tokens.
            tokenizer: the model's tokenizer.
        """
        self.rows += 1
        self.cut += row.truncated
        self.lost += row.length - len(row.input_ids)
        self.tokens += row.length
        self.loss += len(row.labels) - row.labels.count(IGNORE)
        self.turns += row.turns
        self.trained += row.trained
        self.parted += row.parted
        for turn in turns_of_example(example):
            self.roles[turn["role"]] += len(token_ids(spoken(turn), tokenizer, special=False))


def marked(row: Encoded, tokenizer: PreTrainedTokenizerBase) -> Text:
    """A row's text with the tokens that carry loss in colour.

    Args:
        row: as tokens.
        tokenizer: the model's tokenizer.

    Returns:
        For the terminal; control characters but line breaks as pictures.
    """
    text, at = Text(), 0
    while at < len(row.input_ids):
        loss, end = row.labels[at] != IGNORE, at
        while end < len(row.input_ids) and (row.labels[end] != IGNORE) == loss:
            end += 1
        words = shown(decoded(row.input_ids[at:end], tokenizer), keep="\n\t")
        # Without colours brackets say the same.
        text.append(f"⟦{words}⟧" if loss else words, style=LOSS if loss else CONTEXT)
        at = end
    return text


def print_rows(
    console: Console,
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    encoding: Encoding,
    rejects: Rejects,
    key: str,
    show: int = 3,
) -> Totals:
    """Print the first rows as they are trained on, and the totals of all.

    Args:
        console: where to.
        examples: the rows.
        tokenizer: the model's tokenizer.
        max_length: longest sequence, in tokens.
        encoding: what carries loss, what is cut.
        rejects: what could not be read; takes what cannot be encoded.
        key: what the rows are called there.
        show: rows to print.

    Returns:
        The totals.
    """
    totals = Totals()
    for position in range(len(examples)):
        example = examples[position]
        try:
            row = encode(example, tokenizer, max_length, encoding)
        except BadRow as fault:
            rejects.add(key, place_of(examples, position), fault)
            continue
        if totals.rows < show:
            console.rule(Text(shown(place_of(examples, position))))
            console.print(marked(row, tokenizer), soft_wrap=True)
        totals.add(example, row, tokenizer)
    console.rule()
    console.print(_table(totals, max_length, encoding))
    for (_, reason), count in rejects.counts.items():
        places = [one for one in rejects.listed if one.reason == reason][:3]
        console.print(Text(f"{count} rows cannot be used: {shown(reason)}"), soft_wrap=True)
        for one in places:
            console.print(Text(f"    {shown(one.where)}: {shown(one.detail)}"), soft_wrap=True)
    return totals


def _table(totals: Totals, max_length: int, encoding: Encoding) -> PlainTable:
    table = PlainTable("what carries loss", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    rows = {
        "rows": totals.rows,
        "turns of the assistant's": totals.turns,
        f"of them trained on (loss_on={encoding.loss_on})": totals.trained,
        "tokens": totals.tokens,
        "tokens that carry loss": totals.loss,
        f"rows longer than {max_length} tokens (truncate={encoding.truncate})": totals.cut,
        "tokens that are cut off": totals.lost,
        "rows whose generation opens otherwise than they are written": totals.parted,
        **{f"tokens of texts by {role}": count for role, count in totals.roles.most_common()},
    }
    for name, count in rows.items():
        table.add_row(name, f"{count:,}")
    return table
