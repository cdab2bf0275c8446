//! What is wrong with a Service: in words, and in one word for programs.

use std::{collections::BTreeSet, fmt, ops::Deref};

use crate::model::ObjectName;

/// What kind of problem it is: the `reason` of an Event on the Service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// It has no ClusterIP.
    NoClusterIP,
    /// One of its addresses, or a port on it, is another Service's.
    AddressConflict,
    /// One of its addresses cannot be taken.
    AddressLeftOut,
    /// One of its ports cannot be served.
    PortLeftOut,
    /// SCTP.
    ProtocolNotForwarded,
    /// An endpoint, or a port of a slice, cannot be used.
    EndpointsLeftOut,
    /// Endpoints of a family of which the Service has no address.
    NoCommonFamily,
    /// A record cannot be made.
    NameLeftOut,
    /// More addresses than an answer holds.
    TooManyEndpoints,
    /// A table of the datapath has no room for it.
    TableFull,
    /// The datapath refuses it for another reason.
    DatapathRefused,
}

impl Reason {
    /// As Events have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoClusterIP => "NoClusterIP",
            Self::AddressConflict => "AddressConflict",
            Self::AddressLeftOut => "AddressLeftOut",
            Self::PortLeftOut => "PortLeftOut",
            Self::ProtocolNotForwarded => "ProtocolNotForwarded",
            Self::EndpointsLeftOut => "EndpointsLeftOut",
            Self::NoCommonFamily => "NoCommonFamily",
            Self::NameLeftOut => "NameLeftOut",
            Self::TooManyEndpoints => "TooManyEndpoints",
            Self::TableFull => "TableFull",
            Self::DatapathRefused => "DatapathRefused",
        }
    }
}

/// A problem, as the log, `gateway status` and Events tell it. It reads as its text.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    text: String,
    /// Its kind.
    pub reason: Reason,
}

impl Problem {
    /// One of a Service, whose name is put before it.
    pub fn new(service: &ObjectName, reason: Reason, what: &str) -> Self {
        Self { text: format!("Service {service}: {what}"), reason }
    }
}

impl Deref for Problem {
    type Target = str;

    fn deref(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl<S: AsRef<str>> PartialEq<S> for Problem {
    fn eq(&self, other: &S) -> bool {
        self.text == other.as_ref()
    }
}

/// What is wrong with a Service, each thing once, with the Service's name before it, and never a list without end.
pub(super) struct Problems<'n> {
    name: &'n ObjectName,
    said: BTreeSet<(String, Reason)>,
    more: usize,
}

impl<'n> Problems<'n> {
    const MOST: usize = 16;

    pub(super) const fn new(name: &'n ObjectName) -> Self {
        Self { name, said: BTreeSet::new(), more: 0 }
    }

    pub(super) fn say(&mut self, reason: Reason, what: String) {
        let what = (what, reason);
        if self.said.len() < Self::MOST {
            self.said.insert(what);
        } else if !self.said.contains(&what) {
            self.more += 1;
        }
    }

    pub(super) fn finish(self) -> Vec<Problem> {
        let Self { name, said, more } = self;
        let mut problems: Vec<_> = said.iter().map(|(what, reason)| Problem::new(name, *reason, what)).collect();
        if let Some((_, reason)) = said.last().filter(|_| more > 0) {
            problems.push(Problem::new(name, *reason, &format!("and {more} more like these")));
        }
        problems
    }
}
