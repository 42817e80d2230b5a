{{- /* SPDX-License-Identifier: Apache-2.0 */ -}}

{{- define "xpu-device-plugin.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* The release's name, without a repetition of the chart's. Room is left for -daemonset. */ -}}
{{- define "xpu-device-plugin.fullname" -}}
{{- $name := include "xpu-device-plugin.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* The name of cluster-wide objects: it differs for releases of one name in two namespaces. */ -}}
{{- define "xpu-device-plugin.clustername" -}}
{{- include "xpu-device-plugin.fullname" . }}{{ if ne .Release.Namespace "kube-system" }}-{{ .Release.Namespace }}{{ end }}
{{- end }}

{{- define "xpu-device-plugin.labels" -}}
app.kubernetes.io/name: {{ include "xpu-device-plugin.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "xpu-device-plugin.selector" -}}
name: {{ include "xpu-device-plugin.fullname" . }}-ds
{{- end }}

{{- /* If labels count, a node without the label keeps its cards as they are. */ -}}
{{- define "xpu-device-plugin.vfs" -}}
{{- if ne (toString .Values.sriovNumVfs) "" }}
{{- .Values.sriovNumVfs }}
{{- else }}
{{- ternary "keep" "0" .Values.rbac.create }}
{{- end }}
{{- end }}

{{- /* The directories of mountFiles that the mount of XRE does not show, as JSON. */ -}}
{{- define "xpu-device-plugin.directories" -}}
{{- $shown := printf "%s/" (dir .Values.xreDir | trimSuffix "/") }}
{{- $directories := list }}
{{- range .Values.mountFiles }}
{{- if not (hasPrefix $shown .) }}
{{- $directories = append $directories (dir .) }}
{{- end }}
{{- end }}
{{- $directories | uniq | toJson }}
{{- end }}

{{- define "xpu-device-plugin.args" -}}
- {{ printf "--sriov-num-vfs=%s" (include "xpu-device-plugin.vfs" .) | quote }}
- {{ printf "--metrics-address=:%v" .Values.metrics.port | quote }}
- "--status-socket=/run/xpu-device-plugin/status.sock"
{{- if ne .Values.xreDir "/usr/local/xpu" }}
- {{ printf "--xre-dir=%s" .Values.xreDir | quote }}
{{- end }}
{{- if ne .Values.resourceName "baidu.com/xpu" }}
- {{ printf "--resource-name=%s" .Values.resourceName | quote }}
{{- end }}
{{- if .Values.resourcePerProfile }}
- "--resource-per-profile"
{{- end }}
{{- if and (or .Values.startupTaint .Values.nodeCondition .Values.podEvents) (not .Values.rbac.create) }}
{{- fail "startupTaint, nodeCondition and podEvents need rbac.create=true: the plugin writes to the API server" }}
{{- end }}
{{- with .Values.startupTaint }}
- {{ printf "--startup-taint=%s" . | quote }}
{{- end }}
{{- if .Values.nodeCondition }}
- "--node-condition"
{{- end }}
{{- if .Values.podEvents }}
- "--pod-events"
{{- end }}
{{- if has .Values.containerEnv (list "xpu" "cuda" "both") }}
- {{ printf "--container-env=%s" .Values.containerEnv | quote }}
{{- end }}
{{- if .Values.mountXre }}
- "--mount-xre"
{{- end }}
{{- with .Values.mountFiles }}
- {{ printf "--mount-file=%s" (join "," .) | quote }}
{{- end }}
{{- with .Values.containerLibraryPath }}
- {{ printf "--container-library-path=%s" . | quote }}
{{- end }}
{{- if ne .Values.kernelLog "report" }}
- {{ printf "--kernel-log=%s" .Values.kernelLog | quote }}
{{- end }}
{{- with .Values.probe }}
- {{ printf "--probe=%s" . | quote }}
{{- end }}
{{- range $name, $value := .Values.options }}
{{- if kindIs "slice" $value }}
{{- $value = join "," $value }}
{{- end }}
- {{ printf "--%s=%v" $name $value | quote }}
{{- end }}
{{- end }}
