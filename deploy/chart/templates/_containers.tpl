{{/* The containers of a serving pod. */}}

{{/* Copies the engine from S3. It runs once for each pod: if the gate refuses the copy, only the gate runs again. */}}
{{- define "completions.fetch" -}}
{{- $s3 := .Values.engine.s3 -}}
- name: fetch
  image: {{ $s3.image | quote }}
  command:
    - rclone
    - copy
    - --checksum
    - --transfers=8
    - {{ printf ":s3:%s/%s" $s3.bucket .Values.engine.path }}
    - {{ include "completions.engineDir" . }}
  env:
    - { name: RCLONE_CONFIG, value: /dev/null } # the variables below are all of it
    - { name: RCLONE_S3_PROVIDER, value: {{ $s3.provider }} }
    {{- with $s3.endpoint }}
    - { name: RCLONE_S3_ENDPOINT, value: {{ . | quote }} }
    {{- end }}
    {{- with $s3.region }}
    - { name: RCLONE_S3_REGION, value: {{ . | quote }} }
    {{- end }}
    - name: RCLONE_S3_ACCESS_KEY_ID
      valueFrom:
        secretKeyRef: { name: {{ $s3.existingSecret }}, key: access-key-id }
    - name: RCLONE_S3_SECRET_ACCESS_KEY
      valueFrom:
        secretKeyRef: { name: {{ $s3.existingSecret }}, key: secret-access-key }
  securityContext:
    {{- include "completions.containerSecurity" (include "completions.runAs" . | fromYaml) | nindent 4 }}
  resources:
    requests: { cpu: "1", memory: 1Gi, ephemeral-storage: {{ include "completions.engineGi" . }} }
    limits: { memory: 1Gi }
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    - { name: engine, mountPath: /engines }
    - { name: tmp, mountPath: /tmp, subPath: fetch }
{{- end }}

{{/* The engine with a tenth to spare, as a quantity. */}}
{{- define "completions.engineGi" -}}
{{ ceil (mulf .Values.engine.sizeGiB 1.1) | int }}Gi
{{- end }}

{{/* The user who loads the engine. */}}
{{- define "completions.runAs" -}}
runAsUser: {{ eq .Values.runtime "cpu" | ternary .Values.stack.runAsUser .Values.triton.runAsUser | int }}
{{- end }}

{{- define "completions.engineMounts" -}}
{{- $engine := .Values.engine -}}
{{- if ne $engine.store "builtIn" }}
- { name: engine, mountPath: {{ eq $engine.store "pvc" | ternary $engine.pvc.mountPath "/engines" }}, readOnly: true }
{{- end }}
{{- if .Values.models.claimName }}
- { name: models, mountPath: {{ .Values.models.mountPath }}, readOnly: true }
{{- end }}
{{- end }}

{{/* Exits with 3 and one line for an engine that can't be served here; the line is the container's message. */}}
{{- define "completions.gate" -}}
{{- $isCpu := eq .Values.runtime "cpu" -}}
{{- $image := $isCpu | ternary .Values.images.cpu .Values.images.triton -}}
- name: gate
  image: {{ include "completions.image" (dict "root" . "image" $image) }}
  imagePullPolicy: {{ $image.pullPolicy }}
  command: [{{ $isCpu | ternary "python" "python3" }}, -m, launcher.engine_gate]
  env:
    - { name: ENGINE_DIR, value: {{ include "completions.engineDir" . }} }
    - { name: EXECUTOR, value: {{ include "completions.executor" . }} }
    - { name: GATE_CHECK, value: {{ .Values.engine.check }} }
    {{- with .Values.engine.manifestSha256 }}
    - { name: GATE_MANIFEST_SHA256, value: {{ . | quote }} }
    {{- end }}
    {{- if not $isCpu }}
    - { name: GPU_COUNT, value: {{ include "completions.gpusOfPod" . | quote }} }
    {{- end }}
  securityContext:
    {{- include "completions.containerSecurity" (include "completions.runAs" . | fromYaml) | nindent 4 }}
  resources:
    requests: { cpu: "1", memory: 512Mi }
    limits: { memory: 512Mi }
  terminationMessagePolicy: FallbackToLogsOnError
  {{- with include "completions.engineMounts" . }}
  volumeMounts:
    {{- . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* Time limits and names that the front end and the cpu stack share. */}}
{{- define "completions.frontendVariables" -}}
- { name: MODEL_NAME, value: {{ .Values.model.name | quote }} }
{{- with .Values.model.aliases }}
- { name: MODEL_ALIASES, value: {{ join "," . | quote }} }
{{- end }}
{{- with .Values.model.maxModelLen }}
- { name: MAX_MODEL_LEN, value: {{ int . | quote }} }
{{- end }}
- { name: REQUEST_TIMEOUT_S, value: {{ int .Values.drain.requestTimeoutSeconds | quote }} }
- { name: DRAIN_TIMEOUT_S, value: {{ int .Values.drain.drainTimeoutSeconds | quote }} }
{{- if .Values.requireApiKey }}
- { name: API_KEYS_FILE, value: {{ printf "/run/secrets/keys/%s" .Values.apiKeys.key | quote }} }
{{- else }}
- { name: AUTH, value: "off" }
{{- end }}
{{- if .Values.tenantSecret.existingSecret }}
{{ include "completions.secretVariable" (dict "name" "TENANT_SECRET" "secret" .Values.tenantSecret) }}
{{- end }}
{{- if .Values.limits.existingSecret }}
{{ include "completions.secretVariable" (dict "name" "LIMITS_URL" "secret" .Values.limits) }}
- { name: LIMITS_ON_FAILURE, value: {{ .Values.limits.onFailure }} }
{{- end }}
{{- end }}

{{/* OpenTelemetry's standard variables, of both the front end and Triton. */}}
{{- define "completions.tracing" -}}
{{- $tracing := .Values.tracing -}}
{{- if $tracing.endpoint }}
- { name: OTEL_EXPORTER_OTLP_ENDPOINT, value: {{ $tracing.endpoint | quote }} }
- { name: OTEL_EXPORTER_OTLP_PROTOCOL, value: {{ $tracing.protocol }} }
- { name: OTEL_SERVICE_NAME, value: {{ $tracing.serviceName | default (include "completions.fullname" .) | quote }} }
{{- with $tracing.resourceAttributes }}
{{- $pairs := list }}
{{- range $name, $value := . }}
{{- $pairs = append $pairs (printf "%s=%s" $name $value) }}
{{- end }}
- { name: OTEL_RESOURCE_ATTRIBUTES, value: {{ join "," $pairs | quote }} }
{{- end }}
- { name: OTEL_TRACES_SAMPLER, value: parentbased_traceidratio }
- { name: OTEL_TRACES_SAMPLER_ARG, value: {{ toJson $tracing.sampleRatio | quote }} }
{{- if $tracing.headers.existingSecret }}
{{ include "completions.secretVariable" (dict "name" "OTEL_EXPORTER_OTLP_HEADERS" "secret" $tracing.headers) }}
{{- end }}
{{- end }}
{{- end }}

{{/* Of the container that serves the API. preStop: the endpoint is removed while the server still accepts requests. */}}
{{- define "completions.serving" -}}
ports:
  - { name: http, containerPort: 9000 }
readinessProbe: # the model has answered
  httpGet: { path: /health/ready, port: http }
  periodSeconds: 2
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /health/live, port: http }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- if .Values.drain.preStopSeconds }}
lifecycle:
  preStop:
    sleep: { seconds: {{ int .Values.drain.preStopSeconds }} }
{{- end }}
terminationMessagePolicy: FallbackToLogsOnError
{{- end }}

{{- define "completions.stack" -}}
- name: stack
  image: {{ include "completions.image" (dict "root" . "image" .Values.images.cpu) }}
  imagePullPolicy: {{ .Values.images.cpu.pullPolicy }}
  env:
    - { name: ENGINE_DIR, value: {{ include "completions.engineDir" . }} }
    - { name: EXECUTOR, value: cpu }
    - { name: START_TIMEOUT_S, value: {{ include "completions.startupSeconds" . | quote }} }
    {{- include "completions.frontendVariables" . | nindent 4 }}
    {{- with include "completions.tracing" . }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .Values.stack.settings }}
    {{- include "completions.settings" . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "completions.containerSecurity" .Values.stack | nindent 4 }}
  resources:
    {{- toYaml .Values.stack.resources | nindent 4 }}
  {{- include "completions.serving" . | nindent 2 }}
  startupProbe:
    httpGet: { path: /health/ready, port: http }
    periodSeconds: 5
    failureThreshold: {{ divf (include "completions.startupSeconds" . | float64) 5 | ceil | int }}
  volumeMounts:
    {{- include "completions.engineMounts" . | nindent 4 }}
    {{- if .Values.requireApiKey }}
    - { name: keys, mountPath: /run/secrets/keys, readOnly: true }
    {{- end }}
    - { name: shm, mountPath: /dev/shm }
    - { name: tmp, mountPath: /tmp, subPath: stack }
    - { name: run, mountPath: /var/lib/triton-completions } # RUN_DIR: logs, and Triton's backends, 2 MB
{{- end }}

{{/* Of every container with ranks of the engine. */}}
{{- define "completions.gpusOfPod" -}}
{{ .Values.multiNode.enabled | ternary (div (int .Values.engine.gpus) (int .Values.multiNode.size)) (int .Values.engine.gpus) }}
{{- end }}

{{- define "completions.rankVariables" -}}
- { name: ENGINE_DIR, value: {{ include "completions.engineDir" . }} }
- { name: EXECUTOR, value: {{ include "completions.executor" . }} }
- { name: GPU_COUNT, value: {{ include "completions.gpusOfPod" . | quote }} }
- { name: TRITON_EXIT_TIMEOUT_S, value: {{ int .Values.drain.tritonExitTimeoutSeconds | quote }} }
- { name: TRTLLM_CHECK_FILES, value: size } # the gate has read them
{{- if .Values.multiNode.enabled }}
- { name: SSH_PORT, value: {{ int .Values.multiNode.ssh.port | quote }} }
# The other pods may have to pull the image, and to copy and check the engine.
- { name: MPIRUN_HOSTS_TIMEOUT_S, value: {{ include "completions.preparationSeconds" . | quote }} }
{{- with .Values.multiNode.environment }}
{{- include "completions.settings" . }}
{{- end }}
{{- end }}
{{- with .Values.triton.settings }}
{{- include "completions.settings" . }}
{{- end }}
{{- end }}

{{- define "completions.rankResources" -}}
{{- $own := dict .Values.gpu.resource (include "completions.gpusOfPod" . | int) -}}
{{- $own = .Values.multiNode.enabled | ternary (merge $own (deepCopy .Values.multiNode.limits)) $own -}}
{{- toYaml (merge (dict "limits" $own) (deepCopy .Values.triton.resources)) }}
{{- end }}

{{- define "completions.rankMounts" -}}
{{- include "completions.engineMounts" . | trim }}
- { name: shm, mountPath: /dev/shm }
- { name: tmp, mountPath: /tmp, subPath: triton }
- { name: cache, mountPath: /var/cache/triton-completions }
{{- if .Values.multiNode.enabled }}
- { name: ssh, mountPath: /run/secrets/ssh, readOnly: true }
{{- end }}
{{- end }}

{{/* sshd, for the ranks that the leader's mpirun starts. It stays until they have ended, so it needs no preStop. */}}
{{- define "completions.worker" -}}
- name: triton
  image: {{ include "completions.image" (dict "root" . "image" .Values.images.triton) }}
  imagePullPolicy: {{ .Values.images.triton.pullPolicy }}
  args: [python3, -m, launcher.gpu, --worker]
  env:
    {{- include "completions.rankVariables" . | nindent 4 }}
  ports:
    - { name: ssh, containerPort: {{ int .Values.multiNode.ssh.port }} }
  securityContext:
    {{- include "completions.containerSecurity" .Values.triton | nindent 4 }}
  resources:
    {{- include "completions.rankResources" . | nindent 4 }}
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    {{- include "completions.rankMounts" . | nindent 4 }}
{{- end }}

{{/* A sidecar: it starts before the front end, and gets SIGTERM after the front end has ended. */}}
{{- define "completions.triton" -}}
- name: triton
  image: {{ include "completions.image" (dict "root" . "image" .Values.images.triton) }}
  imagePullPolicy: {{ .Values.images.triton.pullPolicy }}
  restartPolicy: Always
  env:
    {{- include "completions.rankVariables" . | nindent 4 }}
    - { name: TRITON_HOST, value: 127.0.0.1 } # only the front end of this pod reaches it
    - { name: TRITON_METRICS_HOST, value: 0.0.0.0 }
    {{- if .Values.tritonSecret.existingSecret }}
    {{- include "completions.secretVariable" (dict "name" "TRITON_SECRET" "secret" .Values.tritonSecret) | nindent 4 }}
    {{- end }}
    {{- with include "completions.tracing" . }}
    {{- . | nindent 4 }}
    {{- end }}
  ports:
    - { name: triton-metrics, containerPort: 8002 }
  securityContext:
    {{- include "completions.containerSecurity" .Values.triton | nindent 4 }}
  resources:
    {{- include "completions.rankResources" . | nindent 4 }}
  startupProbe: # each stage has answered
    exec:
      command: [python3, /opt/triton-completions/healthcheck.py, TRITON_HTTP_PORT, "8000", /v2/health/ready, ensemble]
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: {{ divf (include "completions.tritonStartupSeconds" . | float64) 10 | ceil | int }}
  livenessProbe: # patient: a busy server must not be killed
    exec:
      command: [python3, /opt/triton-completions/healthcheck.py, TRITON_HTTP_PORT, "8000", /v2/health/live, ensemble]
    periodSeconds: 10
    timeoutSeconds: 10
    failureThreshold: 6
  terminationMessagePolicy: FallbackToLogsOnError
  volumeMounts:
    {{- include "completions.rankMounts" . | nindent 4 }}
{{- end }}

{{- define "completions.frontend" -}}
- name: frontend
  image: {{ include "completions.image" (dict "root" . "image" .Values.images.frontend) }}
  imagePullPolicy: {{ .Values.images.frontend.pullPolicy }}
  env:
    - { name: EXECUTOR, value: {{ include "completions.executor" . }} }
    {{- include "completions.frontendVariables" . | nindent 4 }}
    {{- if .Values.tritonSecret.existingSecret }}
    {{- include "completions.secretVariable" (dict "name" "TRITON_SECRET" "secret" .Values.tritonSecret) | nindent 4 }}
    {{- end }}
    {{- with include "completions.tracing" . }}
    {{- . | nindent 4 }}
    {{- end }}
    {{- with .Values.frontend.settings }}
    {{- include "completions.settings" . | nindent 4 }}
    {{- end }}
  securityContext:
    {{- include "completions.containerSecurity" .Values.frontend | nindent 4 }}
  resources:
    {{- toYaml .Values.frontend.resources | nindent 4 }}
  {{- include "completions.serving" . | nindent 2 }}
  volumeMounts:
    {{- if .Values.requireApiKey }}
    - { name: keys, mountPath: /run/secrets/keys, readOnly: true }
    {{- end }}
    - { name: tmp, mountPath: /tmp, subPath: frontend }
{{- end }}
