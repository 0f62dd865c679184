"""Speed and memory of selecting and updating, against plain training over the same examples."""
