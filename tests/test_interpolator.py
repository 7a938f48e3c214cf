"""Training the latent interpolator: its losses, the real run with resume, what it measures, and its export."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from typer.testing import CliRunner

from distill import checkpoint, cli, export, half_rate, recipe, trainer, video
from distill.batch import Batch, Clips, Condition
from distill.data.videos import Store
from distill.descent import descend
from distill.engine import Engine, Role
from distill.errors import Stopped, UserError
from distill.interpolation import Interpolator
from distill.method import Update
from distill.networks import Net
from distill.recipe import Video
from distill.teachers.wan import Wan
from distill_methods.interpolator import LatentInterpolator
from tests import runs, tiny_wan

RECIPE = """
teacher: {{family: wan, path: {teacher}}}
video: {{frames: 9, height: 32, width: 48, fps: 8}}
data: {{videos: {{path: {folder}/store, source: {folder}/films}}}}
method: {{name: interpolator, width: 4}}
optim: {{interpolator: {{lr: 1e-2, schedule: cosine}}}}
train: {{seed: 3, batch_size: 4, micro_batch_size: 2, steps: {steps}}}
checkpoint: {{every: 1, keep: 3}}
held_out: {{clips: 3, every: 4}}
output: {output}
"""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Films of a bright bar that moves, 9 of them, with captions."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "films").mkdir()
    for i in range(9):
        frames = np.full((9, 32, 48, 3), 20 + 10 * i, np.uint8)
        for t in range(9):
            frames[t, :, 3 * t + i : 3 * t + i + 8] = 230
        video.write(folder / "films" / f"{i}.mp4", torch.from_numpy(frames), 8)
        (folder / "films" / f"{i}.txt").write_text("a red circle")
    return folder


def write(folder, teacher, output, steps: int = 7):
    output.mkdir(parents=True, exist_ok=True)
    text = RECIPE.format(folder=folder, teacher=teacher, output=output / "run", steps=steps)
    (output / "recipe.yaml").write_text(text)
    return output / "recipe.yaml"


@pytest.fixture(scope="module")
def run(folder, teacher, tmp_path_factory):
    return runs.train(write(folder, teacher, tmp_path_factory.mktemp("run")))


def lines(run, kind: str) -> list[dict]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line for line in found if line["kind"] == kind]


def batch(latents: torch.Tensor) -> Batch:
    n, cond = len(latents), Condition(text=torch.zeros(len(latents), 1, 1))
    return Batch(["x"] * n, cond, cond, list(range(n)), latents.shape[1:], 0, video=Clips(latents, ["x"] * n, cond))


def method(network, **options) -> LatentInterpolator:
    built = LatentInterpolator(**options)
    built.interpolator = Net(Role("interpolator", network))
    return built


class Repeat(torch.nn.Module):
    """Repeats the frame before."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))

    def forward(self, x, sigma, cond):
        return torch.cat([self.gain * torch.stack([x[:, :, :-1], x[:, :, :-1]], 3).flatten(2, 3), x[:, :, -1:]], 2)


def test_the_loss_is_over_all_frames_or_over_the_restored_ones():
    """A clip of values 0 1 2 3 4: the frame before is 1 off at two of five frames."""
    x = torch.arange(5.0).view(1, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    assert method(Repeat()).loss(batch(x))["regression"].item() == pytest.approx(2 / 5)
    assert method(Repeat(), loss="between").loss(batch(x))["regression"].item() == pytest.approx(1)


def test_it_is_measured_beside_the_mean_of_two_neighbours():
    """A clip of values t^2: the mean of two neighbours is 1 too much, the frame before 2 t - 1 too little."""
    x = torch.arange(5.0).square().view(1, 1, 5, 1, 1).expand(2, 3, 5, 4, 4)
    found = method(Repeat()).measure(batch(x))
    assert_close(found["error_of_the_mean"], torch.ones(2))
    assert_close(found["error"], torch.full((2,), math.sqrt((1 + 25) / 2)))


def test_seven_steps_equal_five_a_resume_and_two_more(run, folder, teacher, tmp_path):
    """Batch normalization's running means among them."""
    path = write(folder, teacher, tmp_path)
    stopped(path, after=5)
    first = runs.final(tmp_path / "run")
    assert_close(
        first["interpolator.enc1.conv.1.num_batches_tracked"], torch.tensor(5 * 2 * 2)
    )  # updates, micro-batches, positions
    runs.assert_same(runs.final(run), runs.final(runs.train(path)))


def stopped(path, after: int) -> None:
    """Train until so many updates are done, as after Ctrl-C."""
    asked = trainer.Trainer._stop_asked

    def ask(self):
        return asked(self) or self.position.done == after

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(trainer.Trainer, "_stop_asked", ask)
        runs.train(path)


def test_two_processes_train_what_one_does(folder, teacher, tmp_path):
    """The means of batch normalization are those of both."""
    found = []
    for processes in (1, 2):
        path = write(folder, teacher, tmp_path / str(processes), steps=3)
        process = runs.command("run", path, "--processes", str(processes))
        said, _ = process.communicate(timeout=300)
        assert process.returncode == 0, said
        found.append(checkpoint.load_network(tmp_path / str(processes) / "run", "interpolator"))
    weights, other = found
    assert "dec1.conv.1.running_var" in weights
    for name, value in weights.items():
        if value.is_floating_point() and "running" not in name:
            assert_close(other[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_statistics_are_averaged_over_the_processes():
    """Of each process's own, as gradients are."""
    role = Role("interpolator", Interpolator(3, 4).train())
    optim = SimpleNamespace(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, schedule="constant", warmup=0)
    role.prepare(optim, 1)
    engine, sent = Engine(), []
    engine.average = lambda tensors: sent.extend(id(t) for t in tensors)
    update = Update("interpolator", lambda b: role.module(b.video.latents).square().mean())
    descend(update, [batch(torch.randn(2, 3, 3, 4, 4))], 0, {"interpolator": role}, engine, 1.0)
    averaged = {name for name, each in role.module.named_buffers() if id(each) in sent}
    assert averaged == {n for n, _ in role.module.named_buffers() if "running" in n} and len(averaged) == 10


def test_an_update_that_fails_leaves_no_trace_in_the_statistics(folder, teacher, tmp_path, monkeypatch):
    path = write(folder, teacher, tmp_path)
    stopped(path, after=2)
    before = runs.final(tmp_path / "run")
    read = Store.read
    monkeypatch.setattr(Store, "read", lambda self, clip: read(self, clip) * math.inf)
    with pytest.raises(Stopped, match="update 3 .* is nan"):
        runs.train(path)
    after = runs.final(tmp_path / "run")
    for name in [n for n in before if ".running_" in n or "num_batches" in n]:
        assert torch.equal(before[name], after[name]), name


def test_it_measures_clips_that_it_did_not_learn_from(run, folder, teacher):
    """The last three of the store, with running means; the learning rate of a smoke test does not beat the mean."""
    found = lines(run, "measures")
    assert [line["update"] for line in found] == [4, 7]
    store, net = Store(folder / "store"), half_rate.load(run).network
    held = torch.stack([store.read(i) for i in (6, 7, 8)])
    with torch.no_grad():
        error = (net(held[:, :, ::2]) - held)[:, :, 1::2].square().flatten(1).mean(1).sqrt().mean()
    mean = (held[:, :, :-1:2] + held[:, :, 2::2]) / 2 - held[:, :, 1::2]
    assert found[-1]["error"] == pytest.approx(error.item(), rel=1e-4)
    assert found[-1]["error_of_the_mean"] == pytest.approx(
        mean.square().flatten(1).mean(1).sqrt().mean().item(), rel=1e-4
    )
    assert "error_of_the_mean" in (run / "index.html").read_text()


def test_the_page_shows_what_it_restores(run, folder, teacher):
    """Three rows for each clip of the first micro-batch of two; the first is the video itself."""
    examples = method(half_rate.load(run).network).examples(batch(Store(folder / "store").read(6)[None]))
    assert list(examples) == json.loads((run / "samples/held_out.json").read_text())
    assert all(torch.equal(each[:, :, ::2], examples["the video"][:, :, ::2]) for each in examples.values())
    mean = examples["mean of neighbours"]
    assert_close(mean[:, :, 1], (mean[:, :, 0] + mean[:, :, 2]) / 2)
    shown = np.asarray(Image.open(run / "samples/held_out.png"))
    row = video.row(video.enlarge(Wan(teacher).decode(examples["the video"])[0].numpy()), video.SHEET_FRAMES)
    assert np.array_equal(shown[: len(row)], row) and len(shown) == 6 * len(row) + 5 * video.SHEET_GAP
    page = (run / "index.html").read_text()
    assert 'src="samples/held_out.png"' in page and "the video, restored, mean of neighbours" in page


def test_measuring_does_not_change_the_training(run, folder, teacher, tmp_path):
    other = runs.train(write(folder, teacher, tmp_path), "held_out.every=1")
    runs.assert_same(runs.final(run), runs.final(other))


def test_a_run_is_exported_as_a_folder_that_says_whose_latents_it_is_for(run, teacher, tmp_path):
    result = CliRunner().invoke(cli.app, ["export", str(run), str(tmp_path / "net")])
    assert result.exit_code == 0 and result.stdout.strip() == str(tmp_path / "net")
    found, mine = half_rate.load(tmp_path / "net"), half_rate.load(run)
    weights = mine.network.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in found.network.state_dict().items())
    assert found.facts == mine.facts and found.facts["vae"] == Wan(teacher).vae_fingerprint
    assert found.network.config.width == 4 and not found.network.training
    export.export(run, tmp_path / "net")  # again
    early = half_rate.of_run(run, 5).network.state_dict()
    assert not torch.equal(early["enc1.conv.0.weight"], weights["enc1.conv.0.weight"])


def test_a_run_without_a_student_is_not_sampled(run, tmp_path):
    result = CliRunner().invoke(cli.app, ["sample", str(run), "--prompt", "a", "--out", str(tmp_path)])
    assert isinstance(result.exception, UserError)
    assert str(result.exception) == f"{run} is a run of interpolator, which trains no student"


def test_runs_that_train_no_interpolator_are_refused(teacher, tmp_path):
    run = runs.train(runs.write(tmp_path, teacher), "method.iterations=[1,1]")
    with pytest.raises(UserError, match="is a run of gpd, which trains no interpolator; train one with `distill run"):
        half_rate.load(run)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.ema=0.9", "train.ema: the method trains no student; leave it out"),
        ("validation={prompts: [a]}", "validation: the method trains no student; leave it out"),
        ("half_rate={interpolator: absent}", "half_rate.interpolator: .*absent"),
        ("data.prompts=tests/runs.py", "data.prompts: the method reads no prompts"),
        ("method.loss=some", "method.loss: .*'all' or 'between'"),
    ],
)
def test_sections_that_do_not_apply_are_faults(change, message, folder, teacher, tmp_path):
    with pytest.raises(UserError, match=message):
        recipe.load(write(folder, teacher, tmp_path), [change])


def test_held_out_videos_are_for_methods_that_measure_on_them(teacher, tmp_path):
    path = runs.write(tmp_path, teacher, held_out={"clips": 2})
    with pytest.raises(UserError, match="held_out: the method measures nothing on videos; leave it out"):
        recipe.load(path)


def test_clips_to_learn_from_must_be_left(folder, teacher, tmp_path):
    with pytest.raises(UserError, match="store has 9 clips: none is left to train on beside held_out.clips 9"):
        runs.train(write(folder, teacher, tmp_path), "held_out.clips=9")


def test_clips_of_an_even_number_of_latent_frames_cannot_be_restored(teacher):
    opened = Wan(teacher)
    opened.video = Video(frames=3, height=32, width=48, fps=8)
    with pytest.raises(ValueError, match="2 latent frames have no second half to restore"):
        LatentInterpolator().build_interpolator(opened)
