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
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Gt
from torch import Tensor

from umeta.envs._episodes import Episodic
from umeta.errors import UserError

FRAMES = 5  # physics steps of an environment step
NOISE = 0.1  # of positions and velocities at a reset
PICTURE = 128  # pixels


@dataclass(frozen=True)
class Driven(Episodic):
    """What bodies that motors drive have in common."""

    unit: Annotated[float, Gt(0)] = 0.7
    """torque of an action of 1, where 1 is the most; a policy's standard deviation starts there"""
    positions: bool = False
    """whether it observes where it is, or how far it has come in a plane"""

    @property
    def dt(self) -> float:
        """Seconds a step."""
        return 0.05

    def torque(self, actions: Tensor) -> Tensor:
        """Return what the motors get."""
        return (actions * self.unit).clamp(-1, 1)


class Bodies:
    """n copies of a body, side by side. Their states are gymnasium's v5, bit for bit (tests/test_envs.py).

    model: the file's name among gymnasium's; torque: from actions to what the motors get; plane: how many of the first
    coordinates are places on the ground; hidden: how many of the first coordinates are not observed; ended: from
    coordinates [n, nq] to which copies' episodes are over.
    """

    def __init__(
        self,
        model: str,
        n: int,
        torque: Callable[[Tensor], Tensor],
        plane: int,
        hidden: int,
        ended: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        loaded = load(model)
        from mujoco.batch import Batch

        self.torque, self.plane, self.hidden, self.ended = torque, plane, hidden, ended
        self.batch = Batch(loaded, n, min(n, torch.get_num_threads()))
        self.qpos, self.qvel, self.ctrl = (self.batch.bind(name) for name in ("qpos", "qvel", "ctrl"))  # live views
        self.over = np.zeros(n, dtype=bool)

    def reset(self, u: Tensor) -> Tensor:
        """Uniform noise on the coordinates, normal noise on the velocities, as gymnasium's."""
        import mujoco

        u = u.double().clamp(2**-25, 1 - 2**-25)  # whose normal numbers are finite
        coordinates, velocities = u.split([self.qpos.shape[1], self.qvel.shape[1]], 1)
        self.batch.reset(stage=mujoco.mjtStage.mjSTAGE_NONE)
        self.qpos += (NOISE * (2 * coordinates - 1)).numpy()
        self.qvel += (NOISE * torch.special.ndtri(velocities)).numpy()
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
                self.batch.step(living, nstep=FRAMES)
            except SimulationError as error:
                self.qpos[error.ids] = np.nan
        if self.ended is not None:
            self.over[living] = self.ended(self.qpos[living])
        return self.observation(), torch.from_numpy(self.over.copy())

    def observation(self) -> Tensor:
        seen = np.concatenate([self.qpos[:, self.hidden :], self.qvel], 1, dtype=np.float32)
        return torch.from_numpy(seen)

    def positions(self) -> Tensor:
        place = torch.zeros(len(self.qpos), 2)
        place[:, : self.plane] = torch.from_numpy(self.qpos[:, : self.plane])
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
