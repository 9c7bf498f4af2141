"""The dashboard of the service."""

from __future__ import annotations

from scripts.monitoring.panels import ALL, DCGM, MODEL, PODS, RATE, Dashboard, Panel, quantiles

_FAILED_SHARE = (
    f'(sum(increase(completions_requests_total{{status=~"5..",{MODEL}}}[$__range])) or vector(0))'
    f' / (sum(increase(completions_requests_total{{status!~"4..",{MODEL}}}[$__range])) > 0)'
)
SERVICE = Dashboard(
    "completions-service",
    "Completions: service",
    "What clients see: requests, errors, latencies, tokens, refusals, and the error budget.",
    (
        Panel(
            "Error budget left",
            "Part of the budget of failed requests that the selected time range has left. Negative: overspent.",
            "percentunit",
            ((f"1 - ({_FAILED_SHARE}) / scalar(max(completions:errors:budget{{{ALL}}}))", ""),),
            is_number=True,
        ),
        Panel(
            "Failed requests",
            "Answers of 5xx, over all answers but 4xx, in 5 minutes.",
            "percentunit",
            ((f"max(completions:errors:ratio_rate5m{{{ALL}}})", ""),),
            is_number=True,
        ),
        Panel(
            "Slow first tokens",
            "Part of the streams whose first token came later than the objective, in 5 minutes.",
            "percentunit",
            ((f"max(completions:ttft_slow:ratio_rate5m{{{ALL}}})", ""),),
            is_number=True,
        ),
        Panel(
            "Requests refused because the queue is full",
            "429 queue_full over all requests, in 5 minutes.",
            "percentunit",
            ((f"max(completions:queue_full:ratio_rate5m{{{ALL}}}) or vector(0)", ""),),
            is_number=True,
        ),
        Panel(
            "Requests",
            "By HTTP status. 499: the client has disconnected.",
            "reqps",
            ((f"sum by (status) (rate(completions_requests_total{{{MODEL}}}{RATE}))", "{{status}}"),),
        ),
        Panel(
            "Refusals and errors",
            "By error code.",
            "reqps",
            ((f"sum by (reason) (rate(completions_refused_requests_total{{{MODEL}}}{RATE}))", "{{reason}}"),),
        ),
        Panel(
            "Time to first token",
            "Streams only: from the arrival of the request.",
            "s",
            quantiles("completions_time_to_first_token_seconds"),
        ),
        Panel(
            "Time between tokens",
            "Streams only.",
            "s",
            quantiles("completions_inter_token_latency_seconds"),
        ),
        Panel(
            "Duration of requests",
            "From arrival to the end of the response.",
            "s",
            quantiles("completions_request_duration_seconds"),
        ),
        Panel(
            "Tokens",
            "Prompt tokens processed and tokens generated.",
            "short",
            (
                (f"sum(rate(completions_prompt_tokens_total{{{MODEL}}}{RATE}))", "prompt"),
                (f"sum(rate(completions_generation_tokens_total{{{MODEL}}}{RATE}))", "generated"),
            ),
        ),
        Panel(
            "Endings of choices",
            "Finish reasons, and cancelled requests by reason.",
            "short",
            (
                (f"sum by (finish_reason) (rate(completions_finished_total{{{MODEL}}}{RATE}))", "{{finish_reason}}"),
                (f"sum by (reason) (rate(completions_cancelled_total{{{MODEL}}}{RATE}))", "cancelled: {{reason}}"),
            ),
        ),
        Panel(
            "Generated tokens by API key",
            "The ten keys with the most.",
            "short",
            ((f"topk(10, sum by (key) (rate(completions_key_generation_tokens_total{{{MODEL}}}{RATE})))", "{{key}}"),),
        ),
        Panel(
            "Lengths",
            "Median prompt and completion, in tokens.",
            "short",
            tuple(
                (f"histogram_quantile(0.5, sum by (le) (rate({family}_bucket{{{MODEL}}}{RATE})))", legend)
                for family, legend in (
                    ("completions_request_prompt_tokens", "prompt"),
                    ("completions_request_generation_tokens", "completion"),
                )
            ),
        ),
        Panel(
            "Generated tokens per GPU",
            "Over the GPUs that the pods use.",
            "short",
            (
                (
                    f"sum(rate(completions_generation_tokens_total{{{ALL}}}{RATE}))\n"
                    f"/ count(DCGM_FI_DEV_GPU_UTIL{{{PODS}}})",
                    "",
                ),
            ),
            needs=DCGM,
        ),
    ),
)
