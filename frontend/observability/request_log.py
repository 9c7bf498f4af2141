"""Configures logging and logs one line per request. Prompts, generated text and API keys are never logged."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from functools import partial
from typing import Any

import structlog

from frontend.observability.request_record import RequestRecord
from frontend.settings import FrontendSettings

log = structlog.get_logger(__name__)


def log_request(record: RequestRecord, *, is_completion: bool, is_probe: bool) -> None:
    """Logs one line for a finished request: at level info for completions and for errors, except errors of probes."""
    is_of_interest = is_completion or (record.final_status >= 400 and not is_probe)
    write = log.info if is_of_interest else log.debug
    write("request", **_fields(record, is_completion=is_completion))


def _fields(record: RequestRecord, *, is_completion: bool) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "request_id": record.request_id,
        "method": record.method,
        "path": record.path[:200],
        "status": record.final_status,
        "duration_ms": _milliseconds(record.duration_s),
        "key": record.key.name if record.key else None,
    }
    if record.error_code is not None:
        fields["error"] = record.error_code.value
    if is_completion:
        first_s = record.first_token_s
        fields |= {
            "operation": record.operation,
            "model": record.model,
            "stream": record.is_stream,
            "prompt_tokens": record.prompt_tokens,
            "completion_tokens": record.completion_tokens,
            "ttft_ms": None if first_s is None else _milliseconds(first_s - record.started_s),
            "finish_reasons": list(record.finish_reasons),
        }
    return fields


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 1)


def configure_logging(settings: FrontendSettings, *, worker: int | None = None) -> None:
    """Sets one format for the lines of this package and of libraries (uvicorn, gRPC). Called once per process.

    Each line is a single write, so lines of several workers do not mix. `worker` adds the worker's number to each. Our
    own lines do not pass through `logging`, which takes longer than the line's content: there is one for each request.
    """
    shared: list[structlog.typing.Processor] = [
        *([] if worker is None else [partial(_add_worker, worker)]),
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, *_rendering(settings)],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=_LineLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler()
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=[remove_meta, *_rendering(settings)])
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())


class _LineLogger:
    """Writes rendered lines to stderr, under the name of a module."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._stream = sys.stderr

    def msg(self, line: str) -> None:
        """Writes one line. A broken stderr must not fail requests: the line is lost, as with `logging`."""
        with suppress(OSError, ValueError):  # ValueError if the stream is closed
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = msg


def _add_worker(number: int, _log: Any, _method: str, fields: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {**fields, "worker": number}


def _rendering(settings: FrontendSettings) -> list[structlog.typing.Processor]:
    if settings.log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    # The default traceback formatter shows local variables, which may contain prompts.
    console = structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback)
    return [console]
