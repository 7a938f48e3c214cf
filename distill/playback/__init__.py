"""What travels with an exported student that stock diffusers cannot play: files that its folder gets copies of.

They import torch and diffusers alone, and are loaded with `trust_remote_code=True`.
"""
