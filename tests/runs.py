"""Small worlds for tests of the training loop: a corpus, a tokenizer and a model that need no file."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from typing import Any

import lightning
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from winnow.data import Corpus, Example, SelectionDataModule, Target
from winnow.models import train_tokenizer
from winnow.scorer import Scorer
from winnow.training.module import SelectionModule


class Listed:
    """A finite stream over a list."""

    def __init__(self, examples: list[Example]) -> None:
        self.examples, self.size = examples, len(examples)

    def __getitem__(self, index: int) -> Example:
        return self.examples[index]


def example(number: int, source: str = "sums") -> Example:
    rng = random.Random(number)
    a, b = rng.randrange(20), rng.randrange(20)
    return Example(
        f"{source}-{number}", source, f"What is {a} plus {b}?", f"{a} + {b} = {a + b}. The answer is {a + b}."
    )


def corpus(size: int = 96, targets: int = 1) -> Corpus:
    stream = Listed([example(number) for number in range(size)])
    tasks = [
        Target(
            f"task{number}",
            val=[example(1000 + 100 * number + at) for at in range(10)],
            test=[example(5000 + 100 * number + at) for at in range(6)],
            score=lambda text, e: float(text.strip() == e.response),
        )
        for number in range(targets)
    ]
    return Corpus(stream, tasks)


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer([f"{e.prompt}\n{e.response}" for e in map(example, range(200))], 300)


def model(dropout: float = 0.0, seed: int = 0, **options: Any) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer()) + 1,  # the last id is in no text, for tests to poison
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        attention_dropout=dropout,
        max_position_embeddings=128,
        eos_token_id=tokenizer().eos_token_id,
        pad_token_id=tokenizer().pad_token_id,
        bos_token_id=None,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM._from_config(config, **options)


def datamodule(**options: Any) -> SelectionDataModule:
    settings: dict[str, Any] = {"pool_size": 8, "target_batch_size": 4, "max_length": 64, "seed": 3}
    world = options.pop("corpus", None) or corpus()
    return SelectionDataModule(world, tokenizer(), **{**settings, **options})


def module(network: torch.nn.Module, selector: Any, **options: Any) -> SelectionModule:
    scoring = {
        name: options.pop(name) for name in ("layers", "target_ema", "on_target_nan", "every") if name in options
    }
    settings: dict[str, Any] = {
        "scorer": lambda model, optimizer: Scorer(model, optimizer, **scoring),
        "optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=1e-2),
        "seed": 3,
    }
    return SelectionModule(network, selector, **{**settings, **options})


def trainer(steps: int = 4, **options: Any) -> lightning.Trainer:
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": steps,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
    }
    return lightning.Trainer(**{**settings, **options})


def fit(selector: Any, steps: int = 4, before: Callable[[SelectionModule], None] | None = None, **options: Any) -> Any:
    """Train the small model with a selector; gives the module back."""
    network = options.pop("network", None) or model(dropout=options.pop("dropout", 0.0))
    data = options.pop("data", None) or datamodule()
    names = (
        "precision",
        "max_epochs",
        "val_check_interval",
        "limit_val_batches",
        "callbacks",
        "check_val_every_n_epoch",
    )
    run = trainer(steps, **{name: options.pop(name) for name in names if name in options})
    built = module(network, selector, **options)
    if before is not None:
        before(built)
    run.fit(built, data)
    return built
