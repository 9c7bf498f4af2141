"""The dashboard of the engines."""

from __future__ import annotations

from scripts.monitoring.panels import DCGM, MODEL, PODS, RATE, TENSORRT_LLM, Dashboard, Panel, quantiles

ENGINES = Dashboard(
    "completions-engines",
    "Completions: engines",
    "Load and caches of each engine.",
    (
        Panel(
            "Requests in the engines",
            "Being decoded, waiting, and the most that are decoded at once.",
            "short",
            (
                (f"sum(decode_active_requests{{{MODEL}}})", "decoded"),
                (f"sum(decode_queued_requests{{{MODEL}}})", "waiting"),
                (f"sum(decode_max_active_requests{{{MODEL}}})", "capacity"),
            ),
        ),
        Panel(
            "Part of the capacity in use",
            "By pod.",
            "percentunit",
            (
                (
                    f"decode_active_requests{{{MODEL}}} / (decode_max_active_requests{{{MODEL}}} > 0)",
                    "{{pod}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Waiting requests",
            "By pod.",
            "short",
            ((f"decode_queued_requests{{{MODEL}}}", "{{pod}} {{instance}}"),),
        ),
        Panel(
            "Time in the queue",
            "Until a request leaves decode's queue.",
            "s",
            quantiles("completions_queue_time_seconds"),
        ),
        Panel("Prefill", "From then until the first token.", "s", quantiles("completions_prefill_time_seconds")),
        Panel(
            "KV cache in use",
            "Part of all blocks, by pod.",
            "percentunit",
            (
                (
                    f'nv_trt_llm_kv_cache_block_metrics{{kv_cache_block_type="fraction",{MODEL}}}',
                    "{{pod}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Prefix cache: hits",
            "Part of the prompt tokens that were found in the cache, of engines that count tokens.",
            "percentunit",
            (
                (
                    f"sum(rate(decode_prefix_cache_hit_tokens_total{{{MODEL}}}{RATE}))\n"
                    f"/ (sum(rate(decode_prefix_cache_queried_tokens_total{{{MODEL}}}{RATE})) > 0)",
                    "",
                ),
            ),
        ),
        Panel(
            "Prefix cache: hits since the start",
            "Part of the blocks of prompts that TensorRT-LLM found in its cache.",
            "percentunit",
            ((f"decode_kv_cache_hit_ratio{{{MODEL}}}", "{{pod}} {{instance}}"),),
            needs=TENSORRT_LLM,
        ),
        Panel(
            "Paused requests",
            "Requests that TensorRT-LLM has paused because the KV cache is full.",
            "short",
            (
                (
                    "nv_trt_llm_inflight_batcher_metrics"
                    f'{{inflight_batcher_specific_metric="paused_requests",{MODEL}}}',
                    "{{pod}} {{instance}}",
                ),
            ),
            needs=TENSORRT_LLM,
        ),
        Panel(
            "Requests per iteration",
            "Requests that TensorRT-LLM advanced in its newest iteration.",
            "short",
            ((f"decode_iteration_scheduled_requests{{{MODEL}}}", "{{pod}} {{instance}}"),),
            needs=TENSORRT_LLM,
        ),
        Panel(
            "Time of an iteration",
            "Of TensorRT-LLM's newest one.",
            "s",
            ((f"decode_iteration_duration_seconds{{{MODEL}}}", "{{pod}} {{instance}}"),),
            needs=TENSORRT_LLM,
        ),
        Panel(
            "Load time of the engine",
            "Of the newest load.",
            "s",
            ((f"decode_engine_load_seconds{{{MODEL}}}", "{{pod}} {{instance}}"),),
        ),
        Panel(
            "GPU power",
            "By GPU.",
            "watt",
            ((f"DCGM_FI_DEV_POWER_USAGE{{{PODS}}}", "{{Hostname}} {{gpu}}"),),
            needs=DCGM,
        ),
        Panel(
            "GPU memory in use",
            "By GPU.",
            "decmbytes",
            ((f"DCGM_FI_DEV_FB_USED{{{PODS}}}", "{{Hostname}} {{gpu}}"),),
            needs=DCGM,
        ),
        Panel(
            "Tensor cores active",
            "Part of the cycles, by GPU.",
            "percentunit",
            ((f"DCGM_FI_PROF_PIPE_TENSOR_ACTIVE{{{PODS}}}", "{{Hostname}} {{gpu}}"),),
            needs=DCGM,
        ),
        Panel(
            "XID",
            "The last error of each GPU.",
            "short",
            ((f"DCGM_FI_DEV_XID_ERRORS{{{PODS}}}", "{{Hostname}} {{gpu}}"),),
            needs=DCGM,
        ),
    ),
)
