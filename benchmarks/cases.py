"""What is measured: a case is two callables over one model, one optimizer and the same B + M examples."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from winnow.gates import Candidate, Draw, LinearGate, NGrams
from winnow.lm.batch import pieces
from winnow.lm.losses import example_losses
from winnow.scorer import Scorer
from winnow.scorer.update import weighted_backward
from winnow.selection import Selection
from winnow.selectors import FilterWeight, MaxLoss
from winnow.signals import Needs, Signals


@dataclass(frozen=True)
class Size:
    """Shape of the model; random weights.

    Args:
        hidden: width.
        layers: blocks.
        vocab: tokens.
    """

    hidden: int = 256
    layers: int = 6
    vocab: int = 4096


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        name: of the case.
        bar: the ratio it should not exceed, or None.
        pool: candidates B.
        target: target examples M.
        keep: candidates kept, k.
        tokens: padded length T; no padding and a loss at every token.
        optimizer: ``adamw`` | ``adafactor``.
        lora: rank of an adapter on every linear map; None trains everything.
        match: of the selector.
        forward_only: selects by loss and updates by a second pass.
        brute: scores by a backward per example, with no update, in place of selecting.
        micro: examples that go through the model at a time, on both sides; None for all.
        scoring: options of the scorer.
        period: behind a gate, of whose 4 B raw candidates a pool is scored at every so many steps and the best k are
            trained on in between, against plain training on k candidates at every step; None for no gate.
    """

    name: str
    bar: float | None = None
    pool: int = 16
    target: int = 8
    keep: int = 8
    tokens: int = 256
    optimizer: str = "adamw"
    lora: int | None = None
    match: str = "metric"
    forward_only: bool = False
    brute: bool = False
    micro: int | None = None
    scoring: dict[str, Any] = field(default_factory=dict)
    period: int | None = None

    @property
    def floor(self) -> float | None:
        """Multiplications over those of plain training: forward, backward to inputs, G_i and K, the kept update.

        With no G_i stored: where they are, as where that takes no more memory, the update takes none.
        """
        total, kept = self.pool + self.target, 2 * self.keep
        if self.period is not None:
            scored = 6 * total + 2 * self.pool * self.pool / self.tokens + kept
            return (scored + 6 * self.keep * (self.period - 1)) / (6 * self.keep * self.period)
        if self.brute or self.lora is not None:
            return None
        if self.forward_only:
            return (2 * self.pool + 6 * self.keep) / (6 * total)
        if self.scoring.get("mode") == "sketch":
            # The target's gradient is formed unless P goes into the factors.
            formed = 0 if self.optimizer == "adafactor" else 2 * self.target
            return (4 * total + kept + formed) / (6 * total)
        gram = 2 * self.pool * self.pool / self.tokens
        return (4 * total + 2 * total + gram + kept) / (6 * total)


def cases(quick: bool) -> list[Case]:
    """The table's lines.

    Args:
        quick: fewer examples and tokens, so that all of them take under a minute; bars do not apply.

    Returns:
        The cases.
    """
    sketch = {"mode": "sketch"}
    full = [
        Case("full, exact, AdamW", 1.20),
        Case("full, sketched, Adafactor", 0.92, optimizer="adafactor", scoring=sketch),
        Case("full, sketched, AdamW, match=target", 1.02, match="target", scoring=sketch),
        Case("full, cheaper of exact and ghost, Adafactor", None, optimizer="adafactor", scoring={"mode": "auto"}),
        Case("LoRA r=8, exact, AdamW", 1.05, lora=8),
        Case("max_loss, two passes", (2 * 16 + 6 * 8) / (6 * 24) + 0.05, forward_only=True),
        Case("full, exact, AdamW, T=2048", None, pool=2, target=1, keep=1, tokens=2048),
        Case("LoRA r=8, exact, AdamW, T=2048", None, pool=2, target=1, keep=1, tokens=2048, lora=8),
        Case("brute force: a backward per example", None, brute=True),
        Case("behind a gate, scored at every 8th step", None, keep=4, period=8),
    ]
    if not quick:
        return full
    few: dict[str, Any] = {"pool": 8, "target": 4, "keep": 4, "tokens": 128}
    return [
        replace(case, bar=None, **few)
        if case.tokens < 1000
        else replace(case, bar=None, tokens=512, name=case.name.replace("2048", "512"))
        for case in full
    ]


def gpu_cases() -> list[Case]:
    """What a GPU is asked: B=32, M=8, k=8 at T=512, and at T=4096 a few examples at a time.

    Returns:
        The cases.
    """
    wide: dict[str, Any] = {"pool": 32, "target": 8, "keep": 8, "tokens": 512}
    long: dict[str, Any] = {**wide, "tokens": 4096, "micro": 4}
    sketch: dict[str, Any] = {"match": "target", "scoring": {"mode": "sketch"}}
    return [
        Case("full, exact, AdamW", **wide),
        Case("full, sketched, Adafactor", optimizer="adafactor", scoring={"mode": "sketch"}, **wide),
        Case("full, sketched, AdamW, match=target", **sketch, **wide),
        Case("LoRA r=8, exact, AdamW", lora=8, **wide),
        Case("max_loss, two passes", forward_only=True, **wide),
        Case("full, sketched, AdamW, match=target, T=4096", **sketch, **long),
        Case("LoRA r=8, exact, AdamW, T=4096", lora=8, **long),
    ]


class Bench:
    """A case's model, optimizer and batches, and the two sides to time.

    Args:
        case: the case.
        size: the model's.
        device: where it runs.
        dtype: of the model.
    """

    def __init__(self, case: Case, size: Size, device: torch.device, dtype: torch.dtype) -> None:
        torch.manual_seed(0)
        self.case = case
        config = LlamaConfig(
            vocab_size=size.vocab,
            hidden_size=size.hidden,
            intermediate_size=size.hidden * 11 // 4,
            num_hidden_layers=size.layers,
            num_attention_heads=max(1, size.hidden // 64),
            num_key_value_heads=max(1, size.hidden // 128),
            max_position_embeddings=max(4096, case.tokens),
            tie_word_embeddings=False,
            # The default of 0.02 is for wider models: here attention would be uniform, and its gradients rounding.
            initializer_range=size.hidden**-0.5,
            attn_implementation="sdpa",
        )
        model: nn.Module = LlamaForCausalLM(config).to(device, dtype)
        if case.lora is not None:
            with warnings.catch_warnings():  # peft reads a property that transformers renames
                warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
                model = get_peft_model(model, LoraConfig(r=case.lora, lora_dropout=0.0, target_modules="all-linear"))
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first, which would leave half the gradients zero
                    nn.init.normal_(parameter, std=0.02)
        self.model = model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        kinds = {"adamw": torch.optim.AdamW, "adafactor": torch.optim.Adafactor}
        self.optimizer: torch.optim.Optimizer = kinds[case.optimizer](trained, lr=1e-5)  # type: ignore[operator]
        ids = torch.randint(0, size.vocab, (case.pool + case.target, case.tokens), device=device)
        self.whole = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
        self.pool = {key: value[: case.pool] for key, value in self.whole.items()}
        self.target = {key: value[case.pool :] for key, value in self.whole.items()}
        update = "two_pass" if case.forward_only or case.micro else "one_pass"
        self.scorer = Scorer(self.model, self.optimizer, update=update, pool_micro_batch=case.micro, **case.scoring)
        self.chosen_at = 0.0
        """When the last :meth:`select` had made its choice, by ``perf_counter``."""
        self.selector: Any = (
            MaxLoss(filter_size=case.keep)
            if case.forward_only
            else FilterWeight(filter_size=case.keep, match=case.match)
        )
        self.generator = torch.Generator().manual_seed(0)
        self.gate = LinearGate(NGrams(512))
        self.in_gate = 0.0
        """Seconds of the last :meth:`select` that were the gate's, its features included."""
        if case.period is not None:
            self.draws = [_texts(4 * case.pool, case.tokens * 3 // 4, seed) for seed in range(case.period)]

    def plain(self) -> None:
        """Forward, backward and step over pool and target: the same losses, the same attention."""
        if self.case.period is not None:
            for _ in range(self.case.period):
                self._train(Selection(torch.arange(self.case.keep), torch.ones(self.case.keep)))
            return
        for _, few in pieces(self.whole, self.case.micro):
            (example_losses(self.model, few).sum() / len(self.whole["labels"])).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()

    def select(self) -> None:
        """Score, select, and step on the weighted gradient of k candidates; brute force scores alone."""
        if self.case.brute:
            self._brute()
            return
        if self.case.period is not None:
            self._behind_a_gate(self.case.period)
            return
        self._scored(self.selector.needs)

    def _scored(self, needs: Needs) -> tuple[Signals, Selection]:
        signals = self.scorer(self.pool, self.target, needs)
        selection = self.selector(signals, self.generator)
        if len(selection) != self.case.keep:
            # Of random tokens no candidate may help the target, and the solver keeps one: k are to be paid for.
            assert signals.alignment is not None
            best = signals.alignment.topk(self.case.keep).indices.to(selection.index.device)
            selection = Selection(best.sort().values, selection.weight.new_ones(self.case.keep))
        if self.pool["labels"].is_cuda:
            torch.cuda.synchronize()
        self.chosen_at = perf_counter()
        if self.scorer.holds_update:
            self.scorer.assign_update(selection)
        else:
            weighted_backward(self.model, self.pool, selection, micro_batch=self.case.micro)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return signals, selection

    def _behind_a_gate(self, period: int) -> None:
        """So many steps, the first of them scored; which tokens are trained on makes no difference to their price."""
        self.in_gate = 0.0
        for step in range(period):
            started = perf_counter()
            draw = Draw.of(self.draws[step], self.gate.features)
            if step:
                passed = self.gate.best(draw, self.case.keep, self.generator)
                self.in_gate += perf_counter() - started
                self._train(Selection(torch.arange(len(passed)), torch.ones(len(passed))))
                continue
            passed = self.gate.admit(draw, self.case.pool, self.generator)
            self.in_gate += perf_counter() - started
            signals, selection = self._scored(self.gate.needs(self.selector.needs))
            started = perf_counter()
            self.gate.learn(draw, passed, signals, selection)
            self.gate.metrics()
            self.in_gate += perf_counter() - started

    def _train(self, selection: Selection) -> None:
        weighted_backward(self.model, self.pool, selection, micro_batch=self.case.micro)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _brute(self) -> None:
        """K and b the obvious way: one backward per example, gradients as the rows of a matrix."""
        rows: list[Tensor] = []
        held = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        for at in range(self.case.pool + self.case.target):
            one = {key: value[at : at + 1] for key, value in self.whole.items()}
            grads = torch.autograd.grad(example_losses(self.model, one).sum(), held)
            rows.append(torch.cat([grad.flatten() for grad in grads]))
        g, tau = torch.stack(rows[: self.case.pool]), torch.stack(rows[self.case.pool :]).mean(0)
        states = [self.optimizer.state[parameter]["exp_avg_sq"] for parameter in held]
        p = 1 / (torch.cat([state.flatten() for state in states]).sqrt() + 1e-8)
        scaled = g * p
        scaled @ g.T
        scaled @ tau


@dataclass(frozen=True)
class Text:
    """A raw candidate of random words."""

    prompt: str
    response: str
    source: str = "benchmarks"


def _texts(count: int, words: int, seed: int) -> list[Candidate]:
    drawn = torch.randint(0, 5000, (count, 2, max(words // 2, 1)), generator=torch.Generator().manual_seed(seed))
    return [Text(*(" ".join(_word(one) for one in part) for part in text)) for text in drawn.tolist()]


def _word(number: int) -> str:
    return "".join(chr(97 + int(digit)) for digit in str(number))


def sides(bench: Bench) -> dict[str, Callable[[], None]]:
    """The two sides by name.

    Args:
        bench: a case, set up.

    Returns:
        ``plain`` and ``select``.
    """
    return {"plain": bench.plain, "select": bench.select}
