"""`python -m winnow.data` shows what a row becomes, and counts what carries loss and what cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data.test_chats import CHATS
from winnow.data.__main__ import main


@pytest.fixture
def chats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    good = [CHATS["rounds"], CHATS["tools"], {"messages": [*CHATS["system"]["messages"]]}]
    bad = [{"messages": CHATS["one round"]["messages"][:1]}, {"messages": [1]}]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, [*good, *bad])))
    return tmp_path


def test_rows_are_shown_as_they_are_trained_on(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["chats.jsonl", "--chat-template", "chatml", "--rows", "2", "--rejects", "rejects.jsonl"])
    said = capsys.readouterr().out
    assert code == 1
    assert "chats.jsonl, line 1" in said and "chats.jsonl, line 2" in said and "chats.jsonl, line 3" not in said
    assert "⟦It is 12.<|im_end|>" in said
    assert '⟦<tool_call>{"name": "weather", "arguments": {"city": "Quito", "days": 3}}</tool_call><|im_end|>' in said
    assert "⟦What is 7 + 5?" not in said
    cells = {
        line.split("│")[1].strip(): line.split("│")[2].strip() for line in said.splitlines() if line.count("│") == 3
    }
    assert cells["rows"] == "3" and cells["turns of the assistant's"] == "6"
    assert cells["of them trained on (loss_on=assistant)"] == "6"
    assert int(cells["tokens that carry loss"].replace(",", "")) < int(cells["tokens"].replace(",", ""))
    assert {"tokens of texts by user", "tokens of texts by assistant", "tokens of texts by tool"} <= set(cells)
    assert "1 rows cannot be used: field `messages` has no turn of the assistant's" in said
    assert "chats.jsonl, line 4" in said and "chats.jsonl, line 5" in said
    assert len(Path("rejects.jsonl").read_text().splitlines()) == 2


def test_options_are_those_of_a_run(chats: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.jsonl").write_text(json.dumps({"q": "Why \x1b[2J?", "a": "So. " * 50}))
    options = ["--field", "prompt=q", "--field", "response=a", "--max-length", "20", "--truncate", "right"]
    assert main(["pairs.jsonl", *options]) == 0
    said = capsys.readouterr().out
    assert "\x1b[2J" not in said and "␛[2J" in said
    assert "rows longer than 20 tokens (truncate=right)" in said
    assert main(["chats.jsonl", "--join-turns", "--loss-on", "last", "--limit", "1"]) == 0
    assert "of them trained on (loss_on=last)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing.jsonl"], "no file"),
        (["chats.jsonl", "--chat-template", "nothing"], "model.chat_template=nothing: no such file"),
        (["chats.jsonl", "--field", "prompt=x"], "field `x` is missing or null"),
        (["chats.jsonl", "--field", "typo=x"], "has no typo"),
        (["chats.jsonl", "--model", "./nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_read_is_said(
    chats: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert main(arguments) == 2
    assert said in capsys.readouterr().out
