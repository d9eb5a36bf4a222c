"""What was learnt or what others learnt, without a label: how much of each, and a run of it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from umeta.quickstart.route import finds, mix, unit, weigh
from umeta.stages.runs import load_run

N, D = 300, 40


def views(signal: np.ndarray, own: float, noise: float, seed: int) -> list[np.ndarray]:
    """Two views by a network that sees a signal [N, D], as much of its own as `own` says, and noise in each view."""
    random = np.random.default_rng(seed)
    repeated = np.concatenate([signal, own * random.normal(size=(N, D))], axis=1)
    return [repeated + noise * random.normal(size=repeated.shape) for _ in range(2)]


@pytest.fixture(scope="module")
def signal() -> np.ndarray:
    random = np.random.default_rng(0)
    return (random.normal(size=(20, D))[random.integers(0, 20, N)] + 0.5 * random.normal(size=(N, D))).astype(
        np.float32
    )


def test_the_weight_grows_with_what_the_networks_have_in_common(signal):
    frozen = views(signal, 0.3, 0.3, 1)
    found = [weigh(frozen, views(signal, own, 0.3, 2)) for own in (0.3, 2.0, 4.0)]
    weights = [one.weight for one in found]
    assert weights == sorted(weights, reverse=True)
    assert weights[0] > 0.5
    assert weights[2] < 0.3
    assert found[0].common > found[2].common
    joint = mix(frozen[0], views(signal, 0.3, 0.3, 2)[0], weights[0])
    assert joint.shape == (N, 4 * D)


def test_what_has_nothing_in_common_with_the_better_one_is_left_out(signal):
    other = np.random.default_rng(9).normal(size=(N, D))
    good, bad = views(signal, 0.3, 0.3, 1), views(other, 0.3, 2.0, 2)
    assert weigh(good, bad).weight == 0
    assert weigh(bad, good).weight == np.inf
    assert weigh(good, bad).found["both"] == weigh(good, bad).found["pre-trained alone"]


def test_cosines_of_a_mixture_add_up_and_the_own_view_is_found():
    a, b = (np.random.default_rng(i).normal(size=(9, 5)) for i in (1, 2))
    wanted = (unit(a) @ unit(a).T + 0.5 * unit(b) @ unit(b).T) / 1.5
    z = unit(mix(a, b, 0.5))
    np.testing.assert_allclose(z @ z.T, wanted, atol=1e-6)
    assert finds(a, 3 * a).all()
    assert not finds(a, a[::-1])[:4].any()


@pytest.fixture
def photos(tmp_path):
    """Pictures in colour, enough of them that some can be held out."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(290):
        low = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        low.resize((24, 24), Image.Resampling.BICUBIC).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


def test_run_weighs_a_network_on_pictures_that_meta_training_does_not_see(photos, umeta, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = timm.create_model("test_efficientnet").train()
    net(torch.randn(4, 3, 64, 64))
    save_file(net.state_dict(), "weights.safetensors")
    asked = ["run", "--images", photos, "--backbone", "test_efficientnet", "--weights", "weights.safetensors"]
    asked += ["train.steps=2", "train.way=4", "rounds=[]", "--device", "cpu", "--json"]
    code, out, err = umeta(*asked)
    assert code == 0, err
    result = json.loads(out.splitlines()[-1])
    data = load_run("runs/photos", device="cpu").config.data
    seen, held = (data.read(split).pixels for split in ("train", "val"))
    assert len(seen) + len(held) == 290
    assert not {item.tobytes() for item in seen} & {item.tobytes() for item in held}
    assert result["choice"]["pictures"] == len(held) >= 50
    kept = out[out.index("kept: ") :].split(": ")[1]
    run = load_run(kept, device="cpu")
    assert (run.pretrained != "") == (kept != "runs/photos")
    assert ("name: whitened" in Path(kept, "config.yaml").read_text()) == (kept != "runs/photos")
    assert umeta(*asked, "--resume")[0] == 0


def test_what_cannot_be_weighed_is_said_before_long_work(photos, refused, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused("run", "--images", photos, "--backbone", "resnt18", "--weights", "x.pth", says=["no network 'resnt18'"])
    refused("run", "--images", photos, "--backbone", "resnet18", "--weights", "x.pth", says=["x.pth", "no such file"])
    refused("run", "--images", photos, "--weights", "x.pth", says=["--weights x.pth", "--backbone NAME"])
    refused("run", "digits", "--backbone", "resnet18", says=["--backbone goes with --images"])
    assert not (tmp_path / "runs").exists()
