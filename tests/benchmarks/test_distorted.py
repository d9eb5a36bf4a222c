"""Test images under shear and scale: where each pixel goes, and the accuracies that evaluation reports for them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from umeta.benchmarks.distorted import Distorted
from umeta.cli.main import main
from umeta.evaluation.images import evaluate
from umeta.tasks.instances import Augmented
from umeta.testing import sampled, toy_tasks
from umeta.types import EpisodeSpec


def seen(change: Distorted, x: torch.Tensor) -> torch.Tensor:
    return change(x, torch.zeros(len(x), 0))


def test_nothing_changes_at_first() -> None:
    x = torch.rand(3, 2, 9, 9)
    torch.testing.assert_close(seen(Distorted(), x), x)


def test_shear_moves_rows_by_their_height() -> None:
    x = torch.zeros(1, 1, 9, 9)
    x[..., 4] = 1  # an upright line through the centre
    out = seen(Distorted(shear=1.0), x)[0, 0]
    torch.testing.assert_close(out, torch.eye(9), atol=1e-5, rtol=0)  # one to the right for each row down


@pytest.mark.parametrize(("scale", "length"), [(0.5, 5), (2.0, 18)])
def test_scale_changes_lengths(scale: float, length: int) -> None:
    x = torch.zeros(1, 1, 36, 36)
    x[..., 13:23, 13:23] = 1  # ten pixels a side
    out = seen(Distorted(scale=scale), x)[0, 0]
    assert out.sum().sqrt().item() == pytest.approx(10 * scale, rel=0.15)
    assert out.flip(0, 1).allclose(out, atol=1e-5)  # about the centre
    assert (out[18] > 0.5).sum() == pytest.approx(10 * scale, abs=1.01)


def test_all_images_of_a_task_are_distorted_alike() -> None:
    tasks, change, episode = toy_tasks(), Distorted(0.4, 0.7), EpisodeSpec(3, 2, 2)
    plain = sampled(tasks, np.arange(2), episode, 0)
    changed = sampled(Augmented(tasks, change), np.arange(2), episode, 0)
    for one, other in zip(plain, changed, strict=True):
        assert torch.equal(seen(change, one.x.flatten(0, 1)), other.x.flatten(0, 1))
        assert torch.equal(one.y, other.y)


def test_evaluation_reports_the_accuracy_on_distorted_classes(
    made_run: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from umeta.benchmarks.labelled import LabelledImages
    from umeta.stages.runs import load_run

    folder = tmp_path / "run"
    shutil.copytree(made_run("protonet"), folder)
    settings = ["evaluate.episodes=[[5,1]]", "evaluate.tasks=16", "evaluate.baselines=[]"]
    changes = ["evaluate.shear=[0,0.8]", "evaluate.scale=[0.5]"]
    assert main(["evaluate", str(folder), *settings, *changes, "--device", "cpu"]) == 0
    result = json.loads((folder / "report.json").read_text())
    title = result["title"]
    found = result["extrapolation"]
    assert list(found) == ["shear, 5-way 1-shot", "scale, 5-way 1-shot"]
    assert found["shear, 5-way 1-shot"][title]["0"] == pytest.approx(result["rows"][title]["5-way 1-shot"], abs=3)
    run = load_run(folder, device="cpu")
    tasks = Augmented(LabelledImages.load(run.config.data, "test").tasks(), Distorted(shear=0.8))
    each = evaluate(run.learner, run.theta, tasks, EpisodeSpec(5, 1, 5), count=16)
    assert found["shear, 5-way 1-shot"][title]["0.8"]["mean"] == pytest.approx(100 * each.mean())
    assert "Extrapolation" in (folder / "report.html").read_text()
    assert (folder / "extrapolation.png").exists()
