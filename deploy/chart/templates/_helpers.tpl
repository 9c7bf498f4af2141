{{/* Names and labels. managed-by is not among them: helm adds it to what it installs itself. */}}
{{- define "completions.name" -}}
{{ .Values.nameOverride | default .Chart.Name | trunc 40 | trimSuffix "-" }}
{{- end }}

{{- define "completions.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride | trunc 40 | trimSuffix "-" }}
{{- else -}}
{{ .Release.Name | trunc 40 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "completions.labels" -}}
app.kubernetes.io/name: {{ include "completions.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
{{- end }}

{{- define "completions.selector" -}}
app.kubernetes.io/name: {{ include "completions.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{- define "completions.image" -}}
{{- if .image.digest -}}
{{ printf "%s@%s" .image.repository .image.digest | quote }}
{{- else -}}
{{ printf "%s:%s" .image.repository (.image.tag | default .root.Chart.AppVersion) | quote }}
{{- end -}}
{{- end }}

{{- define "completions.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- end }}

{{/* Pod Security "restricted", and a read-only root. */}}
{{- define "completions.podSecurity" -}}
runAsNonRoot: true
{{- with .fsGroup }}
fsGroup: {{ int . }}
fsGroupChangePolicy: OnRootMismatch
{{- end }}
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{- define "completions.containerSecurity" -}}
runAsNonRoot: true
{{- with .runAsUser }}
runAsUser: {{ int . }}
runAsGroup: {{ int . }}
{{- end }}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: { drop: [ALL] }
seccompProfile: { type: RuntimeDefault }
{{- end }}

{{/* Environment variables from `settings`, sorted by name. As JSON, a large number is not written as 2e+06. */}}
{{- define "completions.settings" -}}
{{- range $name, $value := . }}
- { name: {{ $name }}, value: {{ kindIs "string" $value | ternary $value (toJson $value) | quote }} }
{{- end }}
{{- end }}

{{- define "completions.secretVariable" -}}
- name: {{ .name }}
  valueFrom:
    secretKeyRef: { name: {{ .secret.existingSecret }}, key: {{ .secret.key }} }
{{- end }}

{{/* The engine's directory in the pods. */}}
{{- define "completions.engineDir" -}}
{{- $engine := .Values.engine -}}
{{- if eq $engine.store "builtIn" -}}
/opt/engine
{{- else if eq $engine.store "s3" -}}
/engines/engine
{{- else if eq $engine.store "pvc" -}}
{{ printf "%s/%s" $engine.pvc.mountPath $engine.path | trimSuffix "/" }}
{{- else -}}
{{ printf "/engines/%s" $engine.path | trimSuffix "/" }}
{{- end -}}
{{- end }}

{{- define "completions.executor" -}}
{{ get (dict "cpu" "cpu" "engine" "tensorrt_llm" "pytorch" "tensorrt_llm_pytorch") .Values.runtime }}
{{- end }}

{{/* A backend of the route, in one line. */}}
{{- define "completions.backend" -}}
{{- if eq .root.Values.gateway.httpRoute.backend "InferencePool" -}}
{ group: inference.networking.k8s.io, kind: InferencePool, name: {{ .name }}, weight: {{ int .weight }} }
{{- else -}}
{ name: {{ .name }}, port: {{ int .root.Values.service.port }}, weight: {{ int .weight }} }
{{- end -}}
{{- end }}

{{/* A regular expression of the pods' names: those of a Deployment, or of a LeaderWorkerSet's leaders and workers. Two
parts behind the name, so that a release "a" does not take the pods of a release "a-b". */}}
{{- define "completions.podNames" -}}
{{ include "completions.fullname" . }}-{{ .Values.multiNode.enabled | ternary "[0-9]+(-[0-9]+)?" "[a-z0-9]+-[a-z0-9]+" }}
{{- end }}

{{- define "completions.leastReplicas" -}}
{{ .Values.autoscaling.enabled | ternary .Values.autoscaling.minReplicas .Values.replicas | int }}
{{- end }}

{{/* --- Seconds ------------------------------------------------------------------------------------------------- */}}

{{/* Reading the engine once from its volume. */}}
{{- define "completions.readSeconds" -}}
{{ ceil (divf (mulf .Values.engine.sizeGiB 1024) .Values.startup.storeMiBPerSecond) | int }}
{{- end }}

{{- define "completions.startupSeconds" -}}
{{- if .Values.startup.seconds -}}
{{ int .Values.startup.seconds }}
{{- else -}}
{{ add (include "completions.readSeconds" . | int) (int .Values.startup.baseSeconds) }}
{{- end -}}
{{- end }}

{{/* In sequence: preStop, the front end with its last writes and spans, Triton, and a margin. cpu: as the launcher
waits, which includes the spans. */}}
{{- define "completions.neededGrace" -}}
{{- $drain := .Values.drain -}}
{{- $both := add (int $drain.preStopSeconds) (int $drain.drainTimeoutSeconds) (int $drain.marginSeconds) -}}
{{- if eq .Values.runtime "cpu" -}}
{{ add $both 15 20 }}
{{- else -}}
{{ add $both 7 (ne .Values.tracing.endpoint "" | ternary 2 0) (int $drain.tritonExitTimeoutSeconds) }}
{{- end -}}
{{- end }}

{{- define "completions.grace" -}}
{{ .Values.drain.gracePeriodSeconds | default (include "completions.neededGrace" .) | int }}
{{- end }}

{{/* A copy from S3, and the gate's check. */}}
{{- define "completions.gateSeconds" -}}
{{- $copy := 0 -}}
{{- if eq .Values.engine.store "s3" -}}
{{- $copy = ceil (divf (mulf .Values.engine.sizeGiB 1024) .Values.startup.copyMiBPerSecond) | int -}}
{{- end -}}
{{- $check := eq .Values.engine.check "sha256" | ternary (include "completions.readSeconds" . | int) 0 -}}
{{ add $copy $check }}
{{- end }}

{{/* The gate, and the startup probe. */}}
{{- define "completions.loadSeconds" -}}
{{ add (include "completions.gateSeconds" .) (include "completions.startupSeconds" .) }}
{{- end }}

{{/* From a pod's creation to the start of its containers, with a minute to spare. */}}
{{- define "completions.preparationSeconds" -}}
{{ add (int .Values.startup.imagePullSeconds) (include "completions.gateSeconds" .) 60 }}
{{- end }}

{{/* From the old pod's end to the new pod's readiness: with maxSurge 0, the new one waits for the old one's GPUs. */}}
{{- define "completions.progressDeadline" -}}
{{ add (include "completions.grace" .) (include "completions.preparationSeconds" .)
  (include "completions.startupSeconds" .) (int .Values.rollout.minReadySeconds) }}
{{- end }}

{{/* Until Triton is ready: the first pod of a group also waits for the others. */}}
{{- define "completions.tritonStartupSeconds" -}}
{{- $own := include "completions.startupSeconds" . | int -}}
{{ .Values.multiNode.enabled | ternary (add $own (include "completions.preparationSeconds" . | int)) $own }}
{{- end }}

{{/* Egress rules to the collector and, for its name, to DNS. */}}
{{- define "completions.tracingEgress" -}}
{{- $tracing := .Values.tracing -}}
{{- if and $tracing.endpoint $tracing.egress -}}
{{- $url := urlParse $tracing.endpoint -}}
{{- $default := eq $url.scheme "https" | ternary "443" "80" -}}
{{- $port := regexFind ":[0-9]+$" $url.host | trimPrefix ":" | default $default -}}
- to:
    {{- toYaml $tracing.egress | nindent 4 }}
  ports:
    - { protocol: TCP, port: {{ $port }} }
- to:
    - namespaceSelector: {}
      podSelector: { matchLabels: { k8s-app: kube-dns } }
  ports:
    - { protocol: UDP, port: 53 }
    - { protocol: TCP, port: 53 }
{{- else -}}
[]
{{- end -}}
{{- end }}

{{/* --- What would fail in the cluster, or cut streams ----------------------------------------------------------- */}}

{{- define "completions.check" -}}
{{- include "completions.checkRoute" . -}}
{{- if not .Values.gateway.httpRoute.only -}}
{{- include "completions.checkPods" . -}}
{{- end -}}
{{- end }}

{{- define "completions.checkRoute" -}}
{{- $route := .Values.gateway.httpRoute -}}
{{- $pool := .Values.gateway.inferencePool -}}
{{- if and $route.enabled (not $route.parentRefs) -}}
{{- fail "gateway.httpRoute needs a Gateway in parentRefs." -}}
{{- end -}}
{{- if and $route.only (not (and $route.enabled $route.releases)) -}}
{{- fail "gateway.httpRoute.only: this release would have no object. Set enabled, and the releases that serve." -}}
{{- end -}}
{{- $sum := 0 -}}
{{- range $route.releases -}}
{{- $sum = add $sum (int .weight) -}}
{{- end -}}
{{- if and $route.releases (not $sum) -}}
{{- fail "gateway.httpRoute.releases: all weights are 0, so the gateway would answer every request with 500." -}}
{{- end -}}
{{- if and $route.enabled (eq $route.backend "InferencePool") (not $route.only) (not $pool.enabled) -}}
{{- fail "gateway.httpRoute.backend is InferencePool, and gateway.inferencePool is not enabled." -}}
{{- end -}}
{{- if and $pool.enabled (not $pool.endpointPicker.name) -}}
{{- fail "gateway.inferencePool.endpointPicker.name is empty. Name the Service of the endpoint picker." -}}
{{- end -}}
{{- end }}

{{- define "completions.checkGroup" -}}
{{- $multiNode := .Values.multiNode -}}
{{- if eq .Values.runtime "cpu" -}}
{{- fail "multiNode is for engines of GPUs: runtime is cpu." -}}
{{- end -}}
{{- if mod (int .Values.engine.gpus) (int $multiNode.size) -}}
{{- fail (printf "engine.gpus is %v: %v pods (multiNode.size) cannot share them equally." .Values.engine.gpus $multiNode.size) -}}
{{- end -}}
{{- if not $multiNode.ssh.existingSecret -}}
{{- fail "multiNode.ssh.existingSecret is empty. Name a Secret with the keys of the group: docs/gateway.md." -}}
{{- end -}}
{{- end }}

{{- define "completions.checkPods" -}}
{{- if .Values.multiNode.enabled -}}
{{- include "completions.checkGroup" . -}}
{{- end -}}
{{- $engine := .Values.engine -}}
{{- $drain := .Values.drain -}}
{{- if not $drain.allowCutStreams -}}
{{- if gt (float64 $drain.requestTimeoutSeconds) (float64 $drain.drainTimeoutSeconds) -}}
{{- fail (printf "drain.requestTimeoutSeconds is %v and drain.drainTimeoutSeconds is %v: a longer stream would be cut. Raise the latter, or set drain.allowCutStreams." $drain.requestTimeoutSeconds $drain.drainTimeoutSeconds) -}}
{{- end -}}
{{- if lt (include "completions.grace" . | int) (include "completions.neededGrace" . | int) -}}
{{- fail (printf "drain.gracePeriodSeconds is %v, and a drain takes up to %s s: streams would be cut. Remove it, or set drain.allowCutStreams." $drain.gracePeriodSeconds (include "completions.neededGrace" .)) -}}
{{- end -}}
{{- end -}}
{{- if and (eq (int .Values.rollout.maxSurge) 0) (eq (int .Values.rollout.maxUnavailable) 0) -}}
{{- fail "rollout.maxSurge and rollout.maxUnavailable are both 0: no pod could be replaced." -}}
{{- end -}}
{{- if and .Values.requireApiKey (not .Values.apiKeys.existingSecret) -}}
{{- fail "apiKeys.existingSecret is empty. Name a Secret with the keys file, or set requireApiKey to false." -}}
{{- end -}}
{{- if and (ne .Values.runtime "cpu") (eq $engine.store "builtIn") -}}
{{- fail (printf "engine.store builtIn is the engine of the cpu image; for runtime %s use pvc, image or s3." .Values.runtime) -}}
{{- end -}}
{{- if and (eq $engine.store "pvc") (not (and $engine.pvc.claimName $engine.path)) -}}
{{- fail "engine.store pvc needs engine.pvc.claimName and engine.path." -}}
{{- end -}}
{{- if eq $engine.store "image" -}}
{{- if not $engine.image.reference -}}
{{- fail "engine.store image needs engine.image.reference, with a digest." -}}
{{- end -}}
{{- if semverCompare "<1.31.0-0" .Capabilities.KubeVersion.Version -}}
{{- fail (printf "engine.store image needs Kubernetes 1.31 or later, and from 1.31 to 1.34 the feature gate ImageVolume; this is %s. Use pvc or s3." .Capabilities.KubeVersion.Version) -}}
{{- end -}}
{{- end -}}
{{- if eq $engine.store "s3" -}}
{{- $s3 := $engine.s3 -}}
{{- if not (and $s3.image $s3.bucket $s3.existingSecret $engine.path) -}}
{{- fail "engine.store s3 needs engine.s3.image, engine.s3.bucket, engine.s3.existingSecret and engine.path." -}}
{{- end -}}
{{- if ne $engine.check "sha256" -}}
{{- fail "engine.store s3 needs engine.check sha256: a copy can be damaged without a change of size." -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.egress) -}}
{{- fail "engine.store s3 needs a rule in networkPolicy.egress for the object store and for DNS; all else is denied." -}}
{{- end -}}
{{- end -}}
{{- if and .Values.tracing.endpoint .Values.networkPolicy.enabled (not .Values.tracing.egress) (not .Values.networkPolicy.egress) -}}
{{- fail "tracing.endpoint needs tracing.egress, the pods of the collector, or a rule in networkPolicy.egress: all else is denied." -}}
{{- end -}}
{{- if .Values.buildJob.enabled -}}
{{- if ne $engine.store "pvc" -}}
{{- fail "buildJob writes to the claim of engine.pvc: set engine.store to pvc." -}}
{{- end -}}
{{- if not (contains (printf "root = %q" $engine.pvc.mountPath) .Values.buildJob.fleet) -}}
{{- fail (printf "buildJob.fleet needs the line: root = %q (engine.pvc.mountPath)." $engine.pvc.mountPath) -}}
{{- end -}}
{{- end -}}
{{- end }}
