"""The trajectory store: what is read is what was written, or a line that names the file."""

import json
import os
import re
import zlib
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from distill import disk, flow
from distill.batch import Condition, generator
from distill.data import agreement, shards, trajectories
from distill.data.stream import PromptStream, TrajectoryStream
from distill.data.trajectories import Store
from distill.errors import UserError, user_line

SHAPE = (2, 3, 4, 5)
LEVELS = [1.0, 0.9, 0.5, 0.0]
INFO = {
    "version": 1,
    "teacher": {"family": "wan", "path": "somewhere", "fingerprint": "f"},
    "video": {"frames": 9, "height": 32, "width": 40},
    "latent_shape": list(SHAPE),
    "levels": LEVELS,
    "steps": 10,
    "shift": 5.0,
    "guidance": 5.0,
    "seed": 0,
    "precision": "fp32",
    "keep": 3,
}
PROMPTS = ["a", "b", "c"]


def latents(records: int) -> torch.Tensor:
    return torch.randn(records, len(LEVELS), *SHAPE, generator=generator("latents"))


@pytest.fixture
def store(tmp_path):
    """Ten records in shards of 4, 4 and 2."""
    written = latents(10)
    trajectories.create(tmp_path / "store", INFO)
    for first in (0, 4, 8):
        rows = written[first : first + 4]
        prompts = [PROMPTS[j % 3] for j in range(first, first + len(rows))]
        trajectories.add(tmp_path / "store", first, prompts, rows)
    return Store(tmp_path / "store")


def spoil(path, how: str) -> None:
    content = bytearray(path.read_bytes())
    if how == "missing":
        return path.unlink()
    if how == "truncated":
        del content[-7:]
    if how == "longer":
        content += b"x"
    if how == "header flipped":
        content[content.index(b"latents")] ^= 2
    if how == "latent flipped":
        content[-9] ^= 4
    path.write_bytes(content)
    return None


def test_what_is_read_is_what_was_written(store):
    written = latents(10)
    for sample, places in ((0, [0, 1, 2, 3]), (3, [3]), (4, [2, 0]), (9, [1, 3])):
        assert torch.equal(store.read(sample, places), written[sample, places])
        assert store.prompt(sample) == PROMPTS[sample % 3]
    assert store.damaged(thorough=True) == []
    assert {path.stat().st_mode for path in store.path.rglob("*.*")} == {(store.path / "index.json").stat().st_mode}


def test_fp16_keeps_slopes_within_its_rounding_and_bf16_would_lose_eight_times_as_much(tmp_path):
    """METHODS 2b.7: an error of 2^-12 |l| / dt for fp16, 2^-9 for bf16, here over the smallest key step."""
    written, dt = latents(10).cumsum(1), 0.034
    trajectories.create(tmp_path, INFO | {"precision": "fp16"})
    trajectories.add(tmp_path, 0, ["a"] * 10, written.half())
    read = torch.stack([Store(tmp_path).read(sample, [0, 1, 2, 3]) for sample in range(10)])
    exact, size = written.double().diff(dim=1) / dt, written[:, :-1].abs() + written[:, 1:].abs()
    error = read.double().diff(dim=1) / dt - exact
    assert read.dtype == torch.float32
    assert (error.abs() <= size / dt * 2**-11).all()  # at most half a unit in the last of 11 bits, on both sides
    rough = written.bfloat16().double().diff(dim=1) / dt - exact
    assert 6 < rough.square().mean().sqrt() / error.square().mean().sqrt() < 10
    assert error.square().mean().sqrt() < size.square().mean().sqrt() / dt * 2**-12


def test_a_shard_counts_once_its_entry_is_written(store):
    store.file(store.shards[1]).with_suffix(".json").unlink()
    left = Store(store.path)
    assert left.missing(12, 4) == [range(4, 8), range(10, 12)]
    assert trajectories.recorded(store.path, 12) == 6
    assert [shard.samples for shard in left.shards] == [range(4), range(8, 10)]


@pytest.mark.parametrize(
    ("call", "left"), [("disk.sync", []), ("os.replace", []), ("write_text", ["00000010-00000010"])]
)
def test_a_shard_whose_writing_was_cut_short_is_not_part_of_the_store(store, monkeypatch, call, left):
    """Whichever step fails, no entry is there, and no file under the shard's name is half a shard."""

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(f"distill.data.shards.{call}", fail)
        trajectories.add(store.path, 10, ["a"], latents(1))
    assert Store(store.path).missing(11, 4) == [range(10, 11)]
    named = [path for path in (store.path / "shards").glob("00000010*") if path.suffix != trajectories.PARTIAL]
    assert [path.stem for path in named] == left
    trajectories.add(store.path, 10, ["a"], latents(1))
    assert torch.equal(Store(store.path).read(10, [1]), latents(1)[0, [1]])


@pytest.mark.parametrize(("records", "size"), [(10, 4), (10, 3), (23, 4), (11, 100), (5, 1)])
def test_missing_records_are_shards_that_respect_the_size(store, records, size):
    held = set(range(8, 10)) | set(range(4))
    store.file(store.shards[1]).with_suffix(".json").unlink()
    gaps = Store(store.path).missing(records, size)
    assert [sample for gap in gaps for sample in gap] == [j for j in range(records) if j not in held]
    assert all(len({sample // size for sample in gap}) == 1 for gap in gaps)
    joined = [b.start // size for a, b in pairwise(gaps) if a.stop == b.start]
    assert all(start * size in [gap.start for gap in gaps] for start in joined)  # cut at multiples only


@pytest.mark.parametrize(
    ("how", "at_once", "line"),
    [
        ("missing", True, "it is missing"),
        ("truncated", True, " bytes, its entry says "),
        ("longer", True, " bytes, its entry says "),
        ("header flipped", True, "its header is not that of latents"),
        ("latent flipped", False, "it does not match its sha256"),
    ],
)
def test_damage_is_named_with_its_repair(store, how, at_once, line):
    path = store.file(store.shards[1])
    spoil(path, how)
    damaged = Store(store.path)
    (said,) = damaged.damaged(thorough=True)
    assert said.startswith(f"{path}: damaged (") and line in said and said.endswith("`distill synthesize RECIPE`")
    assert len(damaged.damaged(thorough=False)) == at_once
    with pytest.raises(UserError, match=r"00000004-00000007.safetensors: damaged \(.*distill synthesize") as error:
        damaged.read(7, [0, 1, 2, 3])
    assert "\n" not in str(error.value)
    assert torch.equal(damaged.read(8, [0]), latents(10)[8, [0]])


def test_every_byte_of_a_latent_is_checked_when_it_is_read(store):
    path = store.file(store.shards[0])
    whole, size = path.read_bytes(), torch.tensor(SHAPE).prod().item() * 4
    start = len(whole) - 2 * size  # of the last record's level 2
    for offset in range(start, start + size, 97):
        path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
        flipped = Store(store.path)
        with pytest.raises(UserError, match="record 3 is not what was written"):
            flipped.read(3, [2])
        flipped.read(3, [0, 1, 3])


def test_an_entry_that_cannot_be_read_is_named_and_its_records_do_not_count(store):
    entry = store.file(store.shards[0]).with_suffix(".json")
    entry.write_text(entry.read_text()[:50])
    torn = Store(store.path)
    assert torn.damaged(thorough=False)[0].startswith(f"{entry}: damaged (not the entry of a shard)")
    assert torn.missing(10, 4) == [range(4)]


def test_a_folder_without_an_index_is_no_store(tmp_path):
    with pytest.raises(UserError, match=r"holds no index.json: it is not a trajectory store"):
        Store(tmp_path)
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json: damaged"):
        Store(tmp_path)


def resident() -> float:
    """MB of this process's memory."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def test_reading_a_record_of_a_shard_of_two_gigabytes_takes_the_memory_of_the_record(tmp_path):
    """A sparse file of zeros, shaped like 80 records at 544p."""
    shape, size = (6, 16, 21, 60, 104), 6 * 16 * 21 * 60 * 104 * 2
    info = {"levels": [1.0, 0.9, 0.8, 0.7, 0.5, 0.0], "latent_shape": shape[1:], "precision": "fp16"}
    trajectories.create(tmp_path, INFO | info)
    header = {"latents": {"dtype": "F16", "shape": [80, *shape], "data_offsets": [0, 80 * size]}}
    text = json.dumps(header).encode()
    path = trajectories.file(tmp_path, range(80))
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + 80 * size)
    crc = f"{zlib.crc32(bytes(size // 6)):08x}"
    records = [{"prompt": "a", "crc32": [crc] * 6}] * 80
    entry = {"first": 0, "bytes": path.stat().st_size, "sha256": "", "records": records}
    path.with_suffix(".json").write_text(json.dumps(entry))
    before = resident()
    read = Store(tmp_path).read(70, range(6))
    assert path.stat().st_size > 2e9 and read.shape == shape
    assert resident() - before < 5 * size / 1e6


# The recipe against the store


def asked(**changes):
    said = {"seed": 0, "steps": 10, "shift": 5.0, "guidance": 5.0, "precision": "fp32", "keep": 5, "records": 10}
    return SimpleNamespace(
        data=SimpleNamespace(trajectories=SimpleNamespace(**said | changes), negative_prompt=None),
        method=SimpleNamespace(name="follow"),
    )


def test_a_method_finds_its_levels_among_those_that_are_stored():
    stored = flow.grid(10, 5.0).tolist()
    assert agreement.places(flow.grid(5, 5.0), asked(), stored, "x") == [0, 2, 4, 6, 8, 10]
    assert agreement.places(flow.grid(2, 5.0), asked(), stored, "x") == [0, 5, 10]


def test_a_level_that_is_not_stored_is_named_with_what_to_change():
    stored = [flow.grid(10, 5.0)[i].item() for i in agreement.kept(10, 2)]
    with pytest.raises(UserError, match=r"^x keeps the noise levels 1, 0.8333, 0; .* asks for 0.9524, .*keep=all"):
        agreement.places(flow.grid(5, 5.0), asked(), stored, "x")
    with pytest.raises(UserError, match=r"asks for 0.875, too: set .*steps and shift, now 10 and 5, to the method's"):
        agreement.places(flow.grid(2, 7.0), asked(), stored, "x")


def test_key_steps_are_every_nth_of_the_grid():
    assert list(agreement.kept(50, 5)) == [0, 10, 20, 30, 40, 50]
    assert list(agreement.kept(4, "all")) == [0, 1, 2, 3, 4]


def test_another_place_or_more_levels_than_asked_for_is_no_difference(store):
    other = INFO | {"teacher": INFO["teacher"] | {"path": "elsewhere"}, "keep": 5, "levels": [1.0, 0.0]}
    assert agreement.differences(store, other, PROMPTS, 10) == []
    (line,) = agreement.differences(store, other, PROMPTS, 11)  # one is to be added
    assert f"{store.path}: recorded with data.trajectories.keep 3, the recipe has 5" in line


def test_prompts_may_be_added_behind_those_that_were_recorded(store):
    assert agreement.differences(store, INFO, [*(PROMPTS * 4)[:10], "d"], 11) == []
    (line,) = agreement.differences(store, INFO, ["a", "b", "d"], 10)
    assert "record 2 was made from prompt 'c', data.prompts has 'd' there" in line
    assert agreement.differences(store, INFO, ["a", "b", "d"], 2) == []


def save(store: Store, shard: int, tensor: torch.Tensor) -> None:
    """Another tensor in a shard's file, with an entry that agrees with it."""
    path = store.file(store.shards[shard])
    save_file({"latents": tensor}, path)
    entry = path.with_suffix(".json")
    said = json.loads(entry.read_text()) | {"bytes": path.stat().st_size, "sha256": disk.sha256(path)}
    entry.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda x: x[:, :3], r"latents F32 \[4, 3, 2, 3, 4, 5\], the index says F32 \[4, 4, 2, 3, 4, 5\]"),
        (lambda x: x[:3], r"latents F32 \[3, 4, "),
        (lambda x: x[..., :4], r"latents F32 \[4, 4, 2, 3, 4, 4\]"),
        (lambda x: x.half(), "latents F16 .* the index says F32"),
    ],
)
def test_a_shard_of_another_shape_or_precision_than_the_index_says_is_damaged(store, change, line):
    """Though its entry knows its size and sha256; and none is written."""
    wrong = change(latents(10)[:4]).contiguous()
    save(store, 0, wrong)
    (said,) = Store(store.path).damaged(thorough=False)
    assert re.search(line, said)
    with pytest.raises(UserError, match="do not fit its index.*change the recipe back"):
        trajectories.add(store.path, 12, ["a"] * 4, wrong)
    assert len(list((store.path / "shards").iterdir())) == 6


@pytest.mark.parametrize("lost", ["teacher", "levels", "latent_shape", "video", "precision", "steps", "version"])
def test_an_index_without_a_key_is_refused_at_open(store, lost):
    index = store.path / "index.json"
    index.write_text(json.dumps({key: value for key, value in INFO.items() if key != lost}))
    with pytest.raises(UserError, match=rf"index.json: damaged \(no proper '{lost}.*restore it, or record") as error:
        Store(store.path)
    assert "\n" not in str(error.value)
    index.write_text("[]")
    with pytest.raises(UserError, match="index.json: damaged"):
        Store(store.path)


def test_an_index_of_another_version_says_what_to_do(store):
    (store.path / "index.json").write_text(json.dumps(INFO | {"version": 2}))
    with pytest.raises(UserError, match=r"version 2, this distill reads version 1; record anew with .*=NEW_FOLDER"):
        Store(store.path)


@pytest.mark.parametrize("short", ["records", "crc32", "none", "number"])
def test_an_entry_that_says_less_than_it_should_is_named_at_open(store, short):
    entry = store.file(store.shards[0]).with_suffix(".json")
    said = json.loads(entry.read_text())
    if short == "crc32":
        said["records"][2]["crc32"].pop()
    if short == "number":
        said["records"][2]["crc32"] = 5
    said["records"] = {"records": said["records"][:3], "none": []}.get(short, said["records"])
    entry.write_text(json.dumps(said))
    torn = Store(store.path)
    (line,) = torn.damaged(thorough=True)
    assert line == f"{entry}: damaged (not the entry of a shard); record it anew with `distill synthesize RECIPE`"
    assert torn.missing(10, 4) == [range(4)]


def test_records_without_an_entry_are_named_with_the_mend(store):
    """Between others, and at the end once it was noted how many there are to be."""
    store.file(store.shards[1]).with_suffix(".json").unlink()
    (line,) = Store(store.path).damaged(thorough=True)
    assert line == f"{store.path}: lacks records 4 to 7; record what is missing with `distill synthesize RECIPE`"
    trajectories.expect(store.path, 11)
    trajectories.expect(store.path, 5)
    found = Store(store.path)
    assert [line.split("; ")[0].split("lacks ")[1] for line in found.damaged(thorough=True)] == [
        "records 4 to 7",
        "record 10",
    ]
    assert found.damaged(thorough=False) == []  # a recorder is about to add them
    assert found.describe()[-1] == "records   6 in 2 shards, 5 missing, the first 4"


def test_how_many_records_are_to_come_is_not_what_training_sees(store):
    digest = store.digest(10)
    trajectories.expect(store.path, 20)
    assert Store(store.path).digest(10) == digest


def test_the_digest_of_image_records_is_of_those_that_are_read(store):
    """Images of records that were added change nothing; those of its own do."""
    for i, shard in enumerate(store.shards):
        entry = store.file(shard).with_suffix(".json")
        said = json.loads(entry.read_text())
        said["records"] = [record | {"image": str(i)} for record in said["records"]]
        entry.write_text(json.dumps(said))
    before = Store(store.path)
    digests = {records: before.digest(records) for records in (4, 10)}
    entry.write_text(entry.read_text().replace('"image": "2"', '"image": "3"'))
    assert Store(store.path).digest(4) == digests[4] and Store(store.path).digest(10) != digests[10]


def test_shards_without_an_index_are_a_store_whose_index_is_lost(store):
    (store.path / "index.json").unlink()
    with pytest.raises(UserError, match="holds shards but no index.json: the store's index is lost; restore it"):
        Store(store.path)


def test_a_sweep_leaves_shards_and_strangers(store):
    shards = store.path / "shards"
    before = {path.name for path in shards.iterdir()} - {"00000004-00000007.json", "00000004-00000007.safetensors"}
    (shards / "00000004-00000007.json").unlink()
    for name in ("00000020-00000021.safetensors", "00000008-00000009.safetensors.partial", ".tmpAb3", "notes.json"):
        (shards / name).write_text("x")
    trajectories.sweep(store.path)
    assert {path.name for path in shards.iterdir()} == before | {"notes.json"}


def test_a_full_disk_is_one_line(store, monkeypatch):
    def fail(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(shards, "save_file", fail)
    with pytest.raises(UserError, match=r"00000010.*partial: cannot be written \(.*No space left on device"):
        trajectories.add(store.path, 10, ["a"], latents(1))
    line = "Error while serializing: I/O error: No space left on device (os error 28)"
    assert user_line(SafetensorError(line)) == line
    assert user_line(SafetensorError("Error while deserializing header: InvalidHeader")) is None
    assert user_line(OSError("write failed:\n  disk full")) == "write failed: disk full"


def test_a_digest_is_of_what_training_sees(store, tmp_path):
    digest = store.digest(9)
    assert digest != store.digest(10)
    moved = tmp_path / "moved"
    os.rename(store.path, moved)
    index = json.loads((moved / "index.json").read_text())
    for change, same in (({"teacher": INFO["teacher"] | {"path": "x"}}, True), ({"guidance": 6.0}, False)):
        (moved / "index.json").write_text(json.dumps(index | change))
        assert (Store(moved).digest(9) == digest) == same


# The stream


def stream(kind, *first, batch=6, micro=2):
    train = SimpleNamespace(seed=7, batch_size=batch, micro_batch_size=micro)
    zero = Condition(text=torch.zeros(1, 1, 1))
    encode = lambda prompts: Condition(text=torch.tensor([[[float(ord(p))]] for p in prompts]))  # noqa: E731
    return kind(*first, encode, zero, SHAPE, train, torch.device("cpu"))


def test_a_batch_holds_the_records_that_the_prompts_order_would_draw(store):
    """The same order as that of ten prompts; prompts, encodings and latents belong together."""
    order = stream(PromptStream, [chr(48 + j) for j in range(10)])
    records = stream(TrajectoryStream, store, 10, [0, 2, 3])
    written = latents(10)
    for step in (0, 1, 2, 5):
        for one, other in zip(order.batches(step, 0, 1), records.batches(step, 0, 1), strict=True):
            drawn = [ord(p) - 48 for p in one.prompts]
            assert torch.equal(other.trajectory, written[drawn][:, [0, 2, 3]])
            assert other.prompts == [PROMPTS[j % 3] for j in drawn]
            assert other.cond["text"].flatten().tolist() == [ord(p) for p in other.prompts]
            assert other.index == one.index and one.trajectory is None
            assert torch.equal(other.noise(), one.noise())


def test_an_epoch_sees_every_record_once_and_no_other(store):
    found = stream(TrajectoryStream, store, 9, [3], batch=9, micro=3).batches(1, 0, 1)
    seen = torch.cat([b.trajectory for b in found]).flatten(1)
    expected = latents(10)[:9, 3].flatten(1)
    assert torch.equal(seen[seen[:, 0].argsort()], expected[expected[:, 0].argsort()])


def test_processes_share_a_step_and_what_was_read_ahead_is_what_is_asked_for(store):
    parts = [stream(TrajectoryStream, store, 10, [0, 3]) for _ in range(3)]
    for step in (0, 1, 2, 7, 3):
        together = [parts[rank].batches(step, rank, 3) for rank in range(3)]
        whole = stream(TrajectoryStream, store, 10, [0, 3])  # a new one has read nothing ahead
        for i, batch in enumerate(whole.batches(step, 0, 1)):
            assert torch.equal(batch.trajectory, together[i % 3][i // 3].trajectory)


def test_the_next_step_is_read_while_this_one_trains(store, monkeypatch):
    records, read = stream(TrajectoryStream, store, 10, [0]), []
    monkeypatch.setattr(Store, "read", lambda self, sample, places: read.append(sample) or latents(1)[0, :1])
    records.batches(0, 0, 1)
    records._thread.submit(lambda: None).result()  # the thread has nothing left to do
    assert len(read) == 12
    records.batches(1, 0, 1)
    records._thread.submit(lambda: None).result()
    assert len(read) == 18


def test_damage_that_is_read_ahead_is_raised_where_it_is_needed(store):
    spoil(store.file(store.shards[2]), "truncated")
    records, raised = stream(TrajectoryStream, Store(store.path), 10, [0], batch=1, micro=1), []
    for step in range(10):
        try:
            records.batches(step, 0, 1)
        except UserError:
            raised.append(step)
    assert len(raised) == 2  # of ten records, the two that lie in it
