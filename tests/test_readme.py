"""The README and the documentation: their code runs, their commands work, their tables are those of the results files.

A block that takes long is marked by a comment on the line before it, `<!-- long: why -->`: its commands are parsed and
not run. All other commands run as they stand, on packaged configs that are cut to a few steps.
"""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from bench import table
from umeta.cli.main import main, parser
from umeta.config import build, reading
from umeta.data.digits import Digits
from umeta.data.omniglot import Omniglot
from umeta.report.tables import rewrite
from umeta.version import __version__

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = {path.relative_to(ROOT).as_posix(): path for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]}


@dataclass(frozen=True)
class Block:
    """Fenced code of a page."""

    language: str
    code: str
    long: bool

    @property
    def commands(self) -> list[str]:
        lines = [line.partition(" #")[0].strip() for line in self.code.splitlines()]
        return [line for line in lines if line.startswith("umeta ")] if not self.language else []


def blocks(page: str, language: str | None = None) -> list[Block]:
    """The fenced code of a page, of one language or of all."""
    found = re.finditer(
        r"(<!-- long[^\n]*\n)?```(\w*)\n(.*?)^```$", PAGES[page].read_text(encoding="utf-8"), re.M | re.S
    )
    every = [Block(m[2], m[3], m[1] is not None) for m in found]
    return [block for block in every if language in (None, block.language)]


def commands(page: str) -> list[str]:
    """The commands of a page that run in no time."""
    return [command for block in blocks(page) if not block.long for command in block.commands]


def test_the_readme_is_one_page():
    assert len(PAGES["README.md"].read_text(encoding="utf-8").splitlines()) <= 180


def test_the_readme_links_to_what_is_there():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (ROOT / link).exists(), link


def test_links_to_headings_of_the_documentation_lead_somewhere():
    text = PAGES["README.md"].read_text(encoding="utf-8")
    for page, heading in re.findall(r"\]\((docs/[^)#]+)#([^)]+)\)", text):
        headings = re.findall(r"^#+ (.*)$", PAGES[page].read_text(encoding="utf-8"), re.M)
        assert heading in [re.sub(r"[^\w]+", "-", one.lower()).strip("-") for one in headings], heading


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_understood(page):
    for command in (command for block in blocks(page) for command in block.commands):
        options, rest = parser().parse_known_args(shlex.split(command)[1:])
        assert all("=" in word for word in rest), command
        reference = getattr(options, "config", None)
        for name in [reference] if isinstance(reference, str) else reference or []:
            known = "=" in name or name in ("photos.yaml", "omniglot_instances_X") or name in reading.find_packaged()
            assert known, command


@pytest.mark.parametrize("page", PAGES)
def test_every_make_target_exists(page):
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    for block in blocks(page, ""):
        for target in re.findall(r"^make (\w+)", block.code, re.M):
            assert target in targets, target


@pytest.mark.parametrize("page", PAGES)
def test_every_config_is_accepted(page):
    for block in blocks(page, "yaml"):
        build.build(reading.expand_names({"name": "photos", **yaml.safe_load(block.code)}))


def test_tables_are_those_of_the_results_files():
    for name, path in PAGES.items():
        text = path.read_text(encoding="utf-8")
        assert table.rewrite(rewrite(text, path.parent), path.parent) == text, f"{name}: run make tables"


def cut(plain: dict) -> dict:
    """A packaged config that takes no time: a few steps of everything, a few tasks, no baselines."""
    if "env" in plain:
        plain["train"] |= {"steps": 1, "meta_batch": 2, "episodes": 2}
        plain["evaluate"] |= {"goals": 2, "validation": 1, "episodes": 2, "steps": 1, "baselines": []}
        if plain["proposer"] == "diayn":
            plain["proposer"] = {"name": "diayn", "skills": 3, "iterations": 1}
        return plain
    if "embedding" in plain:
        plain["embedding"] |= {"steps": 2, "batch": 8, "depth": 2, "dimensions": 16}
    if "partitions" in plain["proposer"]:
        plain["proposer"] |= {"partitions": 1, "k": 30, "iterations": 2, "retries": 0}
    plain["metalearner"]["model"]["filters"] = 4
    plain["train"] |= {"steps": 2, "meta_batch": 1, "way": 5, "query": 2}
    plain["evaluate"] |= {"tasks": 4, "episodes": [[5, 1]], "baselines": []}
    return plain


@pytest.fixture
def cut_configs(tmp_path, monkeypatch):
    """The packaged configs, cut; and an empty working directory."""
    for path in reading.find_packaged().values():
        name = path.relative_to(reading.packaged_folder())
        if path.parent.name in ("omniglot", "digits", "nav2d") and "rounds" not in path.read_text():
            (tmp_path / "configs" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "configs" / name).write_text(yaml.safe_dump(cut(yaml.safe_load(path.read_text()))))
    monkeypatch.setattr(reading, "packaged_folder", lambda: tmp_path / "configs")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def run(command: str) -> None:
    assert main(shlex.split(command)[1:]) == 0, command


def test_the_three_stages_and_what_can_be_done_with_a_learner(cut_configs, capsys):
    """The commands of `start.md`, then the code and commands of `learner.md`, in one go."""
    for command in commands("docs/start.md"):
        run(command)
    assert Path("runs/acai-proto/report.html").exists()
    assert Path("runs/omniglot_acai_kmeans_protonet/report.md").exists()

    images = Omniglot().read("test").pixels[:5]
    for name, pixels in zip("abcde", images, strict=True):
        Image.fromarray(pixels.reshape(28, 28)).save(f"{name}.jpg")
    estimators, exported = blocks("docs/learner.md", "python")
    names: dict = {}
    exec(compile(estimators.code, "learner.md", "exec"), names)
    assert names["model"].predict_proba(["c.jpg"]).shape == (1, 3)
    assert len(names["vectors"]) == 2

    for command in commands("docs/learner.md"):
        run(command)
    names = {"support": torch.rand(5, 2, 1, 28, 28), "query": torch.rand(7, 1, 28, 28)}
    exec(compile(exported.code, "learner.md", "exec"), names)
    assert names["predicted"].shape == (7,)


def test_the_readme_repeats_commands_of_the_documentation():
    """So they need not run again."""
    elsewhere = {command for page in PAGES if page != "README.md" for command in commands(page)}
    assert set(commands("README.md")) <= elsewhere


def test_the_commands_on_environments(cut_configs):
    for command in commands("docs/environments.md"):
        run(command)
    assert Path("runs/nav-maml/report.html").exists()


def test_the_commands_on_digits(cut_configs):
    for page in ("docs/results/digits.md", "docs/contributing.md"):
        for command in commands(page):
            run(command)
    assert Path("results/digits.json").exists()


def test_no_other_page_has_commands_that_are_not_marked_as_long():
    tested = {"README.md", "docs/start.md", "docs/learner.md", "docs/environments.md", "docs/pictures.md"}
    tested |= {"docs/results/digits.md", "docs/contributing.md"}
    assert {page for page in PAGES if commands(page)} == tested


def test_the_library_example_is_short_and_learns(tmp_path, monkeypatch, capsys):
    example = next(block.code for block in blocks("README.md", "python") if "metatrain" in block.code)
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    train, test = Digits().read("train"), Digits().read("test")
    np.save(tmp_path / "images.npy", train.pixels)
    np.save(tmp_path / "test_images.npy", test.pixels)
    np.save(tmp_path / "test_labels.npy", test.labels)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.5  # chance is 0.2


TINY = """
data: digits
proposer: {name: kmeans}
metalearner: {name: protonet, model: {name: conv4, filters: 4}}
train: {outer: adam, steps: 12, way: 5, shot: 1, query: 2, meta_batch: 2}
evaluate: {protocol: small, tasks: 8, baselines: []}
"""


def test_the_plug_ins_work(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for block in blocks("docs/plugins.md", "python"):
        Path(block.code.splitlines()[0].removeprefix("# ")).write_text(block.code)
    Path("photos.yaml").write_text(TINY)
    long = [command for block in blocks("docs/plugins.md") for command in block.commands]
    assert len(long) == 5
    run(long[0] + " --device cpu")
    assert "5-way 1-shot" in capsys.readouterr().out
    run(f"{long[1]} proposer=my_proposer.py name=network --device cpu")
    assert "5-way 1-shot" in capsys.readouterr().out
    run(f"{long[2]} train.steps=10 evaluate.tasks=10 --device cpu")
    assert "learnt by the proposer's own loss, `absolute_error`" in capsys.readouterr().out
    run(f"{long[3]} proposer=my_proposer.py name=tracked --device cpu")
    assert "loss" in Path("runs/tracked/tracked.txt").read_text()
    few = "proposer.iterations=1 proposer.skills=3 train.steps=1 train.meta_batch=2 train.episodes=2 env.horizon=5"
    run(f"{long[4]} {few} evaluate.goals=2 evaluate.validation=1 evaluate.episodes=2 evaluate.steps=1")
    assert "how far its end is from a height" in Path("runs/cheetah_diayn/report.md").read_text()


GROCERIES = ROOT.parent / "shared" / "data" / "grocery84"


@pytest.mark.skipif(not GROCERIES.exists(), reason="needs the grocery photographs")
def test_the_walk_through_from_photographs_to_predictions(tmp_path, monkeypatch, capsys):
    """Its own code and commands, but for meta-training cut to a few steps."""
    monkeypatch.chdir(tmp_path)
    Path("grocery84").symlink_to(GROCERIES)
    prepare, score = blocks("docs/pictures.md", "python")
    learn, adapt, predict = commands("docs/pictures.md")
    exec(compile(prepare.code, "pictures.md", "exec"), {})
    for command in (f"{learn} train.steps=12 train.way=16 data.size=28 --device cpu", adapt, predict):
        run(command)
    assert Path("predictions.png").exists()
    capsys.readouterr()
    exec(compile(score.code, "pictures.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.3  # chance is 0.2


def test_the_changelog_and_the_citation_are_of_this_version():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## (\S+),", changes, re.M)[1] == __version__
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"] == __version__
