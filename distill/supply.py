"""What a run is fed: encoded prompts, teachers' trajectories and real videos (made if missing), and their stream."""

from . import assemble, prepare, synthesize
from .data import agreement, prompts
from .data.prompts import Embeddings
from .data.stream import PromptStream, TrajectoryStream, VideoStream
from .data.videos import Store
from .engine import Engine
from .method import Method
from .signals import StopRequest


def clips(recipe, teacher, engine: Engine, stop: StopRequest) -> Store | None:
    """The store of real videos, if the recipe has one; prepared now if it is not complete."""
    if recipe.data.videos is None:
        return None
    return prepare.complete(recipe, teacher, engine, stop)


def encoded(recipe, teacher, videos: Store | None, engine: Engine) -> Embeddings:
    """The encodings of every prompt of the run, once its store will do; afterwards the text encoder is gone."""
    if recipe.data.trajectories:
        engine.main_first(lambda: synthesize.refuse(recipe, assemble.method(recipe).levels(), teacher))
    embeddings = Embeddings(teacher)
    sections = [section for section in (recipe.validation, recipe.evaluation) if section]
    wanted = [prompt for section in sections for prompt in prompts.listed(section.prompts)]
    wanted += prompts.read(recipe.data.prompts) if recipe.data.prompts else []
    wanted += videos.prompts if videos else []
    engine.main_first(lambda: embeddings.prepare(wanted, agreement.negative_prompt(recipe, teacher)))
    teacher.unload()
    return embeddings


def stream(
    recipe,
    method: Method,
    teacher,
    videos: Store | None,
    embeddings: Embeddings,
    engine: Engine,
    stop: StopRequest,
) -> PromptStream:
    """The batches that the method learns from."""
    video, negative = recipe.video, embeddings.get([agreement.negative_prompt(recipe, teacher)])
    shape = teacher.latent_shape(video.frames, video.height, video.width)
    supply = embeddings.get, negative, shape, recipe.train, engine.device
    if videos:
        kept = recipe.held_out.clips if recipe.held_out else 0
        return VideoStream(videos, kept, prompts.read(recipe.data.prompts) if recipe.data.prompts else None, *supply)
    if "trajectories" not in method.data:
        return PromptStream(prompts.read(recipe.data.prompts), *supply)
    levels, records = method.levels(), recipe.data.trajectories.records
    store = synthesize.complete(recipe, levels, teacher, embeddings, engine, stop)
    places = agreement.places(levels, recipe, store.info["levels"], str(store.path))
    return TrajectoryStream(store, records, places, *supply)
