"""Configs: what is read, what is typed, and what is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from embeddings.pixels import Pixels
from umeta.config import build, reading
from umeta.config.base import TrainConfig
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.stages import folder
from umeta.types import EpisodeSpec

TEXT = """
data: digits
embedding: pixels
proposer: {name: kmeans, k: 5}
metalearner: {name: protonet, model: conv4}
train: {outer: adam, steps: 3, way: 4}
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "some.yaml"
    path.write_text(TEXT)
    return path


def test_a_config_is_built_from_its_parts(file):
    built = build.load(file)
    assert built.name == "some"
    assert isinstance(built.embedding, Pixels)
    assert built.proposer.k == 5
    assert built.train.episode == EpisodeSpec(4, 1, 5)
    assert built.tasks_folder == Path("tasks/some")
    assert built.run_folder == Path("runs/some")


@pytest.mark.parametrize("name", reading.find_packaged())
def test_every_packaged_config_loads(name):
    built = build.load(name)
    assert built.name == name
    assert isinstance(built.train, TrainConfig)


def test_a_packaged_config_is_found_by_its_name_wherever_it_lies():
    place = Path(__file__).parents[2] / "configs"
    files = [path for path in place.rglob("*.yaml") if path.parent.name != "ablations"]
    assert len(files) >= 51
    assert reading.find_packaged() == {path.stem: path for path in files}  # so that no name is there twice
    assert all(path.stem.startswith(f"{path.parent.name}_") for path in files)
    assert reading.read("omniglot_best") == reading.read(place / "omniglot" / "omniglot_best.yaml")


def test_a_packaged_ablation_is_found_by_the_name_of_its_config(tmp_path):
    rows = reading.read_ablation("omniglot_best")
    assert rows == reading.read_ablation(tmp_path / "omniglot_best.yaml")
    assert all("=" in one for changes in rows.values() for one in changes)
    with pytest.raises(UserError, match=r"ablations/nav2d_rl2\.yaml: no such file of ablations"):
        reading.read_ablation("nav2d_rl2")


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "0.0001", "'1e-4'", "1.0e-4"])
def test_a_number_is_a_number_however_it_is_written(file, text):
    file.write_text(TEXT.replace("outer: adam", f"outer: {{name: adam, lr: {text}}}"))
    assert build.load(file).train.outer.lr == 0.0001
    file.write_text(TEXT)
    assert build.load(file, [f"train.outer={{name: adam, lr: {text}}}"]).train.outer.lr == 0.0001


def test_only_true_and_false_are_booleans_keys_are_text_and_dates_stay_as_they_are_written():
    text = "on: no\nyes: [y, n, off, True]\n2024-01-01: 2024-01-01 10:00:00\n1: null\n0x10: 0x10\ntrue: false"
    assert reading.load_yaml(text) == {
        "on": "no",
        "yes": ["y", "n", "off", True],
        "2024-01-01": "2024-01-01 10:00:00",
        "1": None,
        "0x10": 16,
        "true": False,
    }


@pytest.mark.parametrize("text", ["yes", "on", "true", "True"])
def test_an_option_that_is_a_boolean_may_still_be_written_in_words(file, text):
    assert build.load(file, ["embedding={name: pixels, contrast: " + text + "}"]).embedding.contrast is True


def test_aliases_and_merge_keys_are_followed():
    text = "a: &a {k: 3, l: 4}\nb: *a\nc:\n  d: &d {<<: *a, k: 1}\ne: {<<: *d, l: 2}\nf: {<<: [*d, *a, {m: 5}]}"
    assert reading.load_yaml(text) == {
        "a": {"k": 3, "l": 4},
        "b": {"k": 3, "l": 4},
        "c": {"d": {"k": 1, "l": 4}},
        "e": {"k": 1, "l": 2},
        "f": {"k": 1, "l": 4, "m": 5},
    }


text = st.text(
    st.characters(codec="utf-8", exclude_characters="\x85")
)  # which PyYAML's dumper takes for an end of line
values = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | text
values |= st.sampled_from(["1e-4", "1E5", ".5e3", "1_0e1", "on", "no", "null", "~", "2024-01-01", "1:20", "0o7", "<<"])
values |= st.sampled_from(["true", "=", "&a", "*a", "!!int 3", "a: b", "- a", "# a", "[", "%", "@", "`", "..."])


@settings(max_examples=200, deadline=None)
@given(st.recursive(values, lambda inner: st.lists(inner) | st.dictionaries(text, inner), max_leaves=8))
def test_what_is_written_is_read_as_the_same_values(value):
    if "${" not in str(value):
        assert repr(reading.load_yaml(reading.dump_yaml({"a": value}))) == repr({"a": value})


def test_a_value_that_is_there_twice_is_written_twice():
    shared = {"b": [1]}
    assert reading.dump_yaml({"a": shared, "c": shared}) == "a:\n  b:\n  - 1\nc:\n  b:\n  - 1\n"


def test_nothing_takes_the_place_of_what_there_was_and_so_does_a_whole():
    base = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}
    assert reading.merge(base, {"a": {"y": {}}}) == {"a": {"x": 1, "y": {}}, "b": 3}
    assert reading.merge(base, {"a": reading.Whole(w=4)}) == {"a": {"w": 4}, "b": 3}
    assert reading.merge(base, {"a": {"y": {"v": 5}}}) == {"a": {"x": 1, "y": {"z": 2, "v": 5}}, "b": 3}


def test_an_outer_step_that_differentiates_twice_refuses_recomputed_inner_steps():
    changes = ["metalearner.recompute=true", "train.outer=trpo"]
    with pytest.raises(UserError, match="recompute: trpo differentiates the inner loop twice"):
        build.load("nav2d_diayn", changes)


def test_overrides_replace_single_keys_the_last_one_winning(file):
    built = build.load(file, ["train.steps=7", "train.steps=1e3", "proposer.smallest=2", "name=other", "out=there"])
    assert (built.train.steps, built.train.way) == (1000, 4)
    assert (built.proposer.k, built.proposer.smallest) == (5, 2)
    assert built.run_folder == Path("there/runs/other")


def test_an_option_joins_a_part_that_was_given_by_name_and_another_name_drops_the_options(file):
    built = build.load(file, ["embedding.whiten=4", "metalearner.model.filters=8", "train.outer.lr=0.1"])
    assert (built.embedding.whiten, built.metalearner.model.filters, built.train.outer.lr) == (4, 8, 0.1)
    assert build.load(file, ["proposer.k=7", "embedding=random_network"]).plain["embedding"] == {
        "name": "random_network"
    }


def test_earlier_names_of_parts_are_understood_and_become_the_present_ones(file):
    built = build.load(file, ["embedding.name=contrastive", "embedding.batch=8"])
    assert type(built.embedding).__name__ == "SimCLR"
    assert built.plain["embedding"] == {"name": "simclr", "batch": 8}
    assert reading.expand_names({"outer": "ppo", "x": {"outer": {"name": "ppo", "clip": 1}}, "proposer": "ppo"}) == {
        "outer": {"name": "promp"},
        "x": {"outer": {"name": "promp", "clip": 1}},
        "proposer": {"name": "ppo"},
    }


def test_a_folder_that_was_begun_under_an_earlier_name_of_a_part_can_be_resumed(tmp_path):
    artifacts.write_json(tmp_path / "asked.json", {"embedding": {"name": "contrastive", "batch": 8}})
    (tmp_path / "checkpoints").mkdir()
    assert folder.begin(tmp_path, "tasks", {"embedding": {"name": "simclr", "batch": 8}}, resume=True)
    with pytest.raises(UserError, match=r"embedding\.batch: 8 before, 9 now"):
        folder.begin(tmp_path, "tasks", {"embedding": {"name": "simclr", "batch": 9}}, resume=True)


def test_the_tasks_of_another_name_can_be_given(file):
    assert build.load(file, ["tasks=tasks/acai"]).tasks_folder == Path("tasks/acai")


def test_what_was_read_is_kept_and_gives_the_same_config_again(file):
    built = build.load(file, ["train.steps=7"])
    file.write_text(reading.dump_yaml(built.plain))
    assert build.load(file) == built


def test_reading_a_name_that_is_a_number_gives_text(file):
    assert build.load(file, ["name=7"]).name == "7"


@pytest.mark.parametrize(
    ("override", "messages"),
    [
        ("trian.steps=3", ["'trian'", "did you mean 'train'"]),
        ("train.stepz=3", ["train: unknown option 'stepz'", "did you mean 'steps'"]),
        ("proposer=kmaens", ["proposer: no proposer is named 'kmaens'", "did you mean 'kmeans'"]),
        ("train.outer=adamm", ["train.outer", "did you mean 'adam'"]),
        ("metalearner.model.filter=3", ["metalearner.model: unknown option 'filter'", "did you mean 'filters'"]),
        ("train.steps=many", ["train.steps", "integer", "'many'"]),
        ("train.steps=0", ["train.steps", "greater than 0", "got 0"]),
        ("train.steps=1.5", ["train.steps", "1.5"]),
        ("train=3", ["train: expected a mapping", "3"]),
        ("data=null", ["data: expected a name"]),
        ("data=3", ["data: expected a name"]),
        ("data.name=[1]", ["data: expected a name"]),
        ("train.outer=null", ["train.outer: expected a name"]),
        ("evaluate.episodes=[[5,1],[20]]", ["evaluate.episodes[1]"]),
        ("evaluate.split=train", ["evaluate.split", "'val' or 'test'", "'train'"]),
        ("seed=-1", ["seed", "greater than or equal to 0", "-1"]),
        ("seed=99999999999999999999", ["seed", "less than", "99999999999999999999"]),
        ("evaluate.seed=-1", ["evaluate.seed", "-1"]),
        ("name=a/b", ["name: 'a/b' cannot name a directory"]),
        ("name=..", ["name: '..'"]),
        ("name=", ["name: None"]),
        ("name=[a]", ["name: ['a']"]),
        ("plain.x=1", ["unknown key 'plain'"]),
        ("train.steps", ["override 'train.steps'", "key=value"]),
        ("=3", ["override '=3'", "key=value"]),
        ("train..steps=3", ["override 'train..steps=3'", "key=value"]),
        ("train.steps=[", ["override 'train.steps=['"]),
        ("train.steps=${nope}", ["override 'train.steps=${nope}'", "interpolation is no longer read"]),
        ("embedding={name: acai, dimensions: 17}", ["embedding", "17", "16"]),
    ],
)
def test_a_bad_override_is_named(file, override, messages):
    with pytest.raises(UserError) as raised:
        build.load(file, [override])
    assert [message for message in messages if message not in str(raised.value)] == []


def test_a_proposer_that_does_not_say_what_it_proposes_on_or_whether_it_sees_labels_is_refused(file, tmp_path):
    text = "from dataclasses import dataclass\n\n@dataclass\nclass Mine:\n    {} = {!r}\n"
    for said, value, missing in [("domain", "image", "sees_labels"), ("sees_labels", False, "domain")]:
        path = tmp_path / f"{said}.py"
        path.write_text(text.format(said, value))
        with pytest.raises(UserError, match=f"proposer: it lacks the class attribute '{missing}'"):
            build.load(file, [f"proposer={path}:Mine"])


@pytest.mark.parametrize("key", ["data", "proposer", "metalearner", "train"])
def test_a_missing_part_is_named(file, key):
    file.write_text("\n".join(line for line in TEXT.splitlines() if not line.startswith(key)))
    with pytest.raises(UserError, match=f"{key}: missing"):
        build.load(file)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- a", "expected a mapping"),
        ("3", "expected a mapping of keys to values, got '3'"),
        ("word", "'word'"),
        ("a: 1\na: 2", "duplicate key a"),
        ("a: [", "line 1"),
        ("a: !!python/object/apply:os.system [ls]", "python/object"),
        ("!!python/name:os.system ''", "python/name"),
        ("a: !!bool maybe", "maybe"),
        ("a: &b [*b]", r"recursive: the alias \*b"),
        ("a: &b {c: [&d 1, *d], e: *b}", r"recursive: the alias \*b"),
        ("a: ${a}", r"'\$\{a\}': interpolation is no longer read"),
        ("<<: 3", "<< merges mappings alone"),
        ("[a]: 1", "a key is no text"),
        ("a: {b: 1, b: 1}", "duplicate key b"),
        (b"\x89PNG\r\n\x1a\n\x00", "utf-8"),
        (b"\x00\x01", "characters are not allowed"),
    ],
)
def test_a_file_that_is_no_config_is_named(tmp_path, content, message):
    path = tmp_path / "some.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=message) as raised:
        build.load(path)
    assert "some.yaml" in str(raised.value) or "'word'" in str(raised.value)


def test_yaml_tags_run_nothing(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(
        f"a: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{tmp_path}/ran]]"
    )
    with pytest.raises(UserError):
        reading.read(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("reference", ["nowhere.yaml", "."])
def test_a_config_that_is_not_there_is_named(reference):
    with pytest.raises(UserError, match="no such file or packaged config"):
        reading.read(reference)


def test_a_near_miss_of_a_packaged_name_is_suggested():
    with pytest.raises(UserError, match="did you mean 'omniglot_acai_kmeans_maml'"):
        reading.read("omniglot_acai_kmean_maml")


words = st.sampled_from(
    ["a", "train", ":", ": ", "-", " ", "\n", "[", "]", "{", "}", "&a", "*a", "!!int", "!!bool", "|"]
)
words |= st.sampled_from(
    ["${", "}", "'", '"', "#", "1e-4", "2020-01-01", "!!timestamp ", "?", "<<: ", "=", ".", "%", "@"]
)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(words, max_size=12).map("".join) | st.binary(max_size=30))
@example("a: !!timestamp x")
@example("a: !!int ''")
@example("[" * 2000)
def test_any_text_is_read_or_is_a_user_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        plain = reading.read(path)
    except UserError as error:
        assert str(error).startswith("config '")  # noqa: PT017
    else:
        assert isinstance(plain, dict)


@settings(max_examples=200, deadline=None)
@given(st.text() | st.lists(words, max_size=8).map("".join))
def test_any_override_is_read_or_is_a_user_error(text):
    try:
        build.build(reading.read("digits_acai_kmeans_protonet", [text, f"train.{text}"]))
    except UserError as error:
        assert str(error)  # noqa: PT017


def test_a_part_that_changes_its_name_drops_its_old_options_in_whatever_order_overrides_come():
    base = "digits_acai_kmeans_protonet"
    learner = build.load(base, ["metalearner=maml", "metalearner.model=conv4", "metalearner.normalisation=batch"])
    assert type(learner.metalearner).__name__ == "MAML"
    assert learner.metalearner.normalisation == "batch"
    assert build.load(base, ["proposer=instances", "proposer.rotations=true"]).proposer.rotations
    assert build.load(base, ["embedding={name: pixels, whiten: 3}"]).embedding.whiten == 3
    same = build.load(base, ["embedding={name: acai, steps: 7}"]).embedding
    assert (same.steps, same.depth) == (7, 8)
