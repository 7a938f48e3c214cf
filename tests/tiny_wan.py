"""The tiny Wan of the conformance kit, under the name by which tests ask for it."""

from distill.testing.tiny_wan import TOKENS, VIDEO, WORDS, build, text_encoder, tokenizer, transformer, vae

__all__ = ["TOKENS", "VIDEO", "WORDS", "build", "text_encoder", "tokenizer", "transformer", "vae"]
