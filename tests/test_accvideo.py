"""AccVideo's identities, each against a closed form or a naive restatement of the paper."""

import copy
import io
import math
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from distill import flow, losses, samplers
from distill.batch import Batch, Condition
from distill.descent import descend
from distill.engine import Engine, Role
from distill.networks import Net
from distill_methods.accvideo import AccVideo, Head, Heads
from tests import tiny_wan, toys
from tests.test_gpd import Table

SHAPE = (2, 3, 4, 6)
OPTIM = SimpleNamespace(lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01, schedule="constant", warmup=0)
SMOOTH = SimpleNamespace(**{**vars(OPTIM), "eps": 1e-3})  # with 1e-8, rounding decides where a gradient is 0
FORMS = ["non_saturating", "saturating", "hinge"]


class Small(nn.Module):
    """A network of three blocks with a patch of (1, 2, 2); its depth is 3 and its width 6."""

    depth, width = 3, 6

    def __init__(self, seed: int = 0):
        super().__init__()
        self.patch = nn.Conv3d(SHAPE[0], self.width, (1, 2, 2), (1, 2, 2))
        self.blocks = nn.ModuleList(nn.Conv3d(self.width, self.width, 3, padding=1) for _ in range(self.depth))
        self.out = nn.ConvTranspose3d(self.width, SHAPE[0], (1, 2, 2), (1, 2, 2))
        g = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=g))

    def forward(self, x, sigma, cond, features=None):
        h, found = self.patch(x) + flow.like(sigma, x) + toys.text(cond, x), []
        for block in self.blocks[: max(features or [self.depth])]:
            found.append(h := torch.tanh(block(h)))
        return self.out(h) if features is None else [found[i - 1] for i in features]


class Setting:
    """A method among real roles, as a run has it."""

    def __init__(self, student_seed: int = 0, optim=OPTIM, **options):
        self.method = AccVideo(**{"head_width": 8} | options)
        torch.manual_seed(0)
        modules = {"teacher": Small(), "student": Small(student_seed), "heads": self.method.build_heads(Small)}
        self.roles = {name: Role(name, module) for name, module in modules.items()}
        for name, role in self.roles.items():
            setattr(self.method, name, Net(role))
        for name in ("student", "heads"):
            self.roles[name].prepare(optim, 100)
        self.engine = Engine()

    def rouse(self, seed: int = 7) -> "Setting":
        """Give the heads' last layers weights, which are zero before training."""
        g = torch.Generator().manual_seed(seed)
        for head in self.roles["heads"].module.H:
            head.logit.weight.data = 0.3 * torch.randn(head.logit.weight.shape, generator=g)
        return self

    def step(self, n: int, *batches: Batch) -> list[dict]:
        """All updates of step n, as the trainer makes them."""
        return [
            descend(update, list(batches), position, self.roles, self.engine, None)
            for position, update in enumerate(self.method.updates(n))
        ]

    def weights(self, name: str) -> dict:
        return {k: v.clone() for k, v in self.roles[name].module.state_dict().items()}


def batch(step: int = 0, m: int = 5, size: int = 2, micro: int = 0) -> Batch:
    """Records of random latents; sample i's condition is i, and so is the first pixel of each of its latents."""
    g = torch.Generator().manual_seed(100 * step + micro)
    index = [1000 * step + size * micro + i for i in range(size)]
    cond = Condition(text=torch.tensor(index).float().view(size, 1, 1) / 1000)
    made = Batch(["a prompt"] * size, cond, cond, index, SHAPE, seed=3)
    made.trajectory = torch.randn(size, m + 1, *SHAPE, generator=g)
    made.trajectory[..., 0, 0, 0, 0] = cond["text"].view(size, 1)
    return made


def same(one: dict, other: dict) -> bool:
    return all(torch.equal(one[k], other[k]) for k in one)


# Key steps and the trajectory loss


def recorded(velocity, b: Batch, n: int, shift: float, entries: list[int]):
    """The latents of n Euler steps, at some entries of the grid, naively."""
    x, path = b.noise().double(), []
    levels = flow.grid(n, shift).tolist()
    for i, sigma in enumerate(levels):
        path.append(x)
        if i < n:
            x = x + (levels[i + 1] - sigma) * velocity(x, torch.full((len(x),), sigma).double(), b.cond)
    return torch.stack([path[i] for i in entries], 1).float()


def targets(method: AccVideo, b: Batch) -> list:
    """What eq. 6 would have the student say, for each k: from the gradient of the loss in a student that says 0."""
    found = []
    for k in range(method.m):
        v = torch.zeros(len(b), *SHAPE, requires_grad=True)
        toys.place(method, student=lambda *_, v=v: v)
        method.trajectory_loss(b, k)["trajectory"].backward()
        found.append(-v.grad * v.numel() / 2)
    return found


@pytest.mark.parametrize("n", [4, 12])
def test_the_teacher_has_learned_its_own_single_steps(n):
    """A1: m = n and student = teacher."""
    method, b = AccVideo(steps=n, recorder_steps=n), toys.batch(shape=SHAPE)
    b.trajectory = recorded(toys.curved, b, n, 5.0, range(n + 1))
    toys.place(method, student=toys.curved)
    assert all(method.trajectory_loss(b, k)["trajectory"] < 1e-8 for k in range(n))


def test_targets_telescope_to_the_whole_path():
    """A2."""
    method, b = AccVideo(), batch()
    t = [0, 5 / 9, 10 / 13, 15 / 17, 20 / 21, 1]
    moved = sum((t[k] - t[k + 1]) * target for k, target in enumerate(targets(method, b)))
    assert_close(moved, b.trajectory[:, -1] - b.trajectory[:, 0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("entries", [None, [0, 3, 5, 6]])
def test_a_student_without_loss_lands_on_the_stored_latents(entries):
    """A3, on the paper's key steps and on others."""
    method = AccVideo(steps=3, recorder_steps=6, key_indices=entries)
    b = toys.batch(shape=SHAPE)
    b.trajectory = recorded(toys.curved, b, 6, 5.0, entries or [0, 2, 4, 6])
    exact = targets(method, b)

    def student(x, sigma, cond):
        return exact[min(range(3), key=lambda k: abs(method.t[k + 1] - sigma[0].item()))]

    toys.place(method, student=student)
    assert all(method.trajectory_loss(b, k)["trajectory"] < 1e-9 for k in range(3))
    assert_close(method.sample(b.trajectory[:, 0], b.cond), b.trajectory[:, -1], atol=1e-5, rtol=0)


def test_the_key_steps_are_every_tenth_of_the_recorder():
    """A4: shift 7 gives the paper's 1, .9651 (.9655), .9130, .8235, .6363, 0; Wan's are of shift 5."""
    printed = [1, 0.9655, 0.9130, 0.8235, 0.6363, 0]
    assert AccVideo(shift=7.0).grid().tolist() == pytest.approx(printed, abs=1e-4)
    assert AccVideo().grid().tolist() == pytest.approx([1, 0.9524, 0.8824, 0.7692, 0.5556, 0], abs=5e-5)
    for m in (1, 5, 10, 25, 50):
        assert_close(AccVideo(steps=m).grid(), flow.grid(m, 5.0), atol=1e-12, rtol=0)
    uniform = AccVideo(shift=7.0, key_indices=[0, 31, 41, 46, 48, 50]).grid()
    assert uniform.tolist() == pytest.approx([1, 0.8109, 0.6057, 0.3783, 0.2258, 0], abs=1e-4)


@pytest.mark.parametrize("options", [{}, {"shift": 7.0, "key_indices": [0, 31, 41, 46, 48, 50]}, {"steps": 10}])
def test_levels_fall_from_noise_to_data(options):
    """A5: what is asked of a store, in its order."""
    method = AccVideo(**options)
    levels = method.levels()
    assert levels.dtype == torch.float64 and levels[0] == 1 and levels[-1] == 0
    assert all(a > b for a, b in pairwise(levels.tolist()))
    recorder = flow.grid(50, method.shift)
    assert all(level in recorder.tolist() for level in levels.tolist())


# Queues


class Watched(nn.Module):
    """A student that notes the samples it was asked about: (sigma, x)."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = Small(), []

    def forward(self, x, sigma, cond):
        self.seen.append((sigma[0].item(), x.detach()))
        return self.net(x, sigma, cond)


@pytest.mark.parametrize("micro", [1, 3])
def test_queues_carry_each_rollout_to_its_end(micro):
    """A6: with a frozen student, what is popped at k is the deterministic rollout of its own noise; nothing is left."""
    method = AccVideo(adversarial=1.0)
    student = toys.place(method, student=Watched()).student.role.velocity
    for cycle in range(2):
        noises = [b.noise() for b in (batch(5 * cycle, micro=j) for j in range(micro))]
        student.seen.clear()
        for step in range(5):
            for j in range(micro):
                b = batch(5 * cycle + step, micro=j)
                b.cond = Condition(text=torch.zeros(2, 1, 1))  # so that the rollouts below need no prompts
                method.advance(b, 4 - step)
            assert [len(q) for q in method.Q] == [micro if k == 4 - step and k > 0 else 0 for k in range(6)]
        for j, x in enumerate(noises):
            for step in range(5):
                sigma, popped = student.seen[step * micro + j]
                assert sigma == pytest.approx(method.t[5 - step])
                assert_close(popped, x, atol=1e-6, rtol=0)
                level = torch.full((2,), method.t[5 - step])
                x = x + (method.t[4 - step] - method.t[5 - step]) * student.net(x, level, b.cond).detach()


@pytest.mark.parametrize("micro", [1, 2])
def test_generated_latents_face_real_ones_of_the_same_prompts(micro):
    """A7: prompts travel with them; the record drawn in an iteration feeds the trajectory loss alone."""
    method, asked = AccVideo(adversarial=1.0), []
    method.build_heads(Small)

    class Teacher(toys.Toy):
        def forward(self, x, sigma, cond, features):
            asked.append((sigma[0].item(), features, cond["text"].flatten().tolist(), x[:, 0, 0, 0, 0].tolist()))
            return [x[:, :, :, ::2, ::2]]

    toys.place(method, student=Small())
    method.teacher, method.heads = Net(Teacher(None)), Net(SimpleNamespace(forward=lambda f, *_, k: f))
    for step in range(5):
        for j in range(micro):
            method.adversarial_loss(batch(step, micro=j), 4 - step)
    for n, (fake, real) in enumerate(zip(asked[::2], asked[1::2], strict=True)):
        step, j = divmod(n, micro)
        mine = batch(0, micro=j)
        assert fake[:3] == real[:3]
        assert fake[:2] == (pytest.approx(method.t[4 - step]), [3 if step < 4 else 2])
        assert fake[2] == real[3] == mine.cond["text"].flatten().tolist()
        assert fake[3] != real[3]


def test_a_rollout_that_is_left_behind_is_noticed():
    """So no queue ever holds more than the micro-batches of one iteration."""
    method = toys.place(AccVideo(), student=Small())
    for j in range(2):
        method.advance(batch(0, micro=j), 4)
    method.advance(batch(1), 3)
    with pytest.raises(AssertionError, match="left behind"):
        method.advance(batch(2), 2)


def test_only_the_last_step_is_differentiated():
    """A12: d l_k / d beta = (t_k - t_{k+1}) d s(l_{k+1}) / d beta."""
    student, method = toys.Affine(), AccVideo()
    toys.place(method, student=student)
    for step in range(5):
        x = method.Q[5 - step].waiting[0][0] if step else batch().noise()
        l_gen, _, cond = method.advance(batch(step), 4 - step)
        (found,) = torch.autograd.grad(l_gen.square().sum(), student.weight)
        dt = method.t[4 - step] - method.t[5 - step]
        v = student(x, torch.full((2,), method.t[5 - step]), cond)
        assert_close(l_gen, x + dt * v)
        (expected,) = torch.autograd.grad((2 * l_gen.detach() * dt * v).sum(), student.weight)
        assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_queues_survive_an_interruption():
    """A15: stopped anywhere in a cycle, and gone on with from what a checkpoint holds."""
    for stop in (1, 3, 5, 9):
        one, other = Setting(student_seed=1), Setting(student_seed=1)
        for n in range(10):
            if n == stop:
                file = io.BytesIO()
                torch.save(other.method.state_dict(), file)
                file.seek(0)
                other.method = fresh = AccVideo(head_width=8)
                fresh.build_heads(Small)
                fresh.load_state_dict(torch.load(file, weights_only=True))
                for name, role in other.roles.items():
                    setattr(fresh, name, Net(role))
            lines = [each.step(n, batch(n, micro=0), batch(n, micro=1)) for each in (one, other)]
            assert lines[0] == lines[1]
        assert all(same(one.weights(name), other.weights(name)) for name in ("student", "heads"))


# The discriminator


def test_untrained_heads_know_nothing():
    """A8: D = 1/2 everywhere, and no gradient reaches what they look at."""
    head, ln2 = Head(6, 8), math.log(2)
    x = torch.randn(2, 6, 3, 4, 5, requires_grad=True)
    logits = head(x)
    assert logits.shape == (2, 1, 3, 4, 5) and (torch.sigmoid(logits) == 0.5).all()
    assert sum(losses.discriminator(logits, logits, "non_saturating")).item() == pytest.approx(2 * ln2)
    assert losses.generator(logits, "non_saturating").item() == pytest.approx(ln2)
    assert losses.generator(logits, "saturating").item() == pytest.approx(-ln2)
    losses.generator(logits, "non_saturating").backward()
    assert (x.grad == 0).all()
    assert all(p.grad.abs().sum() == 0 for n, p in head.named_parameters() if not n.startswith("logit"))


@pytest.mark.parametrize("form", FORMS)
def test_the_adversarial_losses_are_the_printed_ones(form):
    """Eq. 7 with D = sigmoid(logit), written with logarithms."""
    real, fake = torch.randn(2, 3, 4, 5, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    if form == "hinge":
        expected_d = ((1 - real).clamp(min=0).mean(), (1 + fake).clamp(min=0).mean())
        expected_g = -fake.mean()
    else:
        expected_d = (-torch.sigmoid(real).log().mean(), -(1 - torch.sigmoid(fake)).log().mean())
        saturating = (1 - torch.sigmoid(fake)).log().mean()
        expected_g = saturating if form == "saturating" else -torch.sigmoid(fake).log().mean()
    assert_close(losses.discriminator(real, fake, form), expected_d)
    assert_close(losses.generator(fake, form), expected_g)


def test_samples_of_one_law_teach_a_head_nothing():
    """A14: at logits 0 the gradient of L_D is the difference of means over real and fake features."""
    torch.manual_seed(0)
    head = Head(6, 8)
    real = torch.randn(512, 6, 1, 4, 4)
    gradients = []
    for fake in (real.flip(0), torch.randn(512, 6, 1, 4, 4), torch.randn(512, 6, 1, 4, 4) + 1):
        sum(losses.discriminator(head(real), head(fake), "saturating")).backward()
        gradients.append(head.logit.weight.grad.norm().item())
        head.zero_grad()
    assert gradients[0] < 1e-6
    assert gradients[1] < 0.05 * gradients[2]


def test_a_head_judges_frames_and_samples_by_themselves():
    torch.manual_seed(0)
    head = Head(6, 8)
    nn.init.normal_(head.logit.weight)
    x = torch.randn(3, 6, 4, 5, 5)
    whole = head(x)
    for b in range(3):
        for f in range(4):
            assert_close(whole[b, :, f], head(x[b : b + 1, :, f : f + 1])[0, :, 0], atol=1e-5, rtol=1e-5)


def test_heads_are_one_or_two_million_parameters_each():
    """METHODS 2b.1, at the widths of Wan 1.3B and 14B, HunyuanVideo and its like."""
    for width in (1536, 3072, 5120):
        count = sum(p.numel() for p in Head(width, 256).parameters())
        assert 1e6 < count < 3e6
    assert AccVideo().head_width == 256


@pytest.mark.parametrize(("depth", "noisy", "clean"), [(60, 60, 40), (30, 30, 20), (40, 40, 27), (5, 5, 3), (1, 1, 1)])
def test_features_come_from_the_papers_share_of_the_depth(depth, noisy, clean):
    method = AccVideo()
    heads = method.build_heads(SimpleNamespace(depth=depth, width=4))
    assert method.layers == [noisy, clean]
    assert len(heads.H) == 5


# Updates


def literal(setting: Setting, steps: int, form: str, two_step: bool):
    """Algorithm 1 with plain lists and optimizers, or its student's two updates made one."""
    teacher, student, heads = (copy.deepcopy(setting.roles[n].module) for n in ("teacher", "student", "heads"))
    for module in (student, heads):
        module.requires_grad_(True)
    lr = {"lr": 1e-3, "weight_decay": 0.01, "eps": SMOOTH.eps}
    adam = torch.optim.AdamW(student.parameters(), **lr)
    adams = [torch.optim.AdamW(head.parameters(), **lr) for head in heads.H]
    shifted = [5 * (j / 5) / (1 + 4 * (j / 5)) for j in range(6)]
    queues: list[list] = [[] for _ in range(6)]
    for n in range(steps):
        k, b = 4 - n % 5, batch(n)
        if k == 4:
            queues[5].append((b.at(1 if two_step else 0).noise(), b.trajectory, b.cond))
        t, s = shifted[k], shifted[k + 1]
        level = {u: torch.full((2,), u) for u in (t, s)}
        l_here, l_there = b.trajectory[:, 5 - k - 1], b.trajectory[:, 5 - k]
        traj = (student(l_here, level[s], b.cond) - (l_there - l_here) / (t - s)).square().mean()
        if two_step:
            adam.zero_grad()
            traj.backward()
            adam.step()
        gen, real, cond = queues[k + 1].pop(0)
        gen = gen + (t - s) * student(gen, level[s], cond)
        queues[k].append((gen.detach(), real, cond))
        block = [3 if k > 0 else 2]
        fake_logit = heads.H[k](teacher(gen, level[t], cond, features=block)[0])
        real_logit = heads.H[k](teacher(real[:, 5 - k], level[t], cond, features=block)[0])
        d, d_fake = torch.sigmoid(real_logit), torch.sigmoid(fake_logit)
        adv_d = -(d.log().mean() + (1 - d_fake).log().mean())
        adv_g = {"saturating": (1 - d_fake).log().mean(), "non_saturating": -d_fake.log().mean()}.get(form)
        if form == "hinge":
            adv_d = (1 - real_logit).relu().mean() + (1 + fake_logit).relu().mean()
            adv_g = -fake_logit.mean()
        of_head = torch.autograd.grad(0.1 * adv_d, list(heads.H[k].parameters()), retain_graph=True)
        adam.zero_grad()
        (0.1 * adv_g if two_step else traj + 0.1 * adv_g).backward()
        adam.step()
        for p, grad in zip(heads.H[k].parameters(), of_head, strict=True):
            p.grad = grad
        adams[k].step()
    return student, heads


@pytest.mark.parametrize("updates", ["summed", "two_step"])
@pytest.mark.parametrize("form", FORMS)
def test_two_cycles_are_algorithm_1(form, updates):
    setting = Setting(student_seed=1, optim=SMOOTH, loss=form, updates=updates).rouse()
    expected = literal(setting, 10, form, updates == "two_step")
    for n in range(10):
        lines = setting.step(n, batch(n))
        students = ["student", "student"] if updates == "two_step" else ["student"]
        assert [line["network"] for line in lines] == [*students, "heads"]
    for name, module in zip(("student", "heads"), expected, strict=True):
        assert_close(setting.weights(name), module.state_dict(), atol=2e-5, rtol=1e-4)


def test_without_the_adversarial_loss_nothing_but_the_trajectory_matters():
    """A9: lambda = 0 is bitwise a regression on the trajectories; the teacher is never asked, the heads never moved."""
    setting, plain = Setting(student_seed=1, adversarial=0.0), Role("student", Small(1))
    plain.prepare(OPTIM, 100)
    heads = setting.weights("heads")
    t = flow.grid(5, 5.0).flip(0).tolist()
    for n in range(7):
        k, b = 4 - n % 5, batch(n)
        (line,) = setting.step(n, b)
        assert line["evaluations"] == {"student": 2} and line["terms"].keys() == {"trajectory"}
        plain.module.requires_grad_(True)
        l_here, l_there = b.trajectory[:, 4 - k], b.trajectory[:, 5 - k]
        v = plain.forward(l_here, torch.full((2,), t[k + 1]), b.cond)
        (v - (l_there - l_here) / (t[k] - t[k + 1])).square().mean().backward()
        plain.clip(float("inf"))
        plain.step()
        plain.module.zero_grad()
    assert same(setting.weights("student"), plain.module.state_dict())
    assert same(heads, setting.weights("heads"))
    assert not any(len(q) for q in setting.method.Q)


def test_the_discriminator_alone_never_sees_the_trajectory_loss():
    setting = Setting(student_seed=1, trajectory=False).rouse()
    before = setting.weights("student")
    student, heads = setting.step(0, batch(0))
    assert student["terms"].keys() == {"adversarial"} and heads["terms"].keys() == {"real", "fake"}
    assert student["evaluations"] == {"teacher": 4, "student": 2, "heads": 2}
    assert not same(before, setting.weights("student"))


@pytest.mark.parametrize("heads", ["per_step", "single"])
def test_an_iteration_moves_its_own_head_only(heads):
    """A10, with weight decay and moments: after its first iteration a head rests until its turn comes again."""
    setting = Setting(student_seed=1, heads=heads).rouse()
    assert len(setting.roles["heads"].module.H) == (5 if heads == "per_step" else 1)
    for n in range(10):
        before = [copy.deepcopy(head.state_dict()) for head in setting.roles["heads"].module.H]
        setting.step(n, batch(n))
        now = [head.state_dict() for head in setting.roles["heads"].module.H]
        moved = [k for k, (a, b) in enumerate(zip(before, now, strict=True)) if not same(a, b)]
        assert moved == [4 - n % 5 if heads == "per_step" else 0]


def test_lambda_does_not_change_the_heads_updates():
    """A11: AdamW divides it out, up to eps."""
    optim = SimpleNamespace(**{**vars(OPTIM), "eps": 1e-12})
    settings = [Setting(student_seed=1, adversarial=c, optim=optim).rouse() for c in (0.1, 7.0)]
    for setting in settings:
        setting.step(0, batch(0))
    one, other = (setting.weights("heads") for setting in settings)
    for key in one:
        assert_close(one[key], other[key], atol=1e-6, rtol=1e-4)
    assert not same(one, Setting().rouse().weights("heads"))


@pytest.mark.parametrize("updates", ["summed", "two_step"])
def test_every_update_moves_its_network_and_no_other(updates):
    """G12: no weight of the teacher moves or keeps a gradient."""
    setting = Setting(student_seed=1, updates=updates).rouse()
    for n in range(5):
        b = batch(n)
        for position, update in enumerate(setting.method.updates(n)):
            before = {name: setting.weights(name) for name in setting.roles}
            descend(update, [b], position, setting.roles, setting.engine, 1.0)
            moved = [name for name in setting.roles if not same(before[name], setting.weights(name))]
            assert moved == [update.network]
            assert all(p.grad is None for role in setting.roles.values() for p in role.parameters)


# The whole algorithm


def test_five_learned_steps_do_what_fifty_recorded_ones_did():
    """Trained on recorded trajectories of Gaussian data, the student closes more than 9/10 of the teacher's gap."""
    method, data = AccVideo(adversarial=0.0), toys.Gaussian()
    toys.place(method, teacher=data, student=Table(method.t, data))
    adam = torch.optim.Adam(method.student.role.velocity.parameters(), lr=0.01)
    records = [toys.batch(64, shape=(1, 1, 4, 4), seed=seed) for seed in range(8)]
    for b in records:
        b.trajectory = recorded(data, b, 50, 5.0, range(0, 51, 10))
    for step in range(1000):
        b = records[step % len(records)]
        for position, update in enumerate(method.updates(step)):
            adam.zero_grad()
            sum(part["trajectory"] for part in update.loss(b.at(position))).backward()
            adam.step()
    noise = toys.batch(64, shape=(1, 1, 4, 4), seed=-1).noise()
    reference, coarse = (samplers.euler(method.teacher, noise, flow.grid(n, 5.0), None) for n in (50, 5))
    with torch.no_grad():
        gap, left = (coarse - reference).square().mean(), (method.sample(noise, None) - reference).square().mean()
    assert left < 0.1**2 * gap


@pytest.mark.parametrize("form", FORMS)
def test_the_discriminator_draws_the_student_to_the_real_law(form):
    """Without the trajectory loss: samples N(-2, 1) of a student that knows a constant come nearer to real N(0, 1)."""
    method = AccVideo(steps=1, trajectory=False, adversarial=1.0, head_width=8, loss=form)
    torch.manual_seed(0)
    heads = method.build_heads(SimpleNamespace(depth=1, width=1))
    shift = nn.Parameter(torch.tensor(2.0))
    toys.place(method, student=lambda x, *_: shift.expand_as(x))  # l_0 = z - shift
    method.teacher = Net(SimpleNamespace(forward=lambda x, *_, features: [x]))
    method.heads = Net(SimpleNamespace(forward=heads))
    adams = {"student": torch.optim.Adam([shift], lr=0.01), "heads": torch.optim.Adam(heads.parameters(), 0.01)}
    for step in range(150):
        b = toys.batch(8, shape=(1, 1, 4, 4), seed=step)
        b.trajectory = torch.randn(8, 2, 1, 1, 4, 4, generator=torch.Generator().manual_seed(step))
        for position, update in enumerate(method.updates(step)):
            parts = update.loss(b.at(position))
            terms = [t for part in ([parts] if isinstance(parts, dict) else parts) for t in part.values()]
            adams[update.network].zero_grad()
            sum(terms).backward()
            adams[update.network].step()
    assert abs(shift.item()) < 1.5


# On a real network


@pytest.fixture(scope="module")
def wan(tmp_path_factory):
    from distill.teachers.wan import Wan

    return Wan(tiny_wan.build(tmp_path_factory.mktemp("wan"), layers=6))


class WanSetting(Setting):
    def __init__(self, wan, **options):
        self.method = AccVideo(**{"head_width": 8} | options)
        modules = {"teacher": wan.network(), "student": wan.network(), "heads": self.method.build_heads(wan)}
        self.roles = {name: Role(name, module.eval()) for name, module in modules.items()}
        for name, role in self.roles.items():
            setattr(self.method, name, Net(role))
        for name in ("student", "heads"):
            self.roles[name].prepare(OPTIM, 100)
        self.engine = Engine()
        self.shape = wan.latent_shape(**tiny_wan.VIDEO)
        self.cond = wan.encode(["a red circle moves left .", "a blue square ."])

    def batch(self, step: int) -> Batch:
        made = Batch(["a", "b"], self.cond, self.cond, [2 * step, 2 * step + 1], self.shape, seed=0)
        made.trajectory = torch.randn(2, 6, *self.shape, generator=torch.Generator().manual_seed(step))
        return made


def test_the_teachers_gradient_reaches_the_student_and_no_weight_of_its_own(wan):
    """A13: through every block up to the feature layer; and the untouched trajectory loss is not what moves it."""
    setting = WanSetting(wan, trajectory=False).rouse()
    gradients = []
    student = setting.roles["student"].module.transformer.blocks[0].attn1.to_q.weight
    for n in range(5):
        before = setting.weights("teacher")
        with setting.engine.only(setting.roles["student"], setting.roles.values()):
            for part in setting.method.student_loss(setting.batch(n), 4 - n):
                part["adversarial"].backward()
            gradients.append(student.grad.abs().max().item())
            assert all(p.grad is None for name in ("teacher", "heads") for p in setting.roles[name].parameters)
        assert same(before, setting.weights("teacher"))
    assert len(gradients) == 5 and min(gradients) > 1e-8


@pytest.mark.parametrize("updates", ["summed", "two_step"])
def test_an_iteration_evaluates_the_networks_the_least_possible_number_of_times(wan, updates):
    """Student: 2 forward and backward. Teacher: features of fake, with gradient, and of real, without; no block behind
    the feature layer, no gradient of a weight. Counted by hooks on blocks, forward and backward, and in operations."""
    setting = WanSetting(wan, updates=updates).rouse()
    calls: list[tuple] = []
    for name in ("teacher", "student"):
        transformer = setting.roles[name].module.transformer
        for i, block in enumerate(transformer.blocks, 1):
            watch(calls, name, i, block)
        watch(calls, name, "head", transformer.proj_out)
    for n in range(5):
        b, deepest = setting.batch(n), 6 if n < 4 else 4
        calls.clear()
        lines = setting.step(n, b)
        blocks = [*range(1, 7), "head"]
        assert sorted(map(str, calls)) == sorted(
            map(
                str,
                2 * [("student", i, way) for i in blocks for way in ("forward with grad", "backward")]
                + [("teacher", i, "forward with grad") for i in range(1, deepest + 1)]
                + [("teacher", i, "backward") for i in range(1, deepest + 1)]
                + [("teacher", i, "forward") for i in range(1, deepest + 1)],
            )
        )
        counted = {}
        for line in lines:
            for name, count in line["evaluations"].items():
                counted[name] = counted.get(name, 0) + count / len(b)
        assert counted == {"student": 2, "teacher": 2, "heads": 3}


def watch(calls: list, name: str, i, block: nn.Module) -> None:
    def forward(module, inputs, output):
        grad = torch.is_grad_enabled()
        calls.append((name, i, "forward with grad" if grad else "forward"))
        if grad:
            output.register_hook(lambda _: calls.append((name, i, "backward")))

    block.register_forward_hook(forward)


def test_an_iteration_costs_the_bare_passes(wan):
    """In floating-point operations: nothing around the needed evaluations, and no weight gradients in the teacher."""
    setting = WanSetting(wan).rouse()
    with FlopCounterMode(display=False) as counter:
        setting.step(0, setting.batch(0))
    assert counter.get_total_flops() == bare_flops(setting)


def bare_flops(setting: WanSetting) -> int:
    teacher, student, heads = (copy.deepcopy(setting.roles[n].module) for n in ("teacher", "student", "heads"))
    sigma, b = torch.full((2,), 0.5), setting.batch(1)
    x = torch.randn(2, *setting.shape)
    with FlopCounterMode(display=False) as counter:
        student.requires_grad_(True)
        for _ in range(2):
            v = student(x, sigma, b.cond)
            v.square().mean().backward()
        x = x.requires_grad_()
        (fake,) = teacher(x, sigma, b.cond, features=[6])
        heads(fake, sigma, b.cond, k=4).mean().backward()
        with torch.no_grad():
            (real,) = teacher(x, sigma, b.cond, features=[6])
        heads.requires_grad_(True)
        (heads(real, sigma, b.cond, k=4).mean() + heads(fake.detach(), sigma, b.cond, k=4).mean()).backward()
    return counter.get_total_flops()


# Options


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 7}, "steps is 7; recorder_steps 50 needs one of 1, 2, 5, 10, 25, 50, or key_indices"),
        ({"key_indices": [0, 25, 50]}, "key_indices is .*; steps 5 needs 6 ascending ones, the first 0, the last 50"),
        ({"key_indices": []}, "steps 5 needs 6"),
        ({"key_indices": [0, 10, 10, 30, 40, 50]}, "6 ascending ones"),
        ({"key_indices": [0, 10, 20, 30, 40, 49]}, "the last 50"),
        ({"key_indices": [1, 10, 20, 30, 40, 50]}, "the first 0"),
        ({"trajectory": False, "adversarial": 0.0}, "no loss is left"),
        ({"head_width": 12}, "head_width is 12; it needs a multiple of 8"),
        ({"updates": "two_step", "trajectory": False}, "updates is two_step, but there is one loss"),
        ({"updates": "two_step", "adversarial": 0.0}, "updates is two_step, but there is one loss"),
        ({"heads": "single", "adversarial": 0.0}, "loss and heads have no effect"),
        ({"loss": "hinge", "adversarial": 0.0}, "loss and heads have no effect"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValueError, match=said):
        AccVideo(**options)


def test_key_steps_off_every_shifted_grid_are_compared_with_the_recorders_grid():
    method = AccVideo(shift=7.0, key_indices=[0, 31, 41, 46, 48, 50])
    with pytest.raises(ValueError, match="not a shifted grid"):
        flow.grid_shift(method.grid())
    assert method.teacher_shift() == 7.0
    assert AccVideo().teacher_shift() == flow.grid_shift(AccVideo().grid()) == 5.0


def test_heads_of_many_key_steps_and_one():
    assert [len(Heads(count, 6, 8).H) for count in (1, 10)] == [1, 10]
