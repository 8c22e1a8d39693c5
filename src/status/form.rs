//! The forms of values in JSON, for serde's `with`. A form for an optional value reads a missing
//! field as absent, if the field says `default`.

use crate::cluster::instance::InstanceId;
use crate::wal::{Lsn, SegmentSize, SystemId, TimelineId};
use crate::wire::date::{date_millis, parse_date_millis};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt::Display;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

/// A value with a form in JSON that is not serde's own.
pub(super) trait Form: Sized {
    /// What JSON holds.
    type Written: Serialize + for<'de> Deserialize<'de>;

    fn write(&self) -> Self::Written;

    /// # Errors
    /// Says what was expected.
    fn read(written: Self::Written) -> Result<Self, String>;
}

fn read_text<T: FromStr<Err: Display>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|fault: T::Err| format!("\"{text}\": {fault}"))
}

/// Values that are text in JSON, in their printed form.
macro_rules! text {
    ($($value:ty),*) => {$(
        impl Form for $value {
            type Written = String;

            fn write(&self) -> String {
                self.to_string()
            }

            fn read(text: String) -> Result<Self, String> {
                read_text(&text)
            }
        }
    )*};
}

text!(Lsn, SystemId, InstanceId);

impl Form for TimelineId {
    type Written = u32;

    fn write(&self) -> u32 {
        self.raw()
    }

    fn read(raw: u32) -> Result<Self, String> {
        Self::new(raw).ok_or_else(|| "0 is no timeline".to_owned())
    }
}

impl Form for SegmentSize {
    type Written = u64;

    fn write(&self) -> u64 {
        self.bytes()
    }

    fn read(bytes: u64) -> Result<Self, String> {
        Self::new(bytes).ok_or_else(|| format!("{bytes} is no segment size"))
    }
}

impl Form for SystemTime {
    type Written = String;

    fn write(&self) -> String {
        date_millis(*self)
    }

    fn read(text: String) -> Result<Self, String> {
        parse_date_millis(&text).ok_or_else(|| format!("\"{text}\" is no time"))
    }
}

/// A value in its form.
pub(super) mod plain {
    use super::*;

    pub(in super::super) fn serialize<T: Form, S: Serializer>(
        value: &T,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.write().serialize(to)
    }

    pub(in super::super) fn deserialize<'de, T: Form, D: Deserializer<'de>>(
        from: D,
    ) -> Result<T, D::Error> {
        T::read(T::Written::deserialize(from)?).map_err(D::Error::custom)
    }
}

/// A value in its form, or null.
pub(super) mod optional {
    use super::*;

    pub(in super::super) fn serialize<T: Form, S: Serializer>(
        value: &Option<T>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        value.as_ref().map(Form::write).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, T: Form, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<T>, D::Error> {
        let written = Option::<T::Written>::deserialize(from)?;
        written.map(T::read).transpose().map_err(D::Error::custom)
    }
}

/// A list of values in their forms.
pub(super) mod list {
    use super::*;

    pub(in super::super) fn serialize<T: Form, S: Serializer>(
        values: &[T],
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(values.iter().map(Form::write))
    }

    pub(in super::super) fn deserialize<'de, T: Form, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Vec<T>, D::Error> {
        let written = Vec::<T::Written>::deserialize(from)?;
        written.into_iter().map(T::read).collect::<Result<_, _>>().map_err(D::Error::custom)
    }
}

/// A time span in whole seconds.
pub(super) mod whole_seconds {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        span: &Duration,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        span.as_secs().serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Duration, D::Error> {
        u64::deserialize(from).map(Duration::from_secs)
    }
}

/// A time span in seconds to the millisecond, or null.
pub(super) mod optional_seconds {
    use super::*;

    pub(in super::super) fn serialize<S: Serializer>(
        span: &Option<Duration>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        let seconds = |span: &Duration| {
            u32::try_from(span.as_millis()).map_or(f64::from(u32::MAX), f64::from) / 1000.0
        };
        span.as_ref().map(seconds).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        from: D,
    ) -> Result<Option<Duration>, D::Error> {
        let seconds = Option::<f64>::deserialize(from)?;
        let span = seconds.map(|seconds| {
            // The value to the millisecond.
            Duration::try_from_secs_f64((seconds * 1000.0).round() / 1000.0)
        });
        span.transpose().map_err(D::Error::custom)
    }
}
