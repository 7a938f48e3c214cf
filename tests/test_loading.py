"""Teachers built without weights and filled from their files, whole or in pieces."""

import json
import multiprocessing
import os
import re
import shutil

import pytest
import torch
from diffusers import HunyuanVideoTransformer3DModel, WanTransformer3DModel
from safetensors.torch import load_file, save_file
from torch import nn

from distill import launch, registry, weights
from distill.errors import UserError
from distill.teachers import loading
from tests import partitions, tiny_hunyuan, tiny_wan, tiny_wan_image

FAMILIES = {
    "wan": (tiny_wan, WanTransformer3DModel),
    "wan_i2v": (tiny_wan_image, WanTransformer3DModel),
    "hunyuan_video": (tiny_hunyuan, HunyuanVideoTransformer3DModel),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Of each family, in several files."""
    made = {}
    for family, (tiny, kind) in FAMILIES.items():
        made[family] = tiny.build(tmp_path_factory.mktemp(family))
        transformer = made[family] / "transformer"
        whole = kind.from_pretrained(transformer)
        shutil.rmtree(transformer)
        whole.save_pretrained(transformer, max_shard_size="30KB")
        assert len(list(transformer.glob("*.safetensors"))) > 2
    return made


def teacher(folders, family="wan"):
    return registry.teacher_class(family)(folders[family])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_the_one_that_diffusers_loads(folders, family, dtype):
    stock = FAMILIES[family][1].from_pretrained(folders[family], subfolder="transformer", dtype=dtype)
    exact = FAMILIES[family][1].from_pretrained(folders[family], subfolder="transformer", dtype=torch.float32)
    network = teacher(folders, family).network(dtype).transformer
    ours, theirs, known = (dict(each.named_parameters()) for each in (network, stock, exact))
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        assert torch.equal(weight, known[name].to(weight.dtype)) and weight.requires_grad
        # HunyuanVideo's time embeddings, which ours spares as well, are all that may differ
        assert weight.dtype == theirs[name].dtype or (family, weight.dtype) == ("hunyuan_video", torch.float32)
    buffers = dict(network.named_buffers())
    assert all(torch.equal(buffers[name], buffer) for name, buffer in stock.named_buffers())
    assert not network.training


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_that_is_told_ends_begins_as_one_that_learns_of_them_later(folders, family):
    later = teacher(folders, family).network()
    later.tell_ends()
    told = teacher(folders, family).network(ends=True)
    expected = later.state_dict()
    assert told.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in told.state_dict().items())


def test_without_weights_a_network_has_its_buffers(folders):
    for family in FAMILIES:
        meta, real = teacher(folders, family).network(device="meta"), teacher(folders, family).network()
        assert all(weight.is_meta for weight in meta.parameters())
        found = dict(meta.named_buffers())
        assert all(torch.equal(found[name], buffer) for name, buffer in real.named_buffers())
    assert not nn.Linear(2, 2).weight.is_meta


def anonymous() -> int:
    """Bytes of memory that this process shares with no file."""
    with open("/proc/self/status") as status:
        return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status.read())[1])


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from /proc")
def test_whole_weights_are_mapped_and_not_copied(tmp_path):
    layers = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(4)))  # 64 MiB
    weights.write(tmp_path / "network", layers.state_dict().items(), most_bytes=20 << 20)
    with loading.without_weights():
        found = nn.Sequential(*(nn.Linear(2048, 2048, bias=False) for _ in range(4)))
    before = anonymous()
    loading.fill(found, tmp_path / "network")
    assert sum(weight.double().sum() for weight in found.parameters()).isfinite()
    assert anonymous() - before < 40 << 20  # of which 32 MiB are one weight in double precision
    assert all(map(torch.equal, found.parameters(), layers.parameters()))


class Pieces:
    """Partitions as ZeRO-3 does, for one of so many processes; keeps how much was whole at a time."""

    def __init__(self, rank: int, world: int):
        self.rank, self.world, self.whole = rank, world, []

    def __call__(self, module: nn.Module) -> None:
        fresh = [weight for weight in module.parameters() if not hasattr(weight, "ds_tensor")]
        self.whole.append(sum(weight.numel() for weight in fresh))
        for weight in fresh:
            weight.ds_shape, weight.ds_zero_partition_rank = weight.shape, self.rank
            weight.ds_tensor = torch.full((-(-weight.numel() // self.world),), torch.nan, dtype=weight.dtype)
            weight.data = torch.empty(0, dtype=weight.dtype)


@pytest.mark.parametrize("world", [1, 2, 30])
def test_pieces_together_are_the_whole_and_zeros(folders, world):
    whole, ranks = teacher(folders).network(torch.bfloat16, ends=True), []
    for rank in range(world):
        pieces = Pieces(rank, world)
        ranks.append(dict(teacher(folders).network(torch.bfloat16, ends=True, partition=pieces).named_parameters()))
        assert max(pieces.whole) == max(sum(p.numel() for p in m.parameters(recurse=False)) for m in whole.modules())
    for name, weight in whole.named_parameters():
        flat = torch.cat([found[name].ds_tensor for found in ranks])
        assert flat.dtype == weight.dtype and torch.equal(flat[: weight.numel()], weight.flatten())
        assert not flat[weight.numel() :].any()


def test_two_processes_have_a_slice_each_of_every_weight_and_compute_the_same(folders):
    """With DeepSpeed's own partitioning and gathering."""
    low, full = torch.bfloat16, torch.float32
    settings = [("wan", full, False), ("wan", low, True), ("hunyuan_video", full, True), ("hunyuan_video", low, False)]
    cases = [(family, folders[family], dtype, ends) for family, dtype, ends in settings]
    context, port = multiprocessing.get_context("spawn"), launch.free_port()
    ears = []
    for rank in range(2):
        ear, mouth = context.Pipe(duplex=False)
        given = launch.environment(rank, 2, port), cases, mouth
        context.Process(target=partitions.look, args=given, daemon=True).start()
        ears.append(ear)
    assert [ear.poll(600) and ear.recv() for ear in ears] == [[], []]


@pytest.fixture
def copied(folders, tmp_path):
    return shutil.copytree(folders["wan"], tmp_path / "copied")


def transformer_files(folder):
    return sorted((folder / "transformer").glob("*.safetensors"))


def change(folder, edit):
    """Edit the tensors of the second file."""
    content = load_file(transformer_files(folder)[1])
    edit(content)
    save_file(content, transformer_files(folder)[1])


def configure(folder, **changes):
    config = folder / "transformer" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))


FAULTS = {
    "transformer/diffusion_pytorch_model-00002-of-0000.*.safetensors is missing, .*index.json lists it": (
        lambda f: transformer_files(f)[1].unlink()
    ),
    r"is no whole safetensors file \(\d+ bytes; .*\); fetch or copy it anew": (
        lambda f: transformer_files(f)[1].write_bytes(transformer_files(f)[1].read_bytes()[:-4])
    ),
    r"is no whole safetensors file \(19 bytes; .*\); fetch or copy it anew": (
        lambda f: transformer_files(f)[1].write_text("<html>404: no model")
    ),
    r"not of the network that its config describes: scale_shift_table has shape \(1, 2, 24\) in "
    r"diffusion_pytorch_model-00001-of-0000..safetensors, expected \(1, 2, 36\)": (
        lambda f: configure(f, num_attention_heads=3)
    ),
    r"its config describes: blocks.2\S+ is missing \(\d+ of \d+ tensors are\)": lambda f: configure(f, num_layers=3),
    r"its config describes: it has no place for blocks.1\S+ \(\d+ of \d+ tensors are left over\)": (
        lambda f: configure(f, num_layers=1)
    ),
    r"has no place for stray \(1 of \d+ tensors are left over\)": lambda f: change(
        f, lambda c: c.update(stray=torch.ones(1))
    ),
    "transformer/config.json is of a HunyuanVideoTransformer3DModel, expected a WanTransformer3DModel": (
        lambda f: configure(f, _class_name="HunyuanVideoTransformer3DModel")
    ),
}


@pytest.mark.parametrize("partition", [None, Pieces(0, 2)], ids=["whole", "in pieces"])
@pytest.mark.parametrize("said", FAULTS)
def test_files_of_another_network_are_one_line(copied, said, partition):
    FAULTS[said](copied)
    with pytest.raises(UserError, match=said) as caught:
        registry.teacher_class("wan")(copied).network(partition=partition)
    assert str(copied) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_that_diffusers_ignores_are_ignored(copied):
    change(copied, lambda content: content.update({"blocks.0.attn2.norm_added_q.weight": torch.ones(3)}))
    registry.teacher_class("wan")(copied).network()
