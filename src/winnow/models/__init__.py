"""Causal language models and tokenizers from Hugging Face, with LoRA through peft."""

from winnow.models.loading import LanguageModel, from_config, load, tiny_path
from winnow.models.tokenizer import train_tokenizer

__all__ = ["LanguageModel", "from_config", "load", "tiny_path", "train_tokenizer"]
