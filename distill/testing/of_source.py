"""Checks of what a method's source says: the interface, its imports, its options."""

import pydantic

from .. import registry, signature
from ..errors import UserError
from . import bench as benches
from . import imports
from .bench import Bench
from .check import Check, Failed


def interface(bench: Bench) -> str:
    """The class is found, declares what this version of distill understands, and can be made."""
    try:
        found, made = bench.signature, registry.method_class(bench.name)
    except UserError as error:
        raise Failed(str(error), "mend the module, or the entry point in the package's setup.cfg") from error
    benches.load(bench)
    wanted = {name: type(kind).__name__ for name, kind in bench.method.networks.items()}
    if wanted != found.networks:
        raise Failed(
            f"the source reads networks {found.networks}, the class has {wanted}",
            "write networks as one literal in the class body, and change it nowhere else",
        )
    return f"{made.__module__}.{made.__qualname__}, interface {found.interface}"


def only_mathematics(bench: Bench) -> str:
    """The module and those of its own package that it imports touch no devices, processes, files or logs."""
    modules = sorted(_own(bench.entry.target[0]))
    for module in modules:
        path = signature.file_of(module)
        names = imports.imports(path, _package(module))
        if bad := imports.forbidden(names, _top(module)):
            raise Failed(
                f"{path.name} imports {', '.join(bad)}",
                "a method is torch, einops, distill's mathematics and plain Python; batch.noise() and its siblings "
                "are its randomness, named loss terms its log, buffers its memory",
            )
    return ", ".join(modules)


def strict_options(bench: Bench) -> str:
    """Every keyword of the constructor has an annotation, and a default that keeps it."""
    model = bench.signature.options
    for name, field in model.model_fields.items():
        if field.is_required():
            raise Failed(f"option {name} has no default", f"give {name} the value that most people want")
        try:
            model.model_validate({name: field.default})
        except pydantic.ValidationError as error:
            said = error.errors()[0]["msg"]
            remedy = f"change the default of {name}, or its annotation"
            raise Failed(f"the default of {name}, {field.default!r}, is refused: {said}", remedy) from error
    return ", ".join(f"{name} {field.default!r}" for name, field in model.model_fields.items()) or "none"


def explained(bench: Bench) -> str:
    """The class and each option have a line that `distill methods` shows."""
    found, name = bench.signature, bench.entry.target[1]
    if not found.description:
        raise Failed(f"{name} has no docstring", "let its first line say what the method does")
    missing = [option for option, field in found.options.model_fields.items() if not field.description]
    if missing:
        raise Failed(
            f"{name}.__init__: no line in the docstring for {', '.join(missing)}",
            f"write `{missing[0]}: what it is, in which unit` under Args:",
        )
    return found.description


def _own(module: str) -> set[str]:
    """A module, and those of its own top-level package that it imports, directly or not."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        found.add(name)
        names = imports.imports(signature.file_of(name), _package(name))
        waiting |= {each for each in names if _top(each) == _top(module) and _is_module(each)} - found
    return found


def _is_module(name: str) -> bool:
    try:
        return bool(signature.file_of(name))
    except UserError:
        return False  # a name inside of a module


def _package(module: str) -> str:
    is_package = signature.file_of(module).name == "__init__.py"
    return module if is_package else module.rpartition(".")[0]


def _top(module: str) -> str:
    return module.partition(".")[0]


CHECKS = (
    Check("interface", "the class is found and speaks this version of the interface", interface),
    Check("imports", "it imports mathematics only", only_mathematics, ("interface",)),
    Check("options", "options are annotated, and have defaults that fit", strict_options, ("interface",)),
    Check("explained", "the class and its options are explained", explained, ("interface",)),
)
