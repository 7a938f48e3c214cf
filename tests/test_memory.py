"""What a method remembers: in order, with what belongs to it, and after a resume."""

import io

import pytest
import torch

from distill.batch import Condition
from distill.memory import LatentQueue


def entry(i: float, size: int = 2):
    """Latents, real latents and conditions that all say i."""
    reals = torch.full((size, 3, 1, 1, 2, 2), i)
    return torch.full((size, 1, 1, 2, 2), i), reals, Condition(text=torch.full((size, 4, 1), i), image=reals[:, 0])


def says(popped) -> set[float]:
    latents, reals, cond = popped
    return {x for part in (latents, reals, *cond.values()) for x in part.unique().tolist()}


def test_first_in_first_out():
    queue = LatentQueue()
    for i in (1.0, 2.0):
        queue.push(*entry(i))
    assert says(queue.pop("cpu")) == {1.0}
    queue.push(*entry(3.0))
    assert [says(queue.pop("cpu")) for _ in range(2)] == [{2.0}, {3.0}]
    assert len(queue) == 0


def test_what_is_pushed_is_a_copy_without_a_graph():
    queue, (latents, reals, cond) = LatentQueue(), entry(1.0)
    latents.requires_grad_()
    queue.push(latents * 1, reals[:, 1:], cond)
    reals.zero_()
    cond["text"].zero_()
    popped = queue.pop("cpu")
    assert says(popped[:2] + (Condition(text=popped[2]["text"]),)) == {1.0}
    assert not popped[0].requires_grad
    assert popped[1].untyped_storage().nbytes() == popped[1].numel() * 4  # a view would save all of what it looks at


def test_the_content_is_part_of_the_state():
    queue, other = LatentQueue(), LatentQueue()
    for i in (1.0, 2.0):
        queue.push(*entry(i))
    file = io.BytesIO()
    torch.save(torch.nn.ModuleList([queue]).state_dict(), file)
    file.seek(0)
    other.push(*entry(9.0))
    torch.nn.ModuleList([other]).load_state_dict(torch.load(file, weights_only=True))
    popped = [other.pop("cpu") for _ in range(len(other))]
    assert [says(each) for each in popped] == [{1.0}, {2.0}]
    assert isinstance(popped[0][2], Condition)
    assert len(queue) == 2


def test_a_pop_without_a_push_is_refused():
    with pytest.raises(ValueError, match="the queue is empty"):
        LatentQueue().pop("cpu")


def test_what_does_not_belong_together_is_refused():
    latents, reals, cond = entry(1.0)
    with pytest.raises(ValueError, match="2 latents, 2 real ones and 1 conditions; expected as many"):
        LatentQueue().push(latents, reals, cond.rows(slice(1)))
