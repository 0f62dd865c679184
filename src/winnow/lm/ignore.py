"""The label of a token that carries no loss."""

IGNORE = -100
"""As torch's cross entropy has it."""
