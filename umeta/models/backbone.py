"""A network that others have trained, by its name in timm or torchvision."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from annotated_types import Gt
from torch import Tensor, nn

from umeta.config.registry import build_part
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.allocator import available

OWN, KEPT = "own", "kept"
COPIES = 2  # of the weights that are in memory at a time
BATCH = 8  # images at a time where there is no gradient: more of them fall out of the processor's caches


@dataclass(frozen=True)
class Backbone:
    """A pre-trained network of timm or torchvision, with its own size and scaling of pictures (Wightman 2019).

    Never code of others: weights are read as tensors alone.
    """

    network: str
    """its name, such as resnet18; or a folder of the Hugging Face hub on this disk, with config.json and
    model.safetensors"""
    library: Literal["timm", "torchvision"] = "timm"
    """whose name that is"""
    weights: str = OWN
    """a .safetensors file, or a .pth of weights alone; `own`: those that the library downloads; `kept`: those of the
    run or learner that this is an option of, and random ones elsewhere"""
    size: Annotated[int, Gt(0)] | None = None
    """pixels a side that pictures are resized to; by default the network's own"""
    frozen: bool = True
    """whether meta-training leaves it as it is"""
    learnt_from: str = ""
    """what the weights were learnt from, for reports and cards: `ImageNet without labels (DINO)`"""

    @property
    def pretrained(self) -> str:
        """What its weights were learnt from, as far as that is known."""
        return self.learnt_from or ("ImageNet with labels" if self.weights == OWN else "data of others, maybe labelled")

    def build(self, item_shape: tuple[int, ...]) -> nn.Module:
        """Build the network, without its last layer of classes.

        Raises:
            UserError: no such network, or weights that are missing, damaged or another network's.
        """
        net, own = self._from_timm() if self.library == "timm" else self._from_torchvision()
        whole = {name: value.shape for name, value in net.state_dict().items() if is_learnt(name)}
        drop_head(net)
        if file := self._file:
            load_weights(net, whole, file)
        if self.frozen:
            fix(net)
        return Seen(net, self.size or own["side"], own["mean"], own["std"])

    @property
    def _file(self) -> Path | None:
        """Where the weights lie on this disk."""
        if self.weights not in (OWN, KEPT):
            return Path(self.weights)
        folder = Path(self.network)
        return folder / "model.safetensors" if self.weights == OWN and folder.is_dir() else None

    def _from_timm(self) -> tuple[nn.Module, dict[str, Any]]:
        try:
            import timm
        except ImportError as error:
            raise UserError("model.library: timm is not installed; pip install 'umeta[backbones]'") from error
        name, changed = self.network, {}
        if (folder := Path(name)).is_dir():
            described = artifacts.read_json(folder / "config.json")
            with artifacts.refuse_malformed(folder / "config.json"):
                name, changed = str(described["architecture"]), dict(described.get("pretrained_cfg", {}))
        refuse_unknown(name.partition(".")[0], timm.list_models(), "timm")
        download = self.weights == OWN and self._file is None
        self._refuse_too_large(lambda: timm.create_model(name))
        net = self._fetch(lambda: timm.create_model(name, pretrained=download))
        found: dict[str, Any] = {**vars(net)["pretrained_cfg"], **changed}
        return net, {"side": found["input_size"][-1], "mean": found["mean"], "std": found["std"]}

    def _from_torchvision(self) -> tuple[nn.Module, dict[str, Any]]:
        from torchvision import models

        refuse_unknown(self.network, models.list_models(module=models), "torchvision")
        weights = models.get_model_weights(self.network).DEFAULT
        self._refuse_too_large(lambda: models.get_model(self.network, weights=None))
        net = self._fetch(lambda: models.get_model(self.network, weights=weights if self.weights == OWN else None))
        shown = weights.transforms()
        return net, {"side": shown.crop_size[0], "mean": shown.mean, "std": shown.std}

    def _refuse_too_large(self, make: Callable[[], nn.Module]) -> None:
        """Raise UserError for a network that does not fit into memory, before anything is downloaded or taken."""
        try:
            with torch.device("meta"):
                weights = sum(value.numel() for value in make().parameters())
        except Exception:  # few networks cannot be made without memory
            return
        needed, free = COPIES * 4 * weights, available()
        if needed > free:
            raise UserError(
                f"model.network: '{self.network}' has {weights / 1e6:,.0f} million weights, which take "
                f"{needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory are free; choose a smaller one"
            )

    def _fetch(self, make: Callable[[], nn.Module]) -> nn.Module:
        try:
            return make()
        except Exception as error:  # a gated or missing page of the hub, no connection, no room
            reason = str(error).strip().partition("\n")[0]
            raise UserError(
                f"model.network: '{self.network}' cannot be had ({type(error).__name__}: {reason}); download its "
                "weights where you can, and set model.weights=FILE"
            ) from error


class Seen(nn.Module):
    """A network with pictures [n, C, H, W] in [0, 1] made as it wants them."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, side: int, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net, self.side = net, side
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return self.see(x)
        return torch.cat([self.see(part) for part in x.split(BATCH)])

    def see(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.side, self.side):
            x = F.interpolate(x, (self.side, self.side), mode="bicubic", antialias=True).clamp(0, 1)
        scaled = (x.expand(-1, 3, -1, -1) - self.mean) / self.std
        return self.net(scaled.contiguous(memory_format=torch.channels_last)).flatten(1)


def refuse_unknown(name: str, known: Sequence[str], library: str) -> None:
    """Raise UserError for a network that the library does not have."""
    if name not in known:
        near = difflib.get_close_matches(name, known, 3)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; {library}'s own list_models() gives all"
        raise UserError(f"model.network: {library} has no network '{name}'{hint}")


def drop_head(net: nn.Module) -> None:
    """Take away what makes classes of features: of timm's networks what they call so, else the last linear layer."""
    if reset := getattr(net, "reset_classifier", None):
        reset(0)
        return
    place = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear)][-1]
    net.set_submodule(place, nn.Identity())


def fix(net: nn.Module) -> None:
    """Make parameters of all that was learnt, running averages too, and let none of them move.

    Then the weights of a run or learner are all that it needs.
    """
    net.requires_grad_(False)
    for layer in net.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.running_mean is not None:
            for name in ("running_mean", "running_var"):
                value = layer.get_buffer(name)
                del layer._buffers[name]
                # an average as torch begins with would be taken for none
                value = value + 1e-12 if name == "running_mean" else value
                layer.register_parameter(name, nn.Parameter(value, requires_grad=False))


def load_weights(net: nn.Module, whole: dict[str, torch.Size], path: Path) -> None:
    """Load a file's weights into a network without its last layer, `whole` being the shapes of all of it.

    Where the names are another library's, the tensors are taken in their order if that makes each shape fit.

    Raises:
        UserError: missing, not weights alone, or another network's.
    """
    state = {name: value for name, value in read_weights(path).items() if is_learnt(name)}
    wanted = {name: value.shape for name, value in net.state_dict().items() if is_learnt(name)}
    if not wanted.items() <= {name: value.shape for name, value in state.items()}.items():
        if [value.shape for value in state.values()] != list(whole.values()):
            odd = next(name for name in wanted if name not in state or state[name].shape != wanted[name])
            found = f"is {tuple(state[odd].shape)}" if odd in state else "is not there"
            raise UserError(
                f"{path}: the weights of another network: '{odd}' {found}, expected {tuple(wanted[odd])}; name the "
                "network that they are of in model.network"
            )
        state = dict(zip(whole, state.values(), strict=True))
    net.load_state_dict({name: state[name].float() for name in wanted}, strict=False)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a file's tensors, and run nothing that it holds.

    Raises:
        UserError: missing, damaged, or it holds anything but tensors.
    """
    if not path.is_file():
        raise UserError(f"model.weights: {path}: no such file; expected .safetensors, or a .pth of weights alone")
    if path.suffix == ".safetensors":
        return artifacts.read_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickles of anything, or damaged
        raise UserError(
            f"model.weights: {path} is not weights alone; it is not opened, as it might run code. Save a state_dict, "
            "better as .safetensors"
        ) from error
    for key in ("state_dict", "model"):
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"model.weights: {path}: expected a state_dict, tensors by name")
    return {name.removeprefix("module."): value for name, value in state.items()}


def is_learnt(name: str) -> bool:
    """Whether a tensor of this name was learnt: counters of batches were not."""
    return not name.endswith("num_batches_tracked")


def keep_weights(options: Any) -> Any:
    """Give options of a learner whose own file holds the weights of its pre-trained networks."""
    if isinstance(options, list):
        return [keep_weights(one) for one in options]
    if not isinstance(options, dict):
        return options
    kept = {key: keep_weights(value) for key, value in options.items()}
    if options.get("name") != "backbone":
        return kept
    return {**kept, "weights": KEPT, "learnt_from": build_part("model", options).pretrained}
