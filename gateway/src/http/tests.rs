use std::sync::Arc;

use axum::{
    body::{Body, to_bytes},
    http::Request,
};
use tower::ServiceExt as _;

use super::{
    Agent,
    metrics::{Family, Format, Samples},
    report::{Counts, Drop, Readiness, Service, Source, Status},
    router,
};
use crate::kernel::{Counters, Entry, Explanation, FlowInfo, Mode, Question};

struct Told {
    readiness: Readiness,
}

impl Agent for Told {
    fn readiness(&self) -> Readiness {
        self.readiness.clone()
    }
    fn status(&self) -> Status {
        Status {
            version: "0",
            ready: true,
            degraded: Vec::new(),
            uptime: 1.5,
            config: "gateway.yaml".to_owned(),
            mode: Mode::Auto,
            addresses: Vec::new(),
            interfaces: Vec::new(),
            views: Vec::new(),
            source: Source::default(),
            service_cidrs: Vec::new(),
            node: Some("gateway".to_owned()),
            zone: None,
            cluster_domain: "cluster.local".to_owned(),
            dns: Vec::new(),
            counts: Counts::default(),
            problems: Vec::new(),
            counters: Counters::new(),
        }
    }
    fn services(&self) -> Vec<Service> {
        Vec::new()
    }
    fn contents(&self) -> Vec<Entry> {
        Vec::new()
    }
    fn flows(&self, limit: usize) -> Vec<FlowInfo> {
        let flow = FlowInfo {
            protocol: "tcp",
            client: String::new(),
            vip: String::new(),
            endpoint: String::new(),
            source: String::new(),
            state: "syn",
            idle: 0.0,
            age: 0.0,
            packets_out: 0,
            packets_in: 0,
            bytes_out: 0,
            bytes_in: 0,
            view: 0,
        };
        vec![flow; limit.min(5)]
    }
    fn dns(&self) -> serde_json::Value {
        panic!("a reader that fails")
    }
    fn explain(&self, question: &Question) -> Explanation {
        Explanation::default().end("passed", format!("{} {:?} {:?}", question.from, question.to, question.name))
    }
    fn drops(&self) -> Vec<Drop> {
        Drop::all(&Counters::from([("stranger", 7)]))
    }
    fn metrics(&self) -> Vec<Family> {
        vec![
            Family::packets(&Counters::from([("stranger", 7)])),
            Family::gauge("services", "Services", 3.0),
            Family::counter("apply_errors", "Errors", 2),
            Family { name: "nothing", help: "No sample", samples: Samples::Gauge(Vec::new()) },
        ]
    }
}

async fn get(readiness: Readiness, path: &str, accept: &str) -> (u16, String, String) {
    let request = Request::get(path).header("accept", accept).body(Body::empty()).expect("a request");
    let response = router(Arc::new(Told { readiness })).oneshot(request).await.expect("the router answers");
    let kind = response.headers().get("content-type").map(|kind| kind.to_str().expect("text").to_owned());
    let status = response.status().as_u16();
    let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
    (status, kind.unwrap_or_default(), String::from_utf8(body.to_vec()).expect("text"))
}

#[tokio::test]
async fn readyz_says_ready_degraded_or_why_not() {
    let told = |ready, why: &[&str]| Readiness { ready, why: why.iter().map(|&why| why.to_owned()).collect() };
    for (readiness, code, body) in [
        (told(true, &[]), 200, "ready\n"),
        (told(true, &["source lost"]), 200, "ready, degraded: source lost\n"),
        (told(false, &[]), 503, "not ready: starting\n"),
        (told(false, &["no uplink"]), 503, "not ready: no uplink\n"),
    ] {
        let answer = get(readiness, "/readyz", "*/*").await;
        assert_eq!((answer.0, answer.2.as_str()), (code, body));
    }
}

#[tokio::test]
async fn healthz_is_ok_while_not_ready() {
    assert_eq!(get(Readiness::default(), "/healthz", "*/*").await.0, 200);
}

#[tokio::test]
async fn metrics_are_valid_prometheus_text() {
    let (code, kind, text) = get(Readiness::default(), "/metrics", "*/*").await;
    assert_eq!((code, kind.as_str()), (200, Format::Prometheus.content_type()));
    let mut types = std::collections::HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a name and a type");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "{name} twice");
        } else if !line.starts_with('#') {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            let name = name.split('{').next().expect("a name");
            assert!(types.contains_key(name), "no type for {line}");
            assert_eq!(types[name] == "counter", name.ends_with("_total"), "{line}");
            assert!(name.starts_with("gateway_") && value.parse::<f64>().is_ok(), "{line}");
        }
    }
    assert!(text.contains("gateway_packets_total{reason=\"stranger\",class=\"dropped\"} 7\n"), "{text}");
    assert!(text.contains("gateway_packets_total{reason=\"forwarded\",class=\"served\"} 0\n"), "{text}");
    assert!(text.contains("# TYPE gateway_packets_total counter\n") && text.contains("gateway_services 3"), "{text}");
    assert!(!text.contains("# EOF"), "{text}");
}

#[tokio::test]
async fn openmetrics_is_given_to_those_that_ask() {
    let (_, kind, text) = get(Readiness::default(), "/metrics", "application/openmetrics-text; version=1.0.0").await;
    assert_eq!(kind, Format::OpenMetrics.content_type());
    assert!(text.ends_with("# EOF\n") && text.contains("# TYPE gateway_packets counter\n"), "{text}");
}

#[tokio::test]
async fn a_reader_that_fails_is_a_500_and_the_rest_goes_on() {
    assert_eq!(get(Readiness::default(), "/api/v1/dns", "*/*").await.0, 500);
    let (code, kind, body) = get(Readiness::default(), "/api/v1/status", "*/*").await;
    assert_eq!((code, kind.as_str()), (200, "application/json"));
    let status: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(status["clusterDomain"], "cluster.local");
    assert!(status["serviceCIDRs"].is_array() && status["source"]["synced"].is_boolean(), "{status}");
}

#[tokio::test]
async fn a_question_is_read_from_the_address() {
    let (code, _, body) =
        get(Readiness::default(), "/api/v1/explain?from=fd00::1&to=10.1.0.1&proto=tcp&port=80", "*/*").await;
    assert!(code == 200 && body.contains("fd00::1 Some(10.1.0.1) None") && body.contains("\"passed\""), "{body}");
    assert_eq!(get(Readiness::default(), "/api/v1/explain?name=web", "*/*").await.0, 400);
}

#[tokio::test]
async fn flows_are_limited_and_drops_are_complete() {
    let flows = get(Readiness::default(), "/api/v1/flows?limit=2", "*/*").await.2;
    let flows: Vec<serde_json::Value> = serde_json::from_str(&flows).expect("JSON");
    assert_eq!(flows.len(), 2);
    assert_eq!(get(Readiness::default(), "/api/v1/flows?limit=x", "*/*").await.0, 400);
    let drops = get(Readiness::default(), "/api/v1/drops", "*/*").await.2;
    let drops: Vec<serde_json::Value> = serde_json::from_str(&drops).expect("JSON");
    assert_eq!(drops.len(), gateway_common::Reason::ALL.len());
    assert!(
        drops.iter().any(|drop| drop["reason"] == "stranger" && drop["packets"] == 7 && drop["class"] == "dropped")
    );
}
