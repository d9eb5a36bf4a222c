"""The page in a real browser: labels are given, pictures move, and the learner that is saved is the one shown."""

from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys

import numpy as np
import pytest
from helpers.browser import find_browser, open_page
from PIL import Image

LABEL = {"dark": (0, 3), "bright": (1, 4)}


@pytest.fixture
def photos(tmp_path):
    """Dark pictures and bright ones in turn, and one whose name would be markup if the page let it."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(24):
        pixels = random.integers(0, 60, (28, 28)) + [0, 150, 0][i % 3] + (i % 3 == 2) * 150 * (np.arange(28) % 2)
        name = "<img src=x onerror=alert(1)>.png" if i == 23 else f"{i:02}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(tmp_path / "photos" / name)
    return tmp_path / "photos"


@pytest.mark.slow
@pytest.mark.skipif(find_browser() is None, reason="no browser here")
def test_a_person_labels_sees_the_rest_move_and_exports(made_run, umeta, photos, tmp_path):
    run = made_run("protonet", normalisation="running")
    command = [sys.executable, "-m", "umeta", "teach", run, photos, "--out", tmp_path / "teach", "--device", "cpu"]
    server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True, env={**os.environ})
    try:
        assert server.stdout is not None
        link = next(m[1] for line in server.stdout if (m := re.search(r"open (http\S+)", line)))
        with open_page(link, tmp_path / "browser") as page:
            page.wait("document.querySelectorAll('figure img').length === 24 && state.looked === 24")
            assert page.run("document.querySelector('#hint').textContent") == "choose pictures of one kind, and name it"
            page.wait("document.querySelector('figure img').naturalWidth > 0")
            for label, pictures in LABEL.items():
                for i in pictures:
                    page.click(f"figure[data-id='{i}']")
                page.click("#name")
                page.type(label)
                page.press("Enter")
                page.wait(
                    f"state.classes.some((one) => one.name === '{label}') && "
                    f"!shown.some((one) => one.id === {pictures[0]})"
                )
            captions = "[...document.querySelectorAll('figcaption')].map((one) => one.textContent)"
            page.wait(captions + ".every((text) => /^[0-9]+ % (dark|bright)$/.test(text))")
            assert page.run("state.labelled") == 4
            assert page.run("document.querySelector('#numbers').textContent").startswith("24 pictures, 4 labelled")
            # a wrong one is put right by a key, and taken back
            page.click("figure[data-id='2']")
            page.press("1")  # the first class, bright
            page.wait("state.labelled === 5 && !shown.some((one) => one.id === 2)")
            page.press("u")
            page.wait("state.labelled === 4 && shown.some((one) => one.id === 2)")
            page.click("button[data-name='dark']")
            page.wait("document.querySelector('#title').textContent.startsWith('Looks like dark')")
            if place := os.environ.get("UMETA_SCREENSHOT"):
                page.screenshot(tmp_path / place)
            answers = page.run(
                "(async () => Object.fromEntries((await (await fetch('api/pictures?count=100&view=worth', "
                "{headers: {'X-Token': token}})).json()).pictures.map((one) => [one.name, one.answer])))()"
            )
            page.click("[data-export=learner]")
            page.wait("document.querySelector('#said').textContent.startsWith('written: ')")
            page.run("watch()")  # which goes on every few seconds, and leaves what was said
            assert page.run("document.querySelector('#said').textContent").startswith("written: ")
            assert page.run("document.querySelector('#hint').textContent") == ""
            assert page.run("document.querySelectorAll('figure img[src=x]').length") == 0
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0
    out = tmp_path / "predictions.csv"
    assert umeta("predict", tmp_path / "teach" / "learner", photos, "--out", out, "--device", "cpu")[0] == 0
    told = {row["path"].rpartition("/")[2]: row["label"] for row in csv.DictReader(out.read_text().splitlines())}
    assert len(answers) == 20
    assert {name: told[name] for name in answers} == answers
