"""Guards: what goes wrong in a run whose losses may look well, and what to change. docs/health.md.

On the validation clips, beside the teacher's from the same prompts and noise: clips that stand still, saturate or are
all alike, and critics that have lost their hold. Of every update: gradient norms beside the network's own past.
"""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations

import numpy as np

CLIPS = {  # guard -> what a ratio below its limits means, what one above; and what to change
    "motion": (
        ("the clips stand still", "lower optim.student.lr, or strengthen what asks for motion: videos, trajectories"),
        ("the clips flicker or jump", "lower optim.student.lr, or the weight of an adversarial or temporal loss"),
    ),
    "saturation": (
        ("the colours fade", "lower optim.student.lr, or the weight of a regression to real videos"),
        ("the colours saturate", "lower optim.student.lr or the guidance, or let critics learn more in between"),
    ),
    "variety": (
        ("clips of different prompts look alike", "lower optim.student.lr, or the weight of an adversarial loss"),
        ("the clips fall apart", "lower optim.student.lr, and go back to a checkpoint before this"),
    ),
}
SMALL = 1e-3  # of the range of a pixel: below it a teacher has nothing to lose
PAST = 50  # windows of gradient norms that are remembered


@dataclass(frozen=True)
class Alarm:
    """A guard that fired: a `health` line of the log.

    Attributes:
        guard: its key in the recipe's section `health`.
        curve: what it concerns: the measure of clips, or the network.
    """

    guard: str
    curve: str
    message: str


# Clips


def vitals(clips: Sequence[np.ndarray]) -> dict[str, float]:
    """Measures of clips, uint8 (F, H, W, 3) each, in shares of the range of a pixel.

    Besides MEASURES the variety: root mean square difference between clips of different prompts (0 for a single clip).
    """
    videos = [np.asarray(clip, np.float32) / 255 for clip in clips]
    pairs = [np.sqrt(np.square(a - b).mean()) for a, b in combinations(videos, 2)]
    means = {name: float(np.mean([measure(clip) for clip in clips])) for name, measure in MEASURES.items()}
    return means | {"variety": float(np.mean(pairs)) if pairs else 0.0}


def motion(clip: np.ndarray) -> float:
    """Mean change of a pixel from frame to frame, as a share of its range."""
    return float(np.abs(np.diff(np.asarray(clip, np.float32), axis=0)).mean() / 255) if len(clip) > 1 else 0.0


def saturation(clip: np.ndarray) -> float:
    """Mean of the largest minus the smallest channel, as a share of their range."""
    frames = np.asarray(clip, np.float32)
    return float((frames.max(-1) - frames.min(-1)).mean() / 255)


MEASURES = {"motion": motion, "saturation": saturation}  # of a clip by itself, uint8 (F, H, W, 3)


def ratios(student: dict[str, float], teacher: dict[str, float]) -> dict[str, float]:
    """The student's measures over the teacher's; those that the teacher lacks (no motion asked for) are left out."""
    return {name: student[name] / teacher[name] for name in CLIPS if teacher[name] > SMALL}


def of_clips(found: dict[str, float], limits) -> list[Alarm]:
    """An alarm for every ratio that is out of its limits.

    Args:
        limits: a recipe's section (recipe.Health).
    """
    alarms = []
    for name, ratio in found.items():
        low, high = getattr(limits, name)
        if not low <= ratio <= high:
            what, change = CLIPS[name][ratio > high]
            said = f"{what}: {name} is {ratio:.2f} of the teacher's, expected {low:g} to {high:g} (health.{name})"
            alarms.append(Alarm(name, name, f"{said}; {change}"))
    return alarms


# Critics


def of_critics(found: dict[str, dict[str, float]], alarmed: bool, limits) -> list[Alarm]:
    """An alarm for every critic that has lost its hold on the student.

    That a critic cannot tell the student's clips from the teacher's is what a student is trained for; it is a fault
    where they are not alike.

    Args:
        found: critic -> how sure it is that the `student`'s clips, and the `teacher`'s, are the student's.
        alarmed: whether the student's clips are out of their limits.
        limits: a recipe's section (recipe.Health).
    """
    low, high = limits.critic
    alarms = []
    for critic, sure in found.items():
        by = sure["student"] - sure["teacher"]
        if by > high:
            said = f"{critic} has won: the student learns nothing from a critic that is always right"
            change = f"lower optim.{critic}.lr, or move the student more often"
        elif by < -low:
            said = f"{critic} has diverged: it takes the teacher's clips for the student's"
            change = f"lower optim.{critic}.lr"
        elif by < low and alarmed:
            said = f"{critic} has vanished: the student's clips are not like the teacher's, and it cannot tell"
            change = f"raise optim.{critic}.lr, or let it learn more between the student's updates"
        else:
            continue
        shares = f"it is {sure['student']:.3f} sure of the student's clips, {sure['teacher']:.3f} of the teacher's"
        said = f"{said}; {shares}, expected {low:g} to {high:g} more (health.critic); {change}"
        alarms.append(Alarm("critic", critic, said))
    return alarms


# Gradients


@dataclass
class Past:
    """Of one network: its last gradient norms, and the medians of windows that are over."""

    norms: list[float] = field(default_factory=list)
    medians: list[float] = field(default_factory=list)
    count: int = 0


class Gradients:
    """Each network's gradient norms beside its own past in the stage: medians of a window against those before it.

    Medians, because a single batch may be odd; windows, because a method's updates may go through levels or key steps
    in turn. The first window is a network's warm-up and raises no alarm.
    """

    def __init__(self, options):
        """
        Args:
            options: a recipe's section (recipe.Health).
        """
        self.limits, self.window = options.gradients, options.window
        self.past: dict[str, Past] = {}

    def begin(self) -> None:
        """A stage may ask for something else: what was usual before does not count."""
        self.past = {}

    def take(self, network: str, norm: float) -> list[Alarm]:
        """Take in the norm of an update, before clipping; an alarm at most once in a window."""
        past = self.past.setdefault(network, Past())
        past.norms = [*past.norms, norm][-self.window :]
        past.count += 1
        if past.count % self.window:
            return []
        now, before = statistics.median(past.norms), past.medians
        past.medians = [*before, now][-PAST:]
        usual = statistics.median(before) if before else 0.0  # 0: what it starts from has been 0 so far
        return self._compare(network, now, usual) if usual else []

    def _compare(self, network: str, now: float, usual: float) -> list[Alarm]:
        low, high = self.limits
        if low * usual <= now <= high * usual:
            return []
        exploded = now > high * usual
        change = "lower its lr, or add a warmup" if exploded else "look for a loss that is cut off, or has been won"
        said = (
            f"the gradients of {network} {'explode' if exploded else 'vanish'}: their norm is {now:.3g}, usual was "
            f"{usual:.3g}, expected {low:g} to {high:g} times that (health.gradients); {change} (optim.{network})"
        )
        return [Alarm("gradients", network, said)]

    def told(self, network: str) -> str:
        """The last norms, and what they say of a value that is not finite."""
        norms = self.past[network].norms if network in self.past else []
        if not norms:
            return "it is its first update"
        last = ", ".join(f"{norm:.3g}" for norm in norms[-3:])
        rising = norms[-1] > 3 * statistics.median(norms)
        change = "" if rising else "look at the data of this step, or "
        return f"its last gradient norms were {last}; {change}lower optim.{network}.lr"

    def state(self) -> dict:
        return {name: asdict(past) for name, past in self.past.items()}

    def load_state(self, state: dict) -> None:
        self.past = {name: Past(**past) for name, past in state.items()}
