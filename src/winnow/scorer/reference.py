"""Losses of candidates under a reference model, computed or read from a file (scoring.reference)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

from winnow.lm.forward import Forward
from winnow.lm.layout import Batch, response_tokens
from winnow.lm.losses import example_losses
from winnow.lm.passes import FORWARD, Pass
from winnow.records.table import TABLES, read_table


class ReferenceModel:
    """A second, frozen causal language model that reads the same token ids.

    Args:
        model: the reference model; put into evaluation mode.
    """

    def __init__(self, model: nn.Module) -> None:
        self.forward = Forward(model.eval().requires_grad_(False))

    def __call__(self, pool: Batch, ids: Sequence[str] | None, reduction: str = "mean") -> Float[Tensor, " pool"]:
        """Losses of a pool.

        Args:
            pool: the candidates.
            ids: unused.
            reduction: ``mean`` | ``sum`` over an example's response tokens.

        Returns:
            One loss per candidate, NaN where it has no response token.
        """
        self.forward.model.to(pool["input_ids"].device)
        self.forward.passes[:] = [Pass.of(pool, FORWARD)]
        with torch.no_grad():
            return example_losses(self.forward.model, pool, reduction)


class ReferenceTable:
    """Losses by id, computed before.

    Args:
        losses: loss by id: the mean over response tokens, in nats.
        where: the file, for messages.
    """

    def __init__(self, losses: dict[str, float], where: str) -> None:
        self.losses, self.where = losses, where

    def __call__(self, pool: Batch, ids: Sequence[str] | None, reduction: str = "mean") -> Float[Tensor, " pool"]:
        """Losses of a pool.

        Args:
            pool: the candidates.
            ids: their ids.
            reduction: with ``sum`` the means are multiplied by the numbers of response tokens.

        Returns:
            One loss per candidate.

        Raises:
            ValueError: the ids are not known, or losses of some of them are missing.
        """
        if ids is None:
            raise ValueError(f"scoring.reference={self.where} holds losses by id, and the pool's ids were not given")
        missing = [name for name in ids if name not in self.losses]
        if missing:
            raise ValueError(
                f"scoring.reference={self.where} has no loss for {len(missing)} of the {len(ids)} candidates of this "
                f"pool ({', '.join(missing[:3])}): it must cover the whole stream"
            )
        found = torch.tensor([self.losses[name] for name in ids], device=pool["input_ids"].device)
        return found * response_tokens(pool) if reduction == "sum" else found


class Reference:
    """The reference that ``scoring.reference`` names, loaded when it is first asked for.

    Args:
        name: see :func:`load_reference`; None for none.
        model: the model being trained.
    """

    def __init__(self, name: str | None, model: nn.Module) -> None:
        self.name, self._model = name, model
        self._loaded: ReferenceModel | ReferenceTable | None = None

    @property
    def by_id(self) -> bool:
        """Whether losses are looked up, and no model is run."""
        return self.name is not None and Path(self.name).suffix in TABLES

    @property
    def forward(self) -> Forward | None:
        """The reference model's, once it was asked for; None for a file of losses."""
        return self._loaded.forward if isinstance(self._loaded, ReferenceModel) else None

    def __call__(self, pool: Batch, ids: Sequence[str] | None, reduction: str = "mean") -> Float[Tensor, " pool"]:
        """Losses of a pool.

        Args:
            pool: the candidates.
            ids: their ids.
            reduction: ``mean`` | ``sum`` over an example's response tokens.

        Returns:
            One loss per candidate.

        Raises:
            ValueError: none is named, or it does not cover the pool.
        """
        if self.name is None:
            raise ValueError(
                "the selector compares with a reference model and none is named: set scoring.reference to a model's "
                "folder or Hugging Face name, or to a file of losses by id (.parquet, .csv, .jsonl)"
            )
        if self._loaded is None:
            self._loaded = load_reference(self.name, self._model)
        return self._loaded(pool, ids, reduction)


def load_reference(reference: str, model: nn.Module) -> ReferenceModel | ReferenceTable:
    """The reference that ``scoring.reference`` names.

    Args:
        reference: a file with columns ``id`` and ``loss`` (.parquet, .csv, .jsonl), a model's folder, or its
            Hugging Face name.
        model: the model being trained; the reference must have its vocabulary, and gets its precision.

    Returns:
        A function of pool, ids and reduction.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the file lacks a column or has two losses for an id, or the vocabularies differ.
    """
    if Path(reference).suffix in TABLES:
        return ReferenceTable(_read(reference), reference)
    return ReferenceModel(load_second(reference, model, "scoring.reference"))


def load_second(name: str, model: nn.Module, key: str) -> nn.Module:
    """A second model that reads the token ids of the one that is trained, in its precision.

    Args:
        name: its folder or Hugging Face name.
        model: the model being trained.
        key: config key that names it, for messages.

    Returns:
        The second model.

    Raises:
        FileNotFoundError: there is no such model.
        ValueError: the vocabularies differ.
    """
    from winnow.models.loading import load  # only here is a model loaded by the scorer

    # Of a quantised model, whose other parameters are no floating-point numbers.
    precise = next(held.dtype for held in model.parameters() if held.is_floating_point())
    dtype = str(precise).removeprefix("torch.")
    try:
        other: nn.Module = load(name, dtype=dtype).model
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(str(error).replace("model.path", key)) from error
    check_same_vocabulary(model, other, f"{key}={name}")
    return other


def check_same_vocabulary(model: nn.Module, other: nn.Module, what: str) -> None:
    """Refuse a second model that cannot read the token ids of the first.

    Args:
        model: the model being trained.
        other: the second.
        what: to call it in messages.

    Raises:
        ValueError: the vocabularies differ.
    """
    sizes = [len(one.get_input_embeddings().weight) for one in (model, other)]  # type: ignore[operator]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{what} has a vocabulary of {sizes[1]} tokens and the model one of {sizes[0]}: it reads the model's token "
            "ids, so it must share its tokenizer"
            + ("; or give a file of losses by id" if what.startswith("scoring.reference") else "")
        )


def _read(path: str) -> dict[str, float]:
    table = read_table(path, "scoring.reference", ("id", "loss"))
    if "valid" in table.columns:  # of winnow.score: a candidate that has no loss is known to have none
        known = table[["id", "loss"]]
    else:
        known = table[["id", "loss"]].dropna()
    known = known.drop_duplicates()
    twice = known["id"][known["id"].duplicated()]
    if len(twice):
        raise ValueError(
            f"scoring.reference={path} has different losses for {len(set(twice))} ids ({twice.iloc[0]}): the ledger "
            "of a run that trained is no table of reference losses"
        )
    return dict(zip(known["id"], known["loss"].astype(float), strict=True))
