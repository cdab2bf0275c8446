//! The text of a manifest file → objects of the model.
//!
//! A file is taken as a whole or not at all: an error in one document says that the file is not what its author meant.

use std::{
    borrow::Cow,
    fmt,
    hash::{DefaultHasher, Hasher as _},
    marker::PhantomData,
};

use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor},
};
use serde_json::Value;

use super::{
    super::convert,
    any::{Any, merged},
};
use crate::model::{Node, ObjectName, Objects, Pod, Service, Slice};

/// An object of a kind that is used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Object {
    Service(Service),
    Slice(Slice),
    Endpoints(ObjectName, Vec<Slice>),
    Namespace(String),
    Node(Node),
    Pod(Pod),
}

impl Object {
    /// Kind, namespace and name: what makes two objects the same.
    pub(super) fn identity(&self) -> (&'static str, ObjectName) {
        match self {
            Self::Service(s) => ("Service", s.name.clone()),
            Self::Slice(s) => ("EndpointSlice", s.name.clone()),
            Self::Endpoints(name, _) => ("Endpoints", name.clone()),
            Self::Namespace(name) => ("Namespace", ObjectName::new("", name.clone())),
            Self::Node(node) => ("Node", ObjectName::new("", node.name.clone())),
            Self::Pod(pod) => ("Pod", pod.name.clone()),
        }
    }

    pub(super) fn insert_into(self, objects: &mut Objects) {
        match self {
            Self::Service(s) => objects.insert_service(s),
            Self::Slice(s) => objects.insert_slice(s),
            Self::Endpoints(_, slices) => slices.into_iter().for_each(|s| objects.insert_slice(s)),
            Self::Namespace(name) => drop(objects.namespaces.insert(name)),
            Self::Node(node) => objects.insert_node(node),
            Self::Pod(pod) => objects.insert_pod(pod),
        }
    }
}

/// What a file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Parsed {
    pub objects: Vec<Object>,
    pub problems: Vec<String>,
}

/// Why a text is not a manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError {
    /// The line, from 1; where the error was noticed, or where its document begins.
    pub line: Option<usize>,
    /// What is wrong.
    pub what: String,
}

impl ParseError {
    fn new(line: Option<usize>, message: &str) -> Self {
        // The line is said once, before what is wrong.
        let what = message.split_once(" at line ").map_or(message, |(what, _)| what).to_owned();
        Self { line, what }
    }
}

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "line {line}: {}", self.what),
            None => f.write_str(&self.what),
        }
    }
}

impl std::error::Error for ParseError {}

/// Objects and problems of one manifest text, YAML (of several documents) or JSON; for tests and for tools that have no directory.
///
/// # Errors
/// When it is not YAML, or a document in it is not a Kubernetes object.
pub fn parse(text: &str) -> Result<(Objects, Vec<String>), ParseError> {
    let Parsed { objects: list, problems } = documents(text, false)?;
    let mut objects = Objects::default();
    list.into_iter().for_each(|object| object.insert_into(&mut objects));
    Ok((objects, problems))
}

/// Every object of a text. `json`: the file says that it is JSON, whose errors are told in its own terms.
pub(super) fn documents(text: &str, json: bool) -> Result<Parsed, ParseError> {
    let text = &*without_marks(text);
    let mut parsed = Parsed::default();
    if json {
        let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        loop {
            let start = stream.byte_offset();
            let Some(document) = stream.next() else { return Ok(parsed) };
            let document = document.map_err(|e| ParseError::new(Some(e.line()), &e.to_string()))?;
            parsed.document(document, Place { text, document: Document::Json(start), item: None })?;
        }
    }
    let merge = text.contains("<<:");
    for (index, document) in serde_yaml_ng::Deserializer::from_str(text).enumerate() {
        let document = value(document, merge)?;
        parsed.document(document, Place { text, document: Document::Yaml(index), item: None })?;
    }
    Ok(parsed)
}

/// `merge`: there are merge keys.
fn value(document: serde_yaml_ng::Deserializer<'_>, merge: bool) -> Result<Value, ParseError> {
    let Any(mut value) = Any::deserialize(document).map_err(yaml_error)?;
    if merge {
        value = merged(value);
    }
    Ok(value)
}

/// The text without byte order marks: files that are put together with `cat` have one at each document.
fn without_marks(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.contains("\n\u{feff}") { text.replace("\n\u{feff}", "\n").into() } else { text.into() }
}

/// Gives an object that has `generateName` alone the rest of its name, as the API server would: the same for the same content.
fn complete_name(object: &mut Value) {
    let content = |object: &Value| {
        let mut hasher = DefaultHasher::new();
        hasher.write(object.to_string().as_bytes());
        hasher.finish() as u32
    };
    let Some(metadata) = object.get("metadata") else { return };
    let given = |field| metadata.get(field).and_then(Value::as_str).filter(|text: &&str| !text.is_empty());
    let (None, Some(beginning)) = (given("name"), given("generateName")) else { return };
    let name = format!("{beginning}{:08x}", content(object));
    object["metadata"]["name"] = name.into();
}

fn yaml_error(error: serde_yaml_ng::Error) -> ParseError {
    ParseError::new(error.location().map(|l| l.line()), &error.to_string())
}

/// Where an object stands, so that its text can be read again when it is wrong: values do not know their lines.
#[derive(Clone, Copy)]
struct Place<'t> {
    text: &'t str,
    document: Document,
    /// Number in a list's `items`.
    item: Option<usize>,
}

#[derive(Clone, Copy)]
enum Document {
    /// Its number.
    Yaml(usize),
    /// Where it begins, in bytes.
    Json(usize),
}

impl Parsed {
    fn document(&mut self, document: Value, place: Place<'_>) -> Result<(), ParseError> {
        // `---` at the end, or nothing but comments.
        if document.is_null() {
            return Ok(());
        }
        self.object(document, None, place)
    }

    fn object(&mut self, mut value: Value, list: Option<(&str, &str)>, place: Place<'_>) -> Result<(), ParseError> {
        let field = |name: &str| value.get(name).and_then(Value::as_str).map(str::to_owned);
        let version = field("apiVersion").or(list.map(|(version, _)| version.to_owned()));
        let kind = field("kind").or(list.map(|(_, kind)| kind.to_owned()));
        let (Some(version), Some(kind)) = (version, kind) else {
            return Err(ParseError::new(place.start(), "not a Kubernetes object: apiVersion or kind is missing"));
        };
        complete_name(&mut value);
        match (version.as_str(), kind.as_str()) {
            ("v1", "Service") => {
                let service = place.typed::<core::Service>(value)?;
                self.objects.extend(convert::service(service, &mut self.problems).map(Object::Service));
            }
            ("discovery.k8s.io/v1", "EndpointSlice") => {
                let slice = place.typed::<discovery::EndpointSlice>(value)?;
                self.objects.extend(convert::slice(slice, &mut self.problems).map(Object::Slice));
            }
            ("v1", "Endpoints") => {
                let endpoints = place.typed::<core::Endpoints>(value)?;
                let name = convert::object_name(&endpoints.metadata);
                self.objects.push(Object::Endpoints(name, convert::endpoints(endpoints, &mut self.problems)));
            }
            ("v1", "Namespace") => {
                let namespace = place.typed::<core::Namespace>(value)?;
                self.objects.extend(convert::namespace(namespace, &mut self.problems).map(Object::Namespace));
            }
            ("v1", "Node") => {
                let node = place.typed::<core::Node>(value)?;
                self.objects.extend(convert::node(node, &mut self.problems).map(Object::Node));
            }
            ("v1", "Pod") => {
                let pod = place.typed::<core::Pod>(value)?;
                self.objects.extend(convert::pod(pod, &mut self.problems).map(Object::Pod));
            }
            // A generic list names the kind of each item; a typed one, as the API prints it, need not.
            (_, list_kind) if list_kind.ends_with("List") && place.item.is_none() => {
                let items = match value.get_mut("items").map(Value::take) {
                    None | Some(Value::Null) => Vec::new(),
                    Some(Value::Array(items)) => items,
                    Some(_) => {
                        return Err(ParseError::new(place.start(), &format!("{list_kind}: items is not a list")));
                    }
                };
                let of = list_kind.strip_suffix("List").filter(|of| !of.is_empty()).map(|of| (version.as_str(), of));
                for (index, item) in items.into_iter().enumerate() {
                    self.object(item, of, Place { item: Some(index), ..place })?;
                }
            }
            // Other kinds are none of the gateway's business.
            _ => {}
        }
        Ok(())
    }
}

impl Place<'_> {
    fn typed<T: DeserializeOwned>(self, value: Value) -> Result<T, ParseError> {
        let text = |pointer| value.pointer(pointer).and_then(Value::as_str).unwrap_or("without a name").to_owned();
        let about = text("/metadata/name");
        serde_json::from_value::<T>(value).map_err(|error| {
            let mut located = self.again::<T>().unwrap_or_else(|| ParseError::new(None, &error.to_string()));
            located.line = located.line.or_else(|| self.start());
            located.what = format!("object {about:?}: {}", located.what);
            located
        })
    }

    /// The error of reading the same object from its text, which knows the line and the field.
    fn again<T: DeserializeOwned>(self) -> Option<ParseError> {
        let seed = self.item.map(|item| Item::<T>(item, PhantomData));
        match self.document {
            Document::Yaml(index) => {
                let document = serde_yaml_ng::Deserializer::from_str(self.text).nth(index)?;
                let read = match seed {
                    None => T::deserialize(document).map(drop),
                    Some(seed) => seed.deserialize(document),
                };
                read.err().map(yaml_error)
            }
            Document::Json(start) => {
                let document = &mut serde_json::Deserializer::from_str(&self.text[start..]);
                let read = match seed {
                    None => T::deserialize(document).map(drop),
                    Some(seed) => seed.deserialize(document),
                };
                let lines_before = self.text[..start].matches('\n').count();
                read.err().map(|e| ParseError::new(Some(e.line() + lines_before), &e.to_string()))
            }
        }
    }

    /// The line where the document's content begins.
    fn start(self) -> Option<usize> {
        let wanted = match self.document {
            Document::Json(start) => return Some(self.text[..start].matches('\n').count() + 1),
            Document::Yaml(index) => index,
        };
        let (mut current, mut begun) = (0, false);
        for (number, line) in self.text.lines().enumerate() {
            let content = line.trim();
            if line.starts_with("---") {
                current += usize::from(begun);
                begun = true;
            } else if !content.is_empty() && !content.starts_with('#') {
                if current == wanted {
                    return Some(number + 1);
                }
                begun = true;
            }
        }
        None
    }
}

/// Reads one item of a list's `items` and skips all else.
struct Item<T>(usize, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Item<T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Item<T> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<String>()? {
            if key == "items" {
                map.next_value_seed(Nth::<T>(self.0, self.1))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct Nth<T>(usize, PhantomData<T>);

impl<'de, T: DeserializeOwned> DeserializeSeed<'de> for Nth<T> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de, T: DeserializeOwned> Visitor<'de> for Nth<T> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of objects")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        for _ in 0..self.0 {
            seq.next_element::<IgnoredAny>()?;
        }
        seq.next_element::<T>()?;
        while seq.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }
}
