"""Video stores: what is read is what the VAE made, and every process sees its share of the same clips."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import WanVideoToVideoPipeline
from PIL import Image

from distill import checkpoint, embedded, trainer
from distill.batch import Condition, generator
from distill.data import shards, stores, videos
from distill.data.stream import PromptStream, VideoStream
from distill.data.trajectories import Store as TrajectoryStore
from distill.data.videos import Store
from distill.embedded import world
from distill.errors import Stopped, UserError
from distill.teachers.hunyuan_video import HunyuanVideo
from distill.teachers.wan import Wan

from . import films, runs, test_trajectories, tiny_hunyuan, tiny_wan
from .test_prepare import write

SHAPE = (2, 3, 4, 5)
INFO = {
    "version": 1,
    "teacher": {"family": "wan", "path": "somewhere", "vae": "f"},
    "video": {"frames": 9, "height": 32, "width": 40, "fps": 8},
    "latent_shape": list(SHAPE),
    "precision": "fp32",
    "listing": "d",
    "records": 10,
}
DROPPED = (1, 4, 5, 9)
KEPT = [sample for sample in range(10) if sample not in DROPPED]


def latents(records: int) -> torch.Tensor:
    return torch.randn(records, *SHAPE, generator=generator("clips"))


@pytest.fixture
def store(tmp_path):
    """Ten records in shards of 4, 2 (both dropped) and 4; six of them have a clip."""
    written = latents(10)
    shards.create(tmp_path / "store", INFO)
    for samples in (range(4), range(4, 6), range(6, 10)):
        clips = [f"too short: {j}" if j in DROPPED else written[j] for j in samples]
        videos.add(tmp_path / "store", samples[0], [(f"{j}.mp4", 0, chr(97 + j)) for j in samples], clips)
    return Store(tmp_path / "store")


# The store


def test_clips_are_counted_over_the_records_that_have_one(store):
    written = latents(10)
    assert store.clips == KEPT and store.prompts == [chr(97 + sample) for sample in KEPT]
    for clip, sample in enumerate(KEPT):
        assert torch.equal(store.read(clip), written[sample]) and store.prompt(clip) == chr(97 + sample)
    assert store.damaged(thorough=True) == [] and store.missing(10, 4) == []
    assert store.describe()[-2:] == ["clips     6", "records   10 in 3 shards"]


def test_fp16_rounds_and_nothing_else(tmp_path):
    shards.create(tmp_path, INFO | {"precision": "fp16"})
    videos.add(tmp_path, 0, [("a.mp4", 0, "a")], [latents(1)[0].half()])
    read = Store(tmp_path).read(0)
    assert read.dtype == torch.float32 and torch.equal(read, latents(1)[0].half().float())
    with pytest.raises(UserError, match=r"latents torch.float32 \[1, 2, 3, 4, 5\] do not fit its index"):
        videos.add(tmp_path, 1, [("b.mp4", 0, "b")], [latents(1)[0]])


def test_every_byte_is_checked_when_it_is_read(store):
    path = store.file(store.shards[0])
    whole = path.read_bytes()
    size = latents(1)[0].numel() * 4
    for offset in range(len(whole) - size, len(whole), 31):  # the last of the first shard's three clips, record 3
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        flipped = Store(store.path)
        with pytest.raises(
            UserError, match=r"damaged \(record 3 is not what was written\); prepare it anew with `dist"
        ):
            flipped.read(2)
        flipped.read(1)


@pytest.mark.parametrize("change", [{"dropped": "too short"}, {"crc32": None}, {"prompt": None}])
def test_an_entry_that_contradicts_itself_is_named(change, store):
    entry = store.file(store.shards[0]).with_suffix(".json")
    said = json.loads(entry.read_text())
    said["records"][0] = {k: v for k, v in (said["records"][0] | change).items() if v}
    entry.write_text(json.dumps(said))
    (line,) = Store(store.path).damaged(thorough=True)
    assert line == f"{entry}: damaged (not the entry of a shard); prepare it anew with `distill prepare RECIPE`"


def test_a_store_is_opened_as_what_it_is(store, tmp_path):
    shards.create(tmp_path / "other", test_trajectories.INFO)
    assert isinstance(stores.open_store(store.path), Store)
    assert isinstance(stores.open_store(tmp_path / "other"), TrajectoryStore)
    with pytest.raises(UserError, match="index.json: damaged"):
        videos.Store(tmp_path / "other")
    check = runs.command("check", store.path, "video.fps=3")
    assert check.stdout.read().strip() == f"{store.path} is a video store, to which video.fps=3 does not apply"
    assert check.wait() == 2


def test_a_digest_is_of_what_training_sees(store, tmp_path):
    digest = store.digest()
    moved = store.path.rename(tmp_path / "moved")
    index = json.loads((moved / "index.json").read_text())
    teacher = INFO["teacher"]
    place, vae = ({"teacher": teacher | {key: "x"}} for key in ("path", "vae"))
    for change, same in ((place, True), (vae, False), ({"upscale": True}, False)):
        (moved / "index.json").write_text(json.dumps(index | change))
        assert (Store(moved).digest() == digest) == same
    (moved / "index.json").write_text(json.dumps(index))
    entry = moved / "shards/00000000-00000003.json"
    entry.write_text(entry.read_text().replace('"prompt": "a"', '"prompt": "z"'))
    assert Store(moved).digest() != digest


# Encoding


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "wan")


def test_wan_latents_are_those_of_diffusers_own_video_to_video_pipeline(teacher):
    frames = torch.from_numpy(films.noise(10, 32, 48).reshape(2, 5, 32, 48, 3))
    pipeline = WanVideoToVideoPipeline.from_pretrained(teacher, transformer=None, text_encoder=None, tokenizer=None)
    pipeline.register_modules(scheduler=None)
    pipeline.scheduler = SimpleNamespace(add_noise=lambda x, noise, timestep: x)
    video = pipeline.video_processor.preprocess_video([[Image.fromarray(f) for f in clip.numpy()] for clip in frames])
    theirs = pipeline.prepare_latents(
        video, 2, 4, 32, 48, torch.float32, torch.device("cpu"), None, None, torch.tensor([0.0])
    )
    ours = Wan(teacher).encode_video(frames)
    assert ours.shape == (2, *Wan(teacher).latent_shape(5, 32, 48))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_the_decoder_is_told_what_the_encoder_said(family, teacher, tmp_path, monkeypatch):
    """Decoding undoes the scale that encoding applies."""
    found = Wan(teacher) if family == "wan" else HunyuanVideo(tiny_hunyuan.build(tmp_path))
    frames = torch.from_numpy(films.noise(5, 32, 48))[None]
    told = []
    monkeypatch.setattr(found.vae, "decode", lambda z, **_: told.append(z) or (torch.zeros(1, 3, 5, 32, 48),))
    found.decode(found.encode_video(frames))
    with torch.no_grad():
        said = found.vae.encode(frames.movedim(-1, 1).float() / 127.5 - 1).latent_dist.mean
    torch.testing.assert_close(told[0], said, rtol=1e-5, atol=1e-6)


def test_what_the_embedded_teacher_encodes_it_decodes_and_its_latents_are_normalised():
    wan = Wan(embedded.PATH)
    rng = np.random.default_rng(0)
    clips = torch.stack([torch.from_numpy(world.render(scene, rng)) for scene in world.scenes("heldout", 0, 24)])
    latents = wan.encode_video(clips)
    error = (wan.decode(latents).float() - clips.float()).square().mean()
    assert 10 * torch.log10(255**2 / error) > 29  # dB, as the autoencoder's own test has it
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    used = std > 0.1  # its VAE leaves half of the channels empty
    assert used.sum() > 6 and mean.abs().max() < 0.3 and std[used].min() > 0.8 and std[used].max() < 1.2


# The stream


def stream(kind, *first, batch=6, micro=2):
    train = SimpleNamespace(seed=7, batch_size=batch, micro_batch_size=micro)
    zero = Condition(text=torch.zeros(1, 1, 1))
    encode = lambda prompts: Condition(text=torch.tensor([[[float(ord(p))]] for p in prompts]))  # noqa: E731
    return kind(*first, encode, zero, SHAPE, train, torch.device("cpu"))


PROMPTS = ["A", "B", "C", "D", "E"]


def test_clips_captions_and_encodings_belong_together_and_prompts_stay_as_they_were(store):
    with_videos, without, written = stream(VideoStream, store, 0, PROMPTS), stream(PromptStream, PROMPTS), latents(10)
    for step in range(6):
        for one, other in zip(with_videos.batches(step, 0, 1), without.batches(step, 0, 1), strict=True):
            assert one.prompts == other.prompts and torch.equal(one.cond["text"], other.cond["text"])
            assert torch.equal(one.noise(), other.noise()) and other.video is None
            drawn = [ord(p) - 97 for p in one.video.prompts]
            assert torch.equal(one.video.latents, written[drawn])
            assert one.video.cond["text"].flatten().tolist() == [ord(p) for p in one.video.prompts]


def test_an_epoch_has_every_clip_once_in_an_order_that_is_not_the_prompts(store):
    six = [chr(65 + i) for i in range(6)]
    found = stream(VideoStream, store, 0, six)
    orders = []
    for step in range(4):
        batches = found.batches(step, 0, 1)
        clips = [p for batch in batches for p in batch.video.prompts]
        assert sorted(clips) == store.prompts
        orders.append([store.prompts.index(p) for p in clips])
        orders.append([six.index(p) for batch in batches for p in batch.prompts])
    assert len({tuple(order) for order in orders}) == 8


def test_videos_alone_come_with_their_captions_as_prompts(store):
    (batch,) = stream(VideoStream, store, 0, None, batch=4, micro=4).batches(3, 0, 1)
    assert batch.prompts == batch.video.prompts and torch.equal(batch.cond["text"], batch.video.cond["text"])
    assert stream(VideoStream, store, 0, None).digests == {"videos": store.digest()}
    assert set(stream(VideoStream, store, 0, PROMPTS).digests) == {"prompts", "videos"}


def test_processes_share_the_clips_of_a_step(store):
    parts = [stream(VideoStream, store, 0, PROMPTS) for _ in range(3)]
    for step in (0, 1, 5, 2):
        together = [parts[rank].batches(step, rank, 3) for rank in range(3)]
        for i, batch in enumerate(stream(VideoStream, store, 0, PROMPTS).batches(step, 0, 1)):
            assert torch.equal(batch.video.latents, together[i % 3][i // 3].video.latents)
            assert batch.video.prompts == together[i % 3][i // 3].video.prompts


def test_the_next_step_is_read_while_this_one_trains(store, monkeypatch):
    found, read = stream(VideoStream, store, 0, PROMPTS), []
    monkeypatch.setattr(Store, "read", lambda self, clip: read.append(clip) or latents(1)[0])
    found.batches(0, 0, 1)
    found._thread.submit(lambda: None).result()  # the thread has nothing left to do
    assert len(read) == 12


# Training


class Killed(BaseException):
    """Stands for kill -9."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source")
    for i, name in enumerate("abcde"):
        films.write(folder / f"{name}.mkv", films.noise(6, 32, 48, seed=i), 8)
        (folder / f"{name}.txt").write_text(f"a blue circle moves {['left', 'right'][i % 2]}")
    return folder


@pytest.fixture(scope="module")
def whole(teacher, source, tmp_path_factory):
    """An avd run of five steps, 8 updates, that prepared its videos itself."""
    return runs.train(write(tmp_path_factory.mktemp("whole"), teacher, source))


def test_a_run_prepares_its_videos_and_says_so(teacher, source, tmp_path, capfd):
    run = runs.train(write(tmp_path, teacher, source))
    said = capfd.readouterr().out
    told = ("store lacks 5 of 5 clips: encoding them", "5 videos: 5 kept", "update 1/8")
    assert [said.index(line) for line in told] == sorted(said.index(line) for line in told)
    assert '"regression": ' in (run / "log.jsonl").read_text()
    runs.train(write(tmp_path / "again", teacher, source, path=str(tmp_path / "store")))
    assert "encoding" not in capfd.readouterr().out


@pytest.mark.parametrize("update", [3, 7])
def test_training_on_videos_goes_on_bit_for_bit(update, teacher, source, whole, tmp_path, monkeypatch):
    """Between the two updates of a step, and at the end of one."""
    recipe, pause = write(tmp_path, teacher, source), trainer.Trainer._pause

    def kill(self, batches):
        if self.position.done == update:
            raise Killed
        pause(self, batches)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(trainer.Trainer, "_pause", kill)
        runs.train(recipe)
    runs.assert_same(runs.final(runs.train(recipe)), runs.final(whole))


@pytest.mark.slow
def test_two_processes_train_on_the_clips_that_one_would(teacher, source, whole, tmp_path):
    """The real command, which prepares first."""
    done = runs.command("run", write(tmp_path, teacher, source), "--processes", "2")
    said = done.stdout.read()
    assert done.wait() == 0, said
    assert said.count("store lacks 5 of 5 clips: encoding them") == 1
    two = runs.final(tmp_path / "run")
    for name, value in runs.final(whole).items():
        if name.startswith("student."):
            torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)


def test_a_run_does_not_go_on_with_other_videos(teacher, source, tmp_path):
    recipe = write(tmp_path, teacher, source)
    run = runs.train(recipe, "train.steps=2")
    moved = (tmp_path / "store").rename(tmp_path / "moved")
    assert runs.train(recipe, "train.steps=2", f"data.videos.path={moved}") == run  # where they lie is no matter
    other = tmp_path / "other"
    other.mkdir()
    films.write(other / "a.mkv", films.noise(6, 32, 48, seed=9), 8)
    (other / "a.txt").write_text("a")
    changes = [f"data.videos.path={tmp_path}/new", f"data.videos.source={other}"]
    with pytest.raises(UserError, match=rf"new: not the videos that {run}/checkpoints/update_\d+ was trained on"):
        runs.train(recipe, "train.steps=2", *changes)


def test_clips_that_are_damaged_stop_a_run_at_a_saved_state(teacher, source, whole, tmp_path):
    recipe = write(tmp_path, teacher, source)
    runs.train(recipe, "train.steps=1")
    assert checkpoint.newest(tmp_path / "run", print)
    for path in (tmp_path / "store/shards").glob("*.safetensors"):
        content = bytearray(path.read_bytes())
        content[-3] ^= 1
        path.write_bytes(content)
    line = r"is not what was written\); prepare it anew with `distill prepare RECIPE`, and go on with `distill run "
    with pytest.raises(Stopped, match=line):
        runs.train(write(tmp_path / "b", teacher, source, path=str(tmp_path / "store")))
