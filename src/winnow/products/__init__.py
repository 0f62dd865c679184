"""Inner products of per-example gradients under P: K, b and norms."""
