"""A method that imports what methods must not: `tests.broken_imports:ReadsFiles`."""

import os

from .broken_methods import Sound


class ReadsFiles(Sound):
    def loss(self, batch):
        return {"velocity": super().loss(batch)["velocity"] * (1 if os.curdir else 2)}
