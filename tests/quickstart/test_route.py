"""What was learnt or what others learnt, without a label: a run of what is best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from umeta.stages.runs import load_run


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
