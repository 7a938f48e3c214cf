"""The teacher's transformer: a small WanTransformer3DModel whose attention heads start out looking at places."""

import math

import torch
from diffusers import WanTransformer3DModel

from .text import DIM as TEXT_DIM

ANY = None
# Per block and head: the offset in (frames, rows, columns) at which a head looks first; ANY leaves an axis free.
PLACES = (
    ((0, 0, 0), (0, 0, ANY), (0, ANY, 0), (ANY, 0, 0)),
    ((-1, 0, 0), (1, 0, 0), (0, ANY, ANY), (ANY, ANY, ANY)),
    ((0, 1, 0), (0, -1, 0), (0, 0, 1), (0, 0, -1)),
    ((ANY, 0, 0), (0, ANY, ANY), (ANY, ANY, ANY), (ANY, ANY, ANY)),
    ((0, ANY, ANY), (ANY, 0, 0), (ANY, ANY, ANY), (ANY, ANY, ANY)),
)
GAIN = 3.0  # of the query and key norms where a head looks at a place


def build(layers: int, dim: int, heads: int, ffn_dim: int, channels: int) -> WanTransformer3DModel:
    network = WanTransformer3DModel(
        num_attention_heads=heads,
        attention_head_dim=dim // heads,
        in_channels=channels,
        out_channels=channels,
        text_dim=TEXT_DIM,
        freq_dim=128,
        ffn_dim=ffn_dim,
        num_layers=layers,
        rope_max_seq_len=64,
    )
    torch.nn.init.zeros_(network.proj_out.weight)
    torch.nn.init.zeros_(network.proj_out.bias)
    look_at_places(network)
    return network


@torch.no_grad()
def look_at_places(network: WanTransformer3DModel) -> None:
    """Make heads prefer relative positions, through the biases of queries and keys alone.

    The fastest rotary pair of each axis turns by 1 radian a position, so a constant query (cos o, sin o) meets a
    constant key (1, 0) best at offset o. Without it heads of this size have to find places by themselves, and the
    teacher had learned neither shapes nor directions after 48 minutes.
    """
    size = network.config.attention_head_dim
    per_side = 2 * (size // 6)
    first = (0, size - 2 * per_side, size - per_side)  # the fastest pair of frames, rows, columns
    for block, places in zip(network.blocks, PLACES, strict=False):
        for head, place in enumerate(places[: network.config.num_attention_heads]):
            for axis, offset in enumerate(place):
                if offset is not ANY:
                    _prefer(block.attn1, head * size + first[axis], offset)


def _prefer(attention: torch.nn.Module, pair: int, offset: int) -> None:
    here = slice(pair, pair + 2)
    for linear, angle in ((attention.to_q, offset), (attention.to_k, 0)):
        linear.weight[here] *= 0.1
        linear.bias[here] = torch.tensor([math.cos(angle), math.sin(angle)])
    for norm in (attention.norm_q, attention.norm_k):
        norm.weight[here] = GAIN
