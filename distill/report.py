"""The page of a run: index.html in its folder, whole without a network, at any moment of the run."""

import datetime
import json
import os
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import jinja2

from . import image_prompt, plot, track, validation, yaml_source
from .evaluate import fidelity
from .evaluate.metrics import METRICS

PAGE = "index.html"
STATES = {"done": "finished", "stop": "stopped", "start": "in progress", "resume": "in progress"}


def write(folder: Path) -> Path:
    """Render what the folder holds so far."""
    loader = jinja2.PackageLoader("distill", "templates")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"duration": track.duration, "number": plot.number, "chart": plot.svg}
    html = environment.get_template("run.html.j2").render(content(folder))
    partial = folder / (PAGE + ".partial")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, folder / PAGE)
    return folder / PAGE


def content(folder: Path) -> dict:
    """Everything that the page shows."""
    log = track.read(folder)
    updates = [line for line in log if line["kind"] == "update"]
    recipe = (folder / "recipe.yaml").read_text(encoding="utf-8")
    shown = clips(folder)
    return {
        "name": folder.resolve().name,
        "recipe": recipe,
        "options": yaml_source.read(folder / "recipe.yaml").data,
        "state": state(log),
        "events": [line for line in log if line["kind"] in ("warning", "stop")] + unhealthy(log),
        "clips": shown,
        "charts": [*charts(shown, updates, alarms(log, "gradients")), *vitals(log), *critics(log), *measures(log)],
        "cost": cost(log, updates),
        "held_out": loaded(folder / "samples" / "held_out.json"),
        "evaluation": evaluation(folder),
        "environment": loaded(folder / "environment.json"),
        "written": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
    }


def evaluation(folder: Path) -> dict | None:
    """The student beside its teacher; files from before they named their metrics are given the names."""
    found = loaded(folder / fidelity.RESULT)
    if found and "metrics" not in found:
        measured = found["samplers"]["student"]
        names = measured.keys() | measured.get("world", {}).keys()
        found |= {"metrics": [asdict(m) for m in METRICS.values() if m.name in names], "failures": []}
    return found


def loaded(path: Path) -> dict | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def state(log: list[dict]) -> dict:
    """Where the run stands: in words, and in updates done of all."""
    named = [STATES[line["kind"]] for line in log if line["kind"] in STATES]
    total = [line["updates"] for line in log if line["kind"] in ("start", "resume")]
    done = [line["update"] for line in log if line["kind"] in ("update", "resume", "done")]
    return {"name": named[-1] if named else "empty", "done": max(done, default=0), "total": total[-1] if total else 0}


def clips(folder: Path) -> dict | None:
    """The teacher's columns and the student's updates; those that show other prompts than the newest are left out."""
    found = {path.parent.name: loaded(path) for path in (folder / "samples").glob(f"*/{validation.CLIPS}")}
    teachers = sorted((name for name in found if "steps" in found[name]), key=lambda n: -found[n]["steps"])
    students = sorted(name for name in found if "update" in found[name])
    shown = students[-1:] or teachers[:1]
    if not shown:
        return None
    newest = found[shown[0]]
    students = [name for name in students if found[name]["prompts"] == newest["prompts"]]
    return {
        "prompts": [image_prompt.text(prompt) for prompt in newest["prompts"]],
        "fps": newest["fps"],
        "seed": newest["seed"],
        "teachers": [{"folder": name, **found[name]} for name in teachers],
        "students": [{"folder": name, **found[name]} for name in students],
    }


def charts(shown: dict | None, updates: list[dict], exploded: dict[str, list[int]]) -> Iterator[plot.Chart]:
    if shown and shown["students"]:
        yield distance(shown)
    if not updates:
        return
    marks = boundaries(updates)
    for network in networks(updates):
        lines = [line for line in updates if line["network"] == network]
        terms = {name: None for line in lines for name in line["terms"]}
        series = {
            f"{network}/{name}": [(line["update"], line["terms"][name]) for line in lines if name in line["terms"]]
            for name in terms
        }
        yield plot.Chart(f"Loss of {network}", series, marks=marks)
    for key, title, flags in (("grad_norm", "Gradient norm before clipping", exploded), ("lr", "Learning rate", {})):
        series = {name: values(updates, name, key) for name in networks(updates)}
        yield plot.Chart(title, series, marks=marks, flags=flags)


def distance(shown: dict) -> plot.Chart:
    """The mean RMSE of the student's clips over updates, and the teacher's at fewer steps."""
    points = [(s["update"], statistics.fmean(s["rmse"])) for s in shown["students"]]
    best = shown["teachers"][0]["steps"]
    levels = {f"teacher, {t['steps']} steps": statistics.fmean(t["rmse"]) for t in shown["teachers"][1:]}
    return plot.Chart(f"Distance to the teacher's {best} steps (latent RMSE of the clips)", {"student": points}, levels)


def unhealthy(log: list[dict]) -> list[dict]:
    """What is wrong with the newest clips, and since: each guard's last word on each curve."""
    newest = max((line["update"] for line in log if line["kind"] == "validation"), default=0)
    said = [line for line in log if line["kind"] == "health" and line["update"] >= newest]
    return list({(line["guard"], line["curve"]): line for line in said if "guard" in line}.values())


def alarms(log: list[dict], *guards: str) -> dict[str, list[int]]:
    """Curve -> updates at which one of these guards fired."""
    found: dict[str, list[int]] = {}
    for line in log:
        if line["kind"] == "health" and line.get("guard") in guards:
            found.setdefault(line["curve"], []).append(line["update"])
    return found


def vitals(log: list[dict]) -> Iterator[plot.Chart]:
    """The student's clips beside the teacher's, and where they were out of bounds."""
    measured = [(line["update"], line["health"]) for line in log if line["kind"] == "validation" and "health" in line]
    names = {name: None for _, ratios in measured for name in ratios}
    series = {name: [(update, ratios[name]) for update, ratios in measured if name in ratios] for name in names}
    if series:
        flags = alarms(log, *series)
        yield plot.Chart("The student's clips over the teacher's (1 is alike)", series, {"teacher": 1.0}, flags=flags)


def critics(log: list[dict]) -> Iterator[plot.Chart]:
    """What they make of the student's clips and of the teacher's."""
    found = [(line["update"], line["critics"]) for line in log if line["kind"] == "validation" and line.get("critics")]
    names = {(critic, whose): None for _, verdicts in found for critic in verdicts for whose in verdicts[critic]}
    series = {f"{critic}, {whose}'s clips": [(u, v[critic][whose]) for u, v in found] for critic, whose in names}
    flags = {f"{critic}, student's clips": updates for critic, updates in alarms(log, "critic").items()}
    if series:
        yield plot.Chart("How sure critics are that clips are the student's", series, {"undecided": 0.5}, flags=flags)


def measures(log: list[dict]) -> Iterator[plot.Chart]:
    """What the method measured on videos that are kept from training."""
    found = [line for line in log if line["kind"] == "measures"]
    names = {name: None for line in found for name in line if name not in ("kind", "time", "update")}
    series = {name: [(line["update"], line[name]) for line in found] for name in names}
    if series:
        yield plot.Chart("Videos that were not learned from", series)


def networks(updates: list[dict]) -> list[str]:
    return list(dict.fromkeys(line["network"] for line in updates))


def values(updates: list[dict], network: str, key: str) -> list[tuple[int, float]]:
    return [(line["update"], line[key]) for line in updates if line["network"] == network]


def boundaries(updates: Iterable[dict]) -> dict[float, str]:
    """The first logged update of every stage after the first; the labels of many stages are numbers, to fit."""
    starts = {b["update"]: b["stage"] + 1 for a, b in pairwise(updates) if b["stage"] != a["stage"]}
    return {update: str(stage) if len(starts) > 7 else f"stage {stage}" for update, stage in starts.items()}


def cost(log: list[dict], updates: list[dict]) -> list[tuple[str, str]]:
    """What the run took so far; sums over all updates are the logged ones', scaled if `log.every` left some out."""
    if not updates:
        return []
    done, seconds = max(line["update"] for line in updates), sorted(line["seconds"] for line in updates)
    scale = done / len(updates)
    rows = [
        ("updates", f"{done:,}"),
        ("training", track.duration(sum(seconds) * scale)),
        (
            "seconds per update",
            f"{statistics.median(seconds):.3g} median, {seconds[int(0.95 * len(seconds))]:.3g} at 95 %",
        ),
    ]
    for name, count in evaluations(updates).items():
        rows.append((f"evaluations of {name}", f"{round(count * scale):,} samples"))
    spent = sum(line["seconds"] for line in log if line["kind"] == "validation")
    sessions = sum(line["kind"] in ("start", "resume") for line in log)
    return rows + [("clips of the student", track.duration(spent)), ("times started", str(sessions))]


def evaluations(updates: list[dict]) -> dict[str, int]:
    """Samples that went through each network."""
    total: dict[str, int] = {}
    for line in updates:
        for name, count in line.get("evaluations", {}).items():
            total[name] = total.get(name, 0) + count
    return total
