"""The command line as a user meets it: real processes, exit codes, one line per mistake."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill import INTERFACE, __version__, launch
from distill import recipe as recipes
from distill.errors import UserError, user_line

ROOT = Path(__file__).resolve().parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
TINY = "recipes/tiny_gpd.yaml"


def distill(*arguments: str, **env: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "distill", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, env=os.environ | env)


def test_every_recipe_passes_check():
    assert len(RECIPES) >= 4  # gpd_wan13b, gpd_wan13b_720p, teacher_shapes, tiny_gpd
    for path in RECIPES:
        done = distill("check", path)
        assert (done.returncode, done.stderr) == (0, ""), path
        assert done.stdout.endswith("no faults\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["check", TINY, "train.stepz=4"],
            "command line 'train.stepz=4': train.stepz: unknown key, did you mean 'steps'?",
        ),
        (["check", TINY, "train.batch_size=many"], "train.batch_size: should be a valid integer"),
        (["check", TINY, "optim.student.lr=5"], "optim.student.lr: should be less than 1"),
        (["check", TINY, "method.name=gdp"], "method.name: unknown method 'gdp', did you mean 'gpd'?"),
        (["check", TINY, "teacher.family=wam"], "teacher.family: unknown teacher 'wam', did you mean 'wan'?"),
        (["check", "recipes/tiny_gdp.yaml"], "no such file: recipes/tiny_gdp.yaml, did you mean 'tiny_gpd.yaml'?"),
        (["run", TINY, "output=setup.cfg/x"], "output: "),
        (
            ["run", "recipes/teacher_shapes.yaml"],
            "trains a teacher: distill teachers train recipes/teacher_shapes.yaml",
        ),
        (
            ["check", "recipes/teacher_shapes.yaml", "vae.base_dm=3"],
            "vae.base_dm: unknown key, did you mean 'base_dim'?",
        ),
        (["run", "docs"], "docs holds no recipe.yaml: it is not the folder of a run"),
        (["watch", "docs"], "docs holds no log.jsonl"),
        (["methods", "describe", "gdp"], "unknown method 'gdp', did you mean 'gpd'?"),
        (["sample", "embedded"], "nothing to sample: give --prompt TEXT or --prompts FILE"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments, line):
    done = distill(*arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_a_traceback_is_there_for_who_asks():
    done = distill("methods", "describe", "gdp", DISTILL_TRACEBACK="1")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_only_our_own_value_errors_are_the_users():
    def raised(call):
        with pytest.raises(ValueError) as caught:
            call()
        return caught.value

    assert user_line(raised(lambda: recipes.load("nowhere.yaml"))) == "no such file: nowhere.yaml"
    assert user_line(raised(lambda: json.loads("{"))) is None  # a library's: a fault of the program
    assert user_line(UserError("a")) == "a"
    assert user_line(PermissionError(13, "Permission denied", "x")) == "x: Permission denied"
    assert user_line(KeyError("a")) is None


def test_check_build_counts_without_weights():
    done = distill("check", "--build", TINY)
    assert done.returncode == 0, done.stderr
    recipe = recipes.load(ROOT / TINY)
    assert "network   student: Trained" in done.stdout
    assert f"sampling  {recipe.method.options['steps']} evaluations per clip" in done.stdout


def test_the_schema_is_json():
    assert json.loads(distill("schema").stdout)["title"] == "Recipe"


def test_commands_are_those_of_the_documentation():
    commands = {"run", "check", "methods", "teachers", "sample", "export", "report", "schema", "watch"}
    commands |= {"synthesize", "prepare", "evaluate", "compare", "metrics", "vbench", "plan", "convert"}
    text = distill("--help").stdout.partition("Commands:")[2]
    assert {line.split()[0] for line in text.splitlines() if line.strip()} == commands


def test_the_version_is_that_of_the_package_and_of_the_plugin_interface():
    said = distill("--version")
    assert (said.returncode, said.stdout) == (0, f"distill {__version__}, interface {INTERFACE}\n")


def test_processes_know_each_other_and_say_a_mistake_once(monkeypatch, capfd):
    monkeypatch.chdir(ROOT)
    assert launch.launch(2, ["check", "recipes/tiny_gdp.yaml"]) == 2
    assert capfd.readouterr().err.count("no such file") == 1
    first, second = (launch.environment(rank, 2, 29500) for rank in range(2))
    assert {k for k in first if first[k] != second[k]} == {"RANK", "LOCAL_RANK"}
    assert (second["RANK"], second["WORLD_SIZE"], second["MASTER_PORT"]) == ("1", "2", "29500")


def test_when_one_process_dies_the_others_do_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(launch, "GRACE", 0.1)
    waiting = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    killed = subprocess.Popen([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"])
    assert launch._wait([waiting, killed]) == 128 + 9
    assert waiting.returncode == -9


def test_watch_ends_with_the_run(tmp_path):
    lines = [
        {"kind": "start", "update": 0, "updates": 2},
        {
            "kind": "update",
            "update": 1,
            "step": 0,
            "stage": 0,
            "stages": 1,
            "network": "student",
            "loss": 0.5,
            "seconds": 1.0,
        },
        {
            "kind": "update",
            "update": 2,
            "step": 1,
            "stage": 0,
            "stages": 1,
            "network": "student",
            "loss": 0.4,
            "seconds": 1.0,
        },
        {"kind": "done", "update": 2},
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = distill("watch", tmp_path)
    assert done.returncode == 0, done.stderr
    assert "update 2/2" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("done at update 2")


def test_a_warning_is_one_line_without_code():
    said = distill("check", "recipes/tiny_avd.yaml", "--build").stderr
    assert "warning: guidance is 9.0; preset paper has 5.0" in said.splitlines()
    assert "registry.method_class" not in said
