"""What an evaluation keeps for its backward pass, in bytes, by the sizes of a network and of its latents.

The coefficients are exact for the blocks of diffusers 0.42 under the casts of CUDA's autocast, as counted with saved
tensor hooks (tests/test_plan.py counts again). Attention is torch's fused one; its kernels on a GPU, and fused norms,
may keep less. Tokens of the text outside the blocks are left out: hundreds beside tens of thousands.
"""

import math
from dataclasses import dataclass
from typing import Literal

from .shapes import Network

Passes = Literal["trained", "adapted", "frozen"]
"""Whose gradients are wanted: of the weights, of adapters beside them, or of the input alone."""
Precision = Literal["fp32", "bf16"]
Checkpointing = Literal["none", "full", "selective"]

SIZE = {"fp32": 4, "bf16": 2}  # bytes


@dataclass(frozen=True)
class Kept:
    """Bytes per token and: channel (d), feed-forward channel, attention head; per token alone."""

    width: float
    feed_forward: float
    head: float = 0
    token: float = 0

    def per_token(self, net: Network) -> float:
        return self.width * net.width + self.feed_forward * net.feed_forward + self.head * net.heads + self.token


@dataclass(frozen=True)
class Tokens:
    """Of one clip.

    Attributes:
        video, text: numbers of them; the families with blocks for both take them together.
    """

    video: int
    text: int


WAN = {
    ("fp32", "trained"): Kept(88, 8, 8, 36),
    ("fp32", "adapted"): Kept(76, 8, 8, 36),
    ("fp32", "frozen"): Kept(48, 4, 8, 36),
    ("bf16", "trained"): Kept(72, 4, 8, 36),
    ("bf16", "adapted"): Kept(50, 4, 8, 36),
    ("bf16", "frozen"): Kept(36, 2, 8, 36),
}
WAN_TEXT = {  # per token of the text and channel
    ("fp32", "trained"): 16,
    ("fp32", "adapted"): 16,
    ("fp32", "frozen"): 8,
    ("bf16", "trained"): 12,
    ("bf16", "adapted"): 16,
    ("bf16", "frozen"): 4,
}
HUNYUAN_DUAL = {
    ("fp32", "trained"): Kept(64, 8, 12, 20),
    ("fp32", "adapted"): Kept(56, 8, 12, 20),
    ("fp32", "frozen"): Kept(32, 4, 12, 20),
    ("bf16", "trained"): Kept(58, 4, 12, 18),
    ("bf16", "adapted"): Kept(50, 4, 12, 18),
    ("bf16", "frozen"): Kept(28, 2, 12, 18),
}
HUNYUAN_SINGLE = {
    ("fp32", "trained"): Kept(56, 8, 12, 12),
    ("fp32", "adapted"): Kept(48, 8, 12, 12),
    ("fp32", "frozen"): Kept(28, 4, 12, 12),
    ("bf16", "trained"): Kept(48, 4, 12, 10),
    ("bf16", "adapted"): Kept(40, 4, 12, 10),
    ("bf16", "frozen"): Kept(24, 2, 12, 10),
}
OUTSIDE = {  # of the blocks, per token and channel: mostly the last norm, in float32
    ("fp32", "trained"): 12,
    ("fp32", "adapted"): 4,
    ("fp32", "frozen"): 4,
    ("bf16", "trained"): 10,
    ("bf16", "adapted"): 4,
    ("bf16", "frozen"): 4,
}
ROTARY = 8  # bytes per token and channel of a head: cosines and sines, float32
PASSING = {  # without gradients, what a block has at a time: per token and channel, and feed-forward channel
    ("wan", "fp32"): Kept(17, 8),
    ("wan", "bf16"): Kept(25, 2),
    ("hunyuan_video", "fp32"): Kept(41, 6),
    ("hunyuan_video", "bf16"): Kept(33, 2),
}
GOING_BACK = {  # likewise gradients of activations, on top of what a block has kept
    ("wan", "fp32"): Kept(8, 0),
    ("wan", "bf16"): Kept(4, 0),
    ("hunyuan_video", "fp32"): Kept(8, 0),
    ("hunyuan_video", "bf16"): Kept(0, 7.5),  # a concatenation that autocast widens to float32
}
ROW_SUM = 4  # bytes per token and head that attention keeps beside what it returns


@dataclass(frozen=True)
class Activations:
    """Of one sample through one network.

    Attributes:
        held: from the forward pass until the backward pass.
        again: on top of it, while one block is passed backward.
        passing: what a block has at a time without gradients.
    """

    held: float
    again: float
    passing: float


def of(net: Network, tokens: Tokens, precision: Precision, passes: Passes, checkpointing: Checkpointing) -> Activations:
    joint = _joint(net, tokens)
    blocks = [block(net, kind, tokens, precision, passes) for kind in range(len(net.blocks))]
    again = joint * GOING_BACK[net.family, precision].per_token(net)
    if checkpointing == "none":
        inside = sum(kind.count * each for kind, each in zip(net.blocks, blocks, strict=True))
    else:
        again += max(blocks)
        inside = net.depth * SIZE[precision] * joint * net.width
    if checkpointing == "selective":
        inside += net.depth * joint * (SIZE[precision] * net.width + ROW_SUM * net.heads)  # teachers/attention.py
    passing = joint * PASSING[net.family, precision].per_token(net) + tokens.video * _rotary(net)
    return Activations(inside + outside(net, tokens, precision, passes), again, passing)


def block(net: Network, kind: int, tokens: Tokens, precision: Precision, passes: Passes) -> float:
    """What one block keeps without checkpointing, of the network's first or second kind."""
    if net.family == "wan":
        text = WAN_TEXT[precision, passes] * tokens.text * net.width
        return tokens.video * WAN[precision, passes].per_token(net) + text
    table = (HUNYUAN_DUAL, HUNYUAN_SINGLE)[kind]
    return _joint(net, tokens) * table[precision, passes].per_token(net)


def outside(net: Network, tokens: Tokens, precision: Precision, passes: Passes) -> float:
    """What is kept before and after the blocks: latents, the rotary embedding, the last norm and its row sums."""
    latents = SIZE[precision] * net.channels[0] * math.prod(net.patch)
    return tokens.video * (OUTSIDE[precision, passes] * net.width + _rotary(net) + latents + 8)


def _rotary(net: Network) -> float:
    return ROTARY * net.width / net.heads


def _joint(net: Network, tokens: Tokens) -> int:
    """Tokens that run through the blocks: Wan only looks at the text, HunyuanVideo takes it along."""
    return tokens.video + (0 if net.family == "wan" else tokens.text)
