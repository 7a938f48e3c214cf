"""Frames out of files: those that are in them, at the rate and size that is asked for, or a line why not."""

import csv
import os
import signal
from pathlib import Path

import numpy as np
import psutil
import pytest

from distill import video
from distill.data import footage
from distill.data.footage import BadVideo, Footage
from distill.errors import UserError

from . import films


def test_lossless_frames_come_back_bit_for_bit(tmp_path):
    clip = films.noise(7, 24, 40)
    path = films.write(tmp_path / "a.mkv", clip, 8)
    assert np.array_equal(footage.frames(path), clip)
    assert np.array_equal(np.stack(list(footage.stream(path))), clip)
    assert footage.probe(path) == Footage(path, 40, 24, 8.0, pytest.approx(7 / 8, abs=0.01))


def test_colours_of_hd_footage_are_those_that_were_filmed(tmp_path):
    """Through H.264 with BT.709's matrix, which is another one than SD's: 8 levels off if it is mistaken."""
    colours = [(225, 35, 35), (35, 190, 50), (45, 75, 235), (128, 128, 128)]
    clip = np.concatenate([np.full((1, 64, 64, 3), colour, np.uint8) for colour in colours])
    found = footage.frames(video.write(tmp_path / "a.mp4", clip, 8))
    assert np.abs(found.mean((1, 2)) - colours).max() < 3


@pytest.mark.parametrize(
    ("fps", "expected"), [(4, [0, 2, 4, 6]), (8, list(range(8))), (16, [i // 2 for i in range(16)])]
)
def test_a_rate_repeats_frames_or_leaves_them_out(fps, expected, tmp_path):
    path = films.write(tmp_path / "a.mkv", films.levels(8), 8)
    found = films.numbers(footage.frames(path, fps=fps))
    assert found == expected


def test_a_frame_rate_that_varies_is_evened_out(tmp_path):
    """One second at 8 frames per second and one at 2: at 8 the slow ones stay for four frames each."""
    even = films.write(tmp_path / "even.mkv", films.levels(16), 8)
    path = tmp_path / "odd.mkv"
    films.ffmpeg("-i", even, "-vf", "select='lt(n,8)+not(mod(n,4))'", "-fps_mode", "passthrough", *films.LOSSLESS, path)
    assert films.numbers(footage.frames(path)) == [*range(9), 12]
    assert films.numbers(footage.frames(path, fps=8))[:13] == [*range(8), 8, 8, 8, 8, 12]


def test_a_part_is_that_part_of_the_whole(tmp_path):
    path = films.write(tmp_path / "a.mkv", films.noise(9, 16, 16), 8)
    for options in ({}, {"fps": 5}, {"fps": 12, "size": (8, 8)}):
        whole = footage.frames(path, **options)
        for first, count in ((0, 3), (2, 4), (4, None), (len(whole) - 1, 5)):
            part = footage.frames(path, first=first, count=count, **options)
            assert np.array_equal(part, whole[first:][:count])
    assert len(footage.frames(path, first=50)) == 0


def test_shrinking_averages_over_areas(tmp_path):
    clip = films.noise(3, 32, 48)
    found = footage.frames(films.write(tmp_path / "a.mkv", clip), size=(12, 8))
    boxes = clip.reshape(3, 8, 4, 12, 4, 3).mean((2, 4))
    assert found.shape == (3, 8, 12, 3) and np.abs(found - boxes).max() <= 1.5
    assert np.abs(clip[:, 1::4, 1::4] - boxes).mean() > 30  # what picking single pixels would give


def test_enlarging_goes_between_the_pixels(tmp_path):
    ramp = np.broadcast_to((np.arange(16, dtype=np.uint8) * 10)[None, None, :, None], (2, 16, 16, 3))
    found = footage.frames(films.write(tmp_path / "a.mkv", ramp), size=(64, 64)).astype(int)
    inner = found[0, 32, 12:52, 0]
    assert found.shape == (2, 64, 64, 3) and (np.diff(inner) >= 0).all() and len(set(inner)) > 30


def test_footage_is_turned_upright(tmp_path):
    clip = films.noise(2, 16, 32)
    flat = films.write(tmp_path / "flat.mkv", clip)
    path = tmp_path / "turned.mkv"
    films.ffmpeg("-display_rotation", "90", "-i", flat, "-c", "copy", path)
    found = footage.probe(path)
    assert (found.width, found.height) == (16, 32)
    assert np.array_equal(footage.frames(path), np.rot90(clip, axes=(1, 2)))


def test_pixels_that_are_not_square_are_made_square(tmp_path):
    clip = films.levels(3, 32, 32)
    path = films.write(tmp_path / "a.mkv", clip, 8, "-vf", "setsar=2")
    assert (footage.probe(path).width, footage.probe(path).height) == (64, 32)
    assert footage.frames(path).shape == (3, 32, 64, 3)
    assert footage.frames(path, size=(32, 16)).shape == (3, 16, 32, 3)


@pytest.mark.parametrize(("marked", "size"), [("v", 32), ("v:0", 16)])
def test_of_several_streams_the_one_marked_default_or_else_the_largest_is_read_at_its_own_rate(marked, size, tmp_path):
    small, large = films.noise(4, 16, 16), films.noise(8, 32, 32)
    one, two = films.write(tmp_path / "1.mkv", small, 4), films.write(tmp_path / "2.mkv", large, 16)
    path = tmp_path / "both.mkv"
    films.ffmpeg(
        "-i",
        one,
        "-i",
        two,
        "-map",
        "0",
        "-map",
        "1",
        "-c",
        "copy",
        "-disposition:v",
        "0",
        f"-disposition:{marked}",
        "default",
        path,
    )
    found = footage.probe(path)
    assert (found.width, found.height, found.fps) == (size, size, {16: 4, 32: 16}[size])
    assert np.array_equal(footage.frames(path), {16: small, 32: large}[size])


def film(folder: Path, *output: str) -> bytes:
    """An H.264 file of 49 frames."""
    return films.write(
        folder / "whole.mp4", films.noise(49, 32, 32), 8, *output, codec=("-c:v", "libx264")
    ).read_bytes()


BAD = {
    "zero bytes": (lambda folder: b"", r"it is empty \(0 bytes\)"),
    "text": (lambda folder: b"once upon a time\n" * 40, r"not a video \(.+\)"),
    "a picture": (
        lambda folder: (Path(__file__).parents[1] / "recipes/prompts/images/ball.png").read_bytes(),
        "a pict",
    ),
    "an index that is cut off": (lambda folder: film(folder)[:20000], r"not a video \(moov atom not found\)"),
    "frames that are cut off": (lambda folder: film(folder, "-movflags", "+faststart")[:-9000], r"damaged \(.+\)"),
    "sound alone": (lambda folder: sound(folder), "no video stream"),
}


def sound(folder: Path) -> bytes:
    films.ffmpeg("-f", "lavfi", "-i", "sine=d=1", folder / "a.wav")
    return (folder / "a.wav").read_bytes()


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_video_says_why_in_one_line(kind, tmp_path):
    make, line = BAD[kind]
    path = tmp_path / "bad.mp4"
    path.write_bytes(make(tmp_path))
    with pytest.raises(BadVideo, match=f"^{line}") as error:
        footage.frames(path)
    assert "\n" not in str(error.value) and str(path) not in str(error.value)


def test_frames_before_the_damage_are_read_and_none_is_made_up(tmp_path):
    """FFmpeg would patch broken frames up from their neighbours, and go on."""
    whole, path = film(tmp_path, "-movflags", "+faststart", "-bf", "0"), tmp_path / "cut.mp4"
    path.write_bytes(whole[:-9000])
    expected, found = footage.frames(tmp_path / "whole.mp4"), []
    with pytest.raises(BadVideo, match="^damaged"):
        for frame in footage.stream(path):
            found.append(frame)
    assert 5 < len(found) < 49 and np.array_equal(np.stack(found), expected[: len(found)])
    assert np.array_equal(footage.frames(path, fps=8, count=5), expected[:5])
    with pytest.raises(BadVideo, match="^damaged"):
        footage.frames(path, fps=8, count=len(found))


def test_a_file_whose_name_looks_like_an_option_or_address_is_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-i.mkv", "http:a.mkv", "a%03d.mkv", "a b's.mkv"):
        films.write(tmp_path / name, films.levels(3))
        assert films.numbers(footage.frames(Path(name))) == [0, 1, 2]


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children() if "ffmpeg" in p.name()]


def test_a_reader_that_stops_early_leaves_no_process_behind(tmp_path):
    path = films.write(tmp_path / "a.mkv", films.noise(60, 128, 128))
    frames = footage.stream(path)
    next(frames)
    (reader,) = children()
    assert os.getsid(reader.pid) != os.getsid(0)  # Ctrl-C in a terminal does not reach it
    frames.close()
    assert children() == []


@pytest.mark.parametrize(
    ("number", "kind", "line"),
    [
        (signal.SIGKILL, UserError, r"a.mkv: FFmpeg was killed by signal 9"),
        (signal.SIGTERM, UserError, r"a.mkv: FFmpeg was told to end"),
        (signal.SIGSEGV, BadVideo, r"^FFmpeg crashed \(SIGSEGV\)$"),
    ],
)
def test_a_reader_that_was_killed_is_no_damaged_file_but_one_that_crashed_is(number, kind, line, tmp_path):
    path = films.write(tmp_path / "a.mkv", films.noise(60, 128, 128))
    frames = footage.stream(path)
    next(frames)
    os.kill(children()[0].pid, number)
    with pytest.raises(kind, match=line):
        list(frames)


def test_the_shared_clips_are_seen_as_they_are(shared):
    """Size and rate as the manifest says, but for the file of two streams, whose rate it gives for the other one."""
    with (shared / "data/MANIFEST.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["file"].startswith("videos/")]
    assert len(rows) == 23
    for row in rows:
        found = footage.probe(shared / "data" / row["file"])
        rate = 29.97 if "multistream" in row["file"] else float(row["fps"])
        assert (found.width, found.height, found.fps) == (int(row["width"]), int(row["height"]), rate)
        short = found.fps * found.seconds - int(row["frames"])
        assert abs(short) < 4 or "timelapse" in row["file"], row["file"]
        if int(row["frames"]) < 50:
            assert len(footage.frames(found.path, size=(16, 16))) == int(row["frames"])


def test_a_busy_machine_makes_no_video_bad(tmp_path, monkeypatch):
    """FFmpeg may report on its progress before its first frame."""
    clip = video.write(tmp_path / "a.mp4", np.zeros((3, 192, 192, 3), np.uint8), 8)
    real, early = footage._inspect, "frame=    0 fps=0.0 q=0.0 size=N/A time=N/A bitrate=N/A speed=N/A\r"
    monkeypatch.setattr(footage, "_inspect", lambda *given: real(*given).replace("frame=", early + "frame=", 1))
    assert early in footage._inspect(clip, "-frames:v", "1") and footage.probe(clip).width > 0
