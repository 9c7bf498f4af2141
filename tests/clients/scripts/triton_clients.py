"""Triton's own Python clients on the ensemble: the gRPC stream with callbacks and asyncio, metadata over HTTP."""

from __future__ import annotations

import asyncio
import os
import queue
from collections.abc import AsyncIterator
from importlib.metadata import version
from typing import Any

import numpy as np
import tritonclient.grpc as grpc_client
import tritonclient.grpc.aio as aio_client
import tritonclient.http as http_client
from endpoint import PROMPT, report

GRPC_URL, HTTP_URL = os.environ["TRITON_GRPC_URL"], os.environ["TRITON_HTTP_URL"].removeprefix("http://")
LIMIT_S = 60


def inputs() -> list[grpc_client.InferInput]:
    values = {
        "text_input": ("BYTES", np.array([[PROMPT.encode()]], dtype=object)),
        "max_tokens": ("INT32", np.array([[8]], dtype=np.int32)),
        "temperature": ("FP32", np.array([[0]], dtype=np.float32)),
        "stream": ("BOOL", np.array([[True]])),
    }
    tensors = []
    for name, (kind, array) in values.items():
        tensors.append(grpc_client.InferInput(name, list(array.shape), kind))
        tensors[-1].set_data_from_numpy(array)
    return tensors


def text_of(result: grpc_client.InferResult) -> str:
    text = result.as_numpy("text_output")
    return "" if text is None else "".join(part.decode() for part in text.reshape(-1))


def is_final(result: grpc_client.InferResult) -> bool:
    return result.get_response().parameters["triton_final_response"].bool_param


def with_callbacks() -> dict[str, Any]:
    arrived: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(GRPC_URL) as client:
        client.start_stream(callback=lambda result, error: arrived.put(error or result))
        client.async_stream_infer("ensemble", inputs(), enable_empty_final_response=True)
        results = [arrived.get(timeout=LIMIT_S)]
        while not is_final(results[-1]):
            results.append(arrived.get(timeout=LIMIT_S))
        client.stop_stream()
        return {"text": "".join(map(text_of, results)), "is_ready": client.is_model_ready("ensemble")}


async def with_asyncio() -> str:
    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "ensemble", "inputs": inputs(), "enable_empty_final_response": True}

    text = ""
    async with aio_client.InferenceServerClient(GRPC_URL) as client:
        async for result, error in client.stream_infer(requests(), stream_timeout=LIMIT_S):
            if error is not None:
                raise error
            text += text_of(result)
            if is_final(result):
                break
    return text


def over_http() -> dict[str, Any]:
    with http_client.InferenceServerClient(HTTP_URL) as client:
        metadata = client.get_model_metadata("ensemble")
        statistics = client.get_inference_statistics("ensemble")["model_stats"][0]["inference_stats"]
        return {
            "is_live": client.is_server_live(),
            "is_ready": client.is_model_ready("ensemble"),
            "inputs": [item["name"] for item in metadata["inputs"]],
            "is_decoupled": client.get_model_config("ensemble")["model_transaction_policy"]["decoupled"],
            "succeeded": statistics["success"]["count"],
        }


report(
    {
        "version": version("tritonclient"),
        "callbacks": with_callbacks(),
        "asyncio": asyncio.run(with_asyncio()),
        "http": over_http(),
    }
)
