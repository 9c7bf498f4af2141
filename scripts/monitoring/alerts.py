"""The alerts. docs/runbooks.md has a section for each.

Burn rates are those of the SRE workbook, chapter "Alerting on SLOs": with an objective over 30 days, 14.4 times the
budget for 1 h uses 2 % of it, 6 times for 6 h uses 5 %, and once for 3 days 10 %. The short window, a twelfth of the
long one, ends an alert soon after its cause.

Names of kube-state-metrics: kubernetes/kube-state-metrics 04ee634, docs/metrics/workload/pod-metrics.md. It has no exit
status of init containers, and Triton is one (a sidecar), so EngineRestarts reads the engine's own load time as well.
"""

from __future__ import annotations

from dataclasses import dataclass

PAGE, TICKET = "page", "ticket"
KUBE_STATE_METRICS, DCGM, KEDA = "kube-state-metrics", "DCGM exporter", "KEDA"


@dataclass(frozen=True)
class Alert:
    """One alert. Its texts are templates of Prometheus."""

    name: str
    severity: str  # page: at once, at any hour; ticket: in working hours
    hold: str  # how long the expression is true before the alert fires
    meaning: str  # the expression in words
    expression: str
    summary: str
    description: str
    needs: tuple[str, ...] = ()  # exporters that it reads besides the front end


def _burns(series: str, objective: str, *burns: tuple[str, str, str]) -> str:
    """True while the budget is used at one of these rates over both a long and a short window."""
    parts = (
        f"({series}:ratio_rate{long}{{<<scope>>}} > {rate} * (1 - <<{objective}>>)\n"
        f"  and {series}:ratio_rate{short}{{<<scope>>}} > {rate} * (1 - <<{objective}>>))"
        for rate, long, short in burns
    )
    return "\nor ".join(parts)


_FAST = (("14.4", "1h", "5m"), ("6", "6h", "30m"))
_NAMESPACE = "{{ with $labels.namespace }}{{ . }}/{{ end }}"  # outside Kubernetes, series have none, and no pod
_WHERE = _NAMESPACE + "{{ or $labels.release $labels.job }}"
_POD = _NAMESPACE + "{{ or $labels.pod $labels.instance }}"

ALERTS = (
    Alert(
        "CompletionsErrorBudgetFastBurn",
        PAGE,
        "2m",
        "failed requests use the error budget 14.4 times too fast over 1 h and 5 min, or 6 times over 6 h and 30 min",
        _burns("completions:errors", "availability", *_FAST),
        "{{ $value | humanizePercentage }} of the requests to " + _WHERE + " fail",
        "At this rate, the error budget of 30 days is used up within two to five days. Only answers of 5xx count.",
    ),
    Alert(
        "CompletionsErrorBudgetSlowBurn",
        TICKET,
        "1h",
        "failed requests use the error budget too fast over 3 days and 6 h",
        _burns("completions:errors", "availability", ("1", "3d", "6h")),
        "{{ $value | humanizePercentage }} of the requests to " + _WHERE + " have failed for three days",
        "At this rate, the error budget of 30 days is used up before they have passed.",
    ),
    Alert(
        "CompletionsTTFTBudgetBurn",
        PAGE,
        "2m",
        "first tokens after more than <<first_token_le>> s use their budget 14.4 times too fast over 1 h and 5 min, or "
        "6 times over 6 h and 30 min",
        _burns("completions:ttft_slow", "first_token_ratio", *_FAST),
        "{{ $value | humanizePercentage }} of the streams of " + _WHERE + " wait too long for their first token",
        "More than <<first_token_le>> s. At this rate, the budget of 30 days is used up within two to five days.",
    ),
    Alert(
        "CompletionsPodNotReady",
        PAGE,
        "<<pod_not_ready_seconds>>s",
        "a front end does not accept requests or does not answer scrapes, or a pod is not ready and not scraped",
        "min by (namespace, release, pod, instance) (completions_ready{<<scope>>}) == 0\n"
        "or min by (namespace, release, pod, instance) (up{<<scope>>}) == 0\n"
        'or (min by (namespace, pod) (kube_pod_status_ready{condition="true",<<pods>>}) == 0\n'
        "  unless on (namespace, pod) up{<<scope>>})",
        _POD + " accepts no requests",
        "It has not been ready for longer than a start takes, does not answer scrapes, or has not begun to run.",
        (KUBE_STATE_METRICS,),
    ),
    Alert(
        "CompletionsNoReadyPod",
        PAGE,
        "1m",
        "no front end accepts requests for a model",
        "max by (namespace, release, model) (completions_ready{<<scope>>}) == 0\n"
        "or (max by (namespace, release) (up{<<scope>>})\n"
        "  unless on (namespace, release) completions_ready{<<scope>>})\n"
        "or absent(up{<<scope>>})",
        "No pod of " + _WHERE + " accepts requests{{ with $labels.model }} for {{ . }}{{ end }}",
        "Every request fails. Prometheus has no target that is ready, or no target at all.",
    ),
    Alert(
        "CompletionsQueueGrows",
        TICKET,
        "10m",
        "waiting requests exceed <<queued_ratio>> of the capacity and increase over 10 min",
        "(completions:queued_requests:sum{<<scope>>}\n"
        "  > <<queued_ratio>> * completions:max_active_requests:sum{<<scope>>})\n"
        "and deriv(completions:queued_requests:sum{<<scope>>}[10m]) > 0",
        "{{ $value | humanize }} requests wait for the engines of " + _WHERE + ", and more every minute",
        "More requests arrive than the engines complete. When the queue is full, requests are refused with 429.",
    ),
    Alert(
        "CompletionsKVCacheNearlyFull",
        TICKET,
        "5m",
        "more than <<kv_cache_fraction>> of the blocks in use, and TensorRT-LLM has paused requests",
        "(max by (namespace, release, pod, instance, model, endpoint)\n"
        '  (nv_trt_llm_kv_cache_block_metrics{kv_cache_block_type="fraction",<<scope>>}) > <<kv_cache_fraction>>)\n'
        "and on (namespace, release, pod, instance, model, endpoint)\n"
        "  max_over_time(nv_trt_llm_inflight_batcher_metrics"
        '{inflight_batcher_specific_metric="paused_requests",<<scope>>}[5m]) > 0',
        "{{ $value | humanizePercentage }} of the KV cache of " + _POD + " is in use, and requests are paused",
        "TensorRT-LLM pauses requests that do not fit, and computes them again later: their streams stop for a while.",
    ),
    Alert(
        "CompletionsSaturated",
        TICKET,
        "10m",
        "more than <<queue_full_ratio>> of the requests are refused with 429 `queue_full`",
        "completions:queue_full:ratio_rate5m{<<scope>>} > <<queue_full_ratio>>",
        "{{ $value | humanizePercentage }} of the requests to " + _WHERE + " are refused because the queue is full",
        "Clients get 429 with Retry-After. These do not count as errors of the service.",
    ),
    Alert(
        "CompletionsEndpointEjected",
        TICKET,
        "2m",
        "a Triton is out of load balancing, or was three times in 15 min",
        "max by (namespace, release, pod, instance, model, endpoint) (completions_endpoint_ejected{<<scope>>}) > 0\n"
        "or max by (namespace, release, pod, instance, model, endpoint)\n"
        "  (increase(completions_endpoint_ejections_total{<<scope>>}[15m])) > 2",
        "The Triton {{ $labels.endpoint }} is out of load balancing, or was several times",
        "The front end sends it no requests until it has answered a probe. The others carry its load.",
    ),
    Alert(
        "CompletionsEngineRestarts",
        TICKET,
        "0s",
        "an engine was loaded again in the last hour, or a container restarted in the last 15 min",
        "max by (namespace, release, pod, instance, endpoint)\n"
        "  (changes(decode_engine_load_seconds{<<scope>>}[1h])) > 0\n"
        "or on (namespace, pod) max by (namespace, pod)\n"
        '  (increase(kube_pod_init_container_status_restarts_total{container="triton",<<pods>>}[15m])) > 0\n'
        "or on (namespace, pod) max by (namespace, pod)\n"
        '  (increase(kube_pod_container_status_restarts_total{container=~"stack|frontend",<<pods>>}[15m])) > 0',
        "The engine or a server of " + _POD + " has restarted",
        "Its requests failed with 503. Exit status 70 of Triton's container: a model's process or a rank died.",
        (KUBE_STATE_METRICS,),
    ),
    Alert(
        "CompletionsScalerBlind",
        TICKET,
        "5m",
        "KEDA reports errors, its HorizontalPodAutoscaler is not active, or the front ends' series are missing",
        "sum by (scaledObject) (increase(keda_scaler_detail_errors_total{<<scaled_object>>}[10m])) > 0\n"
        "or sum by (scaledObject) (increase(keda_scaled_object_errors_total{<<scaled_object>>}[10m])) > 0\n"
        "or max by (namespace, horizontalpodautoscaler) (kube_horizontalpodautoscaler_status_condition"
        '{condition="ScalingActive",status="false",<<autoscaler>>}) == 1\n'
        "or (max by (namespace, horizontalpodautoscaler)\n"
        "  (kube_horizontalpodautoscaler_spec_max_replicas{<<autoscaler>>})\n"
        "  unless on () decode_active_requests{<<scope>>})",
        "The autoscaler {{ $labels.scaledObject }}{{ $labels.horizontalpodautoscaler }} has no measurements",
        "KEDA's queries fail or find no series. The number of replicas does not follow the load.",
        (KUBE_STATE_METRICS, KEDA),
    ),
    Alert(
        "CompletionsGpuXid",
        TICKET,
        "0s",
        "the last XID of a GPU is not 0",
        "DCGM_FI_DEV_XID_ERRORS{<<pods>>} > 0\nor DCGM_FI_DEV_XID_ERRORS{<<exported_pods>>} > 0",
        "GPU {{ $labels.gpu }} of {{ $labels.Hostname }} has reported XID {{ $value }}",
        "An error of the GPU or of the program on it. The exporter reports the last one until it restarts.",
        (DCGM,),
    ),
    Alert(
        "CompletionsEngineGateFailed",
        TICKET,
        "2m",
        "the init container `gate` of a pod that is not ready has restarted",
        'max by (namespace, pod) (kube_pod_init_container_status_restarts_total{container="gate",<<pods>>}) > 0\n'
        'unless on (namespace, pod) kube_pod_status_ready{condition="true",<<pods>>} == 1',
        "The engine gate refuses to start " + _POD,
        "The engine's files are damaged, incomplete or for another version, GPU or number of GPUs (exit status 3).",
        (KUBE_STATE_METRICS,),
    ),
)
"""All alerts, the most urgent first."""
