"""AdamW's moments of networks in pieces, in checkpoints: every process writes its own, and reads what it needs.

A tensor in optim_<network>_<process>.safetensors is named <moment>/<parameter>@<start of the stretch>. So any number of
processes, and any stage, can read what others wrote.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from .zero import Piece

MOMENTS = ("exp_avg", "exp_avg_sq")


def save(role, folder: Path, main: bool) -> None:
    """Write the moments of this process's pieces and, on the main one, schedule and number of steps."""
    found = {
        f"{moment}/{name}@{piece.start}": _stretch(role.optimizer, piece, moment).cpu().clone()
        for name, piece in role.pieces().items()
        for moment in MOMENTS
        if piece.within[0] in role.optimizer.state
    }
    save_file(found, folder / f"optim_{role.name}_{dist.get_rank():05d}.safetensors")
    if main:
        steps = [float(state["step"]) for state in role.optimizer.state.values()]
        state = {"step": steps[0] if steps else 0.0, "schedule": role.schedule.state_dict()}
        torch.save(state, folder / f"optim_{role.name}.pt")


def load(role, folder: Path) -> None:
    """Take over what `save` wrote, once the role is prepared."""
    state = torch.load(folder / f"optim_{role.name}.pt", map_location="cpu", weights_only=True)
    role.schedule.load_state_dict(state["schedule"])
    for group, lr in zip(role.optimizer.param_groups, role.schedule.get_last_lr(), strict=True):
        group["lr"] = lr
    if not state["step"]:
        return
    for flat in role.flats():
        step = torch.tensor(state["step"], dtype=torch.float32, device=flat.device)
        role.optimizer.state[flat] = {"step": step} | {moment: torch.zeros_like(flat) for moment in MOMENTS}
    pieces = role.pieces()
    for moment, name, start, stretch in _stretches(folder, role.name):
        if name in pieces:
            _lay(_stretch(role.optimizer, pieces[name], moment), pieces[name].start, stretch, start)


def _stretch(optimizer: torch.optim.Optimizer, piece: Piece, moment: str) -> Tensor:
    flat, offset = piece.within
    return optimizer.state[flat][moment][offset : offset + piece.values.numel()]


def _stretches(folder: Path, network: str) -> Iterator[tuple[str, str, int, Tensor]]:
    """Moment, parameter, start and values of all that was written."""
    for path in sorted(folder.glob(f"optim_{network}_{'[0-9]' * 5}.safetensors")):
        with safe_open(path, framework="pt") as content:
            for key in content.keys():  # noqa: SIM118, no dictionary
                moment, _, named = key.partition("/")
                name, _, start = named.rpartition("@")
                yield moment, name, int(start), content.get_tensor(key)


def _lay(mine: Tensor, my_start: int, theirs: Tensor, their_start: int) -> None:
    """Copy what two stretches of a parameter have in common."""
    begin, end = max(my_start, their_start), min(my_start + len(mine), their_start + len(theirs))
    if begin < end:
        mine[begin - my_start : end - my_start].copy_(theirs[begin - their_start : end - their_start])
