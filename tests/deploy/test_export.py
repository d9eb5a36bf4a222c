"""Export: the files compute what the learner does, without the library, and the card says what the run's files say."""

from __future__ import annotations

import contextlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.toys import Itself
from torch import Tensor, nn

from umeta.cli.main import main
from umeta.config.build import build
from umeta.deploy.adapted import AdaptedLearner, load_source
from umeta.deploy.calibration import Calibration
from umeta.deploy.export import (
    build_classifier,
    build_features,
    export_graph,
    export_learner,
    export_run,
    load_export,
    refuse_difference,
)
from umeta.errors import UserError
from umeta.evaluation.run import evaluate_run
from umeta.runtime import artifacts
from umeta.stages import metatrain, propose
from umeta.stages.runs import load_run
from umeta.types import Batch, TaskSpec

SHAPE = (1, 28, 28)
LEARNERS: dict[str, dict[str, Any]] = {
    "protonet": {"name": "protonet"},
    "cosine": {"name": "protonet", "distance": "cosine", "precision": "bfloat16"},
    "group": {"name": "protonet", "normalisation": "group"},
    "maml": {"name": "maml", "steps": 1, "precision": "bfloat16"},
    "fixed": {"name": "maml", "head": "fixed", "normalisation": "running", "steps": 1},
    "batch": {"name": "maml", "normalisation": "batch", "steps": 1},
    "support": {"name": "protonet", "normalisation": "support"},
    "unit": {"name": "maml", "distance": "cosine", "steps": 1},
    "snail": {"name": "snail"},
}
# with features that do not depend on the batch in umeta
EXPORTED = ["protonet", "cosine", "group", "maml", "fixed", "unit"]
CONFIG: dict[str, Any] = {
    "name": "tiny",
    "title": "a tiny learner",
    "data": {"name": "digits"},
    "embedding": {"name": "pixels"},
    "proposer": {"name": "kmeans", "k": 5, "partitions": 2},
    "train": {"outer": {"name": "adam"}, "steps": 3, "way": 3, "query": 2, "meta_batch": 2},
    "evaluate": {"episodes": [[3, 1]], "query": 2, "tasks": 4, "baselines": []},
}

# Runs the cards' own code where nothing of the library can be imported, and keeps what it computes.
ALONE = """
import contextlib, importlib.abc, pathlib, re, sys

class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in {"umeta", "proposers", "embeddings", "safetensors"}:
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch

given = torch.load("given.pt")
support, query = given["support"], given["query"]
images = query
for folder in sys.argv[1:]:
    with contextlib.chdir(folder):
        exec(re.search("```python\\n(.*?)```", pathlib.Path("README.md").read_text(), re.S)[1])
        if folder == "classifier":
            torch.save({"probabilities": probabilities, "names": names}, "found.pt")
        else:
            torch.save({"features": features(query), "one": features(query[:1]), "predicted": predicted}, "found.pt")
assert not any(name.partition(".")[0] == "umeta" for name in sys.modules)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A directory with one `tasks/tiny`, and a run of every learner in `runs`; only protonet is evaluated."""
    place = tmp_path_factory.mktemp("place")
    with contextlib.chdir(place):
        propose.propose(build({**CONFIG, "metalearner": learner("protonet")}), device="cpu")
        for name in LEARNERS:
            config = {**CONFIG, "name": name, "tasks": "tasks/tiny", "metalearner": learner(name)}
            metatrain.metatrain(build(config), device="cpu")
        evaluate_run("runs/protonet", device="cpu")
    return place


def learner(name: str) -> dict[str, Any]:
    return {**LEARNERS[name], "model": {"name": "conv4", "filters": 4, "halvings": 3}}


@pytest.fixture(autouse=True)
def there(place, monkeypatch) -> None:
    monkeypatch.chdir(place)


@pytest.fixture
def out(tmp_path) -> Path:
    return tmp_path / "out"


def images(*count: int) -> Tensor:
    return torch.rand(*count, *SHAPE, generator=torch.Generator().manual_seed(1))


def bytes_of(*count: int) -> np.ndarray:
    """Items uint8."""
    return (images(*count) * 255).to(torch.uint8).numpy()


def adapted(name: str, steps: int | None = None) -> AdaptedLearner:
    """A run's learner adapted to three classes of two, one and three examples, with probabilities of a temperature."""
    source = load_source(f"runs/{name}", device="cpu")[0]
    found = AdaptedLearner.adapt(source, bytes_of(6), ["b", "a", "b", "c", "c", "c"], steps)
    calibration = Calibration(0.5, None, kept=0.0, low=0.0, high=0.0, refused=None, examples=5, right=4)
    return replace(found, calibration=calibration)


def frozen(name: str, x: Tensor) -> Tensor:
    """Features by umeta, in float32."""
    run = load_run(f"runs/{name}", device="cpu")
    if hasattr(run.learner, "precision"):
        run.learner.precision = "float32"
    with torch.no_grad():
        return run.learner.features(run.theta, x)


def card(folder: Path) -> tuple[dict[str, Any], str]:
    """The front matter and the text of the model card."""
    _, front, text = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front), text


@pytest.mark.parametrize("name", EXPORTED)
def test_the_exported_network_computes_the_learners_features(name, out):
    program = torch.export.load(export_run(f"runs/{name}", out) / "features.pt2").module()
    for count in (1, 2, 7):
        x = images(count)
        torch.testing.assert_close(program(x), frozen(name, x))


def test_the_cards_code_classifies_as_the_learner_does_with_torch_alone(tmp_path):
    names = ["protonet", "cosine", "group"]
    for name in names:
        export_run(f"runs/{name}", tmp_path / name)
    known = adapted("protonet")
    known.save(tmp_path / "learner")
    export_learner(tmp_path / "learner", tmp_path / "classifier")
    support, query = images(3, 2), torch.from_numpy(bytes_of(20)) / 255
    torch.save({"support": support, "query": query}, tmp_path / "given.pt")
    subprocess.run([sys.executable, "-I", "-c", ALONE, *names, "classifier"], cwd=tmp_path, check=True)
    task = Batch(support.flatten(0, 1)[None], torch.arange(3).repeat_interleave(2)[None], torch.ones(1, 6).bool(), 3)
    for name in names:
        found = torch.load(tmp_path / name / "found.pt")
        run = load_run(f"runs/{name}", device="cpu")
        run.learner.precision = "float32"
        with torch.no_grad():
            logits = run.learner.predict(run.theta, run.learner.adapt(run.theta, task), query[None])[0]
        torch.testing.assert_close(found["features"], frozen(name, query))
        torch.testing.assert_close(found["one"], found["features"][:1])
        assert torch.equal(found["predicted"], logits.argmax(1))
        assert len(set(found["predicted"].tolist())) > 1
    found = torch.load(tmp_path / "classifier" / "found.pt")
    expected = known.probabilities(bytes_of(20))
    torch.testing.assert_close(found["probabilities"], torch.from_numpy(expected), rtol=1e-3, atol=1e-4)
    assert found["names"] == known.classes[expected.argmax(1)].tolist()
    assert len(set(found["names"])) > 1


def test_the_weights_load_into_the_model_as_anyone_would_build_it(out):
    from umeta.models.conv4 import Conv4

    weights = artifacts.read_tensors(export_run("runs/protonet", out) / "weights.safetensors")
    module = Conv4(filters=4, halvings=3).build(SHAPE).eval()
    module.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(module(images(3)), frozen("protonet", images(3)))


@pytest.mark.parametrize("name", [*EXPORTED, "support", "snail"])
def test_an_export_gives_the_learner_back(name, out):
    again, theta = load_export(export_run(f"runs/{name}", out))
    run = load_run(f"runs/{name}", device="cpu")
    assert again == run.learner
    support = Batch(images(1, 6), torch.arange(3).repeat(2)[None], torch.ones(1, 6).bool(), way=3)
    answers = [
        one.predict(t, one.adapt(t, support), images(1, 5)) for one, t in ((run.learner, run.theta), (again, theta))
    ]
    assert torch.equal(*answers)


def test_the_cards_code_for_umeta_adapts_as_the_learner_does(out, place, monkeypatch):
    _, text = card(export_run("runs/maml", out))
    names: dict[str, Any] = {"support": images(3, 2), "query": images(5)}
    monkeypatch.chdir(out)
    exec(text.split("```python\n")[2].split("```")[0], names)
    monkeypatch.chdir(place)
    run = load_run("runs/maml", device="cpu")
    y = torch.arange(3).repeat_interleave(2)[None]
    task = Batch(images(3, 2).flatten(0, 1)[None], y, torch.ones(1, 6).bool(), way=3)
    expected = run.learner.predict(run.theta, run.learner.adapt(run.theta, task), images(5)[None])[0]
    assert torch.equal(names["logits"], expected)


# adapted learners


@pytest.mark.parametrize(("name", "steps"), [*((name, None) for name in [*EXPORTED, "support"]), ("cosine", 3)])
def test_the_exported_classifier_gives_the_adapted_learners_probabilities(name, steps, out):
    known = adapted(name, steps)
    known.save(out.parent / "learner")
    folder = export_learner(out.parent / "learner", out)
    classifier = torch.export.load(folder / "classifier.pt2").module()
    if hasattr(known.source.learner, "precision"):
        known.source.learner.precision = "float32"
    for count in (1, 5):
        items = bytes_of(count)
        expected = torch.from_numpy(known.probabilities(items))
        torch.testing.assert_close(classifier(torch.from_numpy(items) / 255), expected, rtol=1e-3, atol=1e-4)
    assert artifacts.read_json(folder / "classes.json") == ["a", "b", "c"]
    assert artifacts.read_manifest(folder, "export")["files"].keys() == {"classes.json", "classifier.pt2", "model.json"}


def test_the_card_of_an_adapted_learner_names_its_classes(out, capsys):
    adapted("maml").save(out.parent / "learner")
    assert main(["export", str(out.parent / "learner"), "--out", str(out)]) == 0
    assert "classifier.pt2" in capsys.readouterr().out
    front, text = card(out)
    assert front["pipeline_tag"] == "image-classification"
    for said in (
        "for 3 classes",
        "by 6 labelled",
        "- b: 2 examples",
        "temperature 0.5, fitted on 5 examples",
        "Not evaluated",
        "`maml`",
    ):
        assert said in text
    assert str(out.parent) not in text
    with pytest.raises(UserError, match="cannot adapt again"):
        load_export(out)


# model.json


def test_model_json_says_what_goes_in_and_out(out):
    model = artifacts.read_json(export_run("runs/cosine", out) / "model.json")
    assert model["network"] == {"name": "conv4", "filters": 4, "down": "pool", "halvings": 3}
    assert model["learner"]["distance"] == "cosine"
    assert model["scale"] == pytest.approx(load_run("runs/cosine", device="cpu").theta.params["scale"].item())
    assert model["input"]["shape"] == ["n", *SHAPE]
    assert model["output"] == {"name": "features", "type": "float32", "shape": ["n", 36], "unit_length": True}


def test_preprocessing_is_that_of_the_source(draw, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "secret", flat=24)
    data = {"name": "folder", "root": str(tmp_path / "secret"), "size": 16, "channels": 1, "invert": True}
    proposer = {"name": "kmeans", "k": 3, "partitions": 1, "smallest": 1, "keep": 0}
    train = {**CONFIG["train"], "way": 2, "query": 1}
    config = build({**CONFIG, "data": data, "proposer": proposer, "train": train, "metalearner": learner("protonet")})
    propose.propose(config, device="cpu")
    folder = export_run(metatrain.metatrain(config, device="cpu"), out)
    prepared = artifacts.read_json(folder / "model.json")["input"]["preprocessing"]
    assert (prepared["crop"], prepared["channels"], prepared["invert"]) == ("largest centred square", "grey", True)
    for path in folder.iterdir():  # nobody's paths, in the card or in the graph
        content = path.read_bytes()
        assert [text for text in ("secret", str(tmp_path), "site-packages") if text.encode() in content] == [], path


# the card


def test_the_card_of_an_evaluated_run_has_its_results(out):
    front, text = card(export_run("runs/protonet", out))
    report = artifacts.read_json(Path("runs/protonet/report.json"))
    cell = report["rows"]["a tiny learner"]["3-way 1-shot"]
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert (front["library_name"], front["metrics"]) == ("umeta", ["accuracy"])
    assert {"unsupervised", "protonet", "conv4"} <= set(front["tags"])
    assert result["metrics"][0]["value"] == pytest.approx(cell["mean"], abs=0.01)
    assert f"| a tiny learner | {cell['mean']:.2f}" in text
    assert artifacts.read_json(Path("tasks/tiny/manifest.json"))["fingerprint"] in text
    for said in ("Hsu, Levine, Finn 2019", "Snell, Swersky, Zemel 2017", "Kingma and Ba 2015", "1,797 digits"):
        assert said in text
    for said in ("partitions: 2", "share of the 901 items", "meta-steps: 3", "seed: 0", report["hardware"], "protocol"):
        assert said in text
    for said in ("# a tiny learner", "Trained without labels", "is not known", "Inductive", "## Licence"):
        assert said in text


def test_the_card_of_a_run_that_was_not_evaluated_claims_nothing(out):
    front, text = card(export_run("runs/maml", out))
    assert "model-index" not in front
    assert "Not evaluated." in text
    assert "is the one that the learner starts from" in text
    assert "average over meta-training" in " ".join(text.split())


def test_the_card_does_without_the_tasks_when_they_are_gone(place, out, monkeypatch):
    run = load_run("runs/group", device="cpu")
    monkeypatch.setattr(type(run.config), "tasks_folder", place / "gone")
    assert "numbers not known" in card(export_run("runs/group", out))[1]


# folders


def test_the_same_run_gives_the_same_bytes_in_place_of_an_earlier_export(out, tmp_path):
    def content(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    first = content(export_run("runs/protonet", out))
    assert set(first) == {"README.md", "features.pt2", "manifest.json", "model.json", "weights.safetensors"}
    assert content(export_run("runs/protonet", out)) == first == content(export_run("runs/protonet", tmp_path / "two"))
    export_run("runs/group", out)
    assert content(out) != first
    artifacts.read_manifest(out, "export")


def test_what_is_not_an_export_as_it_was_written_is_kept(out):
    out.mkdir()
    export_run("runs/protonet", out)  # an empty folder is nobody's
    for name in ("LICENSE", "README.md"):
        before = (out / name).read_bytes() if (out / name).exists() else b""
        (out / name).write_bytes(before + b"mine")
        with pytest.raises(UserError, match=f"{name} is yours"):
            export_run("runs/protonet", out)
        assert (out / name).read_bytes() == before + b"mine"
        (out / name).write_bytes(before) if before else (out / name).unlink()
    with pytest.raises(UserError, match="not an export"):
        export_run("runs/protonet", "runs/group/checkpoints")
    with pytest.raises(UserError, match="'export', found 'run'"):
        export_run("runs/protonet", "runs/group")


def test_an_export_that_fails_leaves_nothing(out, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="umeta\\[onnx\\]"):
        export_run("runs/protonet", out, onnx=True)
    assert list(out.parent.iterdir()) == []


def test_a_transductive_learner_is_refused_with_the_reason(out, capsys):
    assert main(["export", "runs/batch", "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("umeta: runs/batch: normalises by the batch at hand (transductive)")
    assert "metalearner.normalisation=running" in said
    assert not out.exists()


# models that cannot be exported


class Branching(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) if images.sum() > 0 else -images.flatten(1)


class Shared(nn.Module):
    """One normalisation layer in two places, each of which has statistics of its own in umeta."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(1)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images)).flatten(1)


def test_a_model_that_torch_cannot_follow_is_refused():
    with pytest.raises(UserError, match=r"torch\.export cannot follow it"):
        export_graph(Branching(), SHAPE)


def test_a_model_that_would_compute_something_else_is_refused():
    class Model:
        def build(self, item_shape: tuple[int, ...]) -> nn.Module:
            return Shared()

    run = load_run("runs/protonet", device="cpu")
    learner = replace(run.learner, model=Model()).build(TaskSpec(SHAPE), run.config.train.episode)
    run = replace(run, learner=learner)
    given = {"weight": 2.0, "bias": 1.0}
    run.theta.params.update({f"first.{name}": torch.full((1,), value) for name, value in given.items()})
    run.theta.running.update(
        {
            f"{at}.{kind}": torch.full((1,), 0.5 + i)
            for i, at in enumerate(("first", "second"))
            for kind in ("mean", "var")
        }
    )
    with pytest.raises(UserError, match="would not compute the same"):
        build_features(run)
    source = replace(load_source("runs/protonet", device="cpu")[0], learner=run.learner, theta=run.theta)
    found = AdaptedLearner.adapt(source, bytes_of(4), ["a", "b", "a", "b"])
    with pytest.raises(UserError, match="would not compute the same"):
        build_classifier(found)


@pytest.mark.parametrize(("off", "refused"), [(5e-4, False), (2e-3, True), (math.nan, True)])
def test_a_thousandth_is_rounding(off, refused):
    expected = torch.tensor([[-1.0, 0.5, 0.01]])
    with pytest.raises(UserError, match="Itself cannot be exported") if refused else contextlib.nullcontext():
        refuse_difference(expected * (1 + off), expected, Itself())


# the command


def test_the_command_writes_the_folder_and_names_its_files(out, capsys):
    assert main(["export", "runs/protonet", "--out", str(out), "--json"]) == 0
    *lines, last = capsys.readouterr().out.splitlines()
    assert json.loads(last) == {"export": str(out), "files": sorted(path.name for path in out.iterdir())}
    assert lines == [f"{out}: README.md, features.pt2, manifest.json, model.json, weights.safetensors"]


@pytest.mark.parametrize(
    ("run", "says"),
    [("runs/nothing", "runs/nothing: no such run or learner"), ("tasks/tiny", "learnt no skills")],
)
def test_the_command_names_what_is_no_run(run, says, out, capsys):
    assert main(["export", run, "--out", str(out)]) == 2
    assert says in capsys.readouterr().err


def test_a_run_of_a_plug_in_is_exported_and_loaded_only_when_trusted(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "from dataclasses import dataclass\nfrom umeta.metalearners.protonet import ProtoNet\n"
        "@dataclass\nclass Mine(ProtoNet):\n    '''Mine (2026).'''\n"
    )
    config = build({**CONFIG, "metalearner": {**learner("protonet"), "name": "mine.py:Mine"}})
    propose.propose(config, device="cpu")
    metatrain.metatrain(config, device="cpu")
    assert main(["export", "runs/tiny", "--out", "out"]) == 2
    assert "asks to run the code of 'mine.py:Mine'" in capsys.readouterr().err
    assert main(["export", "runs/tiny", "--out", "out", "--allow-plugin"]) == 0
    assert "Mine (2026)." in card(Path("out"))[1]
    with pytest.raises(UserError, match=r"out: asks to run the code of 'mine.py:Mine'"):
        load_export("out")
    assert type(load_export("out", trusted={"mine.py:Mine"})[0]).__name__ == "Mine"


def test_onnx_computes_the_same(out):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    runtime = pytest.importorskip("onnxruntime")
    folder = export_run("runs/cosine", out, onnx=True)
    session = runtime.InferenceSession(folder / "features.onnx", providers=["CPUExecutionProvider"])
    for count in (1, 5):
        (found,) = session.run(["features"], {"images": images(count).numpy()})
        torch.testing.assert_close(torch.from_numpy(found), frozen("cosine", images(count)), rtol=1e-4, atol=1e-5)
    assert b"site-packages" not in (folder / "features.onnx").read_bytes()
    known = adapted("maml")
    known.save(out.parent / "learner")
    folder = export_learner(out.parent / "learner", out, onnx=True)
    known.source.learner.precision = "float32"
    session = runtime.InferenceSession(folder / "classifier.onnx", providers=["CPUExecutionProvider"])
    items = bytes_of(4)
    (found,) = session.run(["probabilities"], {"images": items.astype(np.float32) / 255})
    np.testing.assert_allclose(found, known.probabilities(items), rtol=1e-3, atol=1e-4)
