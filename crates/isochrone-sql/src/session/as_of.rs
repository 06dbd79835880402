//! AS OF SYSTEM TIME: reads of the past, as CockroachDB writes them.
//!
//!     SELECT .. FROM t AS OF SYSTEM TIME '-10s' WHERE ..         behind FROM, of the statement or of a subquery
//!     BEGIN AS OF SYSTEM TIME ..    SET TRANSACTION AS OF SYSTEM TIME ..
//!
//! The parser does not know the clause: it is found among the tokens, read here, and blanked out, so that every position
//! in the rest of the text stays. A statement has one time: several clauses must say the same.
//!
//!     '2026-01-31 12:00:00+01'                 a moment; without a zone it is UTC
//!     '-10s', INTERVAL '-10s'                  so long ago (a month is 30 days)
//!     1769860800000000.0017                    microseconds since 1970 and the counter in four digits
//!     7249349836800000000                      the same as one number: what cluster_timestamp() returns
//!     follower_read_timestamp()                old enough for any replica, as long as nothing lags
//!     with_max_staleness('10s')                the newest state that this node can give alone, not older than that
//!     with_min_timestamp(..)                   the same, not older than that moment
//!
//! How it fails: 22023 for what is no moment in the past, 0A000 for placeholders and other expressions.

use isochrone_base::Timestamp;
use isochrone_base::timestamp::LOGICAL_BITS;
use isochrone_types::{Datum, Error, Settings, Type, text};
use sqlparser::tokenizer::Token;

use super::EPOCH_2000_US;
use super::utility::Tokens;

/// What `follower_read_timestamp()` is behind now: the lag of closed timestamps, the time until followers hear of them, and
/// the difference of clocks.
pub const FOLLOWER_READ_LAG_US: u64 = 2_000_000;
const CLAUSE: [&str; 4] = ["as", "of", "system", "time"];

/// A moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Moment {
    /// This one.
    At(Timestamp),
    /// Microseconds before the statement, or the block, begins.
    Ago(u64),
}

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsOf {
    /// The state then.
    Exact(Moment),
    /// A state since then: the newest that this node can give by itself.
    Since(Moment),
}

impl Moment {
    /// The timestamp it means now.
    pub fn resolve(self, now: Timestamp) -> Result<Timestamp, Error> {
        let ts = match self {
            Moment::At(ts) => ts,
            Moment::Ago(us) => now.minus_micros(us),
        };
        if ts > now {
            return Err(invalid(format!("cannot specify timestamp in the future ({ts} > {now})")));
        }
        if ts == Timestamp::MIN {
            return Err(invalid("timestamp must be after 1970-01-01 00:00:00+00".into()));
        }
        Ok(ts)
    }
}

fn invalid(what: String) -> Error {
    Error::invalid_parameter(format!("AS OF SYSTEM TIME: {what}"))
}

/// Inverse of a timestamp's text, and of its own 64 bits. Zeros at the end may be missing.
fn number(digits: &str) -> Option<Timestamp> {
    let (whole, counter) = digits.split_once('.').unwrap_or((digits, ""));
    let all_digits = |s: &str| s.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || !all_digits(whole) || !all_digits(counter) || counter.len() > 4 {
        return None;
    }
    let whole: u64 = whole.parse().ok()?;
    if whole >> (u64::BITS - LOGICAL_BITS) != 0 {
        // As many bits have no microseconds of our time: it is the whole timestamp.
        return counter.bytes().all(|b| b == b'0').then_some(Timestamp(whole));
    }
    let counter: u64 = format!("{counter:0<4}").parse().ok()?;
    if counter >> LOGICAL_BITS != 0 {
        return None;
    }
    Some(Timestamp(Timestamp::from_micros(whole).0 | counter))
}

/// What a string means: a number, a moment, or a length of time.
fn words(s: &str) -> Result<Moment, Error> {
    let s = s.trim();
    if let Some(ts) = number(s) {
        return Ok(Moment::At(ts));
    }
    let settings = Settings::default();
    if let Ok(Datum::Timestamptz(us)) = text::parse_text(&Type::Timestamptz, s, &settings) {
        let since_1970 = us.checked_add(EPOCH_2000_US).and_then(|us| u64::try_from(us).ok());
        return since_1970
            .filter(|us| us >> (u64::BITS - LOGICAL_BITS) == 0)
            .map(|us| Moment::At(Timestamp::from_micros(us)))
            .ok_or_else(|| invalid(format!("\"{s}\" is not a moment that anything was written at")));
    }
    let us = length(s)
        .ok_or_else(|| invalid(format!("value \"{s}\" is neither timestamp, decimal, nor interval")))?;
    match u64::try_from(-us) {
        Ok(us) if us > 0 => Ok(Moment::Ago(us)),
        _ => Err(invalid(format!("interval \"{s}\" must be negative"))),
    }
}

/// Microseconds of an interval.
fn length(s: &str) -> Option<i128> {
    match text::parse_text(&Type::Interval, s, &Settings::default()) {
        Ok(Datum::Interval(i)) => {
            let days = i128::from(i.months) * 30 + i128::from(i.days);
            Some(days * 86_400_000_000 + i128::from(i.micros))
        }
        _ => None,
    }
}

/// `'..'`, `'..'::type`.
fn string(t: &mut Tokens) -> Option<String> {
    let s = t.string()?;
    while t.eat_token(&Token::DoubleColon) {
        t.ident().ok()?;
    }
    Some(s)
}

fn moment(t: &mut Tokens) -> Result<Moment, Error> {
    if t.eat_token(&Token::LParen) {
        let inner = moment(t)?;
        t.expect_token(&Token::RParen)?;
        return Ok(inner);
    }
    match t.peek() {
        Some(Token::Number(n, _)) => {
            let ts = number(n).ok_or_else(|| invalid(format!("{n} is not a timestamp")))?;
            t.next();
            return Ok(Moment::At(ts));
        }
        Some(Token::Placeholder(_)) => {
            return Err(Error::unsupported("a parameter in AS OF SYSTEM TIME"));
        }
        _ => {}
    }
    if t.eat(&["follower_read_timestamp"]) {
        t.expect_token(&Token::LParen)?;
        t.expect_token(&Token::RParen)?;
        return Ok(Moment::Ago(FOLLOWER_READ_LAG_US));
    }
    if (t.word_at(0).as_deref() == Some("now") && t.word_at(1).is_none())
        || t.word_at(0).as_deref() == Some("current_timestamp")
    {
        if t.eat(&["now"]) {
            t.expect_token(&Token::LParen)?;
            t.expect_token(&Token::RParen)?;
        } else {
            t.next();
        }
        t.expect_token(&Token::Minus)?;
        let _ = t.eat(&["interval"]);
        let s = string(t).ok_or_else(|| t.unexpected())?;
        let us = length(&s).and_then(|us| u64::try_from(us).ok()).filter(|us| *us > 0);
        return us.map(Moment::Ago).ok_or_else(|| invalid(format!("\"{s}\" is not a length of time")));
    }
    let _ = t.eat(&["interval"]) || t.eat(&["timestamptz"]) || t.eat(&["timestamp"]);
    match string(t) {
        Some(s) => words(&s),
        None if t.peek().is_none() => Err(t.unexpected()),
        None => Err(Error::unsupported("this expression in AS OF SYSTEM TIME")),
    }
}

/// The expression behind AS OF SYSTEM TIME.
pub(super) fn expression(t: &mut Tokens) -> Result<AsOf, Error> {
    let staleness = t.eat(&["with_max_staleness"]);
    if !staleness && !t.eat(&["with_min_timestamp"]) {
        return moment(t).map(AsOf::Exact);
    }
    t.expect_token(&Token::LParen)?;
    let since = if staleness {
        let _ = t.eat(&["interval"]);
        let s = string(t).ok_or_else(|| t.unexpected())?;
        let us = length(&s).and_then(|us| u64::try_from(us).ok());
        Moment::Ago(us.ok_or_else(|| invalid(format!("\"{s}\" is not a length of time")))?)
    } else {
        moment(t)?
    };
    if t.eat_token(&Token::Comma) && !t.eat(&["false"]) {
        return Err(Error::unsupported("nearest_only"));
    }
    t.expect_token(&Token::RParen)?;
    Ok(AsOf::Since(since))
}

/// The clause, if it comes next.
pub(super) fn clause(t: &mut Tokens) -> Result<Option<AsOf>, Error> {
    if t.eat(&CLAUSE) { expression(t).map(Some) } else { Ok(None) }
}

fn may_have_it(text: &str) -> bool {
    let word = b"system";
    text.len() > word.len() && text.as_bytes().windows(word.len()).any(|w| w.eq_ignore_ascii_case(word))
}

/// What a statement's text asks for, and the text without it.
pub(super) fn find(text: &str) -> Result<Option<(AsOf, String)>, Error> {
    if !may_have_it(text) {
        return Ok(None);
    }
    let mut t = Tokens::new(text)?;
    let mut found: Option<(AsOf, String)> = None;
    while t.peek().is_some() {
        let from = t.byte(t.position_now());
        let Some(as_of) = clause(&mut t)? else {
            t.next();
            continue;
        };
        let to = t.end_before(t.position_now());
        let (before, rest) = found.get_or_insert_with(|| (as_of, text.to_string()));
        if *before != as_of {
            return Err(Error::unsupported("more than one time in a statement AS OF SYSTEM TIME"));
        }
        // Blanks, so that positions stay: one for each character but line breaks.
        let blank: String = text[from..to].chars().map(|c| if c == '\n' { c } else { ' ' }).collect();
        let (head, tail) = (rest.chars().take(text[..from].chars().count()).collect::<String>(), &text[to..]);
        *rest = head + &blank + tail;
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(expression: &str) -> Result<AsOf, String> {
        match find(&format!("select 1 from t as OF system TIME {expression} where é = 1")) {
            Ok(found) => Ok(found.expect("there is a clause").0),
            Err(e) => Err(e.sqlstate.code().to_string()),
        }
    }

    #[test]
    fn forms() {
        let ts = Timestamp(Timestamp::from_micros(1_769_860_800_000_000).0 + 17);
        let exact = |m| Ok(AsOf::Exact(m));
        assert_eq!(asked(&ts.to_string()), exact(Moment::At(ts)));
        assert_eq!(asked(&format!("'{ts}'")), exact(Moment::At(ts)));
        assert_eq!(asked(&ts.0.to_string()), exact(Moment::At(ts)));
        let whole = Timestamp::from_micros(1_769_860_800_000_000);
        for same in [
            "'2026-01-31 12:00:00'",
            "'2026-01-31 13:00:00+01'",
            "TIMESTAMPTZ '2026-01-31 12:00:00Z'",
            "('2026-01-31 12:00:00'::timestamptz)",
            "1769860800000000",
            "1769860800000000.0",
        ] {
            assert_eq!(asked(same), exact(Moment::At(whole)), "{same}");
        }
        for same in ["'-10s'", "interval '-10s'", "'-00:00:10'", "now() - interval '10s'", "'-10s'::interval"]
        {
            assert_eq!(asked(same), exact(Moment::Ago(10_000_000)), "{same}");
        }
        assert_eq!(asked("follower_read_timestamp()"), exact(Moment::Ago(FOLLOWER_READ_LAG_US)));
        assert_eq!(asked("with_max_staleness('10s')"), Ok(AsOf::Since(Moment::Ago(10_000_000))));
        assert_eq!(asked("with_min_timestamp(1769860800000000)"), Ok(AsOf::Since(Moment::At(whole))));
    }

    #[test]
    fn nonsense() {
        for (what, code) in [
            ("'10s'", "22023"),
            ("'0s'", "22023"),
            ("'yesterday evening'", "22023"),
            ("'1960-01-01'", "22023"),
            ("99999999999999999999", "22023"),
            ("1.9999", "22023"),
            ("1.00001", "22023"),
            ("$1", "0A000"),
            ("random()", "0A000"),
            ("with_max_staleness('-10s')", "22023"),
            ("with_max_staleness('10s', true)", "0A000"),
            ("with_max_staleness(", "42601"),
        ] {
            assert_eq!(asked(what), Err(code.to_string()), "{what}");
        }
        assert_eq!(asked(""), Err("0A000".into()));
        assert!(Moment::At(Timestamp(10)).resolve(Timestamp(9)).is_err());
        assert!(Moment::Ago(u64::MAX).resolve(Timestamp::from_micros(5)).is_err());
    }

    #[test]
    fn positions_stay() {
        let text = "select 'as of system time é' é\nfrom t as of system time\n'-1s' where x";
        let (as_of, rest) = find(text).unwrap().unwrap();
        assert_eq!(as_of, AsOf::Exact(Moment::Ago(1_000_000)));
        assert_eq!(rest, "select 'as of system time é' é\nfrom t                  \n      where x");
        let twice = "select (select 1 from t as of system time '-1s') from t as of system time '-1s'";
        assert_eq!(find(twice).unwrap().unwrap().1.len(), twice.len());
        assert!(!find(twice).unwrap().unwrap().1.contains("system"));
        let different = "select (select 1 from t as of system time '-1s') from t as of system time '-2s'";
        assert_eq!(find(different).unwrap_err().sqlstate.code(), "0A000");
        assert_eq!(find("select system from t").unwrap(), None);
    }
}
