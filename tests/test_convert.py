"""Wan's original layout: a random checkpoint under the original names becomes the pipeline that it was made from."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKLWan, FlowMapEulerDiscreteScheduler, WanPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

from distill.errors import UserError
from distill.teachers import original
from distill.teachers.hunyuan_video import HunyuanVideo
from distill.teachers.wan import Wan
from distill.teachers.wan_image import WanImage

from . import runs, tiny_wan

LAYERS, WORDS = 2, len(tiny_wan.WORDS)


AS_PUBLISHED = {"in_channels": 16, "out_channels": 16, "rope_max_seq_len": 1024}


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """What diffusers would save, with a VAE as deep as Wan's."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        text = UMT5Config(vocab_size=WORDS, d_model=16, d_kv=4, d_ff=32, num_layers=LAYERS, num_heads=3)
        transformer = tiny_wan.transformer(LAYERS)
        made = WanPipeline(
            tokenizer=tiny_wan.tokenizer(),
            text_encoder=UMT5EncoderModel(text).bfloat16(),
            vae=AutoencoderKLWan(base_dim=4, z_dim=16),
            scheduler=FlowMapEulerDiscreteScheduler(shift=5.0),
            transformer=transformer.from_config({**transformer.config, **AS_PUBLISHED}),
        )
    for name, weight in [*made.transformer.named_parameters(), *made.text_encoder.named_parameters()]:
        if weight.ndim == 1 or "relative" in name:  # norms and biases begin alike: a swap would not show
            torch.nn.init.normal_(weight, 1.0, 0.3)
    folder = tmp_path_factory.mktemp("pipeline") / "wan"
    made.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def source(pipeline, tmp_path_factory):
    """The same, as Wan publishes it."""
    folder = tmp_path_factory.mktemp("source") / "Wan2.1"
    folder.mkdir()
    weights = {name: part(pipeline, name) for name in ("transformer", "text_encoder", "vae")}
    whole = {wans_name(name): tensor for name, tensor in weights["transformer"].items()}
    save_file(whole, folder / "diffusion_pytorch_model.safetensors")
    torch.save({t5s_name(name): tensor for name, tensor in weights["text_encoder"].items()}, folder / original.TEXT)
    torch.save({vaes_name(name): tensor for name, tensor in weights["vae"].items()}, folder / original.VAE)
    said = {"_class_name": "WanModel", "_diffusers_version": "0.30.0", "dim": 24, "eps": 1e-6, "ffn_dim": 32}
    said |= {"freq_dim": 32, "in_dim": 16, "model_type": "t2v", "num_heads": 2, "num_layers": LAYERS, "out_dim": 16}
    (folder / "config.json").write_text(json.dumps(said | {"text_len": 512}))
    shutil.copytree(pipeline / "tokenizer", folder / original.TOKENIZER)
    return folder


def part(pipeline: Path, name: str) -> dict[str, Tensor]:
    [file] = (pipeline / name).glob("*.safetensors")
    return load_file(file)


BLOCK = {
    "attn1": "self_attn",
    "attn2": "cross_attn",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
}
EMBEDDERS = {
    "time_embedder.linear_1": "time_embedding.0",
    "time_embedder.linear_2": "time_embedding.2",
    "text_embedder.linear_1": "text_embedding.0",
    "text_embedder.linear_2": "text_embedding.2",
    "time_proj": "time_projection.1",
}


def wans_name(name: str) -> str:
    """wan/modules/model.py's name of a weight of WanTransformer3DModel."""
    if found := re.fullmatch(r"blocks\.(\d+)\.(attn[12])\.(.+)\.(weight|bias)", name):
        return f"blocks.{found[1]}.{BLOCK[found[2]]}.{BLOCK[found[3]]}.{found[4]}"
    if found := re.fullmatch(r"condition_embedder\.(.+)\.(weight|bias)", name):
        return f"{EMBEDDERS[found[1]]}.{found[2]}"
    ends = {"scale_shift_table": "modulation", "norm2": "norm3", "ffn.net.0.proj": "ffn.0", "ffn.net.2": "ffn.2"}
    if found := re.fullmatch(r"(blocks\.\d+)\.(scale_shift_table|norm2|ffn\.net\.0\.proj|ffn\.net\.2)(.*)", name):
        return f"{found[1]}.{ends[found[2]]}{found[3]}"
    outside = {"scale_shift_table": "head.modulation", "proj_out.weight": "head.head.weight"}
    outside |= {"proj_out.bias": "head.head.bias"}
    outside |= {f"patch_embedding.{end}": f"patch_embedding.{end}" for end in ("weight", "bias")}
    return outside[name]


def t5s_name(name: str) -> str:
    """wan/modules/t5.py's."""
    places = {"layer_norm.weight": "norm1.weight", "SelfAttention.relative_attention_bias": "pos_embedding.embedding"}
    if found := re.fullmatch(r"encoder\.block\.(\d+)\.layer\.0\.(.+)", name):
        end = places.get(found[2]) or found[2].replace(
            "SelfAttention.relative_attention_bias", "pos_embedding.embedding"
        )
        return f"blocks.{found[1]}.{end.replace('SelfAttention', 'attn')}"
    places = {"wi_0": "gate.0", "wi_1": "fc1", "wo": "fc2"}
    if found := re.fullmatch(r"encoder\.block\.(\d+)\.layer\.1\.DenseReluDense\.(\w+)\.weight", name):
        return f"blocks.{found[1]}.ffn.{places[found[2]]}.weight"
    if found := re.fullmatch(r"encoder\.block\.(\d+)\.layer\.1\.layer_norm\.weight", name):
        return f"blocks.{found[1]}.norm2.weight"
    return {"shared.weight": "token_embedding.weight", "encoder.final_layer_norm.weight": "norm.weight"}[name]


def vaes_name(name: str) -> str:
    """wan/modules/vae.py's: four levels, of two blocks (three in the decoder) and a change of size."""
    inside = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3", "conv2": "residual.6"}
    inside |= {"conv_shortcut": "shortcut", "norm": "norm", "to_qkv": "to_qkv", "proj": "proj"}
    outside = {"quant_conv": "conv1", "post_quant_conv": "conv2"}
    if found := re.fullmatch(r"(\w*quant_conv)\.(\w+)", name):
        return f"{outside[found[1]]}.{found[2]}"
    side, rest = name.split(".", 1)
    ends = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}
    if found := re.fullmatch(r"(conv_in|norm_out|conv_out)\.(\w+)", rest):
        return f"{side}.{ends[found[1]]}.{found[2]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(\w+)\.(\w+)", rest):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"{side}.middle.{place}.{inside[found[3]]}.{found[4]}"
    if found := re.fullmatch(r"down_blocks\.(\d+)\.(\w+)\.(.+)", rest):
        return f"{side}.downsamples.{found[1]}.{inside.get(found[2], found[2])}.{found[3]}"
    if found := re.fullmatch(r"up_blocks\.(\d)\.resnets\.(\d)\.(\w+)\.(\w+)", rest):
        return f"{side}.upsamples.{4 * int(found[1]) + int(found[2])}.{inside[found[3]]}.{found[4]}"
    found = re.fullmatch(r"up_blocks\.(\d)\.upsamplers\.0\.(.+)", rest)
    return f"{side}.upsamples.{4 * int(found[1]) + 3}.{found[2]}"


@pytest.fixture(scope="module")
def converted(source, tmp_path_factory):
    """By the real command."""
    folder = tmp_path_factory.mktemp("converted") / "out"
    process = runs.command("convert", source, folder)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and said.strip().endswith(str(folder)), said
    return folder


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae"])
def test_every_weight_is_what_it_was(pipeline, converted, name):
    before, after = part(pipeline, name), part(converted, name)
    assert before.keys() == after.keys() and len(after) > 20
    assert all(before[key].dtype == after[key].dtype and torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize("name", ["transformer", "text_encoder", "vae"])
def test_configurations_say_the_same(pipeline, converted, name):
    before, after = (json.loads((each / name / "config.json").read_text()) for each in (pipeline, converted))
    assert (
        after.items() >= {k: v for k, v in before.items() if k not in ("_diffusers_version", "_name_or_path")}.items()
    )


@torch.no_grad()
def test_the_folder_is_a_teacher_that_makes_the_same_of_the_same(pipeline, converted):
    one, other = Wan(pipeline), Wan(converted)
    assert (other.shift, other.compression, other.max_sequence_length) == (5.0, (4, 8), tiny_wan.TOKENS)
    prompts, shape = ["a red circle", ""], (1, *other.latent_shape(5, 32, 48))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    cond = [teacher.encode(prompts[:1]) for teacher in (one, other)]
    v = [teacher.network()(x, torch.tensor([0.7]), c) for teacher, c in zip((one, other), cond, strict=True)]
    assert torch.equal(cond[0]["text"], cond[1]["text"]) and torch.equal(*v)
    assert torch.equal(one.decode(x), other.decode(x))


@torch.no_grad()
def test_the_text_encoder_computes_what_wan_writes_down(source, converted):
    """wan/modules/t5.py in a few lines, on the original weights; long enough for far positions."""
    ids = torch.arange(150)[None] % WORDS
    state = {name: tensor.float() for name, tensor in torch.load(source / original.TEXT).items()}
    found = UMT5EncoderModel.from_pretrained(converted / "text_encoder", dtype=torch.float32)(ids).last_hidden_state
    torch.testing.assert_close(found, t5(state, ids), atol=2e-4, rtol=1e-4)


def t5(state: dict[str, Tensor], ids: Tensor) -> Tensor:
    x = state["token_embedding.weight"][ids]
    for i in range(LAYERS):
        w = {name.removeprefix(f"blocks.{i}."): tensor for name, tensor in state.items()}
        x = x + t5_attention(w, rms(x, w["norm1.weight"]))
        y = rms(x, w["norm2.weight"])
        z = y @ w["ffn.gate.0.weight"].T
        gate = z / 2 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))
        x = x + (gate * (y @ w["ffn.fc1.weight"].T)) @ w["ffn.fc2.weight"].T
    return rms(x, state["norm.weight"])


def t5_attention(w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Without scaling, with a bias for each distance: exact up to 8 either way, then in bins that grow."""
    q, k, v = ((x @ w[f"attn.{name}.weight"].T).unflatten(2, (3, -1)).transpose(1, 2) for name in "qkv")
    far = [max(0, min(15, 8 + int(math.log(max(d, 1) / 8) / math.log(128 / 8) * 8))) for d in range(x.shape[1])]
    bins = [[(16 if j > i else 0) + (abs(j - i) if abs(j - i) < 8 else far[abs(j - i)]) for j in range(x.shape[1])]
            for i in range(x.shape[1])]  # fmt: skip
    bias = w["pos_embedding.embedding.weight"][torch.tensor(bins)].permute(2, 0, 1)
    out = (q @ k.mT + bias).softmax(-1) @ v
    return out.transpose(1, 2).flatten(2) @ w["attn.o.weight"].T


def rms(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def test_shards_are_read_by_their_index(pipeline, source, tmp_path):
    copied = shutil.copytree(source, tmp_path / "copied")
    whole = load_file(copied / "diffusion_pytorch_model.safetensors")
    (copied / "diffusion_pytorch_model.safetensors").unlink()
    names = sorted(whole)
    places = {name: f"diffusion_pytorch_model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(places.values()):
        save_file({name: whole[name] for name in names if places[name] == file}, copied / file)
    index = {"metadata": {}, "weight_map": places}
    (copied / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    after = part(original.convert(copied, tmp_path / "out"), "transformer")
    before = part(pipeline, "transformer")
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    (copied / places[names[0]]).unlink()
    with pytest.raises(UserError, match=rf"{places[names[0]]}.*missing|missing.*{places[names[0]]}") as error:
        original.convert(copied, tmp_path / "again")
    assert "\n" not in str(error.value) and not (tmp_path / "again").exists()


def edit(file: Path, **changes) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def without(file: Path, name: str) -> None:
    state = torch.load(file)
    del state[name]
    torch.save(state, file)


FAULTS = {
    "config.json is missing": lambda f: (f / "config.json").unlink(),
    "config.json is not valid JSON": lambda f: (f / "config.json").write_text("{"),
    "is of a WanModel of type i2v, expected a WanModel of type t2v": lambda f: edit(
        f / "config.json", model_type="i2v"
    ),
    "is of a UNet of type t2v": lambda f: edit(f / "config.json", _class_name="UNet"),
    "Wan2.1_VAE.pth is missing": lambda f: (f / original.VAE).unlink(),
    "google/umt5-xxl is missing": lambda f: shutil.rmtree(f / original.TOKENIZER),
    "diffusion_pytorch_model.safetensors": lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(),
    r"ffn.* has shape \(32, 24\), a WanTransformer3DModel of this size \(48, 24\)": lambda f: edit(
        f / "config.json", ffn_dim=48
    ),
    "VAE.pth: cannot be read as a file of weights": lambda f: (f / original.VAE).write_bytes(b"once upon a time"),
    r"decoder.conv_in.bias has shape None": lambda f: without(f / original.VAE, "decoder.conv1.bias"),
    "has no shared.weight": lambda f: without(f / original.TEXT, "token_embedding.weight"),
    r"wo.weight has shape None, a UMT5EncoderModel of this size \(16, 32\)": lambda f: without(
        f / original.TEXT, "blocks.1.ffn.fc2.weight"
    ),
}


@pytest.mark.parametrize("message", FAULTS)
def test_what_is_no_checkpoint_of_wans_is_refused_in_one_line(source, tmp_path, message):
    copied = shutil.copytree(source, tmp_path / "copied")
    FAULTS[message](copied)
    with pytest.raises(UserError, match=message) as error:
        original.convert(copied, tmp_path / "out")
    assert str(copied) in str(error.value) and "\n" not in str(error.value) and not (tmp_path / "out").exists()


def test_a_folder_that_is_there_is_not_written_over(source, converted):
    with pytest.raises(UserError, match="exists; name another folder"):
        original.convert(source, converted)


@pytest.mark.parametrize("family", [Wan, WanImage, HunyuanVideo])
def test_a_teacher_in_the_original_layout_says_what_to_do(source, family):
    with pytest.raises(UserError, match=rf"`distill convert {source} OUT` makes one in this layout") as error:
        family(source)
    assert "\n" not in str(error.value)
