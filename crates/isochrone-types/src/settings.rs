//! What of a session changes the meaning of text and the result of functions.

use crate::error::{Error, Result, SqlState};
use jiff::tz::TimeZone as JiffZone;
use std::sync::Arc;

/// A time zone: a name of the IANA database, or a fixed offset.
#[derive(Clone, Debug)]
pub struct TimeZone {
    name: Arc<str>,
    zone: JiffZone,
    utc: bool,
}

impl TimeZone {
    /// Coordinated universal time.
    pub fn utc() -> TimeZone {
        TimeZone { name: "UTC".into(), zone: JiffZone::UTC, utc: true }
    }

    /// A fixed offset in seconds east of Greenwich; `None` beyond a day.
    pub fn fixed(seconds_east: i32) -> Option<TimeZone> {
        let offset = jiff::tz::Offset::from_seconds(seconds_east).ok()?;
        let (sign, abs) = if seconds_east < 0 { ('-', -seconds_east) } else { ('+', seconds_east) };
        // PostgreSQL shows such zones as POSIX strings, whose sign points the other way.
        let posix = if sign == '-' { '+' } else { '-' };
        let (h, m) = (abs / 3600, abs / 60 % 60);
        let name = if m == 0 {
            format!("<{sign}{h:02}>{posix}{h:02}")
        } else {
            format!("<{sign}{h:02}:{m:02}>{posix}{h:02}:{m:02}")
        };
        Some(TimeZone { name: name.into(), zone: JiffZone::fixed(offset), utc: seconds_east == 0 })
    }

    /// A zone by IANA name (any case), by `UTC`, `GMT`, `Z`, or by an offset such as `+02`, `-3:30`, `5`
    /// (hours east). 22023 when there is none.
    pub fn parse(text: &str) -> Result<TimeZone> {
        let t = text.trim();
        if let Some(zone) = parse_offset_seconds(t).and_then(TimeZone::fixed) {
            return Ok(zone);
        }
        TimeZone::named(t).ok_or_else(|| {
            Error::new(
                SqlState::INVALID_PARAMETER_VALUE,
                format!("invalid value for parameter \"TimeZone\": \"{text}\""),
            )
        })
    }

    /// A zone by name; `None` when there is none.
    pub(crate) fn named(name: &str) -> Option<TimeZone> {
        if ["utc", "gmt", "z", "zulu", "etc/utc", "uct"].iter().any(|u| name.eq_ignore_ascii_case(u)) {
            let shown = if name.eq_ignore_ascii_case("gmt") { "GMT" } else { "UTC" };
            let shown = if name.contains('/') { "Etc/UTC" } else { shown };
            return Some(TimeZone { name: shown.into(), zone: JiffZone::UTC, utc: true });
        }
        let zone = JiffZone::get(name).ok()?;
        let name = zone.iana_name().unwrap_or(name).into();
        Some(TimeZone { name, zone, utc: false })
    }

    /// The name, as `SHOW timezone` prints it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Is it plain UTC, whose offset is always zero?
    pub(crate) fn is_utc(&self) -> bool {
        self.utc
    }

    pub(crate) fn jiff(&self) -> &JiffZone {
        &self.zone
    }
}

/// `+02`, `-03:30`, `5.5`: seconds east.
fn parse_offset_seconds(t: &str) -> Option<i32> {
    let (sign, rest) = match t.as_bytes().first()? {
        b'+' => (1, &t[1..]),
        b'-' => (-1, &t[1..]),
        b'0'..=b'9' => (1, t),
        _ => return None,
    };
    let seconds = match rest.split_once(':') {
        Some((h, m)) => h.parse::<u16>().ok()? as i32 * 3600 + m.parse::<u8>().ok()? as i32 * 60,
        None => {
            let hours: f64 = rest.parse().ok()?;
            if !(0.0..=15.98).contains(&hours) {
                return None;
            }
            (hours * 3600.0).round() as i32
        }
    };
    (seconds < 16 * 3600).then_some(sign * seconds)
}

/// The order of day, month and year in ambiguous date input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum DateOrder {
    /// month/day/year, the default
    #[default]
    Mdy,
    /// day/month/year
    Dmy,
    /// year/month/day
    Ymd,
}

/// How bytea values are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum ByteaOutput {
    /// `\x4142`
    #[default]
    Hex,
    /// `AB\000`
    Escape,
}

/// How intervals are printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum IntervalStyle {
    /// `1 year 2 mons 3 days 04:05:06`
    #[default]
    Postgres,
    /// `P1Y2M3DT4H5M6S`
    Iso8601,
}

/// The settings of a session that text input and output depend on. Dates are always printed in ISO style.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `TimeZone`
    pub time_zone: TimeZone,
    /// The second half of `DateStyle`
    pub date_order: DateOrder,
    /// `extra_float_digits`: above 0 the shortest exact form is printed; 0 or less rounds to fewer digits
    pub extra_float_digits: i32,
    /// `bytea_output`
    pub bytea_output: ByteaOutput,
    /// `IntervalStyle`
    pub interval_style: IntervalStyle,
    /// Start of the current transaction, in microseconds since 2000-01-01 UTC: what `now` and the input strings
    /// 'now', 'today', 'tomorrow', 'yesterday' mean. The session sets it when a transaction begins.
    pub transaction_time: i64,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            time_zone: TimeZone::utc(),
            date_order: DateOrder::Mdy,
            extra_float_digits: 1,
            bytea_output: ByteaOutput::Hex,
            interval_style: IntervalStyle::Postgres,
            transaction_time: 0,
        }
    }
}

/// Who and where a session is: what `current_user` and its like answer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SessionInfo {
    /// `current_user`
    pub current_user: String,
    /// `session_user`
    pub session_user: String,
    /// `current_database()`
    pub current_database: String,
    /// `current_schema()`
    pub current_schema: String,
}

/// What functions may look at besides their arguments.
#[derive(Clone, Copy)]
pub struct EvalContext<'a> {
    /// The settings; the transaction's start is in them.
    pub settings: &'a Settings,
    /// The session.
    pub session: &'a SessionInfo,
    /// Start of the statement, in microseconds since 2000-01-01 UTC.
    pub statement_time: i64,
    /// The clock, in microseconds since 2000-01-01 UTC.
    pub clock: &'a (dyn Fn() -> i64 + Send + Sync),
    /// 64 random bits.
    pub random: &'a (dyn Fn() -> u64 + Send + Sync),
}

impl EvalContext<'_> {
    /// Runs `f` with a context that has these settings, a clock that stands at the transaction's start and a random
    /// source that is constant: for folding immutable expressions, and for tests.
    pub fn with_settings<R>(settings: &Settings, f: impl FnOnce(&EvalContext<'_>) -> R) -> R {
        let now = settings.transaction_time;
        let session = SessionInfo::default();
        f(&EvalContext {
            settings,
            session: &session,
            statement_time: now,
            clock: &move || now,
            random: &|| 0x9e37_79b9_7f4a_7c15,
        })
    }
}
