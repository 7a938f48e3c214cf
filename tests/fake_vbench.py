"""An environment with packages that mimic vbench 0.1.5 and vbench2 0.1.1, as far as distill calls them: their classes,
how they look for videos, what they write. The measurements are the lengths of the files' names.
"""

import sys
from pathlib import Path

CLASS = """
import json, os
from pathlib import Path

class {main}:
    def __init__(self, device, full_info_dir, output_path):
        assert str(device) == "cpu" and os.path.isfile(full_info_dir)
        self.info, self.out = full_info_dir, output_path

    def evaluate(self, videos_path, name, dimension_list=None, mode="", **kwargs):
        assert mode == "vbench_standard" and kwargs == {{"imaging_quality_preprocessing_mode": "longer"}}
        (dimension,) = dimension_list
        if dimension in {failing}:
            raise RuntimeError("no weights of " + dimension)
        present = os.listdir(videos_path)
        ending, values = Path(present[0]).suffix, []
        for entry in json.load(open(self.info)):
            for i in range({samples}) if dimension in entry["dimension"] else ():
                file = entry["prompt_en"][:{stem}] + "-" + str(i) + ending
                if file in present:
                    value = (len(file) - 4) / 100
                    values.append({{"video_path": os.path.join(videos_path, file), "video_results": value}})
        mean = sum(each["video_results"] for each in values) / len(values)
        with open(os.path.join(self.out, name + "_eval_results.json"), "w") as file:
            json.dump({{dimension: [mean, values]}}, file)
        with open(os.path.join(os.path.dirname(__file__), "calls.txt"), "a") as calls:
            calls.write(dimension + "\\n")
"""
STATIC_FILTER = '''
import os, shutil
DEVICE = "cuda"

def register_subparsers(subparsers):
    parser = subparsers.add_parser("static_filter")
    parser.add_argument("--videos_path", required=True)
    parser.add_argument("--result_path", default="./filter_results")
    parser.set_defaults(func=run)

def run(args):
    """Lets the videos 1, 3, 5, ... pass, at most five."""
    assert DEVICE == "cpu"
    out = os.path.join(args.result_path, "filtered_videos")
    os.makedirs(out)
    for file in sorted(os.listdir(args.videos_path)):
        stem, number = file[:-4].rsplit("-", 1)
        if int(number) % 2 and int(number) < 10:
            shutil.copy(os.path.join(args.videos_path, file), os.path.join(out, f"{stem}-{int(number) // 2}.mp4"))
'''
TORCH = "class cuda:\n    is_available = staticmethod(lambda: False)\n\ndef device(name):\n    return name\n"


def build(folder: Path, failing: tuple[str, ...] = ()) -> Path:
    """Write the environment and return its python."""
    of = {"vbench": {"main": "VBench", "samples": 5, "stem": "None"}}
    of["vbench2"] = {"main": "VBench2", "samples": 3, "stem": "180"}
    for package, facts in of.items():
        write(folder / package / "__init__.py", CLASS.format(failing=failing, **facts))
        write(folder / f"{package}-0.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.0\n")
    write(folder / "vbench/cli/static_filter.py", STATIC_FILTER)
    write(folder / "vbench/utils.py", "def init_submodules(dimensions): assert dimensions == ['dynamic_degree']\n")
    write(folder / "torch.py", TORCH)
    python = write(folder / "python", f'#!/bin/sh\nPYTHONPATH="{folder}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return python


def calls(python: Path, package: str = "vbench") -> list[str]:
    """The dimensions that were measured."""
    path = python.parent / package / "calls.txt"
    return path.read_text().splitlines() if path.is_file() else []


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
