"""What the training loop asks of a selector; anything of this shape can be plugged in."""

from __future__ import annotations

from typing import Protocol

import torch

from winnow.selection import Selection
from winnow.signals import Needs, Signals


class Selector(Protocol):
    """Chooses from a pool what to train on. A selector with state also has state_dict and load_state_dict."""

    @property
    def needs(self) -> Needs:
        """What has to be computed before it can choose."""

    def __call__(self, signals: Signals, generator: torch.Generator | None = None) -> Selection:
        """Choose.

        Args:
            signals: what was asked for in ``needs``.
            generator: the only source of randomness a selector may use.

        Returns:
            Candidates kept, with weights.
        """
