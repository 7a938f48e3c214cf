"""DMD2's GAN term: whom it moves, through what, and what it costs."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import softplus
from torch.testing import assert_close

from distill import flow
from distill.batch import Batch, Clips, Condition
from distill.descent import descend
from distill.engine import Engine, Role
from distill.networks import Net
from distill_methods.dmd import DMD
from distill_methods.dmd2 import DMD2
from tests import runs, tiny_wan
from tests.test_accvideo import OPTIM, SHAPE, Small, same
from tests.test_dmd import stop_after

NETWORKS = ("student", "fake_score", "heads")


def batch(seed: int = 0, size: int = 2) -> Batch:
    """Prompts that say 1, real videos whose captions say 2."""
    g = torch.Generator().manual_seed(seed)
    cond, negative, caption = (Condition(text=torch.full((size, 1, 1), value)) for value in (1.0, 0.0, 2.0))
    made = Batch(["a prompt"] * size, cond, negative, list(range(size)), SHAPE, seed)
    made.video = Clips(torch.randn(size, *SHAPE, generator=g), ["a caption"] * size, caption)
    return made


class Setting:
    """A method among real roles, as a run has it, its head awake."""

    def __init__(self, method):
        self.method = method
        torch.manual_seed(0)
        modules = {"teacher": Small(), "student": Small(1), "fake_score": Small(2)}
        if isinstance(method, DMD2):
            modules["heads"] = method.build_heads(Small)
            torch.nn.init.normal_(modules["heads"].head.logit.weight, std=0.3)
        self.roles = {name: Role(name, module) for name, module in modules.items()}
        for name, role in self.roles.items():
            setattr(method, name, Net(role))
            role.prepare(SimpleNamespace(**vars(OPTIM)), 100)
        self.engine = Engine()

    def step(self, n: int, *batches: Batch) -> list[dict]:
        return [
            descend(update, list(batches), position, self.roles, self.engine, None)
            for position, update in enumerate(self.method.updates(n))
        ]

    def weights(self) -> dict:
        return {name: copy.deepcopy(role.module.state_dict()) for name, role in self.roles.items()}


def method(**options) -> DMD2:
    return DMD2(**{"head_width": 8} | options)


def test_each_update_moves_its_own_network():
    setting = Setting(method())
    for n, names in ((0, ["student", "fake_score", "heads"]), (1, ["fake_score", "heads"])):
        b = batch(n)
        updates = list(setting.method.updates(n))
        assert [update.network for update in updates] == names
        for position, update in enumerate(updates):
            before = setting.weights()
            descend(update, [b], position, setting.roles, setting.engine, None)
            moved = [name for name, w in setting.weights().items() if not same(w, before[name])]
            assert moved == [update.network]


def test_the_student_is_judged_on_the_fake_scores_features():
    """The loss and its gradient in the samples, restated; zero while the head knows nothing."""
    setting = Setting(method(feature_depth=0.667))
    x = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(3)).requires_grad_()
    b = batch()
    found = setting.method.terms(x, b)["adversarial"]
    (pushed,) = torch.autograd.grad(found, x)
    b.at(0)
    fake_score, judge = setting.roles["fake_score"].module, setting.roles["heads"].module
    t, eps = setting.method.score_time(b), b.noise()
    T = t.view(2, 1, 1, 1, 1)
    (h,) = fake_score((1 - T) * x + T * eps, t, b.cond, features=[2])
    expected = 5e-3 * softplus(-judge.head(h)).mean()
    assert_close(found, expected)
    assert_close(pushed, torch.autograd.grad(expected, x)[0])
    torch.nn.init.zeros_(judge.head.logit.weight)
    b.at(0)
    assert (torch.autograd.grad(setting.method.terms(x, b)["adversarial"], x)[0] == 0).all()


def test_fake_score_and_head_descend_one_loss():
    """As in a joint update: gradients of the same number, real videos under their captions, at one noise level."""
    setting = Setting(method())
    b = batch()
    with torch.no_grad():
        x = setting.method.generate(b, 1)
    b.at(0)
    for role in setting.roles.values():
        role.module.requires_grad_(True)
    terms = setting.method.fake_terms(x, b.cond, b)
    b.at(0)
    t, first, second = setting.method.score_time(b), b.noise(), b.noise()
    fake_score, judge = setting.roles["fake_score"].module, setting.roles["heads"].module
    (fake,) = fake_score(flow.mix(x, first, t), t, b.cond, features=[2])
    (real,) = fake_score(flow.mix(b.video.latents, second, t), t, b.video.cond, features=[2])
    assert_close(terms["real"], 1e-2 * softplus(-judge.head(real)).mean())
    assert_close(terms["fake"], 1e-2 * softplus(judge.head(fake)).mean())
    both = terms["real"] + terms["fake"]
    again = setting.method.heads_loss(b)
    assert_close(again["real"] + again["fake"], both)
    parameters = list(judge.parameters())
    assert_close(torch.autograd.grad(sum(again.values()), parameters), torch.autograd.grad(both, parameters))


def test_the_rest_is_dmd():
    """The term is one more evaluation of the fake score's first blocks, and in its own update two."""
    gan, plain = Setting(method()), Setting(DMD())
    gan.method.draw = plain.method.draw = lambda batch, step: [3, 3]
    student, fake, heads = gan.step(0, batch())
    alone, alone_fake = plain.step(0, batch())
    assert student["terms"].keys() - alone["terms"].keys() == {"adversarial"}
    assert student["evaluations"] == alone["evaluations"] | {"fake_score": 4, "heads": 2}
    assert fake["evaluations"] == alone_fake["evaluations"] | {"fake_score": 6, "heads": 4}
    assert heads["evaluations"] == {"heads": 4}


class Made(DMD2):
    """DMD2 on videos that are made up, until there is a store of real ones."""

    data = ("prompts",)

    def fake_terms(self, x, cond, batch):
        batch.video = Clips(torch.tanh(2 * batch.noise()), batch.prompts, batch.cond)
        return super().fake_terms(x, cond, batch)


def test_seven_steps_are_five_and_two(tmp_path):
    """Stopped before each of the updates of a step: bit for bit."""
    teacher = tiny_wan.build(tmp_path / "teacher")
    options = "{name: 'tests.test_dmd2:Made', student_every: 2, head_width: 8}"
    path = runs.write(tmp_path / "whole", teacher, options, NETWORKS)
    whole = runs.final(runs.train(path, "train.steps=7"))
    for done in (10, 11, 12):
        path = runs.write(tmp_path / str(done), teacher, options, NETWORKS)
        stop_after(path, done)
        runs.assert_same(whole, runs.final(runs.train(path, "train.steps=7")))


def test_a_width_that_has_no_groups_is_refused():
    with pytest.raises(ValueError, match="head_width is 12; it needs a multiple of 8"):
        DMD2(head_width=12)
