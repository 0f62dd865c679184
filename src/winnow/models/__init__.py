"""Causal language models and tokenizers from Hugging Face, with LoRA through peft."""

from winnow.models.bpe import train_tokenizer
from winnow.models.loading import LanguageModel, from_config, load, tiny_path

__all__ = ["LanguageModel", "from_config", "load", "tiny_path", "train_tokenizer"]
