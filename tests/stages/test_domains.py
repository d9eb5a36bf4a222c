"""The record of a domain: what it names is there, and a fourth one needs no change elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from umeta.cli.main import main
from umeta.config import build, regression
from umeta.draw.regression import draw_tasks
from umeta.stages import domains, metatrain, propose, runs
from umeta.tasks.sinusoid import SinusoidTasks
from umeta.types import TaskSpec


@pytest.mark.parametrize("domain", domains.DOMAINS.values(), ids=lambda domain: domain.config.domain)
def test_what_a_record_names_is_there_and_found_by_its_config(domain):
    assert build.DOMAINS[domain.config.domain] is domain.config
    for name in (domain.evaluate, domain.check, domain.estimate):
        assert callable(domains.resolve(name))


# a fourth domain: hums, of which the source is a pitch


@dataclass(frozen=True, kw_only=True)
class HumConfig(regression.Config):
    """A run on a hum."""

    domain = "hum"
    source = "a hum"
    key = "hum"

    hum: dict[str, float]


@dataclass(frozen=True)
class Hums:
    """Waves of the source's loudness."""

    domain: ClassVar[str] = "hum"
    sees_labels: ClassVar[bool] = False

    def propose(self, source: float, ctx: Any, embedder: Any = None) -> SinusoidTasks:
        return SinusoidTasks((source, source), (0.0, 3.0), (-5.0, 5.0))


HUM = domains.Domain(
    HumConfig,
    evaluate="hum_evaluation:evaluate_run",
    check="hum_evaluation:check",
    estimate="hum_evaluation:estimate",
    read=lambda config: config.hum["loudness"],
    fingerprint=lambda config, loudness: f"loudness {loudness}",
    draw=draw_tasks,
    spec=lambda config, manifest: TaskSpec(tuple(manifest["item_shape"]), "regression", manifest["outputs"]),
    other="another hum",
    options=lambda config: {"hum": config.plain["hum"]},
    facts=lambda config, loudness: {"loudness": loudness},
    describe=lambda loudness: f"hum: {loudness}",
)
EVALUATION = """
from umeta.quickstart.memory import Need

def check(config, record=None):
    print("checked", config.name)

def estimate(config, source):
    return [Need("metatrain", 3 << 20, "hum.loudness")]

def evaluate_run(run, device, record=None, trackers=()):
    return {"name": run.config.name, "heard": run.config.hum}
"""
CONFIG = """
hum: {loudness: 2.0}
proposer: test_domains:Hums
metalearner: {name: maml, model: {name: mlp, hidden: [4]}, steps: 1}
train: {outer: adam, steps: 2, meta_batch: 2}
"""


@pytest.fixture
def hum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    Path("hum_evaluation.py").write_text(EVALUATION)
    Path("low.yaml").write_text(CONFIG)
    monkeypatch.setitem(build.DOMAINS, "hum", HumConfig)
    monkeypatch.setitem(domains.DOMAINS, HumConfig, HUM)
    yield
    sys.modules.pop("hum_evaluation", None)


@pytest.mark.usefixtures("hum")
def test_a_fourth_domain_is_a_config_a_record_and_what_it_names(capsys):
    config = build.load("low.yaml")
    assert type(config) is HumConfig
    tasks = propose.propose(config, device="cpu")
    assert (tasks / "preview.png").exists()
    assert "hum: 2.0" in capsys.readouterr().err
    run = runs.load_run(metatrain.metatrain(config, device="cpu"), device="cpu", trusted=None)
    assert type(run.config) is HumConfig
    assert main(["inspect", "low.yaml"]) == 0
    assert "metatrain: about 3 MB, lower hum.loudness" in capsys.readouterr().out


@pytest.mark.usefixtures("hum")
def test_tasks_on_another_source_of_a_fourth_domain_are_refused(capsys):
    propose.propose(build.load("low.yaml"), device="cpu")
    assert main(["metatrain", "low.yaml", "hum.loudness=3.0", "--device", "cpu"]) == 2
    assert "tasks/low: proposed on another hum (loudness: 2.0 before, 3.0 now)" in capsys.readouterr().err


@pytest.mark.usefixtures("hum")
def test_a_fourth_domain_is_evaluated_by_what_its_record_names(capsys):
    from umeta.evaluation.run import check_evaluation, evaluate_run

    config = build.load("low.yaml")
    check_evaluation(config)
    assert "checked low" in capsys.readouterr().out
    propose.propose(config, device="cpu")
    folder = metatrain.metatrain(config, device="cpu")
    assert evaluate_run(folder, device="cpu", trusted=None) == {"name": "low", "heard": {"loudness": 2.0}}
    assert main(["export", str(folder), "--out", "x", "--allow-plugin"]) == 2
    assert "this run is on a hum, and a run on images is needed" in capsys.readouterr().err
