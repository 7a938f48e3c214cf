"""Runs on the HunyuanVideo teacher: methods by the real command, what leaves a run, the shipped recipe."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoPipeline
from safetensors.torch import load_file
from torch import Tensor

from distill import assemble, build, checkpoint, flow, recipe, sample, synthesize, trainer
from distill.errors import UserError
from distill.networks import Net
from distill_methods.gpd import GPD
from tests import runs, tiny_hunyuan, toys

RECIPES = Path(__file__).parents[1] / "recipes"
FAMILY = "teacher.family=hunyuan_video"
PROMPT = "a red circle moves left ."
SIZE = {"num_frames": 5, "height": 32, "width": 48, "max_sequence_length": tiny_hunyuan.TOKENS}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_hunyuan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """GPD, by the real command: 5 updates at k = 2 and 4 at k = 3, a student of two steps; clips after each stage."""
    clips = {"every": 5, "teacher_steps": [2, 6], "prompts": [PROMPT]}
    path = runs.write(tmp_path_factory.mktemp("run"), teacher, validation=clips)
    command("run", path, FAMILY, "method.shift=7.0")
    return path.parent / "run"


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "student"
    command("export", run, folder)
    return folder


def command(*arguments) -> str:
    process = runs.command(*arguments)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def log(run: Path, kind: str) -> list[dict]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def stock(folder: Path, seed: int, **options) -> Tensor:
    pipeline = HunyuanVideoPipeline.from_pretrained(folder, dtype=torch.float32)
    generator = torch.Generator().manual_seed(seed)
    return pipeline(PROMPT, generator=generator, output_type="latent", **SIZE, **options).frames


def sampled(source: Path, out: Path, **options) -> Tensor:
    [path] = sample.sample(str(source), [PROMPT], seed=7, out=out, latents=True, **options)
    return load_file(path.with_suffix(".safetensors"))["latents"]


def test_gpd_asks_the_teacher_once_a_step_for_what_costs_wan_two(run):
    """Four samples: the frozen student, the teacher and the student see each once, guided or not."""
    updates = log(run, "update")
    assert [line["stage"] for line in updates] == [0] * 5 + [1] * 4 and log(run, "done")
    assert [line["evaluations"] for line in updates] == [{"prior": 4, "teacher": 4, "student": 4}] * 9
    assert (run / "samples" / "teacher_6" / "00.mp4").exists() and log(run, "validation")


def test_gpd_tells_the_teacher_its_scale_and_asks_students_as_they_are_trained():
    """The frozen student is the teacher in the first stage, and a student that was told nothing in the second."""
    told: dict[str, set] = {}

    def hears(name):
        role = toys.Toy(
            lambda x, sigma, cond: told.setdefault(name, set()).add(heard(cond)) or toys.curved(x, sigma, cond)
        )
        role.guidance_embedded = True
        return Net(role)

    def heard(cond):
        return cond["guidance"].unique().item() if "guidance" in cond else None

    method = GPD(teacher_steps=6, steps=2, iterations=1, guidance=(4.0, 3.0))
    method.teacher, method.prior, method.student = map(hears, ("teacher", "prior", "student"))
    for stage, scale in zip(method.stages(), (4.0, 3.0), strict=True):
        method.stage = stage
        told.clear()
        b = toys.batch()
        b.state["z"] = b.noise()
        method.loss(b, i=6)
        assert told == {"teacher": {scale}, "prior": {scale if stage.k == 2 else None}, "student": {None}}


def test_the_exported_folder_is_the_student_to_the_stock_pipeline(run, exported, teacher):
    saved = checkpoint.load_network(run, "student")
    written, before = (load_file(f / "transformer/diffusion_pytorch_model.safetensors") for f in (exported, teacher))
    assert all(torch.equal(written[name], saved[f"transformer.{name}"]) for name in written) and len(written) > 100
    assert any(not torch.equal(written[name], before[name]) for name in written)
    facts = json.loads((exported / "distill.json").read_text())
    assert (facts["steps"], facts["guidance"], facts["shift"]) == (2, 6.0, 7.0) and facts["difference"] <= 1e-5
    for part in ("tokenizer", "tokenizer_2", "text_encoder", "text_encoder_2", "vae"):
        files = [f.relative_to(teacher) for f in (teacher / part).rglob("*")]
        assert files and all((exported / f).read_bytes() == (teacher / f).read_bytes() for f in files)


@pytest.mark.parametrize("source", ["run", "exported"])
@pytest.mark.parametrize(("steps", "guidance"), [(None, None), (3, 2.5), (2, 1.0)])
def test_a_sampled_clip_is_that_of_the_stock_pipeline(source, steps, guidance, request, exported, tmp_path):
    """As the student was trained, at guidance 6; or as asked."""
    found = sampled(request.getfixturevalue(source), tmp_path, steps=steps, guidance=guidance)
    expected = stock(exported, 7, num_inference_steps=steps or 2, guidance_scale=guidance or 6.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("guidance", [None, 1.0, 4.0])
def test_a_teacher_is_sampled_as_its_pipeline_does(teacher, tmp_path, monkeypatch, guidance):
    small = {"video": {**tiny_hunyuan.VIDEO, "fps": 8}}
    monkeypatch.setitem(sample.SETTINGS, "HunyuanVideoPipeline", sample.SETTINGS["HunyuanVideoPipeline"] | small)
    found = sampled(teacher, tmp_path, steps=4, guidance=guidance)
    expected = stock(teacher, 7, num_inference_steps=4, guidance_scale=guidance or 6.0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_the_snippet_of_the_model_card_makes_the_sampled_clip(exported, tmp_path, monkeypatch):
    card = (exported / "README.md").read_text()
    assert "2 evaluations per clip.\n" in card and "Wan" not in card.split("## Recipe")[0]
    snippet = card.split("```python\n")[1].split("```")[0].replace("a red circle moves left", PROMPT)
    monkeypatch.chdir(exported.parent)
    made: dict = {}
    exec(snippet.replace(").frames[0]", ', output_type="latent").frames').replace("seed(0)", "seed(7)"), made)
    torch.testing.assert_close(sampled(exported, tmp_path), made["clip"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("begin", [synthesize.run, trainer.run])
def test_a_negative_prompt_that_nothing_would_see_is_refused_in_one_line(begin, teacher, tmp_path):
    path = runs.write(tmp_path, teacher, "{name: accvideo, recorder_steps: 5, head_width: 8}", ("student", "heads"))
    store = ["data.trajectories.path=store", "data.trajectories.records=2", "data.trajectories.steps=5"]
    checked = recipe.load(path, [FAMILY, "data.negative_prompt=blurred", "train.steps=1", *store])
    with pytest.raises(UserError, match="data.negative_prompt has no effect: hunyuan_video is told") as error:
        begin(checked)
    assert "\n" not in str(error.value)


# The shipped recipe


def test_the_recipe_says_what_the_paper_prints():
    loaded = recipe.load(RECIPES / "accvideo_hunyuan.yaml")
    method, train, store = assemble.method(loaded), loaded.train, loaded.data.trajectories
    assert (loaded.video.frames, loaded.video.height, loaded.video.width) == (93, 544, 960)
    assert (method.m, method.adversarial, loaded.optim["student"].lr) == (5, 0.1, 5e-6)
    assert (train.batch_size, train.steps) == (32, 1200)
    assert (store.records, store.steps, store.shift, store.guidance, store.keep) == (38400, 50, 7.0, 6.0, 5)
    torch.testing.assert_close(method.grid(), flow.grid(50, 7.0)[::10])
    printed = torch.tensor([1, 0.9651, 0.9130, 0.8235, 0.6363, 0], dtype=torch.float64)
    torch.testing.assert_close(method.grid(), printed, atol=5e-4, rtol=0)


def test_the_recipe_builds_at_full_size_without_weights(tmp_path):
    folder = tiny_hunyuan.build(tmp_path / "hunyuan")
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | tiny_hunyuan.PUBLISHED))
    loaded = recipe.load(RECIPES / "accvideo_hunyuan.yaml", [f"teacher.path={folder}"])
    lines = build.describe(loaded)
    assert lines[0].startswith("latents   16 x 24 x 68 x 120")  # the paper's 68 x 120 x 24
    assert "network   student: Trained, 1.282e+04 M parameters" in lines
    c = 256  # a head: 1 x 1, twice 3 x 3, 1 x 1, and three norms
    head = (3072 * c + c) + 2 * (9 * c * c + c) + (c + 1) + 3 * 2 * c
    assert f"network   heads: Built, {5 * head / 1e6:.4g} M parameters" in lines
    assert lines[-2:] == ["stage   1 1200 of student, 1200 of heads updates", "sampling  5 evaluations per clip"]


def test_the_recipe_records_and_trains_a_small_hunyuan(teacher, tmp_path):
    """Smaller and shallower, in bf16 with checkpointing as the recipe says; m = 5, one pass through the key steps."""
    changes = {
        "teacher.path": teacher,
        "video.frames": 5,
        "video.height": 32,
        "video.width": 48,
        "data.trajectories.path": tmp_path / "store",
        "data.trajectories.records": 4,
        "data.trajectories.steps": 10,
        "method.recorder_steps": 10,
        "method.head_width": 8,
        "train.batch_size": 2,
        "train.steps": 5,
        "checkpoint.every": 10,
        "validation.every": 10,
        "validation.teacher_steps": "[5]",
        "output": tmp_path / "run",
    }
    command("run", RECIPES / "accvideo_hunyuan.yaml", *(f"{key}={value}" for key, value in changes.items()))
    index = json.loads((tmp_path / "store" / "index.json").read_text())
    assert (index["guidance"], index["teacher"]["family"], len(index["levels"])) == (6.0, "hunyuan_video", 6)
    updates = log(tmp_path / "run", "update")
    assert [line["network"] for line in updates] == ["student", "heads"] * 5
    assert [line["evaluations"] for line in updates[::2]] == [{"teacher": 4, "student": 4, "heads": 2}] * 5
    assert log(tmp_path / "run", "done")
