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

{{- /* The port of an address of the configuration; of kubeadm's, the usual one. */ -}}
{{- define "pointsman.healthPort" -}}
{{- $address := .Values.config.healthzBindAddress | default "0.0.0.0:10256" -}}
{{- if .Values.kubeadm }}{{ $address = "0.0.0.0:10256" }}{{ end -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" $address -}}
{{- fail "config.healthzBindAddress: the kubelet and load balancers ask the node's address, not a loopback address" -}}
{{- end -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $address) | default "10256" -}}
{{- end }}

{{- define "pointsman.metricsPort" -}}
{{- $address := .Values.config.metricsBindAddress | default "127.0.0.1:10249" -}}
{{- if .Values.kubeadm }}{{ $address = "0.0.0.0:10249" }}{{ end -}}
{{- if regexMatch "^(127\\.|\\[::1\\]|localhost)" $address -}}
{{- fail "metrics.serviceMonitor: Prometheus cannot reach config.metricsBindAddress; set it to 0.0.0.0:10249, and keep others from that port with a firewall" -}}
{{- end -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $address) | default "10249" -}}
{{- end }}

{{- define "pointsman.labels" -}}
app.kubernetes.io/name: pointsman
{{- end }}
