{{- define "pointsman.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}
{{- end -}}
{{- end -}}
{{- end }}

{{- define "pointsman.directory" -}}
{{ if .Values.kubeadm }}/var/lib/kube-proxy{{ else }}/var/lib/pointsman{{ end }}
{{- end }}

{{- define "pointsman.labels" -}}
app.kubernetes.io/name: pointsman
{{- end }}
