"""The embedded teacher: its folder, the pieces of its training, and a training that is interrupted."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import WanPipeline

from distill import embedded, flow, recipe
from distill.embedded import accuracy, cache, diffusion, loop, text, train, transformer, vae, world
from distill.embedded.loop import Workers
from distill.embedded.optim import KernelMuon
from distill.errors import UserError
from distill.evaluate.world import score
from distill.teachers.wan import Wan

ROOT = Path(__file__).parents[1]
TINY = """
seed: 0
processes: 1
vae: {base_dim: 4, res_blocks: 1, z_dim: 4, batch_size: 1, phases: [{steps: 2, lr: 0.02, kl: 1e-3}]}
transformer: {layers: 1, dim: 32, heads: 2, ffn_dim: 32, clips: 32, batch_size: 2, steps: 4, decay: 0.5, image_steps: 2,
  shift: 3.0, dropout: 0.1, compile: false, average: 0.9}
evaluation: {every: 4, prompts: 1, steps: 1, guidance: 4.0, seed: 900}
"""


@pytest.fixture
def tiny(tmp_path) -> train.TeacherRecipe:
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return recipe.load(path, model=train.TeacherRecipe)


@pytest.fixture(scope="module")
def pipeline() -> WanPipeline:
    made = WanPipeline.from_pretrained(embedded.PATH)
    made.set_progress_bar_config(disable=True)
    return made


def test_the_folder_fits_a_repository_and_holds_what_the_recipe_describes():
    assert sum(f.stat().st_size for f in embedded.PATH.rglob("*")) < 12e6
    said = recipe.load(ROOT / "recipes/teacher_shapes.yaml", model=train.TeacherRecipe)
    spec, config = said.transformer, Wan(embedded.PATH).config
    assert (spec.layers, spec.heads, spec.ffn_dim) == tuple(
        config[key] for key in ("num_layers", "num_attention_heads", "ffn_dim")
    )
    assert Wan(embedded.PATH).latent_shape(world.FRAMES, world.SIZE, world.SIZE) == (said.vae.z_dim, 5, 8, 8)


def test_the_stock_pipeline_computes_in_float32_on_a_shifted_grid(pipeline):
    assert {p.dtype for m in (pipeline.vae, pipeline.transformer, pipeline.text_encoder) for p in m.parameters()} == {
        torch.float32
    }
    pipeline.scheduler.set_timesteps(48)
    assert torch.allclose(pipeline.scheduler.sigmas.double(), flow.grid(48, 5.0), rtol=0, atol=1e-7)


def test_the_stock_pipeline_makes_the_clip_that_the_toolkit_makes(pipeline):
    captions = world.prompts("heldout", 4, 2)
    ours = accuracy.clips(Wan(embedded.PATH), captions, steps=3, guidance=4.0, seed=1)
    noise = torch.stack([torch.randn(16, 5, 8, 8, generator=accuracy.generator("clip", 1, i)) for i in range(2)])
    theirs = pipeline(
        captions,
        negative_prompt="",
        num_frames=world.FRAMES,
        height=world.SIZE,
        width=world.SIZE,
        latents=noise,
        num_inference_steps=3,
        guidance_scale=4.0,
        max_sequence_length=text.TOKENS,
        output_type="latent",
    ).frames
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-4)


def test_captions_are_embedded_in_training_as_the_pipeline_embeds_them(pipeline):
    captions = ["", *world.prompts("train", 0, 3)]
    theirs, _ = pipeline.encode_prompt(captions, do_classifier_free_guidance=False, max_sequence_length=text.TOKENS)
    ours = text.embed(pipeline.text_encoder, *text.tokenize(text.tokenizer(), captions))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_every_word_of_the_world_is_a_token():
    ids, mask = text.tokenize(text.tokenizer(), world.prompts("train", 0, 300))
    assert not (ids == text.tokenizer().unk_token_id).any()
    assert mask.sum(1).max() <= text.TOKENS


def test_the_autoencoder_loses_little_of_a_clip():
    _, video = cache.draw(("test",), 16)
    teacher = Wan(embedded.PATH)
    autoencoder = teacher._load_vae()
    with torch.no_grad():
        z = autoencoder.encode(video).latent_dist.mode()
        error = (autoencoder.decode(z).sample - video).square().mean()
    assert 10 * math.log10(4 / error) > 29  # dB


@pytest.mark.parametrize("frames", [1, 9, 13])
def test_a_whole_clip_is_coded_as_in_chunks(frames):
    torch.manual_seed(0)
    stock = vae.build(base_dim=4, res_blocks=1, z_dim=4).eval()
    whole = vae.whole_clip(vae.build(base_dim=4, res_blocks=1, z_dim=4)).eval()
    whole.load_state_dict(stock.state_dict())
    video = torch.randn(2, 3, frames, 32, 32)
    with torch.no_grad():
        z = stock.encode(video).latent_dist.mode()
        assert z.shape == (2, 4, (frames + 1) // 2, 8, 8)
        assert torch.allclose(vae.encode(whole, video)[0], z, atol=1e-5)
        assert torch.allclose(vae.decode(whole, z).clamp(-1, 1), stock.decode(z).sample, atol=1e-5)


@pytest.mark.parametrize(("block", "head", "offset"), [(0, 0, (0, 0, 0)), (1, 0, (-1, 0, 0)), (2, 2, (0, 0, 1))])
def test_a_head_looks_at_its_place_before_it_has_seen_anything(block, head, offset):
    torch.manual_seed(0)
    network = transformer.build(layers=3, dim=128, heads=4, ffn_dim=32, channels=16)
    attention = network.blocks[block].attn1
    nothing = torch.zeros(1, 5 * 4 * 4, 128)
    q, k = (
        norm(linear(nothing)).unflatten(-1, (4, 32))[0, :, head]
        for norm, linear in ((attention.norm_q, attention.to_q), (attention.norm_k, attention.to_k))
    )
    cos, sin = (f[0, :, 0, ::2] for f in network.rope(torch.zeros(1, 16, 5, 8, 8)))
    turn = torch.polar(torch.ones_like(cos), torch.atan2(sin, cos))
    turned = [torch.view_as_complex(x.unflatten(-1, (16, 2)).contiguous()) * turn for x in (q, k)]
    looked = (turned[0] @ turned[1].conj().T).real.argmax(1)
    place = torch.cartesian_prod(torch.arange(5), torch.arange(4), torch.arange(4))
    wanted = place + torch.tensor(offset)
    inside = ((wanted >= 0) & (wanted < torch.tensor([5, 4, 4]))).all(1)
    assert inside.sum() >= 60
    assert (place[looked][inside] == wanted[inside]).all()


def test_muon_moves_a_kernel_as_the_matrix_it_flattens_to():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(6, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    ours = KernelMuon([kernel], lr=0.1, momentum=0.9)
    theirs = torch.optim.Muon([matrix], lr=0.1, momentum=0.9, weight_decay=0.0)
    for _ in range(3):
        gradient = torch.randn_like(kernel)
        kernel.grad, matrix.grad = gradient, gradient.flatten(1)
        ours.step(), theirs.step()
    assert torch.equal(kernel.flatten(1), matrix)


def test_unused_channels_are_not_blown_up():
    autoencoder = vae.build(base_dim=4, res_blocks=1, z_dim=2)
    latents = np.random.default_rng(0).normal((1.0, -2.0), (3.0, 0.05), (64, 5, 8, 8, 2)).astype(np.float16)
    diffusion.normalise(autoencoder, np.moveaxis(latents, -1, 1), Workers())
    assert np.allclose(autoencoder.config.latents_mean, [1, -2], atol=0.1)
    assert np.allclose(autoencoder.config.latents_std, [3, 1], atol=0.1)


def test_a_dropped_caption_is_the_empty_prompt(tiny):
    spec = tiny.model_copy(update={"transformer": tiny.transformer.model_copy(update={"dropout": 1.0})})
    autoencoder = vae.build(base_dim=4, res_blocks=1, z_dim=2)
    data = diffusion.Clips(
        np.zeros((32, 2, 5, 8, 8), np.float16), world.prompts("train", 0, 32), autoencoder, spec, Workers()
    )
    x0, eps, sigma, ids, mask = data.batch(0)
    empty, one = text.tokenize(text.tokenizer(), [""])
    assert (ids == empty).all() and (mask == one).all()
    assert x0.shape == eps.shape and len(sigma) == len(x0)
    assert sigma.min() > 0 and sigma.max() < 1


def test_an_interrupted_training_ends_like_one_that_was_not(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_EVERY", 2)
    train.train(tiny, tmp_path / "straight")
    loss, stop = diffusion.loss, iter([False, False, False, True])

    def interrupted(*args):
        if next(stop):
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(diffusion, "loss", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.train(tiny, tmp_path / "twice")
    monkeypatch.setattr(diffusion, "loss", loss)
    train.train(tiny, tmp_path / "twice")
    straight, twice = (torch.load(tmp_path / name / "transformer.pt") for name in ("straight", "twice"))
    assert straight["step"] == twice["step"] == 4
    for part in ("model", "averaged"):
        assert all(torch.equal(straight[part][key], twice[part][key]) for key in straight[part])
    assert WanPipeline.from_pretrained(tmp_path / "twice" / train.PIPELINE).scheduler.config.shift == 5.0


def test_a_folder_of_another_training_is_refused(tiny, tmp_path):
    train.claim(tiny, tmp_path / "run")
    train.claim(tiny, tmp_path / "run")
    with pytest.raises(UserError, match="of another training .seed 0 -> 1.; choose another --output"):
        train.claim(tiny.model_copy(update={"seed": 1}), tmp_path / "run")


@pytest.mark.parametrize(("name", "split"), [("shapes_train", "train"), ("shapes_heldout", "heldout")])
def test_the_prompt_files_keep_to_their_split(name, split):
    captions = (ROOT / f"recipes/prompts/{name}.txt").read_text().splitlines()
    assert {world.split_of(world.parse(caption)) for caption in captions} == {split}


def test_the_demo_is_shown_on_prompts_that_the_teacher_never_saw():
    demo = yaml.safe_load((ROOT / "recipes/tiny_gpd.yaml").read_text())
    assert {world.split_of(world.parse(text)) for text in demo["validation"]["prompts"]} == {"heldout"}


def test_clips_have_the_background_and_the_colour_that_was_asked_for():
    captions = world.prompts("heldout", 31, 16)
    teacher = Wan(embedded.PATH)
    latents = accuracy.clips(teacher, captions, steps=12, guidance=4.0, seed=31)
    scores = score(teacher.decode(latents).numpy(), captions)
    assert scores["background"].mean() >= 0.9
    assert scores["colour"].mean() >= 0.8
