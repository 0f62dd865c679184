"""What lies in a run's folder, and how it is written: whole or not at all."""
