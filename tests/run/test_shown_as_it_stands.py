"""Wherever text from data, names or files of somebody else's are shown, they are shown as they stand."""

from __future__ import annotations

import io
import json
import logging
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from logging.config import DictConfigurator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf
from rich.console import Console

from tests import runs
from tests.commands import configured
from tests.run.test_report import make
from winnow import ledger
from winnow.callbacks import WandbTables
from winnow.callbacks.tables import COLUMNS, _shares
from winnow.data.__main__ import main as look_at_data
from winnow.data.progress import progress
from winnow.data.rejects import BadRow, Rejects
from winnow.records.ledger import Ledger
from winnow.records.shown import INVISIBLE, LONGEST_LABEL, PlainFormatter, plotted, shown
from winnow.report.__main__ import main as report
from winnow.run.instantiate import BuildError
from winnow.run.score import _say
from winnow.selection import Selection
from winnow.selectors import Random
from winnow.selectors.replay import Replay
from winnow.training.record import StepRecord

HOSTILE = {
    "clears the screen": "\x1b[2Jwiki",
    "names the window": "\x1b]0;owned\x07wiki",
    "eight bits": "\x9b2Jwiki",
    "markup": "[red]wiki",
    "closing tag": "wiki[/]",
    "right to left": "rtl\u202ewiki",
    "nul": "\0wiki",
    "page": "<script>alert(1)</script>wiki",
    "mathematics": r"$\frac{wiki",
    "long": "wiki" * 5_000,
}
Place = Callable[[str, Any, Path], str]
"""Shows a text, and gives back what was shown."""


def obeyed(text: str) -> list[str]:
    """Characters that a terminal would obey, or nobody would see; line breaks and tabs are ours."""
    return [char for char in text if unicodedata.category(char) in INVISIBLE and char not in "\n\t"]


def rows_file(text: str) -> None:
    rows = [{"prompt": f"{text} {at}", "response": text, "id": f"{text}{at}", "source": text} for at in range(2)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, {text: 1}])))


def data_command(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    rows_file(text)
    assert look_at_data(["rows.jsonl", "--max-length", "40", "--field", "prompt=prompt"]) == 1
    out = capsys.readouterr()
    return out.out + out.err


def data_command_without_rows(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    assert look_at_data([text.replace("\0", "").replace("/", "|")[:200]]) == 2
    return capsys.readouterr().out


def a_log_line(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    rejects = Rejects("drop")
    rejects.add("key", f"{text}, line 1", BadRow(f"no {text}", text))
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(PlainFormatter("%(message)s"))
    logger = logging.getLogger("winnow.data.rejects")
    logger.addHandler(handler)
    try:
        rejects.settle("key")
        logger.warning("a run of %s", text)
    finally:
        logger.removeHandler(handler)
    return out.getvalue()


def a_refusal(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    rejects = Rejects("error")
    rejects.add("key", f"{text}, line 1", BadRow("no prompt", text))
    try:
        rejects.settle("key")
    except ValueError as error:
        return str(BuildError(str(error)))
    raise AssertionError("nothing was refused")


def rejects_file(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    rejects = Rejects("drop")
    rejects.add("key", f"{text}, line 1", BadRow("no prompt", text))
    rejects.write("rejects.jsonl")
    written = Path("rejects.jsonl").read_text()
    assert json.loads(written)["detail"] == text
    return written + shown(text)  # as JSON spells it


def hostile_ledger(folder: Path, text: str) -> None:
    written = Ledger(folder)
    meta = {"id": [text, "b"], "source": [text, "s"], "group": [text, ""], "noise": ["", text]}
    written.append(0, meta, torch.ones(2), None, Selection.of(torch.tensor([0, 1])))
    written.close()


def ledger_command(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    hostile_ledger(tmp_path, text)
    (tmp_path / "summary.json").write_text(
        json.dumps({"budget": {f"flops_{text}": 3.0, "tokens_forwarded": 1, "tokens_backwarded": 1}})
    )
    assert ledger.main([str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert ledger.main([str(tmp_path), "--json"]) == 0
    assert not obeyed(capsys.readouterr().out)
    (tmp_path / "summary.json").write_text("\x1b[2J")
    assert ledger.main([str(tmp_path)]) == 2 and not obeyed(capsys.readouterr().err)
    return said


def report_command(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    made = [
        make(tmp_path / "one", f"a {text}", 0),
        make(tmp_path / "two", "random", 0),
        make(tmp_path / "three", text, 1),
    ]
    (made[2] / "status.json").write_text(json.dumps({"state": "failed", "error": text}))
    for picture in ("png", "svg"):
        assert report([*map(str, made), "--out", f"plot.{picture}", "--json", "report.json"]) == 0
    out = capsys.readouterr()
    drawn = Path("plot.svg").read_text()
    assert "<script" not in drawn and not obeyed(drawn)
    assert not obeyed(Path("report.json").read_text())
    return out.out + out.err


def score_command(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    _say(Path(text.replace("\0", "")[:200]), pd.DataFrame({"id": [1], text: [1]}), [], {"name": text})
    return capsys.readouterr().out


def a_replay(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    hostile_ledger(tmp_path, text)
    with pytest.raises(ValueError, match="are not in the pool they were kept from") as refused:
        Replay(str(tmp_path)).check_stream([["other"]])
    return str(refused.value)


@cache
def a_step() -> StepRecord:
    found: StepRecord = runs.fit(Random(filter_size=3), steps=1).last_step
    return found


def wandb_rows(text: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> str:
    tables, record = WandbTables(clip=40), a_step()
    tables._take(replace(record, meta={name: [text] * len(record.signals) for name in record.meta}))
    cells = [cell for row in tables._examples for cell in row]
    assert len(cells) == 3 * len(COLUMNS)
    assert {type(cell) for cell in cells} <= {str, int, float, type(None)}, "text, which W&B's pages take for no HTML"
    words = [cell for cell in cells if isinstance(cell, str)]
    return "\n".join([*words, *_shares("kept_share", tables.kept), *_shares("pool_share", tables.pool)])


TOGETHER = " ".join(text for name, text in HOSTILE.items() if name not in ("nul", "long"))
EACH = tuple(HOSTILE.values())
PLACES: list[tuple[Place, tuple[str, ...]]] = [
    (data_command, (TOGETHER, HOSTILE["nul"], HOSTILE["long"])),
    (data_command_without_rows, EACH),
    (a_log_line, EACH),
    (a_refusal, EACH),
    (rejects_file, EACH),
    (ledger_command, (TOGETHER, HOSTILE["nul"], HOSTILE["long"])),
    (report_command, (TOGETHER + HOSTILE["long"],)),
    (score_command, EACH),
    (a_replay, (TOGETHER, HOSTILE["nul"])),
    (wandb_rows, EACH),
]


@pytest.mark.parametrize(("place", "texts"), [pytest.param(*one, id=one[0].__name__) for one in PLACES])
def test_text_is_shown_as_it_stands(
    place: Place, texts: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for at, text in enumerate(texts):
        folder = tmp_path / str(at)
        folder.mkdir()
        said = place(text, capsys, folder)
        assert not obeyed(said), obeyed(said)
        assert "wiki" in said.replace("\n", ""), "it is shown at all"


def test_a_run_writes_its_log_so() -> None:
    with configured("hydra/job_logging=default"):
        options = OmegaConf.to_container(HydraConfig.get().job_logging, resolve=False)
    assert isinstance(options, dict)
    assert {one["formatter"] for one in options["handlers"].values()} == {"simple"}
    made: Any = DictConfigurator(options).configure_formatter(options["formatters"]["simple"])
    line = made.format(logging.LogRecord("winnow", logging.WARNING, "", 0, "of %s", (TOGETHER,), None))
    assert line.endswith(f"[winnow][WARNING] - of {shown(TOGETHER)}") and not obeyed(line)


def test_a_progress_bar_takes_no_orders(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=200)
    monkeypatch.setattr("winnow.data.progress.Console", lambda **options: console)
    with progress(TOGETHER) as done:
        done()
    assert shown("\x1b[2Jwiki") in out.getvalue() and "\x1b[2J" not in out.getvalue() and "[red]" in out.getvalue()


def test_a_label_of_a_picture_is_no_longer_than_the_picture() -> None:
    assert len(plotted(HOSTILE["long"])) == LONGEST_LABEL and plotted(HOSTILE["long"]).endswith("…")
