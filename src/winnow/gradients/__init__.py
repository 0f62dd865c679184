"""What a batch says about the parameters, per example, as factors."""

from winnow.gradients.capture import Capture
from winnow.gradients.factors import Dense, Factor, Scaled, Scatter, Sum
from winnow.gradients.outer_product import OuterProduct

__all__ = ["Capture", "Dense", "Factor", "OuterProduct", "Scaled", "Scatter", "Sum"]
