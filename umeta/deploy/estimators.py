"""A meta-trained learner as scikit-learn's estimators: a classifier, and a transformer of images into vectors."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from umeta.deploy.adapted import AdaptedLearner, MetaLearnt, index_labels, load_source, to_python
from umeta.deploy.calibration import has_own_features
from umeta.errors import UserError
from umeta.runtime import artifacts
from umeta.stages.runs import Run


class FewShotClassifier(ClassifierMixin, BaseEstimator):
    """Learns new classes from a few examples of each, with what a run has learnt without labels.

    Images are arrays [n, H, W], [n, H, W, C] or [n, C, H, W] of the run's image size, uint8 or floats in [0, 1], taken
    as they are; or lists of paths or Pillow images of any size, prepared as the run's own data were (see
    `umeta.data.inputs.Format`). Labels are integers or strings; classes may differ in how many examples they have.
    The answer to an image never depends on the images beside it.

    run: the meta-trained learner, `runs/NAME`.
    options: of its meta-learner, to be changed, such as `{"normalisation": "support"}`.
    steps: of adaptation; by default those of the run's own evaluation.
    calibrated: whether `fit` also calibrates `predict_proba` on the examples, left out in turn (see
        `umeta.deploy.calibration`); needs two of a class, better five, and adapts up to five times more.
    unknown: the label to answer with where no class is near, such as `"unknown"` or `-1`; None for never. Needs what
        `calibrated` needs, and twice the time in `predict`. `predict_proba` stays about the known classes.
    device: auto, cpu, cuda or cuda:N.
    batch_size: images the network sees at a time.
    allow_plugin: run code that the run's config names.

    Attributes after `fit`: `classes_` [way] sorted labels, `learner_` the `umeta.deploy.adapted.AdaptedLearner`.
    """

    def __init__(
        self,
        run: str | Path = "",
        *,
        options: dict[str, Any] | None = None,
        steps: int | None = None,
        calibrated: bool = False,
        unknown: str | int | None = None,
        device: str = "cpu",
        batch_size: int = 256,
        allow_plugin: bool = False,
    ) -> None:
        self.run = run
        self.options = options
        self.steps = steps
        self.calibrated = calibrated
        self.unknown = unknown
        self.device = device
        self.batch_size = batch_size
        self.allow_plugin = allow_plugin

    @classmethod
    def from_run(cls, run: str | Path, **parameters: Any) -> FewShotClassifier:
        """Read a run for a classifier at once; raise UserError here when it is missing or damaged."""
        made = cls(run, **parameters)
        made._source()
        return made

    def fit(self, X: Any, y: Any) -> FewShotClassifier:
        """Adapt to images X and their labels y.

        Raises:
            UserError: images or labels that are none, a way or an image size the run cannot do, or a learner whose
                answers would depend on the images beside it.
        """
        return self._fitted(self._adapted(X, y))

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> FewShotClassifier:
        """Add examples, of new classes or of those there are: the same as `fit` on everything at once.

        classes: the labels to expect, where given; another one is refused. A class is there from its first example.

        Raises:
            UserError: as `fit`, or the learner adapts by gradient steps and cannot take more examples later.
        """
        if classes is not None and (stray := set(to_python(y)) - set(to_python(classes))):
            raise UserError(f"labels: {sorted(stray)[0]!r} is not one of the classes {to_python(classes)}")
        if hasattr(self, "learner_"):
            learner = self._learner()
            return self._fitted(learner.extended(learner.source.format.items(X), y))
        learner = self._adapted(X, y)
        learner.check_takes_more()
        return self._fitted(learner)

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each image [n]; `unknown` where that is set and no class is near."""
        learner = self._learner()
        found = self._batched(learner, X, lambda items: learner.answers(items, self.unknown is not None)[0])
        labels = learner.classes[found]
        return labels if self.unknown is None else np.where(found < 0, np.array(self.unknown), labels)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities [n, way] of the classes in the order of `classes_`; a plain softmax where not calibrated."""
        learner = self._learner()
        return self._batched(learner, X, learner.probabilities)

    def save(self, folder: str | Path) -> None:
        """Write the fitted learner to a new folder, for `load` and `umeta predict`; the run is not needed any more.

        Raises:
            UserError: there is something in the folder.
        """
        self._learner().save(Path(folder))

    @classmethod
    def load(
        cls, folder: str | Path, *, unknown: str | int | None = None, device: str = "cpu", allow_plugin: bool = False
    ) -> FewShotClassifier:
        """Return a fitted classifier of a folder that `save` or `umeta adapt` wrote.

        Raises:
            UserError: missing, damaged or another version's, or `unknown` is asked of what is not calibrated.
        """
        learner = AdaptedLearner.load(Path(folder), device=device, trusted=None if allow_plugin else ())
        made = cls(
            learner.source.run,
            options=learner.source.options,
            steps=learner.steps,
            calibrated=learner.calibration is not None,
            unknown=unknown,
            device=device,
            allow_plugin=allow_plugin,
        )
        made._check_unknown(learner)
        made.classes_, made.learner_ = learner.classes, learner
        return made

    def _source(self) -> tuple[MetaLearnt, Run]:
        if not str(self.run):
            raise UserError("FewShotClassifier: which run? Give FewShotClassifier(run='runs/NAME')")
        return load_cached(Path(self.run), self.options, self.device, self.allow_plugin)

    def _adapted(self, X: Any, y: Any) -> AdaptedLearner:
        source, run = self._source()
        steps = run.test_steps if self.steps is None else self.steps
        return AdaptedLearner.adapt(source, source.format.items(X), y, steps)

    def _fitted(self, learner: AdaptedLearner) -> FewShotClassifier:
        if self.calibrated or self.unknown is not None:
            try:
                learner = learner.calibrate()
            except UserError as error:
                if self.unknown is not None:
                    raise UserError(f"unknown: cannot be calibrated: {error}") from error
                warnings.warn(f"not calibrated, probabilities are a plain softmax: {error}", stacklevel=3)
        self._check_unknown(learner)
        self.classes_, self.learner_ = learner.classes, learner
        return self

    def _check_unknown(self, learner: AdaptedLearner) -> None:
        if self.unknown is None:
            return
        learner.threshold()
        if index_labels([self.unknown])[0].dtype.kind != learner.classes.dtype.kind:
            label = learner.classes.tolist()[0]
            raise UserError(f"unknown={self.unknown!r}: must be of the labels' type, such as {label!r}")
        if self.unknown in learner.classes:
            raise UserError(f"unknown={self.unknown!r}: is one of the classes; choose another label")

    def _learner(self) -> AdaptedLearner:
        check_is_fitted(self, "learner_")
        return self.learner_.to(self.device)

    def _batched(self, learner: AdaptedLearner, X: Any, answer: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return np.concatenate([answer(items) for items in learner.source.format.batches(X, self.batch_size)])


class Features(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """The vectors [n, d] that the network of a run gives to images, for any classifier of scikit-learn to learn from.

    Images are those that `umeta.FewShotClassifier` takes; an image's vector never depends on the images beside it.

    run: the meta-trained learner, `runs/NAME`.
    device: auto, cpu, cuda or cuda:N.
    batch_size: images the network sees at a time.
    allow_plugin: run code that the run's config names.
    """

    def __init__(
        self, run: str | Path = "", *, device: str = "cpu", batch_size: int = 256, allow_plugin: bool = False
    ) -> None:
        self.run = run
        self.device = device
        self.batch_size = batch_size
        self.allow_plugin = allow_plugin

    def fit(self, X: Any = None, y: Any = None) -> Features:
        """Read the run; learn nothing from X or y.

        Raises:
            UserError: the run is missing or damaged, or its network gives an image no vector of its own.
        """
        source, _ = load_cached(Path(self.run), None, self.device, self.allow_plugin)
        if not has_own_features(source.learner, source.theta, source.format.shape):
            raise UserError(
                f"{self.run}: its {type(source.learner).__name__} gives an image no features that are independent of "
                "the images beside it; meta-train with metalearner.normalisation=running or group"
            )
        self.source_ = source
        self._n_features_out = source.features(np.zeros((1, *source.format.shape), np.uint8)).shape[1]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Vectors float32 [n, d]."""
        check_is_fitted(self, "source_")
        batches = self.source_.format.batches(X, self.batch_size)
        return np.concatenate([self.source_.features(items).cpu().numpy() for items in batches])


def load_cached(run: Path, options: dict[str, Any] | None, device: str, allow_plugin: bool) -> tuple[MetaLearnt, Run]:
    """Return a run, read once for as long as it does not change."""
    manifest = run / "manifest.json"
    stamp = artifacts.hash_file(manifest) if manifest.is_file() else ""
    return _loaded(run, json.dumps(options, default=lambda value: value.tolist()), device, allow_plugin, stamp)


@lru_cache(maxsize=2)
def _loaded(run: Path, options: str, device: str, allow_plugin: bool, stamp: str) -> tuple[MetaLearnt, Run]:
    return load_source(run, json.loads(options), device=device, trusted=None if allow_plugin else ())
