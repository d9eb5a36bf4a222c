"""Bodies of gymnasium's MuJoCo models: all copies in one batch, stepped at the speed of the physics."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes.util import find_library
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.envs._episodes import Episodic
from umeta.errors import UserError

PICTURE = 128  # pixels
Ended = Callable[[np.ndarray, np.ndarray], np.ndarray]  # coordinates, velocities [n, ...] -> which episodes are over


@dataclass(frozen=True)
class Model:
    """What sets one of gymnasium's bodies apart from the others."""

    file: str
    coordinates: int
    velocities: int
    motors: int
    plane: int  # how many of the first coordinates are places on the ground
    frames: int = 5  # physics steps of an environment step
    dt: float = 0.05  # seconds of it
    noise: float = 0.1  # of coordinates and velocities at a reset
    normal: bool = True  # whether that of velocities is normal; else it is uniform, as that of coordinates is
    fastest: float = np.inf  # velocity that is observed


@dataclass(frozen=True)
class Driven(Episodic):
    """What bodies that motors drive have in common."""

    model: ClassVar[Model]

    unit: Annotated[float, Gt(0)] = 0.7
    """torque of an action of 1, where 1 is the most; a policy's standard deviation starts there"""
    positions: bool = False
    """whether it observes where it is, or how far it has come in a plane"""

    @property
    def observation(self) -> int:
        return self.model.coordinates + self.model.velocities - self.hidden

    @property
    def action(self) -> int:
        return self.model.motors

    @property
    def randoms(self) -> int:
        return self.model.coordinates + self.model.velocities

    @property
    def hidden(self) -> int:
        """How many of the first coordinates are not observed."""
        return 0 if self.positions else self.model.plane

    @property
    def dt(self) -> float:
        """Seconds a step."""
        return self.model.dt

    @property
    def options(self) -> dict[str, Any]:
        """What gymnasium must be told to make the same."""
        return {"exclude_current_positions_from_observation": False} if self.positions else {}

    def torque(self, actions: Tensor) -> Tensor:
        """Return what the motors get."""
        return (actions * self.unit).clamp(-1, 1)

    def simulate(self, n: int) -> Bodies:
        return Bodies(self, n)


@dataclass(frozen=True)
class Walking(Driven):
    """What bodies that can fall have in common."""

    ends: bool = False
    """end an episode when the body is unhealthy, as in gymnasium: then rewards `log p(z|s)`, mostly below 0, reward
    dying"""

    def simulate(self, n: int) -> Bodies:
        return Bodies(self, n, self.fallen if self.ends else None)

    def fallen(self, qpos: np.ndarray, qvel: np.ndarray) -> np.ndarray:
        """Return which of the bodies with these coordinates and velocities [n, ...] are unhealthy [n]."""
        raise NotImplementedError


class Bodies:
    """n copies of a body, side by side. Their states are gymnasium's v5, bit for bit (tests/envs/test_envs.py)."""

    def __init__(self, env: Driven, n: int, ended: Ended | None = None) -> None:
        self.model, self.torque, self.hidden, self.ended = env.model, env.torque, env.hidden, ended
        loaded = load(self.model.file)
        from mujoco.batch import Batch

        self.batch = Batch(loaded, n, min(n, torch.get_num_threads()))
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))  # live views
        self.over = np.zeros(n, dtype=bool)

    def reset(self, u: Tensor) -> Tensor:
        """Uniform noise on the coordinates, normal or uniform noise on the velocities, as gymnasium's."""
        import mujoco

        u = u.double().clamp(2**-25, 1 - 2**-25)  # whose normal numbers are finite
        coordinates, velocities = u.split([self.qpos.shape[1], self.qvel.shape[1]], 1)
        self.batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        shaken = torch.special.ndtri(velocities) if self.model.normal else 2 * velocities - 1
        self.qpos += (self.model.noise * (2 * coordinates - 1)).numpy()
        self.qvel += (self.model.noise * shaken).numpy()
        self.batch.forward()
        self.over[:] = False
        return self.observation()

    def step(self, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Step the copies that go on. Observations are NaN from when the physics of a copy become unstable."""
        from mujoco.batch import SimulationError

        self.ctrl[:] = self.torque(actions).numpy()
        living = np.flatnonzero(~self.over)
        with quiet():
            try:
                self.batch.step(living, nstep=self.model.frames)
            except SimulationError as error:
                self.qpos[error.ids] = np.nan
        if self.ended is not None:
            self.over[living] = self.ended(self.qpos[living], self.qvel[living])
        return self.observation(), torch.from_numpy(self.over.copy())

    def observation(self) -> Tensor:
        velocities = self.qvel.clip(-self.model.fastest, self.model.fastest)
        seen = np.concatenate([self.qpos[:, self.hidden :], velocities], 1, dtype=np.float32)
        return torch.from_numpy(seen)

    def positions(self) -> Tensor:
        place = torch.zeros(len(self.qpos), 2)
        place[:, : self.model.plane] = torch.from_numpy(self.qpos[:, : self.model.plane])
        return place

    def picture(self, copy: int = 0) -> np.ndarray:
        """Seen from the side, by a camera that follows.

        Raises:
            UserError: this machine cannot draw.
        """
        data = self.batch.get_data(copy)
        with quiet() as mujoco:
            mujoco.mj_forward(self.batch.model, data)
        self.renderer.update_scene(data, camera="track")
        return self.renderer.render()

    @cached_property
    def renderer(self) -> Any:
        import mujoco

        backend = os.environ.get("MUJOCO_GL", "not set")
        try:
            if not screen() and backend not in ("egl", "osmesa"):
                raise RuntimeError("there is no screen")  # MuJoCo would abort the process at the second attempt
            return mujoco.Renderer(self.batch.model, PICTURE, PICTURE)
        except Exception as error:  # of as many kinds as there are graphics libraries
            raise UserError(
                f"env: MuJoCo cannot draw here (MUJOCO_GL: {backend}): {error}. Without a screen it needs EGL (such as "
                "the package libegl1, and MUJOCO_GL=egl) or OSMesa (libosmesa6, and MUJOCO_GL=osmesa)"
            ) from error


def load(model: str) -> Any:
    """One of gymnasium's models, which becomes NaN when it is unstable instead of silently starting anew."""
    with quiet() as mujoco:  # half_cheetah.xml has an outdated attribute
        import gymnasium

        loaded = mujoco.MjModel.from_xml_path(str(Path(gymnasium.__path__[0], "envs", "mujoco", "assets", model)))
    loaded.opt.disableflags |= mujoco.mjtDisableBit.mjDSBL_AUTORESET
    loaded.vis.quality.shadowsize = 512  # of 4096: three times faster where a CPU draws
    return loaded


@contextmanager
def quiet() -> Iterator[Any]:
    """MuJoCo, kept from printing warnings and from appending them to MUJOCO_LOG.TXT in the working directory.

    Raises:
        UserError: it is not installed.
    """
    if not screen() and "mujoco" not in sys.modules and find_library("EGL"):
        os.environ.setdefault("MUJOCO_GL", "egl")  # which it reads when it is imported
    try:
        import mujoco
    except (ImportError, AttributeError) as error:  # the latter where MUJOCO_GL names what is not there
        backend = os.environ.get("MUJOCO_GL", "not set")
        raise UserError(
            f"env: cannot import MuJoCo (MUJOCO_GL: {backend}): {error}; pip install 'gymnasium[mujoco]' 'mujoco>=3.17'"
        ) from error
    before, silent = mujoco.MjLogConfig.get(), mujoco.MjLogConfig.get()
    silent.logto_console = silent.logto_file = False
    silent.set()
    try:
        yield mujoco
    finally:
        before.set()


def screen() -> bool:
    return platform.system() != "Linux" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
