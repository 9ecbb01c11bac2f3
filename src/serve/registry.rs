//! The registry of metrics: kube-proxy's, by its names, labels and buckets, so that dashboards and alerts
//! keep working (docs/semantics.md, J), and ours under `pointsman_`. Whoever counts something defines it
//! where it is counted, and registers it here.

use prometheus::{
    Counter, Encoder, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge,
    IntGaugeVec, Opts, Registry, TextEncoder,
};

/// All metrics that there are. Clones are of one registry.
#[derive(Debug, Clone)]
pub struct Metrics(Registry);

/// A metric, registered.
pub type Made<T> = Result<T, prometheus::Error>;

impl Metrics {
    /// With what is known of every process.
    ///
    /// # Errors
    ///
    /// If the process cannot be looked at.
    pub fn new() -> Made<Self> {
        let metrics = Self(Registry::new());
        metrics.register(prometheus::process_collector::ProcessCollector::for_self())?;
        let build = metrics.gauges(
            "kubernetes_build_info",
            "The build that runs: kube-proxy's release that it stands for, and ours",
            &["major", "minor", "git_version", "pointsman_version"],
        )?;
        build
            .with_label_values(&["1", "36", "v1.36.0", env!("CARGO_PKG_VERSION")])
            .set(1);
        Ok(metrics)
    }

    /// Prometheus' text format.
    ///
    /// # Errors
    ///
    /// If a metric cannot be collected.
    pub fn text(&self) -> Made<Vec<u8>> {
        let mut text = Vec::new();
        TextEncoder::new().encode(&self.0.gather(), &mut text)?;
        Ok(text)
    }

    fn register(&self, collector: impl prometheus::core::Collector + 'static) -> Made<()> {
        self.0.register(Box::new(collector))
    }

    /// A histogram by labels.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn histogram(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
        buckets: Vec<f64>,
    ) -> Made<HistogramVec> {
        let metric = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A counter.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn counter(&self, name: &str, help: &str) -> Made<IntCounter> {
        let metric = IntCounter::new(name, help)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A counter of what is no whole number.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn float_counter(&self, name: &str, help: &str) -> Made<Counter> {
        let metric = Counter::new(name, help)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A counter by labels.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntCounterVec> {
        let metric = IntCounterVec::new(Opts::new(name, help), labels)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A gauge of whole numbers.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn gauge(&self, name: &str, help: &str) -> Made<IntGauge> {
        let metric = IntGauge::new(name, help)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A gauge of whole numbers by labels.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn gauges(&self, name: &str, help: &str, labels: &[&str]) -> Made<IntGaugeVec> {
        let metric = IntGaugeVec::new(Opts::new(name, help), labels)?;
        self.register(metric.clone())?;
        Ok(metric)
    }

    /// A gauge by labels.
    ///
    /// # Errors
    ///
    /// If there is one of that name already.
    pub fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Made<GaugeVec> {
        let metric = GaugeVec::new(Opts::new(name, help), labels)?;
        self.register(metric.clone())?;
        Ok(metric)
    }
}
