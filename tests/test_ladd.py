"""LADD: whom its losses move, what they judge, and at which noise levels."""

import copy

import pytest
import torch
from torch.nn.functional import relu
from torch.testing import assert_close

from distill import flow
from distill.descent import descend
from distill.engine import Engine, Role
from distill.networks import Net
from distill_methods.ladd import LADD
from tests import toys
from tests.test_accvideo import OPTIM, Small, batch, same


class Setting:
    """The method among real roles, its heads awake."""

    def __init__(self, **options):
        self.method = LADD(**{"head_width": 8, "feature_depths": (0.34, 1.0)} | options)
        torch.manual_seed(0)
        modules = {"teacher": Small(), "student": Small(1), "heads": self.method.build_heads(Small)}
        for head in modules["heads"].H:
            torch.nn.init.normal_(head.logit.weight, std=0.3)
        self.roles = {name: Role(name, module) for name, module in modules.items()}
        for name, role in self.roles.items():
            setattr(self.method, name, Net(role))
            role.prepare(OPTIM, 100)

    def weights(self) -> dict:
        return {name: copy.deepcopy(role.module.state_dict()) for name, role in self.roles.items()}


def test_each_update_moves_its_own_network():
    setting, made, before = Setting(), batch(), None
    for position, update in enumerate(setting.method.updates(0)):
        before = setting.weights()
        descend(update, [made], position, setting.roles, Engine(), None)
        after = setting.weights()
        assert {name for name in after if not same(before[name], after[name])} == {update.network}
    assert position == 1


def test_the_student_descends_what_the_heads_say_of_its_noised_prediction():
    setting, made = Setting(loss="hinge"), batch(size=3)
    method, nets = setting.method, {name: role.module for name, role in setting.roles.items()}
    loss = method.student_loss(made.at(0))["adversarial"]
    again = made.at(0)
    later, u, level, start, noise = (
        again.integers(1, 4),
        again.uniform(),
        again.uniform(),
        again.noise(),
        again.noise(),
    )
    grid = [5 * i / 4 / (1 + 4 * i / 4) for i in (4, 3, 2, 1)]
    t = torch.tensor([grid[0] if a < 0.7 else grid[n] for a, n in zip(u.tolist(), later.tolist(), strict=True)])
    sigma = torch.sigmoid(1 + torch.special.ndtri(level))
    x = flow.mix(made.trajectory[:, -1], start, t)
    x0 = x - t.view(-1, 1, 1, 1, 1) * nets["student"](x, t, made.cond)
    found = nets["teacher"](flow.mix(x0, noise, sigma), sigma, made.cond, features=[1, 3])
    logits = [head(f) for head, f in zip(nets["heads"].H, found, strict=True)]
    assert_close(loss, -(logits[0].mean() + logits[1].mean()) / 2)


def test_heads_learn_the_teachers_clips_from_the_students_at_the_same_noise_levels():
    setting, made = Setting(loss="hinge"), batch(size=3)
    method, nets = setting.method, {name: role.module for name, role in setting.roles.items()}
    with torch.no_grad():
        method.student_loss(made.at(0))
    terms = method.heads_loss(made.at(1))
    sigma = made.state["sigma"]
    noised = flow.mix(made.trajectory[:, -1], made.at(1).noise(), sigma)
    real = nets["teacher"](noised, sigma, made.cond, features=[1, 3])
    real = [head(f) for head, f in zip(nets["heads"].H, real, strict=True)]
    fake = [head(made.state[f"fake {k}"]) for k, head in enumerate(nets["heads"].H)]
    assert_close(terms["real"], sum(relu(1 - x).mean() for x in real) / 2)
    assert_close(terms["fake"], sum(relu(1 + x).mean() for x in fake) / 2)
    assert setting.roles["teacher"].evaluations == 6  # the student's features are not computed again


def test_heads_that_take_all_for_real_suspect_nothing():
    setting, made = Setting(), batch(size=3)
    sure = {}
    for bias in (-50.0, 0.0, 50.0):
        for head in setting.roles["heads"].module.H:
            torch.nn.init.zeros_(head.logit.weight)
            torch.nn.init.constant_(head.logit.bias, bias)
        sure[bias] = setting.method.judge(made.trajectory[:, -1], made.at(0))["heads"]
    for bias, said in {-50.0: 1.0, 0.0: 0.5, 50.0: 0.0}.items():
        assert_close(sure[bias], torch.full((3,), said))


def test_most_samples_start_from_noise_and_judging_levels_are_logit_normal():
    method = LADD(steps=4, shift=5.0, from_noise=0.7, noised=(0.5, 2.0))
    made = toys.batch(4000)
    t = method.student_level(made)
    shares = [(t - level).abs().lt(1e-6).float().mean().item() for level in flow.grid(4, 5.0)[:-1]]
    assert shares == pytest.approx([0.7, 0.1, 0.1, 0.1], abs=0.03)
    normal = torch.logit(method.noised_level(made).double())
    assert normal.mean().item() == pytest.approx(0.5, abs=0.1) and normal.std().item() == pytest.approx(2.0, abs=0.1)


def test_a_student_of_one_step_always_starts_from_noise():
    assert LADD(steps=1).student_level(toys.batch(50)).unique().tolist() == [1.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"head_width": 12}, "head_width is 12; it needs a multiple of 8"),
        ({"feature_depths": (0.5, 1.5)}, r"feature_depths is \[0.5, 1.5\]; .* at most 1"),
        ({"feature_depths": ()}, r"feature_depths is \[\]"),
    ],
)
def test_options_that_cannot_be_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        LADD(**options)
