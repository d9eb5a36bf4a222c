"""What goes wrong around a run, and what it then does: never a traceback, never a wrong result without a word."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_resume import IMAGES, PREPARE, write_images

from umeta.cli.main import main
from umeta.config.images import TrainConfig
from umeta.deploy.adapted import AdaptedLearner
from umeta.errors import UserError
from umeta.evaluation import images, rows
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.outer.adam import Adam
from umeta.report import write
from umeta.runtime import artifacts
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.lock import hold_folder
from umeta.runtime.loop import RunContext
from umeta.stages import runs
from umeta.testing import same, toy_tasks
from umeta.train import metatrain
from umeta.types import Theta

Answer = tuple[int, str]


def call(*arguments: str) -> Answer:
    """Exit code and standard error of a command."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()) as err:
        code = main([*arguments, "--device", "cpu"] if arguments[0] != "inspect" else arguments)
    return code, err.getvalue()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run; nothing may change it."""
    place = tmp_path_factory.mktemp("finished")
    write_images(place / "images.npz")
    (place / "tiny.yaml").write_text(yaml.safe_dump(IMAGES))
    with contextlib.chdir(place):
        code, err = call("run", "tiny.yaml")
        assert code == 0, err
    return place


@pytest.fixture
def place(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, and the current directory."""
    shutil.copytree(finished, tmp_path / "place")
    monkeypatch.chdir(tmp_path / "place")
    return tmp_path / "place"


# a disk that is full, or cannot be written


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond `size` bytes, in the middle of a write."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def full_disk(renames: int) -> Iterator[None]:
    """No room, from the n-th file on that should take its place."""
    left, real = renames, os.replace

    def refusing(source: Any, target: Any) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(source))
        real(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", refusing)
        yield


@contextlib.contextmanager
def read_only() -> Iterator[None]:
    """Nothing new can be made (root, as whom tests may run, may write where the mode forbids it)."""
    real = os.open

    def refusing(path: Any, flags: int, *rest: Any, **options: Any) -> int:
        if flags & os.O_CREAT:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
        return real(path, flags, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "open", refusing)
        yield


PROPOSE = ["propose", "tiny.yaml", "name=new"]
METATRAIN = ["metatrain", "tiny.yaml", "name=new", "tasks=tasks/tiny"]
EVALUATE = ["evaluate", "runs/tiny", "evaluate.seed=1", "evaluate.baselines=[]"]
TOO_LARGE, NO_ROOM, READ_ONLY = "File too large", "No space left on device", "cannot write there"

FAULTS: list[tuple[str, Callable[[], Any], list[str], list[str]]] = [
    # what goes wrong, how, in which command, what the message says; the exit code is 2, and a resume cures it
    ("partitions of the k-means", lambda: largest_file(300), PROPOSE, [TOO_LARGE, "tasks/new/", "--resume"]),
    ("a checkpoint", lambda: largest_file(3000), METATRAIN, [TOO_LARGE, "runs/new/", "step-", "--resume"]),
    ("rows of a test", lambda: largest_file(500), EVALUATE, [TOO_LARGE, "runs/tiny/", "--resume"]),
    ("no room at once", lambda: full_disk(0), PROPOSE, [NO_ROOM, "tasks/new/asked.json", "--resume"]),
    ("no room after a while", lambda: full_disk(5), METATRAIN, [NO_ROOM, "runs/new/", "--resume"]),
    ("no room for the report", lambda: full_disk(4), EVALUATE, [NO_ROOM, "runs/tiny/", "--resume"]),
    ("tasks cannot be written", read_only, PROPOSE, [READ_ONLY, "tasks/new", "Read-only"]),
    ("runs cannot be written", read_only, METATRAIN, [READ_ONLY, "runs/new", "Read-only"]),
    ("a report cannot be written", read_only, EVALUATE, [READ_ONLY, "runs/tiny", "Read-only"]),
]


@pytest.fixture(scope="module")
def undisturbed(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the commands of the table write when nothing goes wrong."""
    place = tmp_path_factory.mktemp("undisturbed") / "place"
    shutil.copytree(finished, place)
    with contextlib.chdir(place):
        for command in (PROPOSE, METATRAIN, EVALUATE):
            assert call(*command)[0] == 0
        return {command[0]: made(command) for command in (PROPOSE, METATRAIN, EVALUATE)}


def made(command: list[str]) -> Any:
    """What a command of the table writes, without times."""
    if command is EVALUATE:
        return artifacts.read_sealed(Path("runs/tiny/report.json"))["rows"]
    return Path("tasks/new/manifest.json" if command is PROPOSE else "runs/new/manifest.json").read_bytes()


@pytest.mark.parametrize(("fault", "broken", "command", "says"), FAULTS, ids=[row[0] for row in FAULTS])
def test_fault_of_a_disk_is_named_and_cured_by_a_resume(
    place: Path, undisturbed: dict[str, Any], fault: str, broken: Callable[[], Any], command: list[str], says: list[str]
) -> None:
    with broken():
        code, err = call(*command)
    assert code == 2, err
    assert "Traceback" not in err
    assert [text for text in says if text not in err.strip().splitlines()[-1]] == [], err
    assert not [*place.glob("tasks/*/.*"), *place.glob("runs/*/.*")]  # half a file, a lock
    code, err = call(*command, "--resume")
    assert code == 0, err
    assert made(command) == undisturbed[command[0]]


def test_fault_no_end_of_an_array_is_lost_on_a_full_disk(tmp_path: Path) -> None:
    """NumPy's own way of writing to a file ends well although the last, buffered bytes found no room."""
    array = np.arange(300)
    with largest_file(2000), pytest.raises(OSError, match=r"x\.npy"):
        artifacts.write_array(tmp_path / "x.npy", array)
    assert list(tmp_path.iterdir()) == []
    for kept in (array, array.reshape(3, 100).T, np.array(3.5), np.zeros((0, 2), np.int8)):
        artifacts.write_array(tmp_path / "x.npy", kept)
        found = artifacts.read_array(tmp_path / "x.npy")
        assert (found.dtype, found.shape, found.tolist()) == (kept.dtype, kept.shape, kept.tolist())


@pytest.mark.slow
@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode != 0,
    reason="needs the right to mount",
)
def test_fault_a_disk_that_is_really_full_or_read_only(place: Path) -> None:
    """A file system of so many kilobytes: too few for anything, for the tasks, for the run, for the report."""
    program = f"import sys; {PREPARE}; from umeta.cli.main import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "run", "tiny.yaml", "out=disk", "--device", "cpu"]
    messages = []
    for options in ("size=4k", "size=40k", "size=90k", "size=150k", "ro"):
        (place / "disk").mkdir(exist_ok=True)
        mount = f'mount -t tmpfs -o {options} none disk && exec "$@"'
        done = subprocess.run(
            ["unshare", "-m", "--propagation", "private", "sh", "-c", mount, "sh", *command],
            capture_output=True,
            text=True,
            env={**os.environ, "UMETA_CACHE": str(place / "cache")},
        )
        assert done.returncode == 2, (options, done.stderr)
        assert "Traceback" not in done.stderr
        messages.append(done.stderr.strip().splitlines()[-1])
    assert all("No space left on device" in text and "disk/" in text for text in messages[:-1]), messages
    assert "Read-only file system" in messages[-1]


# files that are cut short, or of which a bit has turned


def damaged(content: bytes, count: int) -> Iterator[bytes]:
    """Cut and with one bit turned, at even places; the end of the last line does not count, nor what says the same."""
    content = content.rstrip(b"\n")
    for i in range(count):
        at = (len(content) - 1) * i // max(count - 1, 1)
        turned = content[:at] + bytes([content[at] ^ (1 << i % 8)]) + content[at + 1 :]
        yield from (bad for bad in (content[:at], turned) if not same_json(bad, content))


def same_json(one: bytes, other: bytes) -> bool:
    """Whether both are JSON of the same values, as where the last of a number's digits is beyond its precision."""
    try:
        return json.loads(one) == json.loads(other)
    except ValueError:
        return False


def refuses(read: Callable[[], Any]) -> Callable[[], None]:
    def check() -> None:
        with pytest.raises(UserError, match=r"damaged|schema|of kind"):
            read()

    return check


def without_question(read: Callable[[], Any], answer: Any) -> Callable[[], None]:
    def check() -> None:
        assert read() == answer

    return check


def checkpoint(kind: str) -> Callable[[], Any]:
    def step() -> int | None:
        log = Checkpoints(Path("runs/tiny"), "metatrain", kind)
        found = log.newest()
        return found and found[1]

    return step


def kept_rows() -> dict[str, Any]:
    asked = json.loads(Path("asked.copy").read_text())
    return rows.Kept(Path("runs/tiny/evaluation.json"), asked, images.PARTS).parts["rows"]


# every kind of file -> what becomes of it when it is damaged
TABLE: list[tuple[str, str, Callable[[], None]]] = [
    ("tasks/tiny/*", "refused", refuses(lambda: artifacts.read_manifest(Path("tasks/tiny"), "tasks"))),
    ("runs/tiny/*", "refused", refuses(lambda: runs.load_run("runs/tiny"))),
    ("learner/*", "refused", refuses(lambda: AdaptedLearner.load(Path("learner")))),
    ("runs/tiny/report.json", "refused", refuses(lambda: artifacts.read_sealed(Path("runs/tiny/report.json")))),
    ("runs/tiny/evaluation.json", "computed again", without_question(kept_rows, {})),
    ("runs/tiny/checkpoints/metatrain/step-3/*", "the one before", without_question(checkpoint("checkpoints"), 2)),
    ("runs/tiny/snapshots/metatrain/step-3/*", "left out", without_question(checkpoint("snapshots"), 2)),
    (
        "cache/embeddings/*/*",
        "made again",
        without_question(lambda: intact("cache/embeddings/*", "embedding"), [False]),
    ),
]


def intact(pattern: str, kind: str) -> list[bool]:
    return [artifacts.is_intact(path, kind) for path in Path().glob(pattern)]


@pytest.fixture(scope="module")
def all_kinds(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy with a file of every kind in it."""
    place = tmp_path_factory.mktemp("kinds") / "place"
    shutil.copytree(finished, place)
    draw = np.random.default_rng(0)
    from PIL import Image

    for i in range(4):
        (place / "support" / "ab"[i % 2]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw.integers(0, 256, (8, 8), dtype=np.uint8)).save(
            place / "support" / "ab"[i % 2] / f"{i}.png"
        )
    with contextlib.chdir(place), pytest.MonkeyPatch.context() as patch:
        patch.setenv("UMETA_CACHE", str(place / "cache"))
        assert call("propose", "tiny.yaml", "name=again")[0] == 0
        assert call("adapt", "runs/tiny", "--support", "support", "--out", "learner")[0] == 0
        evaluated = artifacts.read_sealed(Path("runs/tiny/evaluation.json"))
        Path("asked.copy").write_text(json.dumps(evaluated["asked"]))
        log = Checkpoints(Path("runs/tiny"), "metatrain")
        state = log.newest()
        assert state is not None
        log.write(state[0], 2, 1.0)
    return place


@pytest.mark.parametrize(("pattern", "outcome", "check"), TABLE, ids=[f"{row[0]}: {row[1]}" for row in TABLE])
def test_fault_of_a_file(
    all_kinds: Path, monkeypatch: pytest.MonkeyPatch, pattern: str, outcome: str, check: Callable[[], None]
) -> None:
    monkeypatch.chdir(all_kinds)
    paths = [path for path in Path().glob(pattern) if path.is_file()]
    if pattern.endswith("*") and (Path(pattern).parent / "manifest.json").exists():
        listed = artifacts.read_json(Path(pattern).parent / "manifest.json")["files"]
        paths = [path for path in paths if path.name in (*listed, "manifest.json")]
    assert paths
    for path in paths:
        content = path.read_bytes()
        for bad in damaged(content, 16):
            path.write_bytes(bad)
            check()
        path.write_bytes(content)


def test_fault_of_a_file_of_times_or_of_a_log_is_left_out_of_the_report(all_kinds: Path, monkeypatch) -> None:
    monkeypatch.chdir(all_kinds)
    run = runs.load_run("runs/tiny")
    whole = run.seconds()
    assert whole.keys() == {"embedding", "propose", "metatrain"}
    for name, left in (("tasks/tiny", {"metatrain"}), ("runs/tiny", {"embedding", "propose"})):
        path = Path(name) / "seconds.json"
        content = path.read_bytes()
        for bad in damaged(content, 16):
            path.write_bytes(bad)
            assert run.seconds() == {key: whole[key] for key in left}
        path.write_bytes(content)
    path = Path("runs/tiny/metatrain.jsonl")
    content = path.read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    for bad in damaged(content, 64):
        path.write_bytes(bad)
        assert len(write.read_log(path)) <= len(lines) + 1
    path.write_bytes(content)


def test_fault_of_a_kept_evaluation_on_an_environment_is_computed_again(tmp_path: Path) -> None:
    kept = tmp_path / "evaluation.json"
    artifacts.write_sealed(kept, {"asked": {"a": 1}, "rows": {"x": {"returns": [[1.5]]}}, "seconds": 2.0})
    assert rows.Kept(kept, {"a": 1}).parts["rows"] == {"x": {"returns": [[1.5]]}}
    assert rows.Kept(kept, {"a": 2}).parts["rows"] == {}
    for bad in damaged(kept.read_bytes(), 64):
        kept.write_bytes(bad)
        assert rows.Kept(kept, {"a": 1}).parts["rows"] == {}


# two processes at once

HOLD = """
import sys, time
from pathlib import Path
from umeta.runtime.lock import hold_folder
with hold_folder(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize(
    ("folder", "command"),
    [("tasks/new", PROPOSE), ("runs/new", METATRAIN), ("runs/tiny", EVALUATE)],
    ids=["propose", "metatrain", "evaluate"],
)
def test_fault_two_processes_in_one_folder(place: Path, folder: str, command: list[str]) -> None:
    """The second is told who the first is; when the first is killed, its lock is no more."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    assert first.stdout.readline() == "held\n"
    try:
        for resume in ([], ["--resume"]):
            code, err = call(*command, *resume)
            assert code == 2
            assert f"{folder}: process {first.pid} on " in err
            assert ", since 2" in err
            assert "is at work there; wait for it to end, or stop it" in err
    finally:
        first.kill()
        first.wait()
        first.stdout.close()
    assert (place / folder / ".lock").exists()  # what the dead left behind
    code, err = call(*command)
    assert code == 0, err
    assert not (place / folder / ".lock").exists()


def test_fault_two_processes_in_one_folder_of_one_name_each(tmp_path: Path) -> None:
    with hold_folder(tmp_path / "a"), hold_folder(tmp_path / "b"):
        for name in "ab":
            with pytest.raises(UserError, match=f"{name}: process {os.getpid()} on"), hold_folder(tmp_path / name):
                pytest.fail("two owners")
    with hold_folder(tmp_path / "a"):
        pass
    assert list((tmp_path / "a").iterdir()) == []


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}'])
def test_fault_a_lock_file_says_nothing(tmp_path: Path, content: str) -> None:
    with hold_folder(tmp_path):
        (tmp_path / ".lock").write_text(content)
        with pytest.raises(UserError, match="another process is at work there"), hold_folder(tmp_path):
            pytest.fail("two owners")


def test_fault_a_file_system_without_locks_is_no_reason_to_fail(tmp_path: Path, monkeypatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refusing(*arguments: Any) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(fcntl, "flock", refusing)
    with hold_folder(tmp_path):
        assert (tmp_path / ".lock").exists()
    assert not (tmp_path / ".lock").exists()


def test_fault_results_recorded_at_once_are_all_there(tmp_path: Path) -> None:
    """Each reads the file, adds its own and writes it: none may read between another's reading and writing."""
    path = tmp_path / "results.json"
    protocol = {"name": "small", "split": "test"}
    results = [{"name": f"run {i}", "seed": 0, "protocol": protocol} for i in range(16)]
    threads = [threading.Thread(target=rows.record_result, args=(path, result)) for result in results]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row["name"] for row in artifacts.read_json(path)) == sorted(row["name"] for row in results)
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_fault_two_processes_make_one_cache(tmp_path: Path) -> None:
    made: list[int] = []

    def make(folder: Path) -> list[str]:
        made.append(1)
        (folder / "x").write_text("x")
        return ["x"]

    threads = [threading.Thread(target=artifacts.make_cached, args=(tmp_path / "c", "images", make)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


# data that changes between the stages


def change(path: Path) -> None:
    """One pixel of one image is another."""
    with np.load(path) as stored:
        images, labels = stored["images"].copy(), stored["labels"]
    images[5, 0, 3, 3] ^= 1
    np.savez(path, images=images, labels=labels)


def test_fault_labels_that_change_before_evaluate_are_tested_anew(place: Path) -> None:
    with np.load(place / "images.npz") as stored:
        np.savez(place / "images.npz", images=stored["images"], labels=np.roll(stored["labels"], 1))
    before = artifacts.read_sealed(place / "runs/tiny/evaluation.json")["asked"]["data"]
    assert call("evaluate", "runs/tiny", "evaluate.baselines=[]")[0] == 0
    assert artifacts.read_sealed(place / "runs/tiny/evaluation.json")["asked"]["data"] != before


def interrupted(command: list[str]) -> None:
    """The command, killed by a full disk after its first checkpoints."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            RunContext, "__init__", lambda self, *a, **k: original(self, *a, **{**k, "checkpoint_seconds": 0})
        )
        with full_disk(5):
            assert call(*command)[0] == 2


original = RunContext.__init__


def test_fault_data_that_changes_before_a_resume_of_propose(place: Path) -> None:
    interrupted(PROPOSE)
    change(place / "images.npz")
    code, err = call(*PROPOSE, "--resume")
    assert (code, "tasks/new was begun with another configuration (data: other content than before" in err) == (2, True)


def test_fault_data_that_changes_between_propose_and_metatrain(place: Path) -> None:
    change(place / "images.npz")
    code, err = call(*METATRAIN)
    assert (code, "tasks/tiny: proposed on other images than those of data (fingerprint" in err) == (2, True)


def test_fault_tasks_that_change_before_a_resume_of_metatrain(place: Path) -> None:
    interrupted(METATRAIN)
    shutil.rmtree("tasks/tiny")
    assert call("propose", "tiny.yaml", "--seed", "5")[0] == 0
    code, err = call(*METATRAIN, "--resume")
    assert (code, "runs/new was begun with another configuration (files.tasks/tiny: " in err) == (2, True)


def test_fault_data_that_changes_before_a_resume_of_evaluate_is_tested_anew(place: Path) -> None:
    before = artifacts.read_sealed(place / "runs/tiny/evaluation.json")["asked"]["data"]
    change(place / "images.npz")
    code, err = call("evaluate", "runs/tiny", "evaluate.baselines=[]")
    assert code == 0, err
    kept = artifacts.read_sealed(place / "runs/tiny/evaluation.json")
    assert kept["asked"]["data"] != before
    assert kept["rows"].keys() == {"chance", "tiny"}


# losses that are not numbers

TASKS = toy_tasks()
CONFIG = TrainConfig(Adam(schedule="cosine"), steps=6, way=3, shot=1, query=2, meta_batch=2, not_a_number="skip")


class Sick(ProtoNet):
    """A learner whose answers at some of the meta-steps are not numbers."""

    def __init__(self, at: set[int]) -> None:
        super().__init__(Conv4(filters=4))
        self.spoilt, self.calls = at, 0

    def predict(self, *arguments: Any) -> torch.Tensor:
        self.calls += 1
        return super().predict(*arguments) * (float("nan") if self.calls - 1 in self.spoilt else 1.0)


def trained(learner: ProtoNet, folder: Path | None = None, **changes: Any) -> Theta:
    built = learner.build(TASKS.spec, CONFIG.episode)
    return metatrain(built, TASKS, replace(CONFIG, **changes), RunContext(seed=1, folder=folder))


@pytest.mark.parametrize("outer", [Adam(), Adam(weight_decay=0.1)])
def test_fault_a_step_that_is_not_a_number_is_left_out_when_asked(tmp_path: Path, outer: Adam) -> None:
    """Of four steps the first and third are undone: what comes out are the weights after the other two alone."""

    class Only:
        """The toy tasks, those of steps 1 and 3 asked for at steps 0 and 1."""

        spec = TASKS.spec

        def sample(self, indices: np.ndarray, **options: Any) -> Any:
            return TASKS.sample(indices + (2 if indices[0] == 0 else 4), **options)

    found = trained(Sick({0, 2}), tmp_path, steps=4, outer=outer)
    config = replace(CONFIG, steps=2, outer=outer)
    learner = ProtoNet(Conv4(filters=4)).build(TASKS.spec, config.episode)
    first = metatrain(learner, Only(), config, RunContext(seed=1))
    assert same(found, first)
    lines = [json.loads(line) for line in (tmp_path / "metatrain.jsonl").read_text().splitlines()]
    assert [(line["step"], line.get("left out")) for line in lines] == [(0, 1.0), (1, None), (2, 1.0), (3, None)]


def test_fault_too_many_steps_that_are_not_numbers_stop() -> None:
    with pytest.raises(UserError, match="metatrain: loss is nan at step 11; try a smaller learning rate"):
        trained(Sick(set(range(2, 40))), steps=40)
    trained(Sick(set(range(2, 11))), steps=13)


def test_fault_a_loss_that_is_not_a_number_stops_by_default(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predict, calls = ProtoNet.predict, []

    def sick(self: ProtoNet, *arguments: Any) -> torch.Tensor:
        output = predict(self, *arguments)
        if output.device.type != "meta":  # where only its memory is counted
            calls.append(1)
        return output * (float("nan") if len(calls) == 3 else 1.0)

    monkeypatch.setattr(ProtoNet, "predict", sick)
    code, err = call(*METATRAIN)
    assert (code, "metatrain: loss is nan at step 2" in err, "Traceback" in err) == (2, True, False)
    assert not (place / "runs/new/manifest.json").exists()
    calls.clear()
    assert call(*METATRAIN, "name=other", "train.not_a_number=skip")[0] == 0
    assert '"left out": 1.0' in (place / "runs/other/metatrain.jsonl").read_text()
