"""The table of methods is what the selectors are, and docs/METHODS.md is the table."""

import re
from pathlib import Path

import pytest
import torch

from tests.cases import CASES, Pool
from winnow import methods
from winnow.signals import Needs

ROOT = Path(__file__).parents[2]


def test_docs_are_up_to_date():
    written = (ROOT / "docs" / "METHODS.md").read_text(encoding="utf-8")
    assert written == methods.markdown(), "run: python -m winnow.methods --markdown > docs/METHODS.md"


def test_symbols_that_a_rule_begins_with_stay_as_they_are():
    """p_i is a probability and P the preconditioner, k a number and K the Gram matrix, w a weight."""
    rules = {one.name: one.sections["Rule"] for one in methods.cards()}
    written = {name: text.split("* **Rule.** ", 1)[1] for name, text in cards().items()}
    for name, rule in rules.items():
        first = rule.split()[0]
        if first != "a" and re.fullmatch(r"[A-Za-z](_\w)?", first):
            assert written[name].replace("\\", "").startswith(first), name
    assert written["greats"].startswith("k times") and written["adapt"].startswith("w\\_i = sigmoid")
    assert written["selective_backprop"].startswith("p\\_i = (share")


def cards():
    """The sections of docs/METHODS.md by method."""
    parts = re.split(r"\n## (\w+)\n", (ROOT / "docs" / "METHODS.md").read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_method_is_in_the_table_with_its_source(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert methods.main([]) == 0
    printed = capsys.readouterr().out
    for case in CASES:
        line = next(line for line in printed.splitlines() if re.match(rf"│ {case.name} ", line))
        cells = [cell.strip() for cell in line.strip("│").split("│")]
        assert len(cells) == len(methods.COLUMNS) and all(cells)
    assert "[" not in methods.described(Needs(losses=True))


def test_a_method_has_weights_if_and_only_if_the_table_says_so():
    told = {card.name: card.weighted for card in methods.cards()}
    for name in {case.name for case in CASES if case.contract}:
        found = False
        for case in CASES:
            for selector in case.every() if case.name == name else []:
                for seed in range(3):
                    signals = Pool.draw(12, seed=seed).signals(selector.needs)
                    selection = selector(signals, torch.Generator().manual_seed(seed))
                    found |= bool((selection.weight != 1).any())
        assert found == told[name], name


@pytest.mark.parametrize(
    ("needs", "words", "passes"),
    [
        (Needs(), "nothing", "none"),
        (Needs(losses=True, reference=True), "losses, reference losses", "forward, reference forward"),
        (Needs(alignment=1, norms=2, per_task=True), "alignment by task (P), norms (P^2)", "forward, backward"),
        (Needs(nuclear=True, hidden="mean"), "nuclear norms, hidden states", "forward"),
        (Needs(gram=0, meta=("source",)), "gram (raw), source", "forward, backward"),
    ],
)
def test_needs_in_words(needs, words, passes):
    assert methods.described(needs) == words
    assert methods.Card("a", "", {}, needs, False).passes == passes


def test_one_card_and_an_unknown_one(capsys):
    assert methods.main(["greats"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("greats: Greedily keep") and "as_released: s = lr" in printed
    assert methods.main(["great"]) == 2
    assert "there is no method great" in capsys.readouterr().err


def test_a_docstring_that_is_no_card_is_refused():
    class Bare:
        """No card."""

    with pytest.raises(ValueError, match="Bare needs the headings"):
        methods.card(Bare)
