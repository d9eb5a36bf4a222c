"""Checkpoints: the states of long work that it can go on from."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from umeta.errors import UserError
from umeta.parts import State
from umeta.runtime import artifacts


def copy_state(state: State) -> State:
    """Return the state as it is now, whatever becomes of its tensors."""
    return {name: value.detach().clone() for name, value in state.items()}


def make_resumable(**parts: nn.Module | torch.optim.Optimizer) -> tuple[Callable[[], State], Callable[[State], None]]:
    """`save` and `load` for `RunContext.loop`: the state of these parts, each tensor named `part.tensor`."""

    def save() -> State:
        return {f"{part}.{name}": value for part, owner in parts.items() for name, value in tensors(owner).items()}

    def load(state: State) -> None:
        for part, owner in parts.items():
            own = {name.removeprefix(f"{part}."): v for name, v in state.items() if name.startswith(f"{part}.")}
            if isinstance(owner, nn.Module):
                owner.load_state_dict(own)
            else:
                moments: dict[int, State] = {}
                for name, value in own.items():
                    number, key = name.split(".")
                    moments.setdefault(int(number), {})[key] = value
                owner.load_state_dict({**owner.state_dict(), "state": moments})

    return save, load


def tensors(owner: nn.Module | torch.optim.Optimizer) -> State:
    """Return a module's state by name, or an optimiser's as `parameter number.moment`."""
    if isinstance(owner, nn.Module):
        return owner.state_dict()
    state = owner.state_dict()["state"]
    return {f"{number}.{key}": value for number, moments in state.items() for key, value in moments.items()}


class Checkpoints:
    """`checkpoints/<name>/step-N/{state.safetensors, meta.json}` and `<name>.jsonl`; the last steps are kept."""

    def __init__(self, folder: Path, name: str, kind: str = "checkpoints", most: int = 2) -> None:
        self.root, self.most = folder, most
        self.folder = folder / kind / name
        self.metrics = folder / f"{name}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)

    def steps(self) -> list[int]:
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdecimal())

    def write(self, state: State, step: int, seconds: float) -> None:
        with artifacts.replace_atomically(self.folder / f"step-{step}") as temporary:
            temporary.mkdir()
            artifacts.write_tensors(temporary / "state.safetensors", state)
            content = artifacts.hash_file(temporary / "state.safetensors")
            meta = {"step": step, "seconds": seconds, "state": content}
            artifacts.write_sealed(temporary / "meta.json", meta)
        self.prune()

    def prune(self) -> None:
        """Drop all but the last ones."""
        for old in self.steps()[: -self.most]:
            shutil.rmtree(self.folder / f"step-{old}")

    def newest(self) -> tuple[State, int, float] | None:
        """State, step and seconds of the newest undamaged checkpoint."""
        return next((found for step in reversed(self.steps()) if (found := self.read(step))), None)

    def read(self, step: int) -> tuple[State, int, float] | None:
        """State, step and seconds of one checkpoint; None if it is damaged."""
        path = self.folder / f"step-{step}"
        try:
            meta = artifacts.read_sealed(path / "meta.json")
            if artifacts.hash_file(path / "state.safetensors") == meta["state"]:
                return artifacts.read_tensors(path / "state.safetensors"), meta["step"], meta["seconds"]
        except (UserError, OSError, KeyError, TypeError):
            pass
        return None

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Write what a step measured.

        Raises:
            UserError: a metric has the name of the step's number.
        """
        if "step" in metrics:
            raise UserError(f"{self.metrics.stem}: it measures a 'step', which is the step's number; name it otherwise")
        line = json.dumps({"step": step, **{k: round(v, 6) for k, v in metrics.items()}}) + "\n"
        try:
            with open(self.metrics, "a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:  # which names no file when the disk is full
            raise OSError(error.errno, error.strerror, str(self.metrics)) from error

    def truncate(self, step: int) -> None:
        """Drop checkpoints (damaged ones) and metrics of steps that will be run again, and what a kill left over."""
        for later in self.steps():
            if later > step:
                shutil.rmtree(self.folder / f"step-{later}")
        self.prune()
        if self.metrics.exists():
            lines = self.metrics.read_text(encoding="utf-8", errors="replace").splitlines()
            artifacts.write_text(self.metrics, "".join(f"{line}\n" for line in lines if read_step(line) < step))


def read_step(line: str) -> float:
    """Return the step of a metrics line; infinity for a line cut short by a kill."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
