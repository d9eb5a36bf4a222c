"""`make gpu`: tests and speed on a graphics card, in eight minutes at most, without a network.

    python -m bench.gpu                          # needs PyTorch with CUDA, numpy, safetensors, yaml, pytest
    python -m bench.gpu --device cpu --quick     # shows that this file runs; its numbers say nothing

First the tests marked `gpu`, with the CPU's float64 as the truth; then what the card can do, and each side of each
measurement in turn, A B C A B C ... What a side lacks, or stumbles over, is written in its row. It writes
results/gpu.json, docs/gpu.png and the table that docs/speed.md shows.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch

import bench.standin  # noqa: F401 - before all that needs it
from bench import cards
from bench.cards import PLAIN
from bench.driver import duration, ratio, size, summary
from umeta.report.write import format_markdown
from umeta.runtime import artifacts

ROOT = Path(__file__).parent.parent
SECONDS = 8 * 60  # all of it
TESTS = 150  # seconds that the tests may take
ROUND = 0.2  # seconds of a side's turn
ROUNDS = 7


def main(arguments: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "gpu.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "gpu.png")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("bench: there is no GPU that PyTorch can use here; see it run with --device cpu --quick")
    end = time.monotonic() + SECONDS
    signal.signal(signal.SIGALRM, lambda number, frame: out_of_time())
    signal.alarm(SECONDS)  # compilers may take as long as they like
    result = {
        "date": date.today().isoformat(),
        "card": torch.cuda.get_device_name() if device.type == "cuda" else "the CPU, which says nothing",
        "versions": {"torch": torch.__version__, "cuda": torch.version.cuda, "jax": cards.version_of("jax")},
        "tests": run_tests(device, asked.quick),
        "measurements": {},
    }
    with contextlib.suppress(TimeoutError):
        for name, measurement in cards.list_measurements(device, asked.quick).items():
            print(f"{measurement.title} ...", flush=True)
            result["measurements"][name] = measure(measurement, device, asked.quick, end)
            artifacts.write_json(asked.out, result)
    signal.alarm(0)
    print(f"\n{table(result)}")
    draw(result, asked.picture)
    return result


def out_of_time() -> None:
    raise TimeoutError("no time was left")


def run_tests(device: torch.device, quick: bool) -> dict[str, Any]:
    """Run the tests that need a card: how they ended, and the end of what they said."""
    some = ["-k", "protonet or pixels"] if quick else []
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "bench.standin",
        "-m",
        "gpu",
        "tests/gpu/test_card.py",
        *some,
    ]
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    found = {**os.environ, "UMETA_TEST_DEVICE": str(device), "PYTHONPATH": path}
    try:
        done = subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True, timeout=TESTS)
        said, passed = done.stdout + done.stderr, done.returncode == 0
    except subprocess.TimeoutExpired as error:
        said, passed = f"{error}", False
    print(said[-3000:], flush=True)
    return {"passed": passed, "said": said[-6000:]}


def measure(measurement: cards.Measurement, device: torch.device, quick: bool, end: float) -> dict[str, Any]:
    """Let the sides take turns; one that fails, or for which no time is left, says why."""
    runs: dict[str, Callable[[], Any]] = {}
    missing: dict[str, str] = {}
    for name, side in measurement.sides.items():
        try:
            if time.monotonic() > end:
                out_of_time()
            runs[name] = side()
            runs[name]()  # a warm-up, in which kernels are chosen and compiled
        except Exception as error:  # whatever another library may raise
            runs.pop(name, None)
            missing[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in runs}
    with contextlib.suppress(TimeoutError):
        for _ in range(1 if quick else ROUNDS):
            for name, run in runs.items():
                rounds[name].append(take_turn(run, device, 0 if quick else ROUND))
    missing |= {name: "no time was left" for name, found in rounds.items() if not found}
    return {
        "title": measurement.title,
        "unit": measurement.unit,
        "flop": measurement.flop,
        "sides": {
            name: {"missing": missing[name]} if name in missing else summary(rounds[name], measurement.count)
            for name in measurement.sides
        },
    }


def take_turn(run: Callable[[], Any], device: torch.device, seconds: float) -> dict[str, Any]:
    """Call it for so long, at least once: the seconds of a call, and the most memory that it took on the card."""
    cuda = device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
    before, cpu, calls = time.perf_counter(), time.process_time(), 0
    while not calls or time.perf_counter() - before < seconds:
        run()
        calls += 1
        if cuda:
            torch.cuda.synchronize()
    return {
        "seconds": (time.perf_counter() - before) / calls,
        "cpu": (time.process_time() - cpu) / calls,
        "memory": torch.cuda.max_memory_allocated() if cuda else 0,
        "process": 0,
        "found": {},
    }


def table(result: dict[str, Any]) -> str:
    """All that was measured as Markdown, each side beside the plain loop."""
    rows = [["", "median", "quartiles", "times the plain loop's speed", "share of the roofline", "memory"]]
    top = roofline(result)
    for measured in result["measurements"].values():
        rows.append([f"**{measured['title']}**, a {measured['unit']}", *[""] * 5])
        plain = measured["sides"].get(PLAIN, {})
        for name, side in measured["sides"].items():
            if "missing" in side:
                rows.append([name, f"not measured: {side['missing']}", *[""] * 4])
                continue
            faster = f"{ratio(side, plain)[0]:.2f}" if "rounds" in plain else ""
            share = f"{measured['flop'] / side['median'] / top:.0%}" if measured["flop"] and top else ""
            spread = f"{duration(side['low'])} to {duration(side['high'])}"
            rows.append([name, duration(side["median"]), spread, faster, share, size(side["memory"])])
    tests = "passed" if result["tests"]["passed"] else "FAILED, see results/gpu.json"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items() if version)
    return f"{format_markdown(rows)}\n\n{result['date']}, {result['card']}; {versions}; tests marked `gpu`: {tests}."


def roofline(result: dict[str, Any]) -> float:
    """Operations a second of the faster kernel in float32, TF32 left out; 0 where none was measured."""
    kernels = [result["measurements"].get(name, {"sides": {}}) for name in ("matmul", "convolution")]
    found = [(k["flop"], k["sides"].get("float32", {})) for k in kernels]
    return max((flop / side["median"] for flop, side in found if "median" in side), default=0.0)


def draw(result: dict[str, Any], picture: Path) -> None:
    """Draw how many times as fast as the plain loop each side is, as PNG, where matplotlib is there."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return print("no plot: matplotlib is not installed")
    bars = [
        (f"{measured['title']}: {name}", ratio(side, measured["sides"][PLAIN])[0])
        for measured in result["measurements"].values()
        for name, side in measured["sides"].items()
        if "rounds" in side and "rounds" in measured["sides"].get(PLAIN, {}) and name != PLAIN
    ]
    figure = Figure(figsize=(9, 1 + 0.25 * len(bars)), layout="constrained")
    axis = figure.subplots()
    axis.barh([name for name, _ in bars], [value for _, value in bars])
    axis.invert_yaxis()
    axis.axvline(1, color="black", linewidth=1)
    axis.set(xlabel=f"times the plain loop's speed ({result['card']})", xscale="log")
    with artifacts.replace_atomically(picture) as temporary:
        figure.savefig(temporary, format="png", dpi=80)


if __name__ == "__main__":
    main(sys.argv[1:])
