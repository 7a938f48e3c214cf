"""Plans: shapes, memory, operations, counts, fixes; each against what is really built, kept, counted or run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from typer.testing import CliRunner

from distill import recipe, registry, teachers
from distill.batch import Condition
from distill.cli import app
from distill.places import Hardware, Lora
from distill.plan import activations, costs, fit, flops, gate, planning, shapes, teacher
from distill.plan.activations import Tokens
from distill.recipe import TeacherSpec, Video
from distill.teachers.hunyuan_video import HunyuanVideoVelocity
from distill.teachers.wan import WanVelocity
from distill.testing import counts, footprint
from distill.testing.trial import quiet
from tests import runs, tiny_hunyuan, tiny_wan, tiny_wan_image

ROOT = Path(__file__).resolve().parent.parent
GIB = 1 << 30
WAN_14B, WAN_13B = "Wan-AI/Wan2.1-T2V-14B-Diffusers", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
VIDEO = Video(frames=81, height=480, width=832, fps=16)

# Shapes


def given(module) -> dict:
    """A network's config, without what diffusers notes about it."""
    return {name: value for name, value in module.config.items() if not name.startswith("_")}


def meta(kind: type, config: dict) -> torch.nn.Module:
    with torch.device("meta"):
        return kind.from_config(config)


@pytest.mark.parametrize(
    ("family", "kind", "config"),
    [
        ("wan", WanTransformer3DModel, teacher.PUBLISHED[WAN_13B]),
        ("wan", WanTransformer3DModel, teacher.PUBLISHED[WAN_14B]),
        ("wan_i2v", WanTransformer3DModel, teacher.PUBLISHED["Wan-AI/Wan2.1-I2V-14B-480P-Diffusers"]),
        ("wan_i2v", WanTransformer3DModel, given(tiny_wan_image.transformer(2))),
        ("wan", WanTransformer3DModel, given(tiny_wan.transformer(3)) | {"cross_attn_norm": False}),
        ("hunyuan_video", HunyuanVideoTransformer3DModel, teacher.PUBLISHED["hunyuanvideo-community/HunyuanVideo"]),
        ("hunyuan_video", HunyuanVideoTransformer3DModel, given(tiny_hunyuan.transformer())),
    ],
)
def test_the_plan_knows_every_tensor_by_name_and_shape(family, kind, config):
    built = {name: tuple(p.shape) for name, p in meta(kind, config).named_parameters()}
    assert shapes.network(family, config).shapes == built


def test_sizes_of_the_published_networks():
    """shared/lab/deepspeed.md, section 5; largest tensor and block count, since ZeRO-3 gathers them."""
    net = shapes.network("wan", teacher.PUBLISHED[WAN_14B])
    assert (net.parameters, net.largest_block) == (14_288_491_584, 351_394_304)
    assert shapes.network("wan", teacher.PUBLISHED[WAN_13B]).parameters == 1_418_996_800


@pytest.mark.parametrize("name", ["tiny_wan", "tiny_hunyuan"])
def test_the_embedding_of_ends_is_counted(name, tmp_path):
    family, module = ("wan", tiny_wan) if name == "tiny_wan" else ("hunyuan_video", tiny_hunyuan)
    folder = module.build(tmp_path / "teacher")
    net = teacher.sizes(TeacherSpec(family=family, path=str(folder)), Video(**module.VIDEO, fps=8)).network
    opened = teachers.load(TeacherSpec(family=family, path=str(folder)), Video(**module.VIDEO, fps=8))
    plain, told = (sum(p.numel() for p in opened.network(device="meta", ends=e).parameters()) for e in (False, True))
    assert net.ends == told - plain and net.parameters == plain


@pytest.mark.parametrize("targets", [None, ["to_q", "ffn.net.2"], ["proj_out"]])
def test_adapters_have_as_many_parameters_as_peft_gives_them(targets, tmp_path):
    from distill.teachers.adapters import SharedBase

    folder = tiny_wan.build(tmp_path / "teacher")
    spec, video = TeacherSpec(family="wan", path=str(folder)), Video(**tiny_wan.VIDEO, fps=8)
    lora = Lora(rank=3, targets=targets)
    role = SharedBase(teachers.load(spec, video).network(), lora, 0).role("student", adapted=True)
    assert teacher.sizes(spec, video).network.adapters(lora) == sum(p.numel() for p in role.parameters)


# Activations and operations


def wan(layers: int = 1) -> WanVelocity:
    with quiet():
        return WanVelocity(
            WanTransformer3DModel(
                num_attention_heads=4,
                attention_head_dim=24,
                in_channels=4,
                out_channels=4,
                text_dim=16,
                freq_dim=32,
                ffn_dim=288,
                num_layers=layers,
                rope_max_seq_len=64,
            )
        )


def hunyuan(dual: int = 1, single: int = 1) -> HunyuanVideoVelocity:
    with quiet():
        return HunyuanVideoVelocity(
            HunyuanVideoTransformer3DModel(
                in_channels=4,
                out_channels=4,
                num_attention_heads=4,
                attention_head_dim=24,
                num_layers=dual,
                num_single_layers=single,
                num_refiner_layers=1,
                mlp_ratio=3.0,
                text_embed_dim=16,
                pooled_projection_dim=8,
                rope_axes_dim=(8, 8, 8),
            )
        )


TEXT = 8
LATENTS = (4, 24, 24)  # 576 tokens
TOKENS = Tokens(576, TEXT)


def held(module, precision: str, passes: str) -> int:
    """Bytes that one evaluation keeps for its backward pass, as autograd says."""
    if passes == "frozen" and precision == "bf16":
        spared = module.transformer._keep_in_fp32_modules or ["timestep_embedder", "guidance_embedder"]
        for name, p in module.named_parameters():
            if not set(spared) & set(name.split(".")):
                p.data = p.data.bfloat16()
    module.requires_grad_(passes == "trained")
    cond = Condition(text=torch.randn(1, TEXT, 16), mask=torch.ones(1, TEXT), pooled=torch.randn(1, 8))
    x = torch.randn(1, 4, *LATENTS, requires_grad=True)
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16")
    with quiet(), footprint.casts_of_cuda(), autocast, footprint.Held([module]) as measured:
        out = module(x, torch.tensor([0.5]), cond)
        assert out.requires_grad
        return measured.note()


@pytest.mark.parametrize("passes", ["trained", "frozen"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_a_block_of_wan_keeps(precision, passes):
    one, two = (held(wan(layers), precision, passes) for layers in (1, 2))
    net = shapes.network("wan", dict(wan().transformer.config))
    planned = activations.block(net, 0, TOKENS, precision, passes)
    assert planned == pytest.approx(two - one, rel=2e-3)
    assert activations.outside(net, TOKENS, precision, passes) == pytest.approx(2 * one - two, rel=0.05)


@pytest.mark.parametrize("passes", ["trained", "frozen"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_the_blocks_of_hunyuan_video_keep(precision, passes):
    both, dual, single = (held(hunyuan(*layers), precision, passes) for layers in ((1, 1), (2, 1), (1, 2)))
    net = shapes.network("hunyuan_video", dict(hunyuan().transformer.config))
    planned = [activations.block(net, kind, TOKENS, precision, passes) for kind in (0, 1)]
    assert planned == pytest.approx([dual - both, single - both], rel=3e-3)


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_full_checkpointing_keeps_what_goes_into_a_block(family):
    make = wan if family == "wan" else hunyuan
    few, many = make(*((1,) if family == "wan" else (1, 1))), make(*((3,) if family == "wan" else (2, 2)))
    for each in (few, many):
        each.enable_checkpointing()
    net = [shapes.network(family, dict(each.transformer.config)) for each in (few, many)]
    planned = [activations.of(each, TOKENS, "bf16", "trained", "full").held for each in net]
    assert planned[1] - planned[0] == held(many, "bf16", "trained") - held(few, "bf16", "trained")


@pytest.mark.parametrize("family", ["wan", "hunyuan_video"])
def test_operations_are_those_that_torch_counts(family):
    module = wan(2) if family == "wan" else hunyuan(2, 2)
    cond = Condition(text=torch.randn(1, TEXT, 16), mask=torch.ones(1, TEXT), pooled=torch.randn(1, 8))
    with FlopCounterMode(display=False) as counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # it knows no other
        module(torch.randn(1, 4, *LATENTS), torch.tensor([0.5]), cond)
    net = shapes.network(family, dict(module.transformer.config))
    assert flops.of(net, TOKENS).forward == pytest.approx(counter.get_total_flops(), rel=0.01)


# Real runs


LARGE = {"num_attention_heads": 4, "attention_head_dim": 24, "ffn_dim": 288, "num_layers": 4, "rope_max_seq_len": 64}
CLIP = ("video.frames=9", "video.height=96", "video.width=96")  # 5 x 24 x 24 latents, 720 tokens
METHODS = {
    "gpd": (runs.GPD, ("student",), {}),
    "dmd": ("{name: dmd, student_every: 1}", ("student", "fake_score"), {"steps": 2}),
}


@pytest.fixture(scope="module")
def larger(tmp_path_factory) -> Path:
    """A tiny Wan whose activations are more than what a loss keeps."""
    folder = tiny_wan.build(tmp_path_factory.mktemp("larger") / "teacher")
    config = given(tiny_wan.transformer(2)) | LARGE
    with quiet():
        WanTransformer3DModel(**config).save_pretrained(folder / "transformer")
    return folder


@pytest.mark.parametrize(
    ("method", "precision", "checkpointing"),
    [("gpd", "fp32", "full"), ("gpd", "bf16", "none"), ("dmd", "fp32", "none"), ("dmd", "bf16", "full")],
)
def test_the_plan_of_a_run_is_what_the_run_keeps(method, precision, checkpointing, larger, tmp_path):
    """Weights, gradients and moments exactly, activations within 10 %."""
    text, networks, steps = METHODS[method]
    train = {"batch_size": 2, "micro_batch_size": 2, "precision": precision} | steps
    train |= {"activation_checkpointing": checkpointing}
    changes = [f"train.{key}={value}" for key, value in train.items()]
    checked = recipe.load(runs.write(tmp_path, larger, text, networks), [*changes, *CLIP])
    with quiet(), footprint.casts_of_cuda():
        measured = footprint.of_run(checked, updates=2)
    planned = planning.make(checked, Hardware(memory_gib=1)).memory
    for net in planned.networks:
        kept = measured.networks[net.name]
        assert (net.weights, net.gradients, net.optimizer) == (kept.weights, kept.gradients, kept.optimizer), net.name
    for update in planned.updates:
        assert update.held == pytest.approx(measured.held[update.network], rel=0.1), update.network


# Counts


def test_counts_are_those_of_a_run_now():
    """Two that cost little: PeRFlow's walk of 8 guided teacher steps, and its own."""
    entry = counts.count("perflow", {"teacher_steps": 3})
    guided = [6, 0, 0, 2, 0]  # three guided steps, of two evaluations in one call each, before anything waits
    assert entry["stages"][0]["passes"] == {"student": {"teacher": guided, "student": [1, 1, 1, 0, 0]}}
    kept = costs.find("perflow", {**entry["options"], "teacher_steps": 8}, 2)
    assert kept.differing == () and kept.passes("student")["teacher"] == costs.Pass(16, 0, 0, 2, 0)


def test_counts_of_other_options_are_named():
    options = counts.options("perflow", {"teacher_steps": 3})
    assert costs.find("perflow", options, 2).differing == ("teacher_steps",)
    assert costs.find("tests.plugins:Pair", {}, 2) is None


def test_a_network_that_sees_gradients_counts_though_it_is_frozen():
    """AccVideo's teacher keeps activations: its features wait for the student's backward pass."""
    of = costs.find("accvideo", counts.options("accvideo", {"steps": 10}), 2).passes("student")
    assert (of["teacher"].held, of["student"].held, of["student"].differentiated) == (1, 1, 2)


# What fits


def load(name: str, *changes: str):
    return recipe.load(ROOT / "recipes" / f"{name}.yaml", changes)


def test_what_is_kept_of_a_parameter_by_sharding():
    """The table of kept.py by hand, for GPD on 14B: P parameters, 8 processes, bf16."""
    P, n = 14_288_491_584, 8
    expected = {"ddp": (4, 4, 8), "zero1": (2, 4, 12 / n), "zero2": (2, 4 / n, 12 / n), "zero3": (2 / n, 4 / n, 12 / n)}
    for sharding, of in expected.items():
        found = planning.make(load("gpd_wan14b", f"engine={sharding}"), Hardware(gpus=n, memory_gib=79)).memory
        student = next(net for net in found.networks if net.name == "student")
        kept = (student.weights, student.gradients, student.optimizer)
        assert [each / P for each in kept] == pytest.approx(of), sharding


def test_adapters_share_one_base():
    found = planning.make(load("avd_wan14b_lora_1gpu")).memory
    whole = [net for net in found.networks if net.weights > GIB * 10]
    adapters = next(net for net in found.networks if net.name == "student").parameters
    per_block = 64 * (8 * 2 * 5120 + 2 * (5120 + 13824))
    assert [net.name for net in whole] == ["base"] and adapters == 40 * per_block


def test_offloaded_state_is_on_the_host():
    changes = ["engine={student: {sharding: zero3, offload: [optimizer]}, prior: zero3, teacher: zero3}"]
    plan = planning.make(load("gpd_wan14b", *changes))
    before = planning.make(load("gpd_wan14b"))
    assert plan.memory.per_gpu < before.memory.per_gpu and before.memory.host == 0
    assert plan.memory.host == 20 * 14_288_491_584


def test_the_nearest_fix_fits_when_it_is_pasted():
    plan = planning.make(load("dmd_wan14b"), Hardware(gpus=8, memory_gib=79))
    assert not plan.fits
    for fix in fit.nearest(plan):
        again = planning.make(load("dmd_wan14b", "hardware.gpus=8", *fix.changes))
        assert again.fits and again.memory.per_gpu == pytest.approx(fix.plan.memory.per_gpu)


def test_no_fix_is_proposed_that_a_recipe_may_not_have():
    """Selective checkpointing would fit here at zero3, which adapters and a base in pieces rule out together."""
    changes = ["train.activation_checkpointing=none", "hardware.gpus=4"]
    plan = planning.make(load("gpd_wan14b_lora_1gpu", *changes), Hardware(gpus=4, memory_gib=58))
    proposed = [fix.changes for fix in fit.nearest(plan)]
    assert ("engine=zero3", "train.activation_checkpointing=full") in proposed
    for overrides in proposed:
        load("gpd_wan14b_lora_1gpu", *changes, *overrides)


def test_a_mild_fix_is_preferred():
    """Checkpointing alone would do, and nothing else is proposed."""
    plan = planning.make(load("gpd_wan13b", "train.activation_checkpointing=none"), Hardware(memory_gib=79))
    assert not plan.fits
    assert fit.nearest(plan)[0].changes in (
        ("train.activation_checkpointing=selective",),
        ("train.activation_checkpointing=full",),
    )


BIG = sorted(p for p in (ROOT / "recipes").glob("*.yaml") if "hunyuan" in p.stem or "14b" in p.stem)


@pytest.mark.parametrize("path", BIG, ids=[p.stem for p in BIG])
def test_recipes_fit_the_hardware_that_they_name(path):
    checked = recipe.load(path)
    assert checked.hardware is not None and planning.make(checked).fits


def test_there_are_recipes_for_every_method_on_every_teacher():
    methods = [name for name in registry.methods() if name != "interpolator"]
    for teacher_name in ("wan13b", "wan14b", "hunyuan"):
        assert all((ROOT / "recipes" / f"{name}_{teacher_name}.yaml").is_file() for name in methods), teacher_name


# Commands


def command(*arguments: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "distill", *map(str, arguments)]
    return subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_the_command_says_what_json_says():
    found = CliRunner().invoke(app, ["plan", "recipes/gpd_wan14b.yaml", "--json", "--gpus", "16", "--memory", "60GiB"])
    said = json.loads(found.stdout)
    assert (said["hardware"]["gpus"], said["hardware"]["memory_gib"]) == (16, 60)
    networks = said["bytes_per_gpu"]["networks"]
    assert networks["student"]["weights"] == 2 * said["parameters"]["student"] / 16


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--memory", "80x"], ["--memory", "80x", "79GiB"]),
        (["--gpu", "h10"], ["--gpu", "h10", "h100"]),
        (["--utilization", "1.5"], ["--utilization", "1.5", "0.4"]),
        (["teacher.path=some/model"], ["config.json", "some/model", "local folder"]),
    ],
)
def test_bad_input_of_the_command_is_one_line(arguments, words):
    done = command("plan", "recipes/gpd_wan14b.yaml", *arguments)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)


def test_a_run_without_the_memory_is_refused_in_one_line(tmp_path, monkeypatch):
    path = runs.write(tmp_path, tiny_wan.build(tmp_path / "teacher"))
    checked = recipe.load(path)
    monkeypatch.setattr(gate, "available", lambda: 1 << 20)
    with pytest.raises(ValueError, match=r"1\.0 MiB are available here.*(nearest|no setting).*--anyway") as refused:
        gate.check(checked, anyway=False)
    assert "\n" not in str(refused.value)
    assert any("--anyway" in line for line in gate.check(checked, anyway=True))
    monkeypatch.setattr(gate, "available", lambda: 1 << 30)
    assert gate.check(checked, anyway=False) == []


def test_offloading_on_a_machine_without_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(gate, "available", lambda: 8 * GIB)
    monkeypatch.setattr(gate, "_free_on_gpu", lambda: 200 * GIB)
    changes = ["engine={student: {sharding: zero3, offload: [optimizer]}, prior: zero3, teacher: zero3}"]
    with pytest.raises(ValueError, match=r"of the host's memory, for what is offloaded; .* 8\.0 GiB of this machine's"):
        gate.check(load("gpd_wan14b", *changes), anyway=False)


def test_a_plan_that_cannot_be_made_is_said_and_stops_nothing(tmp_path):
    path = runs.write(tmp_path, tiny_wan.build(tmp_path / "teacher"))
    checked = recipe.load(path)
    unknown = checked.model_copy(update={"teacher": TeacherSpec(family="theirs", path="some/model")})
    (line,) = gate.check(unknown, anyway=False)
    assert "memory was not planned" in line
