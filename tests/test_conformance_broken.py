"""Each check of the conformance kit is seen failing, by itself, on a method that is broken on purpose."""

import pytest

from distill.testing.bench import Bench
from distill.testing.check import outcomes
from distill.testing.conformance import CHECKS
from distill.testing.places import PLACES
from tests import broken_methods

COSTLY = {"export", *(place.key for place in PLACES)}  # tried where they are meant

GALLERY = [
    ("OfAnotherInterface", "interface", "was written for interface 2 of distill, and this distill has 1"),
    ("ChangesItsNetworks", "interface", "the class has {'teacher': 'Frozen', 'student': 'Trained'}"),
    ("Undocumented", "explained", "Undocumented.__init__: no line in the docstring for secret"),
    ("WithoutDefault", "options", "option strength has no default"),
    ("RefusesItsDefault", "options", "the default of strength, -1.0, is refused"),
    ("NotFinite", "finite", "student/velocity is inf"),
    ("RaisesAnything", "finite", "broken_methods.py:"),
    ("WithAnIdleNetwork", "finite", "critic: is declared as trained, but no update moves it"),
    ("UpdatesTheTeacher", "finite", "teacher: is updated, but not declared as Trained or Built"),
    ("MovesAnother", "moves", "update 3 is of student, and critic moved as well"),
    ("StandsStill", "moves", "student did not move in 7 updates"),
    ("MovesTheTeacher", "frozen", "teacher: declared as Frozen"),
    ("DrawsForItself", "reproducible", "student/velocity of update 1 is"),
    ("Forgets", "resume", "after a resume at update 5"),
    ("LooksAtTheBatch", "accumulation", "one micro-batch of 4 is not two of 2: student/velocity of update 1"),
    *(("KeepsItsOwnSamples", place.key, f"{place.name} are not one: critic/velocity of update 2") for place in PLACES),
    ("ChangesTheShape", "sample", "sample makes shape (2, 4, 2, 8, 12) of noise (2, 4, 3, 8, 12)"),
    ("ChangesItsNoise", "sample", "sample changes the noise"),
    ("SamplesAtRandom", "sample", "other latents of the same noise"),
    ("LooksAtNeighbours", "sample", "when it is sampled alone"),
    ("OnAnotherGrid", "grid", "from euler on grid [1, 0.667, 0], which is exported"),
    ("EndsEarly", "grid", "grid is [1, 0.833]"),
    ("RenoisesUnsaid", "grid", "from euler on grid"),
    ("LearnsItsGrid", "export", "the student that is loaded from a checkpoint differs"),
]


def tried(name: str, among=CHECKS, options=None) -> dict:
    bench = Bench(name, options)
    try:
        return {outcome.check.name: outcome for outcome in outcomes(among, bench)}
    finally:
        bench.close()


@pytest.mark.parametrize(("name", "broken", "said"), GALLERY, ids=[f"{name}-{broken}" for name, broken, _ in GALLERY])
def test_a_broken_method_fails_the_check_that_it_breaks_and_no_other(name, broken, said):
    among = [check for check in CHECKS if check.name == broken or check.name not in COSTLY]
    options = {"strength": 1.0} if name == "WithoutDefault" else None
    found = tried(f"tests.broken_methods:{name}", among, options)
    assert [each for each in found if found[each].status == "fail"] == [broken]
    assert said in found[broken].text
    assert found[broken].remedy and "\n" not in found[broken].text


def test_a_method_that_imports_what_it_must_not_fails_by_that():
    found = tried("tests.broken_imports:ReadsFiles", [check for check in CHECKS if check.name not in COSTLY])
    assert [each for each in found if found[each].status == "fail"] == ["imports"]
    assert found["imports"].text == "broken_imports.py imports os"


def test_a_sound_method_passes_everything():
    assert {outcome.status for outcome in tried("tests.broken_methods:Sound").values()} == {"pass"}


def test_every_check_and_every_broken_method_is_in_the_gallery():
    assert {broken for _, broken, _ in GALLERY} | {"imports"} == {check.name for check in CHECKS}
    of_module = {name for name, value in vars(broken_methods).items() if isinstance(value, type)}
    own = {name for name in of_module if getattr(broken_methods, name).__module__ == broken_methods.__name__}
    assert own - {"Sound"} == {name for name, *_ in GALLERY}
