"""Online data selection for LLM fine-tuning: choose and weigh training examples at every step.

The core is pure and needs neither Lightning nor Hydra: a :class:`Scorer` turns a pool, a target batch
and the optimizer's state into :class:`Signals`; a selector such as :class:`FilterWeight` turns those into a
:class:`Selection`; ``Scorer.assign_update`` or :func:`weighted_backward` turns that into gradients.
"""

from winnow.geometry import UnknownOptimizer
from winnow.gradients.capture import CaptureError
from winnow.gradients.verify import GradientMismatch
from winnow.lm.packing import PackingError
from winnow.scorer import Scorer, TargetNotFinite
from winnow.scorer.update import weighted_backward
from winnow.selection import Selection
from winnow.selectors import FilterWeight, Selector
from winnow.signals import Needs, Signals
from winnow.version import __version__

__all__ = [
    "CaptureError",
    "FilterWeight",
    "GradientMismatch",
    "Needs",
    "PackingError",
    "Scorer",
    "Selection",
    "Selector",
    "Signals",
    "TargetNotFinite",
    "UnknownOptimizer",
    "__version__",
    "weighted_backward",
]
