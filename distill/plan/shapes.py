"""The tensors of the families' networks, by name, from their config.json alone: what meta modules would say."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from ..errors import UserError
from ..places import Lora

Shapes = dict[str, tuple[int, ...]]
FREQUENCIES = 256  # of HunyuanVideo's embeddings of noise level and guidance; Wan's config says its own


@dataclass(frozen=True)
class Block:
    """One kind of transformer block.

    Attributes:
        count: so many of them.
        prefix: names of their tensors begin with it, and a number.
        shapes: of the tensors of one.
    """

    count: int
    prefix: str
    shapes: Shapes

    @property
    def parameters(self) -> int:
        return numel(self.shapes)


@dataclass(frozen=True)
class Network:
    """A velocity network, as large as its config says.

    Attributes:
        width: d, channels of what a block returns.
        feed_forward: channels inside a block's feed-forward layers.
        patch: (frames, height, width) of a token, in latents.
        outer: tensors outside the blocks.
        spared: parts of names that stay in float32 where the network is stored in bf16.
        time: the embedding that is doubled where the network is told where steps end (teachers/ends.py).
    """

    family: str
    width: int
    heads: int
    feed_forward: int
    patch: tuple[int, int, int]
    channels: tuple[int, int]
    blocks: tuple[Block, ...]
    outer: Shapes
    spared: frozenset[str]
    time: str

    @cached_property
    def shapes(self) -> Shapes:
        """Of every tensor."""
        inner = {
            f"{block.prefix}.{i}.{name}": shape
            for block in self.blocks
            for i in range(block.count)
            for name, shape in block.shapes.items()
        }
        return self.outer | inner

    @cached_property
    def parameters(self) -> int:
        return numel(self.shapes)

    @property
    def depth(self) -> int:
        return sum(block.count for block in self.blocks)

    @property
    def largest_block(self) -> int:
        return max(block.parameters for block in self.blocks)

    @property
    def ends(self) -> int:
        """Parameters that it gains where it is told where steps end."""
        return numel({name: shape for name, shape in self.outer.items() if name.startswith(f"{self.time}.")})

    @cached_property
    def kept_in_float32(self) -> int:
        """Parameters that are float32 where the others are bf16."""
        return numel({name: shape for name, shape in self.shapes.items() if self.spared & set(name.split("."))})

    def adapters(self, lora: Lora) -> int:
        """Parameters of one set of adapters; UserError if a target is not there."""
        ends = lora.targets and tuple(f".{target}" for target in lora.targets)
        for end in ends or ():
            if not any(f".{name}".endswith(end) for name, _ in self._linear(self.shapes)):
                raise UserError(f"lora.targets: {end[1:]!r} is the end of no linear layer's name in {self.family}")
        inside = tuple(f"{block.prefix}." for block in self.blocks)
        return sum(
            lora.rank * sum(shape)
            for name, shape in self._linear(self.shapes)
            if (f".{name}".endswith(ends) if ends else name.startswith(inside))
        )

    def linear(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and (out, in) of every linear layer."""
        return self._linear(self.shapes)

    @staticmethod
    def _linear(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...]]]:
        for name, shape in shapes.items():
            if len(shape) == 2 and name.endswith(".weight"):
                yield name.removesuffix(".weight"), shape


def network(family: str, config: Mapping) -> Network:
    """UserError if the plan does not know the family, or the config lacks a size."""
    if family not in FAMILIES:
        raise UserError(f"teacher.family: the plan knows the shapes of {', '.join(FAMILIES)}, not of {family}")
    try:
        return FAMILIES[family](config)
    except KeyError as error:
        raise UserError(f"teacher: transformer/config.json of a {family} has no {error}") from error


def numel(shapes: Shapes) -> int:
    return sum(map(math.prod, shapes.values()))


def _wan(config: Mapping) -> Network:
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d, f = heads * head, config["ffn_dim"]
    patch = tuple(config.get("patch_size", (1, 2, 2)))
    channels = config["in_channels"], config.get("out_channels") or config["in_channels"]
    embedder = "condition_embedder"
    return Network(
        family="wan",
        width=d,
        heads=heads,
        feed_forward=f,
        patch=patch,
        channels=channels,
        blocks=(Block(config["num_layers"], "blocks", _wan_block(d, f, config)),),
        outer={
            **_weight("patch_embedding", d, channels[0], *patch),
            **_linear(f"{embedder}.time_embedder.linear_1", config["freq_dim"], d),
            **_linear(f"{embedder}.time_embedder.linear_2", d, d),
            **_linear(f"{embedder}.time_proj", d, 6 * d),
            **_linear(f"{embedder}.text_embedder.linear_1", config["text_dim"], d),
            **_linear(f"{embedder}.text_embedder.linear_2", d, d),
            **_wan_image(f"{embedder}.image_embedder", d, config),
            **_linear("proj_out", d, channels[1] * math.prod(patch)),
            "scale_shift_table": (1, 2, d),
        },
        spared=frozenset({"time_embedder", "scale_shift_table", "norm1", "norm2", "norm3"}),
        time=f"{embedder}.time_embedder",
    )


def _wan_block(d: int, f: int, config: Mapping) -> Shapes:
    shapes: Shapes = {"scale_shift_table": (1, 6, d)}
    for attention in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v", "to_out.0"):
            shapes |= _linear(f"{attention}.{name}", d, d)
        shapes |= {f"{attention}.norm_q.weight": (d,), f"{attention}.norm_k.weight": (d,)}
    if added := config.get("added_kv_proj_dim"):
        shapes |= _linear("attn2.add_k_proj", added, d) | _linear("attn2.add_v_proj", added, d)
        shapes["attn2.norm_added_k.weight"] = (d,)
    if config.get("cross_attn_norm", True):
        shapes |= _norm("norm2", d)
    return shapes | _linear("ffn.net.0.proj", d, f) | _linear("ffn.net.2", f, d)


def _wan_image(name: str, d: int, config: Mapping) -> Shapes:
    if not (image := config.get("image_dim")):
        return {}
    length = config.get("pos_embed_seq_len")
    return {
        **_norm(f"{name}.norm1", image),
        **_linear(f"{name}.ff.net.0.proj", image, image),
        **_linear(f"{name}.ff.net.2", image, d),
        **_norm(f"{name}.norm2", d),
        **({f"{name}.pos_embed": (1, length, image)} if length else {}),
    }


def _hunyuan(config: Mapping) -> Network:
    heads, head = config["num_attention_heads"], config["attention_head_dim"]
    d = heads * head
    f = int(d * config.get("mlp_ratio", 4.0))
    side, text = config.get("patch_size", 2), config["text_embed_dim"]
    patch = config.get("patch_size_t", 1), side, side
    channels = config["in_channels"], config.get("out_channels") or config["in_channels"]
    refiner = "context_embedder"
    guidance = _embedding("time_text_embed.guidance_embedder", FREQUENCIES, d)
    return Network(
        family="hunyuan_video",
        width=d,
        heads=heads,
        feed_forward=f,
        patch=patch,
        channels=channels,
        blocks=(
            Block(config["num_layers"], "transformer_blocks", _hunyuan_dual(d, f, head)),
            Block(config["num_single_layers"], "single_transformer_blocks", _hunyuan_single(d, f, head)),
        ),
        outer={
            **_weight("x_embedder.proj", d, channels[0], *patch),
            **_embedding(f"{refiner}.time_text_embed.timestep_embedder", FREQUENCIES, d),
            **_embedding(f"{refiner}.time_text_embed.text_embedder", text, d),
            **_linear(f"{refiner}.proj_in", text, d),
            **{
                f"{refiner}.token_refiner.refiner_blocks.{i}.{name}": shape
                for i in range(config["num_refiner_layers"])
                for name, shape in _hunyuan_refiner(d).items()
            },
            **_embedding("time_text_embed.timestep_embedder", FREQUENCIES, d),
            **_embedding("time_text_embed.text_embedder", config["pooled_projection_dim"], d),
            **(guidance if config.get("guidance_embeds", True) else {}),
            **_linear("norm_out.linear", d, 2 * d),
            **_linear("proj_out", d, channels[1] * math.prod(patch)),
        },
        spared=frozenset({"timestep_embedder", "guidance_embedder"}),
        time="time_text_embed.timestep_embedder",
    )


def _hunyuan_dual(d: int, f: int, head: int) -> Shapes:
    """A block with weights of its own for the text beside those for the video."""
    shapes = _linear("norm1.linear", d, 6 * d) | _linear("norm1_context.linear", d, 6 * d)
    projections = ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
    for name in projections:
        shapes |= _linear(f"attn.{name}", d, d)
    shapes |= {f"attn.{norm}.weight": (head,) for norm in ("norm_q", "norm_k", "norm_added_q", "norm_added_k")}
    for name in ("ff", "ff_context"):
        shapes |= _linear(f"{name}.net.0.proj", d, f) | _linear(f"{name}.net.2", f, d)
    return shapes


def _hunyuan_single(d: int, f: int, head: int) -> Shapes:
    """A block that treats tokens of the text and of the video alike."""
    shapes = _linear("norm.linear", d, 3 * d)
    for name in ("to_q", "to_k", "to_v"):
        shapes |= _linear(f"attn.{name}", d, d)
    shapes |= {"attn.norm_q.weight": (head,), "attn.norm_k.weight": (head,)}
    return shapes | _linear("proj_mlp", d, f) | _linear("proj_out", d + f, d)


def _hunyuan_refiner(d: int) -> Shapes:
    shapes = _norm("norm1", d) | _norm("norm2", d)
    for name in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= _linear(f"attn.{name}", d, d)
    shapes |= _linear("ff.net.0.proj", d, 4 * d) | _linear("ff.net.2", 4 * d, d)
    return shapes | _linear("norm_out.linear", d, 2 * d)


def _weight(name: str, *shape: int) -> Shapes:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _linear(name: str, inner: int, outer: int) -> Shapes:
    return _weight(name, outer, inner)


def _norm(name: str, d: int) -> Shapes:
    return _weight(name, d)


def _embedding(name: str, inner: int, d: int) -> Shapes:
    return _linear(f"{name}.linear_1", inner, d) | _linear(f"{name}.linear_2", d, d)


FAMILIES: dict[str, Callable[[Mapping], Network]] = {"wan": _wan, "wan_i2v": _wan, "hunyuan_video": _hunyuan}
