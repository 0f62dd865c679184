"""Runs to tables and plots: ``python -m winnow.report RUN RUN --out compare.png``."""

from winnow.report.compare import Comparison, compare
from winnow.report.load import Run, load
from winnow.report.summary import print_summary

__all__ = ["Comparison", "Run", "compare", "load", "print_summary"]
