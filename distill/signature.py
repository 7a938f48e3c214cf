"""What a method class says about itself, read from its source: `distill check` imports neither torch nor the method."""

import ast
import functools
import importlib.util
import re
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic

from . import INTERFACE, options
from .errors import UserError

_NAMES = {name: getattr(typing, name) for name in ("Annotated", "Any", "Literal", "Optional", "Union")}
_NAMES |= {"Field": pydantic.Field, "options": options, "Path": Path}
_NAMES |= {name: value for name, value in vars(options).items() if not name.startswith("_")}
_ROOT = "distill.method"


@dataclass(frozen=True)
class Signature:
    """A class read from its source.

    Attributes:
        options: the constructor's keywords as a model: unknown keys forbidden, no conversions.
        hints: their annotations as written.
        networks: name -> kind, as in {"student": "Trained"}.
        declared: name -> the keywords of its kind, as in {"prior": {"of": "student"}}.
        has_stages: whether the class or a base defines `stages`.
        data: the streams that it reads.
        measures: whether the class or a base defines `measure`.
        interface: the version that the class or a base declares, or ours.
    """

    description: str
    options: type[pydantic.BaseModel]
    hints: dict[str, str]
    networks: dict[str, str]
    declared: dict[str, dict[str, Any]]
    has_stages: bool
    data: tuple[str, ...]
    measures: bool
    interface: int


def read(module: str, name: str) -> Signature:
    """UserError if the class, an annotation, a default or `networks` cannot be read without running the module."""
    interface = check_interface(module, name)  # first: of another one, nothing else can be relied on
    classes = list(_lineage(_Source.of(module), name))
    if not classes:
        raise UserError(f"module {module} defines no class {name}" if name else f"{module}: expected module:Class")
    source, node = classes[0]
    description = ast.get_docstring(node) or ast.get_docstring(source.tree) or ""
    documented = [each for _, n in reversed(classes) for each in (n, _member(n, "__init__")) if each]  # nearest last
    source, init = next(((s, i) for s, n in classes if (i := _member(n, "__init__"))), (source, None))
    declarations = _networks(name, classes)
    return Signature(
        description=description.partition("\n")[0],
        options=_options(source, name, init, "\n".join(ast.get_docstring(each) or "" for each in documented)),
        hints={arg.arg: ast.unparse(arg.annotation) for arg, _ in _arguments(source, name, init)},
        networks={key: _called(kind) for key, kind in declarations.items()},
        declared={key: _keywords(kind) for key, kind in declarations.items()},
        has_stages=any(_member(node, "stages") for _, node in classes),
        data=_data(name, classes),
        measures=any(_member(node, "measure") for _, node in classes),
        interface=interface,
    )


def check_interface(module: str, name: str) -> int:
    """The version of the interface that a class or a base declares, or ours; UserError if it is not ours."""
    for source, node in _lineage(_Source.of(module), name):
        if item := _member(node, "interface"):
            return _ours(source, item, name)
    return INTERFACE


def _ours(source: "_Source", item: ast.Assign, name: str) -> int:
    said = getattr(item.value, "value", None)
    if said != INTERFACE:
        newer = isinstance(said, int) and said > INTERFACE
        remedy = "install a newer distill" if newer else "port it (docs/plugins.md)"
        raise UserError(
            f"{source.at(item)}: {name} was written for interface {ast.unparse(item.value)} of distill, and this "
            f"distill has {INTERFACE}: {remedy}, or install a version of its package for interface {INTERFACE}"
        )
    return INTERFACE


class _Source:
    """A parsed module: its classes, top-level assignments, and what it imports from where."""

    def __init__(self, module: str, path: Path):
        self.module, self.path, self.tree = module, path, ast.parse(path.read_text("utf-8"), str(path))
        self.classes = {n.name: n for n in self.tree.body if isinstance(n, ast.ClassDef)}
        self.values: dict[str, ast.expr] = {}
        self.imports: dict[str, tuple[str, str]] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.values[node.targets[0].id] = node.value
            elif isinstance(node, ast.ImportFrom):
                self.imports |= {a.asname or a.name: (self._origin(node), a.name) for a in node.names}

    @staticmethod
    @functools.cache
    def of(module: str) -> "_Source":
        path = file_of(module)
        try:
            return _Source(module, path)
        except (SyntaxError, UnicodeDecodeError) as error:
            line = f":{error.lineno}" if isinstance(error, SyntaxError) and error.lineno else ""
            raise UserError(f"{path}{line}: not Python: {getattr(error, 'msg', error)}") from error

    def _origin(self, node: ast.ImportFrom) -> str:
        if not node.level:
            return node.module
        parents = self.module.split(".") if self.path.name == "__init__.py" else self.module.split(".")[:-1]
        package = ".".join(parents[: len(parents) - node.level + 1])
        return f"{package}.{node.module}" if node.module else package

    def at(self, node: ast.AST) -> str:
        return f"{self.path}:{node.lineno}"


def file_of(module: str) -> Path:
    """The file of a module. Only its top-level package is looked up, so that no package's own code runs."""
    top, *rest = module.split(".")
    spec = importlib.util.find_spec(top)
    folders = list(spec.submodule_search_locations or []) if spec else []
    found = [Path(spec.origin)] if spec and spec.origin and not rest else []
    found += [Path(folder, *rest).with_suffix(".py") for folder in folders if rest]
    found += [Path(folder, *rest, "__init__.py") for folder in folders]
    for path in found:
        if path.suffix == ".py" and path.is_file():
            return path
    raise UserError(f"there is no module {module}; is its package installed here, or on PYTHONPATH?")


def _lineage(source: _Source, name: str) -> Iterator[tuple[_Source, ast.ClassDef]]:
    """A class and its bases, nearest first, up to Method; bases that no `from x import` leads to are left out."""
    if source.module == _ROOT:
        return
    if name in source.classes:
        node = source.classes[name]
        yield source, node
        for base in node.bases:
            if isinstance(base, ast.Name):
                yield from _lineage(source, base.id)
    elif name in source.imports and source.imports[name][0] != _ROOT:
        module, original = source.imports[name]
        yield from _lineage(_Source.of(module), original)


def _member(node: ast.ClassDef, name: str) -> ast.stmt | None:
    """A class's own function or assignment of that name."""
    for item in node.body:
        targets = item.targets if isinstance(item, ast.Assign) else [getattr(item, "target", None)]
        if getattr(item, "name", None) == name or any(isinstance(t, ast.Name) and t.id == name for t in targets):
            return item
    return None


def _options(source: _Source, name: str, init: ast.FunctionDef | None, docs: str) -> type[pydantic.BaseModel]:
    arguments = list(_arguments(source, name, init))
    texts = _explained(docs, [arg.arg for arg, _ in arguments])
    fields: dict[str, Any] = {}
    for arg, default in arguments:
        value = ... if default is None else _literal(source, arg, default)
        fields[arg.arg] = (_annotation(source, arg), pydantic.Field(value, description=texts.get(arg.arg)))
    config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    return pydantic.create_model(name, __config__=config, **fields)


def _arguments(source: _Source, name: str, init: ast.FunctionDef | None) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """The keywords of a constructor with their defaults."""
    if init is None:
        return
    args = init.args
    if args.vararg or args.kwarg:
        raise UserError(f"{source.at(init)}: {name}.__init__ must name its options, without *args or **kwargs")
    named = (args.posonlyargs + args.args)[1:]
    defaults = [None] * (len(named) - len(args.defaults)) + args.defaults + args.kw_defaults
    for arg, default in zip(named + args.kwonlyargs, defaults, strict=True):
        if arg.annotation is None:
            raise UserError(f"{source.at(arg)}: option {arg.arg} of {name} has no annotation")
        yield arg, default


class _Names(dict):
    """The names an annotation may use: built-in types, typing, distill.options, and the module's own aliases."""

    def __init__(self, source: _Source):
        super().__init__(_NAMES)
        self.source = source

    def __missing__(self, name: str) -> Any:
        if name in self.source.values:
            return _evaluate(self.source.values[name], self)
        raise KeyError(name)


def _evaluate(node: ast.expr, names: _Names) -> Any:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        node = ast.parse(node.value, mode="eval").body
    return eval(compile(ast.Expression(node), "annotation", "eval"), {}, names)


def _annotation(source: _Source, arg: ast.arg) -> Any:
    try:
        return _evaluate(arg.annotation, _Names(source))
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        text, known = ast.unparse(arg.annotation), "built-in types, typing and distill.options"
        raise UserError(f"{source.at(arg)}: the annotation of {arg.arg}, {text}, may use {known} only") from error


def _literal(source: _Source, arg: ast.arg, default: ast.expr) -> Any:
    node = source.values.get(default.id, default) if isinstance(default, ast.Name) else default
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UserError(f"{source.at(arg)}: the default of {arg.arg}, {ast.unparse(default)}, is no literal") from error


def _networks(name: str, classes: list[tuple[_Source, ast.ClassDef]]) -> dict[str, ast.Call]:
    for source, node in classes:
        if item := _member(node, "networks"):
            pairs = zip(item.value.keys, item.value.values, strict=True) if isinstance(item.value, ast.Dict) else ()
            found = {k.value: v for k, v in pairs if isinstance(k, ast.Constant)}
            if not found or None in map(_called, found.values()):
                raise UserError(f"{source.at(item)}: {name}.networks must be a literal, as in {{'student': Trained()}}")
            return found
    raise UserError(f"{classes[0][0].at(classes[0][1])}: {name} declares no networks")


def _data(name: str, classes: list[tuple[_Source, ast.ClassDef]]) -> tuple[str, ...]:
    for source, node in classes:
        if item := _member(node, "data"):
            try:
                return tuple(ast.literal_eval(item.value))
            except (ValueError, TypeError) as error:
                raise UserError(f"{source.at(item)}: {name}.data must be a literal, as in ('prompts',)") from error
    return ("prompts",)


def _called(node: ast.expr) -> str | None:
    """The name of what is called: Trained for Trained(init="teacher") and for method.Trained()."""
    function = node.func if isinstance(node, ast.Call) else None
    return getattr(function, "id", getattr(function, "attr", None))


def _keywords(call: ast.Call) -> dict[str, Any]:
    """Those that are literals; others are known when the method runs."""
    return {k.arg: k.value.value for k in call.keywords if k.arg and isinstance(k.value, ast.Constant)}


def _explained(docs: str, names: typing.Iterable[str]) -> dict[str, str]:
    """Option -> text, from docstring lines like `name: text` or `name, name: text` with indented continuations."""
    found: dict[str, str] = {}
    current: list[str] = []
    indent = 0
    for line in docs.splitlines():
        entry = re.match(r"(\s*)(\w+(?:, \w+)*)(?: \([^)]*\))?: (.+)", line)
        if entry and set(entry[2].split(", ")) <= set(names):
            indent, current = len(entry[1]), entry[2].split(", ")
            found |= dict.fromkeys(current, entry[3])
        elif current and line.strip() and len(line) - len(line.lstrip()) > indent:
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
        else:
            current = []
    return found
