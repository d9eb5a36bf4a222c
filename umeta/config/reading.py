"""Read a configuration: a YAML file with `key=value` overrides, as plain values."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from umeta.config.registry import KINDS
from umeta.errors import UserError, suggest
from umeta.runtime import artifacts

LARGEST = 1 << 16  # bytes of a config
DEPTH, NODES = 50, 10_000  # nesting and values of a config, its aliases written out
INTERPOLATIONS = 16  # each may stand for all of the others, so that their number bounds how far they grow
OTHER_INTERPOLATION = re.compile(r"\$\{\s*(?!oc\.env:)[^}]*?[:$]")


def packaged() -> dict[str, Path]:
    """The configs that come with the library, by name."""
    here = Path(__file__).parent.parent
    folder = here / "configs" if (here / "configs").is_dir() else here.parent / "configs"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def ablation(reference: str | Path, rows: Path | None = None) -> dict[str, list[str]]:
    """The rows of an ablation: title -> overrides of the config, from a YAML file or the one packaged for the config.

    Raises:
        UserError: no such file, or not a mapping of titles to lists of `key=value`.
    """
    known = packaged()
    path = rows or next(iter(known.values())).parent / "ablations" / f"{Path(reference).stem}.yaml"
    if not path.is_file():
        raise UserError(f"{path}: no such file of ablations; write one and name it with --rows")
    found = read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(change, list) for change in found.values()):
        raise UserError(f"{path}: expected a mapping of titles to lists of key=value")
    return {str(title): [str(one) for one in change] for title, change in found.items()}


def read(reference: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A config file (a path, or the name of a packaged one) with `a.b=value` overrides, as plain values.

    Raises:
        UserError: no such config, not YAML, not a mapping, a key twice, or a bad override.
    """
    from omegaconf import OmegaConf

    path = Path(reference)
    if not path.is_file():
        known = packaged()
        if str(reference) not in known:
            raise UserError(f"config '{reference}': no such file or packaged config{suggest(str(reference), known)}")
        path = known[str(reference)]
    changes = parse(overrides)
    loaded = read_yaml(path)
    where = f"config '{path}'{' with ' if overrides else ''}{' '.join(overrides)}"
    if not isinstance(loaded, dict):
        raise UserError(f"{where}: expected a mapping of keys to values, found a list")
    try:
        plain = joined({"name": path.stem, **named(loaded)}, changes)
        check_interpolations(plain)
        resolved: Any = OmegaConf.to_container(OmegaConf.create(plain), resolve=True)
    except Exception as error:  # the grammar of interpolations raises nearly anything
        raise UserError(f"{where}: {' '.join(str(error).split())}") from error
    return named(resolved)


def read_yaml(path: Path) -> Any:
    """A YAML file as plain values, interpolations as they stand; nothing in it is run, whatever its tags say.

    Raises:
        UserError: missing, not YAML, a key twice, or far larger, deeper or more repetitive than any configuration.
    """
    from omegaconf import OmegaConf

    try:
        text = artifacts.read_text(path, LARGEST)
        check_size(text)
        return to_plain(OmegaConf.to_container(OmegaConf.load(io.StringIO(text))))
    except Exception as error:  # a YAML constructor raises nearly anything for text that is not what its tag says
        raise UserError(f"config '{path}': {' '.join(str(error).split())}") from error


def check_size(text: str) -> None:
    """Raises ValueError for YAML that nests deeper than `DEPTH`, where the parser itself would run out of stack, or
    that aliases blow up to more than `NODES` values; other errors of YAML are left to the parser."""
    import yaml

    sizes: dict[str, int] = {}  # of what an anchor stands for, in values
    opened: list[tuple[str | None, int]] = []  # anchors of the collections around, and the values before them
    total = 0
    refusal = f"nested deeper than {DEPTH} levels, or more than {NODES:,} values with its aliases"
    try:
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.CollectionEndEvent):
                anchor, before = opened.pop()
                sizes |= {anchor: total - before} if anchor else {}
                continue
            if isinstance(event, yaml.AliasEvent):
                total += sizes.get(event.anchor, 0)
            elif isinstance(event, yaml.NodeEvent):
                total += 1
                if isinstance(event, yaml.CollectionStartEvent):
                    opened.append((event.anchor, total - 1))
                elif event.anchor:
                    sizes[event.anchor] = 1
            if len(opened) > DEPTH or total > NODES:
                raise ValueError(refusal)
    except yaml.YAMLError as error:
        # the parser reads ahead, and may meet a limit of its own before it tells of the first bracket
        if bracket_depth(text) > DEPTH:
            raise ValueError(refusal) from error
        raise


def bracket_depth(text: str) -> int:
    """Count how deep brackets nest at most, those in quotes and comments among them."""
    return max(accumulate((c in "[{") - (c in "]}") for c in text), default=0)


def to_plain(value: Any) -> Any:
    """Without the types that YAML tags of OmegaConf make, such as paths: as texts."""
    if isinstance(value, dict):
        return {to_plain(key): to_plain(one) for key, one in value.items()}
    if isinstance(value, list):
        return [to_plain(one) for one in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def check_interpolations(plain: Mapping[Any, Any]) -> None:
    """Raises ValueError for more `${...}` than any configuration needs, or others than of keys and `oc.env`, such as
    `oc.create`, which would read YAML that `check_size` has not seen."""
    text = json.dumps(plain)
    if (count := text.count("${")) > INTERPOLATIONS:
        raise ValueError(f"{count} interpolations ${{...}}, at most {INTERPOLATIONS} are followed")
    if found := OTHER_INTERPOLATION.search(text):
        raise ValueError(f"'{found[0]}...': only ${{key}} and ${{oc.env:NAME}} are followed")


def named(plain: Any) -> Any:
    """With every part that is given by its name alone, such as `outer: adam`, as a mapping that options can join."""
    if not isinstance(plain, dict):
        return plain
    return {key: {"name": v} if key in KINDS and isinstance(v, str) else named(v) for key, v in plain.items()}


class Whole(dict[Any, Any]):
    """Options that take the place of all that were there."""


def joined(base: Mapping[Any, Any], change: Mapping[Any, Any]) -> dict[Any, Any]:
    """`base` with `change` merged into it, in which `{}` empties what was there.

    A part that changes its name drops the options it had under the old one.
    """
    out = dict(base)
    for key, value in change.items():
        before = out.get(key)
        if isinstance(before, Mapping) and isinstance(value, Mapping):
            renamed = key in KINDS and value.get("name", before.get("name")) != before.get("name")
            value = dict(value) if renamed or not value or isinstance(value, Whole) else joined(before, value)
        out[key] = value
    return out


def parse(overrides: Sequence[str]) -> dict[Any, Any]:
    """`a.b=value` overrides, in order, as one nested mapping; values are YAML.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    from omegaconf import OmegaConf

    parsed: dict[Any, Any] = {}
    for override in overrides:
        key, equals, _ = override.partition("=")
        if not equals or not all(key.split(".")):
            raise UserError(f"override '{override}': expected key=value, such as train.steps=100")
        try:
            check_size(override.partition("=")[2])
            one = to_plain(OmegaConf.to_container(OmegaConf.from_dotlist([override])))
        except Exception as error:  # as in `read`
            raise UserError(f"override '{override}': {' '.join(str(error).split())}") from error
        parsed = joined(parsed, named(one))
    return parsed


def dump(plain: Mapping[str, Any]) -> str:
    """Plain values as YAML."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(dict(plain)))
