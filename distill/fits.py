"""Faults of a recipe that lie between its sections: what the method needs and is not given, or is given in vain."""

from pathlib import Path

import pydantic

from . import places, registry
from .errors import UserError
from .evaluate import metrics
from .sections import is_embedded, is_hub_id
from .signature import Signature
from .yaml_source import Source, did_you_mean, missing


def check(source: Source) -> None:
    """Note every such fault in the source."""
    method = _signature(source)
    _check_teacher(source)
    if method:
        _check_optim(source, method)
        _check_student(source, method)
        _check_data(source, method)
        _check_engine(source, method)
        _check_pieces(source)
        _check_lora(source, method)
    _check_train(source, method)
    _check_steps(source)
    _check_metrics(source)
    _check_source(source)


def _signature(source: Source) -> Signature | None:
    name = source.at("method", "name")
    try:
        return registry.describe(name) if isinstance(name, str) and name else None
    except UserError:
        return None  # noted with the method's options


def _check_teacher(source: Source) -> None:
    family, path = source.at("teacher", "family"), source.at("teacher", "path")
    if isinstance(family, str) and family:
        try:
            registry.teacher(family)
        except UserError as error:
            source.fault(source.mark(("teacher", "family")), f"teacher.family: {error}")
    if isinstance(path, str) and source.at("teacher", "revision") is not None and not is_hub_id(path):
        source.fault(
            source.mark(("teacher", "revision")), f"teacher.revision: {path} is no hub id and has no revisions"
        )


def _check_optim(source: Source, method: Signature) -> None:
    optim = source.at("optim")
    if not isinstance(optim, dict):
        return
    trained = [name for name, kind in method.networks.items() if kind in ("Trained", "Built")]
    for name in optim:
        if name not in trained:
            hint = did_you_mean(name, trained) or f"; it trains {', '.join(trained)}"
            source.fault(source.mark(("optim", name)), f"optim.{name}: the method trains no such network{hint}")
        if source.at("optim", name, "warmup") and source.at("optim", name, "schedule") in (None, "constant"):
            mark = source.mark(("optim", name, "warmup"))
            source.fault(mark, f"optim.{name}.warmup: schedule constant has none; use constant_with_warmup")
    for name in trained:
        if name not in optim:
            source.fault(source.mark(("optim",)), f"optim.{name}: required, but missing: the method trains {name}")


def _check_train(source: Source, method: Signature | None) -> None:
    batch, micro = source.at("train", "batch_size"), source.at("train", "micro_batch_size")
    if type(batch) is int and type(micro) is int and micro > 0 and batch % micro:
        text = f"train.batch_size: {batch} is not a multiple of micro_batch_size {micro}"
        source.fault(source.mark(("train", "batch_size")), text)
    endless = method and not method.has_stages and not source.at("train", "steps")
    if endless and isinstance(source.at("train"), dict):
        source.fault(source.mark(("train",)), "train.steps: required, but missing: the method has no stages of its own")


def _check_metrics(source: Source) -> None:
    """Names without weights or code behind them: the others are looked for when a run begins."""
    names = source.at("evaluation", "metrics")
    for i, name in enumerate(names if isinstance(names, list) else []):
        if isinstance(name, str) and name and ":" not in name and name.partition("=")[0] not in metrics.PLUGS:
            try:
                metrics.chosen([name], world=source.at("evaluation", "world") is True)
            except UserError as error:
                source.fault(source.mark(("evaluation", "metrics", i)), f"evaluation.metrics: {error}")


def _check_data(source: Source, method: Signature) -> None:
    """What the method learns from, and nothing else."""
    if not isinstance(source.at("data"), dict):
        return
    streams = {"trajectories": "recorded trajectories", "videos": "real videos"}
    for stream, what in streams.items():
        given = source.at("data", stream) is not None
        if stream in method.data and not given:
            text = f"data.{stream}: required, but missing: the method learns from {what}"
            source.fault(source.mark(("data",)), text)
        if given and stream not in method.data:
            text = f"data.{stream}: the method reads no {stream}; leave it out"
            source.fault(source.mark(("data", stream)), text)
    if streams.keys() <= set(method.data):
        text = "method.name: the method reads trajectories and videos, which no run gives together"
        source.fault(source.mark(("method", "name")), text)
    given, alone = source.at("data", "prompts") is not None, method.data == ("videos",)
    if alone and given:
        source.fault(source.mark(("data", "prompts")), "data.prompts: the method reads no prompts; leave it out")
    if not alone and not given:
        source.fault(source.mark(("data",)), "data.prompts: required, but missing")


def _check_steps(source: Source) -> None:
    """Of the recorder of trajectories, and how many of them are kept."""
    given, steps, keep = (source.at("data", "trajectories", *key) for key in ((), ("steps",), ("keep",)))
    steps, keep = 50 if steps is None else steps, 5 if keep is None else keep  # the section's defaults
    if given is not None and type(steps) is int and type(keep) is int and keep > 0 and steps % keep:
        fitting = ", ".join(str(m) for m in range(1, steps + 1) if steps % m == 0)
        text = f"data.trajectories.keep: {keep} does not divide steps {steps}; it may be all, or one of {fitting}"
        source.fault(source.mark(("data", "trajectories", "keep")), text)


def _check_source(source: Source) -> None:
    """Where videos come from: files, or the embedded world, which needs a number."""
    place, clips = source.at("data", "videos", "source"), source.at("data", "videos", "clips")
    if not isinstance(place, str):
        return  # no videos, or noted by the model
    mark = source.mark(("data", "videos", "source"))
    if not is_embedded(place):
        if clips is not None:
            text = "data.videos.clips: counts what the embedded world renders; leave it out, or set source: embedded"
            source.fault(source.mark(("data", "videos", "clips")), text)
        return
    if clips is None:
        source.fault(mark, "data.videos.clips: required, but missing: how many the embedded world renders")
    from .embedded.world import DOMAINS  # imports numpy

    domain = place.partition(":")[2]
    if ":" in place and domain not in DOMAINS:
        known = did_you_mean(domain, DOMAINS) or f"; the embedded world has {', '.join(DOMAINS)}"
        source.fault(mark, f"data.videos.source: no domain {domain!r}{known}")


def _check_student(source: Source, method: Signature) -> None:
    """Sections about a student where none is trained, and about measures where none are taken."""
    path = source.at("half_rate", "interpolator")
    if isinstance(path, str) and not Path(path).exists():
        text = f"half_rate.interpolator: {missing(Path(path))}; train one with the method interpolator"
        source.fault(source.mark(("half_rate", "interpolator")), text)
    if "student" not in method.networks:
        for key in (("validation",), ("evaluation",), ("half_rate",), ("train", "ema")):
            if source.at(*key) is not None:
                source.fault(source.mark(key), f"{'.'.join(key)}: the method trains no student; leave it out")
    if not method.measures and source.at("held_out") is not None:
        source.fault(source.mark(("held_out",)), "held_out: the method measures nothing on videos; leave it out")


def _check_engine(source: Source, method: Signature) -> None:
    """Networks that are not there, or that cannot be kept as the recipe says."""
    engine = source.at("engine")
    for name, said in engine.items() if isinstance(engine, dict) else ():
        try:
            asked = places.Place.model_validate({"sharding": said} if isinstance(said, str) else said)
        except pydantic.ValidationError:
            continue  # noted by the model
        mark, kind = source.mark(("engine", name)), method.networks.get(name)
        if kind is None:
            hint = did_you_mean(name, method.networks) or f"; it has {', '.join(method.networks)}"
            source.fault(mark, f"engine.{name}: the method has no such network{hint}")
        elif (why := places.refusal(kind, asked)) is not None:
            source.fault(mark, f"engine.{name}: {why}")


def _check_pieces(source: Source) -> None:
    """What cannot be where weights are in pieces."""
    engine = source.at("engine")
    asked = list(engine.values()) if isinstance(engine, dict) else [engine]
    spread = "zero3" in [each.get("sharding") if isinstance(each, dict) else each for each in asked]
    checkpointing, compiled = source.at("train", "activation_checkpointing"), source.at("train", "compile")
    for option, why in places.clashes(spread, source.at("lora") is not None, checkpointing, compiled is True).items():
        source.fault(source.mark(("train", option)), f"train.{option}: {why}")


def _check_lora(source: Source, method: Signature) -> None:
    """Adapters where no network comes from the teacher, and places for them other than whole on every process."""
    if source.at("lora") is None:
        return
    if "Trained" not in method.networks.values():
        source.fault(source.mark(("lora",)), "lora: the method trains no network of the teacher's; leave it out")
    engine = source.at("engine")
    if engine in ("zero1", "zero2"):
        text = f"engine: {engine} spreads what belongs to trained networks; with lora those are small and stay whole"
        source.fault(source.mark(("engine",)), f"{text}; zero3 spreads their frozen base, or leave it out")
    for name, kind in method.networks.items() if isinstance(engine, dict) else ():
        if kind in ("Trained", "Copy", "Average") and engine.get(name) not in (None, "ddp"):
            text = f"engine.{name}: with lora its adapters are small and stay whole on every process"
            source.fault(source.mark(("engine", name)), f"{text}; spread their frozen base: engine.teacher: zero3")
