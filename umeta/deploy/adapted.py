"""A meta-learner adapted to classes that a person named: `umeta adapt` writes it as files, `umeta predict` uses it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from umeta.config import registry
from umeta.data.images import to_float
from umeta.data.inputs import Format
from umeta.deploy.calibration import Calibration, calibrate, class_means, nearness, one_task
from umeta.draw import mosaic
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.runtime.devices import to_device
from umeta.stages.runs import Run, load_run
from umeta.train import check_fits, part, unpack
from umeta.types import Adapted, EpisodeSpec, MetaLearner, TaskSpec, Theta
from umeta.version import __version__

FILES = ["learner.json", "model.safetensors", "support.npy", "support.png"]


@dataclass(frozen=True)
class MetaLearnt:
    """What adapting takes from a run: the learner, what it learnt, and what its images are."""

    run: str
    options: dict[str, Any]  # of the meta-learner, its name among them, as plain values
    learner: MetaLearner
    theta: Theta
    format: Format
    true_labels: bool  # an oracle's
    pretrained: str = ""  # what its network had learnt from before

    @classmethod
    def of(cls, run: Run) -> MetaLearnt:
        """Take the learner of a loaded run.

        Raises:
            UserError: options that were changed since meta-training ask for other parameters than it learnt.
        """
        fresh = run.learner.init(seed=0)
        learnt = run.theta.params
        other = [n for n in {**fresh.params, **learnt} if shape_of(fresh.params.get(n)) != shape_of(learnt.get(n))]
        if other:
            raise UserError(f"{run.folder}: the options do not fit its weights ({other[0]}); its network cannot change")
        return cls(
            str(run.folder),
            run.config.plain["metalearner"],
            run.learner,
            run.theta,
            Format.of(run.config.data, run.item_shape),
            run.true_labels,
            run.pretrained,
        )

    @classmethod
    def unpacked(cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor], device: str) -> MetaLearnt:
        """From its values and tensors."""
        learner = registry.build_part("metalearner", values["metalearner"])
        before = values.get("pretrained", "")
        format = Format(tuple(values["shape"]), values["invert"], values.get("pad", False))
        learner = learner.build(TaskSpec(format.shape), EpisodeSpec(2, 1, 1))  # of any way: theta knows which
        theta = unpack(dict(tensors), to_device(device))
        return cls(values["run"], values["metalearner"], learner, theta, format, values["true_labels"], before)

    def values(self) -> dict[str, Any]:
        """All of it but tensors, as plain values."""
        return {
            "run": self.run,
            "metalearner": self.options,
            "shape": list(self.format.shape),
            "invert": self.format.invert,
            "pad": self.format.pad,
            "true_labels": self.true_labels,
            "pretrained": self.pretrained,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Return the rest, copied to the CPU."""
        return copy_to_cpu({"params": self.theta.params, "running": self.theta.running or {}})

    def __reduce__(self) -> tuple[Any, ...]:
        return MetaLearnt.unpacked, (self.values(), self.tensors(), "cpu")

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what decides what it makes of a picture: the options and weights, wherever they come from."""
        told = hashlib.blake2b(artifacts.hash_value({**self.values(), "run": ""}).encode(), digest_size=16)
        for name, value in sorted(self.tensors().items()):
            told.update(name.encode())
            told.update(value.numpy().tobytes())
        return told.hexdigest()

    @property
    def device(self) -> torch.device:
        return self.theta.device

    def floats(self, items: np.ndarray) -> Tensor:
        """Items uint8 [n, C, H, W] as the network takes them."""
        return to_float(torch.from_numpy(np.require(items, requirements=("C", "W"))).to(self.device))

    def features(self, items: np.ndarray) -> Tensor:
        """Features [n, d] of items uint8 [n, C, H, W], without a gradient."""
        with torch.no_grad():
            return self.learner.features(self.theta, self.floats(items))  # type: ignore[attr-defined]


def shape_of(value: Tensor | None) -> torch.Size | None:
    return None if value is None else value.shape


@dataclass(frozen=True)
class AdaptedLearner:
    """A learner that knows `way` classes by their examples."""

    source: MetaLearnt
    steps: int | None  # of adaptation; None leaves them to the learner
    classes: np.ndarray  # [way] sorted names, integers or strings
    support: np.ndarray  # [n, C, H, W] uint8, the examples
    labels: np.ndarray  # [n] int64 index into classes
    adapted: Adapted  # tensors [1, ...]
    calibration: Calibration | None = None

    @classmethod
    def adapt(cls, source: MetaLearnt, support: np.ndarray, names: Any, steps: int | None = None) -> AdaptedLearner:
        """Adapt on items uint8 [n, C, H, W] with their classes' names [n]; classes may differ in size.

        Raises:
            UserError: names of mixed or other types, not one for each image, or a learner whose answer to an image
                would depend on the images beside it.
        """
        refuse_transductive(source)
        classes, labels = index_labels(names)
        if len(labels) != len(support):
            raise UserError(f"labels: {len(labels)} for {len(support)} images; expected one for each")
        batch = one_task(source.floats(support), torch.from_numpy(labels).to(source.device), len(classes))
        with torch.no_grad():
            adapted = source.learner.adapt(source.theta, batch, steps=steps)
        return cls(source, steps, classes, support, labels, adapted)

    @property
    def shots(self) -> np.ndarray:
        """Examples of each class [way]."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def extended(self, support: np.ndarray, names: Any) -> AdaptedLearner:
        """Adapted to the examples so far and these, as if all had been given at once; no longer calibrated.

        Raises:
            UserError: the learner cannot take more examples later.
        """
        self.check_takes_more()
        names = [*self.classes[self.labels].tolist(), *to_python(names)]
        return AdaptedLearner.adapt(self.source, np.concatenate([self.support, support]), names, self.steps)

    def check_takes_more(self) -> None:
        """Raise UserError for a learner that adapts by gradient steps, which are not taken back."""
        if "prototypes" not in self.adapted.params:
            raise UserError(
                f"a {type(self.source.learner).__name__} adapts to all examples in one go and cannot take more later; "
                "fit it again on all of them (learners of class prototypes, such as ProtoNet, can take more)"
            )

    def calibrate(self) -> AdaptedLearner:
        """With probabilities and the threshold for `unknown` calibrated on its own examples, in whatever order.

        Copies are left out.

        Raises:
            UserError: there is no more than one example of any class.
        """
        examples = zip(self.support, self.labels, strict=True)
        places = {(item.tobytes(), label): i for i, (item, label) in enumerate(examples)}
        distinct = [i for _, i in sorted(places.items())]
        source = self.source
        x = source.floats(self.support[distinct])
        with torch.no_grad():
            calibration = calibrate(source.learner, source.theta, x, self.labels[distinct], self.steps)
        return replace(self, calibration=calibration)

    def logits(self, items: np.ndarray) -> Tensor:
        """Logits [n, way] of items uint8 [n, C, H, W], all in one batch."""
        with torch.no_grad():
            return self.source.learner.predict(self.source.theta, self.adapted, self.source.floats(items)[None])[0]

    def probabilities(self, items: np.ndarray) -> np.ndarray:
        """Probabilities [n, way] float32 of items uint8 [n, C, H, W]; plain softmax where there is no calibration."""
        temperature = self.calibration.temperature if self.calibration else 1.0
        return (self.logits(items) / temperature).softmax(1).cpu().numpy()

    def answers(self, items: np.ndarray, unknown: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Index of the answered class [n] and probabilities [n, way], of items uint8 [n, C, H, W].

        unknown: answer -1 where no class is near.

        Raises:
            UserError: `unknown`, and the learner is not calibrated for it.
        """
        probabilities = self.probabilities(items)
        found = probabilities.argmax(1)
        if unknown:
            shots = torch.from_numpy(self.shots).to(self.source.device)
            near = nearness(self.source.features(items), self.means, shots)
            found[(near < self.threshold()).cpu().numpy()] = -1
        return found, probabilities

    def threshold(self) -> float:
        """Return the nearness below which an image is unknown. Raises UserError when the learner has none."""
        if self.calibration is None:
            raise UserError(
                "unknown: the learner is not calibrated, so it cannot tell what is unknown; adapt again to two "
                "examples or more of each class"
            )
        if self.calibration.threshold is None:
            raise UserError("unknown: the learner gives an image no features of its own to tell what is near")
        return self.calibration.threshold

    @cached_property
    def means(self) -> Tensor:
        """Mean features of each class's examples [way, d]."""
        labels = torch.from_numpy(self.labels).to(self.source.device)
        return class_means(self.source.features(self.support), labels, len(self.classes))

    def picture(self) -> np.ndarray:
        """Return the examples, a class a row: [H, W, 3] uint8."""
        rows = []
        for i, name in enumerate(self.classes[: mosaic.ROWS]):
            shown = self.support[self.labels == i][: mosaic.COLUMNS]
            rows.append((f"{name} ({self.shots[i]})", [mosaic.tile(item) for item in shown]))
        return mosaic.add_captions(rows)

    # as files

    def save(self, folder: Path) -> None:
        """Write the learner to a new folder, which then needs neither the run nor its tasks.

        Raises:
            UserError: there is something in the folder.
        """
        refuse_to_overwrite(folder)
        with artifacts.replace_atomically(folder) as temporary:
            temporary.mkdir()
            artifacts.write_json(temporary / "learner.json", self.values())
            artifacts.write_tensors(temporary / "model.safetensors", self.tensors())
            artifacts.write_array(temporary / "support.npy", self.support)
            mosaic.save(self.picture(), temporary / "support.png")
            artifacts.write_manifest(temporary, "learner", {"umeta": __version__}, FILES)

    @classmethod
    def load(cls, folder: Path, *, device: str = "auto", trusted: Collection[str] | None = ()) -> AdaptedLearner:
        """Return a saved learner.

        trusted: plug-ins that it may name, as in `umeta.load_run`.

        Raises:
            UserError: missing, damaged, of another kind or version, or it names a plug-in that is not trusted.
        """
        manifest = artifacts.read_manifest(folder, "learner", "run")
        if manifest["kind"] == "run" and len(manifest.get("item_shape", ())) != 3:
            raise UserError(
                f"{folder}: a run that is not on images, which predict is about; umeta evaluate {folder} tests it"
            )
        if manifest["kind"] == "run":
            raise UserError(
                f"{folder}: a run, which knows no classes yet; with a folder of images per class in DIR, adapt it "
                f"first: umeta adapt {folder} --support DIR --out learner"
            )
        values = artifacts.read_json(folder / "learner.json")
        registry.refuse_plugins(values, trusted, str(folder))
        tensors = artifacts.read_tensors(folder / "model.safetensors")
        support = artifacts.read_array(folder / "support.npy")
        with artifacts.refuse_malformed(folder):
            if support.dtype != np.uint8 or support.shape != (len(values["labels"]), *values["shape"]):
                raise ValueError(f"examples {support.dtype} {support.shape}")
            if not set(values["labels"]) <= set(range(len(values["classes"]))):
                raise ValueError("a label of no class")
            learner = registry.build_part("metalearner", values["metalearner"])
            episode = EpisodeSpec(len(values["classes"]), 1, 1)
            check_fits(part(tensors, "params."), learner, TaskSpec(tuple(values["shape"])), episode, folder)
            found = cls.unpacked(values, tensors, np.array(support), device)
            if not found.shots.all() or len(found.shots) != len(found.classes):
                raise ValueError("a label without a class, or a class without examples")
            return found

    def to(self, device: str) -> AdaptedLearner:
        """Return the same learner on a device."""
        here = to_device(device)
        now = self.source.device
        same = here.type == now.type and here.index in (None, now.index)
        return self if same else AdaptedLearner.unpacked(self.values(), self.tensors(), self.support, device)

    def __reduce__(self) -> tuple[Any, ...]:
        return AdaptedLearner.unpacked, (self.values(), self.tensors(), self.support, "cpu")

    def values(self) -> dict[str, Any]:
        """All of it but tensors and examples, as plain values."""
        return {
            **self.source.values(),
            "steps": None if self.steps is None else int(self.steps),
            "classes": self.classes.tolist(),
            "labels": self.labels.tolist(),
            "calibration": asdict(self.calibration) if self.calibration else None,
        }

    def tensors(self) -> dict[str, Tensor]:
        """Weights and what adaptation gave, copied to the CPU."""
        return {**self.source.tensors(), **copy_to_cpu({"adapted": self.adapted.params, "stats": self.adapted.stats})}

    @classmethod
    def unpacked(
        cls, values: Mapping[str, Any], tensors: Mapping[str, Tensor], support: np.ndarray, device: str
    ) -> AdaptedLearner:
        """From its values, tensors and examples."""
        here = {name: value.to(to_device(device)) for name, value in tensors.items()}
        return cls(
            MetaLearnt.unpacked(values, tensors, device),
            values["steps"],
            np.array(values["classes"]),
            support,
            np.array(values["labels"], dtype=np.int64),
            Adapted(part(here, "adapted."), part(here, "stats.")),
            Calibration.read(values["calibration"]),
        )


def describe(values: Mapping[str, Any]) -> list[str]:
    """Return a learner's values (`learner.json`) in a few lines for people."""
    names, shots = values["classes"], np.bincount(values["labels"])
    counted = ", ".join(f"{name} {count}" for name, count in zip(names[:12], shots, strict=False))
    more = f", and {len(names) - 12} more classes" if len(names) > 12 else ""
    oracle = ", trained with true labels" if values["true_labels"] else ""
    oracle += f", pre-trained on {values['pretrained']}" if values.get("pretrained") else ""
    calibration = Calibration.read(values["calibration"])
    return [
        f"learner: {values['metalearner']['name']} of {values['run']}{oracle}, images {Format(values['shape'])}",
        f"examples of {len(names)} classes: {counted}{more}",
        str(calibration) if calibration else "not calibrated: probabilities are a plain softmax",
    ]


def copy_to_cpu(groups: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Copy tensors to the CPU, named `group.name`."""
    return {f"{group}.{name}": value.cpu().clone() for group, found in groups.items() for name, value in found.items()}


def load_source(
    folder: Path | str,
    options: Mapping[str, Any] | None = None,
    *,
    device: str = "auto",
    trusted: Collection[str] | None = (),
) -> tuple[MetaLearnt, Run]:
    """Return a run to adapt from, with options of its meta-learner changed, such as `{"normalisation": "support"}`.

    Raises:
        UserError: as `umeta.load_run`, a run on an environment, and options that do not fit its weights.
    """
    run = load_run(folder, {"metalearner": dict(options)} if options else None, device=device, trusted=trusted)
    run.check_on_images()
    return MetaLearnt.of(run), run


def refuse_transductive(source: MetaLearnt) -> None:
    """Raise UserError when the answer to an image would depend on the images beside it."""
    if source.learner.transductive:
        batch = source.learner.normalisation == "batch"
        option, value = ("normalisation", "support") if batch else ("refine", 0)
        raise UserError(
            f"{source.run}: with {option}: {getattr(source.learner, option, None)} the answer to an image would depend "
            f"on the images beside it; adapt with metalearner.{option}={value} (in Python: options="
            f"{ {option: value} }), or meta-train so"
        )


def refuse_to_overwrite(folder: Path) -> None:
    """Raise UserError when there is something in the folder already, or it cannot be written."""
    artifacts.check_writable(folder.parent)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists; choose another place, or move it away")


def to_python(names: Any) -> list[Any]:
    """Class names as a list of Python values."""
    names = np.asarray(names).tolist() if hasattr(names, "__array__") else list(names)
    return [name.item() if isinstance(name, np.generic) else name for name in names]


def index_labels(names: Any) -> tuple[np.ndarray, np.ndarray]:
    """Sorted distinct class names, and the index [n] of each of the given ones.

    Raises:
        UserError: none, or neither all integers nor all strings.
    """
    names = [int(name) if isinstance(name, float) and name.is_integer() else name for name in to_python(names)]
    if not names:
        raise UserError("labels: there are none")
    if not (all(isinstance(name, str) for name in names) or all(isinstance(name, int) for name in names)):
        odd = Counter(type(name).__name__ for name in names)
        raise UserError(f"labels: expected all integers or all strings, got {', '.join(odd)}")
    for name in names:
        if isinstance(name, str) and name.endswith("\0"):
            raise UserError(f"labels: {name!r} ends with a zero byte, which arrays of words drop; rename the class")
        if isinstance(name, int) and not -(2**63) <= name < 2**63:
            raise UserError(f"labels: {name} has more than 64 bits; give the labels as strings")
    classes, labels = np.unique(np.array(names), return_inverse=True)
    return classes, labels.astype(np.int64)
