"""Pre-trained networks that lie on this disk: found in the usual places, and the best of them is taken."""

from __future__ import annotations

import json

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import save_file
from torchvision import models

from umeta.quickstart.ondisk import find_networks
from umeta.stages.runs import load_run

NETWORK = "test_efficientnet"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """Caches of nobody's: a good network, one whose weights are all alike, and what is no network of timm's."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    for name, architecture in {"good": NETWORK, "poor": NETWORK, "bert": "bert", "half": NETWORK}.items():
        folder = tmp_path / "hub" / f"models--somebody--{name}" / "snapshots" / "0a1b"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"architecture": architecture}))
        torch.manual_seed(0)
        net = timm.create_model(NETWORK).train()
        net(torch.rand(8, 3, 64, 64))
        if name == "poor":
            net.conv_stem.weight.data *= 0
        if name != "half":
            save_file(net.state_dict(), folder / "model.safetensors")
    return tmp_path


def test_caches_of_the_hub_and_of_torchvision_are_searched(disk):
    checkpoints = disk / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]).touch()
    *timms, last = find_networks()
    assert [one["network"].split("--")[2].split("/")[0] for one in timms] == ["good", "poor"]
    assert (last["network"], last["library"]) == ("resnet18", "torchvision")


def test_the_best_of_them_is_weighed(disk, umeta, monkeypatch):
    monkeypatch.chdir(disk)
    (disk / "photos").mkdir()
    random = np.random.default_rng(0)
    for i in range(290):
        low = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
        low.resize((24, 24), Image.Resampling.BICUBIC).save(disk / "photos" / f"{i}.png")
    asked = ["run", "--images", "photos", "--backbone", "auto", "train.steps=2", "train.way=4", "rounds=[]"]
    code, out, err = umeta(*asked, "--device", "cpu")
    assert code == 0, err
    shares = {name: float(err.split(f"--{name}/")[2].split("finds ")[1].split("%")[0]) for name in ("good", "poor")}
    assert shares["good"] > shares["poor"]
    kept = out[out.index("kept: ") :].split(": ")[1]
    assert load_run(kept, device="cpu").pretrained
    assert "models--somebody--good" in (disk / kept / "config.yaml").read_text()


def test_none_is_said(refused, draw, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    asked = ["run", "--images", draw(tmp_path / "photos", flat=9), "--backbone", "auto"]
    refused(*asked, says=["no pre-trained network lies on this disk", "--backbone resnet18"])
    refused(*asked, "--weights", "x.pth", says=["--weights x.pth", "in place of auto"])
