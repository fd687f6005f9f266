"""Stable Diffusion 1.5 in the original checkpoint's layout, and the mathematics around it. Knows nothing of settings, hosts or methods."""
