"""How a run ended, or that it is running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from winnow.records.provenance import anonymous, now
from winnow.records.strict_json import write_json


class Status:
    """``status.json``: running, finished, failed, interrupted or terminated, so that half a run is never taken for one.

    Args:
        folder: the run's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = Path(folder) / "status.json"
        self.content: dict[str, Any] = {"state": "running", "started": now()}
        write_json(self.path, self.content)

    def finished(self) -> None:
        """The run came to its end."""
        self._end("finished")

    def failed(self, error: BaseException, resume: Path | None) -> None:
        """The run was broken off.

        Args:
            error: by what; a keyboard interrupt counts as interrupted, SIGTERM and SIGUSR1 as terminated.
            resume: a checkpoint it can go on from.
        """
        state = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        state = "terminated" if isinstance(error, Terminated) else state
        # Python's own interrupt, and an assertion without words, say nothing of themselves.
        said = str(error) or ("SIGINT" if isinstance(error, KeyboardInterrupt) else "no message")
        text = anonymous(f"{type(error).__name__}: {said}")
        self._end(state, error=text, ckpt_path=None if resume is None else anonymous(str(resume)))

    def _end(self, state: str, **more: Any) -> None:
        write_json(self.path, {**self.content, "state": state, "ended": now(), **more})


TERMINATED = 143  # what shells use for it: 128 + SIGTERM


class Terminated(SystemExit):
    """A scheduler's signal came; ends the process with code 143, whichever it was.

    Args:
        name: of the signal.
    """

    def __init__(self, name: str = "SIGTERM") -> None:
        super().__init__(TERMINATED)
        self.name = name

    def __str__(self) -> str:
        return self.name
