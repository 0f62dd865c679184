"""The ledger: a row per candidate and step, in parquet.

python -m winnow.ledger outputs/filter_weight/<time>            # a summary of what was kept
python -m winnow.ledger outputs/filter_weight/<time> --json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from winnow.records.shown import shown
from winnow.records.strict_json import to_json
from winnow.report.ledger import print_ledger, summarise


def main(arguments: Sequence[str] | None = None) -> int:
    """Summarise a ledger.

    Args:
        arguments: command line, the process's own if omitted.

    Returns:
        Exit code: 0, or 2 if there is no ledger that can be read.
    """
    parser = argparse.ArgumentParser(
        prog="python -m winnow.ledger", description="What a run kept, and with what weight."
    )
    parser.add_argument("path", type=Path, help="a run's folder or its ledger.parquet")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--top", type=int, default=5, help="how many of the most weighted examples to name")
    options = parser.parse_args(arguments)
    try:
        figures = summarise(options.path, options.top)
    except (FileNotFoundError, ValueError) as error:
        text = shown(f"{options.path}: {error}", keep="\n")
        Console(stderr=True).print(text, style="red", highlight=False, markup=False, soft_wrap=True)
        return 2
    if options.json:
        print(to_json(figures))
    else:
        print_ledger(figures, Console())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
