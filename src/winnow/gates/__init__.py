"""Gates: stage 0, which raw candidates of a step are worth scoring, learned from the scores of earlier steps.

Texts and tensors in, positions out; no Lightning, no Hydra. ``LinearGate`` is the gate, ``NGrams``, ``Embeddings`` and
``Fields`` are what it can see of a candidate.
"""

from winnow.gates.base import Draw, Gate, Passed
from winnow.gates.cadence import Cadence, Calibration
from winnow.gates.coverage import Coverage
from winnow.gates.features import Candidate, Embedded, Embeddings, Features, Fields, NGrams
from winnow.gates.linear import LinearGate
from winnow.gates.ridge import OnlineRidge

__all__ = [
    "Cadence",
    "Calibration",
    "Candidate",
    "Coverage",
    "Draw",
    "Embedded",
    "Embeddings",
    "Features",
    "Fields",
    "Gate",
    "LinearGate",
    "NGrams",
    "OnlineRidge",
    "Passed",
]
