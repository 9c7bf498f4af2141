"""The dashboard of the fleet."""

from __future__ import annotations

from scripts.monitoring.panels import ALL, DCGM, KUBE_STATE_METRICS, MODEL, PODS, RATE, SEVERAL, Dashboard, Panel

FLEET = Dashboard(
    "completions-fleet",
    "Completions: fleet",
    "Pods, engine generations, load balancing, restarts.",
    (
        Panel(
            "Ready front ends",
            "Front ends that accept requests.",
            "short",
            ((f"sum(completions_ready{{{MODEL}}})", ""),),
            is_number=True,
        ),
        Panel(
            "Scraped front ends",
            "Targets of Prometheus that answer.",
            "short",
            ((f"sum(up{{{ALL}}})", ""),),
            is_number=True,
        ),
        Panel(
            "Engines by generation",
            "Front ends by the id of their engine.",
            "short",
            ((f"count by (engine_id) (decode_engine_info{{{MODEL}}})", "{{engine_id}}"),),
        ),
        Panel(
            "Front ends by release of the software",
            "",
            "short",
            ((f"count by (version) (completions_build_info{{{ALL}}})", "{{version}}"),),
        ),
        Panel(
            "Choices in flight",
            "In all front ends, and the limits of MAX_IN_FLIGHT.",
            "short",
            (
                (f"sum(completions_in_flight_requests{{{MODEL}}})", "in flight"),
                (f"sum(completions_max_in_flight_requests{{{ALL}}})", "limit"),
            ),
        ),
        Panel(
            "Requests by front end",
            "",
            "reqps",
            ((f"sum by (pod, instance) (rate(completions_requests_total{{{MODEL}}}{RATE}))", "{{pod}} {{instance}}"),),
        ),
        Panel(
            "Memory",
            "Resident memory of the front ends' processes.",
            "bytes",
            ((f"sum by (pod, instance) (process_resident_memory_bytes{{{ALL}}})", "{{pod}} {{instance}}"),),
        ),
        Panel(
            "Open files",
            "Part of the limit, of the worker with the most.",
            "percentunit",
            (
                (
                    f"max by (pod, instance) (process_open_fds{{{ALL}}} / process_max_fds{{{ALL}}})",
                    "{{pod}} {{instance}}",
                ),
            ),
        ),
        Panel(
            "Outstanding requests by Triton",
            "",
            "short",
            ((f"sum by (endpoint) (completions_endpoint_outstanding_requests{{{MODEL}}})", "{{endpoint}}"),),
            needs=SEVERAL,
        ),
        Panel(
            "Ejections of Tritons",
            "From load balancing, in 15 minutes.",
            "short",
            ((f"sum by (endpoint) (increase(completions_endpoint_ejections_total{{{MODEL}}}[15m]))", "{{endpoint}}"),),
            needs=SEVERAL,
        ),
        Panel(
            "Restarts of containers",
            "In 15 minutes.",
            "short",
            (
                (
                    f"sum by (pod, container) (increase(kube_pod_container_status_restarts_total{{{PODS}}}[15m]))",
                    "{{pod}} {{container}}",
                ),
                (
                    f"sum by (pod, container) (increase(kube_pod_init_container_status_restarts_total{{{PODS}}}[15m]))",
                    "{{pod}} {{container}}",
                ),
            ),
            needs=KUBE_STATE_METRICS,
        ),
        Panel(
            "Replicas of the autoscaler",
            "Wanted, present, and the limit.",
            "short",
            tuple(
                (
                    f"sum(kube_horizontalpodautoscaler_{name}"
                    '{namespace=~"$namespace",horizontalpodautoscaler=~"keda-hpa-$release.*"})',
                    legend,
                )
                for name, legend in (
                    ("status_desired_replicas", "wanted"),
                    ("status_current_replicas", "present"),
                    ("spec_max_replicas", "limit"),
                )
            ),
            needs=KUBE_STATE_METRICS,
        ),
        Panel(
            "Idle GPUs",
            "GPUs of the pods that did less than 5 % of the time for 15 minutes.",
            "short",
            ((f"count(avg_over_time(DCGM_FI_DEV_GPU_UTIL{{{PODS}}}[15m]) < 5) or vector(0)", ""),),
            needs=DCGM,
        ),
    ),
)
