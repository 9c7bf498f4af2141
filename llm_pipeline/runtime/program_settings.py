"""The base class of every program's settings."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, SecretStr, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError
from pydantic_settings import BaseSettings, SettingsConfigDict

from llm_pipeline.runtime.renamed_settings import renamed_message, renamed_settings

_SECRET = re.compile(r"[A-Za-z0-9_-]{16,}")


def _check_secret(secret: SecretStr) -> SecretStr:
    if not _SECRET.fullmatch(secret.get_secret_value()):
        raise ValueError("A secret has at least 16 letters, digits, - and _")
    return secret


# A secret that can be sent in a header and written on a command line.
HeaderSecret = Annotated[SecretStr, AfterValidator(_check_secret)]


class ProgramSettings(BaseSettings):
    """Settings from the environment: one field per variable of the same name in capitals.

    Raises pydantic's ValidationError for an invalid value and for a variable that has been renamed, even if this
    program does not read it: a child process may.
    """

    model_config = SettingsConfigDict(extra="ignore", frozen=True, env_ignore_empty=True)

    def __init__(self, **values: Any) -> None:
        # Here rather than in a model validator, so that each error is reported under its variable's name.
        self.refuse_renamed(name for name, value in os.environ.items() if value)
        super().__init__(**values)

    @classmethod
    def refuse_renamed(cls, names: Iterable[str]) -> None:
        """Raises ValidationError if a former name is among `names`."""
        errors: list[InitErrorDetails] = [
            {
                "type": PydanticCustomError("renamed_setting", "{message}", {"message": message}),
                "loc": (name,),
                "input": "",
            }
            for name, message in ((name, renamed_message(name)) for name in renamed_settings(names))
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors, hide_input=True)
