"""Every method that comes with distill passes the conformance kit that strangers' methods are held to."""

from distill import registry
from distill.testing import Conformance


class TestAccVideo(Conformance):
    method = "accvideo"
    options = {"steps": 2, "recorder_steps": 4, "head_width": 8}


class TestAVD(Conformance):
    method = "avd"
    options = {"student_every": 2}


class TestDMD(Conformance):
    method = "dmd"
    options = {"student_every": 2}


class TestDMDReuse(Conformance):
    method = "dmd"
    options = {"student_every": 3, "reuse": True, "sigmas": "table", "drawn": "shared"}


class TestDMD2(Conformance):
    method = "dmd2"
    options = {"student_every": 2, "head_width": 8}


class TestGPD(Conformance):
    method = "gpd"
    options = {"teacher_steps": 6, "steps": 2, "iterations": [5, 4], "guidance": [3.0, 3.0]}


class TestInterpolator(Conformance):
    method = "interpolator"
    options = {"width": 4}


class TestLADD(Conformance):
    method = "ladd"
    options = {"head_width": 8}


class TestLCM(Conformance):
    method = "lcm"


class TestMeanFlow(Conformance):
    method = "meanflow"


class TestPeRFlow(Conformance):
    method = "perflow"
    options = {"windows": 2, "teacher_steps": 2}


def test_no_method_of_ours_is_left_out():
    ours = {name for name, entry in registry.methods().items() if entry.value.startswith("distill_methods.")}
    assert ours == {case.method for case in Conformance.__subclasses__() if case.__module__ == __name__}
