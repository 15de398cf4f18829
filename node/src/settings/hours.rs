//! Hours of the day, such as `22:00-06:00`.

/// Minutes of a day.
const DAY: u16 = 24 * 60;

/// A span of the day by the clock on the wall, in minutes after midnight: from the first one up to the last, which is not
/// part of it. It may go over midnight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Hours {
    from: u16,
    to: u16,
}

impl Hours {
    /// Parses `HH:MM-HH:MM`, with at most `24:00` at its end.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (from, to) = text.split_once('-')?;
        let (from, to) = (minutes(from).filter(|from| *from < DAY)?, minutes(to)?);
        (from != to).then_some(Self { from, to })
    }

    /// Whether this minute of the day is part of it.
    pub fn contains(&self, minute: u16) -> bool {
        if self.from < self.to {
            (self.from..self.to).contains(&minute)
        } else {
            minute >= self.from || minute < self.to
        }
    }
}

/// The minutes after midnight of `HH:MM`, up to `24:00`.
fn minutes(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let number = |text: &str| {
        if text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse::<u16>().ok() } else { None }
    };
    let (hour, minute) = (number(hour)?, number(minute).filter(|minute| *minute < 60)?);
    Some(hour * 60 + minute).filter(|minutes| *minutes <= DAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_go_over_midnight_and_end_with_the_day() {
        let hours = |text: &str, minute| Hours::parse(text).unwrap().contains(minute);
        for (text, minute, is_in) in [
            ("08:00-18:30", 8 * 60, true),
            ("08:00-18:30", 18 * 60 + 29, true),
            ("08:00-18:30", 18 * 60 + 30, false),
            ("22:00-06:00", 23 * 60, true),
            ("22:00-06:00", 5 * 60 + 59, true),
            ("22:00-06:00", 6 * 60, false),
            ("22:00-06:00", 21 * 60 + 59, false),
            ("00:00-24:00", 0, true),
            ("00:00-24:00", DAY - 1, true),
            ("22:00-00:00", DAY - 1, true),
            ("22:00-00:00", 0, false),
        ] {
            assert_eq!(hours(text, minute), is_in, "{text} at {minute}");
        }
        for text in
            ["", "8:00-18:00", "08:00", "08:00-08:00", "24:00-06:00", "08:60-09:00", "08:00-24:01", "+8:00-09:00"]
        {
            assert_eq!(Hours::parse(text), None, "{text:?}");
        }
    }
}
