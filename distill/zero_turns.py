"""Evaluations of networks in pieces in the same order on every process, whatever each process has drawn.

Under zero3 an evaluation gathers weights from all processes. But how often a loss asks a network may depend on a draw:
a rollout of DMD goes as far as its samples do. So before each evaluation the processes tell each other which they are
about to begin. Where they differ, those that are ahead take part in what the others need, with inputs of their own,
and forget the result: time in which they would have waited at the end of the update.
"""

from types import SimpleNamespace

import torch
import torch.distributed as dist

from .errors import UserError

Turn = tuple[int, int, int]  # number of the network, how deep (0 is all of it), whether gradients are wanted
DONE: Turn = (-1, 0, 1)  # about to begin a backward pass


class Turns:
    """The processes' agreement on what is evaluated next; one for all networks of a run."""

    def __init__(self):
        self.group = dist.new_group(backend="gloo")  # small messages between CPUs: no GPU is waited for
        self.roles: list = []
        self.seen: dict[int, tuple] = {}  # of each network one sample, as it was last asked here
        self.last: Turn | None = None

    def join(self, role) -> int:
        """Number of a network, the same on all processes, which make their networks in the same order."""
        self.roles.append(role)
        return len(self.roles) - 1

    def inputs(self, number: int) -> tuple:
        """For taking part with a network: its own, or another velocity network's without what it alone takes."""
        if number in self.seen:
            x, sigma, cond, extra = self.seen[number]
            return x, sigma, cond, {key: value for key, value in extra.items() if key != "features"}
        x, sigma, cond, _ = next(self.seen[n] for n in self.seen if self.roles[n].checkpoints)
        return x, sigma, cond, {}

    def wait_for(self, mine: Turn) -> None:
        """Return when this process may begin its evaluation, or its backward pass.

        Raises:
            UserError: with gradients the processes ask for different things, in which nobody can take part.
        """
        while dist.get_world_size() > 1:
            wanted = self._told(mine)
            turn = self._next(wanted)
            self.last = turn
            if turn == mine:
                return
            number, depth, _ = turn
            self.roles[number].take_part(depth)

    def _told(self, mine: Turn) -> list[Turn]:
        """What each process is about to do."""
        found = [torch.zeros(3, dtype=torch.int64) for _ in range(dist.get_world_size())]
        dist.all_gather(found, torch.tensor(mine), group=self.group)
        return [tuple(each.tolist()) for each in found]

    def _next(self, wanted: list[Turn]) -> Turn:
        if len(set(wanted)) == 1:
            return wanted[0]
        without = sorted(turn for turn in set(wanted) if not turn[2])
        if not without:
            said = "; ".join(f"process {rank}: {self._said(turn)}" for rank, turn in enumerate(wanted))
            raise UserError(
                f"engine.{self._any(wanted)}: under zero3 all processes ask networks alike where gradients are wanted, "
                f"but they are about to evaluate: {said}; let the loss not depend on its draws in this, or set zero2"
            )
        return self.last if self.last in without else without[0]  # a rollout that has begun goes on first

    def _said(self, turn: Turn) -> str:
        return "nothing more" if turn == DONE else self.roles[turn[0]].name

    def _any(self, wanted: list[Turn]) -> str:
        return next(self.roles[number].name for number, *_ in wanted if number >= 0)


def of_run() -> Turns:
    """The one of the run that this process is in."""
    if _now.turns is None or _now.world is not dist.group.WORLD:
        _now.turns, _now.world = Turns(), dist.group.WORLD
    return _now.turns


_now = SimpleNamespace(turns=None, world=None)
