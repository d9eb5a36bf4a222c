"""Read a configuration: a YAML file with `key=value` overrides, as plain values.

YAML is read with PyYAML's safe loader and four changes: keys are always text, and none may be given twice; `1e-4` is a
number; only `true` and `false` are booleans, and `on` and `no` are text; dates are text. A file that nests too deeply,
or whose aliases repeat too much, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError

from umeta.config.registry import ALIASES, KINDS, resolve_alias
from umeta.errors import UserError, suggest
from umeta.runtime import artifacts

ABLATIONS = "ablations"  # the folder of packaged ablations, beside those of configs
LARGEST = 1 << 16  # bytes of a config
DEPTH, NODES = 50, 10_000  # nesting and values of a config, its aliases written out
TOO_LARGE = f"nested deeper than {DEPTH} levels, or more than {NODES:,} values with its aliases"
TAG = "tag:yaml.org,2002:"  # before the names of YAML's own types
EXPONENT = re.compile(r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)[eE][-+]?\d+$")


def packaged_folder() -> Path:
    """Find the folder of the configs that come with the library: in the installed package, or in its source tree."""
    here = Path(__file__).parent.parent
    return next(folder for folder in (here / "configs", here.parent / "configs") if folder.is_dir())


def find_packaged() -> dict[str, Path]:
    """Find the configs that come with the library, in a folder for each data set or environment: name -> file."""
    found = sorted(packaged_folder().glob("*/*.yaml"))
    return {path.stem: path for path in found if path.parent.name != ABLATIONS}


def read_ablation(reference: str | Path, rows: Path | None = None) -> dict[str, list[str]]:
    """Read the rows of an ablation, from a YAML file or the one packaged for the config: title -> overrides.

    Raises:
        UserError: no such file, or not a mapping of titles to lists of `key=value`.
    """
    path = rows or packaged_folder() / ABLATIONS / f"{Path(reference).stem}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file of ablations; write one and name it with --rows")
    found = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(change, list) for change in found.values()):
        raise UserError(f"{path}: expected a mapping of titles to lists of key=value")
    return {title: [str(one) for one in change] for title, change in found.items()}


def read(reference: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config file (a path, or the name of a packaged one) with `a.b=value` overrides, as plain values.

    Raises:
        UserError: no such config, not YAML, not a mapping, a key twice, or a bad override.
    """
    path = Path(reference)
    if not path.is_file():
        known = find_packaged()
        if str(reference) not in known:
            raise UserError(f"config '{reference}': no such file or packaged config{suggest(str(reference), known)}")
        path = known[str(reference)]
    changes = parse_overrides(overrides)
    loaded = read_yaml(path)
    if not isinstance(loaded, dict | None):
        raise UserError(f"config '{path}': expected a mapping of keys to values, got {str(loaded)[:60]!r}")
    return merge({"name": path.stem, **expand_names(loaded or {})}, changes)


def read_yaml(path: Path) -> Any:
    """Read a YAML file as plain values; nothing in it is run, whatever its tags say.

    Raises:
        UserError: missing, not YAML, a key twice, or far larger, deeper or more repetitive than any configuration.
    """
    try:
        return load_yaml(artifacts.read_text(path, LARGEST))
    except Exception as error:  # a YAML constructor raises nearly anything for text that is not what its tag says
        raise UserError(f"config '{path}': {' '.join(str(error).split())}") from error


def load_yaml(text: str) -> Any:
    """Read YAML as plain values; raises what PyYAML raises, and ValueError for what it would let pass."""
    try:
        loaded = yaml.load(text, Loader)
    except yaml.YAMLError as error:
        # the parser reads ahead, and may meet a limit of its own before it tells of the first bracket
        if bracket_depth(text) > DEPTH:
            raise ValueError(TOO_LARGE) from error
        raise
    if found := re.search(r"\$\{[^}]*\}?", str(loaded)):
        raise ValueError(
            f"'{found[0]}': interpolation is no longer read; write the value, or override it with key=value"
        )
    return loaded


class Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the changes that this module's docstring names."""

    depth = total = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        before, alias = self.total, self.peek_event().anchor if self.check_event(yaml.AliasEvent) else None
        self.depth += 1
        if self.depth > DEPTH:
            raise ValueError(TOO_LARGE)
        node: Any = super().compose_node(parent, index)
        self.depth -= 1
        if alias and not hasattr(node, "size"):
            raise ValueError(f"recursive: the alias *{alias} lies in what it stands for")
        self.total += node.size if alias else 1
        node.size = self.total - before
        if self.total > NODES:
            raise ValueError(TOO_LARGE)
        return node

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ComposerError(None, None, "a key is no text", key.start_mark)
            if key.value in own:
                raise ComposerError(None, None, f"found duplicate key {key.value}", key.start_mark)
            if key.tag != f"{TAG}merge":
                key.tag = f"{TAG}str"
                own[key.value] = key, value
                continue
            for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                if not isinstance(source, yaml.MappingNode):
                    raise ComposerError(None, None, "<< merges mappings alone", key.start_mark)
                merged = {**{k.value: (k, v) for k, v in source.value}, **merged}
        node.value = list({**merged, **own}.values())
        return node


class Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts in quotes what any reader of YAML might take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


Loader.yaml_constructors = {
    tag: construct
    for tag, construct in yaml.SafeLoader.yaml_constructors.items()
    if tag in (None, *(f"{TAG}{kind}" for kind in ("null", "bool", "int", "float", "str", "seq", "map")))
}
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (f"{TAG}bool", f"{TAG}timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(f"{TAG}bool", re.compile("(true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
for one in (Loader, Dumper):  # YAML 1.1 wants a point and a sign in 1.0e+4
    one.add_implicit_resolver(f"{TAG}float", EXPONENT, list("-+.0123456789"))


def bracket_depth(text: str) -> int:
    """Count how deep brackets nest at most, those in quotes and comments among them."""
    return max(accumulate((c in "[{") - (c in "]}") for c in text), default=0)


def expand_names(plain: Any) -> Any:
    """Write every part that is given by its name alone, such as `outer: adam`, as a mapping that options can join.

    Earlier names of parts become their present ones.
    """
    if not isinstance(plain, dict):
        return plain
    out = {key: {"name": v} if key in KINDS and isinstance(v, str) else expand_names(v) for key, v in plain.items()}
    for kind in ALIASES.keys() & out.keys():
        if isinstance(part := out[kind], dict) and isinstance(name := part.get("name"), str):
            out[kind] = {**part, "name": resolve_alias(kind, name)}
    return out


class Whole(dict[Any, Any]):
    """Options that take the place of all that were there."""


def merge(base: Mapping[Any, Any], change: Mapping[Any, Any]) -> dict[Any, Any]:
    """Merge `change` into a copy of `base`; `{}` empties what was there.

    A part that changes its name drops the options it had under the old one.
    """
    out = dict(base)
    for key, value in change.items():
        before = out.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            renamed = key in KINDS and value.get("name", before.get("name")) != before.get("name")
            value = dict(value) if renamed or not value or isinstance(value, Whole) else merge(before, value)
        out[key] = value
    return out


def parse_overrides(overrides: Sequence[str]) -> dict[Any, Any]:
    """Parse `a.b=value` overrides, in order, as one nested mapping; values are YAML.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    parsed: dict[Any, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"override '{override}': expected key=value, such as train.steps=100")
        try:
            value = load_yaml(text)
        except Exception as error:  # as in `read_yaml`
            raise UserError(f"override '{override}': {' '.join(str(error).split())}") from error
        for part in reversed(key.split(".")):
            value = {part: value}
        parsed = merge(parsed, expand_names(value))
    return parsed


def dump_yaml(plain: Mapping[str, Any]) -> str:
    """Write plain values as YAML that `load_yaml` reads as the same values."""
    return yaml.dump(dict(plain), Dumper=Dumper, default_flow_style=False, allow_unicode=True, sort_keys=False)
