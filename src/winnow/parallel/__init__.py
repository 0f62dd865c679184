"""One pool over many processes: the same K, b and choice as one process has, to rounding.

Every process has the whole pool's tokens and runs its own rows of it through its own copy of the model. Per-example
gradients go to the process that holds those rows of the parameter, the products of its rows are added up over all,
and every process then solves the same small problem. Nothing in here knows of Lightning.
"""

from winnow.parallel.ranks import Ranks
from winnow.parallel.same import Diverged, check_same
from winnow.parallel.scorer import ParallelScorer
from winnow.parallel.stratified import Stratified

__all__ = ["Diverged", "ParallelScorer", "Ranks", "Stratified", "check_same"]
