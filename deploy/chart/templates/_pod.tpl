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
{{- if .Values.requireApiKey }}
- name: keys
  secret: { secretName: {{ .Values.apiKeys.existingSecret }}, defaultMode: 0440 } # readable by fsGroup
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
