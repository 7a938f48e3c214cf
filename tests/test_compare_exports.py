"""Columns that are no plain run: exported students, and students at half the frame rate."""

import json
import shutil

import pytest

from distill import export, exported
from distill import recipe as recipes
from distill.compare import comparison, inputs
from distill.errors import UserError
from distill.evaluate import kept
from distill.teachers.wan import Wan

from . import runs, test_compare, tiny_wan
from .test_playback import written

DMD = "{name: dmd, student_every: 1, sigmas: table, shift: 3.0}"  # its export brings its own scheduler along


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return tiny_wan.build(tmp_path_factory.mktemp("teacher") / "pipeline")


@pytest.fixture(scope="module")
def home(teacher, tmp_path_factory):
    """home/gpd and home/dmd, trained, the second with a section half_rate; their exports beside them."""
    folder = tmp_path_factory.mktemp("exports")
    interpolator = str(written(folder / "interpolator", Wan(teacher)))
    gpd = runs.write(folder / "gpd", teacher, evaluation=test_compare.EVALUATION)
    half = {"interpolator": interpolator, "steps": 2}
    more = {"evaluation": test_compare.EVALUATION, "half_rate": half}
    dmd = runs.write(folder / "dmd", teacher, DMD, ("student", "fake_score"), **more)
    for path, changes in ((gpd, ()), (dmd, ("train.steps=2",))):
        export.export(runs.train(path, *changes), folder / f"{path.parent.name}_student")
    return folder


def compared(home, out, *given, **more):
    options = comparison.Options(changes={"metrics": ("rmse", "motion"), "samples": 4}, shown=1, **more)
    outcome = comparison.compare([home / name for name in given], test_compare.load, out, options, lambda line: None)
    return outcome, test_compare.read(out)


def column(made, key):
    return next(each for each in made["columns"] if each["key"] == key)


@pytest.mark.parametrize("name", ["gpd", "dmd"])
def test_an_exported_student_is_measured_as_its_run_is_and_from_what_is_kept(home, tmp_path, name):
    _, of_run = compared(home, tmp_path / "run", f"{name}/run")
    files = sorted(kept.folder().rglob("*.safetensors"))
    outcome, made = compared(home, tmp_path / "out", f"{name}_student")
    assert outcome.failures == [] and outcome.missing == 0
    assert sorted(kept.folder().rglob("*.safetensors")) == files, "its latents are the run's, which are kept"
    ours, theirs = column(made, name), column(of_run, name)
    assert ours["points"] == theirs["points"] and ours["label"] == theirs["label"] == name.upper()
    assert made["setting"] == of_run["setting"] and made["setting"]["shift"] == {"gpd": 5.0, "dmd": 3.0}[name]
    assert (ours["recipe"], ours["runs"], ours["curves"]) == (f"{name}_student", [f"{name}_student"], {})


def test_an_export_that_does_not_say_its_teachers_shift_is_taken_at_its_own_levels(home, tmp_path):
    older = shutil.copytree(home / "gpd_student", tmp_path / "older")
    change(older, teacher_shift=None)
    _, made = compared(tmp_path, tmp_path / "out", "older")
    assert made["setting"]["shift"] == 5.0


def test_what_training_took_is_what_the_export_says_and_else_unknown(home, tmp_path):
    _, of_run = compared(home, tmp_path / "run", "gpd/run")
    _, made = compared(home, tmp_path / "out", "gpd_student")
    ours, theirs = column(made, "gpd")["training"], column(of_run, "gpd")["training"]
    assert ours["evaluations"] == theirs["evaluations"] and ours["updates"] == theirs["updates"] == 9
    assert ours["seconds"] == pytest.approx(theirs["seconds"])
    assert ours["flop"] is ours["device"] is ours["days"] is None
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("unknown") == 4  # FLOP, device, device-days, and in the summary
    silent = shutil.copytree(home / "gpd_student", tmp_path / "silent")
    change(silent, cost=None)
    _, made = compared(tmp_path, tmp_path / "other", "silent")
    assert column(made, "gpd")["training"] is None
    assert (tmp_path / "other/index.html").read_text().count("unknown") == 2  # all of the row, and in the summary


def change(folder, **facts):
    said = exported.settings(folder) | facts
    (folder / "distill.json").write_text(json.dumps({key: value for key, value in said.items() if value is not None}))


def test_an_export_from_another_machine_stands_beside_a_run(home, teacher, tmp_path):
    """Its teacher and its prompts lay elsewhere; the teacher is known by its fingerprint."""
    moved = shutil.copytree(home / "gpd_student", tmp_path / "moved")
    recipe = exported.settings(moved)["recipe"]
    recipe["teacher"]["path"], recipe["data"]["prompts"] = "/elsewhere/teacher", "/elsewhere/prompts.txt"
    change(moved, recipe=recipe)
    given = [home / "dmd/run", moved]
    options = comparison.Options(changes={"metrics": ("rmse",), "samples": 4}, shown=1)
    outcome = comparison.compare(given, test_compare.load, tmp_path / "out", options, lambda line: None)
    made = test_compare.read(tmp_path / "out")
    assert outcome.failures == [] and [c["key"] for c in made["columns"]] == ["teacher", "dmd", "dmd__half_rate", "gpd"]
    line = "GPD: its training prompts (prompts.txt) are not here: whether they are among these is not known"
    assert line in made["notes"]
    with pytest.raises(UserError, match="no teacher at /elsewhere/teacher"):
        comparison.compare([moved], test_compare.load, tmp_path / "alone", with_settings(), print)


def with_settings(**more):
    changes = {"metrics": ("rmse",), "samples": 4, "prompts": ("red",), "guidance": 3.0, "teacher_steps": (2, 8)}
    return comparison.Options(changes=changes | more, shown=1)


def test_an_export_of_another_teacher_is_refused(home, tmp_path):
    other = shutil.copytree(home / "gpd_student", tmp_path / "other")
    change(other, teacher=exported.settings(other)["teacher"] | {"fingerprint": "beef"})
    with pytest.raises(UserError, match=r"gpd/run and .*other cannot be compared: their teachers \(fingerprints\)"):
        comparison.compare([home / "gpd/run", other], test_compare.load, tmp_path / "out", with_settings(), print)
    with pytest.raises(UserError, match=r"their teachers \(fingerprints\) are .* and 'beef'"):
        comparison.compare([other], test_compare.load, tmp_path / "out", with_settings(), print)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "distill.json: torn, or no settings"),
        ('{"recipe": {"teacher": {}}, "sigmas": [1.0, 0.0]}', "distill.json: recipe.teacher.family: Field required"),
    ],
)
def test_a_torn_export_is_one_line(tmp_path, text, said):
    (tmp_path / "model_index.json").write_text("{}")
    (tmp_path / "distill.json").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        inputs.runs([tmp_path], recipes.load, [])
    assert len(str(caught.value).splitlines()) == 1


def test_a_pipeline_that_is_no_student_is_one_line(teacher):
    with pytest.raises(
        UserError, match="is the folder of a pipeline, and not of a student that `distill export` wrote"
    ):
        inputs.runs([teacher], recipes.load, [])


def test_a_run_and_its_export_are_columns_of_their_own(home, tmp_path):
    found, _ = inputs.runs([home / "gpd/run", home / "gpd_student"], test_compare.load, [])
    columns = inputs.columns(found)
    assert [(c.key, c.label) for c in columns] == [("run", "GPD (run)"), ("gpd_student", "GPD (gpd_student)")]
    assert [run.is_export for c in columns for run in c.runs] == [False, True]


def test_processes_measure_an_export_beside_the_same_teacher(home, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))
    _, made = compared(home, tmp_path / "out", "gpd_student", jobs=2)
    assert "result: " in capfd.readouterr().out  # of `distill evaluate`
    files = {path.name for path in kept.folder().rglob("*.safetensors")}
    _, alone = compared(home, tmp_path / "alone", "gpd_student")
    assert {path.name for path in kept.folder().rglob("*.safetensors")} == files
    assert column(alone, "gpd")["points"] == column(made, "gpd")["points"]


@pytest.mark.parametrize("given", ["dmd/run", "dmd_student"])
def test_half_rate_is_a_column_of_its_own(home, tmp_path, given):
    outcome, made = compared(home, tmp_path / "out", given)
    assert outcome.failures == [] and not [note for note in made["notes"] if "half the frame rate" in note]
    full, half = column(made, "dmd"), column(made, "dmd__half_rate")
    assert (full["label"], half["label"]) == ("DMD", "DMD, half rate") and half["kind"] == "student"
    (point,) = half["points"]
    assert point["own"] and point["steps"] == full["points"][0]["steps"]
    (path,) = (tmp_path / "out/evaluations").glob("*/evaluation.json")
    rmse = json.loads(path.read_text())["per_sample"]["student_half_rate"]["rmse"]
    assert point["metrics"]["rmse"]["mean"] == pytest.approx(sum(rmse) / len(rmse))
    assert point["metrics"]["rmse"]["mean"] != full["points"][0]["metrics"]["rmse"]["mean"]
    assert point["flop"] < full["points"][0]["flop"] and half["training"] == full["training"]
    (clip,) = point["clips"]
    assert clip == f"clips/dmd__half_rate_{point['steps']}_00.mp4"
    assert (tmp_path / "out" / clip).read_bytes() != (tmp_path / "out" / full["points"][0]["clips"][0]).read_bytes()


def test_half_rate_of_some_seeds_alone_is_no_column(home, tmp_path):
    """The section may differ between the seeds of one student."""
    other = shutil.copytree(home / "dmd/run", tmp_path / "other")
    text = (other / "recipe.yaml").read_text().replace("seed: 3", "seed: 4", 1)
    kept_lines = text.split("half_rate:")[0] + "\n".join(text.split("half_rate:")[1].splitlines()[3:])
    (other / "recipe.yaml").write_text(kept_lines)
    assert "half_rate" not in half_rate_of(other)
    options = comparison.Options(changes={"metrics": ("rmse",), "samples": 4}, shown=1)
    comparison.compare([home / "dmd/run", other], test_compare.load, tmp_path / "out", options, lambda line: None)
    made = test_compare.read(tmp_path / "out")
    assert [c["key"] for c in made["columns"]] == ["teacher", "dmd"] and column(made, "dmd")["seeds"] == [3, 4]


def half_rate_of(run):
    return {key for key, value in recipes.load(run / "recipe.yaml").model_dump().items() if value is not None}
