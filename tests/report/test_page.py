"""The web report as a browser reads it: well formed, self-contained, escaped, legible, and true to the numbers."""

from __future__ import annotations

import base64
import contextlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from umeta.cli.main import main
from umeta.draw import environments, mosaic
from umeta.report import page as web
from umeta.report import write
from umeta.runtime import artifacts

EVIL = "<script>alert(1)<", 'a"><img src=x onerror=alert(2)>', "tom & jerry"
CONFIG = {
    "title": "<b>tiny</b>",
    "data": {"name": "folder", "root": "images", "test": "images", "size": 16, "channels": 1},
    "embedding": "pixels",
    "proposer": {"name": "kmeans", "k": 3, "partitions": 2, "smallest": 1, "keep": 0},
    "metalearner": {"name": "protonet", "model": {"name": "conv4", "filters": 4}},
    "train": {"outer": "adam", "steps": 12, "way": 2, "shot": 1, "query": 1, "meta_batch": 2},
    "evaluate": {"episodes": [[3, 1]], "query": 2, "tasks": 4, "baselines": ["pixels_knn"]},
}
VOID = {"meta", "img"}


class Page(HTMLParser):
    """A page taken apart; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip():
            self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    def text(self, *tags: str) -> list[str]:
        return [text for tag, text in self.texts if not tags or tag in tags]


def check_self_contained(text: str) -> Page:
    page = Page(text)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "link", "iframe", "object", "base", "form"})
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name == "srcset" for name in attributes)
        assert re.match(r"data:image/(png|gif);base64,", attributes.get("src") or "data:image/png;base64,")
        assert (attributes.get("href") or "#").startswith("#")
    assert "url(" not in web.STYLE
    assert "@import" not in web.STYLE
    return page


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """Two configs run on folders with names that try to be HTML."""
    place = tmp_path_factory.mktemp("finished")
    generator = np.random.default_rng(0)
    for name in EVIL:
        (place / "images" / name).mkdir(parents=True)
        for i in range(8):
            pixels = generator.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(place / "images" / name / f"{i}.png")
    (place / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    (place / "other.yaml").write_text(yaml.safe_dump({**CONFIG, "title": "other"}))
    with contextlib.chdir(place):
        assert main(["run", "tiny.yaml", "other.yaml", "--device", "cpu"]) == 0
    return place


def result(**changes: Any) -> dict[str, Any]:
    """A result as in `report.json`."""
    return {
        "name": "tiny",
        "title": "tiny",
        "rows": {"tiny": {"5-way 1-shot": {"mean": 50.0, "interval": 1.0, "tasks": 10}}},
        "protocol": {
            "name": "small",
            "split": "test",
            "classes": 5,
            "queries": 5,
            "tasks": 10,
            "seed": 0,
            "steps": None,
            "normalisation": "none",
            "inference": "inductive",
            "proposed_with": "no labels",
        },
        "minutes": {"metatrain": 0.5},
        "seed": 7,
        "hardware": "a machine",
        "umeta": "1.2.3",
        "commit": None,
        "date": "2026-01-02",
        **changes,
    }


def acted(**changes: Any) -> dict[str, Any]:
    """A result of a run on an environment."""
    title = changes.get("title", "UML-DIAYN")
    ends = {"from scratch": -21.0, "best skill, fine-tuned": -9.0, "oracle": -8.0, "UML-RAND": -8.5, title: -10.0}
    curves = {
        name: {"x": [0.0, 1.0, 2.0], "mean": [-40.0, end - 5, end], "interval": [2.0, 1.0, 0.5]}
        for name, end in ends.items()
    }
    curves["best skill, fine-tuned"]["x"] = [2.5, 3.5, 4.5]
    rows = {
        name: {
            f"{k} steps": {"mean": curve["mean"][k], "interval": curve["interval"][k], "tasks": 40} for k in range(3)
        }
        for name, curve in curves.items()
    }
    env = {"domain": "env", "title": title, "rows": rows, "adaptation": curves, "curves": {}}
    protocol = {"name": "nav2d", "goals": 40, "episodes": 20, "steps": 2, "seed": 0}
    told = {"facts": ["benchmark nav2d: 40 <goals>"], "notes": ["after.gif left out: no backend"]}
    return result(**{**env, "protocol": protocol, **told, "config": {"env": {"name": "nav2d"}}, **changes})


def bare(**changes: Any) -> Page:
    """The page of a run of which only the result is known."""
    table = [["", "5-way 1-shot"], ["tiny", "50.00 ± 1.00"]]
    chapter = web.Chapter(result(**changes), "", [], {}, [], {})
    return check_self_contained(web.render_page("tiny", table, ["tiny"], [chapter]))


def test_the_page_of_a_run_holds_all_of_it_and_nothing_from_elsewhere(finished):
    folder = finished / "runs/tiny"
    page = check_self_contained((folder / "report.html").read_text(encoding="utf-8"))
    assert page.text("h1") == ["<b>tiny</b>"]
    assert page.text("h2") == [
        "How it was measured",
        "Right and wrong predictions",
        "Calibration",
        "What was proposed",
        "How training went",
        "Run it again",
        "What these numbers do not say",
    ]
    pictures = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    assert pictures == [(folder / "test_tasks.png").read_bytes(), (finished / "tasks/tiny/preview.png").read_bytes()]
    assert all(image["alt"] for image in page.all("img"))
    rows = artifacts.read_json(folder / "report.json")["rows"]
    cells = page.text("td")
    for name, episodes in rows.items():
        assert name in page.text("th")
        (cell,) = episodes.values()
        assert any(text.startswith(f"{cell['mean']:.2f}") for text in cells)
    assert "inductive" in " ".join(page.text("dd"))
    labels = [plot["aria-label"] or "" for plot in page.all("svg")]
    assert [label.partition(",")[0] for label in labels][-3:-1] == ["metatrain: loss", "metatrain: accuracy"]


def test_strangers_names_are_text(finished):
    page = check_self_contained((finished / "runs/tiny/report.html").read_text(encoding="utf-8"))
    words = " ".join(page.text("li"))
    for name in EVIL:
        assert name in words
    assert "b" not in {tag for tag, _ in page.elements}


def test_the_words_are_the_pictured_tasks(finished):
    tasks = artifacts.read_json(finished / "runs/tiny/test_tasks.json")
    assert len(tasks) == 4
    for task in tasks:
        assert sorted(task["classes"]) == sorted(EVIL)
        assert task["queries"] == 6
        assert task["right"] + sum(mistake["count"] for mistake in task["mistakes"]) == 6
        assert all(mistake["true"] != mistake["answer"] for mistake in task["mistakes"])
    words = Page((finished / "runs/tiny/report.html").read_text(encoding="utf-8")).text("li")
    assert len([line for line in words if f": {tasks[0]['right']} of 6 right" in line]) >= 1


def test_the_page_says_how_to_run_it_again(finished):
    before = artifacts.read_json(finished / "runs/tiny/report.json")["rows"]
    command, text = Page((finished / "runs/tiny/report.html").read_text(encoding="utf-8")).text("pre")
    with contextlib.chdir(finished):
        Path("tiny.yaml").write_text(text)
        assert main([*command.split()[1:], "--device", "cpu"]) == 0
    assert artifacts.read_json(finished / "again/runs/tiny/report.json")["rows"] == before


def test_several_runs_share_one_page(finished):
    page = check_self_contained((finished / "report.html").read_text(encoding="utf-8"))
    assert page.text("h1") == ["Results"]
    assert page.text("h2") == ["<b>tiny</b>", "other", "What these numbers do not say"]
    assert [link["href"] for link in page.all("a")] == ["#run0", "#run1"]
    assert {"run0", "run1"} <= {attributes.get("id") for _, attributes in page.elements}
    assert len(page.all("img")) == 4
    own = [text for text in page.text("th") if text in ("<b>tiny</b>", "other")]
    assert len(own) == len([row for row in page.all("tr") if row.get("class") == "own"]) == 2


def test_the_learners_rows_are_its_title_and_variants():
    """A baseline whose name begins like the title stays one."""
    rows = {name: {} for name in ("pixels, 1-NN", "pixels", "pixels, transductive")}
    assert write.own_rows([{"title": "pixels", "rows": rows}]) == ["pixels", "pixels, transductive"]


def test_what_is_not_known_has_no_heading():
    assert bare().text("h2") == ["How it was measured", "Run it again", "What these numbers do not say"]


def test_curves_and_calibration_are_drawn_where_they_are_known():
    curve = {"x": [0, 1, 2], "mean": [20.0, 40.0, 60.0], "interval": [1.0, 2.0, 3.0], "label": "inner <steps>"}
    bins = [{"confidence": 0.3, "accuracy": 0.2, "count": 4}, {"confidence": 0.9, "accuracy": 0.0, "count": 0}]
    page = bare(curves={"5-way & 1-shot": curve}, calibration={"ece": 0.1, "bins": bins})
    assert {"Learning curves", "Calibration"} <= set(page.text("h2"))
    labels = [plot["aria-label"] for plot in page.all("svg")]
    assert labels == [
        "5-way & 1-shot, from 20 at 0 to 60 at 2",
        "accuracy by confidence, in percent, from 20 at 30 to 20 at 30",
    ]
    assert "inner <steps>" in page.text("text")
    assert any("Expected calibration error: 10.0%" in text for text in page.text("p"))
    assert [shape["class"] for shape in page.all("polygon")] == ["band"]


def test_a_screen_reader_is_told_every_plot_and_no_legend(environment):
    page = Page((environment / "run/report.html").read_text(encoding="utf-8"))
    plots = [plot for plot in page.all("svg") if plot.get("aria-hidden") != "true"]
    assert len(plots) > 1
    assert len(page.all("svg")) == len(plots) + 5
    assert all(plot["role"] == "img" and plot["aria-label"] for plot in plots)


def test_limits_follow_from_how_the_run_was_made():
    assert len(bare().text("li")) == 2
    changed = {"inference": "transductive", "split": "val", "proposed_with": "true labels"}
    said = bare(protocol={**result()["protocol"], **changed}).text("li")[2:]
    assert len(said) == 3
    for word, sentence in zip(("validation", "other queries", "true labels"), said, strict=True):
        assert word in sentence


@pytest.fixture
def environment(tmp_path) -> Path:
    """The folders of a run on an environment and of its tasks, reported on."""
    steps = [{"step": i, "loss": 1.0 / (1 + i), "return before": -40.0, "return": -40.0 + i} for i in range(5)]
    artifacts.write_text(tmp_path / "run/metatrain.jsonl", "".join(json.dumps(line) + "\n" for line in steps))
    artifacts.write_text(tmp_path / "tasks/summary.md", "# Proposed\n\n- tasks: 20 rewards\n")
    still = np.zeros((4, 4, 3), dtype=np.uint8)
    mosaic.save(still, tmp_path / "tasks/preview.png")
    environments.write_gif(tmp_path / "tasks/skills.gif", [still, still + 255])
    artifacts.write_manifest(tmp_path / "tasks", "tasks", {}, ["summary.md", "preview.png"])
    environments.write_gif(tmp_path / "run/before.gif", [still, still + 9])
    run: Any = SimpleNamespace(folder=tmp_path / "run", config=SimpleNamespace(tasks_folder=tmp_path / "tasks"))
    write.write_adaptation(run, acted(title=EVIL[1]))
    return tmp_path


def test_the_page_of_a_run_on_an_environment(environment):
    page = check_self_contained((environment / "run/report.html").read_text(encoding="utf-8"))
    assert page.text("h1") == [EVIL[1]]
    assert page.text("h2") == [
        "How it was measured",
        "Adaptation",
        "Before and after adaptation",
        "What was proposed",
        "How training went",
        "Run it again",
        "What these numbers do not say",
    ]
    inlined = [base64.b64decode((image["src"] or "").partition(",")[2]) for image in page.all("img")]
    places = "run/before.gif", "tasks/preview.png", "tasks/skills.gif"
    assert inlined == [(environment / place).read_bytes() for place in places]
    names = ["from scratch", "best skill, fine-tuned", "oracle", "UML-RAND", EVIL[1]]
    assert [text for text in page.text("th") if "step" not in text] == names
    assert any("published returns" in text for text in page.text("li"))
    assert {"benchmark nav2d: 40 <goals>", "after.gif left out: no backend"} <= set(page.text("li"))
    assert not any("accuracy" in text.lower() for text in page.text("figcaption", "li"))


def test_adaptation_curves_are_told_apart_without_colours(environment):
    text = (environment / "run/report.html").read_text(encoding="utf-8")
    entries = re.findall(r'<li class="(\w+)"><svg.*?<polyline (.*?)></polyline></svg><span>(.*?)</span></li>', text)
    names = [name for _, _, name in entries]
    assert names[:2] == ["oracle", "UML-RAND"]  # as the lines end, from the top
    assert names[-1] == "from scratch"
    dashes = [re.findall(r'stroke-dasharray="([^"]*)"', drawn) for _, drawn, _ in entries]
    assert len({str(dash) for dash in dashes}) == len({tone for tone, _, _ in entries}) == 5
    assert [tone for (tone, _, _), dash in zip(entries, dashes, strict=True) if not dash] == ["first"]
    drawn = re.findall(r'<g class="\w+">.*?</g>', text)
    assert len(drawn) == 5
    ends = {points(one, "line")[-1, 0] for one in drawn}
    assert sorted(ends) == pytest.approx([44 + 2 / 4.5 * 668, 712], abs=0.1)  # one began 2.5 steps later


def test_runs_on_environments_share_one_page(environment):
    folders = {"folder": str(environment / "run"), "tasks": str(environment / "tasks")}
    results = [{**acted(), **folders}, {**acted(title="later"), **folders}]
    written = write.write_combined(results, environment)
    page = check_self_contained((environment / "report.html").read_text(encoding="utf-8"))
    assert page.text("h2")[:2] == ["UML-DIAYN", "later"]
    assert len(page.all("tr")) == 1 + 6  # the baselines once
    assert len([row for row in page.all("tr") if row.get("class") == "own"]) == 2
    markdown = written.read_text(encoding="utf-8")
    assert markdown.count("![") == 2 * 4
    for place in re.findall(r"\]\((.*?)\)", markdown):
        assert (environment / place).exists(), place
    alone = (environment / "run/report.md").read_text(encoding="utf-8")
    assert [line for line in alone.splitlines() if line.startswith("## ")] == [
        "## Adaptation",
        "## Before and after adaptation",
        "## What was proposed",
        "## How training went",
    ]
    for place in re.findall(r"!\[.*?\]\((.*?)\)", alone):
        assert (environment / "run" / place).exists(), place


def points(drawn: str, kind: str) -> np.ndarray:
    (found,) = re.findall(rf'<\w+ points="([^"]*)" class="{kind}"', drawn)
    return np.array([[float(value) for value in pair.split(",")] for pair in found.split()])


def test_a_plot_is_to_scale():
    drawn = web.draw_plot("t", "x", [0, 5, 10], [0, 100, 50], interval=[0, 0, 10])
    assert points(drawn, "line").tolist() == [[44, 160], [198, 8], [352, 84]]
    band = points(drawn, "band")
    assert len(band) == 6
    assert band[2:4, 1].tolist() == pytest.approx([84 + 15.2, 84 - 15.2])


def test_bands_of_several_curves_lie_within_their_plot():
    curve = {"label": "steps", "x": [0, 1], "mean": [0.0, 1.0], "interval": [5.0, 5.0]}
    (figure,) = web.draw_comparison("return", {"one": curve, "other": {**curve, "mean": [3.0, 3.0]}}, "one")
    heights = [
        float(pair.split(",")[1])
        for band in re.findall(r'points="([^"]*)" class="band"', figure)
        for pair in band.split()
    ]
    assert min(heights) == pytest.approx(8, abs=0.1)
    assert max(heights) == pytest.approx(340 - 36, abs=0.1)


def test_a_long_noisy_loop_is_smoothed_and_thinned():
    noise = np.random.default_rng(0).normal(size=10_000)
    drawn = web.draw_plot("t", "step", np.arange(10_000), noise, smooth=True)
    faint, line = points(drawn, "faint"), points(drawn, "line")
    assert 100 < len(line) <= web.POINTS
    assert np.ptp(line[:, 1]) < np.ptp(faint[:, 1]) / 3
    assert len(drawn) < 20_000
    for shown in (faint, line):
        assert shown[:, 0].min() >= 44
        assert shown[:, 1].min() >= 8
        assert shown[:, 1].max() <= 160


def test_what_scrolls_and_only_that_can_be_reached_by_keys(finished, environment):
    for place in (next((finished / "runs").glob("*/report.html")), environment / "run/report.html"):
        page = Page(place.read_text(encoding="utf-8"))
        boxes = [attributes for _, attributes in page.elements if "scroll" in (attributes.get("class") or "").split()]
        assert len(boxes) >= len(page.all("img")) > 0
        assert all(box["tabindex"] == "0" for box in boxes)
        assert len([attributes for _, attributes in page.elements if "tabindex" in attributes]) == len(boxes)


def test_the_ideal_line_is_where_both_numbers_are_the_same():
    drawn = web.draw_plot("t", "x", [0, 100], [0, 100], ideal=True)
    (ideal,) = [shape for shape in Page(drawn).all("line") if shape.get("class") == "ideal"]
    ends = [[float(ideal[f"{axis}{end}"]) for axis in "xy"] for end in (1, 2)]
    assert ends == points(drawn, "line").tolist()


def test_few_points_are_not_smoothed():
    drawn = web.draw_plot("t", "step", [0, 1, 2], [5.0, 1.0, 3.0], smooth=True)
    assert points(drawn, "line").tolist() == points(drawn, "faint").tolist()
    assert "from 5 at 0 to 3 at 2" in drawn


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 10], [0, 2, 4, 6, 8, 10]),
        ([3, 3], [2.6, 2.8, 3.0, 3.2, 3.4]),
        ([-0.02, 0.03], [-0.02, -0.01, 0, 0.01, 0.02, 0.03]),
    ],
)
def test_an_axis_is_marked_at_round_numbers(values, ticks):
    found, place = web.place_ticks(values, 0, 1)
    assert found == pytest.approx(ticks)
    assert all(0 <= place(tick) <= 1 for tick in found)


def test_colours_have_the_contrast_of_wcag_aa():
    themes = re.findall(r"--ink: [^}]*", web.STYLE)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): #(\w+)", theme))

        def luminance(name: str, colours: dict[str, str] = colours) -> float:
            code = colours[name]
            digits = code if len(code) == 6 else "".join(2 * digit for digit in code)
            rgb = np.array([int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)])
            linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
            return float(linear @ [0.2126, 0.7152, 0.0722])

        for text in ("ink", "soft", "accent", *web.TONES):
            for ground in ("paper", "tint"):
                low, high = sorted([luminance(text), luminance(ground)])
                assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
