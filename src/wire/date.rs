//! A time as ISO 8601 writes it.

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
}
