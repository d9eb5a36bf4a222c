"""Finding parts by name, by path and by entry point, and building them from options."""

from __future__ import annotations

import ast
import dataclasses
import re
import sys
from dataclasses import dataclass, field
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated, Any, ClassVar

import pytest
from annotated_types import Gt

from umeta.config import registry
from umeta.errors import UserError, suggest
from umeta.models.conv4 import Conv4

PLUGIN = '''
"""A plug-in."""
from __future__ import annotations
from dataclasses import dataclass
from typing import Annotated
from annotated_types import Gt

@dataclass
class Helper:
    other: int = 0

@dataclass
class MyMethod:
    """Mine (2026)."""
    margin: Annotated[float, Gt(0)] = 0.1
    """how far"""

def function(): ...
'''
BUILT_IN = [(kind, name) for kind in registry.KINDS for name in registry.built_in(kind)]
OWN_DATA = {"folder", "arrays", "precomputed"}  # a person's own files: there is no paper to cite


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    (tmp_path / "my_method.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_method.py"
    sys.modules.pop("my_method", None)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_built_in_part_is_a_dataclass_found_by_name(kind, name):
    found = registry.find(kind, name)
    assert dataclasses.is_dataclass(found)
    assert found.__name__.lower() == name.replace("_", "")
    assert found.__module__ == f"{registry.KINDS[kind]}.{name}"


def test_the_parts_of_the_thin_path_are_there():
    assert {("embedding", "acai"), ("embedding", "pixels"), ("proposer", "kmeans")} < set(BUILT_IN)
    assert {("metalearner", "maml"), ("metalearner", "protonet"), ("data", "omniglot")} < set(BUILT_IN)


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_every_option_has_help_and_every_method_cites_its_paper(kind, name):
    text, options = registry.describe(kind, name)
    assert [option.name for option in options if not option.help] == []
    assert name in OWN_DATA or re.search(r"\b(19|20)\d\d\b", text.splitlines()[0])
    assert len(text.splitlines()[0]) > 20
    fields = {f.name: f for f in dataclasses.fields(registry.find(kind, name)) if f.init}
    assert [option.name for option in options] == list(fields)
    for option in options:
        required = fields[option.name].default is fields[option.name].default_factory is dataclasses.MISSING
        assert (option.default == "required") == required


def test_listing_imports_no_part(monkeypatch):
    monkeypatch.delitem(sys.modules, "embeddings.acai", raising=False)
    assert "acai" in registry.built_in("embedding")
    assert "embeddings.acai" not in sys.modules


PACKAGE = {
    "_bases": '''
from dataclasses import dataclass
from typing import ClassVar

class Plain:
    hidden: int = 0

@dataclass(kw_only=True)
class Base(Plain):
    kind: ClassVar[str] = "x"
    size: int
    """how large"""
    rate: float = 0.5
    """how fast"""

class Between(Base):
    neither: int = 3

@dataclass(kw_only=True)
class Other(Base):
    rate: float = 0.25
    depth: int = 2
    """how deep"""
''',
    "child": '''
from dataclasses import dataclass, field
from typing import Generic, TypeVar
from toys_of_a_package._bases import Between as Second, Other

T = TypeVar("T")

@dataclass(kw_only=True)
class Mixed(Second):
    depth: int = 9
    """not the first base's"""
    width: int = 4
    """how wide"""

@dataclass(kw_only=True)
class Child(Other, Mixed, Generic[T]):
    """A child (2026)."""
    own: int = 1
    """its own"""
    many: list[int] = field(default_factory=lambda: [1, 2])
    """several"""
    few: list[int] = field(default_factory=list)
    """none yet"""
    size: int = 7
    width: int = 5
    """how wide, in pixels"""
    secret: int = field(init=False, default=0)
''',
}


def test_inherited_options_are_described_as_dataclasses_order_them(tmp_path, monkeypatch):
    folder = tmp_path / "toys_of_a_package"
    folder.mkdir()
    for name, text in PACKAGE.items():
        (folder / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(registry.KINDS, "proposer", folder.name)
    monkeypatch.setattr(registry, "PACKAGES", (folder.name,))
    assert registry.built_in("proposer") == ["child"]
    text, options = registry.describe("proposer", "child")
    assert not {name for name in sys.modules if name.startswith(f"{folder.name}.")}
    assert text == "A child (2026)."
    assert {option.name: (option.default, option.help) for option in options} == {
        "size": ("7", "how large"),
        "rate": ("0.25", "how fast"),
        "depth": ("2", "how deep"),
        "width": ("5", "how wide, in pixels"),
        "own": ("1", "its own"),
        "many": ("[1, 2]", "several"),
        "few": ("list()", "none yet"),
    }
    fields = [f for f in dataclasses.fields(registry.find("proposer", "child")) if f.init]
    assert [option.name for option in options] == [f.name for f in fields]
    assert [option.default for option in options[:-2]] == [str(f.default) for f in fields[:-2]]


@pytest.mark.parametrize("name", ["{}:MyMethod", "{}", "my_method.py", "my_method:MyMethod"])
def test_a_plug_in_is_found_by_path_or_module(plugin, name):
    built = registry.build_part("proposer", {"name": name.format(plugin), "margin": "1e-4"})
    assert type(built).__name__ == "MyMethod"
    assert built.margin == 0.0001


def test_a_plug_in_is_found_by_entry_point(plugin, monkeypatch):
    point = EntryPoint("mine", "my_method:MyMethod", "umeta.proposers")
    broken = EntryPoint("broken", "my_method:Nothing", "umeta.proposers")
    monkeypatch.setattr(registry, "entry_points", lambda group: [point, broken] if group == "umeta.proposers" else [])
    assert registry.build_part("proposer", {"name": "mine", "margin": 2}).margin == 2
    with pytest.raises(UserError, match="did you mean 'mine'"):
        registry.find("proposer", "mime")
    with pytest.raises(UserError, match="no metalearner is named 'mine'"):
        registry.find("metalearner", "mine")
    with pytest.raises(UserError, match=r"cannot import plug-in 'broken' \(my_method:Nothing\)"):
        registry.find("proposer", "broken")


def test_trackers_of_the_earlier_group_of_entry_points_are_found(plugin, monkeypatch):
    groups = {"umeta.sinks": [EntryPoint("old", "my_method:MyMethod", "umeta.sinks")]}
    groups["umeta.trackers"] = [EntryPoint("new", "my_method:Helper", "umeta.trackers")]
    monkeypatch.setattr(registry, "entry_points", lambda group: groups.get(group, []))
    assert registry.build_part("tracker", {"name": "old", "margin": 2}).margin == 2
    assert registry.build_part("tracker", {"name": "new", "other": 2}).other == 2
    with pytest.raises(UserError, match="no tracker is named 'tensorbored'; did you mean 'tensorboard'"):
        registry.build_part("tracker", "tensorbored")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("kmaens", "did you mean 'kmeans'"),
        ("zzz", "known: .*kmeans"),
        ("", "no proposer is named ''"),
        ("../umeta/cli", "no proposer is named"),
        ("nowhere.py", r"plug-in file 'nowhere.py' does not exist"),
        ("my_method:Missing", "has no class 'Missing'"),
        ("my_method.py:Missing", "has no class 'Missing'"),
        ("my_method:function", "not a dataclass"),
        ("os:path", "not a dataclass"),
        ("no_such_module_here:X", "cannot import plug-in"),
        (":X", "neither path"),
        (".relative:X", "neither path"),
        ("broken.py", "cannot import plug-in"),
        ("binary.py", "cannot import plug-in"),
        ("imports.py:X", "cannot import plug-in.*no_such_module_here"),
        ("raises.py:X", "cannot import plug-in.*NameError: name 'nothing'"),
        ("empty.py", "has no class that is named as it is; name the class after ':', as in empty.py:Class"),
    ],
)
def test_a_miss_is_a_user_error_that_names_it(plugin, name, message):
    (plugin.parent / "broken.py").write_text("class Broken(:")
    (plugin.parent / "binary.py").write_bytes(b"\x00\xff\x00")
    (plugin.parent / "imports.py").write_text("import no_such_module_here")
    (plugin.parent / "raises.py").write_text("nothing")
    (plugin.parent / "empty.py").write_text("")
    with pytest.raises(UserError, match=message) as raised:
        registry.find("proposer", name, "here")
    assert str(raised.value).startswith("here: ")


@dataclass
class Inner:
    n: int = 1


@dataclass
class Part:
    shared: ClassVar[int] = 0
    size: Annotated[int, Gt(0)]
    rate: float = 0.5
    pairs: list[tuple[int, int]] = field(default_factory=list)
    inner: Inner = field(default_factory=Inner)
    model: Any = None
    hidden: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.rate > 1:
            raise ValueError("rate: above 1")


def test_options_are_typed():
    options = {"size": "3", "rate": "1e-4", "pairs": [[1, "2"]], "inner": {"n": 5}, "model": "conv4"}
    built = registry.build_typed(Part, options, "part")
    assert built == Part(3, 0.0001, [(1, 2)], Inner(5), Conv4())
    assert registry.build_typed(Part, {"size": 1, "model": None}, "part").model is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "part.size: missing"),
        ({"size": 0}, "part.size: .*greater than 0, got 0"),
        ({"size": None}, "part.size: .*got None"),
        ({"size": 1, "rate": "fast"}, "part.rate: .*'fast'"),
        ({"size": 1, "rate": 2}, "part: rate: above 1"),
        ({"size": 1, "pairs": [[1, 2], [3, "x"]]}, r"part.pairs\[1\]\[1\]: .*'x'"),
        ({"size": 1, "inner": {"m": 1}}, "part.inner: unknown option 'm'; known: n"),
        ({"size": 1, "inner": 3}, "part.inner: expected a mapping"),
        ({"size": 1, "model": "conv5"}, "part.model: .*did you mean 'conv4'"),
        ({"size": 1, "model": {"name": "conv4", "filters": 0}}, "part.model.filters: "),
        ({"size": 1, "model": {"filters": 4}}, "part.model: expected a name"),
        ({"size": 1, "sise": 2}, "part: unknown option 'sise'; did you mean 'size'"),
        ({"size": 1, "hidden": 2}, "part: unknown option 'hidden'"),
        ({"size": 1, "shared": 2}, "part: unknown option 'shared'"),
        ({"size": 1, 7: 2}, "part: unknown option '7'"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(UserError, match=message):
        registry.build_typed(Part, options, "part")


def test_options_are_described_from_the_source_alone(monkeypatch):
    source = '''
@dataclass
class Part:
    """A part
    of two lines."""

    seen: ClassVar[bool] = False
    size: Annotated[int, Gt(0)]
    """how
    many"""
    rate: Annotated[float, Ge(0), Le(1)] = 0.5
    few: Annotated[int, Lt(9)] | None = None
    """none by default"""
    _own: dict = field(init=False)
    """not an option"""
'''
    node = ast.parse(source).body[0]
    monkeypatch.setattr(registry, "_ancestry", lambda module, name: [node])
    doc, options = registry.describe_class("module", "Part")
    assert doc == "A part\nof two lines."
    assert options == [
        registry.Option("size", "int > 0", "required", "how many"),
        registry.Option("rate", "float >= 0 <= 1", "0.5", ""),
        registry.Option("few", "int < 9 | None", "None", "none by default"),
    ]


def test_suggestions_are_near_or_complete():
    assert suggest("kmean", ["kmeans", "maml"]) == "; did you mean 'kmeans'?"
    assert suggest("zzz", ["maml", "kmeans"]) == "; known: kmeans, maml"
    assert suggest("zzz", []) == "; known: none"


def test_plug_ins_in_stored_configurations_are_found_and_refused_unless_trusted():
    plain = {
        "metalearner": {"name": "mine.py:Mine", "model": {"name": "conv4"}},
        "proposer": {"name": "mixture", "proposers": ["instances", {"name": "pkg.mod:Other"}]},
        "oracle": {"name": "umeta.benchmarks.oracle:Oracle"},
    }
    assert registry.find_plugins(plain) == {"mine.py:Mine", "pkg.mod:Other"}
    registry.refuse_plugins(plain, None, "runs/x")
    registry.refuse_plugins(plain, {"mine.py:Mine", "pkg.mod:Other"}, "runs/x")
    with pytest.raises(UserError, match=r"runs/x: asks to run the code of 'pkg.mod:Other'.*--allow-plugin"):
        registry.refuse_plugins(plain, {"mine.py:Mine"}, "runs/x")


@pytest.mark.parametrize(
    "plain",
    [
        {"metalearner": "mine.py:X"},
        {"metalearner": {"name": "maml", "model": "mine.py:X"}},
        {"proposer": {"name": "mixture", "proposers": ["instances", "mine.py:X"]}},
        {"env": {"name": "gym", "id": "mine.py:X"}},
    ],
)
def test_plug_ins_are_found_in_each_way_to_name_a_part(plain):
    assert registry.find_plugins({"title": "see: here", **plain}) == {"mine.py:X"}


def test_the_code_of_a_plug_in_is_a_file(plugin):
    """Of a module that is not imported, and of one that is not there."""
    assert registry.code_of(f"{plugin}:MyMethod") == plugin
    assert registry.code_of("my_method:MyMethod") == plugin
    for name in ("kmeans", "no_such_module_here:X", "no/such place:X"):
        assert registry.code_of(name) is None


def test_a_module_in_the_working_directory_is_found_after_all_others(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Part:\n    size: int = 3\n"
    (tmp_path / "handmade_part.py").write_text(text)
    before = list(sys.path)
    assert registry.build_part("proposer", "handmade_part:Part").size == 3
    assert sys.path == before


DOMAINS = "images", "environments", "regression"
DEFAULTS = Path(__file__).with_name("defaults.txt")


def test_defaults_are_those_that_recorded_results_rely_on() -> None:
    """Configs do not spell out what they leave as it is; what is new since then may have any default."""
    parts = [
        (kind, name, registry.describe(kind, name)[1]) for kind in registry.KINDS for name in registry.built_in(kind)
    ]
    trains = [
        (f"umeta.config.{domain}", name) for domain in DOMAINS for name in ("TrainConfig", "EvaluateConfig", "Config")
    ]
    parts += [(module, name, registry.describe_class(module, name)[1]) for module, name in trains]
    found = [f"{kind} {name} {option.name}: {option.default}" for kind, name, options in parts for option in options]
    assert [line for line in DEFAULTS.read_text(encoding="utf-8").splitlines() if line not in found] == []


def test_looking_into_the_working_directory_leaves_the_search_path_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = [str(tmp_path), *sys.path]
    monkeypatch.setattr(sys, "path", list(before))
    with registry.from_here():
        assert sys.path == [*before, str(tmp_path)]
    assert sys.path == before


@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_no_option_s_help_breaks_the_table_it_is_shown_in(kind: str, name: str) -> None:
    for option in registry.describe(kind, name)[1]:
        assert "|" not in re.sub("`[^`]*`", "", option.help), option.name
