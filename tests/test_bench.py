"""The benchmarks' own logic: whose turn it is, what becomes of the rounds, and that all sides do the same work."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from bench import __main__ as command
from bench import active, cards, gpu, pick, scale, serving, table
from bench.driver import Measurement, Side, measure, ratio
from bench.install import attempt
from bench.maml import Case, agreement, distance, gradients, loop_gradient
from bench.measurements import CURVES, GOALS, MEASUREMENTS, SHOWN
from bench.standin import Marks
from umeta.benchmarks.goals import goals
from umeta.deploy.adapted import AdaptedLearner, Format, MetaLearnt
from umeta.envs.gym import Gym
from umeta.envs.hopper import Hopper
from umeta.envs.nav2d import Nav2D
from umeta.metalearners.protonet import ProtoNet
from umeta.types import EpisodeSpec, TaskSpec


class Nine:
    """Features are nine times the pixels, of which there are two."""

    def build(self, item_shape):
        layer = torch.nn.Linear(2, 2, bias=False)
        layer.weight.data.copy_(9 * torch.eye(2))
        return torch.nn.Sequential(torch.nn.Flatten(), layer)


CHOICES = """
env: {name: gym, id: CartPole-v1}
proposer: diayn
metalearner: {name: maml, model: {name: mlp, hidden: [4]}}
train: {outer: adam}
evaluate: {benchmark: own}
"""
TINY = Case(tasks=1, way=2, query=1, steps=2, size=16, channels=2, filters=3)


class Scripted:
    """In place of a process: takes the seconds it is told, and writes down when it was asked."""

    asked: list[str]
    seconds: dict[str, list[float]]
    closed: int

    def __init__(self, side):
        self.name = side.function

    def read(self):
        return {"missing": "No module named 'peer'"} if self.name == "absent" else {"threads": 2}

    def round(self):
        Scripted.asked.append(self.name)
        seconds = Scripted.seconds[self.name].pop(0)
        return {
            "seconds": seconds,
            "cpu": 2 * seconds,
            "memory": 5_000_000,
            "process": 9_000_000,
            "found": {"inertia": 7.0},
        }

    def close(self):
        Scripted.closed += 1


def scripted(**limits):
    Scripted.asked, Scripted.closed = [], 0
    Scripted.seconds = {"a": [1, 2, 3, 4], "b": [20, 10, 60, 40]}
    sides = {name: Side("none", name, count=10 if name == "b" else 1) for name in ("a", "absent", "b")}
    return measure(Measurement("work", sides, rounds=4, flop=6.0, **limits), start=Scripted)


FACTS = {
    "date": "2026-01-31",
    "commit": "c0ffee",
    "hardware": "2 threads",
    "versions": {"torch": "3", "learn2learn": "0", "numpy": "2"},
}


def test_sides_take_turns_and_a_missing_one_is_left_out():
    measured = scripted()
    assert Scripted.asked == ["a", "b"] * 4
    assert measured["sides"]["absent"]["missing"] == "No module named 'peer'"
    assert measured["threads"] == [2]
    assert Scripted.closed == 3


def test_medians_are_of_a_unit_and_ratios_of_rounds():
    sides = scripted()["sides"]
    assert (sides["a"]["low"], sides["a"]["median"], sides["a"]["high"]) == (1.75, 2.5, 3.25)
    assert sides["b"]["median"] == 3.0  # of 2, 1, 6, 4: a call does 10
    assert sides["b"]["cpu"] == 6.0
    assert ratio(sides["a"], sides["b"])[0] == 1.5  # of 2, 0.5, 2 and 1


def test_rounds_end_with_the_time_but_not_before_there_are_three():
    scripted(seconds=0)
    assert Scripted.asked == ["a", "b"] * 3


def test_a_process_answers_round_by_round_and_says_what_it_lacks():
    sides = {
        "ours": Side("bench.machine", "matmul", {"n": 8}, "tuned"),
        "lost": Side("bench.maml", "package", {"name": "no_such_package"}),
    }
    measured = measure(Measurement("processes", sides, rounds=2))
    assert len(measured["sides"]["ours"]["rounds"]) == 2
    assert "no_such_package" in measured["sides"]["lost"]["missing"]


def leave_a_child():
    """Give a side that has started a process of its own, as a pool does."""
    subprocess.Popen(["sleep", "300"])
    return dict


@pytest.mark.timeout(60)  # of the 300 seconds that it would hold the end of the pipe
def test_what_a_process_has_started_is_not_waited_for():
    measured = measure(Measurement("a pool", {"ours": Side("tests.test_bench", "leave_a_child")}, rounds=1))
    assert len(measured["sides"]["ours"]["rounds"]) == 1


def test_tables_say_ratios_shares_and_what_is_missing(tmp_path):
    sides = scripted()["sides"]
    goal = replace(GOALS[0], text="goal", measurement="work", side="a", reference="b", least=1, aim=2)
    assert table.compare(goal, {"sides": sides}) == (["2.5 s", "3 s", "**1.50** (0.88 to 2.00)", "1", "2"], True)
    assert not table.compare(replace(goal, least=1.6), {"sides": sides})[1]
    assert table.compare(replace(goal, memory=True), {"sides": sides})[0][2:] == ["1.00", "at most 1", "2"]
    assert not table.compare(replace(goal, memory=True, least=0.9), {"sides": sides})[1]
    assert "No module named 'peer'" in table.compare(replace(goal, reference="absent"), {"sides": sides})[0][0]
    machine = {"title": "machine", "unit": "step", "flop": 48.0, "sides": {"float32": {**sides["a"], "median": 4.0}}}
    later = FACTS | {"date": "2026-02-01", "commit": "cafe"}
    result = {"measurements": {"sgemm": machine | {"facts": FACTS}, "work": scripted() | {"facts": later}}}
    assert table.roofline(result) == 12.0
    text = table.sides(result)
    assert "| a | 2.5 s | 1.75 s to 3.25 s | 20% (0 GFLOP/s) | 5 MB | inertia 7 |" in text
    assert "2026-01-31, 2026-02-01, 2 threads; commit c0ffee, cafe; torch 3; learn2learn 0; numpy 2." in text
    (tmp_path / "bench.json").write_text(json.dumps(result))
    page = "above\n<!-- bench: sides bench.json -->\nold\n<!-- end -->\nbelow"
    made = table.rewrite(page, tmp_path)
    assert made == page.replace("old", text)
    assert table.rewrite(made, tmp_path) == made
    assert [table.duration(s) for s in (2.0, 0.0123, 4.5e-5, 3e-9)] == ["2 s", "12.3 ms", "45 µs", "3 ns"]


def test_every_goal_is_of_sides_that_are_measured():
    for goal in GOALS:
        assert {goal.side, goal.reference} <= set(MEASUREMENTS[goal.measurement].sides)
    assert not set(CURVES) & set(MEASUREMENTS)


def test_the_readme_shows_five_ratios_the_machine_and_the_date(tmp_path):
    assert len(SHOWN) == 5
    shown = [goal for goal in GOALS if goal.text in SHOWN]
    a, b = (scripted()["sides"][name] for name in "ab")
    measured = {goal.measurement: {"sides": {goal.side: a, goal.reference: b}, "facts": FACTS} for goal in shown}
    (tmp_path / "bench.json").write_text(json.dumps({"measurements": measured}))
    made = table.rewrite("<!-- bench: ratios bench.json -->\n<!-- end -->", tmp_path)
    assert made.count("**1.50**") == 5
    assert "*2026-01-31, 2 threads; torch 3, learn2learn 0, as they are shipped.*" in made


def test_what_this_commit_has_measured_is_not_measured_again(tmp_path, monkeypatch, capsys):
    some = ["maml", "episodes"]
    monkeypatch.setattr(command, "RESULTS", tmp_path / "bench.json")
    monkeypatch.setattr(command, "PICTURE", tmp_path / "bench.png")
    monkeypatch.setattr(command, "MEASUREMENTS", {name: MEASUREMENTS[name] for name in some})
    monkeypatch.setattr(command, "CURVES", {"tasks": replace(CURVES["tasks"], points={1: MEASUREMENTS[some[0]]})})
    monkeypatch.setattr(command, "measure", lambda measurement: scripted())
    facts = dict(FACTS)
    monkeypatch.setattr(command, "find_facts", lambda: facts)

    def count_measurements(*names):
        capsys.readouterr()
        command.main(list(names))
        return capsys.readouterr().out.count(" ...\n")

    assert count_measurements(some[0]) == 1
    assert count_measurements() == 2
    assert count_measurements() == 0
    assert count_measurements("growth") == 1
    facts["commit"] = "cafe+"  # and changes that no commit has
    assert count_measurements(some[0]) == 1
    assert [count_measurements(), count_measurements()] == [3, 3]


def test_tables_name_the_goals_that_are_not_reached(monkeypatch):
    sides = scripted()["sides"]
    goal = replace(GOALS[0], text="goal", measurement="work", side="a", reference="b", least=1, aim=2)
    result = {"measurements": {"work": {"sides": sides, "facts": FACTS}}}
    monkeypatch.setattr(table, "GOALS", [goal, replace(goal, text="more", least=1.6)])
    assert table.goals(result).endswith("\n\n2026-01-31, 2 threads. Not reached: more.")
    monkeypatch.setattr(table, "GOALS", [goal])
    assert table.goals(result).endswith("\n\n2026-01-31, 2 threads. All are reached.")


def test_the_plot_of_minutes_is_shown_once_it_is_there(tmp_path):
    page = "<!-- bench: plot minutes.json -->\nNot measured.\n<!-- end -->"
    assert table.rewrite(page, tmp_path) == page
    row = {"date": "2026-01-31", "hardware": "2 threads"}
    (tmp_path / "minutes.json").write_text(json.dumps({"rows": [row]}))
    assert "](docs/minutes.png)\n\n*2026-01-31, 2 threads.*" in table.rewrite(page, tmp_path)


def test_the_plot_is_drawn(tmp_path):
    measured = scripted()
    points = {"1": measured, "10": measured}
    table.draw({"curves": {"tasks": {"label": "tasks", "points": points}}}, tmp_path / "bench.png")
    assert (tmp_path / "bench.png").stat().st_size > 1000


def test_all_sides_have_one_meta_gradient():
    """Those of the libraries that are installed: umeta always is."""
    distances = agreement(tasks=2, way=2, query=1, steps=2, size=16, channels=1, filters=4)()
    assert "umeta" in distances
    assert max(distances.values()) < 1e-9, distances


@pytest.mark.parametrize("first_order", [False, True])
def test_operations_are_those_that_torch_counts(first_order):
    case = replace(TINY, first_order=first_order)
    net = case.network()
    gradient = loop_gradient(case, net)
    with FlopCounterMode(display=False) as counter:
        gradient()
    counted = counter.get_flop_counts()["Global"]
    found = sum(n for op, n in counted.items() if "convolution" in str(op))
    needless = 0 if first_order else 4 * (2 * 9 * 2 * 3 * 16**2)  # one product of the first layer in each inner step
    assert found == case.flop + needless


@pytest.mark.parametrize("first_order", [False, True])
def test_the_functional_peer_has_the_same_meta_gradient(first_order):
    case = Case(tasks=2, way=2, query=1, steps=2, size=16, filters=4, double=True, first_order=first_order)
    support, query = case.batches()
    params = {name: value.detach() for name, value in case.network().named_parameters()}
    found = cards.functional_gradient(case)(params, support.x, support.y, query.x, query.y)
    truth = gradients(case, loop_gradient)
    assert distance({name: value.mean(0) for name, value in found.items()}, truth) < 1e-9


def test_the_cards_benchmark_runs_where_there_is_no_card(tmp_path):
    places = ["--out", tmp_path / "gpu.json", "--picture", tmp_path / "gpu.png"]
    command = [sys.executable, "-m", "bench.gpu", "--device", "cpu", "--quick", *places]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["tests"]["passed"], done.stdout
    lacking = {
        name: side["missing"]
        for m in result["measurements"].values()
        for name, side in m["sides"].items()
        if "missing" in side
    }
    assert all("CUDA graph" in name or "No module named" in why for name, why in lacking.items()), lacking
    assert (tmp_path / "gpu.png").stat().st_size > 1000
    page = "<!-- bench: gpu gpu.json -->\nNot measured.\n<!-- end -->"
    assert "| plain loop |" in table.rewrite(page, tmp_path)
    assert table.rewrite(page, tmp_path / "elsewhere") == page


def test_marks_of_options_can_be_done_without():
    marks = Marks("annotated_types")
    assert marks.Ge(3) == 3
    assert not hasattr(marks, "__file__")  # by which Python looks for source


def test_a_side_that_takes_too_long_is_left_out(monkeypatch):
    def made():
        raise TimeoutError("no time was left")

    sides = {"slow": made, "plain loop": lambda: lambda: None}
    measured = gpu.measure(cards.Measurement("work", sides), torch.device("cpu"), True, float("inf"))
    assert "no time was left" in measured["sides"]["slow"]["missing"]
    assert measured["sides"]["plain loop"]["rounds"]
    assert (
        "missing" in gpu.measure(cards.Measurement("work", sides), torch.device("cpu"), True, 0)["sides"]["plain loop"]
    )


def test_the_default_meta_step_is_46_gflop():
    assert Case().flop == pytest.approx(46e9, rel=0.01)


def test_a_library_that_does_not_install_is_named(capsys):
    assert not attempt("peer==1", ["false"])
    assert "peer==1" in capsys.readouterr().err
    assert attempt("peer==1", ["true"])


def test_data_is_the_same_for_every_side():
    support, query = TINY.batches()
    assert torch.equal(support.x, TINY.batches()[0].x)
    assert support.x.shape == (1, 2, 2, 16, 16)
    assert not torch.equal(support.x[0, 0], query.x[0, 0])


def test_a_goal_for_stable_baselines_pays_what_the_tasks_do():
    pytest.importorskip("stable_baselines3")
    from bench.stable_baselines import Goal, learn

    tasks = goals("nav2d", Nav2D(horizon=5), "test", 3, seed=0)
    goal = Goal(tasks, 2, copies=2)
    x, total = goal.reset(), np.zeros(2)
    for t in range(5):
        action = np.array([[1.0, -0.5], [-1.0, 0.2 * t]], np.float32)
        after = x + 0.05 * action
        x, reward, ended, infos = goal.step(action)
        expected = -np.linalg.norm(after - tasks.rewards.goals[2].numpy(), axis=1)
        assert reward == pytest.approx(expected, abs=1e-6)
        assert ended.tolist() == [t == 4] * 2
        assert infos[1]["terminal_observation"] == pytest.approx(after[1])
        total += expected
    assert x == pytest.approx(np.zeros((2, 2)))  # the next episode
    assert goal.returns == pytest.approx([total.mean()])
    for algorithm in ("ppo", "sac"):
        assert len(learn(algorithm, tasks, 0, episodes=4, steps=2)) == 3


def test_a_goal_for_stable_baselines_pays_its_own_reward_until_an_episode_ends():
    pytest.importorskip("stable_baselines3")
    from bench.stable_baselines import Goal

    goal = Goal(goals("own", Gym("CartPole-v1", horizon=100), "test", 1, seed=0), 0, copies=2)
    goal.reset()
    paid = np.zeros((100, 2))
    for t in range(100):
        _, paid[t], *_ = goal.step(np.array([[0.0, 1.0], [1.0, 0.0]], np.float32))  # falls at once
    lasted = paid.sum(0)
    assert (lasted > 5).all()
    assert (lasted < 20).all()
    assert (paid == (np.arange(100)[:, None] < lasted)).all()
    assert goal.returns == [pytest.approx(lasted.mean())]

    hopper = Goal(goals("hopper_velocity", Hopper(ends=True, horizon=100), "test", 1, seed=0), 0, copies=2)
    hopper.reset()
    for _ in range(100):
        over = hopper.simulation.over.copy()
        _, reward, *_ = hopper.step(np.ones((2, 3), np.float32))
        assert ((reward == 0) == over).all()
    assert over.any()


def test_stable_baselines_keeps_goals_of_both_algorithms_in_one_file(tmp_path, monkeypatch, capsys):
    pytest.importorskip("stable_baselines3")
    from bench import stable_baselines

    asked = []
    monkeypatch.setattr(stable_baselines, "learn", lambda *case: asked.append((case[0], case[2])) or [1.0, 2.0])
    few = ["evaluate.goals=2", "evaluate.steps=1", "--record", str(tmp_path / "found.json")]
    for algorithm in ("sac", "ppo", "sac"):
        monkeypatch.setattr(sys, "argv", ["", "nav2d_diayn", *few, "--algorithm", algorithm])
        stable_baselines.main()
    assert asked == [("sac", 0), ("sac", 1), ("ppo", 0), ("ppo", 1)]  # none twice
    found = json.loads((tmp_path / "found.json").read_text())
    assert [row["title"][:3] for row in found] == ["PPO", "SAC"]
    assert [row["adaptation"][row["title"]]["x"] for row in found] == [[0, 2000]] * 2
    (tmp_path / "choices.yaml").write_text(CHOICES)
    monkeypatch.setattr(sys, "argv", ["", str(tmp_path / "choices.yaml"), *few, "--algorithm", "sac"])
    with pytest.raises(SystemExit):
        stable_baselines.main()
    assert "those of CartPole-v1 are choices; use --algorithm ppo" in capsys.readouterr().err


def test_evaluations_do_the_same_work():
    case = {"way": 2, "query": 2, "size": 16, "filters": 4}
    found = serving.evaluation(tasks=9, steps=3, **case)()
    assert 0 <= found["accuracy"] <= 1
    assert serving.make_tasks(Case(**case)).items.shape == (1000, 1, 16, 16)


def test_all_sides_predict_all_pictures():
    assert [make(3)() for make in (serving.predict, serving.predict_plainly)] == [{"pictures": 3}] * 2


def test_many_pictures_are_taken_the_whole_way(tmp_path, monkeypatch):
    monkeypatch.setenv("UMETA_CACHE", "")  # which is set anew
    places = ["--folder", str(tmp_path / "many"), "--out", str(tmp_path / "scale.json")]
    result = scale.main(["--images", "120", *places])
    assert [row["what"].split()[0].strip(",") for row in result["rows"]][:3] == ["survey", "decoding", "decoding"]
    assert all(row["seconds"] > 0 and row["memory"] > 0 for row in result["rows"])
    assert "| decoding, tars |" in table.scale(result)


def test_tables_of_what_a_pre_trained_network_is_worth_say_what_is_kept(tmp_path):
    rows = {"as it is": [70.0, 1.0], "pre-trained": [72.0, 1.0], "learnt": [60.0, 1.0], "both": [75.5, 0.9]}
    result = {"grocery": {"weight": 0.25, "accuracies": {"5-way 1-shot": rows}}}
    line = "| groceries, 5-way 1-shot | 70.0 ± 1.0 | 72.0 ± 1.0 | 60.0 ± 1.0 | 75.5 ± 0.9 | +3.5 | 0.25 |"
    assert table.joint(result).splitlines()[-1] == line
    result["grocery"]["weight"] = None  # of the learner, against nothing of the other
    assert "the learner alone" in table.joint(result)
    waits = {"pictures": 1000, "seconds": {"first page": 1.234}, "date": "2026-01-31", "hardware": "2 threads"}
    assert "| first page | 1.23 |" in table.teach(waits)


def test_choosing_is_worth_something_where_there_are_groups_and_in_turn_asks_for_each_once():
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(6), 20)
    vectors = np.linalg.qr(random.normal(size=(12, 12)))[0][labels] + 0.1 * random.normal(size=(120, 12))
    found = pick.measure(vectors.astype(np.float32), labels, 15, 3, (1, 2))
    for judged in found.values():
        assert judged["gain"]["mean"] > judged["gain"]["interval"]
        assert judged["chosen"]["mean"] > judged["at random"]["mean"]
    assert "| 1 |" not in (text := table.pick({"cifar_fs": {"labels a class": found}}))
    assert text.splitlines()[0] == "| labels a class | chosen | in turn | at random | gain |"
    chosen = pick.choose_in_turn(vectors, labels, [6, 12, 30], 0)
    assert len(set(chosen)) == len(chosen) == 30


def test_the_next_label_is_where_the_answers_are_least_sure(monkeypatch):
    """Two classes that are near each other, and two that are not: a learner doubts the former alone."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 20)
    centres = np.array([[0, 0], [0.25, 0], [0.9, 0.1], [0.1, 0.9]])
    pixels = (255 * (centres[labels] + 0.03 * random.normal(size=(80, 2))).clip(0, 1)).astype(np.uint8)[:, None, None]
    learner = ProtoNet(Nine(), normalisation="running").build(TaskSpec((1, 1, 2)), EpisodeSpec(4, 1, 1))
    source = MetaLearnt("", {}, learner, learner.init(0), Format((1, 1, 2)), False)
    pool, labelled = pixels[::2], np.arange(4) * 10
    adapted = AdaptedLearner.adapt(source, pool[labelled], labels[::2][labelled])
    state = active.State(adapted, pool, source.features(pool).numpy(), labelled, random)
    for choice in (active.choose_by_entropy, active.choose_as_pick_by_entropy):
        chosen = choice(state)
        assert chosen not in labelled
        assert labels[::2][chosen] in (0, 1)
    monkeypatch.setattr(active, "WAY", 4)
    found = active.measure(source, pixels, labels, 3)
    assert list(found) == ["1", "1.5", "2"]
    start = found["1"]
    assert len({start[name]["mean"] for name in active.CHOICES}) == 1  # nothing was chosen yet
    assert start["gain"]["mean"] == 0
    assert "| 1 |" not in table.pick({"mine": {"labels a class": found}})
    gain = found["2"]["entropy"]["mean"] - found["2"]["at random"]["mean"]
    assert found["2"]["gain"]["mean"] == pytest.approx(gain)
