"""Per-example gradients of one parameter, kept as factors."""
