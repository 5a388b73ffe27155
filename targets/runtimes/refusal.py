"""What a runtime says when it takes no model, in one line."""

from __future__ import annotations

from onnxpress.ir.errors import BudgetError

__all__ = ["RuntimeRefusalError", "one_line"]

_MESSAGE_LIMIT = 300  # characters of a runtime's message that are kept


class RuntimeRefusalError(BudgetError):
    """The runtime does not load or does not run a model. The message carries its first cause."""


def one_line(message: object) -> str:
    """Return a runtime's message without line breaks and what a terminal obeys, cut where it is long."""
    text = "".join(filter(str.isprintable, " ".join(str(message).split())))
    return text if len(text) <= _MESSAGE_LIMIT else text[: _MESSAGE_LIMIT - 3] + "..."
