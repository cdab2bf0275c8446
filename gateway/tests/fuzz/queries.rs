//! Damaged queries, and what an answer must be.

use crate::epoch::Rng;

/// A query as a client writes it.
pub fn query(rng: &mut Rng) -> Vec<u8> {
    let mut message = rng.bytes(2);
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    message.extend(b"\x03web\x04shop\x03svc\x07cluster\x05local\x00\x00\x01\x00\x01");
    message
}

/// What an answer is to a query that it answers.
pub fn answer(_query: &[u8], _answer: &[u8]) -> Result<(), String> {
    Ok(())
}
