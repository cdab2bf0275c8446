//! Texts that many objects have, each kept once: a cluster of 100,000 endpoints has a thousand namespaces and a few hundred nodes, and
//! every one of its names is in a dozen tables.

use std::{
    collections::HashSet,
    sync::{Arc, LazyLock, Mutex, PoisonError},
};

/// Texts below which nobody looks for those that nobody has any more.
const FEW: usize = 4_096;

#[derive(Debug)]
struct Texts {
    known: HashSet<Arc<str>>,
    /// How many there may be before those that nobody else has are dropped.
    most: usize,
}

static TEXTS: LazyLock<Mutex<Texts>> = LazyLock::new(|| Mutex::new(Texts { known: HashSet::new(), most: FEW }));

impl Texts {
    fn shared(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.most {
            self.known.retain(|text| Arc::strong_count(text) > 1);
            // Twice what is in use: dropping costs each text a constant, however many there are.
            self.most = FEW.max(2 * self.known.len());
            self.known.shrink_to(self.most);
        }
        let text: Arc<str> = text.into();
        self.known.insert(Arc::clone(&text));
        text
    }
}

/// The text, as whoever else has it does.
pub fn shared(text: &str) -> Arc<str> {
    TEXTS.lock().unwrap_or_else(PoisonError::into_inner).shared(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_kept_once_and_only_as_long_as_somebody_has_it() {
        let mut texts = Texts { known: HashSet::new(), most: FEW };
        let web = texts.shared("web");
        assert!(Arc::ptr_eq(&web, &texts.shared("web")));
        for number in 0..10 * FEW {
            texts.shared(&number.to_string());
            assert!(texts.known.len() <= FEW);
        }
        assert!(Arc::ptr_eq(&web, &texts.shared("web")), "it is still the same after others have gone");
        let held: Vec<_> = (0..3 * FEW).map(|number| texts.shared(&number.to_string())).collect();
        assert!(held.iter().all(|text| texts.known.contains(text)), "what is in use stays");
        assert!(texts.most <= 2 * texts.known.len().max(FEW));
    }
}
