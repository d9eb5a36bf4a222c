"""A finished run, loaded: what it remembers."""

from __future__ import annotations

import shutil

import numpy as np
from PIL import Image

from umeta.data.images import hash_each
from umeta.stages.runs import load_run


def test_images_of_meta_training_are_hashed_once_and_known_when_they_are_gone(umeta, draw, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photos = draw(tmp_path / "photos", flat=30, side=16)
    small = ["data.size=16", "train.steps=2", "train.way=4", "rounds=[]"]
    assert umeta("run", "--images", photos, *small, "--device", "cpu")[0] == 0
    pixels = np.stack([np.asarray(Image.open(path))[None] for path in sorted(photos.iterdir())])
    known = load_run("runs/photos", device="cpu").hash_trained()
    assert known == set(hash_each(pixels)) or known == set(hash_each(255 - pixels))
    shutil.rmtree(photos)
    assert load_run("runs/photos", device="cpu").hash_trained() == known
    monkeypatch.setenv("UMETA_CACHE", str(tmp_path / "empty"))
    assert load_run("runs/photos", device="cpu").hash_trained() == set()
