"""Evaluation on target tasks: answer NLL, and exact match by greedy generation."""

from winnow.evaluation.evaluate import evaluate
from winnow.evaluation.generation import accuracy, generate
from winnow.evaluation.nll import answer_nll

__all__ = ["accuracy", "answer_nll", "evaluate", "generate"]
