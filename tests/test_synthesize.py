"""`distill synthesize`, and training from what it recorded, through the real recipe and mostly the real command."""

import fcntl
import json
import os
import signal
import time
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError

from distill import checkpoint, cli, flow, samplers, synthesize, trainer
from distill import recipe as recipes
from distill.compare import cost
from distill.data import agreement, prompts, trajectories
from distill.data.prompts import Embeddings
from distill.data.trajectories import Store
from distill.engine import Role
from distill.errors import Stopped, UserError
from distill.networks import Net
from distill.signals import StopRequest
from distill.teachers.wan import Wan

from . import runs, tiny_wan

FOLLOW = "{name: 'tests.plugins:Follow'}"


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "wan")


def write(folder: Path, teacher: Path, **changes) -> Path:
    """A recipe of ten records in shards of four, two at a time, in folder/store."""
    path = runs.write(folder, teacher, FOLLOW)
    said = {"path": str(folder / "store"), "records": 10, "steps": 6, "keep": 2, "batch_size": 2, "shard": 4}
    data = json.dumps({"prompts": str(teacher.parent / "prompts.txt"), "trajectories": said | changes})
    lines = path.read_text().splitlines()
    lines[[line.startswith("data:") for line in lines].index(True)] = f"data: {data}"
    path.write_text("\n".join(lines).replace("micro_batch_size: 2", "micro_batch_size: 2, steps: 5") + "\n")
    return path


def record(path: Path, *overrides: str) -> Store:
    return Store(synthesize.run(recipes.load(path, overrides)))


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((store / "shards").iterdir())}


def written_at(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "shards").iterdir()}


@pytest.fixture(scope="module")
def whole(teacher, tmp_path_factory):
    """The folder of a recipe whose store is complete."""
    folder = tmp_path_factory.mktemp("whole")
    record(write(folder, teacher))
    return folder


@pytest.fixture
def copy(whole, teacher, tmp_path):
    """A recipe with a store of its own, complete."""
    recipe = write(tmp_path, teacher)
    (tmp_path / "store/shards").mkdir(parents=True)
    for path in [whole / "store/index.json", *(whole / "store/shards").iterdir()]:
        (tmp_path / path.relative_to(whole)).write_bytes(path.read_bytes())
    return recipe


# What is recorded


def test_the_store_says_how_long_each_shard_took(whole):
    store = whole / "store"
    lines = [json.loads(line) for line in (store / "log.jsonl").read_text().splitlines()]
    assert [(line["first"], line["last"]) for line in lines] == [(0, 3), (4, 7), (8, 9)]
    spent = [line["seconds"] for line in lines]
    assert all(each > 0 for each in spent)
    assert (cost.seconds(store, 10), cost.seconds(store, 5)) == (
        pytest.approx(sum(spent)),
        pytest.approx(sum(spent[:2])),
    )


def test_stored_slopes_are_the_teachers_guided_velocity(teacher, tmp_path):
    """A5, and the end is samplers.euler's to the bit."""
    store = record(write(tmp_path, teacher, keep="all", precision="fp32", records=4))
    wan = Wan(teacher)
    net, sigmas, embeddings = Net(Role("teacher", wan.network().eval())), flow.grid(6, 5.0), Embeddings(wan)
    assert store.info["levels"] == sigmas.tolist() and all(a > b for a, b in pairwise(store.info["levels"]))
    for pair in ([0, 1], [2, 3]):
        x = torch.stack([store.read(sample, range(7)) for sample in pair])
        cond = embeddings.get([store.prompt(sample) for sample in pair])
        negative = embeddings.get([""]).expand(2)
        assert torch.equal(x[:, 0], synthesize.noise_of(0, pair, x.shape[2:]))
        for i, (sigma, after) in enumerate(pairwise(sigmas.tolist())):
            with torch.no_grad():
                v = net.guided(x[:, i], torch.full((2,), sigma), cond, negative, 5.0)
            torch.testing.assert_close((x[:, i + 1] - x[:, i]) / (after - sigma), v, rtol=0, atol=1e-5)
        with torch.no_grad():
            assert torch.equal(x[:, -1], samplers.euler(net, x[:, 0], sigmas, cond, negative, 5.0))


def test_key_latents_are_those_of_the_whole_trajectory(whole, teacher, tmp_path):
    every = record(write(tmp_path, teacher, keep="all", precision="fp32"))
    keys = Store(whole / "store")
    for sample in range(10):
        assert torch.equal(keys.read(sample, [0, 1, 2]), every.read(sample, [0, 3, 6]).half().float())


def test_a_record_is_decided_by_its_prompt_and_seed(whole, teacher, tmp_path):
    """Not by the batch, the shard or the records around it (but for the last bits); another seed is another record."""
    other = record(write(tmp_path / "a", teacher, batch_size=3, shard=5, records=7))
    seeded = record(write(tmp_path / "b", teacher, seed=1, records=1))
    first = Store(whole / "store")
    for sample in range(7):
        torch.testing.assert_close(other.read(sample, [0, 1, 2]), first.read(sample, [0, 1, 2]), rtol=2e-3, atol=2e-3)
    assert (seeded.read(0, [0]) - first.read(0, [0])).abs().mean() > 0.5
    texts = prompts.read(teacher.parent / "prompts.txt")
    assert [first.prompt(sample) for sample in range(10)] == texts * 2
    same_prompt = first.read(0, [0]), first.read(5, [0])  # five prompts
    assert first.prompt(0) == first.prompt(5) and not torch.equal(*same_prompt)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(processes, whole, teacher, tmp_path):
    """As one process wrote into `whole`."""
    done = runs.command("synthesize", write(tmp_path, teacher), "--processes", str(processes))
    assert done.wait() == 0, done.stdout.read()
    assert contents(tmp_path / "store") == contents(whole / "store")
    said = done.stdout.read()
    assert said.count("lacks 10 of 10 trajectories") == 1 and "s/record" in said and "left" in said


def test_processes_share_the_shards(whole, teacher, tmp_path):
    """Each records every second one that is missing, and says so if the others' do not come."""
    recipe, wan = recipes.load(write(tmp_path, teacher)), Wan(teacher)
    asked, shards = agreement.settings(recipe, wan), [range(4), range(4, 8), range(8, 10)]
    for rank, lacks, there in ((1, 0, shards[1:2]), (0, 8, shards[:2]), (0, None, shards)):
        engine = SimpleNamespace(rank=rank, world=2, main=rank == 0, device=torch.device("cpu"))
        engine.main_first, engine.first = (lambda work: work()), (lambda value: value)
        line = f"lacks record {lacks} after recording; do all processes see this folder"
        refused = pytest.raises(UserError, match=line) if lacks is not None else nullcontext()
        with synthesize.Recorder(recipe, asked, wan, Embeddings(wan), engine, StopRequest()) as recorder, refused:
            recorder.fill(repair=False)
        assert [shard.samples for shard in Store(tmp_path / "store").shards] == there
    assert contents(tmp_path / "store") == contents(whole / "store")


def test_more_records_leave_those_that_are_there_alone(copy, tmp_path):
    before, dates = contents(tmp_path / "store"), written_at(tmp_path / "store")
    more = record(copy, "data.trajectories.records=13")
    assert [shard.samples for shard in more.shards] == [
        range(4),
        range(4, 8),
        range(8, 10),
        range(10, 12),
        range(12, 13),
    ]
    assert before.items() <= contents(tmp_path / "store").items()
    assert dates.items() <= written_at(tmp_path / "store").items()


def test_clips_are_decoded_once_and_on_request(copy, tmp_path):
    assert not (tmp_path / "store/clips").exists()
    record(copy, "data.trajectories.clips=true")
    clips = {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/clips").iterdir()}
    assert sorted(clips) == [f"{sample:08d}.mp4" for sample in range(10)]
    record(copy, "data.trajectories.clips=true")
    assert clips == {p.name: p.stat().st_mtime_ns for p in (tmp_path / "store/clips").iterdir()}


# Interruptions


def wait_for(path: Path, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


def entries(store: Path) -> list[str]:
    return sorted(p.name for p in (store / "shards").glob("*.json"))


@pytest.mark.slow
def test_a_recorder_killed_with_signal_9_goes_on_where_it_stopped(teacher, tmp_path):
    """The real command, begun, killed and begun again; the store is that of one that was never killed."""
    long = {"records": 12, "shard": 1, "batch_size": 1, "steps": 20}
    recipe, reference = write(tmp_path / "a", teacher, **long), write(tmp_path / "b", teacher, **long)
    store = tmp_path / "a/store"
    killed = runs.command("synthesize", recipe)
    wait_for(store / "shards/00000002-00000002.json", killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    dates = {
        name: date for name, date in written_at(store).items() if Path(name).with_suffix(".json").name in entries(store)
    }
    assert 3 <= len(entries(store)) < 12, "killed too late to show anything"
    (store / "shards/00000008-00000011.safetensors.partial").write_bytes(b"half a shard")
    again = runs.command("synthesize", recipe)
    assert again.wait() == 0, again.stdout.read()
    assert dates.items() <= written_at(store).items()  # rewrites nothing
    record(reference)
    assert contents(store) == contents(tmp_path / "b/store")


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_ctrl_c_leaves_with_one_line_and_what_is_recorded_stays(processes, teacher, tmp_path):
    long = {"records": 40, "shard": 1, "batch_size": 1, "steps": 60}
    recipe, store = write(tmp_path, teacher, **long), tmp_path / "store"
    process = runs.command("synthesize", recipe, "--processes", str(processes))
    wait_for(store / "shards/00000001-00000001.json", process)
    os.killpg(process.pid, signal.SIGINT)
    said = process.stdout.read()
    assert process.wait() == 130, said
    count = len(entries(store))
    assert count < 40, "stopped too late to show anything"
    name, _, line = said.splitlines()[-1].partition(": ")
    assert name == "SIGINT" or name == "SIGTERM" and processes == 2  # what the launcher sends on, too
    assert line == f"{count} of 40 trajectories are recorded in {store}; go on with the same command"
    (lack,) = Store(store).damaged(thorough=True) if processes == 1 else [""]
    assert "Traceback" not in said and Store(store).damaged(thorough=False) == []
    assert processes == 2 or f"lacks records {count} to 39;" in lack


def test_a_signal_while_a_run_records_leaves_before_training(teacher, tmp_path, monkeypatch):
    recipe, calls, forward = write(tmp_path, teacher), [], Role.forward

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 15:  # in the second shard
            os.kill(os.getpid(), signal.SIGTERM)
        return forward(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(Stopped, match=r"^SIGTERM: 4 of 10 trajectories .* go on"):
        patch.setattr(Role, "forward", interrupted)
        runs.train(recipe)
    assert len(calls) == 15 and not (tmp_path / "run/checkpoints").exists()
    runs.train(recipe)
    assert checkpoint.newest(tmp_path / "run", print).name == "update_00000005"


def test_two_recorders_of_one_store_the_second_is_refused(teacher, tmp_path):
    recipe = write(tmp_path, teacher, records=40, shard=1, steps=60)
    process = runs.command("synthesize", recipe)
    wait_for(tmp_path / "store/shards/00000000-00000000.json", process)
    with pytest.raises(UserError, match=r"store is being recorded by process \d+ on .*; wait for it"):
        record(recipe)
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == 130


# Damage


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def test_check_names_what_is_damaged_and_synthesize_replaces_that_alone(copy, whole, tmp_path):
    store = tmp_path / "store"
    dates = written_at(store)
    flipped, cut = (
        store / "shards" / name for name in ("00000000-00000003.safetensors", "00000008-00000009.safetensors")
    )
    flip(flipped)
    cut.write_bytes(cut.read_bytes()[:-10])
    check = runs.command("check", store)
    said = check.stdout.read().splitlines()
    assert check.wait() == 2
    assert said[-2].startswith(f"{flipped}: damaged (it does not match its sha256); record it anew")
    assert said[-1].startswith(f"{cut}: damaged (") and "records   10 in 3 shards" in said
    record(copy)
    assert contents(store) == contents(whole / "store")
    assert {name for name, date in written_at(store).items() if dates[name] != date} == {
        name.with_suffix(suffix).name for name in (flipped, cut) for suffix in (".safetensors", ".json")
    }
    check = runs.command("check", store)
    said = check.stdout.read()
    assert check.wait() == 0 and said.endswith(f"{store}: no faults\n")


def test_an_entry_that_was_torn_is_recorded_again(copy, whole, tmp_path):
    entry = tmp_path / "store/shards/00000004-00000007.json"
    entry.write_text(entry.read_text()[:100])
    record(copy)
    assert contents(tmp_path / "store") == contents(whole / "store")


@pytest.mark.parametrize("override", ["data.trajectories.keep=3", "data.trajectories.keep=all", "train.precision=bf16"])
def test_a_repair_that_would_make_other_records_is_refused(override, copy, tmp_path):
    """Also where no record is missing; one that has nothing to write is not."""
    levels = "method.steps=1"  # that any of these keeps
    record(copy, levels)
    store, before = tmp_path / "store", contents(tmp_path / "store")
    if "keep" in override:
        record(copy, override, levels)
    flip(store / "shards/00000004-00000007.safetensors")
    flipped = contents(store)
    assert flipped != before
    with pytest.raises(UserError, match=r"store: recorded with (data.trajectories.keep|train.precision) .*change the"):
        record(copy, override, levels)
    assert contents(store) == flipped


@pytest.mark.parametrize("spoil", [flip, lambda path: path.with_suffix(".json").write_text("{")])
def test_a_repair_leaves_records_beyond_the_recipe_to_a_recipe_that_has_them(spoil, copy, whole, tmp_path):
    """Theirs may be other prompts, which are not encoded."""
    shard = tmp_path / "store/shards/00000004-00000007.safetensors"
    spoil(shard)
    before = contents(tmp_path / "store")
    for records in (2, 6):
        with pytest.raises(UserError, match=rf"{shard.name}: damaged, and holds records beyond .* {records}; set .*=8"):
            record(copy, f"data.trajectories.records={records}")
        assert contents(tmp_path / "store") == before
    record(copy, "data.trajectories.records=8")
    assert contents(tmp_path / "store") == contents(whole / "store")


def test_a_repair_shows_what_it_records(copy, tmp_path, capfd):
    flip(tmp_path / "store/shards/00000004-00000007.safetensors")
    record(copy)
    said = [line for line in capfd.readouterr().out.splitlines() if line.startswith("recording: ")]
    assert said[0].startswith("recording: 6 of 10 records") and said[-1].startswith("recording: 10 of 10 records")


def test_an_orphan_of_another_shard_size_is_removed(copy, tmp_path):
    (tmp_path / "store/shards/00000004-00000007.json").unlink()
    record(copy, "data.trajectories.shard=2")
    files, said = (
        sorted(p.stem for p in (tmp_path / "store/shards").glob(kind)) for kind in ("*.safetensors", "*.json")
    )
    assert files == said and "00000004-00000007" not in files


def test_a_recorder_killed_before_its_index_goes_on(teacher, whole, tmp_path):
    (tmp_path / "store/shards").mkdir(parents=True)
    (tmp_path / "store/lock").write_text("process 1 on there")
    (tmp_path / "store/index.json.partial").write_text("{")
    record(write(tmp_path, teacher))
    assert contents(tmp_path / "store") == contents(whole / "store")


def test_a_store_whose_index_is_lost_is_not_recorded_over(copy, tmp_path):
    (tmp_path / "store/index.json").unlink()
    before = contents(tmp_path / "store")
    with pytest.raises(UserError, match="holds shards but no index.json: the store's index is lost; restore it"):
        record(copy)
    assert contents(tmp_path / "store") == before


def test_a_first_recorder_holds_the_store_before_it_makes_it(teacher, tmp_path, monkeypatch):
    """A second first one finds it held, whenever it looks."""
    recipe, seen, create = write(tmp_path, teacher), [], trajectories.create

    def racing(*arguments):
        with monkeypatch.context() as patch, pytest.raises(UserError, match=r"is being recorded by process \d+"):
            patch.setattr(trajectories, "create", create)
            record(recipe)
        seen.append(1)
        create(*arguments)

    monkeypatch.setattr(trajectories, "create", racing)
    record(recipe)
    assert seen == [1]


def test_a_store_that_is_whole_is_read_without_its_lock(copy, tmp_path):
    """And a folder that nobody may write to is enough."""
    with (tmp_path / "store/lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs.train(copy)
        with pytest.raises(UserError, match="is being recorded by another process"):
            runs.train(copy, "data.trajectories.clips=true", f"output={tmp_path / 'clips'}")
    assert not (tmp_path / "store/clips").exists()


def test_what_the_second_process_meets_is_said_by_all(copy, tmp_path, monkeypatch):
    """An error of the operating system is a fault in common; one of the program is raised where it is."""
    recipe, shared = recipes.load(copy), []
    engine = SimpleNamespace(rank=1, world=2, main=False, first=lambda value: shared.append(value) or value)
    recorder = synthesize.Recorder(recipe, {}, None, None, engine, StopRequest())

    def full():
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="^No space left on device$"):
        recorder._together(full, "recorded")
    assert shared == [None, "No space left on device"]
    with pytest.raises(ZeroDivisionError):
        recorder._together(lambda: 1 / 0, "recorded")


def test_an_encoding_that_cannot_be_written_or_read_is_one_line(teacher, tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    embeddings = Embeddings(Wan(teacher), tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"safetensors: cannot be written \(.*No space"):
        patch.setattr(prompts, "save_file", full)
        embeddings.prepare(["a"])
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    embeddings.prepare(["a"])
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"safetensors: damaged \(.*remove it, and the prompt is encoded again"):
        embeddings.get(["a"])


@pytest.mark.parametrize("act", [record, runs.train])
@pytest.mark.parametrize("override", ["data.trajectories.seed=1", "method.steps=3"])
def test_what_is_refused_is_refused_before_prompts_are_encoded(act, override, copy, monkeypatch):
    monkeypatch.setattr(Embeddings, "prepare", lambda *_: pytest.fail("encoded"))
    with pytest.raises(UserError, match=r"recorded with data.trajectories.seed 0|keeps the noise levels"):
        act(copy, override)


SLOW = "checkpoint.every=100"


def test_a_flipped_shard_stops_training_at_a_saved_state_and_once_repaired_it_goes_on(copy, whole, teacher, tmp_path):
    shard = tmp_path / "store/shards/00000008-00000009.safetensors"
    flip(shard)
    with pytest.raises(Stopped) as stopped:
        runs.train(copy, SLOW)
    said = str(stopped.value)
    assert stopped.value.code == 2 and said.startswith(f"{shard}: damaged (record ") and "\n" not in said
    assert (
        f"`distill synthesize RECIPE`, and go on with `distill run {tmp_path / 'run'}`; its state is saved in " in said
    )
    assert Path(said.rpartition(" in ")[2]).is_dir()
    record(copy)
    runs.train(copy, SLOW)
    other = runs.train(write(tmp_path / "other", teacher, path=str(whole / "store")), SLOW)
    runs.assert_same(runs.final(tmp_path / "run"), runs.final(other))


@pytest.mark.slow
def test_a_flipped_shard_that_one_of_two_processes_reads_is_said_once_by_the_command(copy, tmp_path):
    """The line comes from the first process, whichever met the damage."""
    shard = tmp_path / "store/shards/00000008-00000009.safetensors"
    flip(shard)
    stopped = runs.command("run", copy, SLOW, "--processes", "2")
    said = stopped.stdout.read()
    assert stopped.wait() == 2, said
    (line,) = [line for line in said.splitlines() if line.startswith(f"{shard}: damaged (record ")]
    assert Path(line.rpartition(" in ")[2]).is_dir() and "Traceback" not in said


def test_a_cut_shard_stops_a_run_before_it_starts(copy, tmp_path):
    shard = tmp_path / "store/shards/00000004-00000007.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"00000004-00000007.safetensors: damaged \(\d+ bytes, its entry says"):
        runs.train(copy)


# Training


def test_a_run_makes_the_store_first_and_says_so(whole, teacher, tmp_path, capfd):
    runs.train(write(tmp_path, teacher))
    assert f"{tmp_path / 'store'} lacks 10 of 10 trajectories: recording them" in capfd.readouterr().out
    assert contents(tmp_path / "store") == contents(whole / "store")
    (tmp_path / "store/shards/00000008-00000009.json").unlink()
    runs.train(write(tmp_path, teacher), "output=" + str(tmp_path / "second"))
    assert f"{tmp_path / 'store'} lacks 2 of 10 trajectories: recording them" in capfd.readouterr().out
    runs.assert_same(runs.final(tmp_path / "second"), runs.final(tmp_path / "run"))


@pytest.mark.slow
def test_two_processes_record_and_train_as_one_does(teacher, tmp_path):
    one = write(tmp_path / "one", teacher)
    runs.train(one)
    process = runs.command("run", write(tmp_path / "two", teacher), "--processes", "2")
    assert process.wait() == 0, process.stdout.read()
    assert contents(tmp_path / "two/store") == contents(tmp_path / "one/store")
    two = runs.final(tmp_path / "two/run")
    for name, value in runs.final(tmp_path / "one/run").items():
        if name.startswith("student."):
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_training_on_trajectories_goes_on_bit_for_bit(copy, teacher, whole, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    pause = trainer.Trainer._pause

    def kill(self, batches):
        if self.position.done == 3:
            raise Killed
        pause(self, batches)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Trainer, "_pause", kill)
        runs.train(copy)
    runs.train(copy)
    other = runs.train(write(tmp_path / "other", teacher, path=str(whole / "store")))
    runs.assert_same(runs.final(tmp_path / "run"), runs.final(other))


def test_a_store_that_became_another_is_seen_on_resume(copy, teacher, tmp_path):
    runs.train(copy)
    other = record(write(tmp_path / "other", teacher, seed=5))
    for path in (tmp_path / "store/shards").iterdir():
        path.unlink()
    os.rename(tmp_path / "store", tmp_path / "old")
    os.rename(other.path, tmp_path / "store")
    with pytest.raises(UserError, match=r"data.trajectories.seed was 0, is 5"):
        runs.train(copy, "data.trajectories.seed=5")
    recipe = tmp_path / "run/recipe.yaml"
    recipe.write_text(recipe.read_text().replace("    seed: 0\n", "    seed: 5\n"))
    with pytest.raises(UserError, match=r"store: not the trajectories that .* was trained on; restore them"):
        runs.train(copy, "data.trajectories.seed=5")


def test_validation_and_evaluation_are_those_of_any_run(copy, tmp_path):
    shown = "{prompts: [a red circle], teacher_steps: [2, 4]}"
    runs.train(copy, f"validation={shown}", f"evaluation={shown}", "evaluation.samples=2")
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert {"validation", "evaluation", "done"} <= {line["kind"] for line in log}
    assert (tmp_path / "run/samples/update_00000005/00.mp4").exists()


# The recipe against the store


@pytest.mark.parametrize(
    ("override", "was", "now"),
    [
        ("data.trajectories.shift=7.0", "data.trajectories.shift 5.0", "7.0"),
        ("data.trajectories.steps=8", "data.trajectories.steps 6", "8"),
        ("data.trajectories.guidance=6.0", "data.trajectories.guidance 5.0", "6.0"),
        ("data.trajectories.precision=fp32", "data.trajectories.precision 'fp16'", "'fp32'"),
        ("data.trajectories.seed=1", "data.trajectories.seed 0", "1"),
        ("video.width=64", "video.width 48", "64"),
        ("data.negative_prompt=blue", "data.negative_prompt ''", "'blue'"),
        ("teacher.max_sequence_length=4", "teacher.max_sequence_length 8", "4"),
    ],
)
def test_a_store_of_another_recipe_is_refused_with_both_values(override, was, now, copy, tmp_path):
    before = contents(tmp_path / "store")
    method = "method.shift=7" if "shift" in override else "method.shift=5"
    for act in (record, runs.train):
        with pytest.raises(UserError) as refused:
            act(copy, override, method, f"output={tmp_path / act.__name__}")
        assert f"{tmp_path / 'store'}: recorded with {was}, the recipe has {now}; change the recipe" in str(
            refused.value
        )
        assert "\n" not in str(refused.value)
    assert contents(tmp_path / "store") == before


def test_a_store_of_another_teacher_or_of_other_prompts_is_refused(copy, tmp_path, whole, teacher):
    other = tiny_wan.build(tmp_path / "wan", seed=1)
    with pytest.raises(UserError, match=r"recorded with a teacher of fingerprint '\w+', the recipe has '\w+'"):
        record(copy, f"teacher.path={other}")
    (tmp_path / "texts.txt").write_text("a red circle\na\n")
    with pytest.raises(UserError, match="record 1 was made from prompt 'a blue square moves left', .* has 'a' there"):
        record(copy, f"data.prompts={tmp_path / 'texts.txt'}")


def test_levels_that_the_recorder_would_not_keep_are_refused_before_it_starts(teacher, tmp_path):
    with pytest.raises(UserError, match=r"the recipe keeps the noise levels 1, 0.8333, 0; .*keep=all"):
        record(write(tmp_path, teacher), "method.steps=3")
    assert not (tmp_path / "store").exists()


def test_levels_that_a_complete_store_does_not_hold_are_refused(copy):
    with pytest.raises(UserError, match=r"store keeps the noise levels 1, 0.8333, 0; .* asks for 0.9091"):
        runs.train(copy, "method.steps=3", "data.trajectories.keep=3")


def test_a_folder_that_holds_something_else_is_refused(teacher, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="holds 'thesis.tex' but no index.json: not a trajectory store"):
        record(write(tmp_path, teacher))


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.trajectories.keep=4", "keep: 4 does not divide steps 6; it may be all, or one of 1, 2, 3, 6"),
        ("data.trajectories.steps=5", "keep: 2 does not divide steps 5; it may be all, or one of 1, 5"),
        ("data.trajectories=null", "data.trajectories: required, but missing: the method learns from recorded"),
        ("data.trajectories.precision=bf16", "data.trajectories.precision: should be 'fp16' or 'fp32'"),
        ("method.name=tests.plugins:Pair", "data.trajectories: the method reads no trajectories; leave it out"),
    ],
)
def test_a_recipe_that_cannot_be_recorded_is_a_fault(override, line, teacher, tmp_path):
    with pytest.raises(recipes.RecipeError) as refused:
        recipes.load(write(tmp_path, teacher), [override])
    assert line in str(refused.value)


def test_the_command_refuses_a_recipe_without_trajectories(teacher, tmp_path):
    with pytest.raises(UserError, match="has no section data.trajectories: there is nothing to record"):
        cli.synthesize(runs.write(tmp_path, teacher))


def test_an_empty_file_of_prompts_is_refused(copy, tmp_path):
    (tmp_path / "none.txt").write_text("\n")
    with pytest.raises(UserError, match="none.txt: no prompts; expected one per line"):
        record(copy, f"data.prompts={tmp_path / 'none.txt'}")


def test_a_teacher_that_is_not_finite_is_not_recorded(teacher, tmp_path, monkeypatch):
    guided = Net.guided
    monkeypatch.setattr(Net, "guided", lambda *a: guided(*a) * float("nan"))
    with pytest.raises(UserError, match="records 0 to 1: the teacher's latents are not finite"):
        record(write(tmp_path, teacher))
    assert entries(tmp_path / "store") == []


def test_recording_evaluates_the_teacher_once_per_step_and_batch(teacher, tmp_path, monkeypatch):
    calls, forward = [], Role.forward
    monkeypatch.setattr(Role, "forward", lambda self, x, *a, **k: calls.append(len(x)) or forward(self, x, *a, **k))
    record(write(tmp_path, teacher))
    assert calls == [4] * 6 * 5  # two records with and without their prompts, six steps, five batches
    record(write(tmp_path / "off", teacher, guidance=1.0, records=2))
    assert calls[30:] == [2] * 6


def test_a_key_step_is_where_the_recipe_says():
    assert [agreement.kept(6, keep) for keep in (1, 2, "all")] == [range(0, 7, 6), range(0, 7, 3), range(7)]


def test_check_of_shards_without_an_index_says_that_it_is_lost(tmp_path):
    (tmp_path / "shards").mkdir()
    process = runs.command("check", tmp_path)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 2 and said.strip() == f"{tmp_path} holds no index.json: it is not a trajectory store"
