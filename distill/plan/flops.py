"""Floating-point operations of one evaluation, two for each product: linear layers, the patch embedding, attention."""

import math
from dataclasses import dataclass

from .activations import Tokens
from .shapes import Network

ONCE = ("time_embedder", "time_proj", "timestep_embedder", "guidance_embedder", "time_text_embed", "norm_out.linear")
TEXT = {  # parts of names of layers that see the text's tokens alone
    "wan": ("attn2.to_k", "attn2.to_v", "attn2.add_", "text_embedder", "image_embedder"),
    "hunyuan_video": ("attn.add_", "to_add_out", "ff_context", "context_embedder"),
}
MODULATION = ("norm.linear", "norm1.linear", "norm1_context.linear")  # of HunyuanVideo's blocks: once a block


@dataclass(frozen=True)
class Work:
    """Of one sample.

    Attributes:
        forward: all of a forward pass.
        attention: of it, what selective checkpointing does not compute again.
    """

    forward: float
    attention: float


def of(net: Network, tokens: Tokens) -> Work:
    matrices = sum(2 * math.prod(shape) * _times(net, name, tokens) for name, shape in net.linear())
    patches = 2 * math.prod(net.patch) * net.channels[0] * net.width * tokens.video
    over_text = 4 * net.depth * tokens.video * tokens.text * net.width if net.family == "wan" else 0
    attention = float(_attention(net, tokens))
    return Work(matrices + patches + attention + over_text, attention)


def _times(net: Network, name: str, tokens: Tokens) -> int:
    """How many tokens a layer sees."""
    if any(part in name for part in TEXT[net.family]) and not name.endswith(MODULATION):
        return 1 if any(part in name for part in ONCE) else tokens.text
    if any(part in name for part in ONCE) or name.endswith(MODULATION):
        return 1
    joint = net.family == "hunyuan_video" and name.startswith("single_")
    return tokens.video + (tokens.text if joint else 0)


def _attention(net: Network, tokens: Tokens) -> int:
    """Queries times keys, and weights times values, of each block's attention over all its tokens."""
    if net.family == "wan":
        return 4 * net.depth * tokens.video**2 * net.width
    return 4 * net.depth * (tokens.video + tokens.text) ** 2 * net.width
