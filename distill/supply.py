"""What a run is fed: encoded prompts, the teacher's trajectories (recorded if they are missing), and their stream."""

from . import assemble, synthesize
from .data import agreement, prompts
from .data.prompts import Embeddings
from .data.stream import PromptStream, TrajectoryStream
from .engine import Engine
from .method import Method
from .signals import StopRequest


def encoded(recipe, teacher, engine: Engine) -> Embeddings:
    """The encodings of every prompt of the run, once its store will do; afterwards the text encoder is gone."""
    if recipe.data.trajectories:
        engine.main_first(lambda: synthesize.refuse(recipe, assemble.method(recipe).levels(), teacher))
    embeddings = Embeddings(teacher)
    sections = [section for section in (recipe.validation, recipe.evaluation) if section]
    wanted = [*prompts.read(recipe.data.prompts), *(p for each in sections for p in prompts.listed(each.prompts))]
    engine.main_first(lambda: embeddings.prepare(wanted, agreement.negative_prompt(recipe, teacher)))
    teacher.unload()
    return embeddings


def stream(recipe, method: Method, teacher, embeddings: Embeddings, engine: Engine, stop: StopRequest) -> PromptStream:
    """The batches that the method learns from."""
    video, negative = recipe.video, embeddings.get([agreement.negative_prompt(recipe, teacher)])
    shape = teacher.latent_shape(video.frames, video.height, video.width)
    supply = embeddings.get, negative, shape, recipe.train, engine.device
    if "trajectories" not in method.data:
        return PromptStream(prompts.read(recipe.data.prompts), *supply)
    levels, records = method.levels(), recipe.data.trajectories.records
    store = synthesize.complete(recipe, levels, teacher, embeddings, engine, stop)
    places = agreement.places(levels, recipe, store.info["levels"], str(store.path))
    return TrajectoryStream(store, records, places, *supply)
