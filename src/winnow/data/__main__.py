"""Show what the rows of a file become: every token, and which of them carry loss.

python -m winnow.data train.jsonl --model RUN/model
python -m winnow.data chats.parquet --model tiny --chat-template chatml --rows 5 --loss-on last
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from winnow.data.encoding import TRUNCATE, Encoding
from winnow.data.fields import Fields
from winnow.data.jsonl import files_source
from winnow.data.rejects import Rejects
from winnow.data.render import LOSS_ON
from winnow.data.rows import Reader, options
from winnow.data.unread import say_unread
from winnow.models.loading import TINY, load_tokenizer, tiny_path
from winnow.models.templates import template_of
from winnow.records.shown import PlainFormatter, shown
from winnow.report.rows import print_rows

KEY = "data.corpus.stream"


def main(arguments: Sequence[str] | None = None) -> int:
    """Read files as a stream would be, encode every row, and print what came of it.

    Args:
        arguments: command line, the process's own if omitted.

    Returns:
        Exit code: 0; 1 if rows cannot be used; 2 if nothing can be read.
    """
    parser = argparse.ArgumentParser(prog="python -m winnow.data", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="+", metavar="FILE", help="file, folder or pattern, as for data.corpus.stream")
    parser.add_argument("--model", default=TINY, help="folder or Hugging Face name that has the tokenizer")
    parser.add_argument("--chat-template", metavar="T", help="a file, chatml or plain, in place of the tokenizer's own")
    parser.add_argument("--rows", type=int, default=3, metavar="N", help="rows to print (default: 3)")
    parser.add_argument("--limit", type=int, metavar="N", help="rows to read (default: all)")
    parser.add_argument("--max-length", type=int, default=512, metavar="TOKENS", help="data.max_length (default: 512)")
    parser.add_argument("--loss-on", choices=LOSS_ON, default="assistant", help="data.loss_on")
    parser.add_argument("--truncate", choices=TRUNCATE, default="right", help="data.truncate")
    parser.add_argument("--join-turns", action="store_true", help="data.join_turns")
    parser.add_argument("--date", metavar="DAY", help="data.date")
    parser.add_argument("--field", action="append", default=[], metavar="NAME=FIELD", help="as data.corpus.fields.NAME")
    parser.add_argument("--rejects", type=Path, metavar="FILE", help="write rows that cannot be used to this file")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(PlainFormatter("%(message)s"))
    for noisy in ("httpx", "transformers", "datasets"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    rejects = Rejects("drop")
    try:
        tokenizer = load_tokenizer(str(tiny_path()) if args.model == TINY else args.model)
        if args.chat_template is not None:
            tokenizer.chat_template = template_of(args.chat_template)
        named = dict(one.split("=", 1) for one in args.field)
        fields = options(Fields, named, KEY.replace("stream", "fields"))
        reader = Reader(rejects)
        examples = reader.read(files_source(args.files, KEY), fields, KEY, args.limit)
        encoding = Encoding(args.loss_on, args.truncate, args.join_turns, args.date)
    except (OSError, ValueError) as error:
        print(shown(error, keep="\n"))
        for one in rejects.listed[:3]:
            print(shown(f"{one.where}: {one.reason}: {one.detail}"))
        return 2
    print_rows(Console(), examples, tokenizer, args.max_length, encoding, rejects, KEY, args.rows)
    say_unread(reader.turns, tokenizer, encoding.date)
    for reason, count in reader.report.items():
        print(f"{count} rows left out: {shown(reason)}")
    if args.rejects is not None:
        rejects.write(args.rejects)
    return 1 if rejects.counts else 0


if __name__ == "__main__":
    raise SystemExit(main())
