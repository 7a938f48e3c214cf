"""Adapters on a base in pieces: two processes do what one does that holds it whole."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest

from distill import recipe as recipes
from distill import track
from distill.errors import UserError
from distill.testing import bench, of_training, places, trial
from tests import runs, test_conformance

END = 6
ADAPTERS = {"lora.rank": 4, "lora.alpha": 6.0, "train.activation_checkpointing": "full"}
CASES = [
    ("gpd", test_conformance.TestGPD.options, {"train.ema": 0.5}, "zero3"),
    ("dmd2", test_conformance.TestDMD2.options, {}, {"teacher": "zero3"}),  # gradients through features, heads beside
    ("meanflow", {"difference": 0.005}, {}, "zero3"),  # told where steps end
]


@pytest.mark.parametrize(("name", "options", "changes", "engine"), CASES)
def test_a_base_in_pieces_changes_nothing(name, options, changes, engine):
    kit = bench.Bench(name, options, ADAPTERS | changes)
    try:
        plain = kit.run("plain", END)
        overrides = kit._overrides("spread", f"engine={json.dumps(engine)}")
        places.together(train, (str(kit.recipe), overrides), 2, bench.home() / "cache")
        said = [
            [line for line in track.read(kit.folder / run) if line["kind"] == "update"] for run in ("plain", "spread")
        ]
        one, other = runs.final(plain.folder), runs.final(kit.folder / "spread")
    finally:
        kit.close()
    assert [len(lines) for lines in said] == [END, END] and not of_training.difference(*said, 1e-5)
    kept = [key for key in one if key.partition(".")[0] in plain.roles]
    assert any("lora_B" in key for key in kept)
    assert all((other[key] - one[key]).abs().max() < 1e-5 for key in kept)


def test_what_would_stay_gathered_is_refused():
    recipe = Path(__file__).parents[1] / "recipes/tiny_gpd.yaml"
    selective = ["lora={rank: 4}", "train.activation_checkpointing=selective"]
    with pytest.raises(UserError, match=r"train\.activation_checkpointing: selective leaves .*; use full$"):
        recipes.load(recipe, [*selective, "engine={teacher: zero3}"])
    recipes.load(recipe, selective)


def train(path: str, overrides: Iterable[str]) -> None:
    """In each of the processes."""
    made = trial.run(Path(path), END, overrides)
    views = [role for role in made.roles.values() if hasattr(role, "base")]
    for p in views[0].base.network.parameters():  # half of it here, or of its last process less, and nothing gathered
        assert p.ds_tensor.numel() == -(-p.ds_numel // 2), "a parameter of the base is not cut in two"
        assert p.data.numel() <= 1 or p.ds_persist, "a parameter of the base was left gathered"
    for role in views:
        assert {id(p) for p in role.base.network.parameters()} >= {
            id(p) for p in role.module.parameters() if p not in set(role.parameters)
        }, "a view has tensors of its own beside adapters"
        assert not any(hasattr(p, "ds_tensor") for p in role.parameters), "adapters are cut"
