"""How well a model file does on an asset's evaluation images, beside its original."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt

from onnxpress.ir.analysis.execute import stream
from onnxpress.ir.data import DataSource, open_data
from onnxpress.ir.model_io import load

__all__ = ["Evaluation", "Score", "predicted_classes"]


@dataclasses.dataclass(frozen=True)
class Score:
    """accuracy: top-1 in percent. drop: the original's less this, in points. agreement: percent of images that get the
    original's class."""

    accuracy: float
    drop: float
    agreement: float


class Evaluation:
    """The images, and what the original makes of them."""

    def __init__(self, original: Path, evaluation: Path) -> None:
        """evaluation: an .npz of images by the input's name, and their labels."""
        self.images = open_data(evaluation, model=load(original))
        with np.load(evaluation) as arrays:
            self._labels = arrays["labels"]
        self._classes = predicted_classes(original, self.images)

    def score(self, path: Path) -> Score:
        """Run the model at `path` on all images."""
        classes = predicted_classes(path, self.images)
        accuracy, before = (100 * float(np.mean(each == self._labels)) for each in (classes, self._classes))
        return Score(accuracy, before - accuracy, 100 * float(np.mean(classes == self._classes)))


def predicted_classes(path: Path, images: DataSource) -> npt.NDArray[np.int64]:
    """The class that the model at `path` gives each image, [samples], with the runtime's optimizations on."""
    model = load(path)
    output = str(model.graph.outputs[0].name)
    return np.concatenate(
        [batch[output].reshape(len(batch[output]), -1).argmax(axis=1) for batch in stream(model, images, [output])]
    )
