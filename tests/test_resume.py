"""An interrupted run continues exactly where it was."""

import json
import os
import shutil
import signal
import time

import pytest
import torch

from distill import checkpoint, trainer
from distill.errors import Stopped, UserError

from . import runs, tiny_wan


class Killed(BaseException):
    """Stands for kill -9: nothing catches it, nothing is saved."""


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """A GPD run of two stages, 5 and 4 updates (k = 2: two trajectories of 3 and 2; k = 3: two of 2)."""
    return runs.train(runs.write(tmp_path_factory.mktemp("whole"), teacher))


def killed_after(update: int, monkeypatch):
    """Kill this process's next run when so many updates are done, before the checkpoint of the last."""
    pause = trainer.Trainer._pause

    def kill(self, batches):
        if self.position.done == update:
            raise Killed
        pause(self, batches)

    monkeypatch.setattr(trainer.Trainer, "_pause", kill)


@pytest.mark.parametrize("update", [3, 4, 6, 8])
def test_a_killed_run_goes_on_bit_for_bit(update, whole, teacher, tmp_path, monkeypatch):
    """Killed at 3 it goes on from update 2, within a trajectory; 4: its end; 6: a stage's end; 8: in stage two."""
    recipe = runs.write(tmp_path, teacher)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        killed_after(update, patch)
        runs.train(recipe)
    runs.assert_same(runs.final(runs.train(recipe)), runs.final(whole))


def test_every_kind_of_network_and_state_goes_on_bit_for_bit(teacher, tmp_path, monkeypatch):
    networks = ("student", "critic", "head")
    one = runs.train(runs.write(tmp_path / "one", teacher, runs.PAIR, networks))
    other = runs.write(tmp_path / "other", teacher, runs.PAIR, networks)
    for update in (2, 5, 9):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            killed_after(update, patch)
            runs.train(other)
    numbers = runs.final(runs.train(other))
    runs.assert_same(numbers, runs.final(one))
    assert numbers["rank_00000.method.seen"] == 3 * 4  # three student updates of four samples


def wait_for(path, process, seconds=120):
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.01)


def test_two_processes_killed_with_signal_9_go_on_bit_for_bit(teacher, whole, tmp_path):
    """The real command, twice: once to the end, once killed in stage one and begun again."""
    slow = ("checkpoint.keep=20",)
    one, other = runs.write(tmp_path / "one", teacher), runs.write(tmp_path / "other", teacher)
    first = runs.command("run", one, *slow, "--processes", "2")
    assert first.wait() == 0, first.stdout.read()
    killed = runs.command("run", other, *slow, "--processes", "2")
    wait_for(tmp_path / "other/run/checkpoints/update_00000002", killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    checkpoints = sorted((tmp_path / "other/run/checkpoints").glob("update_????????"))
    assert len(checkpoints) < 9, "killed too late to show anything"
    again = runs.command("run", other, *slow, "--processes", "2")
    assert again.wait() == 0, again.stdout.read()
    two = runs.final(tmp_path / "one/run")
    runs.assert_same(runs.final(tmp_path / "other/run"), two)
    for name, value in runs.final(whole).items():  # the same samples and noise as with one process, summed otherwise
        if name.startswith("student."):
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_ctrl_c_saves_and_leaves(teacher, whole, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    process = runs.command("run", recipe, "checkpoint.every=1000")
    wait_for(tmp_path / "run/log.jsonl", process)
    while '"update"' not in (tmp_path / "run/log.jsonl").read_text():
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait() == 130
    said = process.stdout.read()
    assert "SIGINT: saved in" in said and "distill run" in said and "Traceback" not in said
    runs.assert_same(runs.final(runs.train(recipe, "checkpoint.every=1000")), runs.final(whole))


def test_a_torn_checkpoint_falls_back_to_the_one_before_and_says_so(teacher, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    recipe = runs.write(tmp_path, teacher)
    torn = checkpoint.folder(run, 9) / "networks" / "student.safetensors"
    torn.write_bytes(torn.read_bytes()[:-100])
    assert checkpoint.newest(run, print) == checkpoint.folder(run, 8)
    runs.train(recipe)
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    warning = next(line for line in lines if line["kind"] == "warning")
    assert "update_00000009" in warning["message"] and "falling back" in warning["message"]
    assert next(line for line in lines if line["kind"] == "resume")["update"] == 8
    runs.assert_same(runs.final(run), runs.final(whole))


def test_a_flipped_byte_is_seen(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = checkpoint.folder(run, 9) / "optim_student.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    assert "sha256" in checkpoint.damage(checkpoint.folder(run, 9))


def test_a_half_written_checkpoint_is_not_a_checkpoint(whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    os.rename(checkpoint.folder(run, 9), checkpoint.folder(run, 9).with_suffix(".tmp"))
    assert checkpoint.newest(run, print) == checkpoint.folder(run, 8)


def test_a_finished_run_stays_as_it_is(teacher, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    before = (tmp_path / "run/log.jsonl").read_text().count('"kind": "update"')
    runs.assert_same(runs.final(runs.train(runs.write(tmp_path, teacher))), runs.final(whole))
    assert (tmp_path / "run/log.jsonl").read_text().count('"kind": "update"') == before == 9


def test_a_first_attempt_that_failed_does_not_bind_the_folder(teacher, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    with pytest.raises(UserError, match="6 frames"):
        runs.train(recipe, "video.frames=6")
    runs.train(recipe)


def test_a_folder_that_holds_something_else_is_refused(teacher, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    (tmp_path / "run").mkdir()
    (tmp_path / "run/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds 'thesis.tex' but no recipe.yaml"):
        runs.train(recipe)


def test_prompts_that_changed_are_seen(teacher, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    recipe = runs.write(tmp_path, teacher)
    other = tmp_path / "other.txt"
    other.write_text("a\n")
    with pytest.raises(UserError, match="other.txt: not the prompts that"):
        runs.train(recipe, f"data.prompts={other}")


def test_a_changed_recipe_is_refused_and_says_what_changed(teacher, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    recipe = runs.write(tmp_path, teacher)
    with pytest.raises(UserError, match=r"optim\.student\.lr was 0\.001, is 0\.01.*start anew with output=") as refused:
        runs.train(recipe, "optim.student.lr=1e-2")
    assert "\n" not in str(refused.value)


def test_a_checkpoint_of_another_method_is_refused(teacher, whole, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    path = checkpoint.folder(run, 9) / "manifest.json"
    path.write_text(path.read_text().replace('"method": "gpd"', '"method": "other"'))
    with pytest.raises(UserError, match="of method 'other', the recipe's is 'gpd'"):
        runs.train(runs.write(tmp_path, teacher))


def test_two_runs_on_one_folder_the_second_is_refused(teacher, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    process = runs.command("run", recipe)
    wait_for(tmp_path / "run/recipe.yaml", process)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        with pytest.raises(UserError, match=r"in use by process \d+ on"):
            runs.train(recipe)
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert process.wait() == 0


def test_a_loss_that_is_not_finite_stops_at_a_saved_state(teacher, tmp_path, monkeypatch):
    recipe = runs.write(tmp_path, teacher)
    from distill_methods.gpd import GPD

    loss, calls = GPD.loss, []

    def sick(self, batch, i):
        calls.append(i)
        terms = loss(self, batch, i)
        return terms | {"velocity": terms["velocity"] * float("nan")} if len(calls) == 7 else terms

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(GPD, "loss", sick)
        runs.train(recipe)
    said = str(stopped.value)
    assert "update 4 (stage 1 of 2, step 2)" in said and "student/velocity is nan" in said and "update_00000003" in said
    assert all(torch.isfinite(v).all() for v in runs.final(tmp_path / "run").values())
