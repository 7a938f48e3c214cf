"""A HunyuanVideoPipeline folder with HunyuanVideo's own layer names and random weights, 700 kB, for tests."""

import re
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    FlowMapEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from diffusers.pipelines.hunyuan_video.pipeline_hunyuan_video import DEFAULT_PROMPT_TEMPLATE
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "a", "red", "blue", "circle", "square", "moves", "left", "right", "."]
VIDEO = {"frames": 5, "height": 32, "width": 48}
TOKENS = 8  # of the prompt, and one that the template has behind it
PIECES = r"<\|\w+\|>|\w+|[^\w\s]"  # the template's tags, words, full stops
DUAL, SINGLE = 2, 3  # blocks
PUBLISHED = {  # transformer/config.json of the 13 B model
    "num_attention_heads": 24,
    "attention_head_dim": 128,
    "num_layers": 20,
    "num_single_layers": 40,
    "num_refiner_layers": 2,
    "mlp_ratio": 4.0,
    "text_embed_dim": 4096,
    "pooled_projection_dim": 768,
    "rope_axes_dim": (16, 56, 56),
    "in_channels": 16,
    "out_channels": 16,
}


def build(folder: Path, shift: float = 7.0, seed: int = 0) -> Path:
    """Write the pipeline and return its folder."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipeline = HunyuanVideoPipeline(
            text_encoder=llama(),
            tokenizer=llama_tokenizer(),
            transformer=transformer(),
            vae=vae(),
            scheduler=FlowMapEulerDiscreteScheduler(shift=shift),
            text_encoder_2=clip(),
            tokenizer_2=tokenizer("<s> $A </s>", 77),
        )
    pipeline.save_pretrained(folder)
    return folder


def llama_tokenizer() -> PreTrainedTokenizerFast:
    """Of as many tokens before the prompt as the pipeline cuts off: those of the template, filled up with <s>."""
    before = DEFAULT_PROMPT_TEMPLATE["template"].split("{}")[0]
    missing = DEFAULT_PROMPT_TEMPLATE["crop_start"] - len(re.findall(PIECES, before))
    return tokenizer("<s> " * missing + "$A", TOKENS)


def tokenizer(template: str, longest: int) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Split(Regex(PIECES), "removed", invert=True)
    special = [("<s>", 1), ("</s>", 2)]
    words.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        model_max_length=longest,
    )


def llama() -> LlamaModel:
    """Three layers: the pipeline reads what the last but two returns."""
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
    return LlamaModel(LlamaConfig(vocab_size=len(WORDS), pad_token_id=0, initializer_range=0.5, **size)).eval()


def clip() -> CLIPTextModel:
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return CLIPTextModel(CLIPTextConfig(vocab_size=len(WORDS), **size, **tokens)).eval()


def transformer() -> HunyuanVideoTransformer3DModel:
    return HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=DUAL,
        num_single_layers=SINGLE,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        pooled_projection_dim=8,
        rope_axes_dim=(4, 4, 4),
    )


def vae() -> AutoencoderKLHunyuanVideo:
    return AutoencoderKLHunyuanVideo(
        latent_channels=4,
        block_out_channels=(4, 4, 8, 8),
        layers_per_block=1,
        norm_num_groups=2,
    )
