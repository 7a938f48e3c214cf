"""Clips on disk."""

import subprocess

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from PIL import Image

from distill import video


def moving_square(frames=9, side=32):
    """A red square that moves one pixel per frame to the right over blue."""
    clip = np.zeros((frames, side, side, 3), np.uint8)
    clip[..., 2] = 200
    for f in range(frames):
        clip[f, 8:20, 4 + f : 16 + f] = (220, 30, 40)
    return clip


def test_a_clip_survives_h264_to_within_a_few_levels(tmp_path):
    grain = np.random.default_rng(0).integers(0, 100, (1, 32, 32, 1))
    clip = (moving_square() // 2 + grain).astype(np.uint8)
    stored = video.read(video.write(tmp_path / "clip.mp4", torch.from_numpy(clip), fps=8))
    assert stored.shape == (9, 192, 192, 3)
    centres = stored[:, 3::6, 3::6].astype(float)
    assert 10 * np.log10(255**2 / np.square(centres - clip).mean()) > 44.5  # dB; crf 24 has 43.6


def test_browsers_can_play_what_is_written(tmp_path):
    path = video.write(tmp_path / "clip.mp4", moving_square(), fps=8)
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", path]
    probe = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    assert "h264" in probe and "yuv420p(tv, bt709" in probe and "8 fps" in probe
    head = path.read_bytes()
    assert head.index(b"moov") < head.index(b"mdat"), "a browser must not have to load the whole file to start"


def test_the_same_clip_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    one, two = (video.write(tmp_path / name, moving_square(), fps=8).read_bytes() for name in ("a.mp4", "b.mp4"))
    assert one == two
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_large_clips_keep_their_size(tmp_path):
    clip = np.zeros((2, 240, 416, 3), np.uint8)
    assert video.read(video.write(tmp_path / "clip.mp4", clip, fps=16)).shape == clip.shape


def test_a_sheet_shows_the_first_and_the_last_frame_of_every_clip(tmp_path):
    clip = moving_square()
    image = np.asarray(Image.open(video.sheet(tmp_path / "sheet.png", [clip, 255 - clip], frames=3)))
    assert image.shape == (2 * 192 + 4, 3 * 192 + 2 * 4, 3)
    np.testing.assert_array_equal(image[:192:6, :192:6], clip[0])
    np.testing.assert_array_equal(image[196::6, 2 * 196 :: 6], 255 - clip[-1])


@pytest.mark.parametrize(
    ("clip", "message"),
    [
        (np.zeros((2, 32, 32, 3), np.float32), r"float32 \(2, 32, 32, 3\); expected uint8 \(F, H, W, 3\)"),
        (np.zeros((2, 201, 200, 3), np.uint8), "200x201 pixels; H.264 needs an even width and height"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(tmp_path, clip, message):
    with pytest.raises(ValueError, match=message):
        video.write(tmp_path / "clip.mp4", clip, fps=8)
