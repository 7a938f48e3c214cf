"""What critics think of clips: closed forms, the same noise for both sides, and a run whose critic never moves."""

import math

import pytest
import torch

from distill import losses, report, track, validation
from distill_methods.accvideo import AccVideo
from distill_methods.dmd import DMD

from . import gaussian_teacher as gaussian
from . import runs, test_accvideo, test_dmd2, test_validation, tiny_wan, toys


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_fake_score_is_as_sure_as_it_is_nearer_than_the_teacher(share):
    """Flows to single points: errors at x are as the squared distances from the points, at any noise level."""
    method = toys.place(DMD(), teacher=toys.straight(-1.0), fake_score=toys.straight(2.0))
    batch = toys.batch(3)
    x = torch.full((3, *batch.shape), -1.0 + 3.0 * share)
    sure = method.judge(x, batch)["fake_score"]
    torch.testing.assert_close(sure, torch.full((3,), share**2 / (share**2 + (1 - share) ** 2)), rtol=1e-4, atol=1e-5)


def test_a_fake_score_that_never_moved_is_undecided():
    method = toys.place(DMD(), teacher=toys.curved, fake_score=toys.curved)
    x = torch.randn(2, 2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    assert method.judge(x, toys.batch())["fake_score"].tolist() == [0.5, 0.5]


def test_suspicion_is_the_mean_of_1_minus_d():
    logits = torch.tensor([[0.0, 0.0], [math.log(3), -math.log(3)], [math.log(3), math.log(3)]]).view(3, 1, 1, 2, 1)
    torch.testing.assert_close(losses.suspicion(logits), torch.tensor([0.5, 0.5, 0.25]))


def biased(head, logit):
    """A head that says the same of everything."""
    torch.nn.init.zeros_(head.logit.weight)
    torch.nn.init.constant_(head.logit.bias, logit)


def test_dmd2_has_two_critics():
    setting = test_dmd2.Setting(test_dmd2.method())
    biased(setting.roles["heads"].module.head, math.log(3))
    batch = test_dmd2.batch()
    sure = setting.method.judge(batch.video.latents, batch)
    torch.testing.assert_close(sure["heads"], torch.full((2,), 0.25))
    assert list(sure) == ["fake_score", "heads"] and (sure["fake_score"] != 0.5).all()


def test_accvideos_critic_is_the_head_of_the_last_key_step_which_sees_clean_latents(monkeypatch):
    setting = test_accvideo.Setting()
    for k, head in enumerate(setting.roles["heads"].module.H):
        biased(head, math.log(3) if k == 0 else 9.0)
    seen, batch = [], test_accvideo.batch()
    features = setting.method.teacher.features
    monkeypatch.setattr(setting.method.teacher, "features", lambda *a: seen.append(a) or features(*a))
    x = batch.trajectory[:, -1]
    torch.testing.assert_close(setting.method.judge(x, batch)["heads"], torch.full((2,), 0.25))
    ((latents, level, _, _),) = seen
    assert latents is x and level.tolist() == [0.0, 0.0]


def test_a_method_without_an_adversarial_loss_has_no_critic():
    assert AccVideo(adversarial=0).judge(torch.zeros(2, 2, 3, 4, 5), toys.batch()) == {}


def test_both_sides_are_judged_from_the_same_noise_at_every_validation(tmp_path):
    """The mean over clips and draws, restated; the student is its noise by .3, the teacher by its Euler factor."""
    test_validation.teacher_clips(tmp_path, options := test_validation.recipe())
    asked = []

    def judge(x, batch):
        asked.append((x, batch.noise(), batch.prompts))
        return {"critic": (x + asked[-1][1]).abs().mean().view(1)}

    lines = [
        validation.clips(
            tmp_path,
            update,
            gaussian.GaussianTeacher(),
            lambda noise, cond: 0.3 * noise,
            gaussian.NoEmbeddings(),
            options,
            "cpu",
            judge,
        )
        for update in (20, 40)
    ]
    assert lines[0]["critics"] == lines[1]["critics"] and len(asked) == 2 * 2 * 2 * validation.DRAWS
    student, teacher = asked[0:16:2], asked[1:16:2]
    for (x, eps, prompt), (y, eps_y, prompt_y) in zip(student, teacher, strict=True):
        assert torch.equal(eps, eps_y) and prompt == prompt_y
        torch.testing.assert_close(x / 0.3, y / gaussian.euler_factor(48, test_validation.SHIFT), rtol=1e-3, atol=1e-3)
    assert len({eps.flatten()[0].item() for _, eps, _ in student}) == 8
    means = [torch.stack([(x + eps).abs().mean() for x, eps, _ in side]).mean() for side in (student, teacher)]
    assert list(lines[0]["critics"]["critic"].values()) == pytest.approx([m.item() for m in means], rel=1e-5)


DMD_METHOD = "{name: dmd, student_every: 2, guidance: 3.0}"


def test_a_run_whose_critic_never_moves_says_so_where_its_clips_are_not_alike(tmp_path):
    """Limits that no clips keep stand for clips that are not alike."""
    clips = {"prompts": ["a red circle", "a blue square"], "every": 4, "teacher_steps": [6], "guidance": 3.0}
    teacher = tiny_wan.build(tmp_path / "teacher")
    path = runs.write(tmp_path, teacher, DMD_METHOD, ("student", "fake_score"), validation=clips)
    changes = ["train.steps=4", "health.variety=[50, 60]", "optim.fake_score.lr=1e-12"]
    lines = track.read(runs.train(path, *changes))
    validations = {line["update"]: line["critics"]["fake_score"] for line in lines if line["kind"] == "validation"}
    assert validations[4] == {"student": pytest.approx(0.5, abs=1e-4), "teacher": pytest.approx(0.5, abs=1e-4)}
    said = [line for line in lines if line["kind"] == "health" and line["guard"] == "critic"]
    assert [line["update"] for line in said] == list(validations) and said[0]["curve"] == "fake_score"
    assert (
        said[0]["message"].startswith("fake_score has vanished") and "raise optim.fake_score.lr" in said[0]["message"]
    )
    chart = next(c for c in report.content(tmp_path / "run")["charts"] if "critics" in c.title)
    assert chart.flags == {"fake_score, student's clips": list(validations)} and chart.levels == {"undecided": 0.5}

    limits = ["health.variety=[0, 60]", "health.motion=[0, 60]", "health.saturation=[0, 60]"]
    quiet = runs.train(path, "train.steps=4", *limits, "optim.fake_score.lr=1e-12", f"output={tmp_path / 'quiet'}")
    assert not [line for line in track.read(quiet) if line["kind"] == "health"]
