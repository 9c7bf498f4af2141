"""The base of the models that document responses, and the token counts that all of them have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


def _tidy(schema: dict[str, Any]) -> None:
    for field in schema["properties"].values():
        field.pop("title", None)


class Document(BaseModel):
    """Documents a response. Responses are built by hand for speed, and tests validate them against these schemas."""

    model_config = ConfigDict(json_schema_extra=_tidy)


class Usage(Document):
    """Token counts."""

    prompt_tokens: int = Field(ge=0, description="Tokens of the prompts")
    completion_tokens: int = Field(
        ge=0, description="Generated tokens, including those of a stop string and the end token"
    )
    total_tokens: int = Field(ge=0, description="Sum of both")
