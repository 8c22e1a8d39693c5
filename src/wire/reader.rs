//! Reads big-endian fields from the front of foreign bytes.

/// The bytes ended before the field did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("insufficient data left in message")]
pub struct Short;

/// Reads a message body from front to back.
#[derive(Clone, Copy, Debug)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Starts at the first byte.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read yet.
    pub const fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub const fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, Short> {
        self.array::<1>().map(|[byte]| byte)
    }

    /// A 16-bit signed number.
    pub fn i16(&mut self) -> Result<i16, Short> {
        self.array().map(i16::from_be_bytes)
    }

    /// A 16-bit unsigned number.
    pub fn u16(&mut self) -> Result<u16, Short> {
        self.array().map(u16::from_be_bytes)
    }

    /// A 32-bit signed number.
    pub fn i32(&mut self) -> Result<i32, Short> {
        self.array().map(i32::from_be_bytes)
    }

    /// A 32-bit unsigned number.
    pub fn u32(&mut self) -> Result<u32, Short> {
        self.array().map(u32::from_be_bytes)
    }

    /// A 64-bit signed number.
    pub fn i64(&mut self) -> Result<i64, Short> {
        self.array().map(i64::from_be_bytes)
    }

    /// A 64-bit unsigned number.
    pub fn u64(&mut self) -> Result<u64, Short> {
        self.array().map(u64::from_be_bytes)
    }

    /// The next `len` bytes.
    pub fn bytes(&mut self, len: usize) -> Result<&'a [u8], Short> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Bytes up to a zero byte, which is read but not returned.
    pub fn zero_terminated(&mut self) -> Result<&'a [u8], Short> {
        let len = self.rest.iter().position(|&byte| byte == 0).ok_or(Short)?;
        let text = self.bytes(len)?;
        self.u8()?;
        Ok(text)
    }

    /// A zero-terminated text; bytes that are not UTF-8 become U+FFFD.
    pub fn text(&mut self) -> Result<String, Short> {
        self.zero_terminated().map(|bytes| String::from_utf8_lossy(bytes).into_owned())
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Short> {
        let (field, rest) = self.rest.split_first_chunk::<N>().ok_or(Short)?;
        self.rest = rest;
        Ok(*field)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_until_the_end_and_no_further() {
        let mut reader = Reader::new(b"\x01\xff\xff\0\0\0\x02abc\0x");
        assert_eq!(reader.u8(), Ok(1));
        assert_eq!(reader.i16(), Ok(-1));
        assert_eq!(reader.i32(), Ok(2));
        assert_eq!(reader.text(), Ok("abc".to_owned()));
        assert_eq!(reader.zero_terminated(), Err(Short));
        assert_eq!(reader.u64(), Err(Short));
        assert_eq!(reader.bytes(2), Err(Short));
        assert_eq!(reader.rest(), b"x");
        assert_eq!(reader.bytes(1), Ok(&b"x"[..]));
        assert!(reader.is_empty());
    }
}
