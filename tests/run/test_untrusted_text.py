"""Text from data is shown as it stands, never obeyed; what no tokenizer takes is found where the file is read."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from rich.console import Console

from tests import runs
from winnow import methods
from winnow.data.example import Example
from winnow.data.jsonl import jsonl_corpus
from winnow.data.scoring import scorer_for
from winnow.data.text import TextPassages
from winnow.ledger import main
from winnow.records.ledger import Ledger
from winnow.records.shown import PlainTable, plotted, shown
from winnow.report.composition import composition
from winnow.report.ledger import print_ledger, summarise
from winnow.report.plot import _draw_composition
from winnow.report.summary import print_summary
from winnow.selection import Selection

HOSTILE = [
    "wiki[en]",
    "wiki[red]",
    "a [/x]",
    "\x1b[31mred",
    "\x9b2J",
    "rtl\u202eevil",
    "half\ud800",
    "$x_1^{2$",
    "_hidden",
]


def printed(draw: Any) -> str:
    out = io.StringIO()
    draw(Console(file=out, width=200, force_terminal=True, color_system="truecolor"))
    return out.getvalue()


@pytest.mark.parametrize(
    ("text", "symbols"),
    [
        ("plain: ünï 漢字 👍", "plain: ünï 漢字 👍"),
        ("\x1b[2J\x07", "␛[2J␇"),
        ("a\nb\tc\x7f", "a␊b␉c␡"),
        ("\x9b\u202e\u2028\ud800\U000e0041", "\\x9b\\u202e\\u2028\\ud800\\U000e0041"),
    ],
)
def test_what_would_be_obeyed_or_not_seen_is_a_symbol(text: str, symbols: str) -> None:
    assert shown(text) == symbols
    symbols.encode("utf-8")


def test_a_plain_table_shows_every_name_apart() -> None:
    table = PlainTable(title="of [b]")
    table.add_column("head [/]\nline")
    for name in HOSTILE:
        table.add_row(name)
    text = printed(lambda console: console.print(table))
    for name in ["of [b]", "head [/]", *HOSTILE]:
        assert shown(name) in text
    assert "\x1b[31m" not in text and "\x9b" not in text and "\u202e" not in text


def ledger(folder: Path, names: list[str], valid: torch.Tensor | None = None) -> None:
    size = len(names)
    meta = {"id": [f"{name}-{at}" for at, name in enumerate(names)], "source": names, "group": [""] * size}
    written = Ledger(folder)
    chosen = Selection(torch.arange(size) if valid is None else valid.nonzero().squeeze(1), torch.ones(size)[valid])
    written.append(0, {**meta, "noise": [""] * size}, torch.ones(size), None, chosen, valid=valid)
    written.close()


def test_closing_table_ledger_and_plot_survive_hostile_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [name for name in HOSTILE if "\ud800" not in name]  # refused where it is read
    ledger(tmp_path, names, torch.ones(len(names), dtype=torch.bool))
    found = composition(tmp_path)
    budget = dict.fromkeys(
        ("examples_seen", "examples_trained", "tokens_seen", "tokens_trained", "examples_excluded", "steps"), 1
    ) | {"examples_truncated": 0, "seconds": 1.0, "seconds_selecting": 0.5}
    measured = {"after": {"t [/x]/nll": 1.0}, "before": {"t [/x]/nll": 2.0}}
    summary = {"name": "run\x9b", "seed": 0, "budget": budget, "seconds": 1.0, "composition": found, **measured}
    closing = printed(lambda console: print_summary(summary, tmp_path, console))
    table = printed(lambda console: print_ledger(summarise(tmp_path), console))
    for text in (closing, table):
        assert all(shown(name) in text for name in names)
        assert "\x9b" not in text and "\x1b[31mred" not in text
    assert main([str(tmp_path)]) == 0 and "wiki[red]" in capsys.readouterr().out
    figure = Figure()
    shares = {name: 1 / len(names) for name in names}
    _draw_composition(figure.subplots(), {"stream": shares, **dict.fromkeys(HOSTILE, shares)})
    figure.savefig(tmp_path / "plot.png")  # mathtext, a glyph that is missing or a hidden label would raise or warn
    assert plotted("_hidden") == " _hidden" and plotted("$x$") == r"\$x\$"


def files(stream: list[Any], target: list[Any] | None = None, **options: Any) -> Any:
    target = target or [{"prompt": f"Is {at} odd", "response": "yes"} for at in range(4)]
    for name, lines in (("stream", stream), ("val", target), ("test", [{**t, "prompt": f"t {t}"} for t in target])):
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        Path(f"{name}.jsonl").write_text("\n".join(texts) + "\n")
    targets = {"t": {"val": "val.jsonl", "test": "test.jsonl", **options}}
    return jsonl_corpus("stream.jsonl", targets)


GOOD = {"prompt": "What is 1?", "response": "1"}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (
            '{"prompt": "x\\ud800", "response": "y"}',
            r"line 2: the prompt holds half of a surrogate pair, .*character 1",
        ),
        ('{"prompt": "x", "response": "\\udfff"}', "line 2: the response holds half"),
        ('{"prompt": "x", "response": "y", "source": "\\ud800"}', "line 2: the source holds half"),
        ('{"prompt": "x", "response": "y", "id": "\\ud800"}', "line 2: the id holds half"),
        ('{"prompt": "x", "response": "y", "noise": "\\ud800"}', "line 2: the noise holds half"),
        (
            '{"messages": [{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": "y"}]}',
            "line 2: the (prompt|messages) holds half",
        ),
        (
            '{"messages": [{"role": "\\ud800", "content": "x"}, {"role": "assistant", "content": "y"}]}',
            "line 2: the messages holds half",
        ),
        ("[" * 100_000 + "]" * 100_000, "line 2: JSON nested too deep"),
        ('{"prompt": "x", "response": "y", "id": ' + "9" * 5000 + "}", "line 2: not JSON: Exceeds the limit"),
    ],
)
def test_a_row_that_no_tokenizer_takes_is_refused_by_line(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=f"stream.jsonl, {words}"):
        files([GOOD, line])


def test_text_for_pre_training_that_no_tokenizer_takes_is_refused_by_line() -> None:
    lines = [json.dumps({"text": "word " * 10}), '{"text": "x\\ud800"}']
    Path("text.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match=r"text.jsonl, line 2: the text holds half of a surrogate pair"):
        TextPassages(["text.jsonl"], characters=20)


@pytest.mark.parametrize(
    ("stream", "words"),
    [
        ([{"\x1b[2Jprompt": "x"}], "the record has `␛.2Jprompt`"),
        ([{"prompt": "Is 1 odd", "response": "x", "id": "\x9b2J"}], r"also in .*\(\\x9b2J\)"),
    ],
)
def test_a_refusal_shows_text_from_data_as_it_stands(stream: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        files(stream)


@pytest.mark.parametrize(
    ("answer", "score", "scorer"),
    [
        ("so it is 3. The answer is 7.", "auto", "final_number"),
        ("12", "auto", "final_number"),
        ("positive", "auto", "first_line"),
        ("def f(x):\n    return x + 1  # plus 1 and more", "auto", None),
        ("positive", "exact", "exact"),
        ("12", None, None),
    ],
)
def test_a_scorer_is_one_that_the_references_can_match(answer: str, score: str | None, scorer: str | None) -> None:
    rows = [{"prompt": f"What is {at}", "response": answer} for at in range(4)]
    target = files([GOOD], rows, score=score).targets[0]
    assert getattr(target.score, "__name__", None) == scorer


def test_a_scorer_that_cannot_be_right_is_refused_by_key(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ValueError, match=r"targets\.t\.score: final_number gives zero to all 4 references"):
        files([GOOD], score="final_number")
    with pytest.raises(ValueError, match=r"targets\.t\.score=numbers: no such scorer; give one of auto, final_number"):
        files([GOOD], score="numbers")
    mixed = [{"prompt": f"p{at}", "response": "yes" if at else "7"} for at in range(4)]
    files([GOOD], mixed, score="final_number")
    assert "final_number gives zero to 3 of 4 references" in caplog.text


def test_a_scorer_of_ones_own_is_asked_until_a_reference_is_right() -> None:
    asked: list[str] = []
    rows = [Example(str(at), "s", "p", "yes") for at in range(9)]

    def judge(text: str, example: Example) -> float:
        asked.append(example.id)
        return float(example.id == "2")

    assert scorer_for(judge, rows, "data.corpus.targets.t") is judge
    assert set(asked) == {"0", "1", "2"}
    with pytest.raises(ValueError, match=r"targets\.t\.score: .* gives zero to all 9 references"):
        scorer_for(lambda text, example: 0.0, rows, "data.corpus.targets.t")


def test_what_can_never_be_chosen_or_matched_is_said_at_the_start(caplog: pytest.LogCaptureFixture) -> None:
    long = [runs.Example(f"long-{at}", "long", "word " * 200, "yes") for at in range(8)]
    world = runs.corpus(size=24)
    world.stream.examples.extend(long)  # type: ignore[attr-defined]
    world.stream.size += 8  # type: ignore[attr-defined,misc]
    world.targets[0] = runs.Target("short", world.targets[0].val, world.targets[0].test, lambda text, one: 1.0, 1.0, 2)  # type: ignore[index]
    runs.datamodule(corpus=world)
    assert "8 of 32 examples of the stream (25 %) have no response token left" in caplog.text
    assert "'long' 8 of 8" in caplog.text and "data.max_length=64" in caplog.text
    assert "target short: 6 of 6 references are longer than max_new_tokens=2" in caplog.text
    world.stream.examples[:] = long  # type: ignore[attr-defined]
    world.stream.size = 8  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match=r"data\.max_length=64 leaves no response token in any of 8 examples"):
        runs.datamodule(corpus=world)


def test_an_unknown_method_is_named_as_it_was_typed(capsys: pytest.CaptureFixture[str]) -> None:
    assert methods.main(["[/x]\x9b"]) == 2
    assert "there is no method [/x]\\x9b" in capsys.readouterr().err


def test_composition_is_of_what_could_be_chosen(tmp_path: Path) -> None:
    names = ["good"] * 6 + ["cut"] * 6
    ledger(tmp_path, names, torch.tensor([True] * 6 + [True] * 2 + [False] * 4))
    found = composition(tmp_path)
    assert found["cut"] == {"seen": 6, "usable": 2, "kept": 2, "weight": 2.0}
    text = printed(lambda console: print_ledger(summarise(tmp_path), console))
    assert "could be chosen" in text and "100.0 %" in text
