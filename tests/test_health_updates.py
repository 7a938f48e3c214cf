"""Guards on every update: gradient norms beside their own past, values and weights that are not finite."""

import math

import pytest
import torch

from distill import checkpoint, health, report, track
from distill.engine import Role
from distill.errors import Stopped
from distill.recipe import Health

from . import runs, tiny_wan

OPTIONS = Health(window=4, gradients=(0.1, 10.0))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


def fired(norms, options=OPTIONS, network="student"):
    """The updates, counted from 1, after which the guard fires."""
    guard = health.Gradients(options)
    return [i for i, norm in enumerate(norms, 1) if guard.take(network, norm)]


def test_an_explosion_is_seen_at_the_end_of_its_window():
    assert fired([1.0] * 8 + [11.0] * 4 + [1.0] * 4) == [12]
    assert fired([1.0] * 8 + [9.0] * 4) == []


def test_gradients_that_vanish_are_seen():
    (at,) = fired([1.0] * 8 + [0.09] * 4)
    assert at == 12
    assert fired([1.0] * 8 + [0.11] * 4) == []


def test_a_single_odd_batch_is_none():
    assert fired([1.0] * 6 + [1e6] + [1.0] * 9) == []


def test_the_first_window_is_a_warm_up():
    assert fired([1e3, 1e-3, 1e3, 1e-3]) == []


def test_gradients_that_grow_by_a_little_all_the_time_become_usual():
    assert fired([1.005**i for i in range(600)]) == []  # twentyfold in the end


def test_a_network_whose_gradients_were_0_may_start_to_learn():
    """A discriminator's last layer starts at 0, and so does what the student gets from it."""
    assert fired([0.0] * 5 + [1e-3] * 15) == []


def test_each_network_has_a_past_of_its_own_and_each_stage_too():
    guard = health.Gradients(OPTIONS)
    taken = [guard.take(*each) for each in [("student", 1.0), ("critic", 100.0)] * 8]
    assert not any(taken)
    guard.begin()
    assert not any(guard.take("student", 100.0) for _ in range(4))


def test_an_alarm_names_the_network_and_what_to_change():
    guard = health.Gradients(OPTIONS)
    alarms = [alarm for norm in [0.5] * 4 + [50.0] * 4 for alarm in guard.take("critic", norm)]
    assert [(alarm.guard, alarm.curve) for alarm in alarms] == [("gradients", "critic")]
    said = alarms[0].message
    assert said.startswith("the gradients of critic explode: their norm is 50, usual was 0.5, expected 0.1 to 10 times")
    assert "(health.gradients)" in said and "lower its lr" in said and "(optim.critic)" in said


def test_a_guard_that_was_saved_goes_on_as_if_it_had_not_stopped():
    norms = [1.0] * 8 + [11.0] * 4 + [0.01] * 4
    whole, resumed = health.Gradients(OPTIONS), health.Gradients(OPTIONS)
    said = [whole.take("student", norm) for norm in norms]
    again = []
    for norm in norms:
        state, resumed = resumed.state(), health.Gradients(OPTIONS)
        resumed.load_state(state)
        again.append(resumed.take("student", norm))
    assert again == said and sum(map(len, said)) == 2


def spoilt(monkeypatch, at, by):
    """GPD's loss multiplied at its at-th call."""
    from distill_methods.gpd import GPD

    loss, calls = GPD.loss, []

    def sick(self, batch, i):
        calls.append(i)
        terms = loss(self, batch, i)
        return {name: value * by(len(calls)) for name, value in terms.items()} if len(calls) >= at else terms

    monkeypatch.setattr(GPD, "loss", sick)


LONG = "method.iterations=[24, 4]"


def test_a_run_says_which_network_exploded_marks_its_curve_and_says_it_again_after_a_resume(
    teacher, tmp_path, monkeypatch
):
    """Interrupted at any update, the alarm comes at the same one."""
    path = runs.write(tmp_path, teacher)
    changes = [LONG, "health.window=4", "health.gradients=[0.1, 5.0]", "train.micro_batch_size=4"]
    with monkeypatch.context() as patch:
        spoilt(patch, 9, lambda call: 1000.0)
        whole = runs.train(path, *changes, f"output={tmp_path / 'whole'}")
    said = [line for line in track.read(whole) if line["kind"] == "health"]
    assert [(line["guard"], line["curve"], line["update"]) for line in said[:1]] == [("gradients", "student", 12)]
    chart = next(c for c in report.content(whole)["charts"] if c.title.startswith("Gradient norm"))
    assert chart.flags == {"student": [line["update"] for line in said]}

    with monkeypatch.context() as patch:
        spoilt(patch, 9, lambda call: 1000.0 if call < 11 else math.nan)
        with pytest.raises(Stopped, match="update 11 "):
            runs.train(path, *changes, f"output={tmp_path / 'run'}")
    with monkeypatch.context() as patch:
        spoilt(patch, 1, lambda call: 1000.0)
        run = runs.train(path, *changes, f"output={tmp_path / 'run'}")
    again = [line for line in track.read(run) if line["kind"] == "health"]
    assert [(line["update"], line["message"]) for line in again] == [(line["update"], line["message"]) for line in said]


def test_an_exploded_network_may_stop_the_run(teacher, tmp_path, monkeypatch):
    path = runs.write(tmp_path, teacher)
    changes = [LONG, "health.window=4", "health.gradients=[0.1, 5.0]", "health.stop=[gradients]"]
    spoilt(monkeypatch, 17, lambda call: 1000.0)  # two micro-batches for each update
    with pytest.raises(Stopped, match=r"update 12: health\.stop names gradients.*update_00000012") as stopped:
        runs.train(path, *changes)
    assert stopped.value.code == 1


def test_a_value_that_is_not_finite_names_network_term_step_and_the_last_norms(teacher, tmp_path, monkeypatch):
    path = runs.write(tmp_path, teacher)
    spoilt(monkeypatch, 5, lambda call: math.inf)
    with pytest.raises(Stopped) as stopped:
        runs.train(path, "train.micro_batch_size=4", "output=" + str(tmp_path / "run"))
    said = str(stopped.value)
    norms = [line["grad_norm"] for line in track.read(tmp_path / "run") if line["kind"] == "update"]
    assert "update 5 (stage 1 of 2, step 2)" in said and "student/velocity is inf" in said
    assert f"its last gradient norms were {', '.join(f'{norm:.3g}' for norm in norms[-3:])}" in said
    lr = 1e-3 * (1 + math.cos(math.pi * 4 / 5)) / 2
    assert f"learning rate {lr:.3g};" in said and "update_00000004" in said and stopped.value.code == 1


def test_norms_that_rose_before_point_to_the_learning_rate_and_others_to_the_data():
    guard = health.Gradients(OPTIONS)
    assert guard.told("student") == "it is its first update"
    for norm in (1.0, 1.0, 1.1):
        guard.take("student", norm)
    assert "look at the data of this step" in guard.told("student")
    guard.take("student", 40.0)
    assert "1, 1.1, 40" in guard.told("student") and "look at the data" not in guard.told("student")


def test_weights_that_are_not_finite_are_never_saved(teacher, tmp_path, monkeypatch):
    path = runs.write(tmp_path, teacher)
    step, calls = Role.step, []

    def torn(self):
        step(self)
        calls.append(1)
        if len(calls) == 3:
            with torch.no_grad():
                self.parameters[0].view(-1)[0] = math.inf

    with monkeypatch.context() as patch, pytest.raises(Stopped) as stopped:
        patch.setattr(Role, "step", torn)
        runs.train(path)
    said = str(stopped.value)
    assert "update 3: student has weights that are not finite" in said and "its last gradient norms were" in said
    assert checkpoint.newest(tmp_path / "run", print).name == "update_00000002"
    assert all(torch.isfinite(value).all() for value in runs.final(runs.train(path)).values())
