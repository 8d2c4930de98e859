"""Every error that qdengine raises or returns. Each message says what was wrong and how to mend it."""


class QdengineError(Exception):
    """Base of all qdengine errors."""


class ConfigError(QdengineError, ValueError):
    """An option of the engine, of a model or of a prompt format has an unusable value."""


class RequestError(QdengineError, ValueError):
    """One request cannot be served as it was given. `Summary.error` carries it; its neighbours are not affected."""


class EmptyInputError(RequestError):
    """The query or the document holds no text."""


class InvalidTypeError(RequestError, TypeError):
    """A field has the wrong type, or the item is neither a `Request` nor a dict."""


class InvalidTextError(RequestError):
    """A text cannot be encoded as UTF-8 (a lone surrogate)."""


class UnknownFieldError(RequestError):
    """A dict names a key that requests do not have."""


class LimitError(RequestError):
    """A number is out of range, or the query does not fit the model's context or the engine's memory."""


class CheckpointError(QdengineError):
    """A model folder or bundle is missing a file, damaged, or not what its manifest says."""


class UnsupportedModelError(CheckpointError):
    """The architecture, or an option of it, is not one that qdengine implements."""


class StudentError(QdengineError):
    """A named student is unknown, not installed, or could not be installed."""


class BackendError(QdengineError):
    """A backend (extension, CUDA, Triton) is not usable here; the message names cause and remedy."""


class TrainingError(QdengineError):
    """A run of training has nothing to train on, or went astray."""


class EngineError(QdengineError, RuntimeError):
    """The engine cannot go on, or was used after `close()`."""
