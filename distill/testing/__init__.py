"""The conformance kit: what every method must hold, tried on tiny networks in seconds (docs/plugins.md).

    from distill.testing import Conformance

    class TestMine(Conformance):
        method = "my_package.my_module:Mine"
        options = {"steps": 2}

`distill methods check NAME` asks the same.
"""

from .conformance import Conformance

__all__ = ["Conformance"]
