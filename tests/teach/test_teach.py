"""The page's session and interface: what is said is kept, what it shows is the learner, and nobody else gets in."""

from __future__ import annotations

import csv
import json
import threading
import time

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from umeta.data import decode
from umeta.deploy.adapted import AdaptedLearner
from umeta.deploy.seen import Look
from umeta.errors import UserError
from umeta.teach.app import LARGEST, make_app
from umeta.teach.session import Session

TOKEN, HOST = "a-token", "127.0.0.1:8000"


@pytest.fixture
def photos(tmp_path):
    """Bright pictures, dark ones and striped ones, of which the names say nothing."""
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(30):
        pixels = random.integers(0, 60, (28, 28)) + [0, 150, 0][i % 3]
        pixels[:: 2 if i % 3 == 2 else 100] = 255
        Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "photos" / f"{i:02}.png")
    return tmp_path / "photos"


@pytest.fixture
def run(made_run):
    return made_run("protonet", normalisation="running")


@pytest.fixture
def session(run, photos, tmp_path):
    return open_session(run, photos, tmp_path / "teach")


@pytest.fixture
def client(session):
    return TestClient(
        make_app(session, TOKEN, frozenset({HOST})), base_url=f"http://{HOST}", headers={"X-Token": TOKEN}
    )


def open_session(run, photos, place):
    """Open a session whose pictures were all looked at."""
    session = Session(run, photos, place, device="cpu")
    session.looking.join(60)
    assert session.trouble == ""
    return session


def wait(true):
    """Wait until something is true."""
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def teach(session):
    for label, pictures in {"dark": [0, 3], "bright": [1], "striped": [2, 5]}.items():
        session.label(pictures, label)


def test_the_rest_is_sorted_least_sure_first(session):
    teach(session)
    kinds = ["dark", "bright", "striped"]
    for place, kind in enumerate(kinds):
        found = session.pictures(f"class:{kind}", 0, 100)["pictures"]
        assert [one["confidence"] for one in found] == sorted(one["confidence"] for one in found)
        assert {one["id"] % 3 for one in found} == {place}
        assert not {one["id"] for one in found} & {0, 1, 2, 3, 5}
    assert len(session.pictures("labelled", 0, 100)["pictures"]) == 5
    assert session.pictures("worth", 0, 100)["total"] == 25
    classes = session.state()["classes"]
    assert [one["name"] for one in classes] == sorted(kinds)
    for one in classes:  # the number at a class is that of the pictures that it shows
        assert one["looks"] == session.pictures(f"class:{one['name']}", 0, 100)["total"]


def test_what_is_asked_first_is_typical_and_each_picture_once(session):
    shown = [one["id"] for one in session.pictures("worth", 0, 100)["pictures"]]
    assert sorted(shown) == list(range(30))
    assert shown[: len(session.first)] == session.first


def test_once_all_that_was_asked_for_has_labels_more_is_asked_for(session):
    asked = list(session.first)
    for i in asked[:-1]:
        session.label([i], ["dark", "bright", "striped"][i % 3])
    assert session.first == asked
    session.label(asked[-1:], ["dark", "bright", "striped"][asked[-1] % 3])
    session.looking.join(60)
    assert session.first
    assert not set(session.first) & set(asked)


def test_accuracy_is_of_what_was_answered_before(session):
    teach(session)
    answers = {i: session.describe(i)["answer"] for i in (6, 7)}
    assert session.state()["told"] == 0  # the first of a class could not have been answered
    session.label([6], answers[6])
    session.label([7], next(name for name in ("dark", "bright") if name != answers[7]))
    session.label([6], "dark")  # said again, it is no new test
    state = session.state()
    assert (state["told"], state["right"]) == (2, 1)


def test_each_step_is_saved_undone_and_found_again(session, run, photos, tmp_path):
    teach(session)
    session.rename("dark", "night")
    again = open_session(run, photos, tmp_path / "teach")
    assert (
        again.labels
        == session.labels
        == {"00.png": "night", "03.png": "night", "01.png": "bright"} | {f"0{i}.png": "striped" for i in (2, 5)}
    )
    assert np.array_equal(again.probabilities, session.probabilities)
    again.undo()
    assert set(again.labels.values()) == {"dark", "bright", "striped"}
    again.rename("striped", None)
    assert again.classes == ["bright", "dark"]
    for _ in range(4):
        again.undo()
    assert again.labels == {}
    with pytest.raises(UserError, match="nothing to undo"):
        again.undo()
    assert open_session(run, photos, tmp_path / "teach").labels == {}


def test_the_learner_that_is_exported_answers_as_the_page_does(session, umeta, photos, tmp_path):
    teach(session)
    learner = AdaptedLearner.load(tmp_path / "teach" / "learner", device="cpu") if session.export("learner") else None
    assert learner.classes.tolist() == session.classes
    np.testing.assert_allclose(
        learner.probabilities(np.stack([session.items[i] for i in range(30)])), session.probabilities, atol=1e-5
    )
    assert (
        umeta("predict", tmp_path / "teach" / "learner", photos, "--out", tmp_path / "p.csv", "--device", "cpu")[0] == 0
    )
    session.export("predictions.csv")
    tables = [
        list(csv.DictReader(path.open())) for path in (tmp_path / "p.csv", tmp_path / "teach" / "predictions.csv")
    ]
    for told, shown in zip(*tables, strict=True):
        assert (told["path"], told["label"]) == (shown["path"], shown["label"])
        assert float(told["confidence"]) == pytest.approx(float(shown["confidence"]), abs=1e-4)
    session.export("learner")  # once more


def test_folders_hold_the_labels_and_the_answers_and_what_is_gone_is_counted(session, photos, tmp_path):
    teach(session)
    (photos / "29.png").unlink()
    assert session.export("sorted")["missing"] == 1
    found = {path.name.partition("-")[2]: path.parent.name for path in (tmp_path / "teach" / "sorted").glob("*/*")}
    assert found["00.png"] == "dark"
    assert len(found) == 29
    with pytest.raises(UserError, match=r"29.png: no longer there"):
        session.thumbnail(29)
    session.label([29], "dark")  # nothing is lost
    assert session.export("learner")["missing"] == 0


def test_the_interface_does_what_it_says(client, photos):
    state = client.post("/api/label", json={"pictures": [0], "label": "dark"}).json()
    assert state["classes"] == [{"name": "dark", "labelled": 1, "looks": 0}]
    assert client.post("/api/predict", content=b"x").json()["error"]
    client.post("/api/label", json={"pictures": [1, 4], "label": "bright"})
    answer = client.post("/api/predict", content=(photos / "07.png").read_bytes()).json()
    assert answer["label"] == "bright"
    assert sum(answer["probabilities"].values()) == pytest.approx(1, abs=1e-4)
    found = client.get("/api/pictures", params={"view": "class:bright", "count": 3}).json()
    assert [one["answer"] for one in found["pictures"]] == ["bright"] * 3
    thumbnail = client.get("/api/thumbnail/0")
    assert thumbnail.content.startswith(b"\xff\xd8")
    assert client.post("/api/rename", json={"old": "dark", "new": "night"}).json()["classes"][1]["name"] == "night"
    assert client.post("/api/undo").json()["classes"][1]["name"] == "dark"
    assert client.post("/api/export", json={"kind": "learner"}).json()["path"].endswith("learner")
    assert TOKEN in client.get("/").text
    assert "ask(" in client.get("/page.js").text


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        ("label", {"pictures": [99], "label": "a"}, "some of the 30 seen"),
        ("label", {"pictures": [], "label": "a"}, "expected some"),
        ("label", {"pictures": [-1], "label": "a"}, "expected some"),
        ("label", {"pictures": [1], "label": "../../etc"}, "cannot be named"),
        ("label", {"pictures": [1], "label": ""}, "cannot be named"),
        ("label", {"pictures": [1], "label": ".."}, "cannot be named"),
        ("label", {"pictures": [1], "label": "a/b"}, "cannot be named"),
        ("label", {"pictures": [1], "label": "a\\b"}, "cannot be named"),
        ("label", {"pictures": [1], "label": "a\nb"}, "cannot be named"),
        ("label", {"pictures": [1], "label": "a" * 81}, "cannot be named"),
        ("label", {"pictures": [1], "label": 7}, "not such a request"),
        ("label", [], "not such a request"),
        ("label", {"pictures": "all"}, "not such a request"),
        ("rename", {"old": "none", "new": "x"}, "no class 'none'"),
        ("undo", {}, "nothing to undo"),
        ("export", {"kind": "../learner"}, "expected one of"),
        ("export", {"kind": "learner"}, "no two classes"),
    ],
)
def test_what_is_wrong_is_one_sentence_and_changes_nothing(client, session, path, body, says):
    answer = client.post(f"/api/{path}", json=body)
    assert answer.status_code == 400
    assert says in answer.json()["error"]
    assert session.steps == []


def test_only_this_machine_s_own_page_with_the_token_gets_in(client, session):
    label = {"pictures": [0], "label": "dark"}
    refused = [
        client.get("/", headers={"X-Token": "another"}),
        client.get("/api/state?token=another", headers={"X-Token": ""}),
        client.get("/api/thumbnail/0", headers={"X-Token": ""}),
        client.get("/api/state", headers={"Host": "evil.example"}),
        client.get("/api/state", headers={"Host": "127.0.0.1:9"}),
        client.post("/api/label", json=label, headers={"Origin": "http://evil.example"}),
        client.post("/api/label", json=label, headers={"Origin": "null"}),
        client.post("/api/label", json=label, headers={"Origin": "https://127.0.0.1:8000"}),
    ]
    assert [answer.status_code for answer in refused] == [403] * len(refused)
    assert session.steps == []
    assert client.get(f"/api/state?token={TOKEN}", headers={"X-Token": TOKEN}).status_code == 200
    assert client.post("/api/label", json=label, headers={"Origin": f"http://{HOST}"}).status_code == 200


def test_no_path_leads_out_of_the_folder(client, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in (
        "/api/thumbnail/../secret.png",
        "/../secret.png",
        "/%2e%2e/secret.png",
        "/api/thumbnail/-1",
        "/session.py",
        "/api/thumbnail/99",
        "/api/thumbnail/..%2fsecret.png",
    ):
        answer = client.get(path)
        assert answer.status_code in (400, 404)
        assert answer.content != b"secret"


def test_what_is_far_too_large_is_refused_unread(client, session):
    assert client.post("/api/predict", content=b"x", headers={"Content-Length": str(10**8)}).status_code == 413
    sent = 0

    def endless():
        nonlocal sent
        for _ in range(100):
            sent += 1 << 20
            yield b"x" * (1 << 20)

    assert client.post("/api/predict", content=endless()).status_code == 413
    assert LARGEST < 100 << 20


def test_the_page_opens_at_once_and_pictures_take_part_as_they_are_seen(run, photos, tmp_path, monkeypatch):
    """The link comes before any picture was looked at; what was seen so far is sorted, labelled and kept."""
    may, see = threading.Semaphore(1), Look.see
    monkeypatch.setattr("umeta.deploy.seen.BLOCK", 10)
    monkeypatch.setattr(Look, "see", lambda self, block: may.acquire() and see(self, block))
    session = Session(run, photos, tmp_path / "teach", device="cpu")
    wait(lambda: session.state()["pictures"] == 10)
    seen = sorted(session.items)
    for i in seen[:6]:
        session.label([i], ["dark", "bright", "striped"][i % 3])
    early = {i: session.describe(i)["answer"] for i in seen}
    with pytest.raises(UserError, match="10 of 30 were looked at so far"):
        session.export("sorted")
    with pytest.raises(UserError, match="some of the 10 seen"):
        session.label([next(i for i in range(30) if i not in seen)], "dark")
    may.release(3)
    session.looking.join(60)
    assert session.state()["pictures"] == session.state()["looked"] == 30
    assert {i: session.describe(i)["answer"] for i in seen} == early
    whole = session.probabilities.copy()
    session.refresh()
    np.testing.assert_allclose(session.probabilities, whole, atol=1e-6)
    # what was looked at is kept: another time no file is opened, but for new ones
    (photos / "99.png").write_bytes((photos / "00.png").read_bytes())
    opened = []
    decode_one = decode.try_decode
    monkeypatch.setattr(decode, "try_decode", lambda *args, **kw: opened.append(1) or decode_one(*args, **kw))
    may.release(9)
    assert len(open_session(run, photos, tmp_path / "teach").items) == 31
    assert len(opened) == 1


def test_a_closed_session_ends_soon_and_another_goes_on(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("umeta.deploy.seen.BLOCK", 10)
    may, see = threading.Semaphore(0), Look.see
    monkeypatch.setattr(Look, "see", lambda self, block: may.acquire() and see(self, block))
    session = Session(run, photos, tmp_path / "teach", device="cpu")
    closing = threading.Thread(target=session.close)
    closing.start()
    wait(lambda: session.closed)
    may.release(9)
    closing.join(60)
    assert not session.looking.is_alive()
    assert session.looked <= 10
    assert open_session(run, photos, tmp_path / "teach").looked == 30


def test_what_goes_wrong_while_looking_is_told_and_the_rest_stays(run, photos, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    (photos / "99.png").write_text("no picture")
    session = open_session(run, photos, tmp_path / "teach")
    assert (session.state()["unreadable"], len(session.items)) == (1, 30)
    monkeypatch.setattr(Look, "see", fail)
    session = Session(run, photos, tmp_path / "teach", device="cpu")
    session.looking.join(60)
    assert "No space left" in session.state()["trouble"]
    monkeypatch.undo()
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.jpg").write_text("no picture")
    session = Session(run, tmp_path / "empty", tmp_path / "other", device="cpu")
    session.looking.join(60)
    assert "none of its 1 files is a readable image" in session.state()["trouble"]


def test_two_at_once_lose_nothing(session):
    def say(label, pictures):
        for i in pictures:
            session.label([i], label)

    both = [threading.Thread(target=say, args=(name, range(start, 30, 2))) for start, name in enumerate(("a", "b"))]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert session.labels == {f"{i:02}.png": "ab"[i % 2] for i in range(30)}
    assert len(json.loads((session.place / "labels.json").read_text())["steps"]) == 30


def test_a_step_that_cannot_be_saved_is_not_taken(session, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("umeta.runtime.artifacts.write_json", fail)
    with pytest.raises(OSError, match="No space"):
        session.label([0], "dark")
    assert session.labels == {}


def test_what_cannot_be_taught_is_said(run, made_run, photos, refused, draw, tmp_path, session):
    refused("teach", made_run("maml", head="fixed"), photos, "--out", tmp_path / "x", says=["MAML", "umeta adapt"])
    refused("teach", run, photos, "--out", photos / "x", says=["within the pictures"])
    refused("teach", run, tmp_path / "none", "--out", tmp_path / "x", says=["none: no such folder"])
    refused("teach", run, photos, "--port", 99999, "--out", tmp_path / "x", says=["--port 99999"])
    session.label([0], "dark")
    refused("teach", run, draw(tmp_path / "others", flat=3), "--out", tmp_path / "teach", says=["its labels are of"])
