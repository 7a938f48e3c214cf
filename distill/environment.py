"""Where a run was made: versions, machine, revision of the code. No names of hosts, users or folders."""

import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

PACKAGES = ("distill", "torch", "diffusers", "transformers", "accelerate", "deepspeed", "numpy")


def environment(path: Path) -> None:
    """Write what can be known, as JSON."""
    found = {"versions": versions(), "revision": revision(), "machine": machine()}
    path.write_text(json.dumps(found, indent=1))


def versions() -> dict[str, str]:
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()} & set(PACKAGES)
    found = {name: importlib.metadata.version(name) for name in PACKAGES if name in installed}
    return {"python": platform.python_version()} | found


def machine() -> dict:
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpus": [f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB" for gpu in gpus],
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    named = re.search(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else None
    return named.group(1) if named else platform.processor() or platform.machine()


def revision() -> str | None:
    """The commit of the code in use, marked if files differ from it; None outside a git checkout."""
    source = Path(__file__).parent
    tracked = git(source, "ls-files", "--error-unmatch", Path(__file__).name)
    commit = git(source, "rev-parse", "HEAD")
    if tracked is None or commit is None:
        return None
    return commit + (" with changes" if git(source, "status", "--porcelain", "--untracked-files=no", ".") else "")


def git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:  # no git on this machine
        return None
    return done.stdout.strip() if done.returncode == 0 else None
