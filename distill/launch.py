"""Several processes of one command on this machine. (For several machines: torchrun ... -m distill run RECIPE.)"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

GRACE = 30.0  # seconds that the others get once one process has failed; then they wait for it in vain
LOOK_EVERY = 0.1  # seconds


def launch(processes: int, arguments: Sequence[str]) -> int:
    """Run `distill ARGUMENTS` in so many processes that know each other; the exit code of the first that failed."""
    port = free_port()
    command = [sys.executable, "-m", "distill", *arguments]
    children = [subprocess.Popen(command, env=environment(rank, processes, port)) for rank in range(processes)]

    def forward(*_) -> None:
        for child in children:
            child.terminate()  # not SIGINT: Ctrl-C has reached them already, and a second one means leave at once

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return _wait(children)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_launched() -> bool:
    """Whether this process is one of several already."""
    return "RANK" in os.environ


def is_main() -> bool:
    """Whether this process is the one that speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def _wait(children: list[subprocess.Popen]) -> int:
    failed, deadline = 0, float("inf")
    while None in (codes := [child.poll() for child in children]):
        if not failed and any(codes):
            failed, deadline = next(code for code in codes if code), time.monotonic() + GRACE
        if time.monotonic() > deadline:
            for child in children:
                child.kill()
        time.sleep(LOOK_EVERY)
    failed = failed or next((code for code in codes if code), 0)
    return failed if failed >= 0 else 128 - failed  # killed by a signal: as shells say it


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """What torchrun would set."""
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    threads = {"OMP_NUM_THREADS": max(1, (os.cpu_count() or 1) // processes)}
    return {k: str(v) for k, v in threads.items()} | os.environ | {k: str(v) for k, v in (ranks | where).items()}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
