"""python -m benchmarks.soak: kill a run at random moments, go on by the same command, lose nothing; and run for long.

Every run that was killed (SIGKILL) or told to go (SIGTERM) is given once more with resume=auto until it has finished,
and is then compared bit for bit with one that nothing befell: weights, optimizer, ledger, metrics, measurements.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.endure import endure
from benchmarks.jobs import Command, Forked, Launcher, apart, ended
from winnow.models.loading import tiny_path

POOL = 8
TINY = (
    "model=scratch", "model.config.hidden_size=16", "model.config.intermediate_size=32",
    "model.config.num_hidden_layers=2", "model.config.num_attention_heads=2", "model.config.num_key_value_heads=2",
    f"data.pool_size={POOL}", "data.target_batch_size=4", "data.max_length=96", "data.corpus.val_size=8",
    "data.corpus.test_size=8", "evaluation.accuracy_limit=0", "logger=none", "callbacks.progress=null",
    "trainer.enable_progress_bar=false", "model.seed=0",
)  # fmt: skip
"""A run that writes all that a run writes, on a model as small as can be."""
SMALL = (
    *TINY, "scoring.target_ema=0.5", "trainer.max_steps=40", "trainer.val_check_interval=8", "callbacks.last.every=4",
    "resume=auto",
)  # fmt: skip
OVER = 143


@dataclass
class Outcome:
    """What became of the runs.

    Args:
        sent: signals, by name.
        at: where the run was when it was hit, counted.
        codes: with which the hit processes ended.
        resumed: starts after the first.
        runs: brought to their end.
        same: of these, bit for bit like an undisturbed run.
        pools_lost: pools that were done when SIGTERM came, and are in no checkpoint.
        pools_again: pools that were done when SIGKILL came, and had to be done again.
        problems: what was not as it should be, with the moment.
        seconds: all of it took.
    """

    sent: Counter[str] = field(default_factory=Counter)
    at: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    runs: int = 0
    same: int = 0
    pools_lost: int = 0
    pools_again: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0


def done(folder: Path) -> int:
    """Pools whose rows are in the metrics of a run.

    Args:
        folder: of the run.

    Returns:
        The number of the last one, and one more; 0 where there is none.
    """
    try:
        lines = (folder / "metrics.csv").read_text().splitlines()[1:]
    except OSError:
        return 0
    steps = [line.split(",")[0] for line in lines if line.count(",")]
    return max((int(step) + 1 for step in steps if step.isdigit()), default=0)


def where(folder: Path) -> str:
    """What a run was about, as its folder shows.

    Args:
        folder: of the run.

    Returns:
        A word or two.
    """
    if not (folder / "status.json").exists():
        return "before its first record"
    if not done(folder):
        return "before its first pool"
    return "after training" if (folder / "summary.json").exists() else "training"


def saved(folder: Path) -> int:
    """Pools in a run's checkpoint; to be called in a process apart.

    Args:
        folder: of the run.

    Returns:
        Their number; 0 without a checkpoint.
    """
    from winnow.records.checkpoint import read_checkpoint

    path = folder / "checkpoints" / "last.ckpt"
    return int(read_checkpoint(str(path))["winnow"]["budget"]["steps"]) if path.exists() else 0


def check_same(one: Path, other: Path) -> None:
    """Two finished runs differ in nothing but times.

    Args:
        one: a run's folder.
        other: another one's.

    Raises:
        AssertionError: they differ; says in what.
    """
    import pandas as pd
    import pyarrow.parquet as pq

    from winnow.records.checkpoint import read_checkpoint

    states: list[dict[str, Any]] = [read_checkpoint(str(run / "checkpoints" / "last.ckpt")) for run in (one, other)]
    for state in states:
        for name in [name for name in state["winnow"]["budget"] if "seconds" in name]:
            del state["winnow"]["budget"][name]
    from winnow.records.checkpoint import digest

    assert digest(states[0]) == digest(states[1]), "weights, optimizer or counters"
    ledgers = [pq.read_table(run / "ledger.parquet") for run in (one, other)]
    assert ledgers[0].equals(ledgers[1]), f"ledgers of {ledgers[0].num_rows} and {ledgers[1].num_rows} rows"
    tables = [pd.read_csv(run / "metrics.csv") for run in (one, other)]
    tables = [table[sorted(name for name in table if not name.startswith("time/"))] for table in tables]
    pd.testing.assert_frame_equal(*tables, check_exact=True)
    after = [json.loads((run / "summary.json").read_text())["after"] for run in (one, other)]
    assert after[0] == after[1], "measurements"
    left = [path.name for path in (*one.glob("*.tmp"), *one.glob("checkpoints/*.tmp"))]
    assert not left, f"left over: {left}"


class Soak:
    """Hits runs at random moments and brings each to its end.

    Args:
        launcher: starts them.
        options: of every run.
        folder: for all that is written.
        seed: of the moments.
    """

    def __init__(self, launcher: Launcher, options: Sequence[str], folder: Path, seed: int) -> None:
        self.launcher, self.options, self.folder = launcher, list(options), folder
        self.chance = random.Random(seed)
        self.outcome = Outcome()
        self.log = folder / "log"
        self.straight = folder / "straight"
        self.seconds = self._whole(self.straight)

    def hit(self, number: signal.Signals, count: int) -> None:
        """Hit runs until there were so many hits; a run may be hit more than once before it comes to its end.

        Args:
            number: the signal.
            count: hits.
        """
        goal = self.outcome.sent[number.name] + count
        while self.outcome.sent[number.name] < goal:
            run = self.folder / f"{number.name}-{self.outcome.runs}"
            for _ in range(min(self.chance.choice((1, 1, 2)), goal - self.outcome.sent[number.name])):
                if self._hit_once(run, number):
                    break
            self._finish(run)

    def _hit_once(self, run: Path, number: signal.Signals) -> bool:
        """One hit; gives whether the run had ended before it came."""
        moment = self.chance.uniform(0.02, 1.0) * self.seconds
        job = self._start(run)
        deadline = time.monotonic() + moment
        while time.monotonic() < deadline and job.poll() is None:
            time.sleep(0.002)
        if job.poll() is not None:
            return True
        at, begun = where(run), done(run)
        job.kill(number)
        code = ended(job)
        said = f"{number.name} after {moment:.3f} s ({at}, pool {begun})"
        self.outcome.sent[number.name] += 1
        self.outcome.at[f"{number.name} {at}"] += 1
        self.outcome.codes[f"{number.name} {code}"] += 1
        if number == signal.SIGTERM and code not in (OVER, 0) and not (code == -signal.SIGTERM and not begun):
            self.outcome.problems.append(f"{said}: code {code} in place of {OVER}")
        self._count_lost(run, number, begun, said)
        return code == 0

    def _count_lost(self, run: Path, number: signal.Signals, begun: int, said: str) -> None:
        now = max(done(run), begun)
        found = self.folder / "saved"
        if not apart(lambda: found.write_text(str(saved(run))) and None, self.log):
            self.outcome.problems.append(f"{said}: its checkpoint cannot be read")
            return
        lost = max(now - int(found.read_text()), 0)
        if number == signal.SIGTERM and lost:
            self.outcome.pools_lost += lost
            self.outcome.problems.append(f"{said}: {lost} pools lost")
        elif number == signal.SIGKILL:
            self.outcome.pools_again += lost

    def _finish(self, run: Path) -> None:
        code = ended(self._start(run))
        self.outcome.runs += 1
        if code:
            self.outcome.problems.append(f"{run.name}: could not go on, code {code}")
        elif apart(partial(check_same, run, self.straight), self.log):
            self.outcome.same += 1
        else:
            self.outcome.problems.append(f"{run.name}: differs from the undisturbed run, see {self.log}")

    def _start(self, run: Path) -> Any:
        self.outcome.resumed += run.exists()
        return self.launcher.start([*self.options, f"hydra.run.dir={run}"], self.log)

    def _whole(self, run: Path) -> float:
        begun = time.monotonic()
        code = ended(self._start(run))
        if code:
            raise SystemExit(
                f"the undisturbed run ended with code {code}: see {self.log}\n{self.log.read_text()[-2000:]}"
            )
        return time.monotonic() - begun


def main(arguments: Sequence[str] | None = None) -> int:
    """Soak, print and write what came out.

    Args:
        arguments: of the command line.

    Returns:
        0 where all was as it should be.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="runs are hit by SIGKILL so often")
    parser.add_argument("--terms", type=int, default=20, help="and by SIGTERM")
    parser.add_argument("--steps", type=int, default=20_000, help="of the long run; 0 for none")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--json", type=Path, help="write everything found to this file")
    parser.add_argument("--folder", type=Path, help="keep what the runs write here")
    parser.add_argument("--command", nargs="+", metavar="WORD", help="start each run by this, in place of a fork")
    parser.add_argument("--options", nargs="*", default=[], metavar="KEY=VALUE", help="of every run, beside its own")
    options = parser.parse_args(arguments)
    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "seed": options.seed}
    with tempfile.TemporaryDirectory(prefix="winnow-soak-") as name:
        folder = (options.folder or Path(name)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        launcher: Launcher = Command(options.command) if options.command else Forked()
        more = (f"model.tokenizer={tiny_path()}", *options.options)
        problems: list[str] = []
        if options.kills or options.terms:
            begun = time.monotonic()
            soak = Soak(launcher, [*SMALL, *more], folder, options.seed)
            soak.hit(signal.SIGKILL, options.kills)
            soak.hit(signal.SIGTERM, options.terms)
            soak.outcome.seconds = round(time.monotonic() - begun, 1)
            found["hits"] = {**vars(soak.outcome), "seconds_undisturbed": round(soak.seconds, 1)}
            problems += soak.outcome.problems
        if options.steps:
            found["long"] = endure(launcher, [*TINY, *more], folder, options.steps)
            problems += found["long"]["problems"]
    text = json.dumps(found, indent=2)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
