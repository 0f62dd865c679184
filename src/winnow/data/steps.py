"""What comes at every step: which candidates, which target examples; pure functions of the seed and the step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler
from transformers import PreTrainedTokenizerBase

from winnow.data.batch import collate, describe, pad_token_id
from winnow.data.encode import PLAIN, Encoded, Encoding, encode
from winnow.data.example import Corpus, Example, Stream
from winnow.data.orders import Orders
from winnow.data.pack import Packed
from winnow.data.rejects import placed
from winnow.data.rows import Listed
from winnow.data.turns import Turns, rows_per_target
from winnow.data.weight import weights_of
from winnow.records.shown import shown

TARGET_ORDERS = ("shared", "round_robin")
_NEVER = object()


class Drawn:
    """The raw candidates of a step and what a gate makes of them.

    It is no container that a loader or Lightning would take apart to move what is in it.

    Args:
        examples: the raw candidates.
        seen: what the gate sees of them.
        seconds: it took to see that.
    """

    def __init__(self, examples: Sequence[Example], seen: Any, seconds: float = 0.0) -> None:
        self.examples, self.seen, self.seconds = examples, seen, seconds


@dataclass(frozen=True)
class Raw:
    """Raw candidates in front of a gate, which passes a pool of them on.

    Args:
        size: how many a step; a multiple of the pool's size.
        look: what the gate sees of them, computed where they are loaded.
    """

    size: int
    look: Callable[[Sequence[Example]], Any]

    def check(self, pool_size: int, packing: bool) -> None:
        """Refuse a draw that no pool can be passed on from.

        Args:
            pool_size: candidates passed on, B.
            packing: whether documents are joined into rows.

        Raises:
            ValueError: it is not a multiple of the pool, or there are no examples to choose among.
        """
        if packing:
            raise ValueError("a gate chooses among examples, and data.packing joins them into rows: set gate=none")
        if self.size < pool_size or self.size % pool_size:
            raise ValueError(
                f"data.draw_size={self.size} must be a multiple of data.pool_size={pool_size}: so many raw candidates "
                "come for every pool"
            )


class StepSampler(Sampler[tuple[int, int]]):
    """Yields (epoch, step) keys; Lightning calls ``set_epoch`` at the start of every epoch.

    Args:
        steps: pools in one epoch; None for an endless stream.
        start: the (epoch, step) to begin at, where a run is resumed.
    """

    def __init__(self, steps: int | None, start: tuple[int, int] = (0, 0)) -> None:
        self.steps, self.start, self.epoch = steps, start, start[0]

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch the next iteration belongs to."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Keys of one epoch, from the resumed position on in the epoch that was interrupted."""
        step = self.start[1] if self.epoch == self.start[0] else 0
        while self.steps is None or step < self.steps:
            yield self.epoch, step
            step += 1

    def __len__(self) -> int:
        """Pools in one epoch, the resumed ones included: what Lightning counts against.

        Raises:
            TypeError: the stream is endless.
        """
        if self.steps is None:
            raise TypeError("an endless stream has no length")
        return self.steps


class StepData(Dataset):
    """The pool and target batch of a step.

    Args:
        corpus: stream and targets.
        tokenizer: the model's tokenizer.
        pool_size: candidates per step, B.
        target_batch_size: target examples per step, M, shared among the targets by weight.
        max_length: longest sequence, in tokens.
        seed: decides the order of stream and targets.
        packing: join documents into rows of ``max_length`` tokens (pre-training).
        target_order: ``shared`` | ``round_robin``.
        raw: candidates in front of a gate; None for pools as they come.
        encoding: what carries loss, what is cut.
        checked: what is listed of the stream, and the targets, was looked at (``winnow.data.prepared``) with this
            tokenizer and encoding.

    Raises:
        ValueError: ``target_order`` is neither, or ``raw`` does not go with the pools.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: PreTrainedTokenizerBase,
        pool_size: int,
        target_batch_size: int,
        max_length: int,
        seed: int,
        packing: bool = False,
        target_order: str = "shared",
        raw: Raw | None = None,
        encoding: Encoding = PLAIN,
        checked: bool = False,
    ) -> None:
        if raw is not None:
            raw.check(pool_size, packing)
        if target_order not in TARGET_ORDERS:
            raise ValueError(f"data.target_order must be one of {', '.join(TARGET_ORDERS)}; got {target_order!r}")
        self.stream: Stream = corpus.stream
        self.targets = list(corpus.targets)
        self.tokenizer, self.max_length, self.seed, self.encoding = tokenizer, max_length, seed, encoding
        # Which template they were looked at with: a tokenizer's may be set to another.
        self._checked = tokenizer.chat_template if checked else _NEVER
        self.raw, self.pool_size, self.orders = raw, pool_size, Orders(seed)
        self.draw_size = pool_size if raw is None else raw.size
        weights = [target.weight for target in self.targets]
        self.turns = Turns(weights) if target_order == "round_robin" and weights else None
        self.rows = (
            rows_per_target(target_batch_size, weights) if self.turns is None else [target_batch_size] * len(weights)
        )
        self.packed = Packed(corpus.stream, tokenizer, max_length) if packing else None
        self.pad = pad_token_id(tokenizer)
        self.steps = None if corpus.stream.size is None else corpus.stream.size // self.draw_size

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """Pool and target batch of (epoch, step).

        Args:
            key: epoch and step within it.

        Returns:
            ``pool`` and ``target`` token batches, ``meta`` lists for the records, ``truncated`` rows; behind a gate
            ``draw``, a :class:`Drawn`, in place of all but the target.
        """
        epoch, step = key
        positions = self._positions(epoch, step)
        batch: dict[str, Any] = {"key": (epoch, step)}
        if self.raw is not None:
            examples = [self.stream[int(position)] for position in positions]
            started = perf_counter()
            batch["draw"] = Drawn(examples, self.raw.look(examples), perf_counter() - started)
        elif self.packed is not None:
            batch |= self._pool([self.packed[int(position)] for position in positions])
        else:
            batch |= self.pool([self.stream[int(position)] for position in positions], drawn=True)
        if self.targets:
            batch["target"] = self.target_batch(epoch * (self.steps or 0) + step)
        return batch

    def pool(self, examples: Sequence[Example], drawn: bool = False) -> dict[str, Any]:
        """A pool of examples.

        Args:
            examples: at least one.
            drawn: they are the stream's.

        Returns:
            ``pool`` token batch, ``meta`` lists for the records, ``truncated`` rows.
        """
        known = drawn and isinstance(self.stream, Listed)
        return self._pool([(example, self.encoded(example, known)) for example in examples])

    def encoded(self, example: Example, known: bool = False) -> Encoded:
        """An example as tokens.

        Args:
            example: the example.
            known: it is of those that were looked at, if ``checked``, and is not held against its row again.

        Returns:
            Its tokens.

        Raises:
            ValueError: it cannot be used; a finite stream of files was looked through before for such.
        """
        with placed(f"example {shown(example.id)!r}"):
            checked = known and self._checked == self.tokenizer.chat_template
            return encode(example, self.tokenizer, self.max_length, self.encoding, checked)

    def _pool(self, drawn: Sequence[tuple[Example, Encoded]]) -> dict[str, Any]:
        examples, rows = [example for example, _ in drawn], [row for _, row in drawn]
        return {
            "pool": {**collate(rows, self.pad), **weights_of(examples)},
            "meta": describe(examples),
            "truncated": torch.tensor([row.truncated for row in rows]),
        }

    def _positions(self, epoch: int, step: int) -> np.ndarray:
        positions = np.arange(step * self.draw_size, (step + 1) * self.draw_size)
        return positions if self.stream.size is None else self.orders.order(self.stream.size, 0, epoch)[positions]

    def pool_ids(self) -> Iterator[list[str]]:
        """Ids of the candidates of every pool from the first step on, without their tokens.

        Yields:
            A pool's ids, in order; endlessly, epoch after epoch.
        """
        epoch = 0
        while True:
            for key in StepSampler(self.steps, (epoch, 0)):
                positions = [int(position) for position in self._positions(*key)]
                if self.packed is not None:
                    yield [self.packed[position][0].id for position in positions]
                else:
                    yield [self.stream[position].id for position in positions]
            epoch += 1

    def target_batch(self, step: int) -> dict[str, torch.Tensor]:
        """Target batch of a global step: a target's examples in turn, reshuffled when used up.

        With ``target_order=shared`` every target has its rows in every batch; with ``round_robin`` a batch is of one
        target, and the targets take turns as often as their weights say.

        Args:
            step: steps since the start of training.

        Returns:
            A token batch with ``weight``, the share of each row in the target gradient (sum 1), and
            ``task``, the position of its target.
        """
        rows: list[Encoded] = []
        weight: list[float] = []
        task: list[int] = []
        only, turn = (None, step) if self.turns is None else self.turns[step]
        total = sum(target.weight for number, target in enumerate(self.targets) if only in (None, number))
        for number, (target, count) in enumerate(zip(self.targets, self.rows, strict=True)):
            if only not in (None, number):
                continue
            for position in range(turn * count, (turn + 1) * count):
                lap, place = divmod(position, len(target.val))
                example = target.val[int(self.orders.order(len(target.val), 1 + number, lap)[place])]
                rows.append(self.encoded(example, known=True))
                weight.append(target.weight / total / count)
                task.append(number)
        return {**collate(rows, self.pad), "weight": torch.tensor(weight), "task": torch.tensor(task)}
