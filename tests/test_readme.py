"""The README's code runs, its commands exist, and its tables are those of the results files."""

import re
import textwrap
from pathlib import Path

import numpy as np
import pytest

from bench import table
from umeta.cli.main import main, parser
from umeta.config import build, reading
from umeta.data.digits import Digits
from umeta.report.tables import rewrite

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "docs/results.md").read_text(encoding="utf-8")
SPEED = (ROOT / "docs/speed.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_the_library_example_is_short_and_learns(tmp_path, monkeypatch, capsys):
    example = next(block for block in blocks("python") if "metatrain" in block)
    assert len([line for line in example.splitlines() if line.strip()]) < 15
    train, test = Digits().read("train"), Digits().read("test")
    np.save(tmp_path / "images.npy", train.pixels)
    np.save(tmp_path / "test_images.npy", test.pixels)
    np.save(tmp_path / "test_labels.npy", test.labels)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.5  # chance is 0.2


def test_the_plug_in_example_works(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("my_proposer.py").write_text(next(block for block in blocks("python") if "MyProposer" in block))
    Path("tiny.yaml").write_text(
        textwrap.dedent("""
        data: digits
        proposer: {name: kmeans}
        metalearner: {name: protonet, model: {name: conv4, filters: 4}}
        train: {outer: adam, steps: 2, way: 5, shot: 1, query: 2, meta_batch: 2}
        evaluate: {protocol: small, tasks: 8, baselines: []}
    """)
    )
    assert main(["run", "tiny.yaml", "proposer=my_proposer.py", "--device", "cpu"]) == 0
    assert "5-way 1-shot" in capsys.readouterr().out


def test_the_config_example_is_accepted():
    for block in blocks("yaml"):
        plain = {"name": "photos", **__import__("yaml").safe_load(block)}
        build.build({k: {"name": v} if isinstance(v, str) and k != "name" else v for k, v in plain.items()})


@pytest.mark.parametrize(
    "line", [line for block in blocks("", TEXT + RESULTS) for line in block.splitlines() if line.startswith("umeta ")]
)
def test_every_command_is_understood(line):
    words = line.partition("#")[0].split()[1:]
    options, rest = parser().parse_known_args(words)
    assert all("=" in word for word in rest)
    reference = getattr(options, "config", None)
    for name in [reference] if isinstance(reference, str) else reference or []:
        assert "=" in name or name == "photos.yaml" or name in reading.find_packaged()


GROCERIES = ROOT.parent / "shared" / "data" / "grocery84"


@pytest.mark.skipif(not GROCERIES.exists(), reason="needs the grocery photographs")
def test_the_walk_through_from_photographs_to_predictions(tmp_path, monkeypatch, capsys):
    """Its own code and commands, but for meta-training cut to a few steps."""
    monkeypatch.chdir(tmp_path)
    Path("grocery84").symlink_to(GROCERIES)
    part = TEXT[TEXT.index("## Your own pictures") : TEXT.index("## An environment without")]
    prepare, score = re.findall(r"```python\n(.*?)```", part, re.DOTALL)
    commands = [line.partition("#")[0].split()[1:] for line in part.splitlines() if line.startswith("umeta ")]
    commands = [words for words in commands if words[0] != "evaluate"]
    assert [words[0] for words in commands] == ["run", "adapt", "predict"]
    exec(compile(prepare, "README.md", "exec"), {})
    commands[0] += ["train.steps=12", "train.way=16", "data.size=28", "--device", "cpu"]
    for words in commands:
        assert main(words) == 0
    assert Path("predictions.png").exists()
    capsys.readouterr()
    exec(compile(score, "README.md", "exec"), {})
    assert float(capsys.readouterr().out) > 0.3  # chance is 0.2


def test_tables_are_those_of_the_results_files():
    assert rewrite(TEXT, ROOT) == TEXT
    assert rewrite(RESULTS, ROOT / "docs") == RESULTS
    assert table.rewrite(TEXT, ROOT) == TEXT
    assert table.rewrite(SPEED, ROOT / "docs") == SPEED
