"""The Wan teacher against stock diffusers, on a random pipeline with Wan's own layers."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from torch import Tensor

from distill import flow, samplers
from distill.engine import Role
from distill.errors import UserError
from distill.networks import Net
from distill.teachers import wan
from distill.teachers.wan import Wan
from tests import tiny_wan

PROMPTS = ["a red circle moves left .", "a blue square ."]
SIGMA = torch.tensor([25 / 26, 0.5])  # 961.54 and 500: rounding or bf16 would show


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("wan"))


@pytest.fixture(scope="module")
def teacher(folder):
    return Wan(folder)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def noise(teacher: Wan, seed: int = 0, batch: int = 2) -> Tensor:
    shape = teacher.latent_shape(**tiny_wan.VIDEO)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def stock(folder, **options) -> WanPipeline:
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def test_the_velocity_is_the_stock_transformer_at_1000_sigma(folder, teacher):
    x, cond = noise(teacher), teacher.encode(PROMPTS)
    transformer = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    timestep = torch.tensor([25 / 26 * 1000, 500], dtype=torch.float64)
    expected = transformer(x, timestep, cond["text"], return_dict=False)[0]
    torch.testing.assert_close(teacher.network()(x, SIGMA, cond), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_frames_have_noise_levels_of_their_own(teacher):
    x, cond, net = noise(teacher), teacher.encode(PROMPTS), teacher.network()
    _, _, frames, height, width = x.shape
    sigma = torch.rand(2, frames, generator=torch.Generator().manual_seed(1))
    timestep = torch.tensor(
        [[1000 * s for s in row for _ in range(height // 2 * width // 2)] for row in sigma.tolist()]
    )
    expected = net.transformer(x, timestep, cond["text"], return_dict=False)[0]
    torch.testing.assert_close(net(x, sigma, cond), expected, atol=1e-6, rtol=0)
    alike = SIGMA[:, None].expand(2, frames)
    torch.testing.assert_close(net(x, alike, cond), net(x, SIGMA, cond), atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_euler_steps_are_the_stock_pipeline(folder, teacher, scale):
    x, cond, negative = noise(teacher), teacher.encode(PROMPTS), teacher.encode(["", ""])
    net = Net(Role("teacher", teacher.network().eval()))
    ours = samplers.euler(net, x, flow.grid(6, teacher.shift), cond, negative, scale)
    options = {"num_inference_steps": 6, "guidance_scale": scale, "max_sequence_length": teacher.max_sequence_length}
    size = {"num_frames": tiny_wan.VIDEO["frames"], "height": 32, "width": 48}
    theirs = stock(folder)(PROMPTS, latents=x.clone(), output_type="latent", **options, **size).frames
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_bf16_spares_the_layers_that_diffusers_spares(folder, teacher):
    expected = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.bfloat16)
    dtypes = {name: p.dtype for name, p in expected.named_parameters()}
    assert set(dtypes.values()) == {torch.bfloat16, torch.float32}
    for device in ("cpu", "meta"):
        network = teacher.network(torch.bfloat16, device).transformer
        assert {name: p.dtype for name, p in network.named_parameters()} == dtypes
        assert network.rope.freqs_cos.dtype == torch.float32


def test_the_meta_network_is_the_network_without_weights(teacher):
    real, meta = teacher.network().state_dict(), teacher.network(device="meta").state_dict()
    assert {k: v.shape for k, v in meta.items()} == {k: v.shape for k, v in real.items()}
    assert all(v.is_meta for v in meta.values())


@torch.no_grad()
def test_the_noise_level_is_embedded_in_float32_under_autocast(teacher):
    net = copy.deepcopy(teacher.network())
    embedder = net.transformer.condition_embedder.time_embedder
    sinusoids = net.transformer.condition_embedder.timesteps_proj(1000 * SIGMA)
    with torch.autocast("cpu", torch.bfloat16):
        inside = embedder(sinusoids)
    assert inside.dtype == torch.float32 and torch.equal(inside, embedder(sinusoids))


def test_checkpointing_changes_no_gradient(teacher):
    x, cond = noise(teacher), teacher.encode(PROMPTS)
    plain, checkpointed = teacher.network(), teacher.network()
    checkpointed.enable_checkpointing()
    for net in (plain, checkpointed):
        net(x, SIGMA, cond).square().mean().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(folder, teacher):
    expected, _ = stock(folder).encode_prompt(PROMPTS, None, False, max_sequence_length=tiny_wan.TOKENS)
    text = teacher.encode(PROMPTS)["text"]
    assert torch.equal(text, expected)
    words = [len(p.split()) + 1 for p in PROMPTS]
    assert [int(row.any(-1).sum()) for row in text] == words and not text[1, words[1] :].any()


@torch.no_grad()
def test_videos_are_decoded_as_the_pipeline_does(folder, teacher, monkeypatch):
    latents = noise(teacher, batch=3)
    monkeypatch.setattr(wan, "PIXELS_PER_DECODE", 2 * 6 * 32 * 48)  # two clips, then one
    pipeline = stock(folder)
    mean, std = (torch.tensor(pipeline.vae.config[f"latents_{m}"]).view(1, -1, 1, 1, 1) for m in ("mean", "std"))
    video = pipeline.vae.decode(latents * std + mean, return_dict=False)[0]
    frames = torch.from_numpy(pipeline.video_processor.postprocess_video(video, output_type="np"))
    ours = teacher.decode(latents)
    assert ours.shape == (3, 5, 32, 48, 3) and ours.dtype == torch.uint8
    assert (ours / 255 - frames).abs().max() < 0.51 / 255


def test_unloading_forgets_nothing_but_the_weights(teacher):
    text, video = teacher.encode(PROMPTS)["text"], teacher.decode(noise(teacher))
    teacher.unload()
    assert torch.equal(teacher.encode(PROMPTS)["text"], text) and torch.equal(teacher.decode(noise(teacher)), video)


def test_sharded_weights_are_the_same_weights(folder, copied):
    model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer")
    shutil.rmtree(copied / "transformer")
    model.save_pretrained(copied / "transformer", max_shard_size="20KB")
    shards = sorted((copied / "transformer").glob("*-of-*.safetensors"))
    assert len(shards) > 2
    whole, sharded = Wan(folder).network().state_dict(), Wan(copied).network().state_dict()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    shards[1].unlink()
    with pytest.raises(UserError, match=rf"transformer/{shards[1].name} is missing, .*index.json lists it"):
        Wan(copied)


def test_the_fingerprint_follows_the_weights(folder, copied):
    assert Wan(copied).fingerprint == Wan(folder).fingerprint
    file = copied / "text_encoder" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert Wan(copied).fingerprint != Wan(folder).fingerprint


def test_the_negative_prompt_is_wans_own_where_the_text_encoder_is(copied):
    assert Wan(copied).negative_prompt == ""
    edit(copied / "text_encoder" / "config.json", vocab_size=256384)
    negative = Wan(copied).negative_prompt
    assert len(negative) == 137 and negative.count("\uff0c") == 27 and negative.isprintable()


def test_text_is_as_long_as_the_tokenizer_allows_or_the_recipe_says(folder, copied):
    assert Wan(folder).max_sequence_length == tiny_wan.TOKENS
    assert Wan(folder, max_sequence_length=5).encode(PROMPTS)["text"].shape == (2, 5, 16)
    edit(copied / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert Wan(copied).max_sequence_length == 512


def test_folders_that_do_not_state_their_compression_have_wans(copied):
    config = json.loads((copied / "vae" / "config.json").read_text())
    del config["scale_factor_temporal"], config["scale_factor_spatial"]
    (copied / "vae" / "config.json").write_text(json.dumps(config))
    assert Wan(copied).latent_shape(81, 480, 832) == (4, 21, 60, 104)


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((80, 480, 832), (81, 480, 832)), ((1, 481, 830), (1, 480, 832)), ((2, 1, 1), (1, 16, 16))],
)
def test_a_size_that_does_not_fit_names_the_nearest(teacher, size, nearest):
    with pytest.raises(UserError, match="nearest is {} frames, {} x {}$".format(*nearest)):
        teacher.latent_shape(*size)
    assert teacher.latent_shape(*nearest)[1:] == ((nearest[0] + 1) // 2, nearest[1] // 4, nearest[2] // 4)


def test_the_13b_configuration_builds_with_its_own_layers(copied):
    published = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
    published |= {"text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "rope_max_seq_len": 1024}
    edit(copied / "transformer" / "config.json", **published)
    names = dict(Wan(copied).network(torch.bfloat16, "meta").named_parameters())
    assert names["transformer.blocks.29.attn2.norm_k.weight"].shape == (1536,)
    assert sum(p.numel() for p in names.values()) == 1_418_996_800


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_weights(folder):
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()


def remove_index(folder):
    (folder / "model_index.json").unlink()


FAULTS = {
    r"has no weights \(expected \*.safetensors\)": remove_weights,
    "is not a pipeline in the diffusers layout: model_index.json is missing": remove_index,
    "is a WanVACEPipeline, expected a WanPipeline": lambda f: edit(
        f / "model_index.json", _class_name="WanVACEPipeline"
    ),
    "is a Wan 2.2 pipeline, expected Wan 2.1": lambda f: edit(f / "model_index.json", boundary_ratio=0.9),
    "model_index.json is not valid JSON": lambda f: (f / "model_index.json").write_text("{"),
    "vae/config.json is missing": lambda f: (f / "vae" / "config.json").unlink(),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_folder_that_is_no_teacher_is_refused_in_one_line(copied, message):
    FAULTS[message](copied)
    with pytest.raises(UserError, match=message) as error:
        Wan(copied)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)


def test_a_path_that_leads_nowhere_is_refused_in_one_line(folder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="expected a folder in the diffusers layout or a hub id"):
        Wan(tmp_path / "absent")
    with pytest.raises(UserError, match="remove it"):
        Wan(folder, revision="main")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="no folder nobody/nothing here, and no such teacher at revision v1") as error:
        Wan("nobody/nothing", revision="v1")
    assert "\n" not in str(error.value)
