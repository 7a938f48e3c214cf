"""One update: descend a loss in one network, over the micro-batches of a global batch."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from .batch import Batch
from .engine import Engine, Role, finite
from .errors import UserError
from .method import Terms, Update


class NonFinite(Exception):
    """A loss term or gradient norm is nan or infinite; the network was not moved."""


class Before:
    """What the losses of an update may change -- statistics of its network, the state of the method and of the step --
    to be put back if the update fails."""

    def __init__(self, role: Role, method: nn.Module, batches: list[Batch]):
        self.role, self.method, self.batches = role, method, batches
        self.statistics = [each.clone() for each in role.statistics]
        self.state = {k: v.clone() if isinstance(v, Tensor) else v for k, v in method.state_dict().items()}
        self.states = [dict(batch.state) for batch in batches]

    def restore(self) -> None:
        for mine, before in zip(self.role.statistics, self.statistics, strict=True):
            mine.copy_(before)
        self.method.load_state_dict(self.state)
        for batch, state in zip(self.batches, self.states, strict=True):
            batch.state = state


def descend(
    update: Update, batches: list[Batch], position: int, roles: dict[str, Role], engine: Engine, clip: float | None
) -> dict:
    """Carry out one update and return its log line.

    Args:
        batches: this process's micro-batches of the global batch; gradients are their mean over all processes.
        position: of the update within its step.

    Raises:
        NonFinite: before the optimizer has moved anything.
    """
    role = roles[update.network]
    for each in roles.values():
        each.evaluations = each.differentiated = 0
    with engine.only(role, roles.values()):
        sums = _backward(update, batches, position, role, roles)
        role.reduce(engine.average)
        engine.average([each for each in role.statistics if each.is_floating_point()])
        norm = role.clip(float("inf") if clip is None else clip)
        terms, grad_norm, counts = _read(sums, norm, len(batches), roles, engine)
        _check(update.network, terms, grad_norm, role)
        lr = role.lr
        role.step()
    return {
        "network": update.network,
        "terms": terms,
        "loss": sum(terms.values()),
        "grad_norm": grad_norm,
        "lr": lr,
        **counts,
    }


def _backward(
    update: Update, batches: list[Batch], position: int, role: Role, roles: dict[str, Role]
) -> dict[str, Tensor]:
    """Accumulate gradients; returns the sum of each term over the micro-batches."""
    sums: dict[str, Tensor] = {}
    meeting = next((each for each in roles.values() if each.together), role)
    for batch in batches:
        for part in _parts(update.loss(batch.at(position))):
            total = torch.stack([t.float() for t in part.values()]).sum()
            if not total.requires_grad:
                raise UserError(
                    f"the update of {update.network!r}: its loss ({', '.join(part)}) does not depend on its weights; "
                    "was the network called inside torch.no_grad()?"
                )
            meeting.ready()
            role.backward(total / len(batches))
            for name, value in part.items():
                sums[name] = sums.get(name, 0.0) + value.detach().float()
    return sums


def _parts(result: Terms | Iterator[Terms]) -> Iterator[dict[str, Tensor]]:
    parts: Iterable[Terms] = [result] if isinstance(result, Tensor | dict) else result
    for part in parts:
        yield part if isinstance(part, dict) else {"loss": part}


def _read(
    sums: dict[str, Tensor], norm: Tensor, n: int, roles: dict[str, Role], engine: Engine
) -> tuple[dict[str, float], float, dict[str, dict[str, int]]]:
    """Means over the global batch, and sums of what was counted, in the update's only synchronisation."""
    counted = [count for each in roles.values() for count in (each.evaluations, each.differentiated)]
    values = torch.stack(
        [*(s / n for s in sums.values()), norm.float(), *norm.new_tensor(counted, dtype=torch.float32)]
    )
    engine.average([values])
    means = values.tolist()
    totals = [round(mean * engine.world) for mean in means[len(sums) + 1 :]]
    found = {"evaluations": totals[::2], "differentiated": totals[1::2]}
    counts = {what: {name: k for name, k in zip(roles, each, strict=True) if k} for what, each in found.items()}
    return dict(zip(sums, means[: len(sums)], strict=True)), means[len(sums)], counts


def _check(network: str, terms: dict[str, float], grad_norm: float, role: Role) -> None:
    bad = {f"{network}/{name}": value for name, value in {**terms, "gradient norm": grad_norm}.items()}
    bad = {name: value for name, value in bad.items() if not finite([value])}
    if bad:
        said = ", ".join(f"{name} is {value}" for name, value in bad.items())
        raise NonFinite(f"{said}; learning rate {role.lr:.3g}")
