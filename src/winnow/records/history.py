"""metrics.csv: one row per event, on disk as soon as it is written."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path

from winnow.records.whole import replacing, sync


class History:
    """Appends rows of metrics to a CSV file whose header grows as new names appear.

    Numbers are written so that they read back exactly. Timing columns begin with ``time/``; all others
    of a resumed run equal those of one that never stopped.

    Args:
        path: the file; made with its folder at the first row.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.columns: list[str] = []

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write one row.

        Args:
            step: pools seen before the one the row is about.
            metrics: values by name; NaN is written as an empty field.
        """
        row = {"step": str(step), **{name: _format(value) for name, value in metrics.items()}}
        new = [name for name in row if name not in self.columns]
        if new:
            self._rewrite(self._rows(), [*(self.columns or ["step"]), *[name for name in new if name != "step"]])
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns, restval="").writerow(row)

    def sync(self) -> None:
        """Bring the rows to the disk; a checkpoint that outlasts them would leave a gap."""
        if self.path.exists():
            sync(self.path)

    def resume(self, old: Path, step: int) -> None:
        """Begin with the rows of an earlier run.

        Args:
            old: its metrics.csv; the same file is cut in place.
            step: the last step whose rows are kept.
        """
        if not Path(old).exists():
            return
        with open(old, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            columns = list(reader.fieldnames or [])
            # A kill may leave a last line without its end; a short row has None in its last field.
            rows = [row for row in reader if None not in row.values() and int(row["step"]) <= step]
        used = [name for name in columns if name == "step" or any(row[name] for row in rows)]
        self._rewrite([{name: row[name] for name in used} for row in rows], used)

    def _rows(self) -> list[dict[str, str]]:
        if not self.path.exists() or not self.columns:
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _rewrite(self, rows: list[dict[str, str]], columns: list[str]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(self.path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
        self.columns = columns


def _format(value: float) -> str:
    return "" if value != value else repr(float(value))
