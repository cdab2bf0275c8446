//! Queries as clients write them.

use gateway_common::dns::{name::to_wire, wire};

/// A query to be written.
#[derive(Clone, Debug)]
pub struct Ask {
    pub id: u16,
    pub flags: u16,
    pub name: Vec<u8>,
    pub qtype: u16,
    /// EDNS: size, DO, options.
    pub edns: Option<(u16, bool, Vec<u8>)>,
}

impl Ask {
    pub fn new(name: &str, qtype: u16) -> Self {
        Self { id: 0x1F2E, flags: wire::RD, name: to_wire(name).expect(name), qtype, edns: None }
    }

    pub fn edns(mut self, size: u16) -> Self {
        self.edns = Some((size, false, Vec::new()));
        self
    }

    /// The name with every other letter in upper case.
    pub fn mixed_case(mut self) -> Self {
        let mut at = 0;
        while self.name[at] != 0 {
            let end = at + 1 + usize::from(self.name[at]);
            for byte in self.name[at + 1..end].iter_mut().step_by(2) {
                byte.make_ascii_uppercase();
            }
            at = end;
        }
        self
    }

    pub fn message(&self) -> Vec<u8> {
        let mut message = Vec::new();
        for word in [self.id, self.flags, 1, 0, 0, self.edns.is_some().into()] {
            message.extend(word.to_be_bytes());
        }
        message.extend(&self.name);
        message.extend(self.qtype.to_be_bytes());
        message.extend(wire::IN.to_be_bytes());
        if let Some((size, dnssec, options)) = &self.edns {
            message.push(0);
            message.extend(wire::OPT_TYPE.to_be_bytes());
            message.extend(size.to_be_bytes());
            message.extend([0, 0, if *dnssec { 0x80 } else { 0 }, 0]);
            message.extend((options.len() as u16).to_be_bytes());
            message.extend(options);
        }
        message
    }
}
