//! The text of `/metrics`, in OpenMetrics for those that ask for it and in Prometheus' own format for everyone else.

use std::fmt;

use gateway_common::Reason;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet, text::encode},
    metrics::MetricType,
    registry::Registry,
};

use crate::kernel::Counters;

/// Labels of a sample.
pub type Labels = Vec<(&'static str, String)>;

/// A metric with its samples. Names carry neither the prefix nor `_total`.
#[derive(Clone, Debug, PartialEq)]
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// What it counts, without a full stop.
    pub help: &'static str,
    /// Samples.
    pub samples: Samples,
}

/// Samples of one kind.
#[derive(Clone, Debug, PartialEq)]
pub enum Samples {
    /// Only grow.
    Counter(Vec<(Labels, u64)>),
    /// Go up and down.
    Gauge(Vec<(Labels, f64)>),
}

impl Family {
    /// A counter without labels.
    pub fn counter(name: &'static str, help: &'static str, value: u64) -> Self {
        Self { name, help, samples: Samples::Counter(vec![(Labels::new(), value)]) }
    }

    /// A gauge without labels.
    pub fn gauge(name: &'static str, help: &'static str, value: f64) -> Self {
        Self { name, help, samples: Samples::Gauge(vec![(Labels::new(), value)]) }
    }

    /// Something that is always 1 and told by its labels.
    pub fn info(name: &'static str, help: &'static str, labels: Vec<Labels>) -> Self {
        Self { name, help, samples: Samples::Gauge(labels.into_iter().map(|labels| (labels, 1.0)).collect()) }
    }

    /// The datapath's counters. Every reason is there from the start, so that a rate can be taken of its first packet.
    pub fn packets(counters: &Counters) -> Self {
        let sample = |reason: &Reason| {
            let labels = vec![("reason", reason.name().to_owned()), ("class", reason.class().name().to_owned())];
            (labels, counters.get(reason.name()).copied().unwrap_or_default())
        };
        Self {
            name: "packets",
            help: "Packets by what the datapath did with them and why",
            samples: Samples::Counter(Reason::ALL.iter().map(sample).collect()),
        }
    }
}

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Prometheus 0.0.4.
    Prometheus,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    /// By an `Accept` header.
    pub fn wanted(accepts: &str) -> Self {
        if accepts.contains("application/openmetrics-text") { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// For the answer.
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// The text of these families.
///
/// # Errors
/// When the encoder refuses, which it does for nothing that [`Family`] can hold.
pub fn text(families: Vec<Family>, format: Format) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("gateway");
    registry.register_collector(Box::new(Families(families)));
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(match format {
        Format::OpenMetrics => text,
        Format::Prometheus => prometheus(&text),
    })
}

#[derive(Debug)]
struct Families(Vec<Family>);

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for family in &self.0 {
            match &family.samples {
                Samples::Counter(samples) => {
                    let mut metric = encoder.encode_descriptor(family.name, family.help, None, MetricType::Counter)?;
                    for (labels, value) in samples {
                        each(&mut metric, labels, |metric| metric.encode_counter::<NoLabelSet, _, u64>(value, None))?;
                    }
                }
                Samples::Gauge(samples) => {
                    let mut metric = encoder.encode_descriptor(family.name, family.help, None, MetricType::Gauge)?;
                    for (labels, value) in samples {
                        each(&mut metric, labels, |metric| metric.encode_gauge(value))?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn each(
    metric: &mut MetricEncoder<'_>,
    labels: &Labels,
    encode: impl FnOnce(&mut MetricEncoder<'_>) -> fmt::Result,
) -> fmt::Result {
    if labels.is_empty() { encode(metric) } else { encode(&mut metric.encode_family(labels)?) }
}

/// OpenMetrics names a counter without `_total` in its head and ends with a mark; Prometheus' format knows neither.
fn prometheus(openmetrics: &str) -> String {
    let mut counters = Vec::new();
    for line in openmetrics.lines() {
        if let Some(name) = line.strip_prefix("# TYPE ").and_then(|rest| rest.strip_suffix(" counter")) {
            counters.push(name);
        }
    }
    let mut text = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines().filter(|line| *line != "# EOF" && !line.starts_with("# UNIT ")) {
        let head = ["# HELP ", "# TYPE "].into_iter().find_map(|kind| Some((kind, line.strip_prefix(kind)?)));
        match head.and_then(|(kind, rest)| Some((kind, rest.split_once(' ')?))) {
            Some((kind, (name, rest))) if counters.contains(&name) => {
                text.push_str(&format!("{kind}{name}_total {rest}\n"));
            }
            _ => {
                text.push_str(line);
                text.push('\n');
            }
        }
    }
    text
}
