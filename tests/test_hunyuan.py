"""The HunyuanVideo teacher against stock diffusers, on a random pipeline with HunyuanVideo's own layers."""

import copy
import json
import shutil

import pytest
import torch
from diffusers import HunyuanVideoPipeline, HunyuanVideoTransformer3DModel
from safetensors.torch import load_file
from torch import Tensor

from distill import flow, samplers
from distill.batch import Condition
from distill.data.prompts import Embeddings
from distill.engine import Engine, Role
from distill.errors import UserError
from distill.networks import Net
from distill.teachers.hunyuan_video import HunyuanVideo
from tests import tiny_hunyuan

PROMPTS = ["a red circle moves left .", "a blue square ."]
SIGMA = torch.tensor([25 / 26, 0.5])  # 961.54 and 500: rounding or bf16 would show
DEPTH = tiny_hunyuan.DUAL + tiny_hunyuan.SINGLE


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_hunyuan.build(tmp_path_factory.mktemp("hunyuan"))


@pytest.fixture(scope="module")
def teacher(folder):
    return HunyuanVideo(folder)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


@pytest.fixture
def role(teacher):
    return Role("teacher", teacher.network().eval())


@pytest.fixture
def cond(teacher):
    return teacher.encode(PROMPTS)


def noise(teacher: HunyuanVideo, seed: int = 0, batch: int = 2) -> Tensor:
    shape = teacher.latent_shape(**tiny_hunyuan.VIDEO)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def stock(folder) -> HunyuanVideoPipeline:
    pipeline = HunyuanVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_velocity(pipeline: HunyuanVideoPipeline, x: Tensor, scales: list[float]) -> Tensor:
    """Of stock diffusers throughout: its encodings, its transformer."""
    text, pooled, mask = pipeline.encode_prompt(PROMPTS, max_sequence_length=tiny_hunyuan.TOKENS)
    timestep = torch.tensor([25 / 26 * 1000, 500], dtype=torch.float64)
    guidance = torch.tensor([1000 * scale for scale in scales])
    return pipeline.transformer(x, timestep, text, mask, pooled, guidance, return_dict=False)[0]


# Velocities


@torch.no_grad()
def test_the_velocity_is_the_stock_transformer_at_1000_sigma_and_guidance_6(folder, teacher, cond):
    x = noise(teacher)
    expected = stock_velocity(stock(folder), x, [6, 6])
    torch.testing.assert_close(teacher.network()(x, SIGMA, cond), expected, atol=1e-6, rtol=0)


@torch.no_grad()
def test_the_guidance_scale_is_told_to_the_network_a_thousandfold(folder, teacher, cond):
    x, scales = noise(teacher), [1.0, 3.5]
    expected = stock_velocity(stock(folder), x, scales)
    told = Condition(cond, guidance=torch.tensor(scales))
    torch.testing.assert_close(teacher.network()(x, SIGMA, told), expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("scale", [1, 3.5])
def test_a_guided_velocity_is_one_evaluation_whatever_the_negative_prompt(teacher, role, cond, scale):
    x, net, found = noise(teacher), Net(role), []
    for negative in ("a blue circle .", ""):
        role.evaluations = 0
        found.append(net.guided(x, SIGMA, cond, teacher.encode([negative, negative]), scale))
        assert role.evaluations == 2  # samples
    told = net(x, SIGMA, Condition(cond, guidance=torch.full((2,), float(scale))))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], told)
    assert (net(x, SIGMA, cond) - told).abs().max() > 1e-3 and "guidance" not in cond


@torch.no_grad()
@pytest.mark.parametrize("scale", [6.0, 2.5])
def test_euler_steps_are_the_stock_pipeline(folder, teacher, role, cond, scale):
    x, negative = noise(teacher), teacher.encode(["", ""])
    ours = samplers.euler(Net(role), x, flow.grid(6, teacher.shift), cond, negative, scale)
    size = {"num_frames": 5, "height": 32, "width": 48, "max_sequence_length": tiny_hunyuan.TOKENS}
    options = {"num_inference_steps": 6, "guidance_scale": scale, "output_type": "latent"}
    theirs = stock(folder)(PROMPTS, latents=x.clone(), **options, **size).frames
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    assert (ours - x).abs().max() > 0.1


def test_frames_with_noise_levels_of_their_own_are_refused(teacher, role, cond):
    message = r"sigma has shape \(2, 2\); HunyuanVideo has one noise level per clip, \(B,\)"
    with pytest.raises(ValueError, match=message):
        Net(role)(noise(teacher), SIGMA[:, None].expand(2, 2), cond)
    with pytest.raises(ValueError, match=message):
        Net(role).features(noise(teacher), SIGMA[:, None].expand(2, 2), cond, [1])


@torch.no_grad()
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_noise_level_and_guidance_are_embedded_in_float32(teacher, cond, precision):
    """With bf16 weights or float32 ones, under autocast, in a copy."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    network = copy.deepcopy(teacher.network(dtype))
    embedding = network.transformer.time_text_embed
    seen = []
    for module in (embedding.timestep_embedder, embedding.guidance_embedder):
        module.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0], output)))
    Net(Role("teacher", network, precision="bf16"))(noise(teacher), SIGMA, cond)
    for (given, made), steps in zip(seen, (1000 * SIGMA, torch.tensor([6000.0, 6000])), strict=True):
        assert given.dtype == made.dtype == torch.float32
        assert torch.equal(given, embedding.time_proj(steps))


@torch.no_grad()
def test_bf16_velocities_and_features_are_near_and_arrive_in_float32(teacher, cond):
    x, found = noise(teacher), {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        net = Net(Role("teacher", teacher.network(dtype).eval(), precision=precision))
        found[precision] = [net(x, SIGMA, cond), *net.features(x, SIGMA, cond, [DEPTH])]
    for low, high in zip(found["bf16"], found["fp32"], strict=True):
        assert low.dtype == torch.float32
        assert 1e-5 < (low - high).abs().max() < 0.1 * high.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_meta_network_is_the_network_without_weights(teacher, dtype):
    real, meta = teacher.network(dtype).state_dict(), teacher.network(dtype, device="meta").state_dict()
    assert {k: (v.shape, v.dtype) for k, v in meta.items()} == {k: (v.shape, v.dtype) for k, v in real.items()}
    assert all(v.is_meta for v in meta.values())
    assert {v.dtype for v in real.values()} == {dtype, torch.float32}


def test_checkpointing_changes_no_gradient(teacher, cond):
    x = noise(teacher)
    plain, checkpointed = teacher.network(), teacher.network()
    checkpointed.enable_checkpointing()
    for net in (plain, checkpointed):
        net(x, SIGMA, cond).square().mean().backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


# Features


def stock_features(folder, x: Tensor, cond: Condition, guidance: float = 6.0) -> list[Tensor]:
    """The video tokens that each block of stock diffusers' transformer returns, unfolded by loops: (B, D, F', h, w)."""
    transformer = HunyuanVideoTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    transformer.requires_grad_(False)
    seen: list[Tensor] = []
    for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[0]))
    told = torch.full((2,), 1000 * guidance)
    transformer(x, 1000 * SIGMA, cond["text"], cond["mask"], cond["pooled"], told)
    frames, height, width = x.shape[2], x.shape[3] // 2, x.shape[4] // 2
    unfolded = []
    for tokens in seen:
        places = iter(tokens.unbind(1))
        rows = [[torch.stack([next(places) for _ in range(width)], -1) for _ in range(height)] for _ in range(frames)]
        unfolded.append(torch.stack([torch.stack(row, -2) for row in rows], 2))
        assert next(places, None) is None
    return unfolded


def blocks_run(role: Role) -> list[int]:
    """Appends the number of every block that runs, and 0 for the projection behind them."""
    seen: list[int] = []
    transformer = role.module.transformer
    for i, block in enumerate([*transformer.transformer_blocks, *transformer.single_transformer_blocks], 1):
        block.register_forward_pre_hook(lambda *_, i=i: seen.append(i))
    transformer.proj_out.register_forward_pre_hook(lambda *_: seen.append(0))
    return seen


@torch.no_grad()
def test_features_are_what_the_stock_blocks_return_dual_stream_first(folder, teacher, role, cond):
    x = noise(teacher)
    found = Net(role).features(x, SIGMA, cond, range(1, DEPTH + 1))
    assert [f.shape for f in found] == [(2, teacher.width, 2, 2, 3)] * DEPTH
    for ours, theirs in zip(found, stock_features(folder, x, cond), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_follow_the_guidance_that_the_network_is_told(folder, teacher, role, cond):
    x, told = noise(teacher), Condition(cond, guidance=torch.full((2,), 2.0))
    expected = stock_features(folder, x, cond, guidance=2.0)[3]
    torch.testing.assert_close(Net(role).features(x, SIGMA, told, [4])[0], expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_features_come_in_the_order_in_which_they_are_asked(teacher, role, cond):
    net, x = Net(role), noise(teacher)
    last, first, again = net.features(x, SIGMA, cond, [5, 1, 5])
    assert torch.equal(last, again) and not torch.equal(first, last)
    assert torch.equal(first, net.features(x, SIGMA, cond, (1,))[0])


@torch.no_grad()
@pytest.mark.parametrize(("layers", "run"), [([2], [1, 2]), ([4, 1], [1, 2, 3, 4]), ([5], [1, 2, 3, 4, 5])])
def test_nothing_behind_the_deepest_block_is_evaluated(teacher, role, cond, layers, run):
    seen = blocks_run(role)
    Net(role).features(noise(teacher), SIGMA, cond, layers)
    assert seen == run and role.evaluations == 2


def test_gradients_of_features_pass_to_the_input_and_to_no_weight(folder, teacher, role, cond):
    """A13, while another network is the one that trains."""
    weights = torch.randn(2, teacher.width, 2, 2, 3, generator=torch.Generator().manual_seed(2))
    student, gradients = Role("student", torch.nn.Linear(2, 2)), []
    with Engine().only(student, [role, student]):
        x = noise(teacher).requires_grad_()
        (Net(role).features(x, SIGMA, cond, [4])[0] * weights).sum().backward()
        gradients.append(x.grad)
        assert all(p.grad is None for p in role.parameters)
    x = noise(teacher).requires_grad_()
    (stock_features(folder, x, cond)[3] * weights).sum().backward()
    gradients.append(x.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-4)


def test_checkpointing_changes_no_gradient_of_features_and_runs_blocks_again(teacher, role, cond):
    gradients, runs = [], []
    for checkpointed in (False, True):
        if checkpointed:
            role.module.enable_checkpointing()
        seen, x = blocks_run(role), noise(teacher).requires_grad_()
        Net(role).features(x, SIGMA, cond, [4])[0].square().sum().backward()
        gradients.append(x.grad)
        runs.append(len(seen))
    torch.testing.assert_close(*gradients)
    assert runs == [4, 8]


@pytest.mark.parametrize("layers", [[0], [6], []])
def test_a_block_that_is_not_there_is_refused(teacher, role, cond, layers):
    with pytest.raises(ValueError, match=r"features of blocks \[.*\]; this network has blocks 1 to 5"):
        Net(role).features(noise(teacher), SIGMA, cond, layers)


# Prompts and videos


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does_but_for_padding(folder, teacher, cond):
    text, pooled, mask = stock(folder).encode_prompt(PROMPTS, max_sequence_length=tiny_hunyuan.TOKENS)
    assert torch.equal(cond["mask"], mask) and torch.equal(cond["pooled"], pooled)
    words = [len(p.split()) + 1 for p in PROMPTS]
    assert mask.sum(1).tolist() == words
    for ours, theirs, length in zip(cond["text"], text, words, strict=True):
        assert torch.equal(ours[:length], theirs[:length])
        assert theirs[length:].any() and not ours[length:].any()
    assert {t.dtype for t in cond.values()} == {torch.float32}
    assert not torch.equal(text[0, 0], text[1, 1]) and not torch.equal(pooled[0], pooled[1])


@torch.no_grad()
def test_stored_encodings_are_the_teachers_to_the_bit(teacher, cond, tmp_path):
    store = Embeddings(teacher, tmp_path)
    store.prepare(PROMPTS)
    found = store.get(PROMPTS)
    assert found.keys() == cond.keys() == {"text", "mask", "pooled"}
    assert all(torch.equal(found[name], rows) for name, rows in cond.items())
    stored = [load_file(file) for file in store.folder.rglob("*.safetensors")]
    assert sorted(len(file[name]) for file in stored for name in ("text", "mask")) == [5, 5, 7, 7]


@torch.no_grad()
@pytest.mark.parametrize("size", [{"frames": 5, "height": 32, "width": 48}, {"frames": 21, "height": 32, "width": 288}])
def test_videos_are_decoded_as_the_pipeline_does(folder, teacher, size):
    """The second in tiles, as HunyuanVideo's own code does it: of 16 frames and of 256 pixels."""
    latents = torch.randn(2, *teacher.latent_shape(**size), generator=torch.Generator().manual_seed(0))
    pipeline = stock(folder)
    pipeline.vae.enable_tiling()
    video = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    frames = torch.from_numpy(pipeline.video_processor.postprocess_video(video, output_type="np"))
    ours = teacher.decode(latents)
    assert ours.shape == (2, *size.values(), 3) and ours.dtype == torch.uint8
    assert (ours / 255 - frames).abs().max() < 0.51 / 255 and ours.float().std() > 5


def test_unloading_forgets_nothing_but_the_weights(teacher):
    text, video = teacher.encode(PROMPTS), teacher.decode(noise(teacher))
    teacher.unload()
    again = teacher.encode(PROMPTS)
    assert all(torch.equal(again[name], text[name]) for name in text)
    assert torch.equal(teacher.decode(noise(teacher)), video)


def test_text_is_as_long_as_the_tokenizer_allows_or_the_recipe_says(folder, copied):
    assert HunyuanVideo(folder).max_sequence_length == tiny_hunyuan.TOKENS
    short = HunyuanVideo(folder, max_sequence_length=5).encode(PROMPTS)
    assert short["text"].shape == (2, 5, 16) and short["mask"].sum(1).tolist() == [5, 5]
    edit(copied / "tokenizer" / "tokenizer_config.json", model_max_length=10**30)
    assert HunyuanVideo(copied).max_sequence_length == 256


def test_text_encoders_run_in_the_precision_that_they_are_stored_in(copied):
    for name in ("dtype", "torch_dtype"):  # of transformers 5 and of those before
        edit(copied / "text_encoder" / "config.json", **{"dtype": None, "torch_dtype": None, name: "float16"})
        pipeline = HunyuanVideo(copied)._load_text_encoders()
        assert (pipeline.text_encoder.dtype, pipeline.text_encoder_2.dtype) == (torch.float16, torch.float32)


# Folders


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2", "transformer"])
def test_the_fingerprint_follows_the_weights(folder, copied, part):
    assert HunyuanVideo(copied).fingerprint == HunyuanVideo(folder).fingerprint
    (file,) = (copied / part).glob("*.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert HunyuanVideo(copied).fingerprint != HunyuanVideo(folder).fingerprint


@torch.no_grad()
def test_a_saved_pipeline_is_the_network_it_was_given_and_takes_its_steps(teacher, cond, tmp_path):
    network = teacher.network()
    for weight in network.parameters():
        weight.mul_(1.1)
    teacher.save(tmp_path / "saved", network, shift=3.0)
    role = Role("student", network.eval())
    x, one = noise(teacher, batch=1), cond.rows(slice(0, 1))
    ours = samplers.euler(Net(role), x, flow.grid(4, 3.0), one)
    torch.testing.assert_close(teacher.sample_saved(tmp_path / "saved", PROMPTS[0], x, 4), ours, atol=1e-5, rtol=0)
    again = HunyuanVideo(tmp_path / "saved")
    assert again.shift == 3.0
    assert all(torch.equal(a, b) for a, b in zip(again.network().parameters(), network.parameters(), strict=True))


@pytest.mark.parametrize(
    ("size", "nearest"),
    [((92, 544, 960), (93, 544, 960)), ((1, 541, 955), (1, 544, 960)), ((2, 1, 1), (1, 16, 16))],
)
def test_a_size_that_does_not_fit_names_the_nearest(teacher, size, nearest):
    with pytest.raises(UserError, match="nearest is {} frames, {} x {}$".format(*nearest)):
        teacher.latent_shape(*size)
    assert teacher.latent_shape(*nearest) == (4, (nearest[0] + 3) // 4, nearest[1] // 8, nearest[2] // 8)


def test_the_published_configuration_builds_with_its_own_layers(copied):
    """20 dual-stream blocks of 340 M parameters, 40 single-stream ones of 142 M."""
    edit(copied / "transformer" / "config.json", **tiny_hunyuan.PUBLISHED)
    teacher = HunyuanVideo(copied)
    names = dict(teacher.network(torch.bfloat16, "meta").named_parameters())
    assert names["transformer.single_transformer_blocks.39.attn.norm_k.weight"].shape == (128,)
    assert sum(p.numel() for p in names.values()) == 12_821_012_544
    assert (teacher.depth, teacher.width) == (60, 3072)


def edit(path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def remove_weights(folder):
    (folder / "text_encoder_2" / "model.safetensors").unlink()


FAULTS = {
    r"text_encoder_2/ has no weights \(expected \*.safetensors\)": remove_weights,
    r"is a HunyuanVideoImageToVideoPipeline, expected a HunyuanVideoPipeline \(text to video\)": lambda f: edit(
        f / "model_index.json", _class_name="HunyuanVideoImageToVideoPipeline"
    ),
    "guidance_embeds False and image_condition_type None; expected True and None": lambda f: edit(
        f / "transformer/config.json", guidance_embeds=False
    ),
    "guidance_embeds True and image_condition_type latent_concat; expected True and None": lambda f: edit(
        f / "transformer/config.json", image_condition_type="latent_concat"
    ),
    "vae/config.json is missing": lambda f: (f / "vae" / "config.json").unlink(),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_folder_that_is_no_teacher_is_refused_in_one_line(copied, message):
    FAULTS[message](copied)
    with pytest.raises(UserError, match=message) as error:
        HunyuanVideo(copied)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)
