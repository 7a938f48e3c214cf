"""Checks of a method's student: its sampler, the noise levels that it exports, and its way to disk and back."""

import json
from functools import partial

import torch
from torch import Tensor

from .. import export, samplers, student
from ..batch import Condition
from ..method import Method
from . import bench as benches
from . import trial
from .bench import Bench
from .check import Check, DoesNotApply, Failed

CLOSE = 1e-4
ROWS = 2


def sample(bench: Bench) -> str:
    """The sampler keeps shape and noise, says the same twice, and knows no neighbours."""
    method = with_student(bench)
    noise, cond = inputs(bench)
    kept = noise.clone()
    x = draw(method, noise, cond)
    if x.shape != noise.shape or not x.isfinite().all():
        seen = f"shape {tuple(x.shape)}" if x.shape != noise.shape else "values that are not finite"
        raise Failed(f"sample makes {seen} of noise {tuple(noise.shape)}", "return latents like the noise")
    if not torch.equal(noise, kept):
        raise Failed("sample changes the noise that it is given", "work on a copy: x = x + ..., not x += ...")
    if not torch.equal(x, draw(method, noise, cond)):
        remedy = "noise between steps follows from the first (samplers.renoise, samplers.more_noise)"
        raise Failed("sample makes other latents of the same noise", remedy)
    alone = torch.cat([draw(method, noise[[i]], cond.rows([i])) for i in range(ROWS)])
    if (seen := largest(x, alone)) > CLOSE:
        remedy = "take no means over the batch, and no noise that depends on a sample's place in it"
        raise Failed(f"a clip differs by {seen:.2g} when it is sampled alone", remedy)
    return f"{tuple(x.shape)}, twice the same"


def grid(bench: Bench) -> str:
    """`sample` is what the exported scheduler does: steps on `grid`, as `renoises` and `ends` say."""
    method = with_student(bench)
    levels = method.grid()
    said = ", ".join(f"{level:.3g}" for level in levels.tolist())
    if levels.ndim != 1 or len(levels) < 2 or levels.diff().max() >= 0 or levels[0] != 1 or levels[-1] != 0:
        raise Failed(
            f"grid is [{said}]", "it must fall from exactly 1 (noise) to exactly 0; flow.grid(steps, shift) does"
        )
    noise, cond = inputs(bench)
    x, ways = draw(method, noise, cond), playbacks(method)
    name = "renoise" if method.renoises else "euler told its ends" if method.ends else "euler"
    seen = {each: largest(x, draw(None, noise, cond, way)) for each, way in ways.items()}
    if seen[name] > CLOSE:
        fitting = [each for each in seen if seen[each] <= CLOSE]
        remedy = f"it is {fitting[0]}: set renoises and ends so" if fitting else "let grid() return what sample() uses"
        raise Failed(f"sample differs by {seen[name]:.2g} from {name} on grid [{said}], which is exported", remedy)
    return f"{name} on [{said}]"


def reload(bench: Bench) -> str:
    """Saved, exported and reloaded, the student makes the same latents."""
    method, run = with_student(bench), bench.whole.folder
    noise, cond = inputs(bench)
    with trial.quiet(), benches.own_cache():
        again = student.load(run).method
        if (seen := largest(draw(method, noise, cond), draw(again, noise, cond))) > CLOSE:
            remedy = "what sample needs besides the student's weights follows from the options, or the stage"
            raise Failed(f"the student that is loaded from a checkpoint differs by {seen:.2g}", remedy)
        folder = export.export(run, bench.folder / "student")
    facts = json.loads((folder / export.SETTINGS).read_text())
    return f"the pipeline's latents differ by {facts['difference']:.1g}"


def playbacks(method: Method) -> dict:
    """What an exported student may do, by name."""
    net, levels = method.student, method.grid()
    ways = {
        "euler": partial(samplers.euler, net, sigmas=levels),
        "renoise": partial(samplers.renoise, net, sigmas=levels, told=method.told_grid()),
    }
    if method.ends:
        ways["euler told its ends"] = partial(samplers.euler, net, sigmas=levels, ends=True)
    return ways


def with_student(bench: Bench) -> Method:
    if "student" not in bench.signature.networks:
        raise DoesNotApply("it trains no student")
    return bench.whole.method


def inputs(bench: Bench) -> tuple[Tensor, Condition]:
    noise = torch.randn(ROWS, *bench.whole.stream.shape, generator=torch.Generator().manual_seed(7))
    return noise, bench.whole.embeddings.get(list(bench.whole.stream.prompts[:ROWS]))


def draw(method: Method | None, noise: Tensor, cond: Condition, way=None) -> Tensor:
    with torch.no_grad(), trial.other_randomness():
        return method.sample(noise, cond) if way is None else way(noise=noise, cond=cond)


def largest(x: Tensor, y: Tensor) -> float:
    return (x - y).abs().max().item()


CHECKS = (
    Check("sample", "sample keeps shape, is deterministic, and knows no neighbours", sample, ("finite",)),
    Check("grid", "sample follows the grid that is exported", grid, ("sample",)),
    Check("export", "saved, exported, reloaded: the same latents", reload, ("grid",)),
)
