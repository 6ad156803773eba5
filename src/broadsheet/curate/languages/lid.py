"""Which language a text is in: fastText models from a checked file, in the form that datatrove asks.

Knows: model files, labels, scores. Does not know: thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.utils.lid import FastTextLID

from broadsheet.console import InputError
from broadsheet.data import resources

DEFAULT = "resource:lid176/lid.176.ftz"


class Languages(FastTextLID):
    """A fastText model of languages by file: for datatrove's `LanguageFilter.model`, and for batches of texts.

    Args:
        path: the default, 176 languages in 0.9 MB; or another fastText file, as GlotLID's `model_v3.bin`, whose labels
            name a script too (`eng_Latn`).
        languages: that are asked for; None: all.
        k: labels that are kept of each text.

    Raises:
        InputError: fastText is not installed; the file is not there, or no fastText model.

    Example:
        >>> Languages().best(["Der Hund schläft.", "The dog sleeps."])  # doctest: +SKIP
        [('de', 1.0), ('en', 0.98)]
    """

    def __init__(self, path: str = DEFAULT, languages: list[str] | None = None, k: int = -1) -> None:
        super().__init__(languages, k)
        self._model: Any = None
        self.path = path

    @property
    def model(self) -> Any:
        """The model, loaded once in each process."""
        if self._model is None:
            self._model = _loaded(resources.local(self.path))
        return self._model

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_model": None}  # a worker loads its own

    def predict(self, doc: Document) -> tuple[tuple[str, float], dict[str, float]]:
        """The best (label, score) of a document, and the scores of all labels."""
        scores = dict(self.scores([doc.text])[0])
        best = max(scores.items(), key=lambda each: each[1], default=("und", 0.0))
        asked = {label: scores.get(label, 0.0) for label in self.languages} if self.languages else scores
        return best, asked

    def scores(self, texts: Sequence[str]) -> list[list[tuple[str, float]]]:
        """(label, score) of each text, the most probable first; none where a text holds no letters.

        The model's sums are off by some 1e-5, and quantized ones by more: scores are clipped to 1.
        """
        labels, values = self.model.multilinePredict([text.replace("\n", " ") for text in texts], self.k, 0.0, "strict")
        return [
            [(label.removeprefix("__label__"), min(1.0, float(value))) for label, value in zip(*each, strict=True)]
            for each in zip(labels, values, strict=True)
        ]

    def best(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The most probable label and its score; `und`, undetermined, and 0 where there are no letters."""
        return [found[0] if found else ("und", 0.0) for found in self.scores(texts)]


def _loaded(path: Path) -> Any:
    try:
        import fasttext_pybind
    except ImportError:
        raise InputError("languages are identified by fastText: pip install -e '.[curate]'") from None
    if not path.is_file():
        raise InputError(f"{path} is not there; expected a fastText model, or {DEFAULT}")
    model = fasttext_pybind.fasttext()
    try:
        model.loadModel(str(path))
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path} is no fastText model: {error}") from None
    return model
