"""Every built-in method on every family of teachers: it trains, samples and is exported, on random twins."""

import gc
import json
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file

from distill import export, flow, image_prompt, prepare, recipe, registry, sample, synthesize, teachers, track
from distill.data import footage, videos
from distill.engine import Role
from distill.evaluate import command
from distill.teachers.hunyuan_video import HunyuanVideo
from distill.teachers.wan import Wan
from distill.teachers.wan_image import WanImage

from . import films, runs, tiny_hunyuan, tiny_wan, tiny_wan_image

FAMILIES = ("wan", "wan_i2v", "hunyuan_video")
FRAMES = {"wan": 5, "wan_i2v": 5, "hunyuan_video": 9}  # three latent frames: fewer have no half rate
OPTIONS = {
    "accvideo": {"steps": 2, "recorder_steps": 4, "head_width": 8},
    "avd": {"student_every": 2},
    "dmd": {"student_every": 2},
    "dmd2": {"student_every": 2, "head_width": 8},
    "gpd": {"teacher_steps": 6, "steps": 2, "iterations": [2, 1], "guidance": [3.0, 3.0]},
    "interpolator": {"width": 4},
    "ladd": {"head_width": 8},
    "lcm": {},
    "meanflow": {},
    "perflow": {"windows": 2, "teacher_steps": 2},
}
UPDATES = 3
PROMPT = "a red circle moves left ."
VAES = {"AutoencoderKLWan", "AutoencoderKLHunyuanVideo"}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Random teachers of all families, prompts for each, films with captions."""
    folder = tmp_path_factory.mktemp("families")
    tiny_wan.build(folder / "wan", layers=3)
    tiny_wan_image.build(folder / "wan_i2v", layers=3)
    tiny_hunyuan.build(folder / "hunyuan_video")
    image = tiny_wan_image.image(folder / "start.png")
    texts = [PROMPT, "a blue square"]
    (folder / "prompts.txt").write_text("\n".join(texts))
    (folder / "prompts_i2v.txt").write_text("\n".join(image_prompt.join(image, text) for text in texts))
    for family, frames in FRAMES.items():
        (folder / f"films_{family}").mkdir()
        for i in range(2):
            films.write(folder / f"films_{family}" / f"{i}.mkv", films.noise(frames, 32, 48, seed=i), 8)
            (folder / f"films_{family}" / f"{i}.txt").write_text(f"a red circle {i}")
    return folder


def prompts(home: Path, family: str) -> Path:
    return home / ("prompts_i2v.txt" if family == "wan_i2v" else "prompts.txt")


def write(home: Path, folder: Path, name: str, family: str, **sections) -> Path:
    """A recipe, as few samples as there can be."""
    said = registry.describe(name)
    trained = [network for network, kind in said.networks.items() if kind in ("Trained", "Built")]
    steps = {} if said.has_stages else {"steps": UPDATES}
    made = {
        "teacher": {"family": family, "path": str(home / family)},
        "video": {**tiny_wan.VIDEO, "frames": FRAMES[family], "fps": 8},
        "data": data(home, name, family),
        "method": {"name": name, **OPTIONS[name]},
        "optim": {network: {"lr": 1e-3} for network in trained},
        "train": {"seed": 3, "batch_size": 2, "micro_batch_size": 2, **steps},
        "output": str(folder / "run"),
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(json.dumps(made | sections))
    return folder / "recipe.yaml"


def data(home: Path, name: str, family: str) -> dict:
    """Of what the method reads, all; stores are shared by the methods."""
    streams, found = registry.describe(name).data, {}
    if streams != ("videos",):
        found["prompts"] = str(prompts(home, family))
    if "videos" in streams:
        found["videos"] = {"path": str(home / f"videos_{family}"), "source": str(home / f"films_{family}")}
    if "trajectories" in streams:
        levels = registry.method_class(name)(**OPTIONS[name]).levels()
        grid = {"steps": len(levels) - 1, "shift": flow.grid_shift(levels), "keep": "all"}
        path = home / f"trajectories_{family}_{grid['steps']}_{grid['shift']:g}"
        found["trajectories"] = {"path": str(path), "records": 2, "guidance": 3.0, **grid}
    return found


families = pytest.mark.parametrize("family", FAMILIES)


@pytest.mark.parametrize("name", OPTIONS)
@families
def test_every_method_trains_on_every_family(home, family, name, tmp_path):
    """All networks move, the student is sampled, and the folder that comes out makes the student's latents."""
    run = runs.train(write(home, tmp_path, name, family))
    updates = [line for line in track.read(run) if line["kind"] == "update"]
    networks = registry.describe(name).networks
    assert {line["network"] for line in updates} == {n for n, kind in networks.items() if kind in ("Trained", "Built")}
    moved = {line["network"] for line in updates if line["grad_norm"] > 0}
    assert len(updates) >= UPDATES and moved == {line["network"] for line in updates}
    if "student" not in networks:
        return
    prompt, _ = prompts(home, family).read_text().splitlines()
    [clip] = sample.sample(str(run), [prompt], seed=7, out=tmp_path / "clips", latents=True)
    assert load_file(clip.with_suffix(".safetensors"))["latents"].isfinite().all() and clip.stat().st_size > 0
    facts = json.loads((export.export(run, tmp_path / "student") / "distill.json").read_text())
    assert facts["family"] == family and facts["difference"] <= export.TOLERANCE  # to what the stock pipeline makes


def test_no_method_and_no_family_of_ours_is_left_out():
    ours = {name for name, entry in registry.methods().items() if entry.value.startswith("distill_methods.")}
    assert ours == OPTIONS.keys()
    assert {name for name, e in registry.teachers().items() if e.value.startswith("distill.")} == set(FAMILIES)


# Videos that start from an image


def test_clips_of_real_videos_start_from_their_first_frame(home, tmp_path):
    """The condition is that of a prompt with this image."""
    loaded = recipe.load(write(home, tmp_path, "dmd2", "wan_i2v"), [f"data.videos.path={tmp_path / 'store'}"])
    store = videos.Store(prepare.run(loaded))
    assert store.first_frames and len(store.prompts) == 2
    for i, prompt in enumerate(store.prompts):
        image, text = image_prompt.split(prompt)
        [first, *_] = footage.stream(home / "films_wan_i2v" / f"{i}.mkv", fps=8, size=(48, 32), first=0, count=5)
        assert text == f"a red circle {i}" and np.array_equal(np.asarray(Image.open(image)), first)
        teacher = teachers.load(loaded.teacher, loaded.video)
        clip = torch.from_numpy(np.stack([first, *[np.full_like(first, 127)] * 4]))
        expected = teacher.encode_video(clip[None])[0]  # 127 of 255 is grey but for half a step
        torch.testing.assert_close(teacher.encode([prompt])["image"][0, 2:], expected, atol=2e-2, rtol=0)


def test_a_store_without_first_frames_will_not_do_for_them_but_the_other_way_round(home, tmp_path):
    stores = {family: tmp_path / family for family in ("wan", "wan_i2v")}
    asked = {}
    for family, store in stores.items():
        asked[family] = recipe.load(write(home, tmp_path / "r", "dmd2", family), [f"data.videos.path={store}"])
        prepare.run(asked[family])

    def faults(store: str, family: str) -> list[str]:
        teacher = teachers.load(asked[family].teacher, asked[family].video)
        return videos.differences(videos.Store(stores[store]), videos.settings(asked[family], teacher))

    lines = [line for line in faults("wan", "wan_i2v") if "first frames" in line]
    assert "prepared with the clips' first frames None, the recipe has True; change" in lines[0]
    assert not any("first frames" in line for line in faults("wan_i2v", "wan"))


# Text encoders and VAEs, while they are needed


@pytest.fixture
def alive(monkeypatch):
    """What else is in memory whenever a network is evaluated, and whenever a video is encoded; and now."""
    parts: weakref.WeakSet = weakref.WeakSet()
    seen: dict[str, set[str]] = {"network": set(), "video": set()}

    def now() -> set[str]:
        if parts:
            gc.collect()
        return {type(part).__name__ for part in parts}

    def looked(call, what):
        def look(*args, **options):
            seen[what] |= now()
            return call(*args, **options)

        return look

    def kept(load):
        def keep(teacher):
            made = load(teacher)
            found = made.components.values() if isinstance(made, DiffusionPipeline) else [made]
            parts.update(each for each in found if isinstance(each, torch.nn.Module))
            return made

        return keep

    monkeypatch.setattr(Role, "forward", looked(Role.forward, "network"))
    for family in (Wan, WanImage, HunyuanVideo):
        monkeypatch.setattr(family, "encode_video", looked(family.encode_video, "video"))
        for name in ("_load_vae", "_load_text_encoder", "_load_text_encoders"):
            if name in vars(family):
                monkeypatch.setattr(family, name, kept(vars(family)[name]))
    seen["now"] = now
    return seen


@families
def test_encoders_and_decoders_are_gone_before_anything_is_trained(home, family, tmp_path, alive, monkeypatch):
    """Clips of videos are encoded by the VAE alone; prompts by what reads them, once for all runs."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    path = write(home, tmp_path, "dmd2", family)
    prepare.run(recipe.load(path, [f"data.videos.path={tmp_path / 'alone'}"]))
    assert alive["video"] and alive["video"] <= VAES and alive["network"] == set() == alive["now"]()
    store = f"data.videos.path={tmp_path / 'store'}"
    runs.train(path, store)  # which prepares it first
    assert alive["video"] <= VAES and alive["network"] == set() == alive["now"]()
    monkeypatch.setattr(registry.teacher_class(family), "encode", None)  # it is not called again
    runs.train(path, store, f"output={tmp_path / 'second'}", "train.seed=4")


@families
def test_encoders_and_decoders_are_gone_before_trajectories_are_recorded(home, family, tmp_path, alive, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    path = write(home, tmp_path, "ladd", family)
    synthesize.run(recipe.load(path, [f"data.trajectories.path={tmp_path / 'store'}"]))
    assert alive["network"] == set() == alive["now"]()


@families
def test_text_encoders_are_gone_before_anything_is_evaluated(home, family, tmp_path, alive, monkeypatch):
    """The VAE stays from batch to batch."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    texts = prompts(home, family).read_text().splitlines()
    evaluation = {"prompts": texts, "samples": 2, "batch_size": 1, "teacher_steps": [1, 2], "metrics": ["sharpness"]}
    run = runs.train(write(home, tmp_path, "lcm", family))
    assert alive["network"] == set()
    list(command.run(str(run), {**evaluation, "guidance": 2.0, "seed": 1}))
    assert alive["network"] and alive["network"] <= VAES
