"""`distill evaluate` on runs, exported students and teachers: tiny networks, the real command where it matters."""

import json
import os
import shutil
import signal
import sys
import time

import pytest
import torch

from distill import checkpoint, cli, export, flow, recipe, samplers, track
from distill.batch import generator
from distill.engine import Engine, Role
from distill.errors import UserError
from distill.evaluate import command, kept, opening
from distill.networks import Net
from distill.teachers.wan import Wan
from tests import runs, tiny_wan

PROMPTS = ["a red circle", "a blue square moves left", "red square"]
SECTION = {
    "prompts": PROMPTS,
    "samples": 4,
    "batch_size": 2,
    "teacher_steps": [2, 4],
    "guidance": 3.0,
    "metrics": ["rmse", "ssim", "flow", "kernel"],
}
COSTS = ("seconds",)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="module")
def run(teacher, tmp_path_factory):
    """Two steps of GPD, which evaluates itself at its end."""
    return runs.train(runs.write(tmp_path_factory.mktemp("run"), teacher, evaluation=SECTION))


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    return export.export(run, tmp_path_factory.mktemp("export") / "student")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def result(folder):
    return json.loads((folder / "evaluation.json").read_text())


def evaluated(source, out=None, teacher=None, **changes):
    """What the command says, and the file that it writes."""
    *said, last = command.run(str(source), changes, teacher=teacher and str(teacher), out=out)
    path = last.removeprefix("result: ")
    return "\n".join(said), json.loads(open(path).read())


def without_seconds(value):
    if isinstance(value, dict):
        return {key: without_seconds(inner) for key, inner in value.items() if key not in COSTS}
    return value


def test_the_command_writes_what_the_run_wrote_byte_for_byte(run):
    before = (run / "evaluation.json").read_bytes()
    said, _ = evaluated(run)
    assert (run / "evaluation.json").read_bytes() == before
    assert "teacher_4" in said and "of the gap of teacher_2" in said


def test_samples_made_anew_by_the_command_are_those_of_the_run(run, cache):
    found = evaluated(run, cache / "out")[1]
    assert without_seconds(found) == without_seconds(result(run))


def test_distances_are_those_of_a_naive_restatement(run, teacher):
    pipeline, found = Wan(teacher), result(run)
    net = Net(Role("teacher", pipeline.network().eval()))
    module = pipeline.network()
    module.load_state_dict(checkpoint.load_network(run, "student"))
    student = Net(Role("student", module.eval()))
    for j in range(4):
        shape = pipeline.latent_shape(5, 32, 48)
        noise = torch.randn(1, *shape, generator=generator("evaluation", 2000, j))
        cond, negative = pipeline.encode([PROMPTS[j % 3]]), pipeline.encode([pipeline.negative_prompt])
        with torch.no_grad():
            best = samplers.euler(net, noise, flow.grid(4, found["shift"]), cond, negative, 3.0)
            made = samplers.euler(student, noise, flow.grid(2, found["shift"]), cond)
        distance = (made - best).square().mean().sqrt().item()
        assert found["per_sample"]["student"]["rmse"][j] == pytest.approx(distance, rel=1e-3)


def test_operations_follow_from_the_number_of_evaluations(run):
    """Student and teacher have the same network, and guidance evaluates it twice."""
    found = result(run)["samplers"]
    assert {n: v["evaluations"] for n, v in found.items()} == {"teacher_2": 4, "teacher_4": 8, "student": 2}
    assert found["student"]["flop"] > 1e6
    assert found["teacher_4"]["flop"] == 4 * found["student"]["flop"] == 2 * found["teacher_2"]["flop"]


def test_a_student_with_other_numbers_of_steps_has_a_folder_of_its_own(run):
    said, found = evaluated(run, steps=(3, 2), metrics=("rmse",))
    assert found["samplers"]["student_3"]["steps"] == found["samplers"]["student_3"]["evaluations"] == 3
    assert "student_2" not in found["samplers"], "that is its own number"
    assert (run / "evaluations" / found["key"] / "evaluation.json").is_file()
    assert result(run)["key"] != found["key"] and "student_3" in said


def test_an_exported_student_has_the_run_s_numbers(run, exported, teacher, tmp_path):
    changes = {name: SECTION[name] for name in ("samples", "batch_size", "guidance")}
    changes |= {"prompts": write_prompts(tmp_path), "teacher_steps": (2, 4), "metrics": tuple(SECTION["metrics"])}
    _, found = evaluated(exported, tmp_path / "out", teacher, **changes)
    assert list(found["samplers"]) == ["teacher_2", "teacher_4", "student"]
    for name in ("rmse", "ssim", "flow"):
        mine, theirs = found["samplers"]["student"][name], result(run)["samplers"]["student"][name]
        assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-5), name


def test_a_teacher_is_measured_by_itself(teacher, tmp_path):
    changes = {"prompts": write_prompts(tmp_path), "teacher_steps": (6, 2, 3), "guidance": 2.0, "samples": 4}
    shutil.copytree(teacher, tmp_path / "teacher")
    settings = {"steps": 4, "guidance": 3.0, "video": {**tiny_wan.VIDEO, "fps": 8}}
    (tmp_path / "teacher" / "distill.json").write_text(json.dumps(settings))
    _, found = evaluated(tmp_path / "teacher", tmp_path / "out", metrics=("rmse", "flow"), **changes)
    assert list(found["samplers"]) == ["teacher_2", "teacher_3", "teacher_6"] and found["reference"] == "teacher_6"
    assert found["gap_closed"] == found["difference"] == {} and found["samplers"]["teacher_6"]["rmse"]["mean"] == 0


def test_no_folder_of_this_machine_is_named_in_the_result(run, teacher):
    text = (run / "evaluation.json").read_text()
    assert str(teacher.parent) not in text and os.path.expanduser("~") not in text
    assert result(run)["teacher"]["path"] == teacher.name


def test_latents_for_the_page_come_from_what_is_kept(run):
    opened = opening.open_evaluation(str(run), {}, Engine())
    student = opened.setting.columns[-1].sample
    opened.setting.columns = [never(column) for column in opened.setting.columns]
    latents = opened.latents("student", [3, 0])
    noise = [torch.randn(opened.setting.shape, generator=generator("evaluation", 2000, j)) for j in (3, 0)]
    with torch.no_grad():
        expected = student(torch.stack(noise), opened.setting.embeddings.get([PROMPTS[0], PROMPTS[0]]))
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-5)


def never(column):
    def refuse(noise, cond):
        raise AssertionError(f"{column.name} is sampled again")

    return type(column)(column.name, refuse, column.steps, column.identity)


def test_an_unfinished_run_is_evaluated_at_its_newest_checkpoint_and_says_so(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    newest = checkpoint.newest(tmp_path / "run", print)
    shutil.rmtree(newest)
    done = int(checkpoint.newest(tmp_path / "run", print).name.removeprefix("update_"))
    _, found = evaluated(tmp_path / "run", metrics=("rmse",))
    assert found["update"] == done == found["updates"] - 1
    assert f"the run is not finished: its student is that after update {done} of {done + 1}" in found["notes"]
    assert (tmp_path / "run" / "evaluations" / found["key"]).is_dir()


def test_prompts_that_the_run_was_trained_on_are_told(run, cache):
    held_out = ("a red circle moves left", "RED square!", "red square")
    _, found = evaluated(run, cache / "out", metrics=("rmse",), prompts=held_out)
    (line,) = [note for note in found["notes"] if "training prompts" in note]
    assert line.startswith("2 of 3 evaluation prompts (66.7%) are training prompts, 1 of them but for case")
    assert "'red square', 'RED square!'" in line
    _, found = evaluated(run, cache / "other", metrics=("rmse",), prompts=held_out[:1])
    assert found["notes"] == []


def test_several_processes_write_what_one_writes(run, cache):
    """Seconds are kept with the latents: the second command finds those of the first."""
    one = cache / "one"
    done = runs.command("evaluate", run, "--out", one, "--processes", 2)
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said
    assert said.count("result: ") == 1
    assert evaluated(run, cache / "two")[1] == result(one)
    assert without_seconds(result(one)) == without_seconds(result(run))


def test_a_killed_evaluation_goes_on_where_it_stopped(run, cache):
    out, files = cache / "out", cache / "evaluations" / "clips"
    changes = ["--samples", 60, "--batch-size", 1, "--metrics", "rmse"]
    killed = runs.command("evaluate", run, "--out", out, *changes)
    wait(lambda: len(list(files.rglob("*.safetensors"))) > 9)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (out / "evaluation.json").exists()
    before = {path: path.read_bytes() for path in files.rglob("*.safetensors")}
    assert len(before) < 60 * 3
    _, found = evaluated(run, out, samples=60, batch_size=1, metrics=("rmse",))
    assert {path: path.read_bytes() for path in before} == before, "costs and all: none was made again"
    assert len(found["per_sample"]["student"]["rmse"]) == 60


def test_ctrl_c_is_one_line_and_nothing_is_lost(run, cache):
    changes = ["--samples", 60, "--batch-size", 1, "--metrics", "rmse"]
    stopped = runs.command("evaluate", run, "--out", cache / "out", *changes)
    wait(lambda: len(list((cache / "evaluations" / "clips").rglob("*.safetensors"))) > 9)
    os.killpg(stopped.pid, signal.SIGINT)
    said = stopped.communicate(timeout=100)[0]
    assert stopped.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "SIGINT: what is done is kept; go on with the same command"


def test_processes_that_train_together_share_the_evaluation(teacher, cache):
    """Latents and seconds that the command finds are theirs, so the weights are, too."""
    path = runs.write(cache, teacher, evaluation=SECTION)
    done = runs.command("run", path, "--processes", 2)
    said = done.communicate(timeout=300)[0]
    assert done.returncode == 0, said
    before = (cache / "run" / "evaluation.json").read_bytes()
    evaluated(cache / "run")
    assert (cache / "run" / "evaluation.json").read_bytes() == before


def test_a_run_that_is_stopped_while_it_is_evaluated_goes_on_with_that(teacher, cache):
    many = SECTION | {"samples": 60, "batch_size": 1, "metrics": ["rmse"]}
    path, clips = runs.write(cache, teacher, evaluation=many), cache / "evaluations" / "clips"
    stopped = runs.command("run", path)
    wait(lambda: len(list(clips.rglob("*.safetensors"))) > 9)
    os.killpg(stopped.pid, signal.SIGTERM)
    said = stopped.communicate(timeout=100)[0]
    assert stopped.returncode == 130 and "Traceback" not in said
    assert "SIGTERM: the student is trained, and what was evaluated is kept; go on with" in said.splitlines()[-1]
    before = {path: path.read_bytes() for path in clips.rglob("*.safetensors")}
    kinds = [line["kind"] for line in track.read(runs.train(path))]
    assert kinds[-2:] == ["evaluation", "done"] and kinds.count("update") == 9
    assert len(before) < len(list(clips.rglob("*.safetensors"))) == 60 * 3
    assert {path: path.read_bytes() for path in before} == before, "costs and all: none was made again"


def wait(reached):
    deadline = time.monotonic() + 120
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def write_prompts(folder):
    (folder / "prompts.txt").write_text("\n".join(PROMPTS))
    return folder / "prompts.txt"


def test_a_folder_with_another_evaluation_is_left_alone(run, tmp_path):
    evaluated(run, tmp_path / "out", metrics=("rmse",))
    before = (tmp_path / "out" / "evaluation.json").read_bytes()
    with pytest.raises(UserError, match="is an evaluation of something else, or with other settings"):
        evaluated(run, tmp_path / "out", metrics=("rmse",), seed=1)
    assert (tmp_path / "out" / "evaluation.json").read_bytes() == before
    evaluated(run, tmp_path / "out", metrics=("rmse",))


def test_a_torn_result_is_written_anew(run, tmp_path):
    (tmp_path / "evaluation.json").write_text('{"key": "ab')
    assert evaluated(run, tmp_path)[1] == result(run)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["RUN", "--metrics", "rmse,smim"],
            "unknown metric 'smim', did you mean 'ssim'? (`distill metrics` lists them)",
        ),
        (["RUN", "--steps", "2,x"], "--steps 2,x: expected numbers of steps with commas between them, as in 2,4"),
        (["RUN", "--teacher-steps", "0"], "--teacher-steps 0: expected numbers of steps"),
        (["RUN", "--world"], "'a red circle' is no caption of the world"),
        (["RUN", "--teacher", "embedded"], "RUN is a run, which is measured against its own; leave it out"),
        (["TEACHER", "--samples", "2"], "there is no recipe with a section `evaluation` to take the settings from"),
        (["EMPTY"], "is neither a run (recipe.yaml) nor a pipeline's folder (model_index.json)"),
        (["absent"], "no teacher at absent: expected a folder in the diffusers layout or a hub id"),
        (
            ["EXPORTED", *["--guidance", "3", "--teacher-steps", "2,4"]],
            "name what it is measured against: --teacher PATH",
        ),
        (
            ["EXPORTED", *["--guidance", "3", "--teacher-steps", "2,4", "--teacher", "embedded"]],
            "--teacher embedded: its latents are [16, 3, 8, 12], those of EXPORTED are [4, 3, 8, 12]",
        ),
        (["TEACHER", *["--guidance", "3", "--teacher-steps", "2,4", "--steps", "2"]], "--steps is for a student"),
    ],
)
def test_what_does_not_fit_is_one_line(run, teacher, exported, tmp_path, monkeypatch, capsys, arguments, message):
    places = {"RUN": run, "TEACHER": teacher, "EXPORTED": exported, "EMPTY": tmp_path}
    if "--guidance" in arguments:
        arguments = [*arguments, "--prompts", write_prompts(tmp_path)]
    line = ["distill", "evaluate", *(str(places.get(word, word)) for word in arguments)]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as left:
        cli.main()
    for name, place in places.items():
        message = message.replace(name, str(place))
    (said,) = capsys.readouterr().err.splitlines()
    assert left.value.code == 2 and message in said


def test_a_run_without_a_student_is_refused(tmp_path):
    (tmp_path / "run").mkdir()
    written = recipe.load("recipes/interpolator_tiny.yaml", [f"output={tmp_path / 'run'}"])
    recipe.save(written, tmp_path / "run" / "recipe.yaml")
    with pytest.raises(UserError, match="is a run of interpolator, which trains no student"):
        evaluated(tmp_path / "run", prompts=write_prompts(tmp_path), guidance=2.0, teacher_steps=(2,))


def test_metrics_are_listed_without_torch():
    done = runs.command("metrics")
    said = done.communicate(timeout=60)[0]
    assert done.returncode == 0 and "ssim" in said and "kernel" in said


def test_a_recipe_that_names_a_metric_wrongly_is_a_fault_with_its_place(teacher, tmp_path):
    path = runs.write(tmp_path, teacher, evaluation=SECTION | {"metrics": ["rmse", "sim"]})
    done = runs.command("check", path)
    said = done.communicate(timeout=60)[0]
    assert done.returncode == 2 and "evaluation.metrics: unknown metric 'sim', did you mean 'ssim'" in said


def test_values_of_other_code_are_not_taken_for_those_of_this(run, cache, monkeypatch):
    evaluated(run, cache / "one", metrics=("rmse",))
    values = set((cache / "evaluations" / "values").rglob("*.json"))
    clips = {path: path.stat().st_size for path in (cache / "evaluations" / "clips").rglob("*.safetensors")}
    monkeypatch.setattr(kept, "code", lambda: "other")
    evaluated(run, cache / "two", metrics=("rmse",))
    assert len(set((cache / "evaluations" / "values").rglob("*.json"))) == 2 * len(values) > 0
    assert {path: path.stat().st_size for path in (cache / "evaluations" / "clips").rglob("*.safetensors")} == clips
