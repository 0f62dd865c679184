"""A run's folder: one run writes in it at a time, and a job of a sweep that is run again goes on where it stopped."""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from winnow.records.provenance import ROOT, code_state
from winnow.records.strict_json import to_json

log = logging.getLogger(__name__)

RECORDS = ("metrics.csv", "ledger", "ledger.parquet", "ledger-resumed.parquet", "summary.json")
ADDED: dict[str, Any] = {
    "resume": None,
    "resume_method": "same",
    "model.quantization": None,
    "model.chat_template": None,
    "gate": {},
    "data.draw_size": None,
    "data.loss_on": "assistant",
    "data.truncate": "right",
    "data.join_turns": False,
    "data.on_bad_row": "error",
    "data.date": None,
    "data.cache_dir": "outputs/cache",
    **{f"data.corpus.fields.{name}": None for name in ("text", "system", "tools")},
    "data.corpus.on_bad_row": "error",
    "data.corpus.cache_dir": "outputs/cache",
    "logger.id": None,
    "parallel.wire": None,
    "parallel.timeout": 30,
    "parallel.base": "whole",
    "parallel.pool": "global",
    "scoring.period": 1,
    "scoring.between": "uniform",
    **{f"scoring.{name}": None for name in ("max_tokens", "precision", "proxy")},
    **{f"budget.{name}": None for name in ("flops", "examples", "tokens", "minutes")},
}
"""Options that runs of earlier versions did not record, as they behaved."""
ADDED_OF_FILES = {"data.loss_on": "last", "data.join_turns": True}
"""The same of runs on files, whose chats were read otherwise; other streams have no chats."""
FILES = ("winnow.data.jsonl.jsonl_corpus", "winnow.data.hub.hub_corpus")
SAME: dict[str, Any] = {"model.attn_implementation": {"sdpa": None}}
"""Values that mean the same: an architecture that has sdpa takes it by itself, and no other ever ran with it."""
ELSEWHERE = "hydra.run.dir=FOLDER (hydra.sweep.dir=FOLDER with -m)"
ASIDE = ("resume",)
"""Options that say how a run is started, and not what it is."""


class FolderInUse(ValueError):
    """A run's folder holds another run, one is writing there now, or nothing can be written there."""


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the lock of a process that was killed is gone with it.

    Args:
        folder: the run's folder, made if need be.

    Yields:
        Nothing.

    Raises:
        FolderInUse: a run is writing there now, or nothing can be written there.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise FolderInUse(
            f"another process is writing in {folder}: wait for it, or choose another folder with {ELSEWHERE}"
        ) from None
    except OSError as error:
        said = error.strerror or type(error).__name__
        raise FolderInUse(f"{folder} cannot be written to ({said}): choose another folder with {ELSEWHERE}") from error
    try:
        yield
    finally:
        lock.release()


def claim(folder: Path, ckpt_path: str | None) -> None:
    """Refuse a folder that holds another run: their records would mix.

    Args:
        folder: the run's folder.
        ckpt_path: what the run resumes from; it may go on in the folder that the checkpoint is in.

    Raises:
        FolderInUse: there are records of a run that is not the one resumed.
    """
    if ckpt_path and Path(ckpt_path).resolve().is_relative_to(folder.resolve()):
        return
    used = _used(folder)
    if used:
        last = folder / "checkpoints" / "last.ckpt"
        way_on = f", or resume it with ckpt_path={last}" if last.exists() else ""
        raise FolderInUse(
            f"{folder} holds a run already ({', '.join(used)}): choose another folder with hydra.run.dir=FOLDER, "
            f"or delete that one{way_on}"
        )


def earlier_job(folder: Path, config: dict[str, Any]) -> dict[str, Any] | str | None:
    """What an earlier run of the same job left; half a job without a checkpoint is cleared away.

    Args:
        folder: the job's folder.
        config: the job's configuration as it will be recorded.

    Returns:
        The summary of a job that finished, the checkpoint of one that did not, or None for a fresh start.

    Raises:
        FolderInUse: the folder holds a job of another configuration.
    """
    if not _used(folder):
        return None
    if not (folder / "config.json").exists():
        claim(folder, None)
    changed = differences(_read(folder / "config.json"), json.loads(to_json(config)))
    if changed:
        raise FolderInUse(
            f"{folder} holds a job of another configuration: {'; '.join(changed)}. Give the command as it began, or "
            f"choose another folder with {ELSEWHERE}"
        )
    last = folder / "checkpoints" / "last.ckpt"
    if _state(folder) == "finished":
        log.warning("%s: finished already, skipped%s; delete the folder to run it again", folder, _other_code(folder))
        found: dict[str, Any] = _read(folder / "summary.json")
        return found
    if last.exists():
        log.warning("%s: %s earlier, resumed from its last.ckpt%s", folder, _state(folder), _other_code(folder))
        return str(last)
    log.warning("%s: %s earlier without a checkpoint, started afresh", folder, _state(folder))
    for name in RECORDS:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return None


def differences(recorded: dict[str, Any], asked: dict[str, Any]) -> list[str]:
    """Keys in which two configurations differ, wherever their runs' folders lie and however they were started.

    Args:
        recorded: one configuration, as config.json has it.
        asked: the other.

    Returns:
        ``key was VALUE, is VALUE`` for each, in order.
    """
    before, after = (dict(flatten(_placeless(one, str(one.get("out"))))) for one in (recorded, asked))
    added = ADDED | (ADDED_OF_FILES if before.get("data.corpus._target_") in FILES else {})
    before = {key: value for key, value in added.items() if key in after} | before
    before, after = (
        {key: SAME[key].get(value, value) if key in SAME else value for key, value in one.items()}
        for one in (before, after)
    )
    return [
        f"{key} was {before.get(key, 'absent')}, is {after.get(key, 'absent')}"
        for key in {**before, **after}
        if key not in ASIDE and before.get(key, ...) != after.get(key, ...)
    ]


def changes(ckpt_path: str, config: dict[str, Any]) -> list[str]:
    """What a run that goes on from a checkpoint is given otherwise than the run the checkpoint is of.

    Args:
        ckpt_path: a checkpoint, in its run's folder or not.
        config: the configuration as it will be recorded.

    Returns:
        ``key was VALUE, is VALUE`` for each; nothing where the checkpoint lies beside no config.json.
    """
    recorded = Path(ckpt_path).resolve().parent.parent / "config.json"
    if not recorded.is_file():
        return []
    begun, asked = _read(recorded), json.loads(to_json(config))
    return differences(begun | {"ckpt_path": None}, asked | {"ckpt_path": None})


def _used(folder: Path) -> list[str]:
    used = [name for name in RECORDS if (folder / name).exists()]
    return [*used, "status.json (running)"] if _state(folder) == "running" else used


def _state(folder: Path) -> str | None:
    status = folder / "status.json"
    state = _read(status)["state"] if status.exists() else None
    return None if state is None else str(state)


def _other_code(folder: Path) -> str:
    path = folder / "provenance.json"
    then = _read(path)["git"]["commit"] if path.exists() else None
    now = code_state(ROOT)["commit"]
    return "" if then == now else f" (by the code of commit {then}; it is {now} now)"


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _placeless(value: Any, out: str) -> Any:
    if isinstance(value, dict):
        return {name: _placeless(child, out) for name, child in value.items()}
    if isinstance(value, list):
        return [_placeless(child, out) for child in value]
    return re.sub(rf"(?<![\w.-]){re.escape(out)}(?![\w.-])", "<out>", value) if isinstance(value, str) else value


def flatten(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a configuration by dotted key.

    Args:
        value: nested dicts; anything else is a value, an empty dict too.
        key: of the whole.

    Yields:
        Key and value.
    """
    if isinstance(value, dict) and value:
        for name, child in value.items():
            yield from flatten(child, f"{key}.{name}" if key else str(name))
    else:
        yield key, value
