"""What is measured: by name, each with its sides, and what it is to reach."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bench.driver import Allocator, Measurement, Side
from bench.machine import CONVOLUTION, convolution_flop
from bench.maml import PEERS, Case
from bench.rollouts import SIDES

ALLOCATORS: tuple[Allocator, Allocator] = ("default", "tuned")
PLAIN, TUNED = ALLOCATORS
LOWER = "umeta, queries in bfloat16"


def named(side: str, allocator: Allocator) -> str:
    return f"{side}, {allocator} allocator"


def meta_step(title: str, peers: tuple[str, ...] = ("learn2learn",), seconds: float = 60, **case: Any) -> Measurement:
    """MAML by umeta and by these, each with either allocator."""
    sides = {}
    for allocator in ALLOCATORS:
        sides[named("umeta", allocator)] = Side("bench.maml", "umeta", case, allocator)
        sides[named(LOWER, allocator)] = Side("bench.maml", "umeta", {"precision": "bfloat16", **case}, allocator)
        for peer in peers:
            sides[named(peer, allocator)] = Side("bench.maml", "peer", {"name": peer, **case}, allocator)
    return Measurement(f"MAML meta-step, {title}", sides, seconds=seconds, flop=Case(**case).flop)


def proto_step(title: str, **case: Any) -> Measurement:
    sides = {}
    for allocator in ALLOCATORS:
        for precision in ("float32", "bfloat16"):
            options = {"precision": precision, **case}
            sides[named(f"umeta, {precision}", allocator)] = Side("bench.protonet", "umeta", options, allocator)
        sides[named("plain PyTorch", allocator)] = Side("bench.protonet", "plain", case, allocator)
    first = {"precision": "bfloat16", "down": "pool_first", **case}
    sides[named("umeta, bfloat16, pool_first", TUNED)] = Side("bench.protonet", "umeta", first, TUNED)
    return Measurement(f"ProtoNet step, {title}", sides)


def clustered(n: int, d: int, k: int, iterations: int, sklearn: bool, **limits: Any) -> Measurement:
    size = {"n": n, "d": d, "k": k, "iterations": iterations}
    sides = {
        "umeta": Side("bench.clusters", "umeta", size, TUNED),
        "faiss": Side("bench.clusters", "faiss", size, TUNED),
    }
    for init in ("k-means++", "random") if sklearn else ():
        sides[f"scikit-learn, {init}"] = Side("bench.clusters", "sklearn", {**size, "init": init}, TUNED)
    title = f"k-means of {n:,} x {d}, k = {k}, {iterations} iterations, seeding included"
    return Measurement(title, sides, unit="clustering", **limits)


EPISODE = {"way": 5, "shot": 1, "query": 5}
OMNIGLOT = {"images": 24_000, "classes": 1200}
CONV = {**CONVOLUTION, "calls": 20}
DRAWN, DRAWN_BY_PEER = 4000, 400  # tasks of a call

MEASUREMENTS: dict[str, Measurement] = {
    "sgemm": Measurement(
        "matrix product, 2,048 x 2,048",
        {
            "float32": Side("bench.machine", "matmul"),
            "bfloat16": Side("bench.machine", "matmul", {"dtype": "bfloat16"}),
        },
        flop=2 * 2048**3,
        seconds=20,
    ),
    "convolution": Measurement(
        "grouped 3x3 convolution, 14 x 14 x 64, 8 tasks of 5 images",
        {"float32": Side("bench.machine", "convolution", CONV, TUNED)},
        flop=convolution_flop(**CONV),
        seconds=20,
    ),
    "agreement": Measurement(
        "meta-gradient against a plain loop, float64 where nothing else is said",
        {
            "5 steps": Side("bench.maml", "agreement"),
            "1 step": Side("bench.maml", "agreement", {"steps": 1}),
            "1 step, float32": Side("bench.maml", "agreement", {"steps": 1, "double": False, "tasks": 8}),
        },
        unit="comparison",
        rounds=1,
    ),
    "maml": meta_step(
        "5-way 1-shot, 5 inner steps, second order", tuple(name for name in PEERS if name != "JAX"), seconds=120
    ),
    "maml_jax": meta_step("5-way 1-shot, 5 inner steps, second order, beside JAX", ("JAX",), seconds=30),
    "maml_1_step": meta_step("5-way 1-shot, 1 inner step, second order", ("learn2learn", "JAX"), steps=1),
    "maml_first_order": meta_step("5-way 1-shot, 5 inner steps, first order", ("learn2learn", "JAX"), first_order=True),
    "maml_84": meta_step("84 x 84 x 3, 32 filters, 5 inner steps, second order", size=84, channels=3, filters=32),
    "maml_20_way": meta_step("20-way 1-shot, 5 inner steps, second order", way=20),
    "protonet": proto_step("60-way 5-shot, 5 queries a class", tasks=1, way=60, shot=5, query=5),
    "episodes": Measurement(
        "sampling tasks, 5-way 1-shot, 5 queries a class, meta-batches of 8",
        {
            "umeta": Side(
                "bench.episodes", "umeta", {**OMNIGLOT, **EPISODE, "partitions": 1, "tasks": DRAWN}, TUNED, DRAWN
            ),
            "umeta, 100 partitions": Side(
                "bench.episodes", "umeta", {**OMNIGLOT, **EPISODE, "partitions": 100, "tasks": DRAWN}, TUNED, DRAWN
            ),
            "learn2learn": Side(
                "bench.episodes",
                "learn2learn",
                {**OMNIGLOT, **EPISODE, "tasks": DRAWN_BY_PEER},
                TUNED,
                DRAWN_BY_PEER,
            ),
        },
        unit="task",
        seconds=30,
    ),
    "kmeans": clustered(60_000, 256, 500, 20, sklearn=True, rounds=5),
    "evaluation": Measurement(
        "evaluation, MAML, 5-way 1-shot, 50 steps (1,000 tasks take 1,000 times as long)",
        {
            name: Side("bench.serving", function, {"tasks": tasks, "steps": 50}, TUNED, tasks)
            for name, function, tasks in (
                ("umeta", "evaluation", 32),
                ("learn2learn", "evaluation_by_learn2learn", 8),
            )
        },
        unit="task",
        rounds=5,
    ),
    "predict": Measurement(
        "predict, from JPEG files of 500 x 375 to a CSV",
        {
            name: Side("bench.serving", function, {"count": 512}, TUNED, 512)
            for name, function in (
                ("umeta", "predict"),
                ("umeta, decoding in processes", "predict_by_processes"),
                ("plain loop", "predict_plainly"),
            )
        },
        unit="picture",
        rounds=5,
    ),
    "rollouts": Measurement(
        "HalfCheetah-v5",
        {name: Side("bench.rollouts", "side", {"name": name}, TUNED, count) for name, count in SIDES.items()},
        unit="environment step",
        rounds=7,
    ),
}


@dataclass(frozen=True)
class Curve:
    """How time and memory grow: a measurement for each value on the horizontal axis."""

    label: str
    points: Mapping[float, Measurement]


def growing(option: str, label: str, values: tuple[int, ...]) -> Curve:
    """Return a meta-step with one of its sizes changed, with the allocator tuned on both sides."""
    points = {}
    for value in values:
        case = {option: value}
        sides = {
            "umeta": Side("bench.maml", "umeta", case, TUNED),
            "learn2learn": Side("bench.maml", "peer", {"name": "learn2learn", **case}, TUNED),
        }
        points[value] = Measurement(f"MAML meta-step, {label}: {value}", sides, rounds=3, flop=Case(**case).flop)
    return Curve(f"{label} (MAML meta-step)", points)


def sampling(option: Literal["partitions", "images"], values: tuple[int, ...]) -> Curve:
    """Return a task drawn, and the index made before the first one."""
    points = {}
    for value in values:
        size = {"images": 24_000, "classes": 500, "partitions": 10, option: value}
        drawing = {**size, **EPISODE, "tasks": DRAWN, "pixels": 1}
        points[value] = Measurement(
            f"episodes from {size['partitions']} partitions of {size['images']:,} images",
            {
                "a task": Side("bench.episodes", "umeta", drawing, TUNED, DRAWN),
                "the index": Side("bench.episodes", "index", size, TUNED),
            },
            unit="call",
            rounds=3,
        )
    return Curve(f"{option} (episodes)", points)


MILLION = 1_000_000

CURVES: dict[str, Curve] = {
    "tasks": growing("tasks", "tasks in the meta-batch", (1, 2, 4, 8, 16, 32)),
    "ways": growing("way", "ways", (5, 10, 20)),
    "shots": growing("shot", "shots", (1, 5, 10)),
    "steps": growing("steps", "inner steps", (1, 2, 5, 10)),
    "pixels": growing("size", "image side, pixels", (28, 42, 84)),
    "partitions": sampling("partitions", (1, 10, 100)),
    "images": sampling("images", (10_000, 100_000, MILLION)),
    "vectors": Curve(
        "embeddings of length 64 (k-means, k = 500, 10 iterations)",
        {n: clustered(n, 64, 500, 10, sklearn=False, rounds=3) for n in (10_000, 100_000, MILLION)},
    ),
}


@dataclass(frozen=True)
class Goal:
    """What a ratio of two sides is to reach: how many times faster; with `memory`, what share of a process's memory."""

    text: str
    measurement: str
    side: str
    reference: str
    least: float
    aim: float
    memory: bool = False


def beside_learn2learn(text: str, measurement: str, *same: float) -> list[Goal]:
    """Against learn2learn as shipped, also with queries in bfloat16, and with `same` with the same allocator."""
    goals = []
    for side, least in (("umeta", 2.0), (LOWER, 2.4)):
        title = text + side.removeprefix("umeta")
        ours = named(side, TUNED)
        goals.append(Goal(f"{title}, learn2learn as shipped", measurement, ours, named("learn2learn", PLAIN), least, 3))
        if same:
            goals.append(Goal(f"{title}, same allocator", measurement, ours, named("learn2learn", TUNED), *same))
    return goals


GOALS: list[Goal] = [
    *beside_learn2learn("MAML 5w1s, 5 steps, second order", "maml", 1.7, 2.5),
    *beside_learn2learn("MAML, 1 step", "maml_1_step"),
    *beside_learn2learn("MAML, first order", "maml_first_order"),
    *beside_learn2learn("MAML, 84 x 84", "maml_84"),
    *beside_learn2learn("MAML, 20-way", "maml_20_way"),
    *(
        Goal(f"{text}, queries in bfloat16, JAX", measurement, named(LOWER, TUNED), named("JAX", PLAIN), 1, 2)
        for text, measurement in (
            ("MAML 5w1s, 5 steps, second order", "maml_jax"),
            ("MAML, 1 step", "maml_1_step"),
            ("MAML, first order", "maml_first_order"),
        )
    ),
    Goal(
        "MAML 5w1s, 5 steps, second order, default allocator on both sides",
        "maml",
        named("umeta", PLAIN),
        named("learn2learn", PLAIN),
        1,
        1.7,
    ),
    Goal(
        "MAML, peak memory of the process",
        "maml",
        named("umeta", TUNED),
        named("learn2learn", PLAIN),
        1.33,
        1,
        memory=True,
    ),
    Goal(
        "ProtoNet 60w5s5q, plain loop as shipped",
        "protonet",
        named("umeta, bfloat16", TUNED),
        named("plain PyTorch", PLAIN),
        8,
        10,
    ),
    Goal("episodes 5w1s5q, learn2learn TaskDataset", "episodes", "umeta", "learn2learn", 10, 15),
    Goal("k-means 60k x 256, faiss", "kmeans", "umeta", "faiss", 1, 2),
    Goal("evaluation, MAML with 50 steps, learn2learn", "evaluation", "umeta", "learn2learn", 1, 2),
    Goal("predict, from files to a CSV, plain loop", "predict", "umeta", "plain loop", 1, 2),
    Goal("HalfCheetah with a policy, raw physics", "rollouts", "umeta", "mujoco.batch, no policy", 0.8, 0.95),
    Goal(
        "HalfCheetah, meta-training, raw physics",
        "rollouts",
        "umeta, meta-training",
        "mujoco.batch, no policy",
        0.7,
        0.8,
    ),
]

SHOWN = {  # in the README: goals, by their texts, in a newcomer's words
    "MAML 5w1s, 5 steps, second order, queries in bfloat16, learn2learn as shipped": (
        "a meta-step of MAML, 8 tasks, 5-way 1-shot",
        "learn2learn",
    ),
    "ProtoNet 60w5s5q, plain loop as shipped": ("a step of ProtoNet, 60-way 5-shot", "plain PyTorch"),
    "episodes 5w1s5q, learn2learn TaskDataset": ("drawing a task, 5-way 1-shot", "learn2learn"),
    "evaluation, MAML with 50 steps, learn2learn": ("testing MAML on a task, 50 steps", "learn2learn"),
    "predict, from files to a CSV, plain loop": ("a picture from JPEG to its row in a CSV", "plain PyTorch"),
}
