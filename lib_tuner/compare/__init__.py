"""Comparison of saved steps."""
