"""The model of a run, held against what the run asks of it."""

from __future__ import annotations

from omegaconf import DictConfig

from winnow.models import LanguageModel
from winnow.models.fits import check_length, check_trainable
from winnow.run.instantiate import blaming, build


def language_of(cfg: DictConfig) -> LanguageModel:
    """Load the model, and refuse what the data or the optimizer would stumble over.

    Args:
        cfg: the composed configuration.

    Returns:
        Model and tokenizer.

    Raises:
        BuildError: it cannot be loaded, nothing of it is trained, or ``data.max_length`` is more than its positions.
    """
    language: LanguageModel = build(cfg.model)
    path = str(cfg.model.get("path") or cfg.model.get("_target_"))
    with blaming("model"):
        check_trainable(path, language.model)
        if cfg.data.get("max_length") is not None:
            check_length(path, language.model, int(cfg.data.max_length))
    return language
