"""The image-to-video Wan against stock diffusers, on a random pipeline with Wan's own layers; and runs on it."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanTransformer3DModel
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from distill import (
    assemble,
    build,
    checkpoint,
    flow,
    image_prompt,
    recipe,
    sample,
    samplers,
    synthesize,
    teachers,
    validation,
)
from distill.batch import Condition
from distill.data import prompts
from distill.data.prompts import Embeddings
from distill.data.stream import PromptStream
from distill.engine import Role
from distill.errors import UserError
from distill.evaluate import measuring
from distill.evaluate.asked import Asked
from distill.networks import Net
from distill.recipe import TeacherSpec, Video
from distill.teachers.wan import Wan
from distill.teachers.wan_image import WanImage
from tests import runs, tiny_wan, tiny_wan_image, toys

RECIPES = Path(__file__).parents[1] / "recipes"
VIDEO = Video(fps=8, **tiny_wan_image.VIDEO)
SIZE = {"num_frames": 5, "height": 32, "width": 48}
SIGMA = torch.tensor([25 / 26, 0.5])
TEXTS = ["a red circle moves left .", "a blue square ."]
FAMILY = "teacher.family=wan_i2v"
METHOD = "{name: accvideo, recorder_steps: 6, steps: 3, shift: 3.0, head_width: 8}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_wan_image.build(tmp_path_factory.mktemp("wan") / "teacher", layers=3)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    return [tiny_wan_image.image(folder / f"{seed}.png", seed) for seed in range(2)]


@pytest.fixture(scope="module")
def asked(images):
    """Two prompts, each with an image."""
    return [image_prompt.join(image, text) for image, text in zip(images, TEXTS, strict=True)]


@pytest.fixture(scope="module")
def teacher(folder):
    return teachers.load(TeacherSpec(family="wan_i2v", path=str(folder)), VIDEO)


@pytest.fixture(scope="module")
def cond(teacher, asked):
    return teacher.encode(asked)


@pytest.fixture
def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copied")


def noise(teacher: WanImage, batch: int = 2, seed: int = 0) -> Tensor:
    shape = teacher.latent_shape(**tiny_wan_image.VIDEO)
    return torch.randn(batch, *shape, generator=torch.Generator().manual_seed(seed))


def stock(folder: Path, image: Path, text: str, **options) -> Tensor:
    """Latents, (1, C, F, H, W)."""
    pipeline = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(Image.open(image), text, output_type="latent", **SIZE, **options).frames


def transformer(folder: Path) -> WanTransformer3DModel:
    return WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)


# The condition


@torch.no_grad()
def test_the_image_is_a_mask_beside_the_latents_of_a_video_of_it_and_grey(folder, images, cond):
    vae = AutoencoderKLWan.from_pretrained(folder, subfolder="vae", dtype=torch.float32)
    mean, std = (torch.tensor(vae.config[f"latents_{m}"]).view(1, -1, 1, 1, 1) for m in ("mean", "std"))
    for path, found in zip(images, cond["image"], strict=True):
        stretched = Image.open(path).resize((48, 32), Image.Resampling.LANCZOS)
        first = torch.frombuffer(bytearray(stretched.tobytes()), dtype=torch.uint8).view(32, 48, 3).permute(2, 0, 1)
        video = torch.zeros(1, 3, 5, 32, 48)
        video[:, :, 0] = first / 127.5 - 1
        expected = (vae.encode(video).latent_dist.mode() - mean) / std
        mask, latents = found.split([tiny_wan_image.MASK, 4])
        torch.testing.assert_close(latents, expected[0], atol=1e-5, rtol=0)
        assert torch.equal(mask[:, 0], torch.ones(2, 8, 12)) and not mask[:, 1:].any()


@torch.no_grad()
def test_clip_sees_the_image_as_the_pipeline_shows_it(folder, images, cond):
    pipeline = WanImageToVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    expected = torch.cat([pipeline.encode_image(Image.open(path)) for path in images])
    assert cond["image_embeds"].shape == (2, 5, tiny_wan_image.CLIP)
    assert torch.equal(cond["image_embeds"], expected)


def test_a_negative_prompt_is_text_alone(teacher):
    negative = teacher.encode(["", "a red circle"])
    assert list(negative) == ["text"] and negative["text"].shape == (2, 512, 16)


def test_encoding_draws_nothing_from_the_global_generator(teacher, asked, cond):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    again = teacher.encode(asked)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(again[k], cond[k]) for k in cond)


def test_an_image_is_read_upright_and_in_rgb(tmp_path):
    upright = Image.new("RGB", (2, 3), "red")
    upright.putpixel((0, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn right by 90 degrees to see it
    turned = upright.transpose(Image.Transpose.ROTATE_90).convert("RGBA")
    turned.save(tmp_path / "turned.png", exif=exif)
    assert image_prompt.load(tmp_path / "turned.png").tobytes() == upright.tobytes()


# The network


@torch.no_grad()
def test_the_velocity_is_the_stock_transformer_of_latents_mask_and_image(folder, teacher, cond):
    x = noise(teacher)
    timestep = torch.tensor([25 / 26 * 1000, 500])
    both = torch.cat([x, cond["image"]], 1)
    expected = transformer(folder)(both, timestep, cond["text"], cond["image_embeds"], return_dict=False)[0]
    net = teacher.network()
    assert x.shape == expected.shape == (2, 4, 3, 8, 12)
    torch.testing.assert_close(net(x, SIGMA, cond), expected, atol=1e-6, rtol=0)
    for entry in ("image", "image_embeds"):
        other = Condition({**cond, entry: cond[entry].flip(0)})
        assert (net(x, SIGMA, other) - expected).abs().max() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_euler_steps_are_the_stock_pipeline(folder, teacher, images, cond, scale):
    x, negative = noise(teacher), teacher.encode(["", ""])
    ours = samplers.euler(Net(Role("teacher", teacher.network().eval())), x, flow.grid(6, 3.0), cond, negative, scale)
    options = {"num_inference_steps": 6, "guidance_scale": scale}
    for i in range(2):
        theirs = stock(folder, images[i], TEXTS[i], latents=x[i : i + 1].clone(), **options)
        torch.testing.assert_close(ours[i : i + 1], theirs, atol=1e-5, rtol=0)


@torch.no_grad()
def test_guidance_leads_away_from_the_text_and_keeps_the_image(teacher, cond):
    """Both branches in one call, and the unconditional one sees the same image."""
    x, negative = noise(teacher), teacher.encode(["a .", "a ."])
    net, role = teacher.network().eval(), Role("teacher", teacher.network().eval())
    v = net(x, SIGMA, cond)
    uncond = net(x, SIGMA, Condition({**cond, "text": negative["text"]}))
    torch.testing.assert_close(
        Net(role).guided(x, SIGMA, cond, negative, 3.0), uncond + 3 * (v - uncond), atol=1e-5, rtol=0
    )
    assert role.evaluations == 4


def test_guidance_of_text_alone_is_as_it_was():
    """The unconditional branch hears the negative text, and nothing more."""
    heard = []
    net = Net(toys.Toy(lambda x, sigma, cond: heard.append(dict(cond)) or toys.curved(x, sigma, cond)))
    batch = toys.batch()
    net.guided(batch.noise(), torch.ones(len(batch)), batch.cond, batch.negative, 2.0)
    [both] = heard
    assert both.keys() == batch.cond.keys() == batch.negative.keys()
    for name, value in both.items():
        assert torch.equal(value, torch.cat([batch.cond[name], batch.negative[name]]))


@torch.no_grad()
def test_features_are_what_the_stock_blocks_return_and_no_later_block_runs(folder, teacher, cond):
    x, seen = noise(teacher), []
    model = transformer(folder)
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output))
    model(torch.cat([x, cond["image"]], 1), 1000 * SIGMA, cond["text"], cond["image_embeds"])
    expected = [tokens.transpose(1, 2).reshape(2, teacher.width, 3, 4, 6) for tokens in seen]
    role, ran = Role("teacher", teacher.network().eval()), []
    for i, block in enumerate(role.module.transformer.blocks, 1):
        block.register_forward_pre_hook(lambda *_, i=i: ran.append(i))
    second, first = Net(role).features(x, SIGMA, cond, [2, 1])
    torch.testing.assert_close(first, expected[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(second, expected[1], atol=1e-6, rtol=0)
    assert ran == [1, 2] and teacher.depth == 3 and role.evaluations == 2


def test_features_pass_gradients_to_the_latents_with_and_without_checkpointing(teacher, cond):
    gradients = []
    for checkpointed in (False, True):
        net = teacher.network().requires_grad_(False)
        if checkpointed:
            net.enable_checkpointing()
        x = noise(teacher).requires_grad_()
        net(x, SIGMA, cond, features=[2])[0].square().sum().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 1e-3
    torch.testing.assert_close(*gradients)


def test_the_published_configuration_builds_with_its_own_layers(copied):
    edit(copied / "transformer" / "config.json", **tiny_wan_image.PUBLISHED)
    edit(copied / "vae" / "config.json", z_dim=16, scale_factor_temporal=4, scale_factor_spatial=8)
    teacher = WanImage(copied)
    names = dict(teacher.network(torch.bfloat16, "meta").named_parameters())
    assert names["transformer.blocks.39.attn2.add_k_proj.weight"].shape == (5120, 5120)
    assert names["transformer.patch_embedding.weight"].shape == (5120, 36, 1, 2, 2)
    assert sum(p.numel() for p in names.values()) == parameters(5120, 13824, 40)
    assert teacher.latent_shape(81, 480, 832) == (16, 21, 60, 104)


def parameters(d: int, ffn: int, layers: int) -> int:
    """Of the published network, layer by layer."""
    linear = lambda i, o: i * o + o  # noqa: E731
    attention = 4 * linear(d, d) + 2 * d
    image = 2 * linear(d, d) + d
    block = 2 * attention + image + linear(d, ffn) + linear(ffn, d) + 2 * d + 6 * d
    time = linear(256, d) + linear(d, d) + linear(d, 6 * d)
    embedders = time + linear(4096, d) + linear(d, d) + 2 * 1280 + linear(1280, 1280) + linear(1280, d) + 2 * d
    return linear(36 * 4, d) + embedders + layers * block + linear(d, 64) + 2 * d


# Prompts and their encodings


def test_images_of_a_prompt_file_start_from_its_folder(tmp_path):
    (tmp_path / "prompts.txt").write_text(f"pictures/a.png\ta cat\n{tmp_path}/b.png\t a dog\nno image\n")
    found = prompts.read(tmp_path / "prompts.txt")
    assert found == [f"{tmp_path}/pictures/a.png\ta cat", f"{tmp_path}/b.png\ta dog", "no image"]
    assert [image_prompt.text(prompt) for prompt in found] == ["a cat", "a dog", "no image"]


def test_images_of_a_recipe_start_from_it_and_must_exist(folder, tmp_path, monkeypatch):
    clips = {"prompts": ["0.png\ta red circle", "a red circle"]}
    path = runs.write(tmp_path / "here", folder, validation=clips)
    with pytest.raises(UserError, match=r"recipe.yaml:\d+:\d+: validation.prompts.0: no such file: .*/here/0.png$"):
        recipe.load(path)
    tiny_wan_image.image(path.parent / "0.png")
    monkeypatch.chdir(tmp_path)
    loaded = recipe.load("here/recipe.yaml").validation.prompts
    assert loaded == [f"{path.parent}/0.png\ta red circle", "a red circle"]
    recipe.save(recipe.load(path), tmp_path / "saved.yaml")
    assert recipe.load(tmp_path / "saved.yaml").validation.prompts == loaded


def test_stored_encodings_are_the_teachers_to_the_bit(teacher, asked, tmp_path, cond):
    store = Embeddings(teacher, tmp_path)
    store.prepare(asked, "a blue circle")
    got, negative = store.get(asked), store.get(["a blue circle"])
    assert got.keys() == cond.keys() and all(torch.equal(got[k], cond[k]) for k in cond)
    assert list(negative) == ["text"] and torch.equal(negative["text"], teacher.encode(["a blue circle"])["text"])


def test_an_encoding_belongs_to_the_content_of_its_image_the_text_and_the_size(folder, teacher, tmp_path):
    image, moved = tiny_wan_image.image(tmp_path / "a.png", 0), tiny_wan_image.image(tmp_path / "b" / "c.png", 0)
    prompt, again = image_prompt.join(image, "a red"), image_prompt.join(moved, "a red")
    store = Embeddings(teacher, tmp_path)
    file = store._file(prompt)
    assert store._file(again) == file != store._file(image_prompt.join(image, "a blue"))
    larger = teachers.load(TeacherSpec(family="wan_i2v", path=str(folder)), VIDEO.model_copy(update={"frames": 9}))
    assert Embeddings(larger, tmp_path)._file(prompt) != file
    assert Embeddings(larger, tmp_path)._file("a red") == store._file("a red")
    tiny_wan_image.image(image, 1)
    assert store._file(prompt) != file


def test_runs_and_clips_are_kept_apart_by_what_their_images_show(folder, teacher, tmp_path):
    """The names of kept results, the settings of kept clips, the data of a checkpoint; they change with it."""
    prompt = image_prompt.join(tiny_wan_image.image(tmp_path / "a.png", 0), "a red")
    clips = {"prompts": [prompt], "teacher_steps": [2]}
    loaded = recipe.load(runs.write(tmp_path, folder, validation=clips), [FAMILY])

    def known() -> tuple:
        stream = PromptStream([prompt], None, Condition(), (), loaded.train, torch.device("cpu"))
        asked = Asked((prompt,), 1, 0, 1.0, (2,))
        kept = measuring.Batch(SimpleNamespace(asked=asked), range(1)).name
        return kept, asked.facts()["images"], validation.settings(loaded)["images"], stream.digests

    before = known()
    assert known() == before
    tiny_wan_image.image(tmp_path / "a.png", 1)
    assert all(now != was for now, was in zip(known(), before, strict=True))


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


# Runs


def command(*arguments) -> str:
    process = runs.command(*arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def log(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def listed(folder: Path, names: tuple[int, ...] = (0, 1, 2)) -> Path:
    """A file of prompts with images of its own beside it."""
    for seed in names:
        tiny_wan_image.image(folder / "images" / f"{seed}.png", seed)
    lines = [f"images/{seed}.png\ta {colour} circle" for seed, colour in zip(names, ("red", "blue", "a"), strict=False)]
    (folder / "prompts.txt").write_text("\n".join(lines) + "\n")
    return folder / "prompts.txt"


@pytest.fixture(scope="module")
def run(folder, images, tmp_path_factory):
    """GPD, by the real command: 5 updates at k = 2 and 4 at k = 3, a student of two steps; clips."""
    here = tmp_path_factory.mktemp("run")
    clips = {"every": 9, "teacher_steps": [2, 6], "prompts": [image_prompt.join(images[0], TEXTS[0])]}
    path = runs.write(here, folder, validation=clips)
    command("run", path, FAMILY, f"data.prompts={listed(here)}")
    return here / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "student"
    command("export", run, folder)
    return folder


def test_gpd_trains_on_images_and_shows_its_clips(run):
    updates = log(run, "update")
    assert [line["stage"] for line in updates] == [0] * 5 + [1] * 4 and log(run, "done")
    assert [line["evaluations"]["teacher"] for line in updates] == [8] * 9  # four samples, guided
    assert (run / "samples" / "teacher_6" / "00.mp4").exists()
    page = (run / "index.html").read_text()
    assert TEXTS[0] in page and ".png\t" not in page


def test_the_exported_folder_is_the_student_to_the_stock_pipeline(run, exported, folder):
    saved = checkpoint.load_network(run, "student")
    written, before = (load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (exported, folder))
    assert all(torch.equal(written[name], saved[f"transformer.{name}"]) for name in written) and len(written) > 90
    assert any(not torch.equal(written[name], before[name]) for name in written)
    facts = json.loads((exported / "distill.json").read_text())
    assert (facts["pipeline"], facts["steps"], facts["guidance"]) == ("WanImageToVideoPipeline", 2, 1.0)
    assert facts["difference"] <= 1e-5
    for part in ("tokenizer", "text_encoder", "vae", "image_encoder", "image_processor"):
        files = [f.relative_to(folder) for f in (folder / part).rglob("*")]
        assert files and all((exported / f).read_bytes() == (folder / f).read_bytes() for f in files)


@pytest.mark.parametrize("source", ["run", "exported"])
@pytest.mark.parametrize(("steps", "guidance"), [(None, None), (3, 2.5)])
def test_a_sampled_clip_is_that_of_the_stock_pipeline(
    source, steps, guidance, request, exported, images, asked, tmp_path
):
    source = str(request.getfixturevalue(source))
    [path] = sample.sample(source, asked[:1], seed=7, out=tmp_path, latents=True, steps=steps, guidance=guidance)
    assert path.name == "a_red_circle_moves_left_7.mp4"
    options = {"num_inference_steps": steps or 2, "guidance_scale": guidance or 1.0}
    expected = stock(exported, images[0], TEXTS[0], generator=torch.Generator().manual_seed(7), **options)
    found = load_file(path.with_suffix(".safetensors"))["latents"]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_snippet_of_the_model_card_makes_the_sampled_clip(exported, tmp_path, monkeypatch):
    card = (exported / "README.md").read_text()
    assert "pipeline_tag: image-to-video" in card
    snippet = card.split("```python\n")[1].split("```")[0]
    monkeypatch.chdir(exported.parent)
    made: dict = {}
    exec(snippet.replace(").frames[0]", ', output_type="latent").frames'), made)
    prompt = image_prompt.join(exported / "example.png", "a red circle moves left")
    [path] = sample.sample(str(exported), [prompt], out=tmp_path, latents=True)
    torch.testing.assert_close(load_file(path.with_suffix(".safetensors"))["latents"], made["clip"], atol=1e-5, rtol=0)


def test_the_command_takes_the_image_as_an_option(exported, images, tmp_path):
    clip = command("sample", exported, "--prompt", "a red circle", "--image", images[0], "--out", tmp_path, "--latents")
    prompt = image_prompt.join(images[0], "a red circle")
    [path] = sample.sample(str(exported), [prompt], out=tmp_path / "again", latents=True)
    found, expected = (load_file(Path(p).with_suffix(".safetensors"))["latents"] for p in (clip.splitlines()[-1], path))
    assert torch.equal(found, expected)


@pytest.fixture(scope="module")
def recorded(folder, tmp_path_factory):
    """AccVideo by the real command, its store first: the folder, the recipe, its overrides."""
    here = tmp_path_factory.mktemp("accvideo")
    path = runs.write(here, folder, METHOD, ("student", "heads"))
    store = {"path": here / "store", "records": 4, "steps": 6, "shift": 3.0, "guidance": 3.0, "keep": 3}
    overrides = [FAMILY, f"data.prompts={listed(here)}", "train.steps=6", "checkpoint.every=100"]
    overrides += [f"data.trajectories.{key}={value}" for key, value in store.items()]
    command("run", path, *overrides)
    return here, path, overrides


def test_accvideo_records_and_trains_on_images(recorded, folder):
    """A record is the stock pipeline's: its prompt's image and text, from its own noise."""
    here, _, _ = recorded
    terms = [(line["network"], *line["terms"]) for line in log(here / "run", "update")]
    assert terms == [("student", "trajectory", "adversarial"), ("heads", "real", "fake")] * 6
    latents = load_file(next((here / "store" / "shards").glob("*.safetensors")))["latents"].float()
    for j in (1, 3):  # of three prompts
        image, text = here / "images" / f"{j % 3}.png", ("a red circle", "a blue circle")[j % 3]
        start = synthesize.noise_of(0, [j], (4, 3, 8, 12))
        expected = stock(folder, image, text, latents=start, num_inference_steps=6, guidance_scale=3.0)
        torch.testing.assert_close(latents[j, -1], expected[0], atol=5e-3, rtol=0)  # fp16


def test_a_changed_image_is_not_the_one_that_was_recorded(recorded):
    here, path, overrides = recorded
    image = here / "images" / "1.png"
    before = image.read_bytes()
    try:
        tiny_wan_image.image(image, 9)
        with pytest.raises(UserError, match=f"record 1 was made from what {image} showed before it was") as error:
            synthesize.run(recipe.load(path, overrides))
        assert "\n" not in str(error.value)
    finally:
        image.write_bytes(before)
    synthesize.run(recipe.load(path, overrides))


# Mistakes


MISTAKES = {
    "no image": ("wan_i2v", "a red circle", "prompt 'a red circle' has no image; wan_i2v starts from one: path/to/"),
    "absent": ("wan_i2v", "absent.png\ta red circle", "absent.png: no such image"),
    "no picture": ("wan_i2v", "text.png\ta red circle", "text.png: cannot be read as an image"),
    "torn": ("wan_i2v", "torn.png\ta red circle", "torn.png: cannot be read as an image .*truncated"),
    "an image": ("wan", "0.png\ta red circle", "has an image; wan makes videos of text alone: remove it"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_prompt_of_the_wrong_kind_is_refused_in_one_line(mistake, folder, tmp_path):
    family, prompt, message = MISTAKES[mistake]
    source = folder if family == "wan_i2v" else tiny_wan.build(tmp_path / "wan")
    whole = tiny_wan_image.image(tmp_path / "0.png").read_bytes()
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "prompts.txt").write_text(f"{prompt}\n")
    loaded = teachers.load(TeacherSpec(family=family, path=str(source)), VIDEO)
    with pytest.raises(UserError, match=message) as error:
        Embeddings(loaded, tmp_path).prepare(prompts.read(tmp_path / "prompts.txt"), "")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "a circle"], "prompt 'a circle' has no image; wan_i2v starts from one"),
        (["--prompt", "a circle", "--image", "absent.png"], "absent.png: no such image"),
        (["--prompt", "x.png\ta circle", "--image", "y.png"], "has an image of its own; leave out the other, y.png"),
        (["--prompts", "x.txt", "--image", "y.png"], "--image y.png has no --prompt TEXT"),
    ],
)
def test_sampling_without_its_image_ends_with_one_line_and_code_2(arguments, message, exported):
    process = runs.command("sample", exported, *arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 2 and message in said.splitlines()[-1] and "Traceback" not in said


FAULTS = {
    r"is a WanPipeline, expected a WanImageToVideoPipeline \(image to video\)": ("model_index", "WanPipeline"),
    "is a Wan 2.2 pipeline, expected Wan 2.1": ("model_index", None),
    "image_dim None and pos_embed_seq_len None; expected": ("transformer/config", {"image_dim": None}),
    "image_dim 8 and pos_embed_seq_len 514": ("transformer/config", {"pos_embed_seq_len": 514}),
}


@pytest.mark.parametrize("message", FAULTS)
def test_a_folder_that_is_no_such_teacher_is_refused_in_one_line(copied, message):
    file, change = FAULTS[message]
    if file == "model_index":
        change = {"_class_name": change} if change else {"boundary_ratio": 0.9}
    edit(copied / f"{file}.json", **change)
    with pytest.raises(UserError, match=message) as error:
        WanImage(copied)
    assert str(copied) in str(error.value) and "\n" not in str(error.value)


def test_an_image_to_video_folder_is_no_text_to_video_teacher(folder):
    with pytest.raises(UserError, match=r"is a WanImageToVideoPipeline, expected a WanPipeline \(text to video\)"):
        Wan(folder)


def test_missing_weights_of_the_image_encoder_are_named(copied):
    (copied / "image_encoder" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="image_encoder/ has no weights"):
        WanImage(copied)


def test_the_text_is_as_long_as_the_stock_attention_expects(folder):
    with pytest.raises(UserError, match="max_sequence_length is 8; wan_i2v takes 512 tokens of text"):
        WanImage(folder, max_sequence_length=8)


def test_the_fingerprint_follows_the_image_encoder(folder, copied):
    assert WanImage(copied).fingerprint == WanImage(folder).fingerprint
    file = copied / "image_encoder" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    assert WanImage(copied).fingerprint != WanImage(folder).fingerprint


# The shipped recipe


def test_the_recipe_halves_the_published_evaluations_into_guided_steps():
    """80 evaluations become 10 (section 5.3), on Wan's shift of image to video at 480p."""
    loaded = recipe.load(RECIPES / "accvideo_wan14b_i2v.yaml")
    method, store = assemble.method(loaded), loaded.data.trajectories
    assert 2 * store.steps == 80 and (method.m, store.keep, store.shift, store.guidance) == (10, 10, 3.0, 5.0)
    torch.testing.assert_close(method.grid(), flow.grid(40, 3.0)[::4])
    texts = [*prompts.read(loaded.data.prompts), *loaded.validation.prompts]
    image_prompt.check(texts, WanImage)
    assert all(image_prompt.load(image_prompt.split(text)[0]).size == (832, 480) for text in texts)


def test_the_recipe_builds_at_full_size_without_weights(copied):
    edit(copied / "transformer" / "config.json", **tiny_wan_image.PUBLISHED)
    edit(copied / "vae" / "config.json", z_dim=16, scale_factor_temporal=4, scale_factor_spatial=8)
    lines = build.describe(recipe.load(RECIPES / "accvideo_wan14b_i2v.yaml", [f"teacher.path={copied}"]))
    assert lines[0].startswith("latents   16 x 21 x 60 x 104")
    assert f"network   student: Trained, {parameters(5120, 13824, 40) / 1e6:.4g} M parameters" in lines
    assert lines[-1] == "sampling  10 evaluations per clip"


def test_the_recipe_records_and_trains_a_small_wan(folder, tmp_path):
    """Smaller and shallower, on its own images, in bf16 with checkpointing as the recipe says."""
    changes = {
        "teacher.path": folder,
        "video.frames": 5,
        "video.height": 32,
        "video.width": 48,
        "data.trajectories.path": tmp_path / "store",
        "data.trajectories.records": 2,
        "method.head_width": 8,
        "engine": "ddp",
        "train.batch_size": 2,
        "train.steps": 10,
        "checkpoint.every": 100,
        "validation.every": 100,
        "output": tmp_path / "run",
    }
    command("run", RECIPES / "accvideo_wan14b_i2v.yaml", *(f"{key}={value}" for key, value in changes.items()))
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert (index["steps"], index["teacher"]["family"], len(index["levels"])) == (40, "wan_i2v", 11)
    assert [line["network"] for line in log(tmp_path / "run", "update")] == ["student", "heads"] * 10
    assert log(tmp_path / "run", "done")
