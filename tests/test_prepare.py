"""`distill prepare`: real videos into a store of latents, through the real recipe and partly the real command."""

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from distill import cli, prepare
from distill import recipe as recipes
from distill.data import footage, table
from distill.data.footage import BadVideo
from distill.data.videos import Store
from distill.errors import Stopped, UserError
from distill.teachers.wan import Wan

from . import films, runs, tiny_wan

AVD = "{name: avd, student_every: 2}"
H264 = ("-c:v", "libx264", "-movflags", "+faststart", "-bf", "0")
SIZE = 32, 48  # of the recipe's clips, with 5 frames at 8 fps


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "wan")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A folder of good videos and one of every other kind, with captions."""
    folder = tmp_path_factory.mktemp("source")
    (folder / "sub").mkdir()
    films.write(folder / "a.mkv", films.noise(12, *SIZE), 8)
    films.write(folder / "b.mkv", films.noise(20, *SIZE, seed=1), 16)
    films.write(folder / "sub/c.mkv", films.noise(5, 32, 64, seed=2), 8)
    films.write(folder / "short.mkv", films.noise(3, *SIZE, seed=3), 8)
    films.write(folder / "small.mkv", films.noise(6, 16, 16), 8)
    films.write(folder / "black.mkv", np.zeros((6, *SIZE, 3), np.uint8), 8)
    films.write(folder / "torn.mp4", films.noise(30, *SIZE), 8, codec=H264)
    (folder / "torn.mp4").write_bytes((folder / "torn.mp4").read_bytes()[:12000])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("once upon a time\n" * 40)
    shutil.copy(folder / "a.mkv", folder / "untold.mkv")
    for path in [path for path in folder.rglob("*.m*") if path.stem != "untold"]:
        path.with_suffix(".txt").write_text(f"a red circle {path.stem}")
    return folder


def write(folder: Path, teacher: Path, source, networks=("student", "fake_score"), method=AVD, **changes) -> Path:
    """A recipe of clips in shards of two, in folder/store."""
    path = runs.write(folder, teacher, method, networks)
    said = {"path": str(folder / "store"), "source": str(source), "shard": 2} | changes
    data = json.dumps({"prompts": str(teacher.parent / "prompts.txt"), "videos": said})
    lines = path.read_text().splitlines()
    lines[[line.startswith("data:") for line in lines].index(True)] = f"data: {data}"
    path.write_text("\n".join(lines).replace("micro_batch_size: 2", "micro_batch_size: 2, steps: 5") + "\n")
    return path


def prepared(path: Path, *overrides: str) -> Store:
    return Store(prepare.run(recipes.load(path, overrides)))


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted([*(store / "shards").iterdir(), store / "clips.jsonl"])}


def written_at(store: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (store / "shards").iterdir()}


@pytest.fixture(scope="module")
def whole(teacher, source, tmp_path_factory):
    """The folder of a recipe whose store is complete."""
    folder = tmp_path_factory.mktemp("whole")
    prepared(write(folder, teacher, source))
    return folder


@pytest.fixture
def copy(whole, teacher, source, tmp_path):
    """A recipe with a store of its own, complete."""
    recipe = write(tmp_path, teacher, source)
    shutil.copytree(whole / "store", tmp_path / "store")
    return recipe


# What is kept, and what it is


VERDICTS = {
    "a.mkv": ("kept", None),
    "b.mkv": ("kept", None),
    "black.mkv": ("dropped", "blank: every frame is of one colour"),
    "empty.mp4": ("dropped", "it is empty (0 bytes)"),
    "short.mkv": ("dropped", "too short: 3 frames at 8 fps for clips of 5"),
    "small.mkv": ("dropped", "too small: 16x16 pixels for clips of 48x32"),
    "sub/c.mkv": ("kept", None),
    "text.mp4": ("dropped", "not a video ("),
    "torn.mp4": ("dropped", "damaged ("),
    "untold.mkv": ("dropped", "no caption: untold.txt is missing"),
}


def test_every_video_has_a_verdict_and_one_bad_file_does_not_stop_the_others(whole):
    rows = table.read(whole / "store")
    assert [row.video for row in rows] == list(VERDICTS)
    for row in rows:
        verdict, reason = VERDICTS[row.video]
        assert (
            row.verdict == verdict and (row.reason or "").startswith(reason or "") and bool(row.reason) == bool(reason)
        )
        assert row.clips == (verdict == "kept")
    assert Store(whole / "store").prompts == [f"a red circle {name}" for name in "abc"]


def test_a_clip_is_the_middle_of_its_frames_at_the_training_rate(whole, source, teacher):
    """Told from the files that were written: every second frame of 16 per second, the middle of a wider picture."""
    clips = [films.noise(12, *SIZE)[:5], None, films.noise(5, 32, 64, seed=2)[:, :, 8:56]]
    clips[1] = footage.frames(source / "b.mkv", fps=8)[:5]
    among = films.noise(20, *SIZE, seed=1)
    assert all(
        any(np.array_equal(frame, other) for other in among[2 * i : 2 * i + 3]) for i, frame in enumerate(clips[1])
    )
    store, wan = Store(whole / "store"), Wan(teacher)
    for clip, frames in enumerate(clips):
        expected = wan.encode_video(torch.from_numpy(np.ascontiguousarray(frames))[None])[0]
        assert torch.equal(store.read(clip), expected.half().float())


def test_a_larger_picture_is_shrunk_until_a_clip_just_fits(teacher, tmp_path):
    """96 x 80 pixels become 48 x 40, and lose 4 rows above and below."""
    (tmp_path / "in").mkdir()
    films.write(tmp_path / "in/a.mkv", films.noise(5, 80, 96), 8)
    (tmp_path / "in/a.txt").write_text("a")
    store = prepared(write(tmp_path, teacher, tmp_path / "in", precision="fp32"))
    boxes = films.noise(5, 80, 96).reshape(5, 40, 2, 48, 2, 3).mean((2, 4))[:, 4:36].round().astype(np.uint8)
    expected = Wan(teacher).encode_video(torch.from_numpy(boxes)[None])[0]
    assert (store.read(0) - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    ("width", "height", "covering"),
    [
        (48, 32, (48, 32)),
        (96, 80, (48, 40)),
        (100, 64, (50, 32)),
        (1280, 720, (57, 32)),
        (720, 1280, (48, 85)),
        (24, 32, (48, 64)),
    ],
)
def test_a_scaled_video_covers_the_clip(width, height, covering):
    found = prepare.cover(SimpleNamespace(width=width, height=height), SimpleNamespace(width=48, height=32))
    assert found == covering and found[0] >= 48 and found[1] >= 32


def test_options_take_what_is_dropped_without_them(teacher, source, tmp_path):
    store = prepared(write(tmp_path, teacher, source, short="hold", upscale=True, per_video="all"))
    rows = {row.video: row for row in table.read(tmp_path / "store")}
    kept = {name: row.clips for name, row in rows.items() if row.verdict == "kept"}
    assert kept == {"a.mkv": 2, "b.mkv": 2, "short.mkv": 1, "small.mkv": 1, "sub/c.mkv": 1}
    wan, clip = Wan(teacher), [place for place, sample in enumerate(store.clips) if store.prompts[place].endswith("a")]
    for place, first in zip(clip, (0, 5), strict=True):
        frames = torch.from_numpy(films.noise(12, *SIZE)[first : first + 5])[None]
        assert torch.equal(store.read(place), wan.encode_video(frames)[0].half().float())
    held = films.noise(3, *SIZE, seed=3)[[0, 1, 2, 2, 2]]
    (place,) = (place for place, prompt in enumerate(store.prompts) if prompt.endswith("short"))
    assert torch.equal(store.read(place), wan.encode_video(torch.from_numpy(held)[None])[0].half().float())


def test_a_list_is_prepared_as_a_folder_is(teacher, source, whole, tmp_path):
    lines = [{"path": str(source / name), "caption": f"a red circle {Path(name).stem}"} for name in VERDICTS]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, [*lines, {"path": "gone.mp4", "caption": "a"}])))
    store = prepared(write(tmp_path, teacher, tmp_path / "list.jsonl"))
    assert store.prompts == [*Store(whole / "store").prompts, "a red circle untold"]
    last = table.read(tmp_path / "store")[-1]
    assert (last.where, last.reason) == (f"{tmp_path}/list.jsonl:11", f"no such file: {tmp_path}/gone.mp4")


def test_when_no_video_is_fit_it_is_one_line(teacher, source, tmp_path):
    """Whether that shows at once, or when they are decoded; and a run stops there too."""
    line = r"store: of \d videos none is fit: (1 [a-z ]+(, )?)+; see .*clips.jsonl$"
    for names in (["short", "empty"], ["empty"]):
        folder = tmp_path / names[0]
        (folder / "in").mkdir(parents=True)
        for name in names:
            for path in source.glob(f"{name}.*"):
                shutil.copy(path, folder / "in")
        recipe = write(folder, teacher, folder / "in")
        for act in (prepared, prepared, runs.train):
            with pytest.raises(UserError, match=line) as error:
                act(recipe)
            assert "\n" not in str(error.value)
        assert {row.verdict for row in table.read(folder / "store")} == {"dropped"}


# Processes, interruptions


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_writes_the_same_bytes(processes, whole, teacher, source, tmp_path):
    """As one process wrote into `whole`."""
    done = runs.command("prepare", write(tmp_path, teacher, source), "--processes", str(processes))
    said = done.stdout.read()
    assert done.wait() == 0, said
    assert contents(tmp_path / "store") == contents(whole / "store")
    assert said.count("10 videos: 3 kept (3 clips), 7 dropped") == 1 and "s/clip" in said


@pytest.mark.slow
def test_one_that_was_killed_with_signal_9_goes_on_where_it_stopped(teacher, tmp_path):
    """The real command, begun, killed and begun again; the store is that of one that was never killed."""
    (tmp_path / "in").mkdir()
    for i in range(12):
        films.write(tmp_path / f"in/{i:02d}.mkv", films.noise(6, *SIZE, seed=i), 8)
        (tmp_path / f"in/{i:02d}.txt").write_text("a")
    recipe, reference = (write(tmp_path / name, teacher, tmp_path / "in", shard=1) for name in "ab")
    store = tmp_path / "a/store"
    killed = runs.command("prepare", recipe)
    wait_for(store / "shards/00000002-00000002.json", killed)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    entries = [path.stem for path in (store / "shards").glob("*.json")]
    assert 3 <= len(entries) < 12, "killed too late to show anything"
    dates = {name: date for name, date in written_at(store).items() if Path(name).stem in entries}
    (store / "shards/00000008-00000011.safetensors.partial").write_bytes(b"half a shard")
    again = runs.command("prepare", recipe)
    assert again.wait() == 0, again.stdout.read()
    assert dates.items() <= written_at(store).items()  # rewrites nothing
    prepared(reference)
    assert contents(store) == contents(tmp_path / "b/store")


def wait_for(path: Path, process, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < end, f"{path} did not come"
        time.sleep(0.005)


@pytest.mark.parametrize("at", ["probe", "encode"])
def test_a_signal_leaves_with_one_line_and_what_is_prepared_stays(at, teacher, source, whole, tmp_path, monkeypatch):
    """While files are looked at, and while they are encoded, as the command and as part of a run."""
    recipe = write(tmp_path, teacher, source, shard=1)
    owner, name = (footage, "probe") if at == "probe" else (Wan, "encode_video")
    original, calls = getattr(owner, name), []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(*arguments)

    line = {
        "probe": "the videos are not all looked at, and none is prepared",
        "encode": r"\d of 6 clips are prepared in .*",
    }
    for act in (prepared, runs.train):
        with (
            monkeypatch.context() as patch,
            pytest.raises(Stopped, match=rf"^SIGTERM: {line[at]}; go on with the same"),
        ):
            patch.setattr(owner, name, interrupted)
            act(recipe)
        calls.clear()
    store = tmp_path / "store"
    if at == "probe":
        assert not (store / "index.json").exists()
    else:
        assert 0 < len(list((store / "shards").glob("*.json"))) < 6
    assert prepared(recipe).prompts == Store(whole / "store").prompts


def test_a_second_preparer_is_refused(copy, tmp_path):
    from distill import disk

    with (
        disk.hold(tmp_path / "store", ""),
        pytest.raises(UserError, match=r"store is being prepared by process \d+ on"),
    ):
        prepared(copy)


# Another recipe, another source


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("data.videos.per_video=2", "prepared with data.videos.per_video 1, the recipe has 2"),
        ("data.videos.upscale=true", "prepared with data.videos.upscale False, the recipe has True"),
        ("data.videos.short=hold", "prepared with data.videos.short 'reject', the recipe has 'hold'"),
        ("data.videos.precision=fp32", "prepared with data.videos.precision 'fp16', the recipe has 'fp32'"),
        ("video.fps=4", "prepared with video.fps 8, the recipe has 4"),
        ("data.videos.curation={}", "prepared with data.videos.curation"),
    ],
)
@pytest.mark.parametrize("act", [prepared, runs.train])
def test_a_store_of_other_settings_is_refused_and_left(act, override, line, copy, tmp_path):
    before = contents(tmp_path / "store")
    with pytest.raises(UserError) as error:
        act(copy, override)
    told = str(error.value).splitlines()
    assert all(each.startswith(f"{tmp_path / 'store'}: {line}") for each in told)
    assert all(each.endswith("prepare another store with data.videos.path=NEW_FOLDER") for each in told)
    assert contents(tmp_path / "store") == before


def test_another_vae_is_refused_and_another_network_is_not(copy, teacher, tmp_path, source):
    same = shutil.copytree(teacher, tmp_path / "same" / "wan")
    (tmp_path / "same/wan/transformer/config.json").write_text((same / "transformer/config.json").read_text() + "\n")
    prepared(copy, f"teacher.path={same}")
    other = tiny_wan.build(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match=r"store: prepared with a VAE of fingerprint '\w{16}', the recipe has '\w{16}'"):
        prepared(copy, f"teacher.path={other}")


@pytest.mark.parametrize("change", ["caption", "new video", "other video"])
def test_a_source_that_changed_is_refused(change, copy, source, teacher, tmp_path):
    moved = shutil.copytree(source, tmp_path / "moved")
    prepared(copy, f"data.videos.source={moved}")  # where it lies is no matter
    if change == "caption":
        (moved / "a.txt").write_text("another")
    elif change == "new video":
        shutil.copy(moved / "a.mkv", moved / "new.mkv")
    else:
        shutil.copy(moved / "b.mkv", moved / "a.mkv")
    line = f"store: {moved} lists other videos, or captions, than it was prepared from; change the recipe back"
    with pytest.raises(UserError, match=line):
        prepared(copy, f"data.videos.source={moved}")


def test_a_store_that_is_whole_needs_no_videos_and_no_lock(copy, tmp_path):
    """As on the machine that trains; a damaged one says what it lacks."""
    gone = f"data.videos.source={tmp_path}/gone"
    (tmp_path / "store/lock").unlink()
    runs.train(copy, gone)
    assert not (tmp_path / "store/lock").exists()
    prepared(copy, gone)
    shard = tmp_path / "store/shards/00000000-00000001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-3])
    with pytest.raises(
        UserError, match=r"00000000-00000001.safetensors: damaged \(.*prepare it anew with `distill prep"
    ):
        runs.train(copy, gone)
    with pytest.raises(UserError, match=r"gone: no such folder, .csv or .jsonl file of videos"):
        prepared(copy, gone)


def test_a_damaged_shard_is_prepared_anew_and_no_other(copy, whole, tmp_path):
    store = tmp_path / "store"
    dates, path = written_at(store), store / "shards/00000000-00000001.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    check = runs.command("check", store)
    said = check.stdout.read()
    assert (
        check.wait() == 2 and f"{path}: damaged (it does not match its sha256); prepare it anew with `distill" in said
    )
    prepared(copy)
    assert contents(store) == contents(whole / "store")
    assert {name for name, date in written_at(store).items() if dates[name] != date} == {path.name, f"{path.stem}.json"}


@pytest.mark.parametrize(("content", "line"), [(None, "missing"), ("{", "damaged ("), ('{"video": 1}', "damaged (")])
def test_a_table_that_is_lost_is_one_line(content, line, copy, tmp_path):
    path = tmp_path / "store/clips.jsonl"
    path.write_text(content) if content else path.unlink()
    with pytest.raises(UserError) as error:
        prepared(copy)
    assert str(error.value).startswith(f"{path}: {line}") and "restore it, or prepare into a new folder" in str(
        error.value
    )


def test_a_folder_that_holds_something_else_is_refused(teacher, source, tmp_path):
    recipe = write(tmp_path, teacher, source)
    (tmp_path / "store").mkdir()
    (tmp_path / "store/thesis.tex").write_text("years of work")
    with pytest.raises(
        UserError, match="holds 'thesis.tex' but no index.json: not a video store; set data.videos.path="
    ):
        prepared(recipe)


def test_a_first_attempt_that_ended_before_the_index_binds_nobody(teacher, source, whole, tmp_path, monkeypatch):
    recipe = write(tmp_path, teacher, source)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="^full$"):
        patch.setattr("distill.data.shards.create", lambda *_: (_ for _ in ()).throw(OSError("full")))
        prepared(recipe, "data.videos.per_video=2")
    assert (tmp_path / "store/clips.jsonl").exists()
    prepared(recipe)
    assert contents(tmp_path / "store") == contents(whole / "store")


def test_a_table_without_its_verdicts_is_finished_by_whoever_comes_next(copy, whole, tmp_path):
    """Killed behind the last shard."""
    rows = [
        row if not row.places else row.__class__(**vars(row) | {"verdict": "open", "clips": 0, "reason": None})
        for row in table.read(tmp_path / "store")
    ]
    table.write(tmp_path / "store", rows)
    runs.train(copy)
    assert contents(tmp_path / "store") == contents(whole / "store")


# Curation


def test_curation_drops_before_anything_is_encoded_and_alone_needs_no_teacher(
    teacher, source, tmp_path, monkeypatch, capfd
):
    pytest.importorskip("cv2")
    from distill import curate

    seen = []

    def judge(videos, curation, folder, fps, progress, **_):
        seen.append([video.path.name for video in videos])
        progress.show(len(videos))
        assert (folder, fps) == (tmp_path / "store/curation", 8)
        folder.mkdir(parents=True, exist_ok=True)
        return ["blurred: 3" if video.path.name == "a.mkv" else None for video in videos]

    monkeypatch.setattr(curate, "judge", judge)
    recipe = write(tmp_path, teacher, source, curation={})
    with monkeypatch.context() as patch:
        patch.setattr("distill.teachers.load", lambda *_: pytest.fail("loaded"))
        page = prepare.curate(recipes.load(recipe))
    assert page == tmp_path / "store/curation/index.html" and not (tmp_path / "store/index.json").exists()
    assert {row.video: row.reason for row in table.read(tmp_path / "store")}["a.mkv"] == "blurred: 3"
    assert "10 videos: 5 may be encoded, 5 dropped" in capfd.readouterr().out
    store = prepared(recipe)
    assert store.prompts == ["a red circle b", "a red circle c"]
    assert seen == 2 * [["a.mkv", "b.mkv", "black.mkv", "short.mkv", "sub/c.mkv".rpartition("/")[2], "torn.mp4"]]


def test_a_signal_ends_curation_with_one_line(teacher, source, tmp_path, monkeypatch):
    pytest.importorskip("cv2")
    from distill import curate

    def judge(videos, curation, folder, fps, progress, **_):
        os.kill(os.getpid(), signal.SIGINT)
        progress.show(1)

    monkeypatch.setattr(curate, "judge", judge)
    recipe = recipes.load(write(tmp_path, teacher, source, curation={}))
    for act in (prepare.curate, prepare.run):
        with pytest.raises(Stopped, match="^SIGINT: the videos are not all looked at, and none is prepared; go on"):
            act(recipe)
    assert not (tmp_path / "store/index.json").exists()


# The embedded world as a source


def test_the_embedded_world_is_rendered_and_prepared(teacher, tmp_path):
    recipe = write(tmp_path, teacher, "embedded:cloth", clips=3)
    size = ["video.height=32", "video.width=32"]
    store = prepared(recipe, *size)
    assert len(list((tmp_path / "store/source").glob("*.mp4"))) == 3 == len(store.clips)
    before = contents(tmp_path / "store")
    shutil.rmtree(tmp_path / "store/source")
    prepared(recipe, *size)
    assert not (tmp_path / "store/source").exists() and contents(tmp_path / "store") == before
    for override, line in (
        ("data.videos.clips=4", "data.videos.clips 3, the recipe has 4"),
        ("data.videos.source=embedded", "data.videos.source 'cloth', the recipe has 'own'"),
    ):
        with pytest.raises(UserError, match=line):
            prepared(recipe, *size, override)


# The recipe


@pytest.mark.parametrize(
    ("override", "line"),
    [
        (
            "data.videos.source=embedded",
            "data.videos.clips: required, but missing: how many the embedded world renders",
        ),
        ("data.videos.source='embedded:clot'", "data.videos.source: no domain 'clot', did you mean 'cloth'?"),
        (
            "data.videos.clips=3",
            "data.videos.clips: counts what the embedded world renders; leave it out, or set source",
        ),
        ("data.videos=null", "data.videos: required, but missing: the method learns from real videos"),
        ("data.prompts=null", "data.prompts: required, but missing"),
        ("method.name=dmd", "data.videos: the method reads no videos; leave it out"),
    ],
)
def test_what_does_not_fit_in_the_recipe_is_a_fault(override, line, teacher, source, tmp_path):
    recipe = write(tmp_path, teacher, source)
    with pytest.raises(UserError) as error:
        recipes.load(recipe, [override])
    assert line in str(error.value)


def test_the_command_says_what_there_is_nothing_to_do_for(teacher, source, tmp_path, monkeypatch):
    recipe = write(tmp_path, teacher, source)
    plain = runs.write(tmp_path / "plain", teacher)
    with pytest.raises(UserError, match="has no section data.videos: there is nothing to prepare"):
        cli.prepare(plain, [])
    with pytest.raises(UserError, match="--curate-only: .* has no section data.videos.curation"):
        cli.prepare(recipe, [], curate_only=True)
    with pytest.raises(UserError, match="--curate-only: one process does it"):
        cli.prepare(recipe, ["data.videos.curation={}"], processes=2, curate_only=True)


def test_a_file_that_vanishes_stops_the_work_and_is_not_dropped_for_good(copy, source, tmp_path, teacher, monkeypatch):
    """It was there when it was looked at: this is the disk, not the video."""
    recipe, original = write(tmp_path / "b", teacher, source), footage.stream

    def vanished(path, **options):
        if path.name == "b.mkv":
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return original(path, **options)

    with monkeypatch.context() as patch, pytest.raises(UserError, match="b.mkv: No such file or directory"):
        patch.setattr(footage, "stream", vanished)
        prepared(recipe)
    prepared(recipe)
    assert contents(tmp_path / "b/store") == contents(tmp_path / "store")


def test_a_bad_video_is_no_error_of_the_user(source):
    with pytest.raises(BadVideo):
        footage.probe(source / "text.mp4")
    assert not issubclass(BadVideo, UserError)
