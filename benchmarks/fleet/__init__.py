"""Proof of rollouts and scaling on one machine: `make fleet-proof`.

Replicas of the stack run as processes behind a real haproxy, and are replaced, removed, killed and scaled under load,
by the timings of the rendered chart. What a cluster would do is played here: the kubelet (pods.py), the controller of a
Deployment (deployment.py), a Service (proxy.py), and KEDA with a HorizontalPodAutoscaler (autoscaler.py), which reads
the chart's queries from a real Prometheus. docs/fleet.md explains the results.
"""
