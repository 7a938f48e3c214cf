"""Networks as one or several safetensors files."""

import json
import shutil
from functools import partial
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

from distill import checkpoint, export, weights
from distill.errors import UserError
from tests import runs, tiny_wan

TEN = {f"block.{i}.weight": torch.arange(100.0) + i for i in range(10)}  # of 400 bytes
TEN_BY_TEN = torch.arange(100.0).view(10, 10)


def written(folder, most_bytes=1000, tensors=TEN):
    path = folder / "networks" / "student"
    weights.write(path, iter(tensors.items()), most_bytes=most_bytes)
    return path


def test_a_network_is_read_as_it_was_written(tmp_path):
    kinds = TEN | {"scalar": torch.tensor(7), "half": torch.ones(3, dtype=torch.bfloat16), "none": torch.zeros(0, 4)}
    for most_bytes in (1, 1000, 1 << 20):
        found = weights.read(written(tmp_path / str(most_bytes), most_bytes, kinds))
        assert found.keys() == kinds.keys()
        assert all(torch.equal(found[name], kinds[name]) and found[name].dtype == kinds[name].dtype for name in kinds)


@pytest.mark.parametrize(("most_bytes", "files"), [(4000, 1), (3999, 2), (1000, 5), (400, 10), (1, 10)])
def test_no_file_holds_more_than_it_may(tmp_path, most_bytes, files):
    path = written(tmp_path, most_bytes)
    held = [sum(t.nbytes for t in load_file(file).values()) for file in weights.files(path)]
    assert len(held) == files and sum(held) == 4000 and max(held) <= max(most_bytes, 400)
    assert len(list(path.parent.iterdir())) == files + (files > 1)


def test_a_tensor_is_not_kept_once_its_file_is_written(tmp_path):
    """And never waits for a later file: what is gathered last is asked for when all others are on the disk."""
    sizes = []

    def gathered():
        for name, tensor in TEN.items():
            sizes.append(sum(file.stat().st_size for file in tmp_path.rglob("*.partial")))
            yield name, tensor

    weights.write(tmp_path / "network", gathered(), most_bytes=800)
    assert [after - before > 800 for before, after in pairwise(sizes)] == [False, False, True] + [False, True] * 3
    assert not list(tmp_path.rglob("*.partial"))


def test_a_view_is_written_alone(tmp_path):
    flat = torch.arange(1000.0)
    path = written(tmp_path, tensors={"first": flat[:10].view(2, 5), "second": flat[10:20], "turned": TEN_BY_TEN.T})
    assert weights.files(path)[0].stat().st_size < 1500
    assert torch.equal(weights.read(path)["second"], flat[10:20])
    assert torch.equal(weights.read(path)["turned"], TEN_BY_TEN.T)


def test_a_process_that_does_not_write_asks_for_every_tensor(tmp_path):
    asked = []
    weights.write(tmp_path / "network", ((name, asked.append(name)) for name in TEN), main=False)
    assert asked == list(TEN) and not list(tmp_path.iterdir())


def test_several_files_are_those_that_diffusers_reads_and_writes(tmp_path):
    module = tiny_wan.transformer(2)
    theirs, ours = tmp_path / "theirs", tmp_path / "ours"
    module.save_pretrained(theirs, max_shard_size=20_000)
    module.save_config(ours)
    weights.write(ours / "diffusion_pytorch_model", module.state_dict().items(), most_bytes=20_000)
    assert len(list(ours.glob("*.safetensors"))) > 3
    assert {f.name: f.read_bytes() for f in ours.iterdir()} == {f.name: f.read_bytes() for f in theirs.iterdir()}


def test_entries_say_where_a_tensor_is_and_what(tmp_path):
    path = written(tmp_path)
    found = weights.entries(path)
    assert found.keys() == TEN.keys()
    for name, entry in found.items():
        assert name in load_file(entry.file) and (entry.shape, entry.dtype) == ((100,), "F32")


def test_a_network_replaces_one_in_more_files(tmp_path):
    path = written(tmp_path)
    weights.write(path, [("only", torch.ones(2))])
    assert list(weights.read(path)) == ["only"]


def test_networks_of_a_folder_have_their_names(tmp_path):
    written(tmp_path)
    weights.write(tmp_path / "networks" / "fake_score", TEN.items())
    assert weights.names(tmp_path / "networks") == ["fake_score", "student"]


def damaged(path, how):
    file = weights.files(path)[1]
    if how == "missing":
        file.unlink()
    elif how == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif how == "foreign":
        file.write_bytes(b"a page that says: not found")
    elif how == "empty":
        file.write_bytes(b"")
    elif how == "index":
        path.with_name("student.safetensors.index.json").write_text("[]")
    else:
        for each in path.parent.iterdir():
            each.unlink()
    return file


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("missing", "{file} is missing, student.safetensors.index.json lists it; fetch or copy the folder anew"),
        ("cut", r"{file} is no whole safetensors file \(\d+ bytes; .*\); fetch or copy it anew"),
        ("foreign", r"{file} is no whole safetensors file \(27 bytes; .*\); fetch or copy it anew"),
        ("empty", r"{file} is no whole safetensors file \(0 bytes; .*\); fetch or copy it anew"),
        ("index", r"student.safetensors.index.json is no index of safetensors files \(.*\); fetch or copy it anew"),
        ("all", "{folder} has no weights: expected student.safetensors or student.safetensors.index.json"),
    ],
)
def test_what_is_wrong_with_files_is_one_line(tmp_path, how, said):
    path = written(tmp_path)
    file = damaged(path, how)
    for use in (weights.read, weights.entries):
        with pytest.raises(UserError, match=said.format(file=file, folder=path.parent)) as caught:
            use(path)
        assert "\n" not in str(caught.value)


def test_what_was_written_before_there_were_several_files_is_read(tmp_path):
    save_file(TEN, tmp_path / "student.safetensors")  # as checkpoints had it, without metadata
    assert weights.read(tmp_path / "student").keys() == TEN.keys()


def test_the_index_counts_bytes(tmp_path):
    index = json.loads(written(tmp_path).with_name("student.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": 4000}


def test_a_run_with_networks_in_several_files_goes_on_and_is_exported_as_any_other(tmp_path, monkeypatch):
    teacher = tiny_wan.build(tmp_path / "teacher")
    plain = runs.train(runs.write(tmp_path / "plain", teacher))
    monkeypatch.setattr(weights, "write", partial(weights.write, most_bytes=20_000))
    recipe = runs.write(tmp_path / "several", teacher)
    several = runs.train(recipe)
    assert len(weights.files(checkpoint.find_network(several, "student"))) > 3
    shutil.rmtree(checkpoint.folder(several, 9))
    runs.train(recipe)
    exported = [content(export.export(run, tmp_path / f"{run.parent.name}_student")) for run in (plain, several)]
    assert exported[0] == exported[1] and any(name.startswith("transformer") for name in exported[0])
    with pytest.raises(UserError, match="holds no network 'heads'; it has: prior, student"):
        checkpoint.find_network(several, "heads")


def content(folder):
    """But for what says where it is from."""
    files = [each for each in folder.rglob("*") if each.is_file() and each.name not in (export.CARD, export.SETTINGS)]
    return {str(each.relative_to(folder)): each.read_bytes() for each in files}
