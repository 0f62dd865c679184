"""The table of selectors, made from their method cards.

python -m winnow.methods                                # the table
python -m winnow.methods greats                         # one card
python -m winnow.methods --markdown > docs/METHODS.md   # table and cards
"""

from __future__ import annotations

import argparse
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from winnow import selectors
from winnow.records.shown import shown
from winnow.signals import Needs

HEADINGS = ("Needs", "Cost", "Rule", "Knobs", "Source", "Departures")
EXAMPLES = {"Replay": {"ledger": "FOLDER"}}
"""Arguments that a selector cannot be built without."""
COLUMNS = ("method", "needs", "passes", "target", "weights", "source")
OURS = "filter_weight"


@dataclass(frozen=True)
class Card:
    """A selector's method card.

    Args:
        name: as in ``selector=NAME``.
        summary: first line of the docstring.
        sections: text by heading; ``Knobs`` keeps its lines.
        needs: what the scorer computes for it by default.
        weighted: whether, with some settings, it gives weights other than one.
    """

    name: str
    summary: str
    sections: dict[str, str]
    needs: Needs
    weighted: bool

    @property
    def passes(self) -> str:
        """Passes of scoring, before the one that trains on the kept."""
        if self.needs.backward:
            return "forward, backward"
        words = ["forward"] if self.needs.forward else []
        return ", ".join([*words, *(["reference forward"] if self.needs.reference else [])]) or "none"

    def row(self) -> tuple[str, ...]:
        """The card's line in the table, in the order of ``COLUMNS``."""
        return (
            self.name,
            described(self.needs),
            self.passes,
            "yes" if self.needs.target else "no",
            "yes" if self.weighted else "no",
            self.sections["Source"].rstrip("."),
        )


def cards() -> list[Card]:
    """Cards of all selectors, ours first, the rest by name.

    Returns:
        One card per selector.
    """
    built = [getattr(selectors, name) for name in selectors.__all__ if name != "Selector"]
    return sorted(map(card, built), key=lambda found: (found.name != OURS, found.name))


def card(build: type[Any]) -> Card:
    """Read a selector's docstring.

    Args:
        build: the selector's class.

    Returns:
        Its card.

    Raises:
        ValueError: the docstring is not a method card.
    """
    text = inspect.getdoc(build) or ""
    parts = re.split(rf"^({'|'.join(HEADINGS)}):", text, flags=re.MULTILINE)
    if tuple(parts[1::2]) != HEADINGS:
        raise ValueError(f"the docstring of {build.__name__} needs the headings {', '.join(HEADINGS)}, in this order")
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    joined = {name: " ".join(body.split()) for name, body in sections.items()}
    joined["Knobs"] = textwrap.dedent(sections["Knobs"]).strip()
    weighted = not joined["Rule"].endswith("w_i = 1.")
    needs = build(**EXAMPLES.get(build.__name__, {})).needs
    return Card(build.__module__.rsplit(".", 1)[-1], parts[0].strip(), joined, needs, weighted)


def described(needs: Needs) -> str:
    """What a selector needs, in words and powers of the optimizer's preconditioner P.

    Args:
        needs: the needs.

    Returns:
        A comma-separated list; ``nothing`` if it is empty.
    """

    def power(exponent: int) -> str:
        return {0: "raw", 1: "P", 2: "P^2"}[exponent]

    words = ["losses"] if needs.losses else []
    words += ["reference losses"] if needs.reference else []
    words += ["the gate's predictions"] if needs.predicted else []
    if needs.alignment is not None:
        words.append(f"{'alignment by task' if needs.per_task else 'alignment'} ({power(needs.alignment)})")
    words += [f"gram ({power(needs.gram)})"] if needs.gram is not None else []
    words += [f"norms ({power(needs.norms)})"] if needs.norms is not None else []
    words += [f"sketch of {needs.sketch}"] if needs.sketch is not None else []
    words += ["nuclear norms"] if needs.nuclear else []
    words += ["hidden states"] if needs.hidden is not None else []
    return ", ".join([*words, *needs.meta]) or "nothing"


def markdown() -> str:
    """Table and cards as docs/METHODS.md has them.

    Returns:
        Markdown that ends with a newline.
    """
    found = cards()
    lines = [
        "# Methods",
        "",
        "Made from the docstrings by `python -m winnow.methods --markdown > docs/METHODS.md`; do not edit.",
        "",
        "All methods run under one protocol: same model, stream, order, budget, optimizer, schedule, target",
        "batches and evaluation; only the choice differs. `selector=NAME` picks one, and so does `baseline=NAME`",
        "for published ones. P is the optimizer's preconditioner; passes are those of scoring, before the one",
        "that trains on what was kept; needs, passes and target are those of the default settings; weights say",
        "whether any setting gives them.",
        "",
        f"| {' | '.join(COLUMNS)} |",
        f"|{'---|' * len(COLUMNS)}",
    ]
    for one in found:
        name, *rest = (cell.replace("|", "\\|") for cell in one.row())
        lines.append(f"| [{name}](#{name}) | {' | '.join(rest)} |")
    for one in found:
        lines += ["", f"## {one.name}", "", one.summary, ""]
        for heading in HEADINGS:
            if heading != "Knobs":
                text = one.sections[heading]
                # Words begin with a capital and symbols as they are: p_i is no preconditioner, k no Gram matrix.
                word = re.match(r"(?:[a-z]{2,}|a)(?!\w)", text)
                lines.append(f"* **{heading}.** {_escaped(text[:1].upper() + text[1:] if word else text)}")
                continue
            lines.append("* **Knobs.**" + (" None." if one.sections["Knobs"] == "none." else ""))
            for knob, text in knobs(one.sections["Knobs"]):
                lines.append(f"  * `{knob}`: {_escaped(text)}")
    return "\n".join(lines) + "\n"


def knobs(section: str) -> list[tuple[str, str]]:
    """Split the section on knobs.

    Args:
        section: its lines, indented by how they belong together.

    Returns:
        Names and descriptions.
    """
    found = re.split(r"^(\w+): ", section, flags=re.MULTILINE)[1:]
    return [(name, " ".join(text.split())) for name, text in zip(found[::2], found[1::2], strict=True)]


def _escaped(text: str) -> str:
    """Formulas and code words survive Markdown: underscores, stars and angle brackets are literal."""
    text = text.replace("``", "`")
    pieces = text.split("`")
    pieces[::2] = [re.sub(r"([*_<>|\[\]])", r"\\\1", piece) for piece in pieces[::2]]
    return "`".join(pieces)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table, one card, or docs/METHODS.md.

    Args:
        arguments: command line, the process's own if omitted.

    Returns:
        Exit code: 0, or 2 for a method that does not exist.
    """
    parser = argparse.ArgumentParser(prog="python -m winnow.methods", description="The table of selectors.")
    parser.add_argument("method", nargs="?", help="print this method's card")
    parser.add_argument("--markdown", action="store_true", help="print docs/METHODS.md")
    options = parser.parse_args(arguments)
    console = Console()
    if options.markdown:
        print(markdown(), end="")
        return 0
    found = {one.name: one for one in cards()}
    if options.method is not None:
        if options.method not in found:
            text = f"there is no method {shown(options.method)}; methods: {', '.join(found)}"
            Console(stderr=True).print(text, style="red", markup=False, soft_wrap=True)
            return 2
        one = found[options.method]
        console.print(f"{one.name}: {one.summary}", highlight=False, markup=False)
        for heading in HEADINGS:
            body = one.sections[heading]
            body = "\n" + textwrap.indent(body, "  ") if heading == "Knobs" else " " + body
            console.print(f"{heading}:{body}", highlight=False, markup=False, soft_wrap=True)
        return 0
    table = Table(*COLUMNS)
    for one in found.values():
        table.add_row(*(cell.replace("[", "\\[") for cell in one.row()))
    console.print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
