"""Distil video diffusion models into students of a few steps."""

__version__ = "0.1.0"
