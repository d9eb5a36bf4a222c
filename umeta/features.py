"""The network of a run as a scikit-learn transformer: images in, vectors out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from umeta.calibration import has_own_features
from umeta.classifier import loaded
from umeta.errors import UserError


class Features(TransformerMixin, BaseEstimator):
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
        """Reads the run; learns nothing from X or y.

        Raises:
            UserError: the run is missing or damaged, or its network gives an image no vector of its own.
        """
        source, _ = loaded(Path(self.run), None, self.device, self.allow_plugin)
        if not has_own_features(source.learner, source.theta, source.format.shape):
            raise UserError(
                f"{self.run}: its {type(source.learner).__name__} gives an image no features that are independent of "
                "the images beside it; meta-train with metalearner.normalisation=running or group"
            )
        self.source_ = source
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Vectors float32 [n, d]."""
        check_is_fitted(self, "source_")
        batches = self.source_.format.batches(X, self.batch_size)
        return np.concatenate([self.source_.features(items).cpu().numpy() for items in batches])
