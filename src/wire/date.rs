//! A time in ISO 8601 form.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In UTC, to the second.
pub fn date(time: SystemTime) -> String {
    format!("{}Z", seconds(time.duration_since(UNIX_EPOCH).unwrap_or_default()))
}

/// In UTC, to the millisecond.
pub fn date_millis(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("{}.{:03}Z", seconds(since), since.subsec_millis())
}

/// Reads what [`date_millis`] writes; `None` for anything else.
pub fn parse_date_millis(text: &str) -> Option<SystemTime> {
    let (day, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (time, millis) = time.split_once('.')?;
    let [year, month, day] = numbers(day, '-')?;
    let [hour, minute, second] = numbers(time, ':')?;
    let since_epoch = days_until(year, month, day)? * 86_400 + hour * 3600 + minute * 60 + second;
    let millis = millis.parse().ok().filter(|millis| *millis < 1000)?;
    let time = UNIX_EPOCH + Duration::from_secs(since_epoch) + Duration::from_millis(millis);
    // A time that does not come back unchanged does not exist: a 30th of February, a 61st minute.
    (date_millis(time) == text).then_some(time)
}

fn numbers(text: &str, between: char) -> Option<[u64; 3]> {
    let mut parts =
        text.split(between).map(|part| part.parse::<u64>().ok().filter(|n| *n < 10_000));
    let numbers = [parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(numbers)
}

/// Days from the epoch until a day of the calendar; `None` before the epoch.
fn days_until(year: u64, month: u64, day: u64) -> Option<u64> {
    // As in `seconds`, a year begins in March.
    let year = year.checked_sub(u64::from(month <= 2))?;
    let from_march = if month > 2 { month.checked_sub(3)? } else { month + 9 };
    let (era, year_of_era) = (year / 400, year % 400);
    let day_of_year = (153 * from_march + 2) / 5 + day;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).checked_sub(719_468 + 1)
}

fn seconds(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    // Days since 1 March 0000; years that begin in March end with the leap day.
    let days = seconds / 86_400 + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * from_march + 2) / 5 + 1;
    let month = if from_march < 10 { from_march + 3 } else { from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_735_689_599, "2024-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(date(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        let late = UNIX_EPOCH + Duration::from_millis(86_400_007);
        assert_eq!(date_millis(late), "1970-01-02T00:00:00.007Z");
    }

    #[test]
    fn other_texts_are_no_times() {
        for text in [
            "",
            "2024-02-30T00:00:00.000Z",
            "2024-13-01T00:00:00.000Z",
            "2024-00-01T00:00:00.000Z",
            "1969-12-31T00:00:00.000Z",
            "2024-01-01T00:61:00.000Z",
            "2024-01-01T00:00:00.0000Z",
            "2024-01-01T00:00:00Z",
            "2024-01-01 00:00:00.000",
            "99999999999999999999-01-01T00:00:00.000Z",
            "2024-1-1T0:0:0.0Z",
        ] {
            assert_eq!(parse_date_millis(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn times_come_back(millis in 0u64..253_402_300_800_000) {
            let time = UNIX_EPOCH + Duration::from_millis(millis);
            prop_assert_eq!(parse_date_millis(&date_millis(time)), Some(time));
        }

        #[test]
        fn garbage_never_panics(text in "[0-9TZ:.-]{0,30}") {
            let time = parse_date_millis(&text);
            prop_assert!(time.is_none_or(|time| date_millis(time) == text));
        }
    }
}
