//! What a manifest text says, and what is said about one that is wrong.

use super::parse::{ParseError, documents, parse};

fn services(text: &str) -> Vec<String> {
    let (objects, problems) = parse(text).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(problems, Vec::<String>::new());
    objects.services.keys().map(ToString::to_string).collect()
}

fn error(text: &str) -> ParseError {
    parse(text).map(|(objects, _)| objects).expect_err("it must not parse")
}

const SERVICE: &str =
    "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec: {clusterIP: 10.1.0.10, ports: [{port: 80}]}\n";

#[test]
fn documents_lists_and_typed_lists_are_read_alike() {
    let item = |name: &str, kind: &str| {
        format!("- {kind}\n  metadata: {{name: {name}, namespace: shop}}\n  spec: {{clusterIP: None}}\n")
    };
    let table = [
        ("an object without namespace is in default", SERVICE.to_owned(), vec!["default/web"]),
        (
            "empty documents, comments and separators",
            format!("# nothing\n---\n---\n# c\n---\n{SERVICE}---\n"),
            vec!["default/web"],
        ),
        (
            "Windows line ends and a byte order mark",
            format!("\u{feff}{}", SERVICE.replace('\n', "\r\n")),
            vec!["default/web"],
        ),
        (
            "kind: List, as kubectl prints it",
            format!(
                "apiVersion: v1\nitems:\n{}{}kind: List\nmetadata: {{resourceVersion: ''}}\n",
                item("a", "apiVersion: v1\n  kind: Service"),
                item("b", "apiVersion: v1\n  kind: Service")
            ),
            vec!["shop/a", "shop/b"],
        ),
        (
            "ServiceList, as the API prints it: items without kind",
            format!("apiVersion: v1\nkind: ServiceList\nitems:\n{}", item("a", "x: y")),
            vec!["shop/a"],
        ),
        ("an empty list", "apiVersion: v1\nkind: List\nitems: []\n".into(), vec![]),
        ("a list of null", "apiVersion: v1\nkind: ServiceList\nitems:\n".into(), vec![]),
        (
            "other kinds are skipped, wherever they stand",
            format!(
                "{SERVICE}---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: x}}\nspec: {{replicas: nonsense}}\n---\napiVersion: v1\nkind: ConfigMapList\nitems: [{{data: {{a: b}}}}]\n---\napiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\n"
            ),
            vec!["default/web"],
        ),
        (
            "anchors and merge keys",
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: web}}\nspec:\n  <<: {{clusterIP: 10.1.0.10}}\n  ports: [{{port: 80}}]\n---\n{}\
                 ---\napiVersion: v1\nkind: List\nitems:\n- &a {{apiVersion: v1, kind: Service, metadata: &m {{name: a, namespace: t}}, spec: {{}}}}\n\
                 - {{<<: [{{x: y}}, *a], metadata: {{<<: *m, name: b}}}}\n- {{<<: 5, apiVersion: x/v1, kind: Foo}}\n",
                SERVICE.replace("web", "api")
            ),
            vec!["default/api", "default/web", "t/a", "t/b"],
        ),
        (
            "byte order marks of files put together",
            format!("\u{feff}{SERVICE}---\n\u{feff}{}", SERVICE.replace("web", "api")),
            vec!["default/api", "default/web"],
        ),
        (
            "numbers beyond 64 bits and tags, in kinds that are skipped and in fields that are",
            format!(
                "apiVersion: x/v1\nkind: Foo\nspec: {{a: 99999999999999999999999, b: -99999999999999999999999, c: !Ref b, d: !Sub [x], e: !Empty , f: .nan}}\n---\n{}",
                SERVICE.replace("name: web", "name: web, unheardOf: 340282366920938463463374607431768211455")
            ),
            vec!["default/web"],
        ),
        (
            "the same beside merge keys",
            format!(
                "apiVersion: x/v1\nkind: Foo\nspec: {{<<: {{a: 1}}, b: !Ref b, c: 18446744073709551616}}\n---\n{SERVICE}"
            ),
            vec!["default/web"],
        ),
        (
            "JSON in a YAML file",
            r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"web"},"spec":{"clusterIP":"None"}}"#.into(),
            vec!["default/web"],
        ),
    ];
    for (promise, text, expected) in table {
        assert_eq!(services(&text), expected, "{promise}\n{text}");
    }
}

#[test]
fn an_error_names_the_line_the_object_and_the_field() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: {name: a}\n- apiVersion: v1\n  kind: Service\n  metadata:\n    name: b\n  spec:\n    ports:\n    - port: eighty\n";
    let table = [
        ("not YAML", "a: [1\nb: 2\n".to_owned(), 2, "did not find expected"),
        (
            "a wrong type",
            SERVICE
                .replace("spec: {", "spec:\n  publishNotReadyAddresses: maybe\n  {")
                .replace("\n  {clusterIP: 10.1.0.10, ports: [{port: 80}]}", ""),
            5,
            "object \"web\"",
        ),
        ("in the second document", format!("{SERVICE}---\n{}", SERVICE.replace("80", "eighty")), 9, "ports"),
        ("in a list", list.to_owned(), 13, "object \"b\""),
        ("not an object", format!("{SERVICE}---\n# a comment\nhello: world\n"), 7, "not a Kubernetes object"),
        ("half a file", "apiVersion: v1\n".to_owned(), 1, "apiVersion or kind is missing"),
        ("a scalar", "just words\n".to_owned(), 1, "not a Kubernetes object"),
        ("items is not a list", "apiVersion: v1\nkind: List\nitems: 3\n".to_owned(), 1, "items is not a list"),
    ];
    for (promise, text, line, what) in table {
        let error = error(&text);
        assert_eq!(error.line, Some(line), "{promise}: {error}\n{text}");
        assert!(error.what.contains(what), "{promise}: {error}");
        assert!(!error.what.contains(" at line "), "the line is said once: {error}");
    }
}

#[test]
fn json_is_read_as_json_with_its_lines() {
    let good = "{\n\t\"apiVersion\": \"v1\", \"kind\": \"ServiceList\",\n\t\"items\": [\n\t\t{\"metadata\": {\"name\": \"a\"}}\n\t]\n}\n";
    assert_eq!(documents(good, true).expect("tabs are white space in JSON").objects.len(), 1);
    let two = format!("{good}\n{good}");
    assert_eq!(documents(&two, true).expect("a stream of objects").objects.len(), 2);
    let syntax = documents(&good.replace("]\n}", "]\n"), true).expect_err("no closing brace");
    assert_eq!(syntax.line, Some(7), "{syntax}");
    let wrong =
        good.replace("{\"name\": \"a\"}}", "{\"name\": \"a\"},\n\"spec\": {\"ports\": [{\"port\": \"eighty\"}]}}");
    let typed = documents(&format!("{good}{wrong}"), true).expect_err("a port in words");
    assert_eq!(typed.line, Some(6 + 5), "{typed}");
    assert!(typed.what.contains("object \"a\""), "{typed}");
}

#[test]
fn a_field_that_cannot_be_used_is_a_problem_of_its_object_and_the_rest_goes_on() {
    let text = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIPs: [10.1.0.10, 10.1.0.256, 127.0.0.1]
  ports: [{name: a, port: 80}, {name: b, port: 70000}, {name: c, port: 0}, {name: d, port: 5, protocol: ICMP}]
---
apiVersion: v1
kind: Service
metadata: {name: Not_A_Label}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: a, port: 8080}, {name: b, port: -1}]
endpoints:
- addresses: [10.42.0.1]
- addresses: ['fd00::1']
- addresses: [pod-3]
- addresses: []
- addresses: [10.42.0.4]
  hostname: Not.A.Label
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: orphan, namespace: shop}
addressType: IPv4
endpoints: []
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: names, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: FQDN
endpoints: [{addresses: [example.com]}]
";
    let (objects, problems) = parse(text).unwrap();
    let web = objects.services.values().next().unwrap();
    assert_eq!((objects.services.len(), web.cluster_ips().len(), web.ports.len()), (1, 1, 1));
    let slice = objects.slices.values().next().unwrap();
    assert_eq!((objects.slices.len(), slice.ports.len(), slice.endpoints.len()), (1, 1, 2));
    let expected = [
        "Service shop/web: spec.clusterIPs: \"10.1.0.256\" is not an IP address",
        "Service shop/web: spec.clusterIPs: 127.0.0.1 cannot be the address of a Service",
        "Service shop/web: spec.ports: 70000 is not a port",
        "Service shop/web: spec.ports: 0 is not a port",
        "Service shop/web: spec.ports: protocol \"ICMP\"",
        "Service default/Not_A_Label: its name or namespace is not a DNS label",
        "EndpointSlice shop/web-1: ports: -1 is not a port",
        "EndpointSlice shop/web-1: endpoint address fd00::1 is not of the slice's addressType",
        "EndpointSlice shop/web-1: endpoint address \"pod-3\" is not an IP address",
        "EndpointSlice shop/web-1: an endpoint has no address",
        "EndpointSlice shop/web-1: hostname \"Not.A.Label\" is not a DNS label",
        "EndpointSlice shop/orphan: it has no label kubernetes.io/service-name",
        "EndpointSlice shop/names: addressType \"FQDN\" is not IPv4 or IPv6",
    ];
    for (problem, expected) in problems.iter().zip(expected) {
        assert!(problem.starts_with(expected), "{problem:?} is not {expected:?}");
    }
    assert_eq!(problems.len(), expected.len(), "{problems:?}");
}

#[test]
fn an_object_with_generate_name_alone_gets_a_name_of_its_own_that_stays() {
    let slice = |address: &str| {
        format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{generateName: web-, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}\naddressType: IPv4\nports: [{{port: 80}}]\nendpoints: [{{addresses: [{address}]}}]\n---\n"
        )
    };
    let two = slice("10.42.0.1") + &slice("10.42.0.2");
    let names = |text: &str| {
        let (objects, problems) = parse(text).unwrap();
        assert_eq!(problems, Vec::<String>::new());
        objects.slices.keys().map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!((names(&two).len(), names(&two)), (2, names(&two)));
    assert!(names(&two).iter().all(|name| name.starts_with("shop/web-")), "{:?}", names(&two));
}

#[test]
fn the_time_a_file_takes_is_proportional_to_its_length() {
    use nix::time::{ClockId, clock_gettime};
    let took = |documents: usize| {
        let text = format!("{SERVICE}---\n").repeat(documents);
        let once = || {
            // The thread's own time: the machine may be busy with something else.
            let now = || std::time::Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).expect("a clock"));
            let began = now();
            parse(&text).expect("good documents");
            now() - began
        };
        (0..3).map(|_| once()).min().expect("three runs")
    };
    let (few, many) = (took(250), took(4000));
    // Sixteen times as long; a scan of the whole text for every document would take 256 times.
    assert!(many < few * 64, "250 documents: {few:?}, 4000: {many:?}");
}

mod mutated {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever an editor or a bad disk makes of a file: objects or an error, never a panic.
        #[test]
        fn no_text_panics(text in any::<String>(), cut in any::<prop::sample::Index>(), json in any::<bool>()) {
            let _ = documents(&text, json);
            let whole = format!("{SERVICE}---\n{SERVICE}");
            let at = cut.index(whole.len());
            let _ = documents(&format!("{}{text}{}", &whole[..at], &whole[at..]), json);
        }
    }
}
