"""The checks in order, and the class that asks them in pytest."""

import unittest
from collections.abc import Mapping
from typing import Any, ClassVar

from . import of_sampling, of_source, of_training
from .bench import Bench
from .check import Check, Outcome, outcomes

CHECKS: tuple[Check, ...] = (*of_source.CHECKS, *of_training.CHECKS, *of_sampling.CHECKS)


class Conformance:
    """Subclass it under a name that begins with Test; each check is a test.

    Attributes:
        method: name of an installed method, or package.module:Class.
        options: the method's, where its defaults would take long on a tiny teacher.
        recipe: changes of the recipe that the kit writes, dotted key -> value.
    """

    method: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}
    recipe: ClassVar[Mapping[str, Any]] = {}

    @classmethod
    def setup_class(cls) -> None:
        cls.bench = Bench(cls.method, cls.options, cls.recipe)
        cls.outcomes = outcomes(CHECKS, cls.bench)
        cls.seen: dict[str, Outcome] = {}

    @classmethod
    def teardown_class(cls) -> None:
        cls.bench.close()

    def _hold(self, name: str) -> None:
        """Checks are tried in their order, as far as this one."""
        __tracebackhide__ = True
        while name not in self.seen:
            outcome = next(self.outcomes)
            self.seen[outcome.check.name] = outcome
        outcome = self.seen[name]
        if outcome.status == "skip":
            raise unittest.SkipTest(outcome.text)
        assert outcome.status == "pass", f"{self.method}: {outcome.text}\n{outcome.remedy}"


def _test(check: Check):
    def test(self: Conformance) -> None:
        __tracebackhide__ = True
        self._hold(check.name)

    test.__doc__ = check.claim
    return test


for _check in CHECKS:
    setattr(Conformance, f"test_{_check.name}", _test(_check))
