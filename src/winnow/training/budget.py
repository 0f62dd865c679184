"""What a run has spent: a budget counts what reached the optimizer, cost counts everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any


@dataclass
class Budget:
    """Counters of a run, kept through checkpoints.

    Args:
        steps: pools seen.
        updates: steps of the optimizer.
        examples_seen: candidates in those pools.
        tokens_seen: their response tokens.
        examples_trained: candidates whose gradient reached the optimizer.
        tokens_trained: their response tokens.
        examples_target: target examples scored against.
        examples_excluded: candidates that could not be chosen (no response token, loss not finite).
        examples_truncated: candidates cut to the longest length.
        seconds: spent in steps, selection included.
        seconds_selecting: spent scoring and selecting.
    """

    steps: int = 0
    updates: int = 0
    examples_seen: int = 0
    tokens_seen: int = 0
    examples_trained: int = 0
    tokens_trained: int = 0
    examples_target: int = 0
    examples_excluded: int = 0
    examples_truncated: int = 0
    seconds: float = 0.0
    seconds_selecting: float = 0.0

    def __post_init__(self) -> None:
        self._started: float | None = None
        self._last: tuple[int, float] = (0, 0.0)

    def start(self) -> None:
        """A step begins: its time counts from here."""
        self._started = perf_counter()

    def selected(self) -> None:
        """Scoring and selecting, begun at :meth:`start`, are done."""
        if self._started is not None:
            self.seconds_selecting += perf_counter() - self._started

    def step(
        self,
        *,
        examples: int,
        tokens: int,
        kept: int,
        kept_tokens: int,
        updated: bool,
        target: int,
        excluded: int,
        truncated: int,
    ) -> None:
        """Count one pool.

        Args:
            examples: candidates in it.
            tokens: their response tokens.
            kept: candidates trained on.
            kept_tokens: their response tokens.
            updated: whether the optimizer made a step.
            target: target examples scored against.
            excluded: candidates that could not be chosen.
            truncated: candidates that were cut.
        """
        self.steps += 1
        self.updates += updated
        self.examples_seen += examples
        self.tokens_seen += tokens
        self.examples_trained += kept
        self.tokens_trained += kept_tokens
        self.examples_target += target
        self.examples_excluded += excluded
        self.examples_truncated += truncated
        if self._started is not None:
            spent = perf_counter() - self._started
            self.seconds += spent
            self._last = (tokens, spent)
            self._started = None

    def metrics(self) -> dict[str, float]:
        """The counters as metrics; what depends on the clock is under ``time/``.

        Returns:
            ``budget/*`` counts, ``time/seconds``, ``time/selecting`` and ``time/tokens_per_second``, the
            response tokens of the last pool over the seconds its step took.
        """
        counts = {f"budget/{k}": float(v) for k, v in asdict(self).items() if not k.startswith("seconds")}
        tokens, spent = self._last
        return {
            **counts,
            "time/seconds": self.seconds,
            "time/selecting": self.seconds_selecting,
            "time/tokens_per_second": tokens / spent if spent > 0 else 0.0,
        }

    def state_dict(self) -> dict[str, Any]:
        """The counters by name."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up saved counters.

        Args:
            state: what :meth:`state_dict` gave.
        """
        for name, value in state.items():
            setattr(self, name, type(getattr(self, name))(value))
