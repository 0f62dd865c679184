"""Online data selection for LLM fine-tuning: choose and weigh training examples at every step.

The core is pure and needs neither Lightning nor Hydra: a :class:`Scorer` turns a pool, a target batch
and the optimizer's state into :class:`Signals`; a selector such as :class:`FilterWeight` turns those into a
:class:`Selection`; ``Scorer.assign_update`` or :func:`weighted_backward` turns that into gradients.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from winnow.version import __version__

if TYPE_CHECKING:
    from winnow.geometry import UnknownOptimizer
    from winnow.gradients.capture import CaptureError
    from winnow.gradients.verify import GradientMismatch
    from winnow.lm.packing import PackingError
    from winnow.scorer import Scorer, TargetNotFinite
    from winnow.scorer.update import weighted_backward
    from winnow.selection import Selection
    from winnow.selectors import FilterWeight, Selector
    from winnow.signals import Needs, Signals
else:
    # A process that only checks rows (winnow.data.helpers) must not load PyTorch, which takes most of its memory.
    _LATER = {
        "UnknownOptimizer": "geometry",
        "CaptureError": "gradients.capture",
        "GradientMismatch": "gradients.verify",
        "PackingError": "lm.packing",
        "Scorer": "scorer",
        "TargetNotFinite": "scorer",
        "weighted_backward": "scorer.update",
        "Selection": "selection",
        "FilterWeight": "selectors",
        "Selector": "selectors",
        "Needs": "signals",
        "Signals": "signals",
    }

    def __getattr__(name: str) -> Any:
        if name not in _LATER:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)


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
