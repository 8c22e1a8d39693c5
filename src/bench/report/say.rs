//! Figures as people read them: three digits and a unit.

/// Three digits of a number that is not negative.
pub fn digits(value: f64) -> String {
    match value {
        v if v >= 99.95 => format!("{v:.0}"),
        v if v >= 9.995 => format!("{v:.1}"),
        v if v >= 0.0995 || v == 0.0 => format!("{v:.2}"),
        v => format!("{v:.3}"),
    }
}

/// Nanoseconds.
pub fn nanos(nanos: u64) -> String {
    let value = nanos as f64;
    match nanos {
        0 => "0".to_owned(),
        1..1_000_000 => format!("{} µs", digits(value / 1e3)),
        1_000_000..1_000_000_000 => format!("{} ms", digits(value / 1e6)),
        _ => format!("{} s", digits(value / 1e9)),
    }
}

/// Bytes, in powers of 1024.
pub fn bytes(bytes: u64) -> String {
    let value = bytes as f64;
    match bytes {
        0..1024 => format!("{bytes} B"),
        1024..0x10_0000 => format!("{} KiB", digits(value / 1024.0)),
        0x10_0000..0x4000_0000 => format!("{} MiB", digits(value / 1_048_576.0)),
        _ => format!("{} GiB", digits(value / 1_073_741_824.0)),
    }
}

/// Bytes per second.
pub fn rate(amount: u64, seconds: f64) -> String {
    if seconds <= 0.0 {
        return "-".to_owned();
    }
    format!("{}/s", bytes((amount as f64 / seconds) as u64))
}

/// A whole number, with commas.
pub fn count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() * 4 / 3);
    for (n, digit) in digits.chars().enumerate() {
        if n > 0 && (digits.len() - n).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A noun with its number: `1 standby`, `2 standbys`.
pub fn of(number: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(number), if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_digits_are_enough() {
        let times = [0, 950, 12_345, 999_400, 1_234_000, 99_960_000, 61_000_000_000].map(nanos);
        assert_eq!(times, ["0", "0.95 µs", "12.3 µs", "999 µs", "1.23 ms", "100 ms", "61.0 s"]);
        let sizes = [0, 1023, 1024, 1_572_864, 200 << 20, 5 << 30].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.00 KiB", "1.50 MiB", "200 MiB", "5.00 GiB"]);
        assert_eq!(
            [0.0004, 0.05, 0.0999, 9.999, 1234.5].map(digits),
            ["0.000", "0.050", "0.10", "10.0", "1234"]
        );
        assert_eq!([0, 999, 1000, 1_234_567].map(count), ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(rate(3 << 20, 1.5), "2.00 MiB/s");
        assert_eq!([of(1, "byte"), of(2000, "byte")], ["1 byte", "2,000 bytes"]);
    }
}
