"""What the suite's JSON documents have in common: strict frozen models, canonical JSON, content digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """A model that refuses unknown keys and is never changed. Infinite numbers are written as strings."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Sealed(Frozen):
    """A document that carries the digest of its own content, so that truncation and editing are found."""

    digest: str = ""

    def content_digest(self) -> str:
        """sha256 of the canonical JSON of everything but the digest."""
        return "sha256:" + sha256_of_json(self.content())

    def content(self) -> dict[str, Any]:
        """Everything but the digest, as strict JSON values."""
        values: dict[str, Any] = json.loads(self.model_dump_json(exclude={"digest"}))
        return values

    def sealed(self) -> Self:
        return self.model_copy(update={"digest": self.content_digest()})

    @property
    def intact(self) -> bool:
        return self.digest == self.content_digest()


def canonical_json(value: Any) -> str:
    """The one text for a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def sha256_of_json(value: Any) -> str:
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()
