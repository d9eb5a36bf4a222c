"""Captions under tables say where each row comes from."""

import json

import pytest
from PIL import Image

from umeta.report import tables
from umeta.report.tables import collect_certainty, draw, join_names, make_table, remake


def result(title: str, tasks: int = 1000, seed: int | str = 0, commit: str = "aaa", **rows) -> dict:
    cells = {"5w": {"mean": 50.0, "interval": 1.0}}
    protocol = {"name": "cactus", "split": "cactus test", "tasks": tasks, "inference": "inductive"}
    return {
        "title": title,
        "rows": {"chance": cells, title: cells} | {name: cells for name in rows.get("others", [])},
        "protocol": protocol,
        "minutes": {"propose": 0.25, "metatrain": 1.5, "evaluate": 9.0},
        "seed": seed,
        "commit": commit,
    }


def make(tmp_path, *results: dict, wanted: list[str] | None = None) -> list[str]:
    (tmp_path / "r.json").write_text(json.dumps(results))
    return make_table({"r.json": tmp_path / "r.json"}, wanted).splitlines()


def test_a_caption_says_once_what_all_rows_share(tmp_path):
    lines = make(tmp_path, result("A"), result("B"))
    assert lines[-1] == (
        "*Source: `results/r.json`; protocol cactus, test split; 1,000 tasks; seed 0; inductive; commit aaa.*"
    )
    assert all("aaa" not in line for line in lines[:-1])


def test_a_caption_names_the_rows_with_fewer_tasks_and_lists_seeds_and_commits(tmp_path):
    found = make(tmp_path, result("A"), result("B"), result("C", tasks=200, seed="0, 1", commit="bbb"))[-1]
    assert "1,000 tasks (200 for “C”); seeds 0, 1; inductive; commits aaa, bbb." in found


def test_a_caption_is_of_the_rows_in_the_table_alone(tmp_path):
    found = make(tmp_path, result("A"), result("B", commit="bbb"), wanted=["chance", "B"])[-1]
    assert "bbb" in found
    assert "aaa" not in found


def test_a_transductive_row_is_told_apart(tmp_path):
    assert "inductive unless a row says transductive" in make(tmp_path, result("A", others=["A, transductive"]))[-1]


def test_published_rows_are_cited_and_have_no_minutes(tmp_path):
    lines = make(tmp_path, result("A"), {"title": "P (published)", "source": "P 2019", "rows": {"P (published)": {}}})
    assert lines[-1].endswith("commit aaa. Published: “P” (P 2019).*")
    assert lines[4].split("|")[-2].strip() == ""


def test_minutes_are_those_of_learning(tmp_path):
    lines = make(tmp_path, result("A"))
    assert lines[3] == "| A | 50.00 ± 1.00 | 1.8 |"


def test_names_are_listed_as_in_a_sentence():
    assert join_names(["a"]) == "“a”"
    assert join_names(["a", "b"]) == "“a” and “b”"
    assert join_names(["a", "b", "c"]) == "“a”, “b” and “c”"


def test_certainty_has_columns_where_a_result_knows_it(tmp_path):
    sure = result("B") | {"calibration": {"episode": "5w", "log_likelihood": -0.25, "ece": 0.125, "bins": []}}
    lines = make(tmp_path, result("A") | {"calibration": {"episode": "5w", "ece": 0.1, "bins": []}}, sure)
    assert lines[0] == "|  | 5w | log-likelihood, 5w | calibration error, 5w | minutes |"
    assert lines[3:5] == ["| A | 50.00 ± 1.00 |  | 0.100 | 1.8 |", "| B | 50.00 ± 1.00 | -0.250 | 0.125 | 1.8 |"]
    assert "likelihood" not in make(tmp_path, result("A"), sure, wanted=["A"])[0]


def test_points_of_a_plot_are_calibration_error_and_accuracy():
    judged = result("instance tasks, B") | {"calibration": {"episode": "5w", "ece": 0.125, "bins": []}}
    assert collect_certainty([result("A"), judged]) == {"B": (12.5, 50.0)}


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("curves", {"curves": {"5w": {"x": [1.0, 2.0], "mean": [40.0, 50.0], "interval": [1.0, 1.0], "label": "min"}}}),
        ("proposer.k", {"config": {"proposer": {"k": 500}}}),
        ("certainty", {"calibration": {"episode": "5w", "ece": 0.125, "bins": []}}),
    ],
)
def test_a_result_alone_is_drawn(tmp_path, key, changes):
    (tmp_path / "r.json").write_text(json.dumps([result("A") | changes]))
    draw([tmp_path / "r.json"], tmp_path / "r.png", key)
    assert len(Image.open(tmp_path / "r.png").getcolors(1 << 20)) > 10


def test_returns_of_rows_from_several_files_are_drawn_beside_each_other(tmp_path, monkeypatch):
    def curve(mean: float) -> dict:
        return {"x": [0.0, 10.0], "mean": [0.0, mean], "interval": [None, None], "label": "environment steps"}

    own = result("A") | {"domain": "env", "adaptation": {"A": curve(1.0), "from scratch": curve(2.0)}}
    theirs = {"title": "B", "source": "them", "rows": {}, "adaptation": {"B": curve(3.0)}}
    for name, found in (("own.json", own), ("theirs.json", theirs)):
        (tmp_path / name).write_text(json.dumps([found]))
    page = tmp_path / "page.md"
    page.write_text("<!-- curves: own.json theirs.json a.png; B; A -->\n<!-- curves: own.json b.png -->")
    drawn = {}
    with monkeypatch.context() as patch:
        patch.setattr(tables, "plot_adaptation", lambda path, shown, _: drawn.update({path.name: list(shown)}))
        remake(page)
    assert drawn == {"a.png": ["B", "A"], "b.png": ["A", "from scratch"]}
    draw([tmp_path / "own.json", tmp_path / "theirs.json"], tmp_path / "c.png")
    assert len(Image.open(tmp_path / "c.png").getcolors(1 << 20)) > 10
    with pytest.raises(KeyError, match="C"):
        draw([tmp_path / "own.json"], tmp_path / "d.png", wanted=["C"])


def returns(title: str, found: list[list[float]], others: dict | None = None) -> dict:
    cells = {f"{k} steps": {"mean": 0.0, "interval": 0.0} for k in range(len(found[0]))}
    return {**result(title), "rows": {title: cells}, "returns": {title: found, **(others or {})}}


def test_returns_are_compared_goal_by_goal(tmp_path):
    """Two goals, of which one is worth a hundred more whatever is done: differences of 2 and 4 are 3 ± 1.96 / √2."""
    scratch = [[1.0, 10.0], [101.0, 110.0]]
    rows = [
        {**result("earlier"), "rows": {"earlier": {"0 steps": {"mean": 0.0, "interval": 0.0}}}},
        returns("A", [[1.0, 12.0], [101.0, 114.0]], {"from scratch": scratch}),
        returns("B", [[0.0, 10.0, 9.0], [100.0, 110.0, 9.0]]),
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    lines = make_table({"r.json": tmp_path / "r.json"}, change="more than from scratch").splitlines()
    assert lines[0] == "|  | 0 steps | 1 steps | minutes |"
    assert lines[2:4] == ["| A | 0.00 | 3.00 ± 1.39 | 1.8 |", "| B | -1.00 | 0.00 | 1.8 |"]
    assert lines[4] == ""


def test_seeds_are_averaged_goal_by_goal(tmp_path):
    """Two goals: seeds earn 2 and 4 more, and 0 and 6 more; on average 1 and 5, which is 3 ± 1.96 * 2 / √2."""
    rows = [
        returns("A", [[2.0], [14.0]], {"from scratch": [[0.0], [10.0]]}),
        returns("B", [[1.0], [11.0]]),
        returns("A, seed 1", [[0.0], [16.0]]),
    ]
    (tmp_path / "r.json").write_text(json.dumps(rows))
    lines = make_table({"r.json": tmp_path / "r.json"}, change="more than from scratch").splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == ["A", "B", "A, seed 1", "A, mean of 2 seeds"]
    assert lines[5] == "| A, mean of 2 seeds | 3.00 ± 2.77 |  |"


def test_a_row_to_compare_with_must_have_kept_its_returns(tmp_path):
    (tmp_path / "r.json").write_text(json.dumps([returns("A", [[1.0]])]))
    with pytest.raises(KeyError, match="from scratch"):
        make_table({"r.json": tmp_path / "r.json"}, change="more than from scratch")
