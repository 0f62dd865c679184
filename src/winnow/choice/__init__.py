"""Pure functions of K and b: who is kept, with what weight."""
