"""What the suite's JSON documents have in common: strict frozen models, canonical JSON, content digests."""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer

_OF_TEXT = "text-sha256:"
_DIGEST = re.compile(rb'\{\n "digest": "([^"\n]*)"')


class Frozen(BaseModel):
    """A model that refuses unknown keys and is never changed. Infinite numbers are written as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Growing(Frozen):
    """A model with fields that it did not always have. Where such a field has its default it is left out of the JSON,
    so that the ids and digests of what was made before it stay what they were."""

    LATER: ClassVar[frozenset[str]] = frozenset()
    """Names of those fields; each has a default."""

    @model_serializer(mode="wrap")
    def _without_later_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        for name, default in _later_defaults(type(self)).items():
            if getattr(self, name) == default:
                values.pop(name, None)
        return values


@cache
def _later_defaults(model: type[Growing]) -> dict[str, Any]:
    return {name: model.model_fields[name].get_default(call_default_factory=True) for name in model.LATER}


class Sealed(Frozen):
    """A document that carries the digest of its own text, so that truncation and editing are found.

    The digest is of the text with an empty digest: cheap to check for thousands of files, and without any model, so
    that it holds for every version of a schema.
    """

    digest: str = ""

    def content(self) -> dict[str, Any]:
        """Everything but the digest, as strict JSON values."""
        values: dict[str, Any] = json.loads(self.model_dump_json(exclude={"digest"}))
        return values

    def document(self) -> str:
        """The file's content: one key a line."""
        return self.model_dump_json(indent=1) + "\n"

    def sealed(self) -> Self:
        return self.model_copy(update={"digest": _text_digest(self._unsealed_text())})

    @property
    def intact(self) -> bool:
        return self.digest == _text_digest(self._unsealed_text())

    def _unsealed_text(self) -> bytes:
        return self.model_copy(update={"digest": ""}).document().encode()


def is_intact(document: bytes) -> bool:
    """Whether a sealed document's bytes are those that were written, whatever its schema.

    Documents of before the digest was one of the text carry one of their canonical JSON.
    """
    found = _DIGEST.match(document)
    if found is None:
        return False
    digest = found.group(1).decode("ascii", "replace")
    if digest.startswith(_OF_TEXT):
        return digest == _text_digest(document[: found.start(1)] + document[found.end(1) :])
    try:
        values = json.loads(document)
        return digest == "sha256:" + sha256_of_json({key: values[key] for key in values if key != "digest"})
    except (ValueError, TypeError):
        return False


def top_level(document: bytes, key: str) -> Any:
    """The value of one of the outermost keys of a sealed document, if it fits on a line; None without that key.

    Far faster than reading the whole document, and safe after :func:`is_intact`: only the outermost keys are indented
    by one space.
    """
    found = re.search(rb'\n "' + key.encode() + rb'": ([^\n]*?),?\n', document)
    return None if found is None else json.loads(found.group(1))


def _text_digest(document: bytes) -> str:
    return _OF_TEXT + hashlib.sha256(document.rstrip(b"\n")).hexdigest()


def canonical_json(value: Any) -> str:
    """The one text for a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()
