{{- define "paceline.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{ .Release.Name | trunc 48 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 48 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{- define "paceline.account" -}}
{{ .Values.serviceAccount.name | default (include "paceline.name" .) }}
{{- end }}

{{- define "paceline.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "paceline.selector" -}}
app.kubernetes.io/name: paceline-operator
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "paceline.labels" -}}
{{ include "paceline.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "paceline.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "paceline.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- /* Stop when the cluster does not know a kind of the Prometheus Operator: (list $ "PodMonitor") */ -}}
{{- define "paceline.needKind" -}}
{{- $kind := index . 1 }}
{{- $api := printf "monitoring.coreos.com/v1/%s" $kind }}
{{- if not ((index . 0).Capabilities.APIVersions.Has $api) }}
{{- $missing := printf "monitoring.%s.enabled needs the CustomResourceDefinition %ss.monitoring.coreos.com, which this cluster has not" (untitle $kind) (lower $kind) }}
{{- $todo := "install the Prometheus Operator first, or leave the value false and do as docs/monitoring.md says" }}
{{- fail (printf "%s: %s. `helm template` asks no cluster: give it --api-versions %s" $missing $todo $api) }}
{{- end }}
{{- end }}
