"""Prompt files and the store of their encodings."""

import pytest
import torch
from safetensors.torch import load_file

from distill.batch import Condition
from distill.data import prompts
from distill.data.prompts import Embeddings
from distill.errors import UserError
from distill.teachers.wan import Wan
from tests import tiny_wan

PROMPTS = ["a red circle moves left .", "", "a blue square ."]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return Wan(tiny_wan.build(tmp_path_factory.mktemp("wan")))


@pytest.fixture
def counted(teacher, monkeypatch):
    """The prompts that reach the text encoder."""
    seen: list[str] = []
    encode = Wan.encode
    monkeypatch.setattr(Wan, "encode", lambda self, some: seen.extend(some) or encode(self, some))
    return seen


def test_stored_encodings_are_the_teachers_to_the_bit(teacher, tmp_path):
    store = Embeddings(teacher, tmp_path)
    store.prepare(PROMPTS)
    again = ["a blue square .", *PROMPTS]
    assert torch.equal(store.get(again)["text"], teacher.encode(again)["text"])


def test_a_prompt_is_encoded_once(teacher, counted, tmp_path):
    Embeddings(teacher, tmp_path).prepare(PROMPTS * 2)
    assert counted == PROMPTS
    other = Embeddings(teacher, tmp_path)
    other.prepare([*PROMPTS, "a circle ."])
    other.get(PROMPTS)
    assert counted == [*PROMPTS, "a circle ."]


def test_teachers_and_text_lengths_do_not_share_encodings(teacher, tmp_path):
    stores = [Embeddings(t, tmp_path) for t in (teacher, Wan(teacher.path, max_sequence_length=4))]
    for store, length in zip(stores, (8, 4), strict=True):
        store.prepare(PROMPTS)
        assert store.get(PROMPTS)["text"].shape == (3, length, 16)
    other = Wan(tiny_wan.build(tmp_path / "other", seed=1))
    assert Embeddings(other, tmp_path).folder != stores[0].folder


def test_padding_is_not_stored(teacher, tmp_path):
    store = Embeddings(teacher, tmp_path)
    store.prepare(PROMPTS)
    lengths = sorted(len(load_file(f)["text"]) for f in store.folder.rglob("*.safetensors"))
    assert lengths == [1, 5, 7]


@pytest.mark.parametrize(
    ("numbers", "dtype"),
    [
        ([1.5, -2.0], torch.bfloat16),
        ([1e30, 1.0], torch.bfloat16),
        ([1 + 2**-10, 0.0], torch.float16),
        ([1 + 2**-10, 1e5], torch.float32),
        ([0.1, 1.0], torch.float32),
    ],
)
def test_what_a_half_precision_holds_is_stored_in_it_and_nothing_else(numbers, dtype):
    t = torch.tensor([numbers]).to(torch.float32 if dtype is torch.float32 else dtype).float()
    assert prompts._compact(t).dtype == dtype and torch.equal(prompts._compact(t).float(), t)


def test_vectors_and_inner_zeros_survive(teacher, tmp_path, monkeypatch):
    row = {"text": torch.tensor([[1.0], [0], [2], [0]]), "pooled": torch.tensor([0.0, 3, 0]), "none": torch.zeros(2, 2)}
    monkeypatch.setattr(Wan, "encode", lambda self, some: Condition({k: v[None] for k, v in row.items()}))
    store = Embeddings(teacher, tmp_path)
    store.prepare(["x"])
    got = store.get(["x", "x"])
    assert got.keys() == row.keys() and all(torch.equal(got[k], torch.stack([v, v])) for k, v in row.items())


def test_an_interrupted_write_leaves_no_encoding(teacher, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    store = Embeddings(teacher, tmp_path)
    monkeypatch.setattr(prompts, "save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        store.prepare(PROMPTS)
    monkeypatch.undo()
    store.prepare(PROMPTS)
    assert store.get(PROMPTS).size == 3


def test_the_cache_is_where_the_user_says(teacher, tmp_path, monkeypatch):
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "here"))
    assert Embeddings(teacher).folder == tmp_path / "here" / "embeddings" / teacher.fingerprint


def test_prompts_are_the_lines_that_are_not_empty(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa cat\r\n\r\n  a dog \n")
    assert prompts.read(file) == ["a cat", "a dog"]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b" \n\n", "no prompts; expected one per line"), (b"a caf\xe9\n", "not UTF-8 at byte 5"), (None, "No such file")],
)
def test_a_prompt_file_that_cannot_be_used_is_refused_in_one_line(tmp_path, content, message):
    file = tmp_path / "prompts.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        prompts.read(file)
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)
