"""Run by the python of the official package's environment, which may be old and has nothing of ours: stdlib only.

The package's class and not its command: that one needs a GPU, hands paths to a shell without quotes, hides how it
ended, and in vbench2 0.1.1 cannot start at all (docs/vbench.md). One process, as several average some dimensions
otherwise.
"""

import argparse
import importlib
import os
import sys


def main():
    parser = argparse.ArgumentParser()
    for name in ("package", "main", "dimension", "videos", "info", "out", "device"):
        parser.add_argument("--" + name, required=True)
    parser.add_argument("--static-filter", action="store_true")
    asked = parser.parse_args()
    import torch

    device = asked.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = static_only(asked.videos, asked.out, device) if asked.static_filter else asked.videos
    benchmark = getattr(importlib.import_module(asked.package), asked.main)(torch.device(device), asked.info, asked.out)
    more = {"imaging_quality_preprocessing_mode": "longer"}
    benchmark.evaluate(folder, asked.dimension, dimension_list=[asked.dimension], mode="vbench_standard", **more)


def static_only(videos, out, device):
    """The folder of the videos that the package's own filter takes for static, five per prompt at most."""
    from vbench.cli import static_filter
    from vbench.utils import init_submodules

    init_submodules(["dynamic_degree"])  # fetches the weights of the same flow network, if they are not there
    static_filter.DEVICE = device
    parser = argparse.ArgumentParser()
    static_filter.register_subparsers(parser.add_subparsers())
    arguments = parser.parse_args(["static_filter", "--videos_path", videos, "--result_path", out])
    arguments.func(arguments)
    folder = os.path.join(out, "filtered_videos")
    if not os.listdir(folder):
        sys.exit("the static filter lets none of the videos pass: they all move")
    return folder


if __name__ == "__main__":
    main()
