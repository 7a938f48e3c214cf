"""Adapters on one shared base: the same networks as whole ones would be, in the memory of one."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from distill import build, checkpoint, recipe, student, teachers
from distill.engine import Engine, Role
from distill.errors import UserError
from distill.evaluate import command
from distill.networks import Net
from distill.places import Lora
from distill.recipe import TeacherSpec, Video
from distill.teachers import adapters
from distill.teachers.base import Teacher
from distill.testing import Conformance, of_training
from distill.testing.bench import Bench
from distill.testing.places import PLACES
from tests import runs, test_conformance, tiny_hunyuan, tiny_wan

LORA = {"rank": 4, "alpha": 6.0}
SIGMA = torch.tensor([0.9, 0.3])


@pytest.fixture(scope="module", params=["wan", "hunyuan_video"])
def teacher(request, tmp_path_factory):
    tiny = {"wan": tiny_wan, "hunyuan_video": tiny_hunyuan}[request.param]
    folder = tiny.build(tmp_path_factory.mktemp(request.param) / "teacher")
    return teachers.load(TeacherSpec(family=request.param, path=str(folder)), Video(**tiny.VIDEO, fps=8))


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("wan") / "teacher")


@pytest.fixture(scope="module")
def inputs(teacher):
    shape = teacher.latent_shape(**tiny_wan.VIDEO)
    x = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    return x, SIGMA, teacher.encode(["a red circle", "a"])


def base(teacher, dtype: torch.dtype = torch.float32, **lora) -> adapters.SharedBase:
    return adapters.SharedBase(teacher.network(dtype=dtype).eval(), Lora(**LORA | lora), seed=3)


def filled(role: adapters.AdapterRole, seed: int = 0) -> adapters.AdapterRole:
    """With an effect: B at random."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in role.own.items():
            if key.endswith("lora_B.weight"):
                p.copy_(0.3 * torch.randn(p.shape, generator=draw))
    return role


def merged(network: nn.Module, weights: dict[str, Tensor]) -> nn.Module:
    """W + alpha / rank B A, layer by layer."""
    for name, layer in network.named_modules():
        if f"{name}.lora_A.weight" in weights:
            up, down = (weights[f"{name}.lora_{x}.weight"].to(layer.weight) for x in "BA")
            layer.weight.data += LORA["alpha"] / LORA["rank"] * (up @ down)
    return network


@torch.no_grad()
def test_adapters_have_no_effect_at_first(teacher, inputs):
    whole, role = Role("teacher", teacher.network().eval()), base(teacher).role("student", adapted=True)
    assert torch.equal(Net(role)(*inputs), Net(whole)(*inputs))
    down = [p for key, p in role.own.items() if key.endswith("lora_A.weight")]
    assert len(down) > 10 and all(p.any() and p.dtype == torch.float32 for p in down)


@torch.no_grad()
def test_a_view_is_the_network_with_its_adapters_merged(teacher, inputs):
    shared = base(teacher)
    role, other = (filled(shared.role(name, adapted=True), seed) for seed, name in enumerate(("student", "fake")))
    for each in (role, other, role):
        expected = Net(Role("whole", merged(teacher.network().eval(), each.weights())))
        assert_close(Net(each)(*inputs), expected(*inputs), atol=2e-6, rtol=1e-5)
    assert (Net(role)(*inputs) - Net(other)(*inputs)).abs().max() > 0.01
    features = [Net(each).features(*inputs, layers=[1, 2]) for each in (role, expected.role)]
    assert_close(*features, atol=1e-5, rtol=1e-5)
    folded = teacher.network().eval()
    adapters.merge(folded, role.weights(), Lora(**LORA))
    assert_close(Net(Role("folded", folded))(*inputs), Net(role)(*inputs), atol=2e-6, rtol=1e-5)


@torch.no_grad()
def test_adapters_of_full_rank_can_be_any_student(teacher, inputs):
    """The change of each layer by its singular vectors: what a whole student could learn, adapters can hold."""
    shared, draw = base(teacher, rank=4, targets=["to_k"]), torch.Generator().manual_seed(1)
    most = min(shared.network.get_submodule(shared.targets[0]).weight.shape)
    shared = base(teacher, rank=most, alpha=None, targets=["to_k"])
    role, whole = shared.role("student", adapted=True), teacher.network().eval()
    for name in shared.targets:
        layer = whole.get_submodule(name)
        change = 0.2 * torch.randn(layer.weight.shape, generator=draw)
        layer.weight += change
        u, s, v = torch.linalg.svd(change, full_matrices=False)
        role.own[f"{name}.lora_B.weight"].copy_(u * s)
        role.own[f"{name}.lora_A.weight"].copy_(v)
    assert_close(Net(role)(*inputs), Net(Role("whole", whole))(*inputs), atol=1e-5, rtol=1e-4)


def gradients(teacher, inputs, checkpointing: bool, others: bool) -> dict[str, Tensor]:
    """Of a student's loss, whose target others make after it was evaluated."""
    shared, engine = base(teacher), Engine()
    roles = {name: filled(shared.role(name, adapted=True), i) for i, name in enumerate(("student", "prior"))}
    roles["teacher"] = shared.role("teacher", adapted=False)
    for role in roles.values():
        if checkpointing:
            role.module.enable_checkpointing()
    evaluated: list[str] = []
    net = roles["student"].module.transformer
    block = (net.blocks if hasattr(net, "blocks") else net.transformer_blocks)[0]
    block.register_forward_pre_hook(lambda *_: evaluated.append("student"))
    with engine.only(roles["student"], roles.values()):
        v = Net(roles["student"])(*inputs)
        if others:
            with torch.no_grad():
                for name in ("teacher", "prior"):
                    Net(roles[name])(*inputs)
        v.square().mean().backward()
        assert len(evaluated) == 1 + checkpointing
        found = {key: p.grad.clone() for key, p in roles["student"].own.items()}
        reached = [p for role in roles.values() for p in role.module.parameters() if p.grad is not None]
        assert {id(p) for p in reached} == {id(p) for p in roles["student"].parameters}
    return found


def test_what_is_computed_again_meets_the_adapters_that_computed_it_first(teacher, inputs):
    plain = gradients(teacher, inputs, checkpointing=False, others=False)
    again = gradients(teacher, inputs, checkpointing=True, others=True)
    assert all(torch.equal(again[key], plain[key]) for key in plain) and all(g.any() for g in plain.values())


def test_gradients_pass_through_a_frozen_view_and_stay_out_of_it(teacher, inputs):
    x, sigma, cond = inputs
    shared, engine = base(teacher), Engine()
    critic, head = filled(shared.role("prior", adapted=True)), Role("head", nn.Conv3d(x.shape[1], x.shape[1], 1))
    whole = Role("whole", merged(teacher.network().eval(), critic.weights()))
    found = []
    for role in (critic, whole):
        with engine.only(head, [role, head]):
            Net(role)(head.module(x), sigma, cond).square().mean().backward()
            found.append(head.module.weight.grad.clone())
            assert all(p.grad is None for p in role.module.parameters())
    assert_close(*found, atol=1e-7, rtol=1e-4)


def test_copies_are_exact_and_of_the_teacher_have_no_effect(teacher):
    shared = base(teacher)
    one, other = filled(shared.role("student", adapted=True)), shared.role("prior", adapted=True)
    assert any(not torch.equal(one.own[key], other.own[key]) for key in one.own if key.endswith("lora_A.weight"))
    other.copy_from(one)
    assert all(torch.equal(other.own[key], p) and other.own[key] is not p for key, p in one.own.items())
    other.copy_from(shared.role("teacher", adapted=False))
    for key, p in other.own.items():
        assert torch.equal(p, one.own[key]) if key.endswith("lora_A.weight") else not p.any()


def test_the_start_follows_from_the_seed_alone(teacher):
    shared = base(teacher)
    state = torch.get_rng_state()
    one = shared.role("student", adapted=True)
    assert torch.equal(torch.get_rng_state(), state)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        other = base(teacher).role("student", adapted=True)
    assert all(torch.equal(p, other.own[key]) for key, p in one.own.items())
    different = adapters.SharedBase(teacher.network(), Lora(**LORA), seed=4).role("student", adapted=True)
    down = [key for key in one.own if key.endswith("lora_A.weight")]
    assert not any(torch.equal(one.own[key], different.own[key]) for key in down)


def test_an_average_is_that_of_the_factors(teacher):
    shared = base(teacher)
    one, average = filled(shared.role("student", adapted=True)), shared.role("student_ema", adapted=True)
    average.copy_from(one)
    before = {key: p.clone() for key, p in average.own.items()}
    with torch.no_grad():
        for p in one.parameters:
            p.add_(1.0)
    average.average_from(one, 0.75)
    for key, p in average.own.items():
        assert_close(p, 0.75 * before[key] + 0.25 * one.own[key])


def test_bf16_keeps_adapters_in_float32(teacher, inputs):
    shared = base(teacher, torch.bfloat16)
    role = filled(shared.role("student", adapted=True, precision="bf16"))
    assert {p.dtype for p in role.parameters} == {torch.float32}
    fine = {key: p for key, p in role.own.items() if key.endswith("lora_A.weight")}
    assert any(not torch.equal(p, p.bfloat16().float()) for p in fine.values())  # drawn in float32, not rounded
    v = Net(role)(*inputs)
    expected = Net(Role("whole", merged(teacher.network().eval(), role.weights())))(*inputs)
    assert v.dtype == torch.float32 and (v - expected).abs().max() < 0.05 * expected.abs().max()


# Targets


def test_by_default_every_linear_layer_of_the_blocks_has_adapters(teacher):
    found = base(teacher).targets
    blocks = [name for name, _ in teacher.network().transformer.named_children() if name.endswith("blocks")]
    expected = [
        f"transformer.{name}.{i}.{key}"
        for name in blocks
        for i, block in enumerate(getattr(teacher.network().transformer, name))
        for key, layer in block.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    assert sorted(found) == sorted(expected) and len(found) > 15


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (
            {"targets": ["to_q", "to_queue"]},
            r"lora.targets: 'to_queue' is the end of no .* did you mean 'to_q'.*; there",
        ),
        ({"targets": ["q"]}, "lora.targets: 'q' is the end of no linear layer's name.*; there are .*to_q, "),
        ({"rank": 64}, r"lora.rank: 64 is more than transformer.\S+ of \d+ x \d+ can take; at most \d+, or name"),
    ],
)
def test_what_does_not_fit_the_network_is_refused_in_one_line(teacher, lora, message):
    with pytest.raises(UserError, match=message) as error:
        base(teacher, **lora)
    assert "\n" not in str(error.value)


def test_targets_are_ends_of_names(wan):
    teacher = teachers.load(TeacherSpec(family="wan", path=str(wan)), Video(**tiny_wan.VIDEO, fps=8))
    assert base(teacher, targets=["attn1.to_q", "time_proj"]).targets == [
        "transformer.condition_embedder.time_proj",
        "transformer.blocks.0.attn1.to_q",
        "transformer.blocks.1.attn1.to_q",
    ]


@pytest.mark.parametrize(
    ("method", "networks", "more", "message"),
    [
        ("interpolator", ("interpolator",), {}, "lora: the method trains no network of the teacher's; leave it out"),
        ("gpd", ("student",), {"engine": "zero2"}, "engine: zero2 spreads .* zero3 spreads their frozen base"),
        ("gpd", ("student",), {"engine": {"prior": "zero3"}}, "engine.prior: with lora its adapters .* engine.teacher"),
        ("gpd", ("student",), {"lora": {"rank": 0}}, r"lora.rank: should be greater than or equal to 1, is 0"),
    ],
)
def test_a_recipe_whose_adapters_do_not_fit_is_refused(wan, tmp_path, method, networks, more, message):
    path = runs.write(tmp_path, wan, f"{{name: {method}}}", networks, **{"lora": LORA} | more)
    with pytest.raises(UserError, match=message):
        recipe.load(path)


# Runs


CASES = {
    each.method: each.options for each in Conformance.__subclasses__() if each.__module__ == test_conformance.__name__
}


@pytest.fixture(scope="module")
def kit():
    made = Bench("gpd", CASES["gpd"], {"lora.rank": 4, "lora.alpha": 6.0, "train.ema": 0.5})
    yield made
    made.close()


@pytest.mark.parametrize("check", ["moves", "frozen", "reproducible", "resume", "accumulation"])
def test_adapters_pass_the_kits_checks_of_training(kit, check):
    getattr(of_training, check)(kit)


def test_two_processes_train_the_adapters_of_one(kit):
    of_training.elsewhere(kit, next(place for place in PLACES if place.name == "two processes"))


@pytest.mark.parametrize("name", [name for name in CASES if name != "interpolator"])
def test_every_method_moves_its_adapters_on_one_base(name):
    kit = Bench(name, CASES[name], {"lora.rank": 4})
    try:
        trial = kit.run("adapted", 3)
        lines = trial.lines
    finally:
        kit.close()
    views = [role for role in trial.roles.values() if isinstance(role, adapters.AdapterRole)]
    others = [role for role in trial.roles.values() if role not in views]
    assert all(finite(line["terms"].values()) for line in lines) and len(lines) == 3
    assert all(set(moved) <= {named} for named, moved in trial.moved)
    assert {"student"} <= {name for _, moved in trial.moved for name in moved}
    stock, shared = trial.teacher.network().state_dict(), views[0].base.network.state_dict()
    assert stock.keys() == shared.keys() and all(torch.equal(shared[key], each) for key, each in stock.items())
    once = nbytes(adapters.tensors(views[0].base.network)) + nbytes(p for role in views for p in role.parameters)
    once += nbytes(each for role in others for each in adapters.tensors(role.module))
    assert nbytes(each for role in trial.roles.values() for each in adapters.tensors(role.module)) == once


def nbytes(tensors: Iterable[Tensor]) -> int:
    """Of distinct storages."""
    return sum({s.data_ptr(): s.nbytes() for s in (each.untyped_storage() for each in tensors)}.values())


@pytest.mark.parametrize(("method", "networks"), [("gpd", ("student",)), ("dmd", ("student", "fake_score"))])
def test_methods_train_adapters_of_hunyuan_video(tmp_path, method, networks):
    path = runs.write(
        tmp_path,
        tiny_hunyuan.build(tmp_path / "t" / "teacher"),
        json.dumps({"name": method} | CASES[method]),
        networks,
        lora=LORA | {"targets": ["to_q", "to_v", "proj_mlp"]},
    )
    steps = [] if method == "gpd" else ["train.steps=4"]
    run = runs.train(path, "teacher.family=hunyuan_video", "checkpoint.every=3", *steps)
    for name in networks:
        saved = checkpoint.load_network(run, name)
        up = [value for key, value in saved.items() if key.endswith("to_q.lora_B.weight")]
        assert len(up) == 1 + tiny_hunyuan.DUAL + tiny_hunyuan.SINGLE  # one refines the text
        assert len(saved) == 2 * (2 * len(up) + tiny_hunyuan.SINGLE) and finite(saved.values())
        assert all(each.any() for each in up)


@pytest.fixture(scope="module")
def run(wan, tmp_path_factory):
    """GPD: 5 updates at k = 2 and 4 at k = 3, every one with a checkpoint, and an average."""
    path = runs.write(tmp_path_factory.mktemp("run"), wan, lora=LORA)
    return runs.train(path, "checkpoint.keep=9", "train.ema=0.75")


def of_run(run: Path) -> tuple[Teacher, adapters.SharedBase]:
    asked = recipe.load(run / "recipe.yaml")
    found = teachers.load(asked.teacher, asked.video)
    return found, adapters.SharedBase(found.network().eval(), asked.lora, asked.train.seed)


def test_checkpoints_hold_adapters_and_nothing_else(run):
    _, shared = of_run(run)
    for name in ("student", "prior", "student_ema"):
        saved = checkpoint.load_network(run, name)
        assert saved.keys() == {f"{layer}.lora_{x}.weight" for layer in shared.targets for x in "AB"}


@torch.no_grad()
def test_the_prior_of_the_next_stage_is_the_student_of_the_last_without_drift(run):
    """Against the base with the student merged in, in float64."""
    teacher, shared = of_run(run)
    student, prior = checkpoint.load_network(run, "student", 5), checkpoint.load_network(run, "prior", 6)
    before = checkpoint.load_network(run, "prior", 5)
    assert all(torch.equal(prior[key], student[key]) for key in student)
    assert any(not torch.equal(before[key], student[key]) for key in student)
    view = shared.role("prior", adapted=True)
    view.load_weights(prior)
    whole = merged(teacher.network().double().eval(), {key: value.double() for key, value in student.items()})
    whole.transformer.condition_embedder.time_embedder.float()  # which is told 1000 sigma in float32
    x = torch.randn(2, *teacher.latent_shape(**tiny_wan.VIDEO), generator=torch.Generator().manual_seed(5))
    cond = teacher.encode(["a red circle", "a"])
    expected = whole(x, SIGMA, cond)  # the time embedding alone stays in float32
    assert_close(Net(view)(x, SIGMA, cond).double(), expected.double(), atol=2e-6, rtol=1e-5)
    assert (Net(shared.role("teacher", adapted=False))(x, SIGMA, cond) - expected).abs().max() > 1e-3


@torch.no_grad()
def test_the_student_of_a_run_is_its_averaged_adapters_on_the_base(run):
    teacher, shared = of_run(run)
    view = shared.role("student", adapted=True)
    view.load_weights(checkpoint.load_network(run, "student_ema"))
    found = student.load(run)
    x = torch.randn(1, *teacher.latent_shape(**tiny_wan.VIDEO), generator=torch.Generator().manual_seed(6))
    cond = teacher.encode(["a blue square"])
    made = found.method.sample(x, cond)
    found.method.student = Net(view)
    assert_close(made, found.method.sample(x, cond), atol=1e-5, rtol=0)
    view.load_weights(checkpoint.load_network(run, "student"))
    assert (made - found.method.sample(x, cond)).abs().max() > 1e-4


def test_the_command_finds_the_evaluation_of_the_run(wan, tmp_path):
    """Which knew the student as a view, and the command knows it merged: its samples are not made again."""
    asked = {
        "prompts": ["a red circle"],
        "samples": 2,
        "batch_size": 2,
        "teacher_steps": [2, 4],
        "metrics": ["rmse", "kernel"],
    }
    path = runs.write(tmp_path, wan, lora=LORA, evaluation=asked)
    run = runs.train(path, "method.iterations=[2, 2]", "optim.student.lr=1e-2")
    before = (run / "evaluation.json").read_bytes()
    assert list(command.run(str(run), {})) and (run / "evaluation.json").read_bytes() == before
    assert json.loads(before)["samples"] == 2


def test_the_average_follows_the_student(run):
    """E_n = (3 E_{n-1} + S_n) / 4, from a start at the teacher: B = 0."""
    key = "transformer.blocks.1.ffn.net.0.proj.lora_B.weight"
    expected = torch.zeros_like(checkpoint.load_network(run, "student", 1)[key])
    for update in range(1, 10):
        expected = (3 * expected + checkpoint.load_network(run, "student", update)[key]) / 4
    assert_close(checkpoint.load_network(run, "student_ema", 9)[key], expected)


def test_a_run_of_whole_networks_is_not_gone_on_with_in_adapters(wan, run, tmp_path):
    path = runs.write(tmp_path, wan, lora=LORA)
    runs.train(path.with_name("recipe.yaml"), "lora=null", "method.iterations=[1, 1]")
    with pytest.raises(UserError, match="from another recipe: lora.alpha was None, is 6.0; lora.rank was"):
        runs.train(path, "method.iterations=[1, 1]")
    _, shared = of_run(run)
    whole = {"transformer.proj_out.weight": torch.zeros(2, 2)}
    with pytest.raises(UserError, match="student: its 1 saved tensors are not the 40 of adapters of rank 4; restore"):
        shared.role("student", adapted=True).load_weights(whole)


def test_check_says_how_much_is_the_networks_own(wan, tmp_path):
    asked = recipe.load(runs.write(tmp_path, wan, lora=LORA | {"targets": ["to_q"]}))
    lines = [line for line in build.describe(asked) if line.startswith("network")]
    own = 2 * 2 * LORA["rank"] * (24 + 24)  # blocks, self- and cross-attention, A and B of 24 x 24
    said = [line.rpartition("parameters")[2] for line in lines]
    assert said == ["", *[f", {own / 1e6:.4g} M of them its own"] * 2]


def finite(values) -> bool:
    return all(torch.as_tensor(each).isfinite().all() for each in values)
