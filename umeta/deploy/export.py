"""Export: what a run learnt, or a learner adapted to named classes, as files that need nothing but torch.

A `.pt2` is a network as a graph of torch's own operators (`torch.export`), `model.json` says what goes in and comes
out, and `README.md` is a model card (umeta/card.py).
"""

from __future__ import annotations

import copy
import dataclasses
import io
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from umeta.config import registry
from umeta.data.images import to_float
from umeta.data.inputs import Format
from umeta.deploy.adapted import AdaptedLearner, refuse_transductive
from umeta.errors import UserError
from umeta.metalearners._gradient import GradientLearner
from umeta.metalearners.protonet import ProtoNet
from umeta.models.check import build_module
from umeta.models.functional import GroupNorm, exchange
from umeta.report import card
from umeta.runtime import artifacts
from umeta.stages.runs import Run, load_run
from umeta.train import check_fits
from umeta.types import EpisodeSpec, FeatureLearner, MetaLearner, Stats, TaskSpec, Theta
from umeta.version import __version__


class Features(nn.Module):
    """A feature network with everything it needs in it: images [n, C, H, W] in [0, 1] to features [n, d]."""

    def __init__(self, network: nn.Module, unit: bool) -> None:
        super().__init__()
        self.network, self.unit = network, unit

    def forward(self, images: Tensor) -> Tensor:
        z = self.network(images).flatten(1)
        return F.normalize(z, dim=-1) if self.unit else z


class Classifier(nn.Module):
    """A linear layer on a feature network: images [n, C, H, W] in [0, 1] to probabilities [n, way]."""

    weight: Tensor
    bias: Tensor

    def __init__(self, features: Features, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.features = features
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)

    def forward(self, images: Tensor) -> Tensor:
        return F.linear(self.features(images), self.weight, self.bias).softmax(1)


def export_run(
    folder: Path | str, out: Path | str, *, onnx: bool = False, trusted: Collection[str] | None = ()
) -> Path:
    """Write the feature network of a finished run to `out`, in place of an earlier export; return the folder.

    Files: `features.pt2` for `torch.export.load`, images float32 [n, C, H, W] in [0, 1] to features [n, d] for any n
    from 1; `features.onnx`, the same, with `onnx`; `weights.safetensors`; `model.json`; `README.md`.

    trusted: plug-ins that the run's config may name, as in `load_run`.

    Raises:
        UserError: the run is missing, damaged or on an environment, its features depend on the batch, they cannot be
            exported, or `out` holds something else than an earlier export.
    """
    out = Path(out).resolve()
    refuse_to_overwrite(out)
    run = load_run(folder, device="cpu", trusted=trusted)
    run.check_on_images()
    module = build_features(run)
    program = export_graph(module, run.item_shape)
    model = describe_run(run, module)

    def fill(folder: Path) -> None:
        artifacts.write_tensors(folder / "weights.safetensors", {**run.theta.params, **module.network.state_dict()})
        save(program, folder / "features", "features" if onnx else None)
        artifacts.write_text(folder / "README.md", card.write_run_card(run, model))

    write(out, model, fill)
    return out


def export_learner(
    folder: Path | str, out: Path | str, *, onnx: bool = False, trusted: Collection[str] | None = ()
) -> Path:
    """Write a learner that was adapted to named classes to `out`, in place of an earlier export; return the folder.

    Files: `classifier.pt2`, images float32 [n, C, H, W] in [0, 1] to probabilities [n, way]; `classifier.onnx`, the
    same, with `onnx`; `classes.json`, the names in the order of the columns; `model.json`; `README.md`. The examples it
    was adapted on are not in them, only what was computed from them.

    trusted: plug-ins that it may name, as in `load_run`.

    Raises:
        UserError: the learner is missing or damaged, its answers depend on the batch, it cannot be exported, or `out`
            holds something else than an earlier export.
    """
    out = Path(out).resolve()
    refuse_to_overwrite(out)
    learner = AdaptedLearner.load(Path(folder), device="cpu", trusted=trusted)
    program = export_graph(build_classifier(learner), learner.source.format.shape)
    model = describe_learner(learner)

    def fill(folder: Path) -> None:
        artifacts.write_json(folder / "classes.json", learner.classes.tolist())
        save(program, folder / "classifier", "probabilities" if onnx else None)
        artifacts.write_text(folder / "README.md", card.write_learner_card(learner, model))

    write(out, model, fill)
    return out


def load_export(folder: Path | str, *, trusted: Collection[str] | None = ()) -> tuple[MetaLearner, Theta]:
    """Return the learner of an exported run, ready to adapt, and what it learnt; on the CPU.

    trusted: plug-ins that it may name (files and modules whose code is then run); None for any.

    Raises:
        UserError: no export, a damaged one, an adapted learner's, or it names a plug-in that is not trusted.
    """
    folder = Path(folder)
    artifacts.read_manifest(folder, "export")
    model = artifacts.read_json(folder / "model.json")
    with artifacts.refuse_malformed(folder):
        if "network" not in model:
            raise UserError(
                f"{folder}: exported from an adapted learner, which cannot adapt again; expected one of a run"
            )
        plain = {**model["learner"], "model": model["network"]}
        registry.refuse_plugins(plain, trusted, str(folder))
        weights = artifacts.read_tensors(folder / "weights.safetensors")
        learner = registry.build_part("metalearner", plain)
        spec = TaskSpec(tuple(model["input"]["shape"][1:]))
        episode = EpisodeSpec(model["way"], shot=1, query=1)
        check_fits(weights, learner, spec, episode, folder)
        learner = learner.build(spec, episode)
        first = learner.init(seed=0)
        layers = [name.removesuffix("running_mean") for name in weights if name.endswith("running_mean")]
        running = {f"{layer}{kind}": weights[f"{layer}running_{kind}"] for layer in layers for kind in ("mean", "var")}
        return learner, Theta({name: weights[name] for name in first.params}, running or None)


# the folder


def refuse_to_overwrite(out: Path) -> None:
    """Raise UserError when `out` holds anything but an export as it was written, such as a card that was edited."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "manifest.json").exists():
        raise UserError(f"{out} exists and is not an export; choose another --out")
    manifest = artifacts.read_manifest(out, "export")
    written = {*manifest["files"], "README.md", "manifest.json"}
    added = sorted(path.name for path in out.iterdir() if path.name not in written)
    edited = (out / "README.md").exists() and artifacts.hash_file(out / "README.md") != manifest["card"]
    if added or edited:
        raise UserError(f"{out / (added[0] if added else 'README.md')} is yours; move it away or choose another --out")


def write(out: Path, model: dict[str, Any], fill: Callable[[Path], None]) -> None:
    """Write an export, whole or not at all: `model.json`, and what `fill` puts into a folder, a card among it."""
    with artifacts.replace_atomically(out) as temporary:
        temporary.mkdir()
        artifacts.write_json(temporary / "model.json", model)
        fill(temporary)
        files = sorted(path.name for path in temporary.iterdir() if path.name != "README.md")
        # the card is there to be edited: its hash only tells whether it was
        content = {"umeta": __version__, "card": artifacts.hash_file(temporary / "README.md")}
        artifacts.write_manifest(temporary, "export", content, files)


def save(program: torch.export.ExportedProgram, path: Path, output: str | None) -> None:
    """Write `path`.pt2; with a name for the output also `path`.onnx, whose input is `images`.

    Raises:
        UserError: the packages that write ONNX are not installed.
    """
    buffer = io.BytesIO()  # given a path, torch writes its name into the file, which then differs from place to place
    torch.export.save(program, buffer)
    path.with_suffix(".pt2").write_bytes(buffer.getvalue())
    if output is None:
        return
    try:
        converted = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=[output], verbose=False
        )
    except ImportError as error:
        raise UserError(f"--onnx needs onnx and onnxscript ({error}); pip install 'umeta[onnx]'") from error
    assert converted is not None
    converted.save(path.with_suffix(".onnx"), external_data=False)


# the networks


def build_features(run: Run) -> Features:
    """Return the run's feature network, frozen: float32 on the CPU, normalising by the statistics of meta-training.

    Raises:
        UserError: the learner has no feature network, or one that normalises by the batch at hand.
    """
    learner = run.learner
    if not isinstance(learner, FeatureLearner):
        raise UserError(f"{run.folder}: a {type(learner).__name__} has no feature network that can be exported")
    if learner.normalisation == "batch":
        raise UserError(
            f"{run.folder}: normalises by the batch at hand (transductive), so an image has no features of its own to "
            "export; meta-train with metalearner.normalisation=running, support or group"
        )
    module = build_network(learner, run.item_shape, run.theta.params, run.theta.running or {})
    images = to_float(sample(run.item_shape))
    refuse_difference(module(images), in_float32(learner).features(run.theta, images), learner.model)
    return module


def build_classifier(adapted: AdaptedLearner) -> Classifier:
    """Return the network of an adapted learner with its classes and its temperature in it, frozen: float32 on the CPU.

    Raises:
        UserError: its answers depend on the batch, or it answers by something else than a linear layer on features.
    """
    refuse_transductive(adapted.source)
    learner: Any = in_float32(adapted.source.learner)  # what is exported is compared with it
    theta, found = adapted.source.theta, adapted.adapted.params
    if isinstance(learner, GradientLearner):
        params = {name: value[0] for name, value in found.items()}
        weight, bias = params["head.weight"], params["head.bias"]
    elif isinstance(learner, ProtoNet):
        params = theta.params
        layer = (found["weight"], found["bias"]) if "weight" in found else learner.layer(theta, found["prototypes"])
        weight, bias = (value[0] for value in layer)
    else:
        raise UserError(
            f"{adapted.source.run}: {adapted.source.options['name']} answers by more than a linear layer, and cannot "
            "be exported once adapted; learners by gradient steps and protonet can, and umeta predict uses any"
        )
    shape = adapted.source.format.shape
    stats = {name: value.reshape(-1) for name, value in adapted.adapted.stats.items()}  # [channels] or [1, channels]
    temperature = adapted.calibration.temperature if adapted.calibration else 1.0
    module = Classifier(build_network(learner, shape, params, stats), weight / temperature, bias / temperature)
    items = sample(shape)
    logits = F.linear(module.features(to_float(items)), weight, bias)
    exact = dataclasses.replace(adapted, source=dataclasses.replace(adapted.source, learner=learner))
    refuse_difference(logits, exact.logits(items.numpy()), learner.model)
    return module


def in_float32(learner: Any) -> Any:
    """Copy a learner, to compute in float32."""
    exact = copy.copy(learner)
    exact.precision = "float32"
    return exact


def build_network(
    learner: FeatureLearner, item_shape: tuple[int, ...], params: Mapping[str, Tensor], stats: Stats
) -> Features:
    """Return the learner's model with these parameters and statistics of batch normalisation, for inference."""
    with torch.random.fork_rng(devices=[]):
        module = build_module(learner.model, item_shape).eval()
    if learner.normalisation == "group":
        module = exchange(module, GroupNorm)
    module.requires_grad_(False)
    values = {name: params[name] for name, _ in module.named_parameters()}
    for name, layer in module.named_modules():
        if isinstance(layer, _BatchNorm) and f"{name}.mean" in stats:
            values[f"{name}.running_mean"], values[f"{name}.running_var"] = stats[f"{name}.mean"], stats[f"{name}.var"]
    module.load_state_dict(values, strict=False)
    return Features(module, unit=learner.distance == "cosine")


def sample(item_shape: tuple[int, ...]) -> Tensor:
    """Images to compare networks on: uint8 [8, *item_shape], noise from bright to dark."""
    noise = torch.rand(8, *item_shape, generator=torch.Generator().manual_seed(0))
    return (noise ** torch.logspace(-1, 1, 8).view(-1, 1, 1, 1) * 255).to(torch.uint8)


def refuse_difference(found: Tensor, expected: Tensor, model: Any) -> None:
    """Raise UserError when a rebuilt network does not compute what the learner does.

    A model may hold what `network` does not know of, such as one normalisation layer used in two places.
    """
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max())):
        raise UserError(f"model: {type(model).__name__} cannot be exported, it would not compute the same as in umeta")


def export_graph(module: nn.Module, item_shape: tuple[int, ...]) -> torch.export.ExportedProgram:
    """Return a module of images [n, *item_shape] as a graph, for any n from 1.

    Raises:
        UserError: torch cannot follow the module.
    """
    batch = {0: torch.export.Dim("n", min=1)}
    try:
        program = torch.export.export(module, (torch.zeros(2, *item_shape),), dynamic_shapes=(batch,))
    except Exception as error:  # torch raises nearly anything for code that it cannot trace
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"model: torch.export cannot follow it ({reason}); branch on no values in its forward"
        ) from error
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # paths of this machine
    return program


# what they are


def describe_run(run: Run, module: Features) -> dict[str, Any]:
    """`model.json` of a run: what the weights are, what the images must be, and what comes out."""
    learner: Any = run.learner
    plain = run.config.plain["metalearner"]
    length = module(torch.zeros(1, *run.item_shape)).shape[1]
    return {
        "umeta": __version__,
        "name": run.config.name,
        "title": run.config.title or run.config.name,
        "network": {**list_options("model", learner.model), **plain["model"]},
        "learner": {**list_options("metalearner", learner), **{k: v for k, v in plain.items() if k != "model"}},
        "way": run.config.train.way,
        **({"scale": run.theta.params["scale"].item()} if "scale" in run.theta.params else {}),
        "input": describe_input(Format.of(run.config.data, run.item_shape)),
        "output": {"name": "features", "type": "float32", "shape": ["n", length], "unit_length": module.unit},
    }


def describe_learner(learner: AdaptedLearner) -> dict[str, Any]:
    """`model.json` of an adapted learner: what the images must be and what comes out."""
    return {
        "umeta": __version__,
        "input": describe_input(learner.source.format),
        "output": {"name": "probabilities", "type": "float32", "shape": ["n", len(learner.classes)]},
    }


def list_options(kind: str, part: Any) -> dict[str, Any]:
    """Return a part's name and those of its options that are plain values, defaults among them."""
    values = {f.name: getattr(part, f.name) for f in dataclasses.fields(part) if f.init}
    plain = {name: value for name, value in values.items() if isinstance(value, str | int | float | None)}
    return {"name": registry.name_of(kind, part), **plain}


def describe_input(format: Format) -> dict[str, Any]:
    """Return what the network takes, and how umeta makes it of a picture of any size (umeta/data/decode.py)."""
    square = format.shape[1] == format.shape[2]
    return {
        "name": "images",
        "type": "float32",
        "shape": ["n", *format.shape],
        "preprocessing": {
            "crop": "largest centred square" if square and not format.pad else "none",
            "pad": "to a square, with the median colour of the border" if format.pad else "none",
            "resize": "Lanczos where it shrinks, bicubic where it grows" if square else "none",
            "channels": "grey" if format.shape[0] == 1 else "red, green, blue",
            "invert": format.invert,
            "scale": "8-bit pixels / 255",
        },
    }
