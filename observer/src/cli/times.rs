//! Times as they are typed: `2024-01-22T14:30Z`, `14:30`, `2h`, `yesterday`.

use jiff::{SpanRelativeTo, Timestamp, Zoned, civil, tz::TimeZone};

/// What a time that was typed means now; without a zone it is local.
pub(super) fn parse(text: &str) -> Result<Timestamp, String> {
    meant(text, &Zoned::now())
}

fn meant(text: &str, now: &Zoned) -> Result<Timestamp, String> {
    let wrong = || format!("write it as 2024-01-22T14:30Z, 14:30, 2h or yesterday: `{text}` is no time");
    let begins = |day: &Zoned| day.start_of_day().map(|day| day.timestamp()).map_err(|_| wrong());
    match text {
        "now" => return Ok(now.timestamp()),
        "today" => return begins(now),
        "yesterday" => return begins(&now.yesterday().map_err(|_| wrong())?),
        _ => {}
    }
    if let Ok(time) = text.parse::<Timestamp>() {
        return Ok(time);
    }
    let (bare, zone) = match text.strip_suffix(['Z', 'z']) {
        Some(bare) => (bare, TimeZone::UTC),
        None => (text, now.time_zone().clone()),
    };
    let in_zone = |time: civil::DateTime| time.to_zoned(zone.clone()).map(|time| time.timestamp()).map_err(|_| wrong());
    // A span such as `2h` is none of these, but a date alone is also a time.
    if let Ok(time) = civil::Time::strptime("%H:%M", bare).or_else(|_| civil::Time::strptime("%H:%M:%S", bare)) {
        return in_zone(now.with_time_zone(zone.clone()).date().to_datetime(time));
    }
    if let Ok(time) = bare.parse::<civil::DateTime>() {
        return in_zone(time);
    }
    let span: jiff::Span = text.parse().map_err(|_| wrong())?;
    // `2h ago` is negative too.
    if text.starts_with('-') {
        return Err(format!("write {} for a time that long ago: `{text}` is negative", text.trim_start_matches('-')));
    }
    let ago = span.to_duration(SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    now.timestamp().checked_sub(ago.abs()).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_time() {
        let now: Zoned = "2024-01-22T15:45:00+01:00[Europe/Paris]".parse().unwrap();
        for (typed, wanted) in [
            ("2024-01-22T14:30:07Z", "2024-01-22T14:30:07Z"),
            ("2024-01-22T14:30Z", "2024-01-22T14:30:00Z"),
            ("2024-01-22T14:30", "2024-01-22T13:30:00Z"),
            ("2024-01-22", "2024-01-21T23:00:00Z"),
            ("14:30", "2024-01-22T13:30:00Z"),
            ("14:30Z", "2024-01-22T14:30:00Z"),
            ("14:30:05Z", "2024-01-22T14:30:05Z"),
            ("2h", "2024-01-22T12:45:00Z"),
            ("1h ago", "2024-01-22T13:45:00Z"),
            ("1d", "2024-01-21T14:45:00Z"),
            ("today", "2024-01-21T23:00:00Z"),
            ("yesterday", "2024-01-20T23:00:00Z"),
            ("now", "2024-01-22T14:45:00Z"),
        ] {
            assert_eq!(meant(typed, &now).unwrap().to_string(), wanted, "{typed}");
        }
        for typed in ["soon", "", "25:00", "14", "Z", "-5m"] {
            assert!(meant(typed, &now).is_err(), "{typed}");
        }
    }
}
