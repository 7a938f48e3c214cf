"""Networks in pieces over processes (distill/zero.py) against plain ones: what each of them must not notice.

tests/zero_work.py has what the processes do. The methods under every stage: tests/test_conformance.py.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("deepspeed")

from distill import checkpoint, places, track, zero_config
from distill import recipe as recipes
from distill.errors import UserError
from distill.testing.places import together
from distill.testing.trial import numbers
from tests import runs, tiny_wan, zero_work

RECOMPUTED = "train.activation_checkpointing=full"
SELECTIVE = "train.activation_checkpointing=selective"
ZERO3 = ("engine=zero3", RECOMPUTED)
ROUNDED = ("optim.student.eps=1e-3",)  # with 1e-8 AdamW makes steps of lr out of rounding
SHOWN = {"prompts": ["a red circle", "blue square"], "teacher_steps": [2, 4]}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


def several(work, *arguments, processes: int = 2, cache: Path | None = None) -> None:
    together(work, arguments, processes, cache or Path(os.environ["DISTILL_CACHE"]))


def test_updates_equal_those_of_one_process():
    several(zero_work.updates_equal_those_of_one_process)


def test_what_is_not_finite_moves_nothing():
    several(zero_work.what_is_not_finite_moves_nothing)


def test_copies_and_averages_cross_places():
    several(zero_work.copies_and_averages_cross_places)


def test_gradients_pass_through_what_is_frozen():
    several(zero_work.gradients_pass_through_what_is_frozen)


def test_a_process_that_asks_more_is_not_alone():
    several(zero_work.a_process_that_asks_more_is_not_alone)


def test_other_gradients_are_refused():
    several(zero_work.other_gradients_are_refused)


def test_what_cannot_be_is_refused():
    several(zero_work.refusals)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 2)])
def test_moments_go_on_with_other_processes_and_stages(before, after, tmp_path):
    for number, (was, now) in enumerate(
        [("zero1", "zero3"), ("zero2", "zero2"), ("zero3", "zero3"), ("zero3", "zero2")]
    ):
        folder = tmp_path / str(number)
        folder.mkdir()
        several(zero_work.begin, str(folder), was, processes=before)
        several(zero_work.go_on, str(folder), now, processes=after)


def networks(run: Path) -> dict[str, torch.Tensor]:
    """What the newest checkpoint keeps of networks."""
    return {name: value for name, value in numbers(run).items() if name.startswith(("student", "prior"))}


def assert_near(run: Path, other: Path, tolerance: float = 1e-5) -> None:
    one, two = networks(run), networks(other)
    assert one.keys() == two.keys() and len(one) > 40
    far = {name: (one[name].float() - two[name].float()).abs().max().item() for name in one}
    assert max(far.values()) < tolerance, max(far, key=far.get)


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("engine", [("engine=zero2",), ZERO3], ids=["zero2", "zero3"])
def test_a_run_goes_on_with_other_processes(engine, before, after, teacher, tmp_path):
    """Five updates, a resume, two more, over a stage's end, with a moving average: the plain run's networks."""
    plain, run = (runs.write(tmp_path / name, teacher) for name in ("plain", "run"))
    several(zero_work.go, str(plain), 7, [*ROUNDED, "train.ema=0.9"], processes=1)
    several(zero_work.go, str(run), 5, [*ROUNDED, *engine, "train.ema=0.9"], processes=before)
    several(zero_work.go, str(run), 7, [*ROUNDED, *engine, "train.ema=0.9"], processes=after)
    assert_near(run.parent / "run", plain.parent / "run")


@pytest.mark.parametrize("engine", [("engine=zero1",), ZERO3], ids=["zero1", "zero3"])
def test_a_process_killed_while_it_writes_costs_one_checkpoint(engine, teacher, tmp_path):
    whole, torn = (runs.write(tmp_path / name, teacher) for name in ("whole", "torn"))
    several(zero_work.go, str(whole), 4, list(engine))
    with pytest.raises(UserError, match="killed|onnection|peer|gloo"):
        several(zero_work.half_written, str(torn), 4, list(engine))
    left = sorted(path.name for path in (torn.parent / "run/checkpoints").iterdir())
    assert left == ["update_00000001", "update_00000002.tmp"]
    several(zero_work.go, str(torn), 4, list(engine))
    runs.assert_same(numbers(torn.parent / "run"), numbers(whole.parent / "run"))


def test_a_damaged_file_of_another_process_is_passed_over_by_all(teacher, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    several(zero_work.go, str(recipe), 3, ["engine=zero2"])
    newest = checkpoint.newest(tmp_path / "run", print)
    assert newest.name == "update_00000003"
    file = newest / "optim_student_00001.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert "optim_student_00001" in checkpoint.damage(newest)
    several(zero_work.go, str(recipe), 4, ["engine=zero2"])
    log = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert [line["update"] for line in log if line["kind"] == "resume"] == [2]


def test_what_a_run_shows_is_made_by_all_processes(teacher, tmp_path):
    """Clips, critics' verdicts and the evaluation: each forward pass takes every process under zero3."""
    more = {"validation": {**SHOWN, "every": 4}, "evaluation": {**SHOWN, "samples": 3, "batch_size": 2}}
    plain, run = (runs.write(tmp_path / name, teacher, **more) for name in ("plain", "run"))
    several(zero_work.train, str(plain), [*ROUNDED, "train.ema=0.9"], processes=1, cache=tmp_path / "one")
    several(zero_work.train, str(run), [*ROUNDED, *ZERO3, "train.ema=0.9"], cache=tmp_path / "other")
    assert_near(run.parent / "run", plain.parent / "run")
    one, other = (json.loads((each.parent / "run/evaluation.json").read_text()) for each in (plain, run))
    assert other["distances"].keys() == one["distances"].keys() if "distances" in one else True
    for name, values in one["per_sample"].items():
        if isinstance(values, dict) and "rmse" in values:
            assert other["per_sample"][name]["rmse"] == pytest.approx(values["rmse"], rel=1e-3, abs=1e-5)
    for update in (4, 8, 9):
        clips = [each.parent / f"run/samples/update_{update:08d}/clips.json" for each in (plain, run)]
        first, second = (json.loads(path.read_text()) for path in clips)
        assert second["rmse"] == pytest.approx(first["rmse"], rel=1e-3)


@pytest.mark.parametrize("engine", [("engine=zero1",), ("engine=zero2",), ZERO3], ids=["zero1", "zero2", "zero3"])
def test_bf16_trains_beside_masters_in_float32(engine, teacher, tmp_path):
    """Near the plain run in bf16, which computes with float32 weights rounded; and what is kept is not rounded."""
    plain, run = (runs.write(tmp_path / name, teacher) for name in ("plain", "run"))
    several(zero_work.go, str(plain), 4, ["train.precision=bf16"], processes=1)
    several(zero_work.go, str(run), 4, ["train.precision=bf16", *engine])
    losses = [
        [line["loss"] for line in track.read(each.parent / "run") if line["kind"] == "update"] for each in (plain, run)
    ]
    assert losses[1] == pytest.approx(losses[0], rel=0.03)
    student = {name: value for name, value in networks(run.parent / "run").items() if name.startswith("student.")}
    assert all(value.dtype == torch.float32 for value in student.values())
    finer = [name for name, value in student.items() if not torch.equal(value, value.bfloat16().float())]
    assert len(finer) > 0.9 * len(student)


LAUNCHERS = {
    "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
    "accelerate": ["accelerate.commands.launch", "--config_file", "accelerate.yaml"],
}
ACCELERATE = """\
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
deepspeed_config: {zero_stage: 0}
use_cpu: true
num_machines: 1
num_processes: 2
machine_rank: 0
"""


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_other_launchers_and_the_command_line(launcher, teacher, tmp_path, monkeypatch):
    recipe = runs.write(tmp_path, teacher)
    monkeypatch.chdir(tmp_path)
    Path("accelerate.yaml").write_text(ACCELERATE)
    line = [sys.executable, "-m", *LAUNCHERS[launcher], "-m", "distill", "run", recipe]
    line += ["engine=zero2", "checkpoint.every=5"]
    done = subprocess.run(line, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    plain = runs.write(tmp_path / "plain", teacher)
    several(zero_work.go, str(plain), 9, [], processes=1)
    assert_near(tmp_path / "run", tmp_path / "plain/run", 1e-3)


def test_one_process_needs_no_launcher(teacher, tmp_path):
    """Twice, since a process may do several runs."""
    for name, engine, kept in (("one", "zero2", RECOMPUTED), ("other", "zero3", SELECTIVE)):
        run = runs.train(runs.write(tmp_path / name, teacher), *ROUNDED, kept, f"engine={engine}")
        assert "LOCAL_RANK" not in os.environ
        plain = runs.train(runs.write(tmp_path / f"plain_{name}", teacher), *ROUNDED)
        assert_near(run, plain)


def test_without_deepspeed_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "deepspeed", None)
    with pytest.raises(UserError, match=r"^engine asks for ZeRO.*pip install 'distill\[deepspeed\]'.*engine=ddp$"):
        zero_config.library()


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ("{teacher: zero2}", "engine.teacher: zero2 spreads gradients and moments"),
        ("{prior: {sharding: zero3, offload: [optimizer]}}", "engine.prior: offload: it is not trained"),
        ("{student: {sharding: zero2, offload: [parameters]}}", "offload: parameters needs zero3, sharding is zero2"),
        ("{student: {offload: [optimizer]}}", "engine.student: offload needs zero1, zero2 or zero3"),
        ("{studnet: zero2}", "engine.studnet: the method has no such network, did you mean 'student'"),
    ],
)
def test_places_that_cannot_be(engine, said, teacher, tmp_path):
    with pytest.raises(UserError) as fault:
        recipes.load(runs.write(tmp_path, teacher), [f"engine={engine}"])
    assert said in str(fault.value) and len(str(fault.value).splitlines()) == 1


@pytest.mark.parametrize("engine", ["zero3", "{teacher: {sharding: zero3}}"])
def test_what_is_gathered_layer_by_layer_is_not_compiled(engine, teacher, tmp_path):
    recipe = runs.write(tmp_path, teacher)
    with pytest.raises(UserError, match=r"train\.compile: zero3 gathers weights layer by layer.*or zero2$"):
        recipes.load(recipe, [f"engine={engine}", "train.compile=true"])
    recipes.load(recipe, ["engine=zero2", "train.compile=true"])


def test_a_word_for_all_means_what_can_be():
    settled = {kind: places.settled("zero2", kind, kind).sharding for kind in ("Frozen", "Copy", "Trained", "Built")}
    assert settled == {"Frozen": "ddp", "Copy": "ddp", "Trained": "zero2", "Built": "ddp"}
    assert places.settled("zero3", "teacher", "Frozen").sharding == "zero3"
    student = places.settled("zero2", "student", "Trained")
    assert places.settled("zero2", "student_ema", "Average", student).sharding == "zero3"
    assert places.settled({"teacher": "zero3"}, "average", "Average", places.Place()).sharding == "ddp"


def test_moments_are_laid_over_each_other_whatever_the_cuts():
    found = torch.zeros(10)
    for start, end in ((0, 4), (4, 5), (5, 13)):  # those of another number of processes
        zero_work.zero_moments._lay(found, 2, torch.arange(13.0)[start:end], start)
    assert found.tolist() == list(range(2, 12))
