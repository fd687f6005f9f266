"""The Tuner: fine-tunes Stable Diffusion 1.5, inside AUTOMATIC1111's WebUI and without it."""

__version__ = "0.1.0"
