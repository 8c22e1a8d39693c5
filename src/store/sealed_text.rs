//! Small files whose content is checked: one line with the kind, the version and a checksum,
//! then JSON that a person can read.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// No such file is longer than this, except for those of the slots; a longer one is not read.
pub const MAX_LEN: usize = 1 << 20;

/// Why a file was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unreadable {
    /// It does not begin like a file of this kind.
    #[error("is not a walhub {0} file")]
    Foreign(&'static str),
    /// It was written by a newer version.
    #[error("has version {found}, this program knows version {known}")]
    Version {
        /// The version in the file.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Its bytes are not those that were written.
    #[error("has checksum {found:08x}, calculated {calculated:08x}")]
    Checksum {
        /// In the file.
        found: u32,
        /// Of its content.
        calculated: u32,
    },
    /// Its content makes no sense.
    #[error("has unusable content: {0}")]
    Content(String),
}

/// The file's bytes.
pub fn seal<T: Serialize>(kind: &str, version: u32, content: &T) -> Vec<u8> {
    // These are plain structs with text keys, so the ways in which this could fail do not occur.
    let mut body = serde_json::to_vec_pretty(content).expect("plain data is always JSON");
    body.push(b'\n');
    seal_json(kind, version, &body)
}

/// The bytes of a file whose content is JSON already.
pub fn seal_json(kind: &str, version: u32, body: &[u8]) -> Vec<u8> {
    let mut text = format!("walhub {kind} {version} {:08x}\n", crc32c::crc32c(body)).into_bytes();
    text.extend_from_slice(body);
    text
}

/// The content, if the bytes are whole.
pub fn unseal<T: DeserializeOwned>(
    kind: &'static str,
    version: u32,
    bytes: &[u8],
) -> Result<T, Unreadable> {
    let foreign = Unreadable::Foreign(kind);
    let end = bytes.iter().take(128).position(|b| *b == b'\n').ok_or_else(|| foreign.clone())?;
    let (line, body) = bytes.split_at(end);
    let body = body.get(1..).unwrap_or_default();
    let line = std::str::from_utf8(line).map_err(|_| foreign.clone())?;
    let mut words = line.split(' ');
    if words.next() != Some("walhub") || words.next() != Some(kind) {
        return Err(foreign);
    }
    let found: u32 = words.next().and_then(|w| w.parse().ok()).ok_or_else(|| foreign.clone())?;
    if found != version {
        return Err(Unreadable::Version { found, known: version });
    }
    let crc = words.next().and_then(|w| u32::from_str_radix(w, 16).ok());
    let found = crc.ok_or(foreign)?;
    let calculated = crc32c::crc32c(body);
    if found != calculated {
        return Err(Unreadable::Checksum { found, calculated });
    }
    serde_json::from_slice(body).map_err(|e| Unreadable::Content(e.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn round_trip_and_refusals() {
        let bytes = seal("control", 1, &vec![1u32, 2]);
        assert_eq!(unseal("control", 1, &bytes), Ok(vec![1u32, 2]));
        let other = unseal::<Vec<u32>>("begun", 1, &bytes);
        assert_eq!(other, Err(Unreadable::Foreign("begun")));
        let newer = unseal::<Vec<u32>>("control", 2, &bytes);
        assert_eq!(newer, Err(Unreadable::Version { found: 1, known: 2 }));
    }

    proptest! {
        #[test]
        fn one_changed_byte_is_noticed(at in 0usize..40, bit in 0u8..8) {
            let mut bytes = seal("control", 1, &vec![1u32, 2, 3, 4, 5]);
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            // The checksum is hexadecimal in either case: the number is the same.
            if let Ok(content) = unseal::<Vec<u32>>("control", 1, &bytes) {
                prop_assert_eq!(content, vec![1, 2, 3, 4, 5]);
            }
        }

        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            drop(unseal::<Vec<u32>>("control", 1, &bytes));
        }
    }
}
