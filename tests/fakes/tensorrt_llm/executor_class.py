"""The class Executor of the bindings, over the fake engine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensorrt_llm.api import bind
from tensorrt_llm.engine import LIVE, FakeEngine


def make_executor_class(namespace: Mapping[str, Any], facts: Mapping[str, Any]) -> type:
    """Returns an Executor class with the signatures of the API facts."""

    def overloads_of(method: str) -> list[Any]:
        described = facts["methods"][method]
        return (
            [item["params"] for item in described["overloads"]] if "overloads" in described else [described["params"]]
        )

    def arguments(method: str, args: Any, kwargs: Any) -> dict[str, Any]:
        bound: dict[str, Any] = bind(f"Executor.{method}", overloads_of(method), args, kwargs, namespace)
        return bound

    class Executor:
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            bound = bind("Executor.__init__", facts["constructor_overloads"], args, kwargs, namespace)
            if "model_path" not in bound:
                raise AssertionError("the fake loads decoder-only engine directories")
            self.fake = FakeEngine(namespace, bound["model_path"], bound["executor_config"])
            LIVE.append(self.fake)

        def enqueue_request(self, *args: Any, **kwargs: Any) -> int:
            request_id: int = self.fake.enqueue(arguments("enqueue_request", args, kwargs)["request"])
            return request_id

        def enqueue_requests(self, *args: Any, **kwargs: Any) -> list[int]:
            return [self.fake.enqueue(item) for item in arguments("enqueue_requests", args, kwargs)["requests"]]

        def await_responses(self, *args: Any, **kwargs: Any) -> list[Any]:
            bound = arguments("await_responses", args, kwargs)
            if bound.keys() - {"timeout"}:
                raise AssertionError("the fake awaits any request's responses only")
            responses: list[Any] = self.fake.await_responses(bound["timeout"])
            return responses

        def cancel_request(self, *args: Any, **kwargs: Any) -> None:
            request_id = arguments("cancel_request", args, kwargs)["id"]
            if request_id is None:
                raise TypeError("cancel_request(): the C++ side needs an id")
            self.fake.cancel(request_id)

        def can_enqueue_requests(self) -> bool:
            return bool(self.fake.is_enqueueable)

        def get_latest_iteration_stats(self) -> list[Any]:
            if self.fake.script.stats == "none":
                return []
            if self.fake.script.stats == "unreadable":
                return [object()]
            with self.fake.lock:
                drained = list(self.fake.stats)
                self.fake.stats.clear()
            return drained

        def shutdown(self) -> None:
            self.fake.shutdown()

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *values: Any) -> None:
            raise TypeError("__exit__(): incompatible function arguments")  # as an early nanobind version did on None

    return Executor
