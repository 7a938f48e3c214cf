"""How networks compute: kernels of attention, selective checkpointing, compiled blocks. All three families."""

import copy
import shutil
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from distill import assemble, recipe, synthesize, teachers
from distill.data.trajectories import Store
from distill.engine import Role
from distill.errors import UserError
from distill.networks import Net
from distill.recipe import Train
from distill.teachers import attention, stock
from distill.teachers.hunyuan_video import HunyuanVideoVelocity
from distill.teachers.wan import WanVelocity
from distill.teachers.wan_image import WanImageVelocity

from . import runs, tiny_hunyuan, tiny_wan, tiny_wan_image

FUSED = "aten._scaled_dot_product_flash_attention_for_cpu.default"
BLOCKS = {"wan": 2, "wan_i2v": 2, "hunyuan_video": 5}
SIGMA = torch.tensor([0.9, 0.5])


def network(family: str) -> stock.Stock:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = {
            "wan": lambda: WanVelocity(tiny_wan.transformer(2)),
            "wan_i2v": lambda: WanImageVelocity(tiny_wan_image.transformer(2)),
            "hunyuan_video": lambda: HunyuanVideoVelocity(tiny_hunyuan.transformer()),
        }
        return made[family]().eval()


def inputs(family: str) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    text = {"wan": (2, 8, 16), "wan_i2v": (2, 512, 16), "hunyuan_video": (2, 9, 16)}[family]
    cond = {"text": torch.randn(text, generator=draw)}
    if family == "wan_i2v":
        cond["image"] = torch.randn(2, 6, 3, 8, 12, generator=draw)
        cond["image_embeds"] = torch.randn(2, 5, tiny_wan_image.CLIP, generator=draw)
    if family == "hunyuan_video":
        cond["mask"] = (torch.arange(9) < torch.tensor([[9], [4]])).float()
        cond["pooled"] = torch.randn(2, 8, generator=draw)
    return torch.randn(2, 4, 3, 8, 12, generator=draw), SIGMA, cond


class Operations(TorchDispatchMode):
    """Counts what is computed."""

    def __init__(self):
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.seen[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


families = pytest.mark.parametrize("family", BLOCKS)

# Kernels


@families
def test_another_kernel_computes_the_same_by_other_operations(family):
    plain, other = network(family), network(family)
    other.set_attention("_native_math")
    with torch.no_grad(), Operations() as before:
        expected = plain(*inputs(family))
    with torch.no_grad(), Operations() as after:
        found = other(*inputs(family))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    unchosen = after.seen[FUSED]  # of HunyuanVideo's text refiner, which diffusers gives no choice
    assert before.seen[FUSED] - unchosen >= BLOCKS[family] and unchosen == (family == "hunyuan_video")
    assert after.seen["aten.bmm.default"] > before.seen["aten.bmm.default"]


def test_the_kernel_of_one_network_is_no_other_networks_nor_the_processs():
    chosen, other = network("wan"), network("wan")
    before = _AttentionBackendRegistry.get_active_backend()
    chosen.set_attention("_native_math")
    assert _AttentionBackendRegistry.get_active_backend() == before
    assert set(attention.chosen(chosen.transformer).values()) == {AttentionBackendName("_native_math")}
    assert set(attention.chosen(copy.deepcopy(chosen).transformer).values()) == {AttentionBackendName("_native_math")}
    assert set(attention.chosen(other.transformer).values()) == {None}


def check(name: str | None, family: str = "wan", **options) -> None:
    net = network(family)
    options = {"masked": net.masked, "precision": torch.float32, "keeps": False, "gradients": True} | options
    attention.check(name, net.transformer, **options)


@pytest.mark.parametrize("name", ["native", "_native_math", None])
@families
def test_what_this_machine_has_may_be_used(family, name):
    check(name, family)


def test_a_kernel_of_torchs_own_that_takes_no_mask_is_for_wan_alone():
    check("_native_flash", "wan_i2v", keeps=True)
    with pytest.raises(UserError, match="'_native_flash' cannot be used here: `attn_mask` is not supported"):
        check("_native_flash", "hunyuan_video")


@pytest.mark.parametrize("name", ["flesh", "flash", "sage", "_flash_3", "_native_cudnn"])
def test_a_kernel_that_is_not_here_is_refused_with_those_that_are(name):
    if name in ("flash", "sage", "_flash_3") and torch.cuda.is_available():
        pytest.skip(f"this machine may have {name}")
    with pytest.raises(UserError, match=rf"train.attention: '{name}' cannot be used here: .*has .*native.*") as error:
        check(name)
    here = str(error.value).rpartition("this machine has ")[2].split(", ")
    assert {"native", "_native_math"} <= set(here) and name not in here and "\n" not in str(error.value)


@pytest.fixture
def replaced(monkeypatch):
    """A kernel of our own under the name of xformers'."""

    def replace(kernel):
        monkeypatch.setattr("diffusers.models.attention_dispatch._CAN_USE_XFORMERS_ATTN", True)
        backends, name = _AttentionBackendRegistry._backends, AttentionBackendName.XFORMERS
        monkeypatch.setitem(backends, name, kernel)
        supported = {"query", "key", "value", "attn_mask"}
        monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, name, supported)
        attention._fault.cache_clear()
        return name.value

    yield replace
    attention._fault.cache_clear()


def attend(query, key, value, attn_mask=None):
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask).transpose(1, 2)


def test_a_kernel_without_gradients_is_refused_where_they_pass(replaced):
    name = replaced(lambda query, key, value, attn_mask=None: attend(query, key, value, attn_mask).detach())
    with pytest.raises(UserError, match="'xformers' cannot be used here: it computes no gradients"):
        check(name)
    check(name, gradients=False)


def test_a_kernel_that_takes_no_mask_is_refused_where_there_is_one(replaced):
    def unmasked(query, key, value, attn_mask=None):
        if attn_mask is not None:
            raise ValueError("no mask, please")
        return attend(query, key, value)

    name = replaced(unmasked)
    check(name, "wan")
    with pytest.raises(UserError, match="'xformers' cannot be used here: no mask, please; this machine has"):
        check(name, "hunyuan_video")


@families
def test_kernels_outside_torch_get_one_precision(family, replaced):
    seen = set()

    def picky(query, key, value, attn_mask=None):
        seen.add((query.dtype, key.dtype, value.dtype))
        return attend(query, key, value, attn_mask)

    net = network(family)
    net.set_attention(replaced(picky))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        net(*inputs(family))
    assert seen == {(torch.bfloat16,) * 3}


def test_forward_mode_is_exact_whatever_the_kernel_and_compiled_or_not(aot):
    x, sigma, cond = inputs("wan")
    along = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)), torch.ones(2)
    plain, other = Net(Role("plain", network("wan"))), network("wan")
    other.set_attention("_native_flash")
    other.compile_blocks()
    v, dv = plain.jvp(x, sigma, cond, *along)
    found = Net(Role("other", other)).jvp(x, sigma, cond, *along)
    assert torch.equal(found[0], v) and torch.equal(found[1], dv) and aot == []
    assert set(attention.chosen(other.transformer).values()) == {AttentionBackendName("_native_flash")}
    other(x, sigma, cond)
    assert aot


def test_plainly_nothing_is_compiled(aot):
    net = network("wan")
    net.compile_blocks()
    with net.plainly():
        net(*inputs("wan"))
    assert aot == []
    net(*inputs("wan"))
    assert len(aot) == 1


# Selective checkpointing


def backward(net: stock.Stock, family: str, features: bool) -> tuple[list[Tensor], int, Counter[str]]:
    """Gradients, bytes that the graph holds between the passes, operations of the backward pass."""
    x, sigma, cond = inputs(family)
    x = x.requires_grad_()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out = net(x, sigma, cond, features=[1, 2]) if features else [net(x, sigma, cond)]
    held = sum(event.self_cpu_memory_usage for event in profile.key_averages())
    with Operations() as seen:
        sum(each.square().mean() for each in out).backward()
    return [x.grad, *(p.grad for p in net.parameters() if p.grad is not None)], held, seen.seen


@pytest.mark.parametrize("features", [False, True], ids=["whole", "features"])
@families
def test_selective_checkpointing_keeps_attention_and_changes_no_gradient(family, features):
    nets = {mode: network(family) for mode in ("none", "selective", "full")}
    nets["selective"].enable_checkpointing("selective")
    nets["full"].enable_checkpointing("full")
    found = {mode: backward(net, family, features) for mode, net in nets.items()}
    for gradients, _, _ in found.values():
        assert len(gradients) == len(found["none"][0]) > 20
        assert all(map(torch.equal, gradients, found["none"][0]))
    bytes_of = {mode: held for mode, (_, held, _) in found.items()}
    blocks = 2 if features else BLOCKS[family]
    tokens, width = 72 + (9 if family == "hunyuan_video" else 0), 24
    kept = blocks * 2 * tokens * (width + 2) * 4  # of two samples, in float32, and a logarithm per head
    assert bytes_of["selective"] < 0.6 * bytes_of["none"]
    assert kept <= bytes_of["selective"] - bytes_of["full"] <= 1.05 * kept
    again = {mode: seen[FUSED] for mode, (_, _, seen) in found.items()}
    over_text = {"wan": 1, "wan_i2v": 2, "hunyuan_video": 0}[family] * blocks  # of I2V: over the image, too
    assert again == {"none": 0, "selective": over_text, "full": blocks + over_text}


def test_selective_checkpointing_needs_attention_in_one_piece():
    message = "selective keeps what a kernel of attention returns, and _native_math is not one operation on cpu.* full"
    with pytest.raises(UserError, match=message):
        check("_native_math", keeps=True)
    check("_native_math")


# Runs


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "wan")


@pytest.fixture
def trained(teacher, tmp_path):
    def train(*overrides: str) -> list[dict]:
        path = runs.write(tmp_path / str(len(list(tmp_path.iterdir()))), teacher)
        stages = '{"name": "gpd", "teacher_steps": 6, "steps": 2, "iterations": [1, 1]}'
        return runs.numbers(runs.train(path, f"method={stages}", *overrides))

    return train


def test_a_run_says_the_same_with_another_kernel_and_selective_checkpointing(trained):
    plain = trained()
    selective = trained("train.activation_checkpointing=selective")
    runs.assert_same(plain, selective)
    chosen = trained("train.attention=_native_math", "train.ema=0.5")
    different = [name for name in plain if not torch.equal(plain[name], chosen[name])]
    assert different
    for name in plain:
        torch.testing.assert_close(plain[name], chosen[name], atol=2e-4, rtol=1e-3)


def test_every_network_of_a_run_has_the_kernel(teacher, tmp_path):
    loaded = recipe.load(runs.write(tmp_path, teacher), ["train.attention=_native_math", "train.ema=0.5"])
    made = assemble.roles(assemble.method(loaded), teachers.load(loaded.teacher, loaded.video), loaded)
    assert set(made) == {"teacher", "student", "prior", "student_ema"}
    for role in made.values():
        assert set(attention.chosen(role.module.transformer).values()) == {AttentionBackendName("_native_math")}


def test_trajectories_are_recorded_with_the_kernel(teacher, tmp_path):
    path = runs.write(tmp_path, teacher, "{name: accvideo, recorder_steps: 4, steps: 2, head_width: 8}")
    stores = []
    for name, more in {"one": [], "other": ["train.attention=_native_math"]}.items():
        section = f"data.trajectories={{path: {tmp_path / name}, records: 1, steps: 4, keep: 2, guidance: 3.0}}"
        loaded = recipe.load(path, [section, "optim.heads={lr: 0.1}", "train.steps=1", *more])
        with Operations() as seen:
            stores.append(Store(synthesize.run(loaded)))
        assert (seen.seen[FUSED] == 0) == bool(more)
    torch.testing.assert_close(*(store.read(0, [0, 1, 2]) for store in stores), atol=1e-3, rtol=1e-3)


def test_a_network_that_cannot_is_refused_in_one_line():
    bare = torch.nn.Linear(2, 2)
    for option, value in {"attention": "native", "compile": True, "activation_checkpointing": "full"}.items():
        train = Train(batch_size=1, **{option: value})
        with pytest.raises(UserError, match=rf"train.{option}: Linear has no \w+; leave the option out") as error:
            stock.set_up(bare, train)
        assert "\n" not in str(error.value)


# Compiled blocks


@pytest.fixture
def aot(monkeypatch):
    """Compiled without a compiler: what is traced is computed by torch. The graphs so far."""
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, example)

    torch._dynamo.reset()
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda *args, **options: real(*args, **options | {"backend": backend}))
    stock.check_compiler.cache_clear()
    yield graphs
    stock.check_compiler.cache_clear()
    torch._dynamo.reset()


def test_a_compiled_run_is_close_to_an_eager_one(trained, aot):
    options = "train.batch_size=2", "train.ema=0.5"
    plain, compiled = trained(*options), trained(*options, "train.compile=true")
    assert aot and plain.keys() == compiled.keys()
    for name in plain:
        torch.testing.assert_close(plain[name], compiled[name], atol=2e-4, rtol=1e-3)


@families
def test_blocks_are_compiled_once_for_all_and_keep_their_names(family, aot):
    plain, net = network(family), network(family)
    net.compile_blocks()
    with torch.no_grad():
        expected, found = plain(*inputs(family)), net(*inputs(family))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    blocks = [block for block in net.modules() if block._compiled_call_impl is not None]
    graphs = {"wan": 1, "wan_i2v": 1, "hunyuan_video": 5}[family]  # the text refiner's is in two parts
    assert len(aot) == graphs < len(blocks)
    assert list(net.state_dict()) == list(plain.state_dict())
    again = copy.deepcopy(net)
    assert torch.equal(again(*inputs(family)), plain(*inputs(family)))  # not compiled


@pytest.mark.parametrize("mode", ["full", "selective"])
def test_compiled_blocks_are_checkpointed(mode, aot):
    plain, net = network("wan"), network("wan")
    net.enable_checkpointing(mode)
    net.compile_blocks()
    for each in (plain, net):
        each(*inputs("wan")).square().mean().backward()
    assert aot
    for one, other in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-4)


def test_a_machine_without_a_compiler_says_so_in_one_line(monkeypatch, tmp_path):
    without = torch._inductor.config.patch({"cpp.cxx": (None, "/nowhere/g++")})
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # or it would find what another has compiled
    torch._dynamo.reset()
    stock.check_compiler.cache_clear()
    try:
        line = r"train.compile: torch.compile does not work here \(.*compiler"
        with without, pytest.raises(UserError, match=line) as error:
            stock.check_compiler("cpu")
    finally:
        torch._dynamo.reset()
        stock.check_compiler.cache_clear()
    assert "set train.compile=false" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on this machine")
def test_a_block_that_inductor_has_compiled_is_close():
    """The real compiler, on the smallest of blocks, forward and back."""
    stock.check_compiler("cpu")
    plain, net = network("wan"), network("wan")
    for each in (plain, net):
        each.transformer.blocks = each.transformer.blocks[:1]
    net.compile_blocks()
    for each in (plain, net):
        each(*inputs("wan")).square().mean().backward()
    for one, other in zip(plain.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-3)


# Cost


@pytest.mark.parametrize(("mode", "passes"), [("none", 3), ("full", 4), ("selective", 4)])
def test_a_cost_counts_the_second_pass(mode, passes):
    from distill.compare import cost

    said = SimpleNamespace(train=SimpleNamespace(activation_checkpointing=mode), method=SimpleNamespace(name="gpd"))
    line = {"network": "student", "evaluations": {"student": 2}, "differentiated": {"student": 2}}
    assert cost.flop(line, said, cost.Unit(flop=10.0, guided=2)) == passes * 2 * 10
