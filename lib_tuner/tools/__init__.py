"""Command-line tools on model files."""
