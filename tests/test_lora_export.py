"""Adapters as files: stock pipelines of diffusers and ComfyUI's names make the same student of them."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import diffusers
import pytest
import torch
from diffusers import HunyuanVideoPipeline, WanPipeline
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from distill import checkpoint, cli, export, export_lora, sample, student, teachers
from distill.errors import UserError
from distill.places import Lora
from distill.recipe import HalfRate, TeacherSpec, Video
from distill.teachers import lora_files
from tests import runs, tiny_hunyuan, tiny_wan

LORA = {"rank": 4, "alpha": 6.0}
PROMPT = "a red circle moves left"
SIZE = {"num_frames": 5, "height": 32, "width": 48, "max_sequence_length": tiny_wan.TOKENS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "teacher")


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """GPD in adapters that have moved far: 9 updates."""
    path = runs.write(tmp_path_factory.mktemp("run"), teacher, lora=LORA)
    return runs.train(path, "optim.student.lr=2e-2")


@pytest.fixture(scope="module")
def renoising(teacher, tmp_path_factory):
    """DMD, whose student adds noise between its steps, as no stock scheduler does; with an average."""
    networks = ("student", "fake_score")
    method = "{name: dmd, student_every: 2, levels: [1.0, 0.8, 0.5]}"
    path = runs.write(tmp_path_factory.mktemp("run"), teacher, method, networks, lora=LORA | {"targets": ["to_q"]})
    return runs.train(path, "train.steps=2", "train.ema=0.5", "optim.student.lr=2e-2")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export.export(run, tmp_path_factory.mktemp("export") / "adapters", lora=True)


def latents(source, folder, **options) -> Tensor:
    [path] = sample.sample(str(source), [PROMPT], out=folder, latents=True, **options)
    return load_file(path.with_suffix(".safetensors"))["latents"]


def played(pipeline, steps: int) -> Tensor:
    generator, options = torch.Generator().manual_seed(0), {"num_inference_steps": steps, "output_type": "latent"}
    return pipeline(PROMPT, generator=generator, guidance_scale=1.0, **options, **SIZE).frames


def test_a_stock_pipeline_with_the_adapters_samples_like_the_student(run, exported, teacher, tmp_path):
    pipeline = WanPipeline.from_pretrained(teacher, dtype=torch.float32)
    without = played(pipeline, 2)
    pipeline.load_lora_weights(exported)
    pipeline.scheduler = type(pipeline.scheduler).from_pretrained(exported, subfolder="scheduler")
    mine = latents(run, tmp_path)
    torch.testing.assert_close(played(pipeline, 2), mine, atol=1e-5, rtol=0)
    assert (without - mine).abs().max() > 0.01
    assert json.loads((exported / "distill.json").read_text())["difference"] <= export.TOLERANCE


def test_the_header_says_rank_and_alpha(exported):
    with safe_open(exported / lora_files.DIFFUSERS, "pt") as file:
        said = json.loads(file.metadata()["lora_adapter_metadata"])
    assert (said["transformer.r"], said["transformer.lora_alpha"]) == (4, 6.0)


def test_the_merged_export_is_the_base_with_the_adapters_folded_in(run, teacher, tmp_path):
    folder = export.export(run, tmp_path / "student")
    written, stock = (load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (folder, teacher))
    saved = {key.removeprefix("transformer."): each for key, each in checkpoint.load_network(run, "student").items()}
    for name, weight in stock.items():
        layer = name.removesuffix(".weight")
        if f"{layer}.lora_A.weight" in saved:
            weight = weight + 6 / 4 * saved[f"{layer}.lora_B.weight"] @ saved[f"{layer}.lora_A.weight"]
        torch.testing.assert_close(written[name], weight, atol=1e-6, rtol=1e-6)
    assert sum(not torch.equal(written[name], stock[name]) for name in stock) == len(saved) / 2 == 20
    assert "rank 4, alpha 6.0, on every linear layer of the blocks; merged" in (folder / "README.md").read_text()
    torch.testing.assert_close(latents(folder, tmp_path / "a"), latents(run, tmp_path / "b"), atol=1e-5, rtol=0)


def test_the_snippet_of_the_card_makes_the_sampled_clip(run, exported, tmp_path, monkeypatch):
    monkeypatch.chdir(exported.parent)
    made = execute(exported)
    prompt = re.search(r'pipeline\("(.*?)"', (exported / "README.md").read_text()).group(1)
    assert prompt == PROMPT
    torch.testing.assert_close(latents(run, tmp_path), made["clip"], atol=1e-5, rtol=0)
    assert "rank 4, alpha 6.0, on every linear layer of the blocks |" in (exported / "README.md").read_text()


def execute(folder) -> dict:
    snippet = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL).group(1)
    made: dict = {}
    exec(snippet.replace(").frames[0]", ', output_type="latent").frames'), made)
    return made


def test_a_student_that_adds_noise_between_its_steps_brings_its_scheduler_along(renoising, tmp_path, monkeypatch):
    """By the real command; the student is its moving average."""
    folder = tmp_path / "adapters"
    result = CliRunner().invoke(cli.app, ["export", str(renoising), str(folder), "--lora"])
    assert result.exit_code == 0 and result.stdout.strip() == str(folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    made = execute(folder)
    torch.testing.assert_close(latents(renoising, tmp_path), made["clip"], atol=1e-5, rtol=0)
    average = checkpoint.load_network(renoising, "student_ema")
    assert torch.equal(load_file(folder / lora_files.DIFFUSERS)[name := next(iter(average))], average[name])
    assert "on to_q |" in (folder / "README.md").read_text()


# ComfyUI


def restated_wan(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The change of each of our layers, from ComfyUI's names by another way: word by word."""
    words = {"self_attn": "attn1", "cross_attn": "attn2", "q": "to_q", "k": "to_k", "v": "to_v", "o": "to_out.0"}
    found = {}
    for key in weights:
        if not key.endswith(".alpha"):
            continue
        layer = key.removesuffix(".alpha")
        prefix, *path = layer.split(".")
        assert prefix == "diffusion_model"
        if path[2] == "ffn":
            path[3:] = {"0": ["net", "0", "proj"], "2": ["net", "2"]}[path[3]]
        down, up = weights[f"{layer}.lora_down.weight"], weights[f"{layer}.lora_up.weight"]
        found[".".join(words.get(word, word) for word in path)] = weights[key] / down.shape[0] * up @ down
    return found


def test_comfyuis_names_say_the_same_change_of_every_layer(run, exported):
    theirs = load_file(exported / lora_files.COMFYUI)
    saved = checkpoint.load_network(run, "student")
    assert "diffusion_model.blocks.1.self_attn.q.lora_down.weight" in theirs
    assert {float(theirs[key]) for key in theirs if key.endswith(".alpha")} == {6.0} and len(theirs) == 3 * 20
    found = restated_wan(theirs)
    assert len(found) == 20
    for name, change in found.items():
        up, down = (saved[f"transformer.{name}.lora_{x}.weight"] for x in "BA")
        torch.testing.assert_close(change, 6 / 4 * up @ down, atol=1e-7, rtol=1e-6)


def test_diffusers_reads_comfyuis_names_too(run, exported, teacher, tmp_path):
    """A second reader of the same names, which is not ours."""
    pipeline = WanPipeline.from_pretrained(teacher, dtype=torch.float32)
    pipeline.load_lora_weights(exported, weight_name=lora_files.COMFYUI)
    pipeline.scheduler = type(pipeline.scheduler).from_pretrained(exported, subfolder="scheduler")
    torch.testing.assert_close(played(pipeline, 2), latents(run, tmp_path), atol=1e-5, rtol=0)


def random_adapters(network, names: list[str], rank: int) -> dict[str, Tensor]:
    draw, found = torch.Generator().manual_seed(0), {}
    for name in names:
        layer = network.get_submodule(name)
        found[f"{name}.lora_A.weight"] = torch.randn(rank, layer.in_features, generator=draw)
        found[f"{name}.lora_B.weight"] = torch.randn(layer.out_features, rank, generator=draw)
    return found


def test_every_linear_layer_of_wan_has_a_name_in_comfyui(teacher, tmp_path):
    wan = teachers.load(TeacherSpec(family="wan", path=str(teacher)), Video(**tiny_wan.VIDEO, fps=8))
    network = wan.network()
    names = [name for name, each in network.named_modules() if isinstance(each, torch.nn.Linear)]
    weights = random_adapters(network, names, 2)
    assert lora_files.save_comfyui("WanPipeline", tmp_path, weights, Lora(rank=2), network) == []
    downs = [key for key in load_file(tmp_path / lora_files.COMFYUI) if key.endswith("lora_down.weight")]
    assert len(downs) == len(names) == 20 + 6
    published = {"time_embedding.0", "time_projection.1", "text_embedding.2", "head.head", "blocks.0.cross_attn.k"}
    assert {f"diffusion_model.{name}.lora_down.weight" for name in published} <= set(downs)


@pytest.fixture(scope="module")
def hunyuan(tmp_path_factory):
    folder = tiny_hunyuan.build(tmp_path_factory.mktemp("hunyuan") / "teacher")
    return teachers.load(TeacherSpec(family="hunyuan_video", path=str(folder)), Video(**tiny_hunyuan.VIDEO, fps=8))


@pytest.mark.parametrize("targets", [None, ["attn.to_k", "attn.add_v_proj", "proj_mlp", "proj_out"]])
def test_hunyuan_videos_matrices_stand_one_above_the_other(hunyuan, tmp_path, targets):
    """Our layers are slices of the rows of its img_attn_qkv, txt_attn_qkv and linear1."""
    network, lora = hunyuan.network(), Lora(rank=4, alpha=6.0)
    blocks = [name for name in dict(network.named_modules()) if "context_embedder" not in name and "blocks." in name]
    linear = [name for name in blocks if isinstance(network.get_submodule(name), torch.nn.Linear)]
    names = [name for name in linear if targets is None or name.endswith(tuple(targets))]
    weights = random_adapters(network, names, 4)
    assert lora_files.save_comfyui(hunyuan.pipeline, tmp_path, weights, lora, network) == []
    theirs, seen = load_file(tmp_path / lora_files.COMFYUI), set()
    width = hunyuan.width
    for key in (key for key in theirs if key.endswith(".alpha")):
        layer = key.removesuffix(".alpha")
        down, up = theirs[f"{layer}.lora_down.weight"], theirs[f"{layer}.lora_up.weight"]
        change = theirs[key] / len(down) * up @ down
        for name, rows in parts(layer.removeprefix("diffusion_model."), change, width):
            if name not in names:
                assert not rows.any()
                continue
            a, b = weights[f"{name}.lora_A.weight"], weights[f"{name}.lora_B.weight"]
            torch.testing.assert_close(rows, 6 / 4 * b @ a, atol=1e-5, rtol=1e-5)
            seen.add(name)
    assert seen == set(names) and len(seen) >= 8


def parts(layer: str, change: Tensor, width: int) -> list[tuple[str, Tensor]]:
    """Our names, and the rows of ComfyUI's layer that they are."""
    kind, i, last = layer.split(".", 2)
    ours = f"transformer.{'single_' if kind == 'single_blocks' else ''}transformer_blocks.{i}"
    if last.endswith("attn_qkv"):
        words = ("to_q", "to_k", "to_v") if last.startswith("img") else ("add_q_proj", "add_k_proj", "add_v_proj")
        return [(f"{ours}.attn.{word}", rows) for word, rows in zip(words, change.split(width), strict=True)]
    if last == "linear1":
        starts = {"attn.to_q": 0, "attn.to_k": width, "attn.to_v": 2 * width}
        found = [(f"{ours}.{word}", change[start : start + width]) for word, start in starts.items()]
        return [*found, (f"{ours}.proj_mlp", change[3 * width :])]
    single = {"img_mod.linear": "norm1.linear", "txt_mod.linear": "norm1_context.linear", "linear2": "proj_out"}
    single |= {"img_attn_proj": "attn.to_out.0", "txt_attn_proj": "attn.to_add_out", "modulation.linear": "norm.linear"}
    single |= {"img_mlp.fc1": "ff.net.0.proj", "img_mlp.fc2": "ff.net.2"}
    single |= {"txt_mlp.fc1": "ff_context.net.0.proj", "txt_mlp.fc2": "ff_context.net.2"}
    return [(f"{ours}.{single[last]}", change)]


def test_a_hunyuan_video_run_exports_what_its_stock_pipeline_reads(hunyuan, tmp_path):
    path = runs.write(tmp_path, hunyuan.files.folder(), lora=LORA)
    run = runs.train(path, "teacher.family=hunyuan_video", "method.iterations=[2, 2]", "optim.student.lr=1e-2")
    folder = export.export(run, tmp_path / "adapters", lora=True)
    pipeline = HunyuanVideoPipeline.from_pretrained(hunyuan.path, dtype=torch.float32)
    pipeline.load_lora_weights(folder)
    pipeline.scheduler = diffusers.FlowMapEulerDiscreteScheduler.from_pretrained(folder, subfolder="scheduler")
    options = {"num_inference_steps": 2, "guidance_scale": 6.0, "output_type": "latent"} | SIZE
    made = pipeline(PROMPT, generator=torch.Generator().manual_seed(0), **options).frames
    torch.testing.assert_close(made, latents(run, tmp_path), atol=1e-5, rtol=0)
    assert (folder / lora_files.COMFYUI).is_file()


def test_layers_without_a_name_in_comfyui_have_no_file_for_it(hunyuan, tmp_path):
    network, name = hunyuan.network(), "transformer.proj_out"
    weights = random_adapters(network, [name], 2)
    assert lora_files.save_comfyui(hunyuan.pipeline, tmp_path, weights, Lora(rank=2), network) == ["proj_out"]
    assert not list(tmp_path.iterdir())


# Refusals


def test_adapters_that_do_not_arrive_are_noticed(run, tmp_path, monkeypatch):
    save = lora_files.save_diffusers
    monkeypatch.setattr(lora_files, "save_diffusers", lambda *most: save(*most[:-1], Lora(rank=4, alpha=5.0)))
    with pytest.raises(UserError, match="the stock pipeline's latents differ by"):
        export.export(run, tmp_path / "adapters", lora=True)
    assert not (tmp_path / "adapters").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lora": None}, "--lora: {run} trained whole networks, its recipe has no section lora; leave it out"),
        (
            {"half_rate": HalfRate(interpolator=Path("x"))},
            "--lora: {run} has a section half_rate",
        ),
        ({}, "--lora: the student of {run} is told where its steps end, which changes its embedding of time"),
    ],
)
def test_a_student_that_is_more_than_adapters_is_refused(run, tmp_path, monkeypatch, change, message):
    found = student.load(run)
    if not change:
        monkeypatch.setattr(found.method, "ends", True)
    changed = replace(found, recipe=found.recipe.model_copy(update=change))
    with pytest.raises(UserError, match=re.escape(message.format(run=run))):
        export_lora.write(run, changed, tmp_path / "adapters", "adapters")
    assert not (tmp_path / "adapters").exists()
