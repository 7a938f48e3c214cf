"""Memory that a process takes while it loads a teacher in pieces (ZeRO-3): its piece, and how much besides.

    python benchmarks/loading.py [--processes 1 2 4] [--write]

A random Wan of 0.8 GiB in 10 files is loaded by several processes at once, as `engine: zero3` loads it. Each polls its
anonymous memory (RssAnon: what is mapped from files is not counted, the system takes that back when it likes). Told is
the highest value above that before loading, beside the size of the process's pieces: the two differ by the constant.
Prints one JSON line and a table; --write keeps the line as results/loading.json.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from distill import environment, launch, weights, zero
from distill.engine import Engine
from distill.places import Place
from distill.teachers import loading
from distill.teachers.wan import Wan
from tests import tiny_wan

MIB = 1 << 20
FILE_BYTES = 90 * MIB
POLL_EVERY = 0.0005  # seconds
SIZE = {"num_attention_heads": 16, "attention_head_dim": 64, "ffn_dim": 4096, "num_layers": 12, "freq_dim": 256}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/loading.json")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # one of the processes
    arguments = parser.parse_args()
    if arguments.folder:
        print(json.dumps(load(arguments.folder)), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(write_teacher(Path(folder)), arguments.processes)
    print(json.dumps(result))
    print(table(result))
    if arguments.write:
        (ROOT / "benchmarks/results/loading.json").write_text(json.dumps(result, indent=1) + "\n")


def measure(folder: Path, processes: list[int]) -> dict:
    files = weights.files(folder / "transformer" / loading.WEIGHTS)
    about = {"command": " ".join(["python", "benchmarks/loading.py", *sys.argv[1:]]), "machine": environment.machine()}
    size = {"files": len(files), "network_mib": round(sum(file.stat().st_size for file in files) / MIB, 1)}
    rows = [{"processes": count} | worst(together(folder, count)) for count in processes]
    return {"benchmark": "loading", "versions": environment.versions(), **about, **size, "rows": rows}


def worst(found: list[dict]) -> dict:
    """Of the processes, the one that took most."""
    most = max(found, key=lambda each: each["above_piece_mib"])
    return {key: round(value, 1) for key, value in most.items()}


def together(folder: Path, processes: int) -> list[dict]:
    """What each of so many processes says."""
    port, line = launch.free_port(), [sys.executable, __file__, "--folder", str(folder)]
    started = [
        subprocess.Popen(
            line,
            env=os.environ | launch.environment(rank, processes, port) | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]
    said = [process.communicate()[0] for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("a process failed; it says above why")
    return [json.loads(output.splitlines()[-1]) for output in said]


def load(folder: Path) -> dict:
    """In one of the processes."""
    engine, cut, teacher = Engine(), zero.partition(Place(sharding="zero3")), Wan(folder)
    engine.wait()
    before = anonymous()
    with Peak() as peak:
        module = teacher.network(partition=cut)
    after = anonymous()
    piece = sum(weight.ds_tensor.nbytes for weight in module.parameters())
    engine.wait()
    return {
        "piece_mib": piece / MIB,
        "peak_mib": (peak.bytes - before) / MIB,
        "above_piece_mib": (peak.bytes - before - piece) / MIB,
        "kept_mib": (after - before) / MIB,
    }


class Peak:
    """The highest value of this process's anonymous memory, in bytes, while in its context."""

    def __enter__(self) -> "Peak":
        self.bytes, self.done = anonymous(), threading.Event()
        self.thread = threading.Thread(target=self._poll)
        self.thread.start()
        return self

    def _poll(self) -> None:
        while not self.done.wait(POLL_EVERY):
            self.bytes = max(self.bytes, anonymous())

    def __exit__(self, *_) -> None:
        self.done.set()
        self.thread.join()
        self.bytes = max(self.bytes, anonymous())


def anonymous() -> int:
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"RssAnon:\s+(\d+)", status)[1])


def write_teacher(folder: Path) -> Path:
    """A tiny pipeline with a larger transformer, whose weights are drawn one at a time."""
    tiny_wan.build(folder)
    for file in (folder / "transformer").iterdir():
        file.unlink()
    config = {"in_channels": 4, "out_channels": 4, "text_dim": 16, "rope_max_seq_len": 32, **SIZE}
    with loading.without_weights():
        module = WanTransformer3DModel(**config)
    module.save_config(folder / "transformer")
    drawn = ((name, 0.02 * torch.randn(weight.shape)) for name, weight in module.named_parameters())
    weights.write(folder / "transformer" / loading.WEIGHTS, drawn, most_bytes=FILE_BYTES)
    return folder


def table(result: dict) -> str:
    lines = [f"{result['network_mib']} MiB in {result['files']} files; MiB of anonymous memory per process"]
    lines.append("processes    piece     peak  above piece  kept after")
    for row in result["rows"]:
        lines.append(
            f"{row['processes']:9}  {row['piece_mib']:7.1f}  {row['peak_mib']:7.1f}"
            f"  {row['above_piece_mib']:11.1f}  {row['kept_mib']:10.1f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
