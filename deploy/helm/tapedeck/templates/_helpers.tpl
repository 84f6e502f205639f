{{/* The chart's name, and the release's full name: at most 40 characters, so that suffixes fit into 63. */}}
{{- define "tapedeck.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "tapedeck.fullname" -}}
{{- $name := include "tapedeck.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "tapedeck.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "tapedeck.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What a selector matches: (dict "root" $ "component" "archiver"). Never changes within a release. */}}
{{- define "tapedeck.selectorLabels" -}}
app.kubernetes.io/name: {{ include "tapedeck.name" .root }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{- define "tapedeck.labels" -}}
{{ include "tapedeck.selectorLabels" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "tapedeck.image" -}}
{{- $repository := required "image.repository is required: no image is published yet, build deploy/Dockerfile and push it" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" $repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* A length of time as the configuration takes it (25s, 1m30s, 1.5h, 500ms, 0) in whole seconds, rounded up:
     (dict "key" "shutdown.grace" "text" "25s"). */}}
{{- define "tapedeck.seconds" -}}
{{- $text := toString .text | nospace -}}
{{- $part := "[0-9]+([.][0-9]+)?(w|d|h|mins|min|ms|m|secs|sec|s|us|ns)" -}}
{{- if not (regexMatch (printf "^(0|(%s)+)$" $part) $text) -}}
{{- fail (printf "%s: %q is no length of time; write it as 25s, 1m30s or 500ms" .key (toString .text)) -}}
{{- end -}}
{{- $seconds_of := dict "w" 604800 "d" 86400 "h" 3600 "mins" 60 "min" 60 "m" 60 "secs" 1 "sec" 1 "s" 1 "ms" 0.001 "us" 0.000001 "ns" 0.000000001 -}}
{{- $seconds := 0.0 -}}
{{- range regexFindAll $part $text -1 -}}
{{- $seconds = addf $seconds (mulf (regexFind "[0-9.]+" . | float64) (get $seconds_of (regexFind "[a-z]+" .))) -}}
{{- end -}}
{{- ceil $seconds | int64 -}}
{{- end -}}

{{/* shutdown.grace plus 15 s for the bus to be left and the process to end; a larger value may be set, a smaller one not. */}}
{{- define "tapedeck.terminationGracePeriodSeconds" -}}
{{- $grace := dig "shutdown" "grace" "25s" .Values.config -}}
{{- $needed := add (include "tapedeck.seconds" (dict "key" "config.shutdown.grace" "text" $grace) | int64) 15 -}}
{{- $set := .Values.terminationGracePeriodSeconds -}}
{{- if kindIs "invalid" $set -}}
{{- $needed -}}
{{- else if lt (int64 $set) $needed -}}
{{- fail (printf "terminationGracePeriodSeconds: %d is too small; config.shutdown.grace is %s, so it takes at least %d" (int64 $set) $grace $needed) -}}
{{- else -}}
{{- int64 $set -}}
{{- end -}}
{{- end -}}

{{/* The port of config.admin.listen. */}}
{{- define "tapedeck.adminPort" -}}
{{- $listen := dig "admin" "listen" "" .Values.config -}}
{{- if not (regexMatch "^.+:[0-9]+$" $listen) -}}
{{- fail "config.admin.listen: must be an address and a port, such as 0.0.0.0:9464" -}}
{{- end -}}
{{- if regexMatch "^(127\\.|localhost:|\\[::1\\])" $listen -}}
{{- fail (printf "config.admin.listen: %s is loopback, which the kubelet's probes cannot reach; use 0.0.0.0:9464" $listen) -}}
{{- end -}}
{{- regexFind "[0-9]+$" $listen -}}
{{- end -}}

{{/* What the pods of both programs share: who they are, and where they may run. */}}
{{- define "tapedeck.podCommon" -}}
serviceAccountName: {{ include "tapedeck.serviceAccountName" . }}
automountServiceAccountToken: false
# Variables of other services must not look like settings.
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  {{- toYaml .Values.podSecurityContext | nindent 2 }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- end -}}

{{- define "tapedeck.containerCommon" -}}
image: {{ include "tapedeck.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  {{- toYaml .Values.securityContext | nindent 2 }}
{{- with .Values.extraEnv }}
env:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.extraEnvFrom }}
envFrom:
  {{- toYaml . | nindent 2 }}
{{- end }}
volumeMounts:
  - name: config
    mountPath: /etc/tapedeck/config
    readOnly: true
  {{- if .Values.existingSecret }}
  - name: secrets
    mountPath: /etc/tapedeck/secrets
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{/* (dict "root" $ "configMap" "name") */}}
{{- define "tapedeck.volumes" -}}
- name: config
  configMap:
    name: {{ .configMap }}
{{- with .root.Values.existingSecret }}
- name: secrets
  secret:
    secretName: {{ . }}
    # Readable by the pod's group (fsGroup) and nobody else.
    defaultMode: 0440
{{- end }}
{{- with .root.Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
