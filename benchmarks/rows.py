"""python -m benchmarks.rows [--rows N] [--chats]: how fast a large file is read and checked, and at what memory.

Rows of about 1 kB are written to a folder of their own, read into a table and checked as a run's stream would be, and
then once more, from the cache.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import tempfile
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import torch
from transformers import AutoTokenizer

from benchmarks.measure import machine
from winnow.data.datamodule import SelectionDataModule  # noqa: F401 (the memory is that of a process that trains)
from winnow.data.encoding import Encoding
from winnow.data.jsonl import jsonl_corpus
from winnow.data.look import Glass
from winnow.data.prepared import prepared
from winnow.models.loading import tiny_path
from winnow.models.templates import template_of

ROOT = Path(__file__).parents[1]
CHARACTERS = 960
"""Of a row's texts; with its keys a line has about 1,000 bytes."""


def write(path: Path, rows: int, chats: bool) -> int:
    """Write a file of rows.

    Args:
        path: the file.
        rows: how many.
        chats: of four turns each, in place of prompt and response.

    Returns:
        Its bytes.
    """
    words = (ROOT / "README.md").read_text(encoding="utf-8").split()
    draw = random.Random(0)
    # Pieces are drawn and not words: writing is not what is measured, and 4,096 of them make no two rows alike.
    pieces = [" ".join(draw.choices(words, k=400))[: CHARACTERS // 4] for _ in range(4096)]
    with path.open("w", encoding="utf-8") as file:
        for number in range(rows):
            one, two, three, four = draw.choices(pieces, k=4)
            if chats:
                texts = (f"{number} {one}", two, three, four)
                turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]
                file.write(json.dumps({"messages": turns}) + "\n")
            else:
                file.write(json.dumps({"prompt": f"{number} {one} {two}", "response": f"{three} {four}"}) + "\n")
    return path.stat().st_size


class Memory:
    """Watches the memory of this process and its children that is theirs alone, as long as the block lasts.

    Pages of a mapped file are not in it: the system takes them back when it needs them.
    """

    def __init__(self) -> None:
        self.highest, self._over = 0.0, Event()
        self._watch = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        """Begin."""
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._over.set()
        self._watch.join()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            self.highest = max(self.highest, sum(_anonymous(one) for one in _family()) / 2**20)


def _anonymous(process: int) -> int:
    """KiB, what is shared with a process it was forked from by halves; 0 of a process that has ended."""
    try:
        found = re.search(r"Pss_Anon:\s+(\d+)", Path(f"/proc/{process}/smaps_rollup").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return int(found.group(1)) if found else 0


def _family() -> list[int]:
    """This process and all below it."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = path.read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1]
        except OSError:
            continue
        parents[int(path.parent.name)] = int(parent)
    found = [os.getpid()]
    for one in found:  # grows as it is gone through: children of children
        found += [child for child, parent in parents.items() if parent == one]
    return found


def processor_seconds() -> float:
    """Of this process and of those that it has started and waited for; what else a machine does changes it little.

    Returns:
        Their sum.
    """
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    """Measure, and print a line for each start."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.rows", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--chats", action="store_true", help="chats of four turns through the stand-in chatml")
    args = parser.parse_args()
    print(machine(torch.device("cpu")))
    tokenizer = AutoTokenizer.from_pretrained(str(tiny_path()))
    if args.chats:
        tokenizer.chat_template = template_of("chatml")
    folder = Path(tempfile.mkdtemp(prefix="winnow-rows-"))
    try:
        size = write(folder / "rows.jsonl", args.rows, args.chats)
        print(f"{args.rows:,} rows, {size / args.rows:,.0f} bytes each")
        for start in ("first start", "second start"):
            with Memory() as memory:
                began, busy = perf_counter(), processor_seconds()
                corpus = jsonl_corpus(str(folder / "rows.jsonl"), {}, cache_dir=str(folder / "cache"))
                read = perf_counter() - began
                kept = prepared(corpus, Glass(tokenizer, 512, Encoding(), folder / "cache"))
                took = perf_counter() - began
            print(
                f"{start}: {took:,.1f} s ({read:,.1f} of it reading), {args.rows / took:,.0f} rows a second, "
                f"{processor_seconds() - busy:,.1f} s of processors, {kept.stream.size:,} kept, "
                f"{memory.highest:.2f} GiB of memory at most, all processes together",
                flush=True,
            )
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
