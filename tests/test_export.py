"""What leaves a run -- the exported folder, the clips -- is what stock diffusers makes of it."""

import json
import re

import pytest
import torch
from diffusers import WanPipeline
from safetensors.torch import load_file
from torch import Tensor
from typer.testing import CliRunner

from distill import checkpoint, cli, export, flow, sample, student, video
from distill.errors import UserError
from distill.teachers.wan import Wan
from tests import runs, tiny_wan

PROMPTS = ["a red circle moves left .", "a blue square ."]
SIZE = {"num_frames": 5, "height": 32, "width": 48, "max_sequence_length": tiny_wan.TOKENS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """GPD, 5 updates at k = 2 and 4 at k = 3: a student of two steps."""
    return runs.train(runs.write(tmp_path_factory.mktemp("run"), teacher), "checkpoint.keep=9")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export.export(run, tmp_path_factory.mktemp("export") / "student")


def stock(folder, prompt: str, seed: int, **options) -> Tensor:
    pipeline = WanPipeline.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(prompt, generator=generator, output_type="latent", **SIZE, **options).frames


def latents(path) -> Tensor:
    return load_file(path.with_suffix(".safetensors"))["latents"]


def test_the_exported_transformer_is_the_student_and_not_the_teacher(run, exported, teacher):
    saved = checkpoint.load_network(run, "student")
    written, before = (load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (exported, teacher))
    assert all(torch.equal(written[name], saved[f"transformer.{name}"]) for name in written) and len(written) > 40
    assert any(not torch.equal(written[name], before[name]) for name in written)


def test_the_scheduler_has_the_levels_the_student_was_trained_on(exported):
    pipeline = WanPipeline.from_pretrained(exported)
    pipeline.scheduler.set_timesteps(2)
    torch.testing.assert_close(pipeline.scheduler.sigmas, flow.grid(6, 5.0)[::3], atol=1e-7, rtol=0)
    assert type(pipeline.scheduler).__name__ == "FlowMapEulerDiscreteScheduler"


def test_other_parts_are_the_teachers_files(exported, teacher):
    for part in ("tokenizer", "text_encoder", "vae"):
        files = [f.relative_to(teacher) for f in (teacher / part).rglob("*")]
        assert files and all((exported / f).read_bytes() == (teacher / f).read_bytes() for f in files)


@pytest.mark.parametrize("source", ["run", "exported"])
def test_a_sampled_clip_is_that_of_the_stock_pipeline(source, request, exported, tmp_path, monkeypatch):
    folder, written = request.getfixturevalue(source), []
    monkeypatch.setattr(video, "write", lambda path, clip, fps: written.append((clip, fps)) or path)
    paths = sample.sample(str(folder), PROMPTS, seed=7, out=tmp_path, latents=True)
    assert [p.name for p in paths] == ["a_red_circle_moves_left_7.mp4", "a_blue_square_8.mp4"]
    for path, prompt, seed, (clip, fps) in zip(paths, PROMPTS, (7, 8), written, strict=True):
        expected = stock(exported, prompt, seed, num_inference_steps=2, guidance_scale=1.0)
        torch.testing.assert_close(latents(path), expected, atol=1e-5, rtol=0)
        assert torch.equal(clip, Wan(exported).decode(latents(path))[0]) and (len(clip), fps) == (5, 8)


@pytest.mark.parametrize("source", ["run", "exported"])
def test_steps_and_guidance_are_the_ones_asked_for(source, request, exported, tmp_path):
    folder = request.getfixturevalue(source)
    [path] = sample.sample(str(folder), PROMPTS[:1], steps=3, guidance=2.5, out=tmp_path, latents=True)
    expected = stock(exported, PROMPTS[0], 0, num_inference_steps=3, guidance_scale=2.5)
    torch.testing.assert_close(latents(path), expected, atol=1e-5, rtol=0)


def test_a_teacher_is_sampled_as_its_pipeline_does(teacher, tmp_path):
    copy = tiny_wan.build(tmp_path / "teacher")
    settings = {"steps": 4, "guidance": 3.0, "video": {**tiny_wan.VIDEO, "fps": 8}}
    (copy / "distill.json").write_text(json.dumps(settings))
    [path] = sample.sample(str(copy), PROMPTS[:1], seed=1, out=tmp_path / "clips", latents=True)
    expected = stock(teacher, PROMPTS[0], 1, num_inference_steps=4, guidance_scale=3.0)
    torch.testing.assert_close(latents(path), expected, atol=1e-5, rtol=0)


def test_the_snippet_of_the_model_card_runs_and_makes_the_sampled_clip(exported, tmp_path, monkeypatch):
    snippet = re.search(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL).group(1)
    assert len(snippet.strip().splitlines()) == 4
    monkeypatch.chdir(exported.parent)
    made: dict = {}
    exec(snippet.replace(").frames[0]", ', output_type="latent").frames'), made)
    prompt = re.search(r'pipeline\("(.*?)"', snippet).group(1)
    [path] = sample.sample(str(exported), [prompt], out=tmp_path, latents=True)
    torch.testing.assert_close(latents(path), made["clip"], atol=1e-5, rtol=0)


def test_the_card_says_what_the_student_is_and_what_it_cost(run, exported):
    card, facts = (exported / "README.md").read_text(), json.loads((exported / "distill.json").read_text())
    updates = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    updates = [line for line in updates if line["kind"] == "update"]
    assert facts["update"] == len(updates) == 9
    assert facts["cost"]["seconds"] == pytest.approx(sum(line["seconds"] for line in updates))
    assert facts["cost"]["evaluations"] == {
        name: sum(line["evaluations"].get(name, 0) for line in updates) for name in ("teacher", "prior", "student")
    }
    assert facts["cost"]["evaluations"]["student"] == 9 * 4
    assert facts["sigmas"] == pytest.approx([1.0, 5 / 6, 0.0]) and facts["difference"] <= 1e-5
    assert facts["recipe"]["method"]["teacher_steps"] == 6 and facts["recipe"]["optim"]["student"]["lr"] == 1e-3
    for said in ("distilled with gpd: 2 evaluations", "1.0000, 0.8333, 0.0000 (shift 5.0)", "9 updates", "lr: 0.001"):
        assert said in card
    assert "{" not in card.split("## Recipe")[0]


def test_cost_is_scaled_up_where_not_every_update_was_logged(run, tmp_path):
    lines = (run / "log.jsonl").read_text().splitlines()
    (tmp_path / "log.jsonl").write_text("\n".join(line for line in lines if '"update": 9' not in line) + "\n")
    assert export.cost(tmp_path, 9)["evaluations"]["student"] == 9 * 4
    first = [json.loads(line)["seconds"] for line in lines if '"kind": "update"' in line][:3]
    assert export.cost(run, 3)["seconds"] == pytest.approx(sum(first))


def test_a_student_samples_in_the_steps_of_its_own_stage(run, tmp_path):
    """Updates 1 to 5 were at k = 2 of 6 teacher steps, 6 to 9 at k = 3."""
    steps = [len(student.load(run, update).method.grid()) - 1 for update in (1, 5, 6, 9)]
    assert steps == [3, 3, 2, 2] and student.load(run).update == 9
    facts = json.loads((export.export(run, tmp_path / "early", 4) / "distill.json").read_text())
    assert (facts["update"], facts["steps"]) == (4, 3)
    with pytest.raises(UserError, match="no whole checkpoint of update 10; it has: 9, 8, 7"):
        export.export(run, tmp_path / "none", 10)


def test_weights_that_do_not_arrive_are_noticed(run, tmp_path, monkeypatch):
    loaded = student.load(run)
    save = type(loaded.teacher).save

    def damage(self, folder, network, shift):
        save(self, folder, network, shift + 0.01)

    monkeypatch.setattr(type(loaded.teacher), "save", damage)
    with pytest.raises(UserError, match="the stock pipeline's latents differ by"):
        export.export(run, tmp_path / "student")
    assert not (tmp_path / "student").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(run, tmp_path):
    folder = export.export(run, tmp_path / "student")
    (folder / "distill.json").write_text("{}")
    export.export(run, folder)
    assert json.loads((folder / "distill.json").read_text())["update"] == 9
    (tmp_path / "other").mkdir()
    with pytest.raises(UserError, match="exists and is no earlier export"):
        export.export(run, tmp_path / "other")


def test_euler_steps_at_levels_that_no_shift_gives_bring_their_scheduler_along(run, tmp_path, monkeypatch):
    method = type(student.load(run).method)
    levels = torch.tensor([1.0, 0.9, 0.3, 0.0], dtype=torch.float64)
    monkeypatch.setattr(method, "grid", lambda self: levels)
    monkeypatch.setattr(method, "teacher_shift", lambda self: 5.0)
    folder = export.export(run, tmp_path / "student")
    [path] = sample.sample(str(folder), PROMPTS[:1], out=tmp_path, latents=True)
    played = stock(folder, PROMPTS[0], 0, num_inference_steps=3, guidance_scale=1.0)
    torch.testing.assert_close(latents(path), played, atol=1e-5, rtol=0)
    [path] = sample.sample(str(run), PROMPTS[:1], out=tmp_path, latents=True)
    torch.testing.assert_close(latents(path), played, atol=1e-5, rtol=0)
    assert json.loads((folder / "distill.json").read_text())["shift"] is None


@pytest.mark.parametrize(
    ("source", "message"),
    [("empty", "is neither a run .* nor a pipeline's folder"), ("absent", "no teacher at .*absent")],
)
def test_a_source_that_is_none_is_refused_in_one_line(source, message, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=message) as error:
        sample.sample(str(tmp_path / source), ["x"], out=tmp_path / "out")
    assert str(tmp_path / source) in str(error.value) and "\n" not in str(error.value)


def test_the_command_writes_clips_and_says_where(exported, tmp_path):
    line = ["sample", exported, "--prompt", "a red circle", "--prompt", "a", "--seed", 3, "--out", tmp_path]
    result = CliRunner().invoke(cli.app, [str(word) for word in line])
    assert result.exit_code == 0
    clips = [tmp_path / "a_red_circle_3.mp4", tmp_path / "a_4.mp4"]
    assert result.stdout.split() == [str(clip) for clip in clips] and all(clip.is_file() for clip in clips)
