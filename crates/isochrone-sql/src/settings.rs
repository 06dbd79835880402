//! The settings of a session: names, defaults and meaning as PostgreSQL 15 has them.
//!
//! A setting has one of three lives: SET (until the session ends; undone when its transaction rolls back), SET LOCAL
//! (until the transaction ends), and the start-up packet or set_config. Settings that would change what we do in a
//! way we do not support refuse the value (0A000 or 22023) rather than take and ignore it; those that only tune a
//! planner or a server we are not are taken and shown again.
//!
//! Not here: what the settings do. [`Settings::eval`] gives the typed part that text forms depend on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use isochrone_base::hash::Fnv64;
use isochrone_txn::kv::Isolation;
use isochrone_types::{ByteaOutput, DateOrder, Error, IntervalStyle, SqlState, TimeZone};

/// What `server_version` says. Clients parse the number in front.
pub const SERVER_VERSION: &str = "15.0 (Isochrone 0.1.0)";
/// What `server_version_num` says.
pub const SERVER_VERSION_NUM: &str = "150000";
/// Settings with a dot in their name that a session may make up.
const CUSTOM_MAX: usize = 256;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Bool,
    Int {
        min: i64,
        max: i64,
    },
    /// Milliseconds.
    Duration,
    Float,
    Text,
    Enum(&'static [&'static str]),
    /// Shown, never set.
    Fixed,
    DateStyle,
    TimeZone,
    Encoding,
    Isolation,
    Freshness,
    /// A list of schemas.
    Path,
}

struct Setting {
    name: &'static str,
    default: &'static str,
    kind: Kind,
    /// Sent to the client as ParameterStatus.
    report: bool,
}

const fn s(name: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting { name, default, kind, report: false }
}

const fn r(name: &'static str, default: &'static str, kind: Kind) -> Setting {
    Setting { name, default, kind, report: true }
}

const I32: Kind = Kind::Int { min: 0, max: i32::MAX as i64 };
const MESSAGES: &[&str] =
    &["debug5", "debug4", "debug3", "debug2", "debug1", "log", "notice", "warning", "error"];

/// Sorted by lower-case name.
const SETTINGS: &[Setting] = &[
    r("application_name", "", Kind::Text),
    s("array_nulls", "on", Kind::Bool),
    s("backslash_quote", "safe_encoding", Kind::Enum(&["safe_encoding", "on", "off"])),
    s("block_size", "8192", Kind::Fixed),
    s("bytea_output", "hex", Kind::Enum(&["hex", "escape"])),
    s("check_function_bodies", "on", Kind::Bool),
    r("client_encoding", "UTF8", Kind::Encoding),
    s("client_min_messages", "notice", Kind::Enum(MESSAGES)),
    s("constraint_exclusion", "partition", Kind::Enum(&["on", "off", "partition"])),
    s("cursor_tuple_fraction", "0.1", Kind::Float),
    r("DateStyle", "ISO, MDY", Kind::DateStyle),
    s("deadlock_timeout", "1s", Kind::Duration),
    s("default_statistics_target", "100", I32),
    s("default_table_access_method", "heap", Kind::Text),
    s("default_tablespace", "", Kind::Text),
    s("default_text_search_config", "pg_catalog.simple", Kind::Text),
    s("default_toast_compression", "pglz", Kind::Text),
    s("default_transaction_deferrable", "off", Kind::Bool),
    s("default_transaction_isolation", "serializable", Kind::Isolation),
    r("default_transaction_read_only", "off", Kind::Bool),
    s("effective_cache_size", "524288", I32),
    s("effective_io_concurrency", "1", I32),
    s("enable_bitmapscan", "on", Kind::Bool),
    s("enable_hashagg", "on", Kind::Bool),
    s("enable_hashjoin", "on", Kind::Bool),
    s("enable_indexonlyscan", "on", Kind::Bool),
    s("enable_indexscan", "on", Kind::Bool),
    s("enable_material", "on", Kind::Bool),
    s("enable_mergejoin", "on", Kind::Bool),
    s("enable_nestloop", "on", Kind::Bool),
    s("enable_seqscan", "on", Kind::Bool),
    s("enable_sort", "on", Kind::Bool),
    s("escape_string_warning", "on", Kind::Bool),
    s("extra_float_digits", "1", Kind::Int { min: -15, max: 3 }),
    s("from_collapse_limit", "8", I32),
    s("geqo", "on", Kind::Bool),
    s("gin_pending_list_limit", "4096", I32),
    s("idle_in_transaction_session_timeout", "0", Kind::Duration),
    s("idle_session_timeout", "0", Kind::Duration),
    r("in_hot_standby", "off", Kind::Fixed),
    r("integer_datetimes", "on", Kind::Fixed),
    r("IntervalStyle", "postgres", Kind::Enum(&["postgres", "iso_8601"])),
    r("is_superuser", "on", Kind::Fixed),
    s("jit", "off", Kind::Bool),
    s("join_collapse_limit", "8", I32),
    s("lc_collate", "C", Kind::Fixed),
    s("lc_ctype", "C", Kind::Fixed),
    s("lc_messages", "C", Kind::Text),
    s("lc_monetary", "C", Kind::Text),
    s("lc_numeric", "C", Kind::Text),
    s("lc_time", "C", Kind::Text),
    s("lo_compat_privileges", "off", Kind::Bool),
    s("lock_timeout", "0", Kind::Duration),
    s("log_min_duration_statement", "-1", Kind::Int { min: -1, max: i32::MAX as i64 }),
    s("log_statement", "none", Kind::Enum(&["none", "ddl", "mod", "all"])),
    s("maintenance_work_mem", "65536", I32),
    s("max_connections", "100", Kind::Fixed),
    s("max_identifier_length", "63", Kind::Fixed),
    s("max_index_keys", "32", Kind::Fixed),
    s("max_parallel_workers_per_gather", "0", I32),
    s("parallel_setup_cost", "1000", Kind::Float),
    s("parallel_tuple_cost", "0.1", Kind::Float),
    s("password_encryption", "scram-sha-256", Kind::Enum(&["scram-sha-256", "md5"])),
    s("plan_cache_mode", "auto", Kind::Enum(&["auto", "force_generic_plan", "force_custom_plan"])),
    s("quote_all_identifiers", "off", Kind::Bool),
    s("random_page_cost", "4", Kind::Float),
    s("read_freshness", "strong", Kind::Freshness),
    s("row_security", "on", Kind::Bool),
    s("search_path", "\"$user\", public", Kind::Path),
    s("seq_page_cost", "1", Kind::Float),
    r("server_encoding", "UTF8", Kind::Fixed),
    r("server_version", SERVER_VERSION, Kind::Fixed),
    s("server_version_num", SERVER_VERSION_NUM, Kind::Fixed),
    r("session_authorization", "root", Kind::Fixed),
    s("session_replication_role", "origin", Kind::Enum(&["origin", "replica", "local"])),
    s("shared_buffers", "16384", Kind::Fixed),
    s("ssl", "off", Kind::Fixed),
    r("standard_conforming_strings", "on", Kind::Enum(&["on"])),
    s("statement_timeout", "0", Kind::Duration),
    s("synchronize_seqscans", "on", Kind::Bool),
    s("synchronous_commit", "on", Kind::Enum(&["on", "remote_apply", "remote_write", "local", "off"])),
    s("temp_buffers", "1024", I32),
    s("temp_tablespaces", "", Kind::Text),
    r("TimeZone", "UTC", Kind::TimeZone),
    s("transaction_consistency", "causal", Kind::Enum(&["causal", "external"])),
    s("transaction_deferrable", "off", Kind::Bool),
    s("transaction_isolation", "serializable", Kind::Isolation),
    s("transaction_read_only", "off", Kind::Bool),
    s("transform_null_equals", "off", Kind::Enum(&["off"])),
    s("vacuum_cost_delay", "0", I32),
    s("wal_level", "logical", Kind::Fixed),
    s("work_mem", "4096", I32),
    s("xmlbinary", "base64", Kind::Enum(&["base64", "hex"])),
    s("xmloption", "content", Kind::Enum(&["content", "document"])),
];

fn find(name: &str) -> Option<&'static Setting> {
    let name = match name.to_ascii_lowercase().as_str() {
        "time zone" => "timezone".to_string(),
        "names" => "client_encoding".to_string(),
        other => other.to_string(),
    };
    SETTINGS.iter().find(|s| s.name.eq_ignore_ascii_case(&name))
}

fn unknown(name: &str) -> Error {
    Error::new(SqlState::UNDEFINED_OBJECT, format!("unrecognized configuration parameter \"{name}\""))
}

fn invalid(name: &str, value: &str) -> Error {
    Error::invalid_parameter(format!("invalid value for parameter \"{name}\": \"{value}\""))
}

/// `on`, `true`, `yes`, `1` and their prefixes, as PostgreSQL reads booleans in settings.
pub fn parse_bool(value: &str) -> Option<bool> {
    let v = value.to_ascii_lowercase();
    let is = |word: &str, min: usize| v.len() >= min && word.starts_with(&v);
    match v.as_str() {
        "1" => Some(true),
        "0" => Some(false),
        "on" => Some(true),
        _ if is("true", 1) || is("yes", 1) => Some(true),
        _ if is("false", 1) || is("no", 1) || is("off", 2) => Some(false),
        _ => None,
    }
}

/// Milliseconds of `100`, `5s`, `1min`, `2 h`.
fn parse_ms(value: &str) -> Option<i64> {
    let v = value.trim();
    let split = v.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(v.len());
    let (number, unit) = (v[..split].parse::<f64>().ok()?, v[split..].trim());
    let factor = match unit {
        "us" => 0.001,
        "" | "ms" => 1.0,
        "s" => 1e3,
        "min" => 6e4,
        "h" => 3.6e6,
        "d" => 8.64e7,
        _ => return None,
    };
    let ms = (number * factor).round();
    (0.0..=i32::MAX as f64).contains(&ms).then_some(ms as i64)
}

fn show_ms(ms: i64) -> String {
    for (unit, size) in [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000)] {
        if ms != 0 && ms % size == 0 {
            return format!("{}{unit}", ms / size);
        }
    }
    if ms == 0 { "0".to_string() } else { format!("{ms}ms") }
}

/// How old the state may be that a read-only statement or transaction sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Freshness {
    /// Everything that was acknowledged before it began.
    Strong,
    /// What this node has, if that is not older.
    Bounded(Duration),
    /// What this node has.
    Any,
}

/// `strong`, `any`, `bounded(5s)`, `bounded('5s')`.
fn parse_freshness(value: &str) -> Option<Freshness> {
    let v = value.trim().to_ascii_lowercase();
    match v.as_str() {
        "strong" => Some(Freshness::Strong),
        "any" => Some(Freshness::Any),
        _ => {
            let by = v.strip_prefix("bounded")?.trim().strip_prefix('(')?.strip_suffix(')')?;
            let ms = parse_ms(by.trim().trim_matches(['\'', '"']))?;
            Some(Freshness::Bounded(Duration::from_millis(u64::try_from(ms).ok()?)))
        }
    }
}

/// The level that a name means; `None` for others.
pub fn parse_isolation(value: &str) -> Option<Isolation> {
    match value.to_ascii_lowercase().as_str() {
        "serializable" => Some(Isolation::Serializable),
        "repeatable read" => Some(Isolation::RepeatableRead),
        "read committed" | "read uncommitted" => Some(Isolation::ReadCommitted),
        _ => None,
    }
}

/// The name of a level.
pub fn isolation_name(level: Isolation) -> &'static str {
    match level {
        Isolation::Serializable => "serializable",
        Isolation::RepeatableRead => "repeatable read",
        Isolation::ReadCommitted => "read committed",
    }
}

/// The value as it will be shown, or why it cannot be taken.
fn normalise(setting: &Setting, old: &str, value: &str) -> Result<String, Error> {
    let name = setting.name;
    let bad = || invalid(name, value);
    Ok(match setting.kind {
        Kind::Fixed => {
            return Err(Error::new(
                SqlState::CANT_CHANGE_RUNTIME_PARAM,
                format!("parameter \"{name}\" cannot be changed"),
            ));
        }
        Kind::Bool => if parse_bool(value).ok_or_else(|| {
            Error::invalid_parameter(format!("parameter \"{name}\" requires a Boolean value"))
        })? {
            "on"
        } else {
            "off"
        }
        .to_string(),
        Kind::Int { min, max } => {
            let digits = value.trim();
            let (number, factor) = ["kB", "MB", "GB"]
                .iter()
                .zip([1, 1 << 10, 1 << 20])
                .find_map(|(unit, f)| digits.strip_suffix(unit).map(|d| (d.trim(), f)))
                .unwrap_or((digits, 1));
            let v = number.parse::<f64>().ok().map(|v| v.round() * f64::from(factor)).ok_or_else(bad)?;
            if !(min as f64..=max as f64).contains(&v) {
                return Err(Error::invalid_parameter(format!(
                    "{v} is outside the valid range for parameter \"{name}\" ({min} .. {max})"
                )));
            }
            format!("{}", v as i64)
        }
        Kind::Duration => show_ms(parse_ms(value).ok_or_else(bad)?),
        Kind::Float => {
            value.trim().parse::<f64>().map_err(|_| bad())?;
            value.trim().to_string()
        }
        Kind::Text | Kind::Path => value.to_string(),
        Kind::Enum(words) => {
            let lower = value.to_ascii_lowercase();
            let word = match (words.contains(&"on"), parse_bool(value)) {
                (true, Some(true)) => "on",
                (true, Some(false)) => "off",
                _ => lower.as_str(),
            };
            if !words.contains(&word) {
                if name == "IntervalStyle" && ["sql_standard", "postgres_verbose"].contains(&word) {
                    return Err(Error::unsupported(format!("IntervalStyle {word}")));
                }
                let mut e = bad();
                e.hint = Some(format!("Available values: {}.", words.join(", ")));
                return Err(e);
            }
            word.to_string()
        }
        Kind::Encoding => {
            let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
            match plain.to_ascii_uppercase().as_str() {
                "UTF8" | "UNICODE" => "UTF8".to_string(),
                _ => return Err(bad()),
            }
        }
        Kind::Freshness => match parse_freshness(value).ok_or_else(bad)? {
            Freshness::Strong => "strong".to_string(),
            Freshness::Bounded(by) => format!("bounded({})", show_ms(by.as_millis() as i64)),
            Freshness::Any => "any".to_string(),
        },
        Kind::Isolation => isolation_name(parse_isolation(value).ok_or_else(bad)?).to_string(),
        Kind::DateStyle => {
            let mut order = old.rsplit(", ").next().unwrap_or("MDY").to_string();
            for word in value.split(',').map(str::trim).filter(|w| !w.is_empty()) {
                match word.to_ascii_uppercase().as_str() {
                    "ISO" => {}
                    "DEFAULT" => order = "MDY".to_string(),
                    "MDY" | "US" | "NONEURO" | "NONEUROPEAN" => order = "MDY".to_string(),
                    "DMY" | "EURO" | "EUROPEAN" => order = "DMY".to_string(),
                    "YMD" => order = "YMD".to_string(),
                    other @ ("SQL" | "POSTGRES" | "GERMAN") => {
                        return Err(Error::unsupported(format!("DateStyle {other}")));
                    }
                    _ => return Err(bad()),
                }
            }
            format!("ISO, {order}")
        }
        Kind::TimeZone => match value.to_ascii_lowercase().as_str() {
            "local" | "default" => "UTC".to_string(),
            _ => TimeZone::parse(value)?.name().to_string(),
        },
    })
}

/// Splits `"$user", public` into names.
pub fn split_path(path: &str) -> Vec<String> {
    path.split(',')
        .map(str::trim)
        .filter(|p| !p.is_empty())
        .map(|p| match p.strip_prefix('"').and_then(|p| p.strip_suffix('"')) {
            Some(quoted) => quoted.replace("\"\"", "\""),
            None => p.to_ascii_lowercase(),
        })
        .collect()
}

/// Values that differ from the defaults, by the name in the table.
type Values = BTreeMap<String, String>;

/// A mark to come back to ([`Settings::restore`]).
#[derive(Clone, Debug)]
pub struct Mark {
    session: Arc<Values>,
    current: Arc<Values>,
}

/// The settings of one session.
#[derive(Clone, Debug)]
pub struct Settings {
    /// At the start of the transaction.
    committed: Arc<Values>,
    /// With SET.
    session: Arc<Values>,
    /// With SET and SET LOCAL: what holds now.
    current: Arc<Values>,
    /// What the session started with: where RESET goes back to.
    initial: Values,
    /// What the client was told last.
    reported: Values,
    eval: isochrone_types::Settings,
    path: Arc<[String]>,
    fingerprint: u64,
    /// Raised by every change.
    generation: u64,
}

impl Default for Settings {
    fn default() -> Settings {
        let mut settings = Settings {
            committed: Arc::default(),
            session: Arc::default(),
            current: Arc::default(),
            initial: Values::new(),
            reported: Values::new(),
            eval: isochrone_types::Settings::default(),
            path: Arc::from([]),
            fingerprint: 0,
            generation: 0,
        };
        settings.derive();
        settings
    }
}

impl Settings {
    /// The value of a setting; 42704 when there is none.
    pub fn get(&self, name: &str) -> Result<String, Error> {
        self.get_opt(name).ok_or_else(|| unknown(name))
    }

    /// The value of a setting, if there is one of that name.
    pub fn get_opt(&self, name: &str) -> Option<String> {
        match find(name) {
            Some(s) => Some(self.current.get(s.name).map_or(s.default, String::as_str).to_string()),
            None => self.current.get(&name.to_ascii_lowercase()).cloned(),
        }
    }

    /// The name as the table spells it.
    pub fn canonical_name(name: &str) -> Option<&'static str> {
        find(name).map(|s| s.name)
    }

    /// All settings: name, value.
    pub fn all(&self) -> Vec<(String, String)> {
        let known = SETTINGS.iter().map(|s| {
            (s.name.to_string(), self.current.get(s.name).map_or(s.default, String::as_str).to_string())
        });
        known.collect()
    }

    /// The default of a setting.
    pub fn default_of(name: &str) -> Option<&'static str> {
        find(name).map(|s| s.default)
    }

    /// SET and SET LOCAL; `None` is TO DEFAULT.
    pub fn set(&mut self, name: &str, value: Option<&str>, local: bool) -> Result<(), Error> {
        let (key, value) = match find(name) {
            Some(s) => {
                let value = match value {
                    Some(v) => Some(normalise(s, &self.get(name)?, v)?),
                    None if s.kind == Kind::Fixed => Some(normalise(s, "", "")?),
                    None => self.initial.get(s.name).cloned(),
                };
                (s.name.to_string(), value.filter(|v| v != s.default))
            }
            None => {
                let key = name.to_ascii_lowercase();
                if !name.contains('.') {
                    return Err(unknown(name));
                }
                if self.current.len() >= CUSTOM_MAX && !self.current.contains_key(&key) {
                    return Err(Error::new(SqlState::PROGRAM_LIMIT_EXCEEDED, "too many settings"));
                }
                (key, value.map(str::to_string))
            }
        };
        let apply = |values: &mut Arc<Values>| {
            let values = Arc::make_mut(values);
            match &value {
                Some(v) => values.insert(key.clone(), v.clone()),
                None => values.remove(&key),
            };
        };
        if !local {
            apply(&mut self.session);
        }
        apply(&mut self.current);
        self.derive();
        Ok(())
    }

    /// A setting of the start-up packet: RESET goes back to it.
    pub fn set_initial(&mut self, name: &str, value: &str) -> Result<(), Error> {
        self.set(name, Some(value), false)?;
        if let Some(s) = find(name) {
            match self.session.get(s.name) {
                Some(v) => self.initial.insert(s.name.to_string(), v.clone()),
                None => self.initial.remove(s.name),
            };
        }
        self.committed = self.session.clone();
        Ok(())
    }

    /// Sets what SET cannot (`session_authorization`).
    pub fn set_fixed(&mut self, name: &'static str, value: &str) {
        for values in [&mut self.committed, &mut self.session, &mut self.current] {
            Arc::make_mut(values).insert(name.to_string(), value.to_string());
        }
        self.initial.insert(name.to_string(), value.to_string());
        self.derive();
    }

    /// RESET ALL.
    pub fn reset_all(&mut self) {
        self.session = Arc::new(self.initial.clone());
        self.current = self.session.clone();
        self.derive();
    }

    /// The transaction committed: SET stays, SET LOCAL goes.
    pub fn commit(&mut self) {
        if !Arc::ptr_eq(&self.current, &self.session) {
            self.current = self.session.clone();
            self.derive();
        }
        self.committed = self.session.clone();
    }

    /// The transaction rolled back: both go.
    pub fn rollback(&mut self) {
        if !Arc::ptr_eq(&self.current, &self.committed) {
            self.session = self.committed.clone();
            self.current = self.committed.clone();
            self.derive();
        }
    }

    /// A mark for a savepoint.
    pub fn mark(&self) -> Mark {
        Mark { session: self.session.clone(), current: self.current.clone() }
    }

    /// ROLLBACK TO a savepoint.
    pub fn restore(&mut self, mark: &Mark) {
        self.session = mark.session.clone();
        self.current = mark.current.clone();
        self.derive();
    }

    /// Everything the client is told at the start: name, value.
    pub fn report_all(&mut self) -> Vec<(String, String)> {
        self.reported.clear();
        self.report_changes()
    }

    /// What changed since the client was told last.
    pub fn report_changes(&mut self) -> Vec<(String, String)> {
        let mut out = Vec::new();
        for s in SETTINGS.iter().filter(|s| s.report) {
            let value = self.current.get(s.name).map_or(s.default, String::as_str);
            if self.reported.get(s.name).map(String::as_str) != Some(value) {
                self.reported.insert(s.name.to_string(), value.to_string());
                out.push((s.name.to_string(), value.to_string()));
            }
        }
        out
    }

    /// Everything that depends on the values and is asked for often.
    fn derive(&mut self) {
        let get = |name: &str| self.get(name).expect("the name is in the table");
        let eval = isochrone_types::Settings {
            // Parsed before it was stored.
            time_zone: TimeZone::parse(&get("TimeZone")).unwrap_or_else(|_| TimeZone::utc()),
            date_order: match get("DateStyle").rsplit(", ").next() {
                Some("DMY") => DateOrder::Dmy,
                Some("YMD") => DateOrder::Ymd,
                _ => DateOrder::Mdy,
            },
            extra_float_digits: get("extra_float_digits").parse().unwrap_or(1),
            bytea_output: if get("bytea_output") == "escape" {
                ByteaOutput::Escape
            } else {
                ByteaOutput::Hex
            },
            interval_style: if get("IntervalStyle") == "iso_8601" {
                IntervalStyle::Iso8601
            } else {
                IntervalStyle::Postgres
            },
            transaction_time: self.eval.transaction_time,
        };
        let mut hash = Fnv64::default();
        for name in
            ["TimeZone", "DateStyle", "IntervalStyle", "extra_float_digits", "bytea_output", "search_path"]
        {
            hash.update(get(name).as_bytes());
            hash.update(&[0]);
        }
        self.path = split_path(&get("search_path")).into();
        self.eval = eval;
        self.fingerprint = hash.finish();
        self.generation += 1;
    }

    /// Raised by every change.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The typed settings that text forms depend on.
    pub fn eval(&self) -> &isochrone_types::Settings {
        &self.eval
    }

    /// Sets the start of the transaction, in microseconds since 2000.
    pub fn set_transaction_time(&mut self, micros: i64) {
        self.eval.transaction_time = micros;
    }

    /// The schemas unqualified names are looked up in.
    pub fn path(&self) -> &Arc<[String]> {
        &self.path
    }

    /// Equal for settings under which a plan means the same.
    pub fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    fn duration(&self, name: &str) -> Option<Duration> {
        match self.current.get(name).and_then(|v| parse_ms(v)) {
            None | Some(0) => None,
            Some(ms) => Some(Duration::from_millis(ms as u64)),
        }
    }

    /// `statement_timeout`, if set.
    pub fn statement_timeout(&self) -> Option<Duration> {
        self.duration("statement_timeout")
    }

    /// `idle_in_transaction_session_timeout`, if set.
    pub fn idle_in_transaction_timeout(&self) -> Option<Duration> {
        self.duration("idle_in_transaction_session_timeout")
    }

    /// `idle_session_timeout`, if set.
    pub fn idle_session_timeout(&self) -> Option<Duration> {
        self.duration("idle_session_timeout")
    }

    /// `lock_timeout`, if set.
    pub fn lock_timeout(&self) -> Option<Duration> {
        self.duration("lock_timeout")
    }

    /// The level of transactions that do not say.
    pub fn default_isolation(&self) -> Isolation {
        self.current
            .get("default_transaction_isolation")
            .and_then(|v| parse_isolation(v))
            .unwrap_or(Isolation::Serializable)
    }

    /// Are read-only serializable transactions that do not say deferrable?
    pub fn default_deferrable(&self) -> bool {
        self.current.get("default_transaction_deferrable").is_some_and(|v| v == "on")
    }

    /// R24: is the session to be externally consistent?
    pub fn externally_consistent(&self) -> bool {
        self.current.get("transaction_consistency").is_some_and(|v| v == "external")
    }

    /// `read_freshness`.
    pub fn read_freshness(&self) -> Freshness {
        self.current.get("read_freshness").and_then(|v| parse_freshness(v)).unwrap_or(Freshness::Strong)
    }

    /// Are transactions that do not say read-only?
    pub fn default_read_only(&self) -> bool {
        self.current.get("default_transaction_read_only").is_some_and(|v| v == "on")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_and_forms() {
        let mut s = Settings::default();
        assert_eq!(s.get("datestyle").unwrap(), "ISO, MDY");
        s.set("DateStyle", Some("dmy"), false).unwrap();
        s.set("statement_timeout", Some("1500"), false).unwrap();
        s.set("work_mem", Some("64MB"), true).unwrap();
        assert_eq!(s.get("DateStyle").unwrap(), "ISO, DMY");
        assert_eq!(s.get("statement_timeout").unwrap(), "1500ms");
        assert_eq!(s.get("work_mem").unwrap(), "65536");
        s.commit();
        assert_eq!(s.get("work_mem").unwrap(), "4096");
        assert_eq!(s.statement_timeout(), Some(Duration::from_millis(1500)));
        s.set("statement_timeout", Some("2min"), false).unwrap();
        s.rollback();
        assert_eq!(s.get("statement_timeout").unwrap(), "1500ms");
        s.set("statement_timeout", None, false).unwrap();
        assert_eq!(s.statement_timeout(), None);
        for (name, value, code) in [
            ("nonsense", "1", "42704"),
            ("server_version", "1", "55P02"),
            ("client_encoding", "latin1", "22023"),
            ("DateStyle", "german", "0A000"),
            ("jit", "maybe", "22023"),
            ("extra_float_digits", "99", "22023"),
            ("standard_conforming_strings", "off", "22023"),
        ] {
            assert_eq!(s.set(name, Some(value), false).unwrap_err().sqlstate.code(), code, "{name}");
        }
        s.set("my.own", Some("x"), false).unwrap();
        assert_eq!(s.get("my.own").unwrap(), "x");
        assert!(SETTINGS.windows(2).all(|w| w[0].name.to_lowercase() < w[1].name.to_lowercase()));
        assert_eq!(split_path("\"$user\", Public"), ["$user", "public"]);
    }

    #[test]
    fn the_client_hears_of_changes_once() {
        let mut s = Settings::default();
        assert!(s.report_all().iter().any(|(n, v)| n == "server_encoding" && v == "UTF8"));
        assert!(s.report_changes().is_empty());
        s.set("application_name", Some("psql"), false).unwrap();
        assert_eq!(s.report_changes(), [("application_name".to_string(), "psql".to_string())]);
    }
}
