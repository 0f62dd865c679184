"""The page of the house is true: the floors it draws are those of the test, and what it names is there."""

from __future__ import annotations

import re

import pytest

from tests.commands import ROOT
from tests.docs.test_floors import FLOORS

PAGES = ("docs/ARCHITECTURE.md", "CONTRIBUTING.md", "docs/GLOSSARY.md", "docs/RESULTS.md", "docs/PERFORMANCE.md")
PAGE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "src" / "winnow"


def rows() -> list[list[str]]:
    table = PAGE[PAGE.index("| floor") : PAGE.index("`data/` and `records/`")].strip().splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table]


def test_the_picture_has_every_room_from_the_top_down() -> None:
    drawn = [name.strip("/").replace("/", ".") for row in rows() for name in re.findall(r"`([^`]+)`", row[1])]
    drawn = ["" if name == "winnow" else name for name in drawn]
    level = {name: number for number, floor in enumerate(FLOORS) for name in floor}
    assert sorted(drawn) == sorted(level)
    tops = [
        max(level["" if name == "winnow" else name.strip("/").replace("/", ".")] for name in names)
        for names in (re.findall(r"`([^`]+)`", row[1]) for row in rows())
    ]
    assert tops == sorted(tops, reverse=True)


def test_every_file_it_names_is_there() -> None:
    named = set(re.findall(r"`([\w/.]+\.py)`", PAGE))
    assert len(named) > 40
    for name in named:
        places = (PACKAGE / name, ROOT / name, PACKAGE / "training" / name)
        assert any(place.is_file() for place in places), name


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("gradients/layers/embedding.py", "Scatter("),
        ("products/formed.py", "def add_formed"),
        ("geometry/muon.py", "class MuonRule"),
        ("records/ledger.py", "def append"),
        ("scorer/visit.py", "def counts"),
        ("scorer/scorer.py", "def _backward"),
        ("selectors/base.py", "def candidates"),
    ],
)
def test_the_answers_to_its_own_questions_hold(file: str, words: str) -> None:
    assert file in PAGE and words in (PACKAGE / file).read_text(encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_lead_somewhere(page: str) -> None:
    path = ROOT / page
    text = path.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    for named in re.findall(r"`((?:src|conf|tests|docs|sweeps)/[\w/.]+\.\w+)`", text):
        assert "NAME" in named or (ROOT / named).exists(), named
