"""What a run has spent: a budget counts what reached the optimizer, cost counts everything."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from time import perf_counter
from typing import Any

from winnow.scorer.flops import Flops

PHASES = ("gate", "features", "selecting", "scoring", "updating", "loading")


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
        examples_drawn: raw candidates in front of a gate; those seen where there is none.
        steps_scored: pools that were scored, by whatever the method scores with.
        tokens_forwarded: tokens that went through a model, prompts, targets and rejected candidates included.
        tokens_backwarded: those that went back through it.
        flops_forward: operations of forward passes; see :class:`winnow.scorer.flops.Flops` for these.
        flops_backward: of backward passes to the inputs.
        flops_weights: of the weight gradients of updates.
        flops_attention: of attention, forward and backward.
        flops_products: of K, b, norms and the target's gradient.
        flops_optimizer: of the optimizer's matrix products.
        flops_evaluation: of measuring the target before, in between and after, which counts for no budget.
        bytes: sent to other processes by the first one in its pools, FSDP2's own of a model in shards included.
        seconds: spent in steps: in the gate, scoring and selecting, and updating.
        seconds_selecting: of these, spent scoring and selecting.
        seconds_scoring: of these, scoring alone.
        seconds_gate: spent in the gate, choosing and learning.
        seconds_updating: spent updating.
        seconds_features: spent computing what the gate sees, where data is loaded, ahead if there are workers.
        seconds_loading: spent loading a step's data, or waiting for it, beside ``seconds``.
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
    examples_drawn: int = 0
    steps_scored: int = 0
    tokens_forwarded: int = 0
    tokens_backwarded: int = 0
    flops_forward: float = 0.0
    flops_backward: float = 0.0
    flops_weights: float = 0.0
    flops_attention: float = 0.0
    flops_products: float = 0.0
    flops_optimizer: float = 0.0
    flops_evaluation: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    seconds_selecting: float = 0.0
    seconds_scoring: float = 0.0
    seconds_gate: float = 0.0
    seconds_updating: float = 0.0
    seconds_features: float = 0.0
    seconds_loading: float = 0.0

    def __post_init__(self) -> None:
        self._mark: float | None = None
        self._before = 0.0
        self._last: tuple[int, float] = (0, 0.0)

    @property
    def flops(self) -> float:
        """Operations of training, evaluation apart."""
        return sum(getattr(self, f"flops_{part.name}") for part in fields(Flops))

    def start(self) -> None:
        """A step begins; what was waited for it was loading."""
        if self._mark is not None:
            self.seconds_loading += perf_counter() - self._mark
        self._mark, self._before = perf_counter(), self.seconds

    def lap(self, *phases: str) -> None:
        """What was done since the last call belongs to these phases.

        Args:
            phases: ``gate`` | ``scoring`` and ``selecting`` | ``updating``, which are a step's, or ``loading``.
        """
        if self._mark is None:
            return
        now = perf_counter()
        spent, self._mark = now - self._mark, now
        for phase in phases:
            name = f"seconds_{phase}"
            setattr(self, name, getattr(self, name) + spent)
        if "loading" not in phases:
            self.seconds += spent

    def wait(self, waiting: bool = True) -> None:
        """What follows is, or is no longer, waiting for the next step's data.

        Args:
            waiting: False while something else is done.
        """
        self._mark = perf_counter() if waiting else None

    def spend(self, flops: Flops, forwarded: int, backwarded: int) -> None:
        """Count what went through the model.

        Args:
            flops: what it cost.
            forwarded: tokens that went through it.
            backwarded: of these, those that went back.
        """
        for part in fields(Flops):
            name = f"flops_{part.name}"
            setattr(self, name, getattr(self, name) + getattr(flops, part.name))
        self.tokens_forwarded += forwarded
        self.tokens_backwarded += backwarded

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
        drawn: int,
        scored: int,
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
            drawn: raw candidates they were passed on from.
            scored: 1 where the pool was scored, else 0.
        """
        self.steps += 1
        self.examples_drawn += drawn
        self.steps_scored += scored
        self.updates += updated
        self.examples_seen += examples
        self.tokens_seen += tokens
        self.examples_trained += kept
        self.tokens_trained += kept_tokens
        self.examples_target += target
        self.examples_excluded += excluded
        self.examples_truncated += truncated
        self.lap("updating")
        if self._mark is not None:
            self._last = (tokens, self.seconds - self._before)
            self._mark = None

    def metrics(self) -> dict[str, float]:
        """The counters as metrics; what depends on the clock is under ``time/``.

        Returns:
            ``budget/*`` counts; ``time/seconds`` and what of them was ``time/gate``, ``time/selecting`` (of which
            ``time/scoring``) and ``time/updating``, beside them ``time/loading`` and ``time/features``; and
            ``time/tokens_per_second``, the response tokens of the last pool over the seconds its step took.
        """
        counts = {f"budget/{k}": float(v) for k, v in asdict(self).items() if not k.startswith("seconds")}
        if not self.bytes:  # of a single process, which has nobody to send to
            del counts["budget/bytes"]
        tokens, spent = self._last
        return {
            **counts,
            "budget/flops": self.flops,
            "time/seconds": self.seconds,
            **{f"time/{phase}": getattr(self, f"seconds_{phase}") for phase in PHASES},
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
