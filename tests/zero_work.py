"""What tests/test_zero.py does in several processes: each function is one test's, and asserts."""

import copy
import os
import signal
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distill import zero, zero_moments, zero_trained
from distill.batch import Condition
from distill.engine import Engine, Role
from distill.errors import UserError
from distill.places import Place
from distill.recipe import Optimizer

TRAINED = [
    Place(sharding="zero1"),
    Place(sharding="zero2"),
    Place(sharding="zero3"),
    Place(sharding="zero1", offload=["optimizer"]),
    Place(sharding="zero2", offload=["optimizer"]),
    Place(sharding="zero3", offload=["optimizer", "parameters"]),
]
OPTIM = Optimizer(lr=1e-2, eps=1e-3, weight_decay=0.1, clip=2.0, schedule="cosine")
NOTHING = Condition()
SIZES = (7, 13, 5)  # no parameter is a multiple of two processes


class Small(nn.Module):
    """Layers, a parameter of its own, and a buffer; recomputed in the backward pass if asked for."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.layers = nn.ModuleList(nn.Linear(SIZES[0], SIZES[0]) for _ in range(3))
        self.out = nn.Linear(SIZES[0], SIZES[2])
        self.table = nn.Parameter(torch.empty(3, SIZES[0]))
        self.register_buffer("seen", torch.tensor(float(seed)))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.5 * torch.randn(p.shape, generator=generator))
        self.gradient_checkpointing = False

    def enable_checkpointing(self) -> None:
        self.gradient_checkpointing = True

    def forward(self, x: Tensor, sigma: Tensor, cond=None) -> Tensor:
        for layer, row in zip(self.layers, self.table, strict=True):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(layer, x + row, use_reentrant=False).tanh()
            else:
                x = layer(x + row).tanh()
        return self.out(x) * sigma[:, None]


def trained(place: Place, seed: int = 0, precision: str = "fp32", name: str = "net") -> Role:
    module = Small(seed)
    module.enable_checkpointing()
    if place.sharding == "ddp":
        return Role(name, module, precision=precision)
    return zero_trained.trained(name, module, place, precision=precision, device="cpu")


def frozen(seed: int) -> Role:
    module = Small(seed)
    module.enable_checkpointing()
    return zero.FrozenRole("frozen", module, Place(sharding="zero3"), precision="fp32", device="cpu")


def parts(role: Role, step: int, share: slice) -> list[Tensor]:
    """An update's loss, in three parts of different size, over a share of six samples."""
    draw = torch.Generator().manual_seed(step)
    x, sigma = torch.randn(6, SIZES[0], generator=draw)[share], torch.rand(6, generator=draw)[share]
    yield role.forward(x, sigma, NOTHING).square().mean()
    yield 3 * (role.forward(x, 1 - sigma, NOTHING) - 1).square().mean()
    yield role.forward(2 * x, sigma, NOTHING).mean()


def update(role: Role, engine: Engine, step: int, share: slice) -> float:
    with engine.only(role, [role]):
        for part in parts(role, step, share):
            role.backward(part)
        role.reduce(engine.average)
        norm = role.clip(OPTIM.clip)
        role.step()
    return norm.item()


def share(engine: Engine) -> slice:
    each = 6 // engine.world
    return slice(engine.rank * each, (engine.rank + 1) * each)


def same(one: Role, other: dict[str, Tensor], tolerance: float, *told) -> None:
    found = one.weights()
    assert found.keys() == other.keys()
    far = {name: (found[name] - other[name]).abs().max().item() for name in found}
    assert max(far.values()) <= tolerance, (type(one).__name__, *told, far)


def plain(engine: Engine, updates: int, first: int = 0) -> tuple[Role, list[float]]:
    """One process's run over whole batches."""
    alone, role = copy.copy(engine), trained(Place())
    alone.world = 1
    role.prepare(OPTIM, 20)
    norms = [update(role, alone, step, slice(None)) for step in range(first, first + updates)]
    return role, norms


def updates_equal_those_of_one_process() -> None:
    """Over parts, with clipping and a schedule; and again with fresh moments, and with kept ones."""
    engine = Engine()
    alone = copy.copy(engine)
    alone.world = 1
    expected, norms = plain(engine, 6)
    for place in TRAINED:
        role = trained(place)
        role.prepare(OPTIM, 20)
        found = [update(role, engine, step, share(engine)) for step in range(6)]
        assert all(abs(x - y) < 1e-5 * y for x, y in zip(found, norms, strict=True)), (place, found, norms)
        same(role, expected.weights(), 1e-6, place)
        assert min(norms) > OPTIM.clip, "clipping must be seen"
        assert all(p.grad is None and not p.requires_grad for p in role.parameters)
        for keep in (True, False):
            further, _ = plain(engine, 6)
            if not keep:  # a second stage begins where the first has ended
                role = trained(place)
                role.prepare(OPTIM, 20)
                for step in range(6):
                    update(role, engine, step, share(engine))
            for each, processes, rows in ((further, alone, slice(None)), (role, engine, share(engine))):
                each.prepare(OPTIM, 4, keep_moments=keep)
                assert each.lr == OPTIM.lr
                for step in (7, 8):
                    update(each, processes, step, rows)
            same(role, further.weights(), 1e-6, place, keep)


def what_is_not_finite_moves_nothing() -> None:
    engine = Engine()
    for place in TRAINED:
        role = trained(place)
        role.prepare(OPTIM, 20)
        update(role, engine, 0, share(engine))
        before, lr = {k: v.clone() for k, v in role.weights().items()}, role.lr
        with engine.only(role, [role]):
            role.backward(next(parts(role, 1, share(engine))) * (float("nan") if engine.rank == 0 else 1.0))
            role.reduce(engine.average)
            assert not role.clip(OPTIM.clip).isfinite()
        same(role, before, 0.0)
        assert role.lr == lr
        update(role, engine, 1, share(engine))
        same(role, plain(engine, 2)[0].weights(), 1e-6, place)


def copies_and_averages_cross_places() -> None:
    engine = Engine()
    alone = copy.copy(engine)
    alone.world = 1
    for place in [Place(), *TRAINED]:
        source = trained(place, seed=1)
        source.prepare(OPTIM, 20)
        update(source, engine, 0, share(engine))
        weights = {name: tensor.clone() for name, tensor in source.weights().items()}
        for target in [trained(each, seed=2) for each in [Place(), *TRAINED]] + [frozen(2)]:
            before = {name: tensor.clone() for name, tensor in target.weights().items()}
            target.average_from(source, 0.75)
            mean = {name: 0.75 * before[name] + 0.25 * weights[name] for name in before}
            same(target, mean | {"seen": weights["seen"]}, 1e-6)
            target.copy_from(source)
            same(target, weights, 0.0)
            sees(target, weights)
        same(source, weights, 0.0)
        reference = trained(Place(), seed=1)
        reference.prepare(OPTIM, 20)
        for step in (0, 1):
            update(reference, alone, step, slice(None))
        update(source, engine, 1, share(engine))  # its moments are what they were
        same(source, reference.weights(), 1e-6)


def sees(role: Role, weights: dict[str, Tensor]) -> None:
    """The network computes with these weights."""
    naive = Small()
    naive.load_state_dict(weights)
    x, sigma = torch.ones(2, SIZES[0]), torch.tensor([0.3, 0.6])
    with torch.no_grad():
        assert torch.allclose(role.forward(x, sigma, NOTHING), naive(x, sigma), atol=1e-6)


def gradients_pass_through_what_is_frozen() -> None:
    """In whatever order it is asked, with and without gradients; and hardly any of its weights stay gathered."""
    Engine()
    x, sigma = torch.linspace(-1, 1, 2 * SIZES[0]).view(2, -1), torch.tensor([0.3, 0.6])
    role, naive = frozen(3), Small(3).requires_grad_(False)
    roots = naive.table.numel() + sum(p.numel() for p in naive.out.parameters())  # asked first and last

    def gathered() -> int:
        return sum(p.ds_numel for p in role.parameters if p.ds_status.name != "NOT_AVAILABLE")

    def gradient(ask) -> Tensor:
        y = x.clone().requires_grad_()
        first = ask(y)
        with torch.no_grad():
            target = ask(2 * y)
        total = (first - target).square().mean() + ask(y * 3).mean()
        assert gathered() <= roots, f"{gathered()} elements are gathered between the passes"
        total.backward()
        return y.grad

    for _ in range(3):  # from the second on the order is known, and weights are gathered ahead
        found = gradient(lambda y: role.forward(y, sigma, NOTHING))
        assert torch.allclose(found, gradient(lambda y: naive(y, sigma)), atol=1e-6)
        assert gathered() <= roots, f"{gathered()} elements were left behind"
        role.rest()
        assert gathered() == 0
    kept = sum(p.ds_tensor.numel() for p in role.parameters)
    assert kept < 0.6 * sum(p.numel() for p in naive.parameters())


def a_process_that_asks_more_is_not_alone() -> None:
    """Process 1 asks one network three times more, without gradients, as a rollout does; the other takes part."""
    engine = Engine()
    teacher, student = frozen(3), trained(Place(sharding="zero3"))
    student.prepare(OPTIM, 20)
    x, sigma = torch.ones(2, SIZES[0]), torch.tensor([0.3, 0.6])
    naive, fixed = Small(0), Small(3)
    with engine.only(student, [teacher, student]):
        with torch.no_grad():
            found = x
            for _ in range(1 + 3 * engine.rank):
                found = torch.nn.functional.pad(student.forward(found, sigma, NOTHING), (0, SIZES[0] - SIZES[2]))
            target = teacher.forward(found, sigma, NOTHING)
        loss = (student.forward(x, sigma, NOTHING) - target).square().mean()
        teacher.ready()
        student.backward(loss)
        student.reduce(engine.average)
        norm = student.clip(1e9)
    assert student.evaluations == 2 * (2 + 3 * engine.rank)  # nobody counts what was only taken part in
    for rank in range(engine.world):
        with torch.no_grad():
            y = x
            for _ in range(1 + 3 * rank):
                y = torch.nn.functional.pad(naive(y, sigma), (0, SIZES[0] - SIZES[2]))
            y = fixed(y, sigma)
        ((naive(x, sigma) - y).square().mean() / engine.world).backward()
    assert abs(norm - nn.utils.get_total_norm([p.grad for p in naive.parameters()])) < 1e-5


def other_gradients_are_refused() -> None:
    engine, role = Engine(), trained(Place(sharding="zero3"))
    x, sigma = torch.ones(2, SIZES[0]), torch.ones(2)
    with engine.only(role, [role]):
        loss = role.forward(x, sigma, NOTHING).sum()
        call = role.ready if engine.rank else lambda: role.forward(x, sigma, NOTHING)
        says("process 0: net; process 1: nothing more", call)
    assert loss.requires_grad


def refusals() -> None:
    engine = Engine()
    role = trained(Place(sharding="zero3"))
    role.prepare(OPTIM, 20)
    x, sigma = torch.ones(1, SIZES[0]), torch.ones(1)
    says("no exact derivative", lambda: torch.func.jvp(lambda y: role.forward(y, sigma, NOTHING), (x,), (x,)))
    role.module.gradient_checkpointing = False
    with engine.only(role, [role]):
        says("train.activation_checkpointing=full", lambda: role.forward(x, sigma, NOTHING))
    for place in TRAINED:
        role = trained(place)
        role.prepare(OPTIM, 20)
        with engine.only(role, [role]):
            role.module.table.requires_grad_(False)  # a parameter that the loss does not reach
            role.backward(role.forward(x, sigma, NOTHING).sum())
            says("1 of its parameters (table)", lambda role=role: role.reduce(engine.average))


def says(text: str, call) -> None:
    try:
        call()
    except UserError as error:
        assert text in str(error) and str(error).startswith("engine.net: ") and "\n" not in str(error), error
    else:
        raise AssertionError(f"expected: {text}")


def begin(folder: str, sharding: str) -> None:
    """Three updates, saved with a fourth done after."""
    engine, role = Engine(), trained(Place(sharding=sharding))
    role.prepare(OPTIM, 20)
    for step in range(3):
        update(role, engine, step, share(engine))
    role.save_state(Path(folder), engine.main)
    weights = role.weights()
    if engine.main:
        torch.save(weights, Path(folder) / "weights.pt")
    dist.barrier()


def go_on(folder: str, sharding: str) -> None:
    """The fourth update, on any number of processes, under any stage, is that of a run without a break."""
    engine, role = Engine(), trained(Place(sharding=sharding))
    role.load_weights(torch.load(Path(folder) / "weights.pt"))
    role.prepare(OPTIM, 20)
    role.load_state(Path(folder))
    expected, _ = plain(engine, 4)
    update(role, engine, 3, share(engine))
    same(role, expected.weights(), 1e-6)
    assert abs(role.lr - expected.lr) < 1e-12


def half_written(recipe: str, end: int, overrides: list[str]) -> None:
    """A run one of whose processes is killed while it writes its second checkpoint."""
    from distill.testing import trial

    written, save = 0, zero_moments.save_file

    def torn(tensors: dict, path: Path) -> None:
        nonlocal written
        written += 1
        save(tensors, path)
        if written == 2 and os.environ["RANK"] == "1":
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    zero_moments.save_file = torn
    trial.run(Path(recipe), end, overrides)


def train(recipe: str, overrides: list[str]) -> None:
    """A run to its end, with all that it shows."""
    from distill import recipe as recipes
    from distill import trainer
    from distill.testing import trial

    with trial.quiet():
        trainer.run(recipes.load(Path(recipe), overrides))


def go(recipe: str, end: int, overrides: list[str]) -> None:
    """A run, or more of it, up to an update."""
    from distill.testing import trial

    trial.run(Path(recipe), end, overrides)
