"""What half rate saves: a student's four steps, the first two on every second latent frame, against all at full rate.

    python benchmarks/half_rate.py [--rounds 15] [--write]

Measured on a small Wan at the latent length of Wan's clips (21 frames, 1344 tokens), in one process and in turns:
quoted is the median over rounds of the ratio of CPU times, which is steady on a machine that is not (wall time is not).
Operations are counted by torch, there and for Wan 1.3B and 14B at 480 x 832 x 81, which are built without weights.
Prints one JSON line and a table; --write keeps the line as results/half_rate.json.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.step import cpu, cpu_seconds
from distill import environment, samplers
from distill.batch import Condition
from distill.interpolation import Interpolator
from distill.networks import Net

LEVELS = torch.tensor([1.0, 0.9, 0.757, 0.522, 0.0], dtype=torch.float64)
HALF_STEPS = 2
SMALL = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 4, "ffn_dim": 512, "text_dim": 64}
WAN = {  # transformer/config.json of Wan2.1-T2V; the paper's times in seconds: of a clip, at full and at half rate
    "Wan 1.3B": {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960, "seconds": [10.8, 7.8]},
    "Wan 14B": {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824, "seconds": [28.0, 22.2]},
}
FRAMES = 21
SIZES = {  # latent pixels of a side, text tokens
    "small": {"sides": (16, 16), "text": 32},
    "full": {"sides": (60, 104), "text": 512},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--write", action="store_true", help="keep the result in benchmarks/results/half_rate.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = {"benchmark": "half_rate", "command": " ".join(["python", *sys.argv]), "rounds": arguments.rounds}
    result |= {"python": platform.python_version(), "cpu": cpu(), "threads": 1, "versions": environment.versions()}
    result |= {"half_steps": HALF_STEPS, "levels": LEVELS.tolist(), "measured": measured(arguments.rounds)}
    result["counted"] = {name: counted(dict(said)) for name, said in WAN.items()}
    print(json.dumps(result))
    print(table(result))
    if arguments.write:
        path = ROOT / "benchmarks" / "results" / "half_rate.json"
        path.write_text(json.dumps(result, indent=1) + "\n")


@torch.no_grad()
def measured(rounds: int) -> dict:
    """Both samplers on the small Wan, in turns."""
    torch.manual_seed(0)
    full, halved, interpolate = contestants(WanTransformer3DModel(**SMALL, freq_dim=64).eval(), SIZES["small"], "cpu")
    operations = {name: flop(work) for name, work in (("full", full), ("half", halved))}
    pairs = [(cpu_seconds(full, 1), cpu_seconds(halved, 1)) for _ in range(rounds)]
    low, median, high = statistics.quantiles([half / whole for whole, half in pairs], n=4)
    return {
        "flop_ratio": round(operations["half"] / operations["full"], 4),
        "interpolator_flop_share": round(flop(interpolate) / operations["half"], 5),
        "cpu_ratio": round(median, 4),
        "quartiles": [round(low, 4), round(high, 4)],
        "full_seconds": round(statistics.median(whole for whole, _ in pairs), 4),
        "half_seconds": round(statistics.median(half for _, half in pairs), 4),
    }


@torch.no_grad()
def counted(config: dict) -> dict:
    """Operations of both samplers at full size, of a network without weights."""
    seconds = config.pop("seconds")
    with torch.device("meta"):
        transformer = WanTransformer3DModel(**config, attention_head_dim=128, text_dim=4096)
        full, halved, interpolate = contestants(transformer, SIZES["full"], "meta")
        operations = {name: flop(work) for name, work in (("full", full), ("half", halved))}
        share = flop(interpolate) / operations["half"]
    return {
        "petaflop": {name: round(n / 1e15, 4) for name, n in operations.items()},
        "flop_ratio": round(operations["half"] / operations["full"], 4),
        "interpolator_flop_share": round(share, 6),
        "paper_seconds": seconds,
        "paper_time_ratio": round(seconds[1] / seconds[0], 3),
    }


class Bare:
    """A role that is the stock transformer: the toolkit's asks for autocast, which knows no weightless networks."""

    guidance_embedded = False

    def __init__(self, transformer: WanTransformer3DModel):
        self.transformer = transformer

    def forward(self, x: Tensor, sigma: Tensor, cond: Condition) -> Tensor:
        return self.transformer(x, 1000 * sigma, cond["text"], return_dict=False)[0]


def contestants(transformer: WanTransformer3DModel, size: dict, device: str) -> list[Callable[[], Tensor]]:
    """A clip at full rate, one that starts at half rate, and the interpolator's part of it."""
    channels, text = transformer.config.in_channels, transformer.config.text_dim
    net, half = Net(Bare(transformer)), samplers.Half(HALF_STEPS, Interpolator(channels).eval().to(device))
    noise = torch.randn(1, channels, FRAMES, *size["sides"], device=device)
    cond = Condition(text=torch.randn(1, size["text"], text, device=device))
    return [
        lambda: samplers.euler(net, noise, LEVELS, cond),  # as many evaluations as with fresh noise
        lambda: samplers.half_rate(net, noise, LEVELS, cond, half, renoises=False),
        lambda: half.interpolate(noise[:, :, ::2]),
    ]


def flop(work: Callable[[], Tensor]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # the CPU's own kernel is not counted
        work()
    return counter.get_total_flops()


def table(result: dict) -> str:
    small = result["measured"]
    quartiles = " - ".join(f"{q:.3f}" for q in small["quartiles"])
    lines = [
        "network    FLOP ratio  time ratio",
        f"small Wan  {small['flop_ratio']:10.4f}  CPU {small['cpu_ratio']:.3f} ({quartiles})",
    ]
    for name, row in result["counted"].items():
        lines.append(f"{name:9}  {row['flop_ratio']:10.4f}  the paper's {row['paper_time_ratio']:.3f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
