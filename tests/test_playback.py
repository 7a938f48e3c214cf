"""Students that no stock scheduler plays: what their exports bring along makes the student's own latents."""

import json
import re
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from safetensors.torch import load_file
from torch import Tensor

from distill import export, flow, half_rate, sample, samplers, student
from distill.batch import generator
from distill.engine import Role
from distill.errors import UserError
from distill.evaluate import columns
from distill.interpolation import Interpolator
from distill.networks import Net
from distill.teachers.hunyuan_video import HunyuanVideo
from distill.teachers.wan import Wan
from tests import runs, tiny_hunyuan, tiny_wan

DMD = "{name: dmd, student_every: 1, sigmas: table}"
SIZE = {"num_frames": 5, "height": 32, "width": 48, "max_sequence_length": tiny_wan.TOKENS}
PROMPT = "a red circle moves left ."


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def interpolator(teacher, tmp_path_factory):
    return written(tmp_path_factory.mktemp("interpolator") / "net", Wan(teacher))


@pytest.fixture(scope="module")
def run(teacher, interpolator, tmp_path_factory):
    """A student of four steps with fresh noise between them, told other levels than its latents have."""
    options = {"half_rate": {"interpolator": str(interpolator), "steps": 2}}
    options["evaluation"] = {
        "prompts": [PROMPT],
        "samples": 2,
        "batch_size": 2,
        "teacher_steps": [2, 4],
        "guidance": 3.0,
    }
    path = runs.write(tmp_path_factory.mktemp("run"), teacher, DMD, ("student", "fake_score"), **options)
    return runs.train(path, "train.steps=2")


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export.export(run, tmp_path_factory.mktemp("export") / "student")


def written(folder, teacher, channels: int = 4, **facts):
    """The folder of an interpolator with random weights."""
    torch.manual_seed(0)
    network = Interpolator(channels, width=4).train()
    network(torch.randn(4, channels, 3, 8, 8))  # so that its running means are some
    said = {"family": teacher.family, "teacher": "a teacher", "vae": teacher.vae_fingerprint}
    half_rate.save(half_rate.Found(folder, network.eval(), said | facts), folder)
    return folder


def stock(folder, seed: int = 0, cls=WanPipeline, **options) -> Tensor:
    pipeline = cls.from_pretrained(folder, dtype=torch.float32, trust_remote_code=True, **options)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(
        PROMPT, generator=generator, output_type="latent", num_inference_steps=4, guidance_scale=1.0, **SIZE
    ).frames


def sampled(source, out, **options) -> Tensor:
    [path] = sample.sample(str(source), [PROMPT], out=out, latents=True, **options)
    return load_file(path.with_suffix(".safetensors"))["latents"]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_the_exported_folder_plays_a_student_that_renoises(run, exported, tmp_path):
    latents = stock(exported, seed=3)
    close(latents, sampled(run, tmp_path / "run", seed=3))
    close(latents, sampled(exported, tmp_path / "exported", seed=3))


def test_it_plays_at_half_rate_too_and_carries_the_interpolator(run, exported, tmp_path):
    latents = stock(exported, cls=DiffusionPipeline, custom_pipeline="half_rate")
    assert latents.shape == (1, 4, 3, 8, 12)
    close(latents, sampled(run, tmp_path / "run", half_rate=2))
    moved = tmp_path / "moved"
    shutil.copytree(exported, moved)
    close(latents, sampled(moved, tmp_path / "exported", half_rate=2))
    full = stock(exported)
    assert (latents - full).abs().max() > 0.01


def test_its_levels_are_the_students_and_not_a_shifted_grid(run, exported):
    scheduler = stock_scheduler(exported)
    method = student.load(run).method
    assert torch.equal(scheduler.sigmas, method.grid().float())
    assert torch.equal(scheduler.timesteps, 1000 * torch.tensor([1.0, 0.9, 0.757, 0.522]))
    assert not torch.equal(scheduler.sigmas[:-1] * 1000, scheduler.timesteps)
    facts = json.loads((exported / "distill.json").read_text())
    assert facts["shift"] is None and facts["renoises"] and facts["half_rate"] == 2
    assert facts["difference"] <= 1e-5 and facts["difference_half_rate"] <= 1e-5


def stock_scheduler(folder):
    return WanPipeline.from_pretrained(folder, trust_remote_code=True).scheduler


def test_the_snippets_of_its_card_run_and_make_the_sampled_clips(exported, tmp_path, monkeypatch):
    card = (exported / "README.md").read_text()
    snippets = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    assert len(snippets) == 2 and "(shift" not in card
    monkeypatch.chdir(exported.parent)
    for snippet, options in zip(snippets, ({}, {"half_rate": 2}), strict=True):
        assert len(snippet.strip().splitlines()) == 4
        made: dict = {}
        exec(snippet.replace(").frames[0]", ', output_type="latent").frames'), made)
        prompt = re.search(r'pipeline\("(.*?)"', snippet).group(1)
        [path] = sample.sample(str(exported), [prompt], out=tmp_path, latents=True, **options)
        close(load_file(path.with_suffix(".safetensors"))["latents"], made["clip"])


def test_a_scheduler_that_does_not_make_the_students_latents_is_noticed(run, tmp_path, monkeypatch):
    write = export.write_playback

    def damage(folder, found, half):
        write(folder, found, half)
        config = json.loads((folder / "scheduler/scheduler_config.json").read_text())
        config["sigmas"][1] += 1e-3
        (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))

    monkeypatch.setattr(export, "write_playback", damage)
    with pytest.raises(UserError, match=r"latents differ by .* from the student's"):
        export.export(run, tmp_path / "student")


def test_an_interpolator_that_does_not_arrive_is_noticed(run, tmp_path, monkeypatch):
    load = half_rate.load

    def other(path):
        found = load(path)
        torch.nn.init.ones_(found.network.out_conv.bias)
        return found

    write = export.write_playback

    def damage(*arguments):
        monkeypatch.setattr(half_rate, "load", other)
        write(*arguments)

    monkeypatch.setattr(export, "write_playback", damage)
    with pytest.raises(UserError, match=r"latents differ by .* from the student's"):
        export.export(run, tmp_path / "student")


def test_a_hunyuan_plays_at_half_rate(tmp_path):
    """Euler steps of a student with embedded guidance, of which the first is at half the frame rate."""
    folder = tiny_hunyuan.build(tmp_path / "teacher")
    net = written(tmp_path / "net", HunyuanVideo(folder))
    path = runs.write(tmp_path / "run", folder, half_rate={"interpolator": str(net), "steps": 1})
    run = runs.train(path, "teacher.family=hunyuan_video", "video.frames=9", "method.iterations=[1,1]")
    exported = export.export(run, tmp_path / "student")
    facts = json.loads((exported / "distill.json").read_text())
    assert facts["difference"] <= 1e-5 and facts["difference_half_rate"] <= 1e-5 and not facts["renoises"]
    close(sampled(run, tmp_path / "a", half_rate=1), sampled(exported, tmp_path / "b", half_rate=1))
    assert (sampled(run, tmp_path / "a", half_rate=1) - sampled(run, tmp_path / "c")).abs().max() > 0.01


def test_the_evaluation_measures_both_rates_from_the_same_noise(run):
    found, result = student.load(run), json.loads((run / "evaluation.json").read_text())
    half = half_rate.of_recipe(found.recipe, found.method, found.teacher)
    cond, shape = found.teacher.encode([PROMPT]), found.teacher.latent_shape(5, 32, 48)
    samples = result["per_sample"]
    for j in range(2):
        noise = torch.randn(1, *shape, generator=generator("evaluation", 2000, j))
        with torch.no_grad():
            full, made = found.method.sample(noise, cond), found.method.sample_half_rate(noise, cond, half)
        guided = samplers.euler(
            Net(Role("teacher", found.teacher.network().eval())),
            noise,
            flow.grid(4, result["shift"]),
            cond,
            found.teacher.encode([found.teacher.negative_prompt]),
            3.0,
        ).detach()
        for name, latents in (("student", full), ("student_half_rate", made)):
            distance = (latents - guided).square().mean().sqrt().item()
            assert samples[name]["rmse"][j] == pytest.approx(distance, rel=1e-3)
    full, made = (result["samplers"][name] for name in ("student", "student_half_rate"))
    assert made["evaluations"] == full["evaluations"] == 4 and 0.6 < made["flop"] / full["flop"] < 0.9
    assert "rmse" in result["difference"]["student_half_rate"] and result["reference"] == "teacher_4"
    assert "student, half rate" in (run / "index.html").read_text()


def test_another_interpolator_is_evaluated_anew(run, teacher, tmp_path):
    """Latents of an evaluation are kept under a key that follows from the interpolator's weights."""
    found = student.load(run)
    source = sample.of_method(found.method, found.teacher, found.recipe)
    one = half_rate.of_recipe(found.recipe, found.method, found.teacher)

    def identity(half):
        return columns.of_student(source, {}, [], half)[0][-1].identity

    other = half_rate.load(written(tmp_path / "other", Wan(teacher))).network
    assert identity(samplers.Half(2, other)) == identity(one) != identity(samplers.Half(1, other))
    torch.nn.init.constant_(other.out_conv.bias, 0.5)
    assert identity(samplers.Half(2, other)) != identity(one)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_rate": 4}, "--half-rate: 4 steps at half the frame rate, of 4"),
        ({"half_rate": 2, "steps": 3}, "leave out --steps, --guidance"),
        ({"half_rate": 2, "guidance": 3.0}, "leave out --steps, --guidance"),
        ({"interpolator": "x"}, "--interpolator x has no effect without --half-rate N"),
        ({"half_rate": 2, "interpolator": "absent"}, "absent is neither a run .* nor an interpolator's folder"),
    ],
)
def test_faults_of_half_rate_sampling_are_one_line(run, options, message, tmp_path):
    options = {k: tmp_path / v if v == "absent" else v for k, v in options.items()}
    with pytest.raises(UserError, match=message) as error:
        sampled(run, tmp_path / "out", **options)
    assert "\n" not in str(error.value)


def test_a_teacher_has_no_half_rate(teacher, interpolator, tmp_path):
    with pytest.raises(UserError, match="--half-rate: that is for students"):
        sampled(teacher, tmp_path, half_rate=2, interpolator=interpolator)


def test_an_interpolator_must_be_of_the_same_latents(run, teacher, tmp_path):
    other = written(tmp_path / "vae", Wan(teacher), vae="0123456789abcdef")
    with pytest.raises(UserError, match="was trained on latents of a teacher .*VAE 0123456789abcdef.*those of "):
        sampled(run, tmp_path / "out", half_rate=2, interpolator=other)
    wide = written(tmp_path / "wide", Wan(teacher), channels=5)
    with pytest.raises(UserError, match=r"5 channels, VAE .*those of .* are others \(wan, 4 channels"):
        sampled(run, tmp_path / "out", half_rate=2, interpolator=wide)


@pytest.mark.parametrize("part", ["distill.json", "config.json", "diffusion_pytorch_model.safetensors"])
def test_a_damaged_interpolator_is_one_line(run, interpolator, part, tmp_path):
    shutil.copytree(interpolator, tmp_path / "net")
    (tmp_path / "net" / part).write_bytes((interpolator / part).read_bytes()[:-20])
    with pytest.raises(UserError, match="holds no whole interpolator") as error:
        sampled(run, tmp_path / "out", half_rate=2, interpolator=tmp_path / "net")
    assert "\n" not in str(error.value)


def test_a_recipe_without_an_interpolator_needs_one_named(teacher, tmp_path):
    path = runs.write(tmp_path, teacher, DMD, ("student", "fake_score"))
    run = runs.train(path, "train.steps=1")
    with pytest.raises(UserError, match="--half-rate needs --interpolator RUN|FOLDER"):
        sampled(run, tmp_path / "out", half_rate=2)


def test_an_even_number_of_latent_frames_is_refused_before_training(teacher, interpolator, tmp_path):
    half = {"interpolator": str(interpolator)}
    path = runs.write(tmp_path, teacher, DMD, ("student", "fake_score"), half_rate=half)
    with pytest.raises(UserError, match="half_rate: 4 latent frames cannot be halved"):
        runs.train(path, "train.steps=1", "video.frames=7")
    assert not (tmp_path / "run/log.jsonl").exists()
