//! All slots at one time: the content of `slots.0` or of `slots.1`.

use super::record::{SlotRecord, SlotText};
use crate::store::sealed_text::{Unreadable, seal_json, unseal};
use crate::wal::Lsn;
use serde::Deserialize;
use std::collections::BTreeSet;

const KIND: &str = "slots";
const VERSION: u32 = 1;

/// The length of the first line.
const HEAD: usize = "walhub slots 1 00000000\n".len();

/// A file's length is a multiple of this. So it rarely changes, and a sync has only data to write.
const STEP: usize = 4096;

/// All persistent slots at one time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generation {
    /// Greater than that of every generation before.
    pub number: u64,
    /// From where on standbys needed WAL, those among them that had left a moment ago; `None` when
    /// there were none. Earlier versions neither write nor read it.
    pub standbys_from: Option<Lsn>,
    /// The slots, each with a name of its own.
    pub slots: Vec<SlotRecord>,
}

#[derive(Deserialize)]
struct GenerationText {
    generation: u64,
    #[serde(default)]
    standbys_from: Option<String>,
    slots: Vec<SlotText>,
}

impl Generation {
    /// The file's bytes, at least `min_len` of them: written over an older generation of that
    /// length, they leave nothing of it. There is one slot in a line.
    pub fn encode(&self, min_len: usize) -> Vec<u8> {
        let from = self.standbys_from.map(|from| format!("\"standbys_from\":\"{from}\","));
        let (number, from) = (self.number, from.unwrap_or_default());
        let mut body = format!("{{\"generation\":{number},{from}\"slots\":[").into_bytes();
        for (n, slot) in self.slots.iter().enumerate() {
            body.extend_from_slice(if n == 0 { b"\n" } else { b",\n" });
            let text = serde_json::to_vec(&SlotText::of(slot));
            // A plain struct with text keys, so the ways in which this could fail do not occur.
            body.extend(text.expect("plain data is always JSON"));
        }
        body.extend_from_slice(b"\n]}\n");
        let len = (HEAD + body.len()).next_multiple_of(STEP).max(min_len);
        body.resize(len - HEAD, b'\n');
        seal_json(KIND, VERSION, &body)
    }

    /// Reads the file's bytes.
    pub fn decode(bytes: &[u8]) -> Result<Self, Unreadable> {
        let text: GenerationText = unseal(KIND, VERSION, bytes)?;
        let slots = text.slots.into_iter().map(SlotText::parse);
        let slots: Vec<_> = slots.collect::<Result<_, _>>()?;
        let standbys_from = text.standbys_from.map(|from| from.parse()).transpose();
        let standbys_from =
            standbys_from.map_err(|_| Unreadable::Content("invalid standbys_from".to_owned()))?;
        let mut names = BTreeSet::new();
        match slots.iter().find(|slot| !names.insert(&slot.name)) {
            Some(twice) => Err(Unreadable::Content(format!("slot \"{}\" twice", twice.name))),
            None => Ok(Self { number: text.generation, standbys_from, slots }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::slots::{Cause, Origin, SlotName};

    fn slots() -> Vec<SlotRecord> {
        let all = [
            ("a", None, None, Origin::Asked),
            ("b", Some(Lsn::new(0x16_0000_0028)), None, Origin::AutoCreated),
            ("c", None, Some(Cause::IdleTimeout), Origin::Asked),
            ("d", Some(Lsn::new(u64::MAX)), Some(Cause::WalRemoved), Origin::Asked),
        ];
        let record = |(name, restart_lsn, invalidated, origin)| {
            let name = SlotName::parse(name).unwrap();
            SlotRecord { name, restart_lsn, invalidated, origin }
        };
        all.map(record).to_vec()
    }

    #[test]
    fn round_trip() {
        let ours = [(slots(), None), (Vec::new(), Some(Lsn::new(7))), (slots(), Some(Lsn::MAX))];
        for (slots, standbys_from) in ours {
            let generation = Generation { number: u64::MAX, standbys_from, slots };
            let bytes = generation.encode(0);
            assert_eq!(bytes.len(), STEP);
            assert_eq!(Generation::decode(&bytes), Ok(generation));
        }
    }

    #[test]
    fn it_covers_what_was_there_before() {
        let slots = vec![slots(); 100].concat();
        let long = Generation { number: 1, standbys_from: None, slots }.encode(0);
        assert!(long.len() > STEP && long.len().is_multiple_of(STEP));
        let generation = Generation { number: 2, standbys_from: None, slots: Vec::new() };
        let bytes = generation.encode(long.len());
        assert_eq!(bytes.len(), long.len());
        assert_eq!(Generation::decode(&bytes), Ok(generation));
    }

    #[test]
    fn a_mixture_of_two_is_refused() {
        let old = Generation { number: 1, standbys_from: None, slots: vec![slots(); 9].concat() }
            .encode(0);
        let new =
            Generation { number: 2, standbys_from: None, slots: Vec::new() }.encode(old.len());
        let torn = [&new[..512], &old[512..]].concat();
        let refused = Generation::decode(&torn);
        assert!(matches!(refused, Err(Unreadable::Checksum { .. })), "{refused:?}");
        assert!(Generation::decode(b"").is_err());
    }

    #[test]
    fn a_name_occurs_once_and_unknown_fields_are_ignored() {
        let twice = vec![slots()[..1].to_vec(); 2].concat();
        let refused = Generation::decode(
            &Generation { number: 1, standbys_from: None, slots: twice }.encode(0),
        );
        assert_eq!(refused, Err(Unreadable::Content("slot \"a\" twice".to_owned())));
        let body = br#"{"generation": 7, "later": 1, "slots": [
            {"name": "a", "restart_lsn": null, "invalidated": null, "origin": "asked", "hold": 3}]}"#;
        let read = Generation::decode(&seal_json(KIND, VERSION, body));
        assert_eq!(
            read,
            Ok(Generation { number: 7, standbys_from: None, slots: slots()[..1].to_vec() })
        );
    }
}
