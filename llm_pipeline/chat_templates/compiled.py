"""Compiles and renders the Jinja template of a model in a sandbox, in bounded time and output.

The same messages give the same text as with transformers' `apply_chat_template`.

A template comes with a model from a public hub. The sandbox (environment.py) keeps it from objects of Python. Against
one that does not end or fills the memory, each pass of a loop and each call of a macro passes a meter, which is
compiled into the template, and so does every value that is written (metering.py); operators and methods that make a
long value from a short one check the result's length first (bounds.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jinja2

from llm_pipeline.chat_templates.environment import make_environment
from llm_pipeline.chat_templates.meter import LIMIT_S, MAX_CHARACTERS, METER, MIB, ChatTemplateError, Meter, too_large

MAX_SOURCE_CHARACTERS = MIB


class CompiledTemplate:
    """One template. It may be rendered by several threads at once."""

    def __init__(self, source: str) -> None:
        """Raises ChatTemplateError if the source is not a template."""
        if len(source) > MAX_SOURCE_CHARACTERS:
            raise ChatTemplateError(f"it has more than {MAX_SOURCE_CHARACTERS} characters")
        try:
            self._template = _ENVIRONMENT.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ChatTemplateError(f"line {error.lineno}: {error.message}") from error
        except (jinja2.TemplateError, RecursionError, SyntaxError, ValueError, MemoryError) as error:
            raise ChatTemplateError(f"it does not compile: {type(error).__name__}") from error

    def render(self, variables: Mapping[str, Any], *, meter: Meter | None = None) -> str:
        """Returns the text. `variables` have JSON values only. `meter` has started.

        Raises ChatTemplateError if the template refuses the variables, fails, or exceeds a limit.
        """
        if meter is None:
            meter = Meter(LIMIT_S)
            meter.start()
        token = METER.set(meter)
        parts: list[str] = []
        length = 0
        try:
            for part in self._template.generate(variables):
                parts.append(part)
                length += len(part)
                if length > MAX_CHARACTERS:
                    raise too_large()
                meter.tick()
        except ChatTemplateError:
            raise
        except jinja2.TemplateError as error:  # raise_exception too
            raise ChatTemplateError(error.message or type(error).__name__) from error
        except RecursionError as error:
            raise ChatTemplateError("it calls itself too often") from error
        except MemoryError as error:
            raise too_large() from error
        except Exception as error:  # a template is a program: it may fail in any way
            raise ChatTemplateError(f"{type(error).__name__}: {error}") from error
        finally:
            METER.reset(token)
        return "".join(parts)


_ENVIRONMENT = make_environment()
