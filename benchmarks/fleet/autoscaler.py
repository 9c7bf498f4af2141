"""The number of replicas that a HorizontalPodAutoscaler would choose for a ScaledObject's queries.

The rules are those of Kubernetes (kubernetes/kubernetes at 00067268967e, pkg/controller/podautoscaler):
`GetExternalPerPodMetricReplicas` and `GetExternalMetricReplicas` in replica_calculator.go for one query, and the
stabilization windows and policies of `behavior` in horizontal.go. The largest number of all queries counts. While a
query has no answer, replicas are not removed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.fleet.chart import Policy, ScalerSpec, Trigger

TOLERANCE = 0.1  # --horizontal-pod-autoscaler-tolerance


@dataclass
class Autoscaler:
    """Remembers its recommendations and changes, for windows and rate limits. Times are monotonic seconds."""

    spec: ScalerSpec
    _recommendations: list[tuple[float, int]] = field(default_factory=list)
    _changes: list[tuple[float, int]] = field(default_factory=list)  # replicas added, negative: removed

    def decide(self, values: Sequence[float | None], current: int, now_s: float) -> int:
        """Returns the number of replicas to run. `values` are the answers to the triggers' queries."""
        wished = self._wished(values, current)
        if wished is None:
            return current
        self._recommendations.append((now_s, min(max(wished, self.spec.min_replicas), self.spec.max_replicas)))
        chosen = self._limited(self._stabilized(current, now_s), current, now_s)
        if chosen != current:
            self._changes.append((now_s, chosen - current))
        return chosen

    def _wished(self, values: Sequence[float | None], current: int) -> int | None:
        wished = [
            replicas_for(trigger, value, current)
            for trigger, value in zip(self.spec.triggers, values, strict=True)
            if value is not None
        ]
        if not wished:
            return None
        is_complete = len(wished) == len(values)
        return max(wished) if is_complete else max(current, *wished)

    def _stabilized(self, current: int, now_s: float) -> int:
        """The smallest recommendation of the window for more replicas, the largest of the window for fewer."""
        up, down = self.spec.up.stabilization_s, self.spec.down.stabilization_s
        newest = self._recommendations[-1][1]
        more = min([newest, *(count for at_s, count in self._recommendations if at_s > now_s - up)])
        fewer = max([newest, *(count for at_s, count in self._recommendations if at_s > now_s - down)])
        return min(max(current, more), fewer)

    def _limited(self, chosen: int, current: int, now_s: float) -> int:
        spec = self.spec
        if chosen > current:
            most = max(self._limit(policy, current, now_s, 1) for policy in spec.up.policies)
            return min(chosen, max(current, most), spec.max_replicas)
        if chosen < current:
            least = min(self._limit(policy, current, now_s, -1) for policy in spec.down.policies)
            return max(chosen, min(current, least), spec.min_replicas)
        return current

    def _limit(self, policy: Policy, current: int, now_s: float, sign: int) -> int:
        """The number of replicas that a policy allows, from that at the beginning of its period."""
        start = current - sum(change for at_s, change in self._changes if at_s > now_s - policy.period_s)
        if policy.is_percent:
            share = 1 + sign * policy.value / 100
            return math.ceil(start * share) if sign > 0 else math.floor(start * share)
        return start + sign * policy.value


def replicas_for(trigger: Trigger, value: float, current: int) -> int:
    """Returns the number of replicas that one query asks for, without windows and limits."""
    ratio = value / (trigger.threshold * (current if trigger.is_average else 1))
    if abs(1 - ratio) <= TOLERANCE:
        return current
    return math.ceil(value / trigger.threshold) if trigger.is_average else math.ceil(ratio * current)
