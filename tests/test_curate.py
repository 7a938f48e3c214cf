"""Curation from end to end, on small clips: odd files, the cache, interruptions."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest

from distill import curate, disk, video
from distill.curate import measure, survey
from distill.data import footage
from distill.data.footage import Footage
from distill.data.spec import Curation
from distill.errors import UserError
from distill.progress import Progress
from tests.test_curate_imaging import texture
from tests.test_curate_verdicts import OFF

FPS = 16
ANY = Curation(**OFF)


def clip(path, frames=25, seed=0, speed=2, fps=FPS):
    """A textured clip in colour, whose contents move sideways."""
    channels = [texture(seed + i, (192, 400))[..., 0] for i in range(3)]
    world = np.stack(channels, -1)
    return video.write(path, np.stack([world[:, speed * i % 200 :][:, :200] for i in range(frames)]), fps)


def black(path):
    return video.write(path, np.zeros((25, 192, 200, 3), np.uint8), FPS)


def ffmpeg(*arguments):
    subprocess.run([imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments)], check=True)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Three ordinary clips, and black frames."""
    folder = tmp_path_factory.mktemp("clips")
    for i in range(3):
        clip(folder / f"{i}.mp4", seed=10 * i, speed=1 + i)
    black(folder / "black.mp4")
    return folder


def probed(folder):
    return [footage.probe(path) for path in sorted(folder.glob("*.mp4"))]


def judge(videos, folder, curation=ANY, fps=FPS, processes=1, **more):
    with Progress("measuring", "video", len(videos), silent=True) as progress:
        return curate.judge(videos, curation, folder, fps, progress, processes=processes, **more)


def lines(folder):
    return [json.loads(line) for line in (folder / "signals.jsonl").read_text().splitlines()]


def signals(folder):
    return {Path(line["video"]).stem: line["values"] for line in lines(folder) if "values" in line}


@pytest.fixture
def counted(monkeypatch):
    """The names of the videos that are measured."""
    found, real = [], measure.video

    def counting(item, *rest):
        found.append(item.path.stem)
        return real(item, *rest)

    monkeypatch.setattr(measure, "video", counting)
    return found


@pytest.fixture(scope="module")
def measured(clips, tmp_path_factory):
    folder = tmp_path_factory.mktemp("curation")
    return folder, judge(probed(clips), folder, Curation(resolution=None))


def test_the_papers_filters_on_small_clips(measured):
    folder, reasons = measured
    assert reasons[3].startswith("monochrome: hue entropy in nats 0, ")
    assert [reason is None for reason in reasons].count(True) == 1  # of three, two, of two one
    values = signals(folder)
    assert [values[f"{i}"]["motion"] for i in range(3)] == pytest.approx([1, 2, 3], rel=0.1)
    assert values["black"]["motion"] == values["black"]["contrast"] == 0
    assert values["0"]["frames"] == 25


def test_changed_thresholds_judge_anew_and_measure_nothing(clips, measured, counted):
    folder, _ = measured
    before = (folder / "signals.jsonl").read_bytes()
    lively = Curation(**OFF | {"motion": 2.5})
    kinds = [(reason or "kept").partition(":")[0] for reason in judge(probed(clips), folder, lively)]
    assert kinds == ["still", "still", "kept", "still"] and counted == []
    assert (folder / "signals.jsonl").read_bytes() == before
    rate = Curation(**OFF | {"motion": 2.5, "motion_at": "native"})
    judge(probed(clips)[:1], folder, rate)
    assert counted == ["0"]  # what motion is measured at is another measurement


def test_motion_is_measured_at_the_frame_rate_of_training(clips, tmp_path):
    """Half of the frames, and so twice the way; a clip of a lower rate keeps its own."""
    judge(probed(clips)[:2], tmp_path, fps=FPS / 2)
    halved = signals(tmp_path)
    assert [halved["0"]["motion"], halved["1"]["motion"]] == pytest.approx([2, 4], rel=0.1)
    judge(probed(clips)[:2], tmp_path / "up", fps=2 * FPS)
    assert [signals(tmp_path / "up")[name]["motion"] for name in "01"] == pytest.approx([1, 2], rel=0.1)
    long = footage.probe(clip(tmp_path / "long.mp4", frames=60))
    assert [len(measure.opening(long, fps).moving) for fps in (FPS / 2, FPS, 2 * FPS, None)] == [30, 60, 60, 60]


def test_a_changed_file_is_measured_anew_and_so_is_one_without_its_still(clips, tmp_path, counted):
    copy = tmp_path / "copy.mp4"
    copy.write_bytes((clips / "0.mp4").read_bytes())
    folder = tmp_path / "curation"
    judge([footage.probe(copy)], folder)
    copy.write_bytes((clips / "2.mp4").read_bytes())
    judge([footage.probe(copy)], folder)
    assert counted == ["copy"] * 2 and signals(folder)["copy"]["motion"] > 2
    for still in (folder / "stills").iterdir():
        still.unlink()
    judge([footage.probe(copy)], folder)
    assert counted == ["copy"] * 3


class Leave(Exception):
    pass


def test_interrupted_measuring_goes_on_where_it_stopped(clips, tmp_path, counted):
    class Stopping(Progress):
        def show(self, done):
            assert len(lines(tmp_path)) == done  # on the disk, whatever happens next
            if done == 2:
                raise Leave

    videos = probed(clips)
    with pytest.raises(Leave):
        curate.judge(videos, ANY, tmp_path, FPS, Stopping("", "", 4, silent=True), processes=1)
    assert counted == ["0", "1"] and len(lines(tmp_path)) == 2
    with (tmp_path / "signals.jsonl").open("a") as file:
        file.write('{"id": "half a li')  # as a kill leaves it
    assert judge(videos, tmp_path) == [None] * 4
    assert counted == ["0", "1", "2", "black"] and len(lines(tmp_path)) == 4


KILLED = """
import sys
from pathlib import Path
from tests.test_curate import judge, probed
judge(probed(Path(sys.argv[1])), Path(sys.argv[2]), processes=2)
"""


def test_killed_measuring_goes_on_and_leaves_no_process_behind(tmp_path, counted):
    many = tmp_path / "videos"
    many.mkdir()
    for i in range(8):
        clip(many / f"{i}.mp4", seed=i)
    folder, line = tmp_path / "curation", [sys.executable, "-c", KILLED, many, tmp_path / "curation"]
    process = subprocess.Popen(line, cwd=Path(__file__).parent.parent, start_new_session=True)
    until(lambda: (folder / "signals.jsonl").exists() and len(lines(folder)) > 0)
    process.kill()
    process.wait()
    until(lambda: not alive(process.pid))
    done = [Path(each["video"]).stem for each in lines(folder)]
    assert 0 < len(done) < 8
    judge(probed(many), folder)
    assert sorted(counted + done) == [f"{i}" for i in range(8)]


def until(true, seconds=120):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def alive(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_processes_measure_what_one_measures(clips, measured, tmp_path):
    assert judge(probed(clips), tmp_path, Curation(resolution=None), processes=3) == measured[1]
    one, three = signals(measured[0]), signals(tmp_path)
    assert three == {name: one[name] for name in three} and len(three) == 4


def test_a_line_that_is_no_measurement_is_named(clips, tmp_path):
    judge(probed(clips)[:1], tmp_path)
    path = tmp_path / "signals.jsonl"
    path.write_text("[]\n" + path.read_text())
    with pytest.raises(UserError, match=r"signals\.jsonl:1: not a measurement; delete the line to measure anew"):
        judge(probed(clips)[:1], tmp_path)


def test_a_folder_is_used_by_one_process_at_a_time(clips, tmp_path):
    with disk.hold(tmp_path, ""), pytest.raises(UserError, match=r"is in use by process \d+"):
        judge(probed(clips)[:1], tmp_path)


# Odd files


@pytest.fixture(scope="module")
def odd(clips, tmp_path_factory):
    """Files that decoders disagree about, and what is wrong with each."""
    folder = tmp_path_factory.mktemp("odd")
    late = "setpts='if(lt(N,12),N,2*N-12)/16/TB'"  # half as fast from frame 12 on
    ffmpeg("-i", clips / "1.mp4", "-vf", late, "-fps_mode", "vfr", folder / "varying.mp4")
    streams = ["-map", "0:v", "-map", "1:v", "-s:v:0", "64x64", "-frames:v:0", "9"]
    ffmpeg("-i", clips / "black.mp4", "-i", clips / "1.mp4", *streams, folder / "two_streams.mp4")
    ffmpeg("-i", clips / "1.mp4", "-frames:v", "1", folder / "one_frame.mp4")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=2x2:rate=16:duration=1", "-pix_fmt", "yuv420p", folder / "speck.mp4")
    ffmpeg("-f", "lavfi", "-i", "testsrc=size=2000x16:rate=16:duration=1", folder / "ribbon.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("a dog runs\n")
    whole = (clips / "1.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: int(0.6 * len(whole))])
    return folder


def test_every_odd_file_gets_a_verdict_and_stops_no_other(odd, tmp_path):
    """Also files that were fine when they were probed, and are no longer."""
    videos = [Footage(path, 200, 192, 16.0, 1.5) for path in sorted(odd.glob("*.mp4"))]
    videos.append(Footage(odd / "gone.mp4", 200, 192, 16.0, 1.5))
    reasons = dict(zip([v.path.stem for v in videos], judge(videos, tmp_path), strict=True))
    whole = {name for name, reason in reasons.items() if reason is None}
    assert whole == {"varying", "two_streams", "one_frame", "speck", "ribbon"}
    assert reasons["empty"] == "unreadable: it is empty (0 bytes)"
    assert reasons["text"].startswith("unreadable: not a video") and "\n" not in reasons["text"]
    assert reasons["torn"].startswith("unreadable: ")
    assert reasons["gone"] == "unreadable: No such file or directory"
    values = signals(tmp_path)
    assert values["one_frame"]["motion"] == 0 and values["one_frame"]["consistency"] == 1
    assert values["two_streams"]["motion"] == pytest.approx(2, rel=0.15)  # the large stream, not the black one
    assert values["varying"]["frames"] == 25


def test_a_bad_file_is_not_decoded_twice_but_one_that_is_gone_may_come_back(odd, tmp_path, counted):
    videos = [Footage(odd / name, 200, 192, 16.0, 1.5) for name in ("text.mp4", "gone.mp4")]
    for _ in range(2):
        assert None not in judge(videos, tmp_path)
    assert counted == ["text"]
    (tmp_path / "back").mkdir()
    (odd / "gone.mp4").write_bytes((odd / "varying.mp4").read_bytes())
    try:
        assert judge(videos, tmp_path)[1] is None
    finally:
        (odd / "gone.mp4").unlink()


def test_a_disk_that_fails_is_no_verdict_for_good(clips, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(measure, "strip", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        assert "No space left" in judge(probed(clips)[:1], tmp_path)[0]
    assert judge(probed(clips)[:1], tmp_path) == [None]


def test_a_short_video_is_held_or_dropped(clips, tmp_path):
    short = {"short": "reject"}
    assert judge(probed(clips)[:1], tmp_path, Curation(**OFF | short)) == ["short: frames 25, needs at least 61"]
    assert len(measure.opening(probed(clips)[0], FPS).sampled) == len(measure.SAMPLED)


# Processes


def work(item):
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item * item


def test_a_process_that_dies_takes_only_its_own_work_with_it():
    found = dict(curate.pool.over(work, range(12), 2))
    assert isinstance(found.pop(5), curate.pool.Died)
    assert found == {i: i * i for i in range(12) if i != 5}


def test_a_video_whose_process_dies_says_so(clips, tmp_path, monkeypatch):
    died = curate.pool.Died("the process that measured it died")
    monkeypatch.setattr(survey.pool, "over", lambda work, items, processes: ((item, died) for item in items))
    assert judge(probed(clips), tmp_path, processes=2) == ["unreadable: the process that measured it died"] * 4
    assert lines(tmp_path) == []
