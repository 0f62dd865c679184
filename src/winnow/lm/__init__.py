"""A token batch and one forward of a language model: losses, hidden states, layouts."""
