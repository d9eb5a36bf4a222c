"""The outer loop: deterministic, resumable bit for bit, and clear when it fails."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from umeta.augment.photo import Photo
from umeta.config.images import TrainConfig
from umeta.errors import Interrupted, UserError
from umeta.metalearners.maml import MAML
from umeta.metalearners.protonet import ProtoNet
from umeta.models.conv4 import Conv4
from umeta.models.functional import MOMENTUM
from umeta.outer.adam import Adam
from umeta.runtime.checkpoints import Checkpoints
from umeta.runtime.loop import RunContext
from umeta.runtime.progress import Progress, format_duration, postpone_interrupt
from umeta.tasks.instances import Augmented
from umeta.tasks.partition import Episodes
from umeta.testing import same, through_file, toy_images, toy_tasks
from umeta.train import BatchProblem, check_fits, is_small, metatrain
from umeta.types import EpisodeSpec, MetaLearner, TaskSpec, Theta

CONFIG = TrainConfig(Adam(schedule="cosine"), steps=13, way=3, shot=1, query=2, meta_batch=2, task_chunk=2)
TASKS = toy_tasks()


def learner() -> ProtoNet:
    return ProtoNet(Conv4(filters=4)).build(TASKS.spec, CONFIG.episode)


def maml(**options: Any) -> MAML:
    return MAML(Conv4(filters=4), steps=2, **options).build(TASKS.spec, CONFIG.episode)


class Disturbed:
    """The toy tasks; before giving those of one meta-step, something happens."""

    def __init__(self, step: int, event: Callable[[], object]) -> None:
        self.first, self.event, self.spec = step * CONFIG.meta_batch, event, TASKS.spec

    def sample(self, indices: np.ndarray, *, episode: EpisodeSpec, seed: int) -> Episodes:
        if int(indices[0]) == self.first:
            self.event()
        return TASKS.sample(indices, episode=episode, seed=seed)


@dataclass(frozen=True)
class ChannelsLast(Conv4):
    """A network whose weights do not lie in memory as a file gives them."""

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        return super().build(item_shape).to(memory_format=torch.channels_last)


def crash() -> None:
    raise RuntimeError("the power went")


def context(folder: Path, resume: bool = False, every: float = 0.0) -> RunContext:
    return RunContext(seed=1, folder=folder, resume=resume, checkpoint_seconds=every)


def steps_kept(folder: Path) -> list[int]:
    return sorted(int(path.name[5:]) for path in (folder / "checkpoints" / "metatrain").iterdir())


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Theta, bytes]:
    """An uninterrupted run: theta and metrics."""
    folder = tmp_path_factory.mktemp("whole")
    theta = metatrain(learner(), TASKS, CONFIG, context(folder, every=60))
    return theta, (folder / "metatrain.jsonl").read_bytes()


def test_same_seed_same_run(whole: tuple[Theta, bytes]) -> None:
    theta, _ = whole
    assert same(theta, metatrain(learner(), TASKS, CONFIG, RunContext(seed=1)))
    assert not same(theta, metatrain(learner(), TASKS, CONFIG, RunContext(seed=2)))
    assert not any(p.requires_grad for p in theta.params.values())
    assert theta.running


def test_metrics_of_every_step_are_kept_and_of_a_long_loop_every_tenth_and_the_last(
    tmp_path: Path, whole: tuple[Theta, bytes]
) -> None:
    lines = [json.loads(line) for line in whole[1].splitlines()]
    assert [line["step"] for line in lines] == list(range(13))
    assert all({"loss", "accuracy"} < set(line) for line in lines)
    RunContext(folder=tmp_path).loop("long", 1003, lambda i: {"loss": float(i)}, dict, lambda state: None)
    lines = [json.loads(line) for line in (tmp_path / "long.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(0, 1001, 10), 1002]


@pytest.mark.parametrize("step", [0, 4, 11])
def test_a_crash_is_resumed_bit_for_bit(step: int, tmp_path: Path, whole: tuple[Theta, bytes]) -> None:
    with pytest.raises(RuntimeError, match="the power went"):
        metatrain(learner(), Disturbed(step, crash), CONFIG, context(tmp_path))
    theta = metatrain(learner(), TASKS, CONFIG, context(tmp_path, resume=True))
    assert same(theta, whole[0])
    assert (tmp_path / "metatrain.jsonl").read_bytes() == whole[1]


def test_steps_after_the_last_checkpoint_are_run_again(tmp_path: Path, whole: tuple[Theta, bytes]) -> None:
    """Metrics of step 10 are there when it crashes at 11, but the checkpoint is of step 5."""
    with pytest.raises(Interrupted):
        metatrain(learner(), Disturbed(5, press), CONFIG, context(tmp_path, every=1e9))
    with pytest.raises(RuntimeError):
        metatrain(learner(), Disturbed(11, crash), CONFIG, context(tmp_path, resume=True, every=1e9))
    with open(tmp_path / "metatrain.jsonl", "a") as file:
        file.write('{"step": 11, "lo')  # cut short by a kill
    seen: list[int] = []
    theta = metatrain(
        learner(), Disturbed(6, lambda: seen.append(6)), CONFIG, context(tmp_path, resume=True, every=1e9)
    )
    assert seen == [6]
    assert same(theta, whole[0])
    assert (tmp_path / "metatrain.jsonl").read_bytes() == whole[1]


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("kind", ["protonet", "maml"])
def test_ctrl_c_finishes_the_step_and_is_resumed_bit_for_bit(kind: str, tmp_path: Path) -> None:
    make = {"protonet": learner, "maml": lambda: maml(normalisation="running")}[kind]
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match=f"stopped after step 6 of 13, saved in {tmp_path}; .*--resume"):
        metatrain(make(), Disturbed(5, press), CONFIG, context(tmp_path, every=1e9))
    assert signal.getsignal(signal.SIGINT) is handler
    assert steps_kept(tmp_path) == [6]
    resumed = metatrain(make(), TASKS, CONFIG, context(tmp_path, resume=True))
    assert same(resumed, metatrain(make(), TASKS, CONFIG, RunContext(seed=1)))


def test_ctrl_c_without_a_folder_does_not_speak_of_saving() -> None:
    with pytest.raises(Interrupted, match=r"stopped after step 6 of 13$"):
        metatrain(learner(), Disturbed(5, press), CONFIG, RunContext())


def test_the_second_ctrl_c_stops_at_once() -> None:
    seen: list[bool] = []

    def work() -> None:
        with postpone_interrupt() as pressed:
            press()
            seen.append(pressed.is_set())
            press()
            seen.append(False)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == [True]


def test_long_work_may_run_in_another_thread() -> None:
    found: list[bool] = []

    def work() -> None:
        with postpone_interrupt() as pressed:
            found.append(pressed.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [False]


def test_two_checkpoints_are_kept(tmp_path: Path) -> None:
    metatrain(learner(), TASKS, CONFIG, context(tmp_path))
    assert steps_kept(tmp_path) == [12, 13]


@pytest.mark.parametrize("damage", ["cut", "flip", "meta", "missing"])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    damage: str, tmp_path: Path, whole: tuple[Theta, bytes]
) -> None:
    with pytest.raises(RuntimeError):
        metatrain(learner(), Disturbed(9, crash), CONFIG, context(tmp_path))
    assert steps_kept(tmp_path) == [8, 9]
    newest = tmp_path / "checkpoints" / "metatrain" / "step-9"
    state = newest / "state.safetensors"
    if damage == "cut":
        state.write_bytes(state.read_bytes()[:-7])
    elif damage == "flip":
        content = bytearray(state.read_bytes())
        content[-1] ^= 1
        state.write_bytes(bytes(content))
    elif damage == "meta":
        (newest / "meta.json").write_text("[]")
    else:
        state.unlink()
    again: list[int] = []
    with pytest.raises(Interrupted):
        metatrain(
            learner(),
            Disturbed(8, lambda: (again.append(8), press())),
            CONFIG,
            context(tmp_path, resume=True, every=1e9),
        )
    assert again == [8]
    assert Checkpoints(tmp_path, "metatrain").newest()[1] == 9
    assert same(metatrain(learner(), TASKS, CONFIG, context(tmp_path, resume=True)), whole[0])


def test_damaged_checkpoints_do_not_push_good_ones_out(tmp_path: Path) -> None:
    log = Checkpoints(tmp_path, "work")
    for step in (10, 20, 30):
        log.write({"x": torch.tensor(step)}, step, 0.0)
    (log.folder / "step-30" / "state.safetensors").write_bytes(b"")
    assert log.newest()[1] == 20
    log.truncate(20)
    for step in (21, 22):
        log.write({"x": torch.tensor(step)}, step, 1.5)
    (log.folder / "step-22" / "state.safetensors").write_bytes(b"")
    state, step, seconds = log.newest()
    assert (state["x"].item(), step, seconds) == (21, 21, 1.5)


def test_without_resume_a_run_begins_anew(tmp_path: Path, whole: tuple[Theta, bytes]) -> None:
    metatrain(learner(), TASKS, replace(CONFIG, steps=4), context(tmp_path))
    theta = metatrain(learner(), TASKS, CONFIG, context(tmp_path))
    assert same(theta, whole[0])
    assert (tmp_path / "metatrain.jsonl").read_bytes() == whole[1]


def test_a_finished_run_resumed_does_nothing(tmp_path: Path, whole: tuple[Theta, bytes]) -> None:
    metatrain(learner(), TASKS, CONFIG, context(tmp_path))
    none = no_tasks()
    assert same(metatrain(learner(), none, CONFIG, context(tmp_path, resume=True)), whole[0])
    assert (tmp_path / "metatrain.jsonl").read_bytes() == whole[1]


def no_tasks() -> Disturbed:
    tasks = Disturbed(0, crash)
    tasks.sample = lambda *_, **__: crash()
    return tasks


def test_a_loss_that_is_not_a_number_stops_with_the_last_good_checkpoint(tmp_path: Path) -> None:
    class Sick(ProtoNet):
        calls = 0

        def predict(self, *args: object) -> torch.Tensor:
            self.calls += 1
            return super().predict(*args) * (float("nan") if self.calls == 5 else 1.0)

    with pytest.raises(UserError, match="metatrain: loss is nan at step 4; the last good checkpoint is at step 4; try"):
        metatrain(Sick(Conv4(filters=4)).build(TASKS.spec, CONFIG.episode), TASKS, CONFIG, context(tmp_path))
    with pytest.raises(UserError, match="loss is nan at step 4; try a smaller learning rate"):
        metatrain(Sick(Conv4(filters=4)).build(TASKS.spec, CONFIG.episode), TASKS, CONFIG, RunContext())


def test_weights_that_break_are_not_kept_as_a_good_checkpoint(tmp_path: Path) -> None:
    """A finite loss with a gradient that is not: the step that would spoil theta is the one that stops."""

    class Steep(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx, grad: torch.Tensor) -> torch.Tensor:
            return grad * float("inf")

    class Sick(ProtoNet):
        calls = 0

        def predict(self, *args: object) -> torch.Tensor:
            self.calls += 1
            logits = super().predict(*args)
            return Steep.apply(logits) if self.calls == 5 else logits

    with pytest.raises(UserError, match=r"gradient is .* at step 4; the last good checkpoint is at step 4"):
        metatrain(Sick(Conv4(filters=4)).build(TASKS.spec, CONFIG.episode), TASKS, CONFIG, context(tmp_path))
    state, _, _ = Checkpoints(tmp_path, "metatrain").newest()
    assert all(value.isfinite().all() for value in state.values())


@pytest.mark.parametrize(
    "make",
    [
        learner,
        lambda: ProtoNet(Conv4(filters=4), normalisation="support").build(TASKS.spec, CONFIG.episode),
        maml,
        lambda: maml(normalisation="running"),
    ],
    ids=["protonet-running", "protonet-support", "maml-support", "maml-running"],
)
def test_task_chunk_changes_nothing_but_rounding(make: Callable[[], MetaLearner]) -> None:
    found = []
    for chunk in (1, 2, 4):
        config = replace(CONFIG, steps=1, meta_batch=4, task_chunk=chunk)
        found.append(metatrain(make(), TASKS, config, RunContext(seed=1)).running)
    for other in found[1:]:
        for name, value in found[0].items():
            torch.testing.assert_close(other[name], value, atol=1e-5, rtol=1e-4)
    # The gradient itself, in float64: umeta.testing.check_metalearner, run on every learner in test_contracts.py.


def test_a_problem_may_be_asked_more_than_once() -> None:
    one = learner()
    first = one.init(0)
    theta = Theta({name: p.requires_grad_() for name, p in first.params.items()})
    batch = TASKS.sample(np.arange(3), episode=CONFIG.episode, seed=0)
    problem = BatchProblem(one, theta, TASKS.spec, [batch.support()], batch.query(), 2)
    answer, stats = problem.loss_and_grad(), problem.stats
    assert same(answer, problem.loss_and_grad())
    assert same(stats, problem.stats)


def test_running_statistics_are_a_running_average_over_meta_steps() -> None:
    """Of each support's mean and variance, averaged over the tasks; gradients too small to move the weights."""
    config = replace(CONFIG, outer=Adam(lr=1e-12), steps=3, meta_batch=2)
    one = learner()
    theta = metatrain(one, TASKS, config, RunContext(seed=1))
    expected = None
    for step in range(3):
        support = TASKS.sample(np.arange(2 * step, 2 * step + 2), episode=config.episode, seed=1).support()
        z = [torch.nn.functional.conv2d(task, theta.params["0.weight"], padding=1) for task in support.x]
        new = torch.stack([task.mean((0, 2, 3)) for task in z]).mean(0)
        expected = new if expected is None else (1 - MOMENTUM) * expected + MOMENTUM * new
    torch.testing.assert_close(theta.running["1.mean"], expected)


def test_unused_parameters_are_no_reason_to_fail() -> None:
    class Spare(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.spare, self.used = torch.nn.Linear(2, 2), torch.nn.Linear(256, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x.flatten(1))

    class Model:
        def build(self, item_shape: tuple[int, ...]) -> torch.nn.Module:
            return Spare()

    for make in (ProtoNet, MAML):
        learner = make(Model()).build(TASKS.spec, CONFIG.episode)
        theta = metatrain(learner, TASKS, replace(CONFIG, steps=2), RunContext())
        assert theta.params["spare.weight"].isfinite().all()


def test_too_few_classes_are_said_at_once() -> None:
    with pytest.raises(UserError, match="9-way tasks"):
        metatrain(learner(), TASKS, replace(CONFIG, way=9), RunContext())


@pytest.mark.parametrize("make", [maml, learner])
def test_views_of_a_size_that_the_learner_cannot_take_are_named(make: Callable[[], MetaLearner]) -> None:
    """MAML's head is for the features of whole pictures; a view of 8 pixels is too small to halve four times."""
    side = {"maml": 32, "learner": 8}[make.__name__]
    tasks = Augmented(TASKS, Photo(side=side))
    with pytest.raises(UserError, match=rf"^proposer.augment.side: .*cannot take views of \(1, {side}, {side}\)"):
        metatrain(make(), tasks, CONFIG)


def test_views_of_another_size_train_a_learner_that_compares_features() -> None:
    theta = metatrain(learner(), Augmented(TASKS, Photo(side=24)), CONFIG)
    assert not all(torch.equal(theta.params[name], value) for name, value in learner().init(0).params.items())


def test_the_learner_and_the_config_can_be_used_again() -> None:
    images = toy_images().pixels.copy()
    metatrain(learner(), TASKS, CONFIG, RunContext())
    assert CONFIG.outer == Adam(schedule="cosine")
    assert not hasattr(CONFIG.outer, "_params")
    assert np.array_equal(TASKS.items.numpy(), images)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (59.4, "59s"), (59.6, "1m00s"), (75, "1m15s"), (3600, "1h00m"), (7384, "2h03m")]
)
def test_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_progress_tells_steps_time_left_and_metrics(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("umeta.runtime.loop.time.monotonic", lambda: now[0])
    bar = Progress("work", 100, first=40)
    for done, clock in ((41, 1.0), (45, 20.0), (46, 21.0), (100, 22.0)):
        now[0] = clock
        bar.update(done, {"loss": 0.123456})
    bar.close()
    shown = capsys.readouterr()
    assert shown.out == ""
    # 5 steps took 20 s, so the 55 left take 220 s; a line every ten seconds, and the last
    assert shown.err.splitlines() == ["work  45/100  3m40s left  loss 0.1235", "work  100/100  0s left  loss 0.1235"]


def test_progress_redraws_its_line_on_a_terminal(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    bar = Progress("work", 2)
    bar.update(2)
    bar.close()
    assert capsys.readouterr().err == "\r\033[Kwork  2/2  0s left  \n"


def test_no_progress_is_shown_unless_asked_for(capsys: pytest.CaptureFixture) -> None:
    metatrain(learner(), TASKS, replace(CONFIG, steps=1), RunContext())
    RunContext().note("quiet")
    assert capsys.readouterr() == ("", "")
    RunContext(progress=True).note("loud")
    assert capsys.readouterr().err == "loud\n"


def test_weights_have_the_memory_layout_of_those_read_from_a_file() -> None:
    """Which kernel runs, and so how it rounds, depends on the layout."""
    learner = ProtoNet(ChannelsLast(filters=4)).build(TASKS.spec, CONFIG.episode)
    theta = metatrain(learner, TASKS, replace(CONFIG, steps=1))
    loaded = through_file(theta.params)
    assert {n: p.stride() for n, p in theta.params.items()} == {n: p.stride() for n, p in loaded.items()}


# a limit in minutes


@dataclass
class Slow:
    """The toy tasks; those of meta-step i take `seconds(i)`, by a clock that nothing else moves."""

    seconds: Callable[[int], float]
    now: float = 0.0
    spec = TASKS.spec

    def sample(self, indices: np.ndarray, *, episode: EpisodeSpec, seed: int) -> Episodes:
        self.now += self.seconds(int(indices[0]) // CONFIG.meta_batch)
        return TASKS.sample(indices, episode=episode, seed=seed)


@pytest.fixture
def progress(monkeypatch) -> list[float]:
    """How far the loop was at each outer step, as the schedule of the step sizes saw it."""
    seen: list[float] = []
    step = Adam.step
    monkeypatch.setattr(Adam, "step", lambda self, problem, over: seen.append(over) or step(self, problem, over))
    return seen


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        (lambda i: 2.0, 13),  # all of them, in 26 seconds
        (lambda i: 8.0, 7),
        (lambda i: 2.0 if i < 5 else 12.0, 9),  # the machine gets busy
        (lambda i: 20.0 if i < 1 else 4.0, 11),  # and is free again
    ],
)
def test_meta_training_keeps_to_its_minutes_at_the_pace_it_has(tmp_path, monkeypatch, progress, seconds, taken):
    tasks = Slow(seconds)
    monkeypatch.setattr("time.monotonic", lambda: tasks.now)
    metatrain(learner(), tasks, replace(CONFIG, minutes=1), context(tmp_path))
    assert len(progress) == taken
    assert tasks.now <= 60
    assert progress == sorted(progress)
    assert progress[-1] > 0.9  # the schedule has come to its end, whatever the pace was
    assert max(steps_kept(tmp_path)) == taken


def test_a_limit_counts_what_had_passed_before_a_resume(tmp_path, monkeypatch, progress):
    tasks = Slow(lambda i: 8.0 if i != 4 else crash())
    monkeypatch.setattr("time.monotonic", lambda: tasks.now)
    with pytest.raises(RuntimeError):
        metatrain(learner(), tasks, replace(CONFIG, minutes=1), context(tmp_path))
    tasks.seconds, tasks.now = lambda i: 8.0, 1000.0
    metatrain(learner(), tasks, replace(CONFIG, minutes=1), context(tmp_path, resume=True))
    assert len(progress) == 7
    assert progress == sorted(progress)


# stored parameters


def test_a_network_is_small_if_it_has_at_most_so_many_weights_and_no_larger_one_is_drawn(monkeypatch):
    """Four layers of 3 * 3 weights for each pair of channels, and two of the norm for each filter."""
    learner, shape = ProtoNet(Conv4([10, 10, 20, 20])), (3, 16, 16)
    weights = 9 * (3 * 10 + 10 * 10 + 10 * 20 + 20 * 20) + 2 * 60
    assert is_small(learner, shape, weights)
    assert not is_small(learner, shape, weights - 1)
    drawn = []
    monkeypatch.setattr(nn.Conv2d, "reset_parameters", lambda layer: drawn.append(layer.out_channels))
    assert not is_small(ProtoNet(Conv4([10, 3000, 3000, 10])), shape, 10**6)
    assert drawn == [10, 3000]


def test_a_small_stored_learner_fits_without_torch_importing_its_tracer():
    """It takes a second, and a network on torch's meta device does it at its first pass."""
    code = (
        "import sys\nfrom umeta.metalearners.protonet import ProtoNet\nfrom umeta.models.conv4 import Conv4\n"
        "from umeta.models.described import Described\nfrom umeta.train import check_fits\n"
        "from umeta.types import EpisodeSpec, TaskSpec\n"
        "learner = ProtoNet(Described(Conv4(4), fitted=True), normalisation='running')\n"
        "spec, episode = TaskSpec((3, 16, 16)), EpisodeSpec(2, 1, 1)\n"
        "params = learner.build(spec, episode).init(0).params\n"
        "before = 'torch._dynamo' in sys.modules\ncheck_fits(params, learner, spec, episode, 'stored')\n"
        "assert ('torch._dynamo' in sys.modules) == before\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("wrong", ["missing", "shape", "type"])
def test_stored_weights_that_do_not_fit_are_named(wrong: str) -> None:
    learner, spec, episode = ProtoNet(Conv4(filters=4)), TaskSpec((1, 16, 16)), EpisodeSpec(3, 1, 2)
    params = dict(learner.build(spec, episode).init(0).params)
    check_fits(params, learner, spec, episode, "here")
    name, value = next(iter(params.items()))
    changed = {"shape": value[None], "type": value.double()}
    params = {n: v for n, v in params.items() if n != name} | ({name: changed[wrong]} if wrong in changed else {})
    with pytest.raises(UserError, match=f"here: weights that do not fit its configuration: '{name}' is"):
        check_fits(params, learner, spec, episode, "here")
