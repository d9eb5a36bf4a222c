"""Find a part by name and build it from options: a new method is one file.

Every part is one dataclass; its fields are its options, the string under a field is that option's help, and the first
line of its docstring names the method and its paper. `kmeans` is looked up as

1. `path/to/file.py:Class` or `package.module:Class`, when the name has that form;
2. the built-in file of that name (nothing else is imported): `proposers/kmeans.py`, class `KMeans`;
3. the entry point of that name in the group `umeta.proposers` (`umeta.embeddings`, `umeta.metalearners`, ...).
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import importlib.util
import inspect
import os
import re
import sys
import textwrap
import typing
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from importlib.metadata import entry_points
from itertools import zip_longest
from pathlib import Path
from typing import Any

from umeta.errors import UserError, suggest

KINDS = {  # kind of part -> the package its built-in files live in
    "data": "umeta.data",
    "env": "umeta.envs",
    "embedding": "embeddings",
    "proposer": "proposers",
    "metalearner": "umeta.metalearners",
    "augment": "umeta.augment",
    "model": "umeta.models",
    "outer": "umeta.outer",
    "algorithm": "umeta.rl",
    "tracker": "umeta.runtime.trackers",
}

PACKAGES = ("umeta", "proposers", "embeddings")  # of this library
ALIASES = {  # earlier names of built-in parts, which configs may still use
    "embedding": {"contrastive": "simclr"},
    "outer": {"ppo": "promp"},
}
GROUPS = {"tracker": ["umeta.sinks"]}  # earlier names of groups of entry points


def folder(kind: str) -> Path:
    """Find where the built-in parts of a kind live."""
    spec = importlib.util.find_spec(KINDS[kind])
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(next(iter(spec.submodule_search_locations)))


def built_in(kind: str) -> list[str]:
    """List the names of the built-in parts of a kind, read from their files and not imported."""
    return [path.stem for path in sorted(folder(kind).glob("*.py")) if _part(kind, path.stem) is not None]


def _part(kind: str, name: str) -> ast.ClassDef | None:
    """Return the class of a built-in part, as its source defines it."""
    classes = _classes(f"{KINDS[kind]}.{name}")
    return next((node for node in classes.values() if _is_part(name, node.name) and _is_dataclass(node)), None)


@cache
def _source(module: str) -> ast.Module:
    """Return the parsed source of one of this library's modules, which is not imported; empty for any other module."""
    spec = importlib.util.find_spec(module) if module.partition(".")[0] in PACKAGES else None
    return ast.parse(Path(spec.origin).read_bytes()) if spec and spec.origin else ast.Module([], [])


def _classes(module: str) -> dict[str, ast.ClassDef]:
    return {node.name: node for node in _source(module).body if isinstance(node, ast.ClassDef)}


def _ancestry(module: str, name: str) -> list[ast.ClassDef]:
    """Return a class of this library and its bases in this library, each before the classes that inherit from it."""
    node = _classes(module).get(name)
    if node is None:
        imports = [one for one in _source(module).body if isinstance(one, ast.ImportFrom) and one.module]
        origin = {alias.asname or alias.name: (str(one.module), alias.name) for one in imports for alias in one.names}
        return _ancestry(*origin[name]) if name in origin else []
    found: list[ast.ClassDef] = []
    for base in reversed(node.bases):  # as dataclasses collect fields: the first base has the last word
        found += [one for one in _ancestry(module, ast.unparse(base)) if one not in found]
    return [*found, node]


def _is_dataclass(node: ast.ClassDef) -> bool:
    return any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list)


def _is_part(stem: str, class_name: str) -> bool:
    """Tell whether a class is the part of its file: `RandomLabels` of `random_labels.py`, whatever its capitals."""
    return class_name.lower() == stem.replace("_", "")


def find(kind: str, name: str, where: str = "") -> type:
    """Find the class of a part.

    Raises:
        UserError: nothing has that name (the message suggests the nearest), it cannot be imported, or is no dataclass.
    """
    where = where or kind
    name = resolve_alias(kind, name)
    found = _find(kind, name, where)
    if not (inspect.isclass(found) and dataclasses.is_dataclass(found)):
        raise UserError(f"{where}: '{name}' is not a dataclass; a part is a dataclass whose fields are its options")
    _names[found] = name
    return found


def resolve_alias(kind: str, name: str) -> str:
    """Return the present name of a part that may go by an earlier one."""
    return ALIASES.get(kind, {}).get(name, name)


_names: dict[type, str] = {}  # classes that were found, and by which name


def loaded() -> set[str]:
    """List the names of all parts found so far."""
    return set(_names.values())


def name_of(kind: str, part: Any) -> str:
    """Return the name by which `find` finds a part's class again."""
    module = type(part).__module__
    default = module.rpartition(".")[2] if module.startswith(f"{KINDS[kind]}.") else f"{module}:{type(part).__name__}"
    return _names.get(type(part), default)


_OURS = re.compile(r"umeta(\.(?!py:)\w+)+:\w+")  # a module of the library, not a file umeta....py:Class


def find_plugins(value: Any, key: str = "name") -> set[str]:
    """Find the names in a plain configuration that lead to code outside the library: files and other modules.

    key: under which the value stands; a name may stand under `name`, `benchmark`, or the kind of part itself.
    """
    if isinstance(value, Mapping):
        return set().union(*(find_plugins(part, name) for name, part in value.items()))
    if isinstance(value, list):
        return set().union(*(find_plugins(part, key) for part in value))
    if not isinstance(value, str):
        return set()
    if key == "id":  # gymnasium imports the module of an environment `module:Name-v0`
        return {value} if ":" in value else set()
    part = key in ("name", "benchmark") or key.removesuffix("s") in KINDS
    return {value} if part and (":" in value or value.endswith(".py")) and not _OURS.fullmatch(value) else set()


def refuse_plugins(value: Any, trusted: Collection[str] | None, where: str, then: str = "add --allow-plugin") -> None:
    """Refuse a stored configuration that names a plug-in not named by the user's own command or config.

    trusted: those that are wanted; None for any. then: what to do where the person trusts it.

    Raises:
        UserError: names the first of them.
    """
    if trusted is not None and (foreign := sorted(find_plugins(value) - set(trusted))):
        raise UserError(f"{where}: asks to run the code of '{foreign[0]}'; if you trust it, {then}")


def _find(kind: str, name: str, where: str) -> Any:
    if ":" in name or name.endswith(".py"):
        return load_named(name, where)
    if name.isidentifier() and _part(kind, name) is not None:
        module = importlib.import_module(f"{KINDS[kind]}.{name}")
        return next(value for key, value in vars(module).items() if inspect.isclass(value) and _is_part(name, key))
    groups = [*GROUPS.get(kind, ()), f"umeta.{kind}s"]
    plugins = {point.name: point for group in groups for point in entry_points(group=group)}
    if name in plugins:
        try:
            return plugins[name].load()
        except (ImportError, AttributeError) as error:
            raise UserError(f"{where}: cannot import plug-in '{name}' ({plugins[name].value}): {error}") from error
    raise UserError(f"{where}: no {kind} is named '{name}'{suggest(name, {*built_in(kind), *plugins})}")


@contextmanager
def from_here() -> Iterator[None]:
    """Let modules in the working directory be imported as well within the block, after all others."""
    sys.path.append(here := os.getcwd())
    try:
        yield
    finally:
        del sys.path[-1 - sys.path[::-1].index(here)]  # the last: it may have been there before


def code_of(name: str) -> Path | None:
    """Find the file with the code of a plug-in `mine.py:Mine` or `module:Mine`; None for any other name."""
    source = name.rpartition(":")[0]
    if source.endswith(".py"):
        return Path(source)
    if _is_module(source):
        with suppress(ImportError, ValueError), from_here():
            found = importlib.util.find_spec(source)
            return Path(found.origin) if found and found.origin else None
    return None


def _is_module(source: str) -> bool:
    return all(part.isidentifier() for part in source.split("."))


def load_named(name: str, where: str) -> Any:
    """Load what `path/to/file.py:Class` or `package.module:Class` names.

    Raises:
        UserError: it is not there, or cannot be imported.
    """
    source, _, class_name = name.rpartition(":") if ":" in name else (name, "", "")
    try:
        if source.endswith(".py"):
            path = Path(source)
            if not path.is_file():
                raise UserError(f"{where}: plug-in file '{path}' does not exist")
            classes = [node.name for node in ast.parse(path.read_bytes()).body if isinstance(node, ast.ClassDef)]
            class_name = class_name or next((c for c in classes if _is_part(path.stem, c)), "")
            spec = importlib.util.spec_from_file_location(f"umeta_plugin_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up
            spec.loader.exec_module(module)
        elif _is_module(source):
            with from_here():
                module = importlib.import_module(source)
        else:
            raise UserError(f"{where}: '{name}' is neither path/to/file.py:Class nor package.module:Class")
    except UserError:
        raise
    except Exception as error:  # whatever somebody's code raises
        raise UserError(f"{where}: cannot import plug-in '{name}' ({type(error).__name__}: {error})") from error
    if not hasattr(module, class_name):
        wanted = f"no class '{class_name}'" if class_name else "no class that is named as it is"
        raise UserError(f"{where}: '{source}' has {wanted}; name the class after ':', as in {source}:Class")
    return getattr(module, class_name)


def build_part(kind: str, value: Any, where: str = "") -> Any:
    """Build the part that `{name: kmeans, k: 500}` or `kmeans` describes.

    Raises:
        UserError: unknown name or option, or a value of the wrong type.
    """
    where = where or kind
    if isinstance(value, str):
        value = {"name": value}
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        raise UserError(f"{where}: expected a name or a mapping with a name, such as {{name: ...}}, got {value!r}")
    options = {key: option for key, option in value.items() if key != "name"}
    return build_typed(find(kind, value["name"], where), options, where)


def build_typed(cls: Any, options: Mapping[str, Any], where: str) -> Any:
    """Build a dataclass from plain values, checking names and types (`'1e-4'` passes for a number).

    A field named like a kind of part (`model`, `outer`), or like several (`proposers`), is built with `build_part`.

    Raises:
        UserError: names the option in question and what it should be.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    config = ConfigDict(arbitrary_types_allowed=True)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    for key in options:
        if key not in fields:
            raise UserError(f"{where}: unknown option '{key}'{suggest(str(key), fields)}")
    hints = _hints(cls)
    values: dict[str, Any] = {}
    for name, f in fields.items():
        spot = f"{where}.{name}" if where else name
        if name not in options:
            if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
                raise UserError(
                    f"{spot}: missing, and it has no default; set {spot}=... (options belong to the part they were "
                    "given for, and another name drops them)"
                )
            continue
        value = options[name]
        if name in KINDS and not (value is None and f.default is None):
            value = build_part(name, value, spot)
        elif name.removesuffix("s") in KINDS and isinstance(value, list):
            value = [build_part(name.removesuffix("s"), one, f"{spot}[{i}]") for i, one in enumerate(value)]
        elif dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, Mapping):
                raise UserError(f"{spot}: expected a mapping of options, got {value!r}")
            value = build_typed(hints[name], value, spot)
        else:
            try:
                value = TypeAdapter(hints[name], config=config).validate_python(value)
            except ValidationError as error:
                problem = error.errors()[0]
                inside = "".join(f"[{part}]" for part in problem["loc"] if isinstance(part, int))
                message = problem["msg"]
                raise UserError(f"{spot}{inside}: {message}, got {problem['input']!r}") from error
        values[name] = value
    try:
        return cls(**values)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from error


@cache
def _hints(cls: Any) -> dict[str, Any]:
    return typing.get_type_hints(cls, include_extras=True)


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a part, as `umeta list NAME` prints it."""

    name: str
    type: str
    default: str
    help: str


def describe(kind: str, name: str) -> tuple[str, list[Option]]:
    """Return a built-in part's docstring and its options, read from the source without importing it."""
    node = _part(kind, name)
    assert node is not None
    return describe_class(f"{KINDS[kind]}.{name}", node.name)


def families() -> dict[str, list[str]]:
    """List the names of the built-in meta-learners by family, each as its class or the nearest base declares it."""
    found: dict[str, list[str]] = {}
    for name in built_in("metalearner"):
        node = _part("metalearner", name)
        assert node is not None
        body = [item for one in _ancestry(f"{KINDS['metalearner']}.{name}", node.name) for item in one.body]
        said = [i.value.value for i in body if ast.unparse(i).startswith("family: ")]  # type: ignore[attr-defined]
        found.setdefault(said[-1], []).append(name)
    return found


def describe_class(module: str, name: str) -> tuple[str, list[Option]]:
    """Return the docstring and the options of a dataclass of this library, read from the source without importing it.

    Inherited options come first, as in `dataclasses.fields`. One that is declared again keeps its place, and its help
    unless it has another.
    """
    options: dict[str, Option] = {}
    ancestry = _ancestry(module, name)
    for one in filter(_is_dataclass, ancestry):
        for option in _own_options(one):
            text = option.help or (options[option.name].help if option.name in options else "")
            options[option.name] = dataclasses.replace(option, help=text)
    return textwrap.dedent(ast.get_docstring(ancestry[-1]) or ""), list(options.values())


def _own_options(node: ast.ClassDef) -> Iterator[Option]:
    """Return the options that a class itself declares."""
    for item, after in zip_longest(node.body, node.body[1:]):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        kind = ast.unparse(item.annotation)
        if kind.startswith("ClassVar") or "init=False" in (ast.unparse(item.value) if item.value else ""):
            continue
        text = ""
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str):
            text = " ".join(after.value.value.split())
        yield Option(item.target.id, _readable(kind), _default(item.value), text)


def _default(value: ast.expr | None) -> str:
    """Write a default for people: `Conv4(halvings=3)` for a field that is made anew each time."""
    match value:
        case None:
            return "required"
        case ast.Call(func=ast.Name(id="field"), keywords=[ast.keyword(arg="default_factory", value=factory)]):
            return ast.unparse(factory.body if isinstance(factory, ast.Lambda) else ast.Call(factory, [], []))
        case _:
            return ast.unparse(value)


def _readable(annotation: str) -> str:
    """`Annotated[int, Gt(0)] | None` as `int > 0 | None`."""
    for name, sign in (("Gt", ">"), ("Ge", ">="), ("Lt", "<"), ("Le", "<=")):
        annotation = re.sub(rf", {name}\(([^)]*)\)", rf" {sign} \1", annotation)
    return re.sub(r"Annotated\[([^\]]*)\]", r"\1", annotation)
