"""Distillation methods, one file each; found by the registry through the entry points `distill.methods`."""
