"""The loop: stages, steps, updates. Knows no method; a run can stop and go on between any two updates."""

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from . import assemble, checkpoint, half_rate, health, memory, report, resume, supply, teachers, weights
from .batch import Batch
from .checkpoint import Position
from .data.stream import check_share
from .descent import Before, NonFinite, descend
from .engine import Engine
from .errors import Stopped, UserError
from .evaluate import fidelity
from .folder import RunFolder
from .gallery import Gallery
from .method import Stage
from .signals import StopRequest
from .track import Tracker
from .validation import Alone

Result = TypeVar("Result")


def run(recipe) -> Path:
    """Train a recipe, or go on with it where its folder says; returns the run folder.

    Raises:
        UserError: the recipe, the folder or the data do not fit; nothing was changed.
        Stopped: a signal or a non-finite value ended the run early, at a saved state.
    """
    engine = Engine()
    try:
        with RunFolder(recipe, engine) as folder, StopRequest() as stop:
            return Trainer(recipe, engine, folder.path, stop).train()
    finally:
        engine.close()


class Trainer:
    def __init__(self, recipe, engine: Engine, folder: Path, stop: StopRequest):
        self.recipe, self.engine, self.folder, self.stop = recipe, engine, folder, stop
        check_share(recipe.train, engine.world)
        self.method = assemble.method(recipe)
        self.stages = assemble.stages(self.method, recipe)
        self.plan = [assemble.updates(self.method, stage) for stage in self.stages]
        self.teacher = teachers.load(recipe.teacher, recipe.video)
        half = half_rate.of_recipe(recipe, self.method, self.teacher)  # of the last stage's student
        videos = supply.clips(recipe, self.teacher, engine, stop)
        self.embeddings = supply.encoded(recipe, self.teacher, videos, engine)
        self.stream = supply.stream(recipe, self.method, self.teacher, videos, self.embeddings, engine, stop)
        self.roles = assemble.roles(self.method, self.teacher, recipe, engine.device)
        self.averages = assemble.averages(self.method, recipe)
        self.gallery = Gallery(
            folder, recipe, self.teacher, self.method, self.roles, self.embeddings, engine.device, half
        )
        self.total = sum(sum(stage.values()) for stage in self.plan)
        self.gradients = health.Gradients(recipe.health)
        self.alarms: list[health.Alarm] = []  # of the update that was just done
        self.position = Position()
        self.states: list[dict[str, Tensor]] = []  # of this process's micro-batches, when resumed within a step

    def train(self) -> Path:
        with Tracker(self.folder, self.recipe, self.engine.main, self.total) as self.tracker:
            self._resume()
            self._show(self._teacher_clips)
            while self.position.stage < len(self.stages):
                self._stage(self.stages[self.position.stage])
            self._finish()
        return self.folder

    # Stages, steps, updates

    def _stage(self, stage: Stage) -> None:
        self.method.stage = stage
        if self.position.step == 0 and self.position.update == 0:
            self._enter(stage)
        while self.position.step < stage.steps:
            self._step()
        self.position.stage, self.position.step = self.position.stage + 1, 0

    def _enter(self, stage: Stage) -> None:
        for name in assemble.trained(self.method):
            updates = self.plan[self.position.stage][name]
            self.roles[name].prepare(self.recipe.optim[name], updates, keep_moments=stage.carry_optimizers)
        self.gradients.begin()
        self.method.begin(stage)

    def _step(self) -> None:
        batches = self._batches()
        for batch, state in zip(batches, self.states, strict=bool(self.states)):
            batch.state.update(state)
        self.states = []
        updates = list(self.method.updates(self.position.step))
        for update in updates[self.position.update :]:
            started = time.perf_counter()
            line = self._descend(update, batches)
            self._average(update.network)
            self._advance(last=self.position.update + 1 == len(updates))
            self.tracker.update(line | {"update": self.position.done, "seconds": time.perf_counter() - started})
            self.alarms = self.gradients.take(line["network"], line["grad_norm"])
            self._tell(self.alarms)
            self._pause(batches)

    def _batches(self) -> list[Batch]:
        """The step's; where one process cannot read its own, all save and stop."""
        batches, fault = [], None
        try:
            batches = self.stream.batches(self.position.steps, self.engine.rank, self.engine.world)
        except UserError as error:
            fault = str(error)
        if fault := self.engine.first(fault):
            raise self._stopped(f"{fault}, and go on with `distill run {self.folder}`; {self._state()}", 2)
        return batches

    def _state(self) -> str:
        """Where the run goes on from, saved now if it can be."""
        if not self.position.done:
            return "nothing was trained yet"
        if self.position.update:  # within a step, whose batches are not there: it was just resumed
            return "its state is that of the last checkpoint"
        return f"its state is saved in {self._save([])}"

    def _descend(self, update, batches: list[Batch]) -> dict:
        at = {"step": self.position.step, "stage": self.position.stage, "stages": len(self.stages)}
        clip = self.recipe.optim[update.network].clip
        before = Before(self.roles[update.network], self.method, batches)
        try:
            line = descend(update, batches, self.position.update, self.roles, self.engine, clip)
        except NonFinite as fault:
            before.restore()
            saved = self._save(batches) if self.position.done else "nothing was trained yet"
            stage = f"stage {at['stage'] + 1} of {at['stages']}"
            where = f"update {self.position.done + 1} ({stage}, step {at['step'] + 1})"
            told = self.gradients.told(update.network)
            raise self._stopped(f"{where}: {fault}; {told}; state before it: {saved}", 1) from fault
        memory.settle(self.method, self.engine.average)
        return at | line

    def _average(self, network: str) -> None:
        for name, (of, decay) in self.averages.items():
            if of == network:
                self.roles[name].average_from(self.roles[of], decay)

    def _advance(self, last: bool) -> None:
        self.position.done += 1
        self.position.update += 1
        if last:
            self.position.update = 0
            self.position.step += 1
            self.position.steps += 1

    # Between updates

    def _pause(self, batches: list[Batch]) -> None:
        done = self.position.done
        if self._stop_asked():
            saved = self._save(batches)
            name = signal.Signals(self.stop.signal or signal.SIGTERM).name
            raise self._stopped(f"{name}: saved in {saved}; go on with `distill run {self.folder}`", 130)
        if done % self.recipe.checkpoint.every == 0 and done < self.total:
            self._save(batches)
        if self.recipe.validation and done % self.recipe.validation.every == 0:
            self.alarms = self.alarms + self._show(self._clips)
        if self.recipe.held_out and done % self.recipe.held_out.every == 0:
            self._show(self._measure)
        self._heed(batches)

    def _tell(self, alarms: list[health.Alarm]) -> None:
        for alarm in alarms:
            self.tracker.event("health", update=self.position.done, **vars(alarm))

    def _heed(self, batches: list[Batch]) -> None:
        """Stop for guards that the recipe names."""
        grave = [alarm for alarm in self.alarms if alarm.guard in self.recipe.health.stop]
        if grave:
            saved = self._save(batches)
            said = f"health.stop names {grave[0].guard}, and {grave[0].message}"
            raise self._stopped(f"update {self.position.done}: {said}; saved in {saved}", 1)

    def _stop_asked(self) -> bool:
        asked = torch.tensor([float(self.stop.signal > 0)], device=self.engine.device)
        self.engine.average([asked])
        return bool(asked > 0)

    def _stopped(self, message: str, code: int) -> Stopped:
        self.tracker.event("stop", message=message)
        self._on_main(lambda: report.write(self.folder))
        return Stopped(message, code)

    # On the main process, the others waiting

    def _on_main(self, work: Callable[[], Result]) -> Result:
        with torch.no_grad():
            result = self.engine.main_first(work)
            self.teacher.unload()
        return result

    def _show(self, work: Callable[[Alone], Result]) -> Result:
        """Work that evaluates networks: the main process's, or all take part if a network is in pieces.

        Args:
            work: is given what does the rest of it, writing and drawing, on the main process alone.
        """
        if not self.gallery.together:
            return self._on_main(lambda: work(lambda part: part()))
        with torch.no_grad():
            result = work(self.engine.main_first)
            self.teacher.unload()
        return result

    def _teacher_clips(self, alone: Alone) -> None:
        self.gallery.teacher_clips(alone)
        alone(lambda: report.write(self.folder))

    def _clips(self, alone: Alone) -> list[health.Alarm]:
        line = self.gallery.clips(self.position.done, alone)
        self.tracker.event("validation", **line)
        limits = self.recipe.health
        alarms = health.of_clips(line["health"], limits)
        alarms += health.of_critics(line["critics"], bool(alarms), limits)
        self._tell(alarms)
        alone(lambda: report.write(self.folder))
        return alarms

    def _measure(self, alone: Alone) -> None:
        found = self.gallery.measure(self.stream.held_out(), alone)
        self.tracker.event("measures", update=self.position.done, **found)
        alone(lambda: report.write(self.folder))

    def _evaluate(self) -> None:
        """Work of all processes."""
        if self.recipe.evaluation:
            try:
                line = self.gallery.evaluate(self.position.done, self.tracker.say, self.engine, self._leave)
            except fidelity.Interrupted:
                name = signal.Signals(self.stop.signal or signal.SIGTERM).name
                kept = "the student is trained, and what was evaluated is kept"
                raise self._stopped(f"{name}: {kept}; go on with `distill run {self.folder}`", 130) from None
            self.tracker.event("evaluation", **line)
            self.teacher.unload()

    def _leave(self) -> None:
        if self.stop.signal:
            raise fidelity.Interrupted

    # Beginning and end

    def _resume(self) -> None:
        warnings: list[str] = []
        found = checkpoint.newest(self.folder, warnings.append, self._damage)
        if found is not None:
            self._load(found)
        kind = "start" if found is None else "resume"
        self.tracker.start(kind, self.position.done, world_size=self.engine.world)
        for message in warnings:
            self.tracker.event("warning", message=message)

    def _damage(self, path: Path) -> str | None:
        """Of a checkpoint, every process looking at its share of the files: no network is touched before all agree."""
        return self.engine.first(checkpoint.damage(path, self.engine.rank, self.engine.world))

    def _load(self, path: Path) -> None:
        manifest = checkpoint.manifest(path)
        stateless = not self.method.state_dict()
        resume.check(path, manifest, self.recipe, self.stream.digests, self.engine.world, stateless)
        self.position = Position(**manifest["position"])
        for name in assemble.saved(self.method, self.roles):
            self.roles[name].load_weights(weights.read(checkpoint.network(path, name)))
        stage = min(self.position.stage, len(self.plan) - 1)  # a finished run stands behind its last stage
        for name in assemble.trained(self.method):
            self.roles[name].prepare(self.recipe.optim[name], self.plan[stage][name])
            self.roles[name].load_state(path)
        rank = self.engine.rank if manifest["world_size"] == self.engine.world else 0
        mine = checkpoint.load_state(path / f"rank_{rank:05d}.pt")
        self.method.load_state_dict(mine["method"])
        self.gradients.load_state(manifest.get("gradients", {}))
        self.states = [{k: v.to(self.engine.device) for k, v in state.items()} for state in mine["states"]]

    def _save(self, batches: list[Batch]) -> Path:
        self._check_weights()
        within = self.position.update > 0
        state = {"method": self.method.state_dict(), "states": [b.state for b in batches] if within else []}

        def write(tmp: Path) -> None:
            torch.save(state, tmp / f"rank_{self.engine.rank:05d}.pt")
            self._write_networks(tmp)

        info = {
            "method": self.recipe.method.name,
            "world_size": self.engine.world,
            "data": self.stream.digests,
            "gradients": self.gradients.state(),
        }
        path = checkpoint.save(self.folder, self.position, info, write, self.engine)
        if self.engine.main:
            checkpoint.prune(self.folder, self.recipe.checkpoint.keep)
        self.tracker.event("checkpoint", update=self.position.done, path=path.relative_to(self.folder).as_posix())
        return path

    def _check_weights(self) -> None:
        """Weights that are not finite are never saved: the checkpoint before them stays the newest."""
        if fault := assemble.not_finite(self.method, self.roles):
            name, said = fault
            raise self._stopped(
                f"update {self.position.done}: {said} and was not saved; {self.gradients.told(name)}; "
                f"`distill run {self.folder}` goes on from the checkpoint before",
                1,
            )

    def _write_networks(self, tmp: Path) -> None:
        for name in assemble.saved(self.method, self.roles):
            weights.write(checkpoint.network(tmp, name), self.roles[name].stream(), self.engine.main)
        for name in assemble.trained(self.method):
            self.roles[name].save_state(tmp, self.engine.main)

    def _finish(self) -> None:
        last = checkpoint.folder(self.folder, self.position.done)
        if self._damage(last) is not None:  # not there, or torn
            self._save([])
        if self.recipe.validation and self.position.done % self.recipe.validation.every:
            self._show(self._clips)
        if self.recipe.held_out and self.position.done % self.recipe.held_out.every:
            self._show(self._measure)
        self._evaluate()
        self.tracker.event("done", update=self.position.done)
        self._on_main(lambda: report.write(self.folder))
