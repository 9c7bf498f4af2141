{{/* What all pods that load the engine have in common. */}}
{{- define "completions.podSettings" -}}
{{- $isCpu := eq .Values.runtime "cpu" -}}
terminationGracePeriodSeconds: {{ include "completions.grace" . }}
serviceAccountName: {{ include "completions.fullname" . }}
automountServiceAccountToken: false
# A Service named triton-grpc would set TRITON_GRPC_PORT to a URL, and stop the start.
enableServiceLinks: false
{{- if $isCpu }}
# So that the pause process reaps the children of a killed server.
shareProcessNamespace: true
{{- end }}
securityContext:
  {{- include "completions.podSecurity" (dict "fsGroup" ((include "completions.runAs" . | fromYaml).runAsUser | int)) | nindent 2 }}
{{- with include "completions.pullSecrets" . }}
{{- . | nindent 0 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with .Values.runtimeClassName }}
runtimeClassName: {{ . }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- include "completions.scheduling" . | nindent 0 }}
{{- end }}

{{/* The template of a pod that serves the API: of a Deployment, or the leader of a LeaderWorkerSet's group. */}}
{{- define "completions.servingPod" -}}
{{- $isCpu := eq .Values.runtime "cpu" -}}
{{- $serve := dict "root" . "component" "serve" -}}
metadata:
  labels:
    {{- include "completions.labels" $serve | nindent 4 }}
    {{- with .Values.engine.id }}
    engine-id: {{ . | quote }}
    {{- end }}
    {{- if .Values.gateway.inferencePool.enabled }}
    llm-d.ai/engine-type: triton-tensorrt-llm # which metrics the endpoint picker reads
    {{- end }}
    {{- with .Values.podLabels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ $isCpu | ternary "stack" "frontend" }}
    {{- with .Values.podAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- include "completions.podSettings" . | nindent 2 }}
  topologySpreadConstraints:
    {{- range .Values.spread.topologyKeys }}
    - maxSkew: 1
      topologyKey: {{ . }}
      whenUnsatisfiable: {{ $.Values.spread.whenUnsatisfiable }}
      labelSelector:
        matchLabels:
          {{- include "completions.selector" $serve | nindent 10 }}
      {{- if not $.Values.multiNode.enabled }}
      matchLabelKeys: [pod-template-hash]
      {{- end }}
    {{- end }}
  initContainers:
    {{- if eq .Values.engine.store "s3" }}
    {{- include "completions.fetch" . | nindent 4 }}
    {{- end }}
    {{- include "completions.gate" . | nindent 4 }}
    {{- if not $isCpu }}
    {{- include "completions.triton" . | nindent 4 }}
    {{- end }}
  containers:
    {{- include ($isCpu | ternary "completions.stack" "completions.frontend") . | nindent 4 }}
  volumes:
    {{- include "completions.volumes" . | nindent 4 }}
    {{- include "completions.sshVolume" (dict "root" . "keys" (list "client" "known_hosts")) | nindent 4 }}
{{- end }}

{{/* Nodes with the GPU that the engine was built for, by the labels of NVIDIA's GPU feature discovery. */}}
{{- define "completions.scheduling" -}}
{{- $isCpu := eq .Values.runtime "cpu" -}}
{{- if not $isCpu }}
{{- $gpu := .Values.gpu }}
{{- if or $gpu.computeCapability $gpu.minMemoryMiB $gpu.minDriver }}
affinity:
  nodeAffinity:
    requiredDuringSchedulingIgnoredDuringExecution:
      nodeSelectorTerms:
        - matchExpressions:
            {{- with $gpu.computeCapability }}
            {{- $parts := splitList "." . }}
            - { key: nvidia.com/gpu.compute.major, operator: In, values: [{{ first $parts | quote }}] }
            - { key: nvidia.com/gpu.compute.minor, operator: In, values: [{{ last $parts | quote }}] }
            {{- end }}
            {{- with $gpu.minMemoryMiB }}
            - { key: nvidia.com/gpu.memory, operator: Gt, values: [{{ sub (int .) 1 | quote }}] }
            {{- end }}
            {{- with $gpu.minDriver }}
            - { key: nvidia.com/cuda.driver.major, operator: Gt, values: [{{ sub (int .) 1 | quote }}] }
            {{- end }}
{{- end }}
{{- end }}
{{- if or .Values.tolerations (not $isCpu) }}
tolerations:
  {{- if not $isCpu }}
  - { key: {{ .Values.gpu.resource }}, operator: Exists, effect: NoSchedule }
  {{- end }}
  {{- with .Values.tolerations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}
{{- end }}

{{- define "completions.volumes" -}}
{{- include "completions.engineVolumes" . | trim }}
{{- if .Values.requireApiKey }}
- name: keys
  secret: { secretName: {{ .Values.apiKeys.existingSecret }}, defaultMode: 0440 } # readable by fsGroup
{{- end }}
{{- end }}

{{/* The leader's or the others' keys of the group's Secret. fsGroup reads them; root owns them, as ssh demands. */}}
{{- define "completions.sshVolume" -}}
{{- if .root.Values.multiNode.enabled }}
- name: ssh
  secret:
    secretName: {{ .root.Values.multiNode.ssh.existingSecret }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - { key: {{ . }}, path: {{ . }} }
      {{- end }}
{{- end }}
{{- end }}

{{- define "completions.engineVolumes" -}}
{{- $engine := .Values.engine -}}
{{- if eq $engine.store "pvc" }}
- name: engine
  persistentVolumeClaim: { claimName: {{ $engine.pvc.claimName }}, readOnly: true }
{{- else if eq $engine.store "image" }}
- name: engine
  image: { reference: {{ $engine.image.reference | quote }}, pullPolicy: {{ $engine.image.pullPolicy }} }
{{- else if eq $engine.store "s3" }}
- name: engine
  emptyDir: { sizeLimit: {{ include "completions.engineGi" . }} }
{{- end }}
{{- with .Values.models }}
{{- if .claimName }}
- name: models
  persistentVolumeClaim: { claimName: {{ .claimName }}, readOnly: true }
{{- end }}
{{- end }}
- name: shm
  emptyDir: { medium: Memory, sizeLimit: {{ eq .Values.runtime "cpu" | ternary "256Mi" .Values.triton.sharedMemory }} }
- name: tmp
  emptyDir: { sizeLimit: 2Gi }
{{- if eq .Values.runtime "cpu" }}
- name: run
  emptyDir: { sizeLimit: 8Gi } # mostly logs, which shrink only when a server restarts
{{- else }}
- name: cache
  emptyDir: { sizeLimit: 20Gi }
{{- end }}
{{- end }}
