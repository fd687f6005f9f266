"""The drawn world, the small model that was trained on it, and the run that shows what the Tuner does."""
