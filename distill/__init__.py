"""Distil video diffusion models into students of a few steps."""

__version__ = "0.1.0"

INTERFACE = 1
"""Version of what a method is (distill/method.py): it rises when methods that were written before stop working."""
