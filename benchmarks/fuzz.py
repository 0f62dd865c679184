"""python -m benchmarks.fuzz [--rows N]: odd and broken rows, each of which must become an example or be named.

Files are drawn by hypothesis: rows of any JSON under the keys that are read, lines that are no JSON or no UTF-8,
control characters, halves of surrogate pairs, long lines, cut archives. A row that is neither kept, counted nor named
with file and line, or an error that is no message, ends the program.
"""

from __future__ import annotations

import argparse
import gzip
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from winnow.data.encoding import Encoding
from winnow.data.files import UTF16
from winnow.data.jsonl import jsonl_corpus
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.data.rejects import BadRow
from winnow.models.loading import tiny_path
from winnow.models.templates import template_of

KEYS = (
    "messages", "conversations", "role", "content", "from", "value", "prompt", "response", "completion", "text", "id",
    "instruction", "input", "output", "history", "tools", "tool_calls", "function", "name", "arguments", "weight",
    "label",    "reasoning_content", "system", "chat_template_kwargs", "chosen", "rejected", "answer", "source", "type",
)  # fmt: skip
LONG = b'{"prompt": "' + b"a" * 10_000_000 + b'"}'
MARKS = (*UTF16, b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ", b"PAR1", b"ARROW1", b"\xff" * 4, b"PK\x03\x04")
"""What files of other forms begin with: hypothesis finds these in the code that it runs, and draws them."""
WORDS = (
    "user",
    "assistant",
    "system",
    "tool",
    "human",
    "gpt",
    "\ud83d",
    "\x1b[2J",
    "\ufeff",
    "\x00",
    "<|im_end|>",
    "",
    "x" * 4000,
)

leaf = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | st.sampled_from(WORDS)
)  # fmt: skip
value = st.recursive(
    leaf,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=6),
    max_leaves=16,
)
turn = st.fixed_dictionaries(
    {"role": st.sampled_from(WORDS[:6]), "content": st.text(max_size=20) | leaf},
    optional={"tool_calls": value, "weight": leaf, "reasoning_content": leaf, "name": leaf},
)
chat = st.fixed_dictionaries(
    {"messages": st.lists(turn, max_size=6)}, optional={"tools": value, "id": leaf, "system": leaf}
)
pair = st.fixed_dictionaries({"prompt": st.text(max_size=30) | leaf, "response": st.text(max_size=30) | leaf})
row = st.one_of(value, chat, pair).map(lambda one: json.dumps(one).encode())
broken = st.one_of(
    row.flatmap(lambda line: st.integers(0, len(line)).map(lambda cut: line[:cut])),
    st.binary(max_size=60).map(lambda raw: raw.replace(b"\n", b" ").replace(b"\r", b" ")),
    st.sampled_from([
        b"[" * 5000 + b"]" * 5000,
        b'{"id": ' + b"9" * 5000 + b"}",
        b'{"prompt": "' + b"a" * 10_000_000 + b'"}',
    ]),
)
lines = st.lists(st.one_of(row, row, row, broken), min_size=40, max_size=60)


def attempt(folder: Path, drawn: list[bytes], template: str | None, glass: Glass) -> Counter[str]:
    """Read and check one file.

    Args:
        folder: for the file.
        drawn: its lines.
        template: the chat template; None for none.
        glass: looks at examples.

    Returns:
        Rows kept, left out, and refused.

    Raises:
        AssertionError: a row is none of these, or a refused one has no place.
    """
    path = folder / "odd.jsonl"
    path.write_bytes(b"\n".join([*drawn, b'{"prompt": "a good row", "response": "yes"}']) + b"\n")
    if path.read_bytes().startswith(MARKS):
        return whole(path)
    given_rows = sum(bool(line.decode("utf-8", "replace").strip()) for line in drawn) + 1
    glass.tokenizer.chat_template = template
    corpus = jsonl_corpus(str(path), {}, on_bad_row="drop")
    kept = prepared(corpus, glass)
    refused = kept.rejects.of("data.corpus.stream")
    left = sum(corpus.report.values())
    assert kept.stream.size is not None
    assert kept.stream.size + refused + left == given_rows, (kept.stream.size, refused, left, given_rows)
    assert all(one.where.startswith(f"{path}, line ") and one.reason for one in kept.rejects.listed)
    return Counter(kept=kept.stream.size, refused=refused, left=left, rows=given_rows)


def whole(path: Path) -> Counter[str]:
    """Read a file that begins as one of another form does, and is none: it is refused whole.

    Args:
        path: the file.

    Returns:
        One file, named.

    Raises:
        AssertionError: it was taken, or the error does not name it.
    """
    try:
        jsonl_corpus(str(path), {})
    except ValueError as error:
        if str(path) in str(error) and "data.corpus.stream" in str(error):
            return Counter({"files refused whole": 1})
        raise AssertionError(f"a file that begins as one of another form is not named: {error}") from error
    raise AssertionError("a file that begins as one of another form was taken for lines")


def archive(folder: Path, drawn: list[bytes], cut: int) -> Counter[str]:
    """Read a gzip archive that breaks off.

    Args:
        folder: for the file.
        drawn: its lines.
        cut: bytes that are missing from the end.

    Returns:
        One archive, named as broken.

    Raises:
        AssertionError: it was taken for whole, or the error does not name it.
    """
    path = folder / "odd.jsonl.gz"
    packed = gzip.compress(b"\n".join(drawn))
    path.write_bytes(packed[: max(12, len(packed) - cut)])
    try:
        jsonl_corpus(str(path), {}, on_bad_row="error")
    except ValueError as error:
        said = str(error)
        if str(path) in said and "data.corpus.stream" in said:
            return Counter(archives=1)
        raise AssertionError(f"an archive that breaks off is not named: {said}") from error
    raise AssertionError("an archive that breaks off was taken for whole")


def main() -> None:
    """Draw files until as many rows were tried, and print what became of them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    args = parser.parse_args()
    logging.disable()
    templates = (template_of("chatml"), template_of("plain"), None)
    glass = Glass(AutoTokenizer.from_pretrained(str(tiny_path())), 256, Encoding(join_turns=True))
    total: Counter[str] = Counter()

    def drawn(body: Callable[..., Any], examples: int) -> Callable[[], None]:
        checks = list(HealthCheck)
        options = {"database": None, "derandomize": True, "deadline": None, "suppress_health_check": checks}
        return settings(max_examples=examples, **options)(given(lines, st.integers(0, 2), st.integers(1, 400))(body))

    with tempfile.TemporaryDirectory(prefix="winnow-fuzz-") as name:

        def body(rows: list[bytes], which: int, cut: int) -> None:
            try:
                total.update(attempt(Path(name), rows, templates[which], glass))
                total.update(archive(Path(name), rows, cut))
            except BadRow as fault:  # it has no place: it should have been caught where the row is known
                raise AssertionError(f"a fault without its place: {fault}") from fault

        drawn(body, args.rows // 48)()
    print(", ".join(f"{count:,} {what}" for what, count in sorted(total.items())))


if __name__ == "__main__":
    main()
