"""How near the student comes to the teacher: both start from the same noise, sample by sample.

The reference is the teacher's own result of most steps. The headline is the part of the teacher's gap from few steps
to many that the student closes, 1 - d(student) / d(teacher at few steps), d the RMSE in latents over all samples.
Intervals are 95 %: percentile bootstrap over prompts, paired by prompt and seed; Wilson's for shares of clips.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from .. import health, image_prompt
from ..batch import Condition, generator
from ..data import prompts
from ..embedded.world import parse
from ..engine import Role
from ..networks import Net
from ..validation import Sampler, negative, teacher_sampler
from . import statistics, world

RESULT = "evaluation.json"
ROUNDING = 1 / 12  # mean square error of rounding to uint8: equal clips have 59 dB, not infinitely many
DISTANCES = ("rmse", "cosine", "psnr")
WORLD = (*world.ATTRIBUTES, *world.BEHAVIOUR)
MEASURES = (*DISTANCES, *health.MEASURES)
HALF_RATE = "student_half_rate"


def evaluate(
    folder: Path,
    teacher,
    net: Net,
    sample: Sampler,
    embeddings,
    recipe,
    shift: float,
    *,
    update: int,
    roles: Iterable[Role],
    tell: Callable[[str], None],
    half_rate: Sampler | None = None,
    interpolator: str = "",
) -> dict:
    """Compare the student after `update` updates with the teacher; write evaluation.json and return its headline.

    Batches that an interrupted evaluation of the same student finished are not computed again.

    Args:
        net: the teacher.
        shift: of the teacher's grids.
        roles: every network of the run; their evaluations are counted.
        tell: takes in a line of progress after each batch.
        half_rate: the student's sampler with its first steps at half the frame rate, measured as `student_half_rate`.
        interpolator: what that depends on besides the student.
    """
    options, texts = recipe.evaluation, prompts.listed(recipe.evaluation.prompts)
    if options.world:
        for text in texts:
            parse(text)  # raises now, not after the sampling
    device = net.role.device
    uncond = negative(teacher, embeddings, recipe, device)
    steps = sorted(set(options.teacher_steps))
    samplers = {f"teacher_{n}": teacher_sampler(net, n, shift, options.guidance, uncond) for n in steps}
    students = {"student": sample} | ({HALF_RATE: half_rate} if half_rate else {})
    setting = Setting(teacher, embeddings, recipe, samplers | students, list(roles), device)
    setting.kept = prompts.default_cache() / "clips" / clips_key(recipe, teacher, net, texts, shift)
    cache = folder / "evaluation" / (fingerprint(recipe, teacher, texts, shift, update) + interpolator)
    batches = [partial(measured, setting, texts, rows) for rows in split(options.samples, options.batch_size)]
    parts = []
    for k, batch in enumerate(batches):
        parts.append(remembered(cache / f"batch_{k:04d}.json", batch))
        tell(f"{min((k + 1) * options.batch_size, options.samples)} of {options.samples} samples")
    result = {"update": update, "shift": shift, "clock": setting.clock} | summary(parts, options, steps, list(students))
    for name in students if half_rate else ():  # evaluations at two rates are not alike
        result["samplers"][name]["flop"] = flop(setting, name, texts[0])
    write_json(folder / RESULT, result)
    return headline(result)


@dataclass
class Setting:
    """What does not change from batch to batch."""

    pipeline: object
    embeddings: object
    recipe: object
    samplers: dict[str, Sampler]
    roles: list[Role]
    device: torch.device
    kept: Path | None = None  # where the teacher's results are, for the next run that asks for the same

    @property
    def shape(self) -> tuple[int, int, int, int]:
        size = self.recipe.video
        return self.pipeline.latent_shape(size.frames, size.height, size.width)

    @property
    def clock(self) -> str:
        """CPU seconds do not count what else the machine does; a GPU only has a wall clock."""
        return "wall" if self.device.type == "cuda" else "cpu"

    def now(self) -> float:
        if self.clock == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def evaluations(self) -> int:
        return sum(role.evaluations for role in self.roles)

    def sampled(self, name: str, noise: Tensor, cond: Condition) -> dict[str, Tensor]:
        """Latents of one sampler, and per clip what they took."""
        started, evaluations, n = self.now(), self.evaluations(), len(noise)
        latents = self.samplers[name](noise.to(self.device), cond).float().cpu()
        seconds, evaluations = self.now() - started, self.evaluations() - evaluations
        return {"latents": latents, "cost": torch.tensor([[seconds / n, evaluations / n]] * n, dtype=torch.float64)}

    def teacher(self, name: str, rows: range, noise: Tensor, cond: Condition) -> dict[str, Tensor]:
        """The same of a teacher's sampler, made once for all runs that are measured against it."""
        path = self.kept / f"{name}_{rows.start:04d}-{rows.stop:04d}.safetensors"
        if not path.exists():
            replace(path, lambda file: save_file(self.sampled(name, noise, cond), file))
        return load_file(path)


def split(samples: int, size: int) -> list[range]:
    return [range(start, min(start + size, samples)) for start in range(0, samples, size)]


@torch.no_grad()
def measured(setting: Setting, texts: list[str], rows: range) -> dict:
    """Per sampler and measure, one value for each of the samples `rows`."""
    seed = setting.recipe.evaluation.seed
    captions = [texts[j % len(texts)] for j in rows]
    noise = torch.stack([torch.randn(setting.shape, generator=generator("evaluation", seed, j)) for j in rows])
    cond = setting.embeddings.get(captions).to(setting.device)
    latents, values = {}, {}
    for name in setting.samplers:
        again = is_student(name)
        made = setting.sampled(name, noise, cond) if again else setting.teacher(name, rows, noise, cond)
        latents[name] = made["latents"]
        values[name] = dict(zip(("seconds", "evaluations"), made["cost"].T.tolist(), strict=True))
    videos = {name: setting.pipeline.decode(x).numpy() for name, x in latents.items()}
    best = reference(latents)
    for name, x in latents.items():
        values[name] |= compared(x, latents[best], videos[name], videos[best])
        if setting.recipe.evaluation.world:
            values[name] |= {k: v.tolist() for k, v in world.score(videos[name], captions).items()}
    return {"prompt": [j % len(texts) for j in rows], "samplers": values}


def reference(samplers: Iterable[str]) -> str:
    """The teacher of most steps."""
    return max((name for name in samplers if not is_student(name)), key=steps_of)


def is_student(sampler: str) -> bool:
    return sampler in ("student", HALF_RATE)


@torch.no_grad()
def flop(setting: Setting, name: str, text: str) -> int:
    """Floating-point operations of one clip, the decoder not counted."""
    noise = torch.randn(1, *setting.shape, generator=generator("evaluation", 0, 0)).to(setting.device)
    on_cpu = setting.device.type == "cpu"  # whose own attention kernel is not counted
    with sdpa_kernel(SDPBackend.MATH) if on_cpu else nullcontext(), FlopCounterMode(display=False) as counter:
        setting.samplers[name](noise, setting.embeddings.get([text]).to(setting.device))
    return counter.get_total_flops()


def steps_of(teacher: str) -> int:
    return int(teacher.removeprefix("teacher_"))


def compared(x: Tensor, y: Tensor, video: np.ndarray, video_reference: np.ndarray) -> dict[str, list[float]]:
    """Latents (B, C, F, H, W) and videos uint8 (B, F, H, W, 3) against the reference's; one value per sample."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    mse = np.square(video.astype(np.float64) - video_reference).mean((1, 2, 3, 4))
    return {
        "rmse": (x - y).square().mean(1).sqrt().tolist(),
        "cosine": torch.nn.functional.cosine_similarity(x, y).tolist(),
        "psnr": (10 * np.log10(255**2 / np.maximum(mse, ROUNDING))).tolist(),
        **{name: [measure(clip) for clip in video] for name, measure in health.MEASURES.items()},
    }


def summary(parts: list[dict], options, steps: list[int], students: Sequence[str] = ("student",)) -> dict:
    """Means, intervals and comparisons of all batches, and every value they come from."""
    prompt = np.array([p for part in parts for p in part["prompt"]])
    names = [*(f"teacher_{n}" for n in steps), *students]
    values = {name: joined([part["samplers"][name] for part in parts]) for name in names}
    weights = statistics.resample(prompt)
    few, (_, *others) = names[: len(steps) - 1], students
    return {
        "samples": len(prompt),
        "prompts": int(prompt.max()) + 1,
        "seed": options.seed,
        "guidance": options.guidance,
        "reference": names[len(steps) - 1],
        "samplers": {name: described(v, weights) for name, v in values.items()},
        "gap_closed": {n: statistics.gap_closed(values["student"]["rmse"], values[n]["rmse"], weights) for n in few},
        "difference": {n: differences(values["student"], values[n], weights) for n in [*few, *others]},
        "per_sample": {"prompt": prompt.tolist()} | {n: {k: v.tolist() for k, v in values[n].items()} for n in names},
    }


def joined(parts: list[dict[str, list[float]]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def described(values: dict[str, np.ndarray], weights: np.ndarray) -> dict:
    described = {name: float(values[name].mean()) for name in ("evaluations", "seconds")}
    described |= {name: statistics.mean(values[name], weights) for name in MEASURES}
    shares = {name: statistics.share(v) for name, v in values.items() if name in WORLD}
    return described | ({"world": shares} if shares else {})


def differences(student: dict[str, np.ndarray], other: dict[str, np.ndarray], weights: np.ndarray) -> dict:
    """Student minus the other, sample by sample."""
    names = [name for name in student if name in (*MEASURES, *WORLD)]
    return {name: statistics.mean(student[name] - other[name], weights) for name in names}


def headline(result: dict) -> dict:
    """What the log and the console say."""
    numbers = {name: result[name] for name in ("update", "samples")}
    others = {name: values for name, values in result["samplers"].items() if name != result["reference"]}
    numbers |= {f"rmse_{name}": values["rmse"]["mean"] for name, values in others.items()}
    for name, gap in result["gap_closed"].items():
        numbers |= {f"gap_{name}": gap["mean"], f"gap_{name}_low": gap["low"], f"gap_{name}_high": gap["high"]}
    return numbers


def fingerprint(recipe, teacher, texts: list[str], shift: float, update: int) -> str:
    """Names the folder of finished batches after all that their values depend on."""
    options = recipe.evaluation.model_dump(mode="json", exclude={"prompts"})
    return f"update_{update:08d}-{digest(recipe, teacher, texts, shift, options, update, MEASURES, WORLD)}"


def clips_key(recipe, teacher, net: Net, texts: list[str], shift: float) -> str:
    """Names the folder of the teacher's results after all that they depend on, steps and samples apart."""
    options = recipe.evaluation.model_dump(mode="json", include={"seed", "guidance", "batch_size"})
    return digest(recipe, teacher, texts, shift, options, net.role.precision, net.role.device.type)


def digest(recipe, teacher, texts: list[str], *more) -> str:
    key = [recipe.video.model_dump(mode="json"), recipe.data.negative_prompt, teacher.fingerprint, texts, *more]
    key += image_prompt.contents(texts)
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def remembered(path: Path, compute: Callable[[], dict]) -> dict:
    if not path.exists():
        write_json(path, compute())
    return json.loads(path.read_text())


def write_json(path: Path, content: dict) -> None:
    replace(path, lambda file: file.write_text(json.dumps(content, indent=1)))


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Have a file written, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".partial-") as folder:
        write(Path(folder) / path.name)
        os.replace(Path(folder) / path.name, path)
