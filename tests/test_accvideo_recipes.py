"""The shipped AccVideo recipes, and the real command: two processes, interruptions, key steps of one's own."""

import json
from pathlib import Path

import pytest
import torch

from distill import assemble, build, flow, recipe, sample, trainer
from distill.data import prompts
from distill.embedded import world
from distill.errors import Stopped, UserError
from distill_methods.accvideo import AccVideo
from tests import runs, tiny_wan

RECIPES = Path(__file__).parents[1] / "recipes"
METHOD = "{name: accvideo, recorder_steps: 10, head_width: 8}"
NETWORKS = ("student", "heads")


class Guarded(AccVideo):
    """Stops the run if a weight of the teacher moves or has a gradient."""

    def heads_loss(self, batch, k):
        weights = self.teacher.role.parameters
        self.kept = getattr(self, "kept", None) or [p.clone() for p in weights]
        assert all(torch.equal(a, b) for a, b in zip(self.kept, weights, strict=True))
        assert all(p.grad is None for p in weights)
        return super().heads_loss(batch, k)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"), layers=3)


def write(folder: Path, teacher: Path, method: str = METHOD, **more) -> tuple[Path, list[str]]:
    """A recipe of 8 iterations, two micro-batches of two records each, and its overrides."""
    path = runs.write(folder, teacher, method, NETWORKS, **more)
    store = {"path": teacher.parent / "store", "records": 6, "steps": 10, "guidance": 3.0, "keep": "all", "shard": 2}
    return path, [*(f"data.trajectories.{k}={v}" for k, v in store.items()), "train.steps=8"]


# The recipes


@pytest.mark.parametrize(("name", "m"), [("accvideo_wan13b", 5), ("accvideo_wan14b", 10)])
def test_the_wan_recipes_say_what_the_paper_prints(name, m):
    loaded = recipe.load(RECIPES / f"{name}.yaml")
    method, train, store = assemble.method(loaded), loaded.train, loaded.data.trajectories
    assert (method.m, method.adversarial) == (m, 0.1)
    assert (loaded.optim["student"].lr, train.batch_size, train.steps) == (5e-6, 32, 1200)
    assert (store.records, store.steps, store.keep) == (38400, 50, m)
    torch.testing.assert_close(method.grid(), flow.grid(50, 5.0)[:: 50 // m])
    assert m in loaded.validation.teacher_steps


def test_the_demo_is_evaluated_on_prompts_that_no_training_has_seen():
    loaded = recipe.load(RECIPES / "tiny_accvideo.yaml")
    splits = {
        "train": prompts.read(loaded.data.prompts),
        "heldout": prompts.read(loaded.evaluation.prompts) + loaded.validation.prompts,
    }
    for split, listed in splits.items():
        assert {world.split_of(world.parse(prompt)) for prompt in listed} == {split}
    assert loaded.data.trajectories.guidance == loaded.validation.guidance == loaded.evaluation.guidance
    assert loaded.data.trajectories.records % len(prompts.read(loaded.data.prompts)) == 0  # each as often as any other


@pytest.mark.parametrize(
    ("name", "layers", "width", "heads"), [("accvideo_wan13b", 30, 12, 5), ("accvideo_wan14b", 40, 40, 10)]
)
def test_the_wan_recipes_build_at_full_size_without_weights(tmp_path, name, layers, width, heads):
    folder = tiny_wan.build(tmp_path / "wan")
    ffn = {12: 8960, 40: 13824}[width]
    sizes = {"num_attention_heads": width, "attention_head_dim": 128, "ffn_dim": ffn, "num_layers": layers}
    sizes |= {"text_dim": 4096, "freq_dim": 256, "in_channels": 16, "out_channels": 16, "rope_max_seq_len": 1024}
    for part, changes in (("transformer", sizes), ("vae", {"scale_factor_temporal": 4, "scale_factor_spatial": 8})):
        path = folder / part / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    lines = build.describe(recipe.load(RECIPES / f"{name}.yaml", [f"teacher.path={folder}"]))
    c = 256  # a head: 1 x 1, twice 3 x 3, 1 x 1, and three norms
    head = (width * 128 * c + c) + 2 * (9 * c * c + c) + (c + 1) + 3 * 2 * c
    assert f"network   heads: Built, {heads * head / 1e6:.4g} M parameters" in lines
    assert "stage   1 1200 of student, 1200 of heads updates" in lines
    assert lines[-1] == f"sampling  {heads} evaluations per clip"


# The real command


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "update"]


def command(path: Path, *overrides: str, processes: int) -> None:
    process = runs.command("run", path, *overrides, "--processes", str(processes))
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said


def test_no_weight_of_the_teacher_moves_and_two_processes_learn_what_one_does(teacher, tmp_path):
    method = "{name: 'tests.test_accvideo_recipes:Guarded', recorder_steps: 10, head_width: 8}"
    found = []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        path, overrides = write(folder, teacher, method)
        command(path, *overrides, processes=processes)
        found.append(losses(folder / "run"))
    assert len(found[0]) == 16
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_the_wan_recipes_record_and_train_a_random_wan(tmp_path):
    """With Wan's own layer names, smaller and shallower, in bf16 with checkpointing as the recipes say: that of 14B
    extends that of 1.3B."""
    changes = {
        "teacher.path": tiny_wan.build(tmp_path / "teacher", layers=3),
        "video.frames": 5,
        "video.height": 32,
        "video.width": 48,
        "data.trajectories.path": tmp_path / "store",
        "data.trajectories.records": 2,
        "engine": "ddp",
        "train.batch_size": 2,
        "train.steps": 10,
        "checkpoint.every": 100,
        "validation.every": 100,
        "validation.prompts": "[a red circle]",
        "output": tmp_path / "run",
    }
    command(RECIPES / "accvideo_wan14b.yaml", *(f"{key}={value}" for key, value in changes.items()), processes=1)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    terms = [(line["network"], *line["terms"]) for line in lines if line["kind"] == "update"]
    assert terms == [("student", "trajectory", "adversarial"), ("heads", "real", "fake")] * 10
    assert lines[-1]["kind"] == "done"


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is saved."""


@pytest.mark.parametrize("updates", ["summed", "two_step"])
def test_a_killed_run_goes_on_bit_for_bit(updates, teacher, tmp_path, monkeypatch):
    """A15: with records waiting in the queues, between the updates of an iteration and between iterations."""
    method = METHOD.replace("}", f", updates: {updates}}}")
    path, overrides = write(tmp_path / "whole", teacher, method)
    whole = runs.final(runs.train(path, *overrides))
    pause = trainer.Trainer._pause
    path, overrides = write(tmp_path / "other", teacher, method)
    for update in (4, 7, 12):

        def kill(self, batches, update=update):
            if self.position.done == update:
                raise Killed
            pause(self, batches)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(trainer.Trainer, "_pause", kill)
            runs.train(path, *overrides)
    runs.assert_same(runs.final(runs.train(path, *overrides)), whole)
    assert any(name.startswith("rank_00000.method.Q.") for name in whole)


def test_key_steps_of_ones_own_train_validate_and_leave_with_a_scheduler_of_their_own(teacher, tmp_path):
    """The uniform schedule of Table 4 lies on no shifted grid: no stock scheduler makes such clips."""
    method = "{name: accvideo, recorder_steps: 10, steps: 3, key_indices: [0, 6, 9, 10], head_width: 8}"
    clips = {"every": 8, "teacher_steps": [3, 10], "prompts": ["a red circle"]}
    path, overrides = write(tmp_path, teacher, method, validation=clips)
    run = runs.train(path, *overrides)
    said = json.loads((run / "samples" / "teacher_10" / "clips.json").read_text())
    assert said["shift"] == 5.0  # the recorder's
    assert (run / "samples" / "update_00000016" / "00.mp4").exists()
    process = runs.command("export", run, tmp_path / "export")
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    facts = json.loads((tmp_path / "export" / "distill.json").read_text())
    assert facts["shift"] is None and facts["sigmas"] == pytest.approx([1.0, 10 / 13, 5 / 14, 0.0])  # u = .4 and .1
    assert facts["difference"] <= 1e-5
    assert (tmp_path / "export" / "scheduler" / "student_scheduler.py").exists()


def test_a_loss_that_is_not_finite_leaves_the_queues_as_they_were(tmp_path, monkeypatch):
    """The state that is saved is that before the update, popped latents included: a resume meets nothing missing."""
    teacher = tiny_wan.build(tmp_path / "teacher", layers=3)
    path, overrides = write(tmp_path / "whole", teacher)
    whole = runs.final(runs.train(path, *overrides))
    path, overrides = write(tmp_path / "other", teacher)
    loss, calls = AccVideo.adversarial_loss, []

    def sick(self, batch, k):
        calls.append(k)
        return {n: t * (float("nan") if len(calls) == 6 else 1) for n, t in loss(self, batch, k).items()}

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(AccVideo, "adversarial_loss", sick)
        runs.train(path, *overrides)
    runs.assert_same(runs.final(runs.train(path, *overrides)), whole)


def test_a_student_of_its_own_levels_is_sampled_at_them_whatever_the_guidance():
    own = torch.tensor([1.0, 0.7692, 0.3571, 0.0], dtype=torch.float64)
    made = {"teacher": None, "net": None, "shift": 5.0, "guidance": 1.0, "video": None, "negative_prompt": ""}
    source = sample.Source(**made, steps=3, levels=own)
    assert torch.equal(source.sigmas(3), own)
    with pytest.raises(UserError, match=r"--steps 4: this student knows 3 alone; the noise levels .* not a shifted"):
        source.sigmas(4)
    torch.testing.assert_close(sample.Source(**made, steps=3, levels=flow.grid(3, 5.0)).sigmas(4), flow.grid(4, 5.0))


@pytest.mark.parametrize(("override", "said"), [("method.shift=7.0", "0.9"), ("data.prompts=none.txt", "no prompts")])
def test_build_says_what_a_run_would_refuse(tmp_path, teacher, override, said):
    (tmp_path / "none.txt").write_text("\n")
    path, overrides = write(tmp_path, teacher)
    override = override.replace("none.txt", str(tmp_path / "none.txt"))
    with pytest.raises(UserError, match=said):
        build.describe(recipe.load(path, [*overrides, override]))
    assert any(line.startswith("prompts   5 in ") for line in build.describe(recipe.load(path, overrides)))


def test_features_of_no_block_are_refused():
    with pytest.raises(ValueError, match="no features before the first block"):
        AccVideo(feature_depth=(1.0, 0.0))
