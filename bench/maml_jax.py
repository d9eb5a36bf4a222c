"""MAML's meta-step by JAX, `jit(vmap(grad))`: on a card the strongest peer there is. Images are channels-last."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.maml import OUTER_LR, Case, Gradient


def start(case: Case) -> Any:
    """JAX, in full precision."""
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # else it takes most of a card's memory
    jax: Any = importlib.import_module("jax")
    jax.config.update("jax_default_matmul_precision", "highest")
    jax.config.update("jax_enable_x64", case.double)
    return jax


def differentiate(jax: Any, case: Case) -> Callable[..., Any]:
    """Return what gives the meta-gradient, the mean over tasks, at parameters named as the network's."""
    jnp, lax = jax.numpy, jax.lax

    def loss(params: Any, x: Any, y: Any) -> Any:
        for block in range(4):
            x = lax.conv_general_dilated(
                x, params[f"{4 * block}.weight"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
            )
            x = (x - x.mean((0, 1, 2))) * lax.rsqrt(x.var((0, 1, 2)) + 1e-5)
            x = jax.nn.relu(x * params[f"{4 * block + 1}.weight"] + params[f"{4 * block + 1}.bias"])
            n, h, w, c = x.shape
            x = x[:, : h // 2 * 2, : w // 2 * 2].reshape(n, h // 2, 2, w // 2, 2, c).max((2, 4))
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        logs = jax.nn.log_softmax(x @ params["head.weight"].T + params["head.bias"])
        return -logs[jnp.arange(len(y)), y].mean()

    def meta_loss(params: Any, x: Any, y: Any, query_x: Any, query_y: Any) -> Any:
        fast = params
        for _ in range(case.steps):
            grads = jax.grad(loss)(fast, x, y)
            grads = lax.stop_gradient(grads) if case.first_order else grads
            fast = jax.tree.map(lambda p, g: p - case.inner_lr * g, fast, grads)
        return loss(fast, query_x, query_y)

    per_task = jax.vmap(jax.grad(meta_loss), in_axes=(None, 0, 0, 0, 0))
    return lambda params, *batch: jax.tree.map(lambda g: g.mean(0), per_task(params, *batch))


def place_batches(jax: Any, case: Case) -> list[Any]:
    """Support x and y, query x and y."""
    parts = [part for b in case.batches() for part in (np.moveaxis(b.x.cpu().numpy(), 2, 4), b.y.cpu().numpy())]
    return [jax.numpy.asarray(part) for part in parts]


def place_params(jax: Any, net: nn.Module) -> dict[str, Any]:
    """Parameters by name, kernels [h, w, in, out]."""
    own = {name: value.detach().cpu().numpy() for name, value in net.named_parameters()}
    return {name: jax.numpy.array(np.moveaxis(v, (0, 1), (3, 2)) if v.ndim == 4 else v) for name, v in own.items()}


def gradient(case: Case, net: nn.Module) -> Gradient:
    jax = start(case)
    batch = place_batches(jax, case)
    compiled = jax.jit(differentiate(jax, case))

    def run() -> None:
        found = compiled(place_params(jax, net), *batch)
        for name, p in net.named_parameters():
            value = np.array(found[name])
            p.grad = torch.from_numpy(np.moveaxis(value, (3, 2), (0, 1)) if value.ndim == 4 else value)

    return run


def step(**options: Any) -> Callable[[], None]:
    """Return a meta-step with Adam in the program."""
    case = Case(**options)
    jax = start(case)
    meta_gradient = differentiate(jax, case)

    @jax.jit
    def advance(state: Any, *batch: Any) -> Any:
        params, first, second, i = state
        grads = meta_gradient(params, *batch)
        i = i + 1
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)

        def move(p: Any, m: Any, v: Any) -> Any:
            return p - OUTER_LR * (m / (1 - 0.9**i)) / (jax.numpy.sqrt(v / (1 - 0.999**i)) + 1e-8)

        return jax.tree.map(move, params, first, second), first, second, i

    params, batch = place_params(jax, case.network()), place_batches(jax, case)
    zeros = jax.tree.map(jax.numpy.zeros_like, params)
    state = [(params, zeros, zeros, 0)]

    def run() -> None:
        state[0] = jax.block_until_ready(advance(state[0], *batch))

    return run
