//! The one SQL error: an SQLSTATE, a message in PostgreSQL's words, and the optional fields that the wire protocol
//! can carry. It travels unchanged from where it is found to the client.
//!
//! The table of SQLSTATE codes is here and nowhere else. Nobody branches on the message.

use std::fmt;

/// A result whose error is an SQL [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A five-character SQLSTATE code.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SqlState(pub &'static str);

impl SqlState {
    /// The five characters.
    pub fn code(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

macro_rules! sqlstates {
    ($($name:ident $code:literal $condition:literal,)*) => {
        impl SqlState {
            $(
                #[doc = concat!("`", $code, "` ", $condition)]
                pub const $name: SqlState = SqlState($code);
            )*

            /// PostgreSQL's name of the condition, such as `unique_violation`; `None` for a code not in the table.
            pub fn condition(self) -> Option<&'static str> {
                match self.0 {
                    $($code => Some($condition),)*
                    _ => None,
                }
            }

            /// The code of the table that is written so; `None` when there is none.
            pub fn from_code(code: &str) -> Option<SqlState> {
                match code {
                    $($code => Some(SqlState($code)),)*
                    _ => None,
                }
            }
        }
    };
}

sqlstates! {
    SUCCESSFUL_COMPLETION "00000" "successful_completion",
    WARNING "01000" "warning",
    FEATURE_NOT_SUPPORTED "0A000" "feature_not_supported",
    CONNECTION_EXCEPTION "08000" "connection_exception",
    CONNECTION_FAILURE "08006" "connection_failure",
    PROTOCOL_VIOLATION "08P01" "protocol_violation",
    CARDINALITY_VIOLATION "21000" "cardinality_violation",
    STRING_DATA_RIGHT_TRUNCATION "22001" "string_data_right_truncation",
    NUMERIC_VALUE_OUT_OF_RANGE "22003" "numeric_value_out_of_range",
    NULL_VALUE_NOT_ALLOWED "22004" "null_value_not_allowed",
    INVALID_DATETIME_FORMAT "22007" "invalid_datetime_format",
    DATETIME_FIELD_OVERFLOW "22008" "datetime_field_overflow",
    INVALID_TIME_ZONE_DISPLACEMENT_VALUE "22009" "invalid_time_zone_displacement_value",
    SUBSTRING_ERROR "22011" "substring_error",
    DIVISION_BY_ZERO "22012" "division_by_zero",
    INTERVAL_FIELD_OVERFLOW "22015" "interval_field_overflow",
    INVALID_ESCAPE_CHARACTER "22019" "invalid_escape_character",
    CHARACTER_NOT_IN_REPERTOIRE "22021" "character_not_in_repertoire",
    INVALID_PARAMETER_VALUE "22023" "invalid_parameter_value",
    INVALID_ESCAPE_SEQUENCE "22025" "invalid_escape_sequence",
    INVALID_REGULAR_EXPRESSION "2201B" "invalid_regular_expression",
    INVALID_ARGUMENT_FOR_LOGARITHM "2201E" "invalid_argument_for_logarithm",
    INVALID_ARGUMENT_FOR_POWER_FUNCTION "2201F" "invalid_argument_for_power_function",
    INVALID_ARGUMENT_FOR_WIDTH_BUCKET "2201G" "invalid_argument_for_width_bucket_function",
    INVALID_ROW_COUNT_IN_LIMIT_CLAUSE "2201W" "invalid_row_count_in_limit_clause",
    INVALID_ROW_COUNT_IN_RESULT_OFFSET_CLAUSE "2201X" "invalid_row_count_in_result_offset_clause",
    SEQUENCE_GENERATOR_LIMIT_EXCEEDED "2200H" "sequence_generator_limit_exceeded",
    ARRAY_SUBSCRIPT_ERROR "2202E" "array_subscript_error",
    FLOATING_POINT_EXCEPTION "22P01" "floating_point_exception",
    INVALID_TEXT_REPRESENTATION "22P02" "invalid_text_representation",
    INVALID_BINARY_REPRESENTATION "22P03" "invalid_binary_representation",
    BAD_COPY_FILE_FORMAT "22P04" "bad_copy_file_format",
    UNTRANSLATABLE_CHARACTER "22P05" "untranslatable_character",
    INTEGRITY_CONSTRAINT_VIOLATION "23000" "integrity_constraint_violation",
    NOT_NULL_VIOLATION "23502" "not_null_violation",
    FOREIGN_KEY_VIOLATION "23503" "foreign_key_violation",
    UNIQUE_VIOLATION "23505" "unique_violation",
    CHECK_VIOLATION "23514" "check_violation",
    INVALID_CURSOR_STATE "24000" "invalid_cursor_state",
    INVALID_TRANSACTION_STATE "25000" "invalid_transaction_state",
    ACTIVE_SQL_TRANSACTION "25001" "active_sql_transaction",
    READ_ONLY_SQL_TRANSACTION "25006" "read_only_sql_transaction",
    NO_ACTIVE_SQL_TRANSACTION "25P01" "no_active_sql_transaction",
    IN_FAILED_SQL_TRANSACTION "25P02" "in_failed_sql_transaction",
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT "25P03" "idle_in_transaction_session_timeout",
    INVALID_SQL_STATEMENT_NAME "26000" "invalid_sql_statement_name",
    INVALID_AUTHORIZATION_SPECIFICATION "28000" "invalid_authorization_specification",
    INVALID_PASSWORD "28P01" "invalid_password",
    DEPENDENT_OBJECTS_STILL_EXIST "2BP01" "dependent_objects_still_exist",
    INVALID_TRANSACTION_TERMINATION "2D000" "invalid_transaction_termination",
    INVALID_CURSOR_NAME "34000" "invalid_cursor_name",
    SAVEPOINT_EXCEPTION "3B000" "savepoint_exception",
    INVALID_SAVEPOINT_SPECIFICATION "3B001" "invalid_savepoint_specification",
    INVALID_CATALOG_NAME "3D000" "invalid_catalog_name",
    INVALID_SCHEMA_NAME "3F000" "invalid_schema_name",
    TRANSACTION_ROLLBACK "40000" "transaction_rollback",
    SERIALIZATION_FAILURE "40001" "serialization_failure",
    STATEMENT_COMPLETION_UNKNOWN "40003" "statement_completion_unknown",
    DEADLOCK_DETECTED "40P01" "deadlock_detected",
    SYNTAX_ERROR_OR_ACCESS_RULE_VIOLATION "42000" "syntax_error_or_access_rule_violation",
    INSUFFICIENT_PRIVILEGE "42501" "insufficient_privilege",
    SYNTAX_ERROR "42601" "syntax_error",
    INVALID_NAME "42602" "invalid_name",
    INVALID_COLUMN_DEFINITION "42611" "invalid_column_definition",
    NAME_TOO_LONG "42622" "name_too_long",
    DUPLICATE_COLUMN "42701" "duplicate_column",
    AMBIGUOUS_COLUMN "42702" "ambiguous_column",
    UNDEFINED_COLUMN "42703" "undefined_column",
    UNDEFINED_OBJECT "42704" "undefined_object",
    DUPLICATE_OBJECT "42710" "duplicate_object",
    DUPLICATE_ALIAS "42712" "duplicate_alias",
    DUPLICATE_FUNCTION "42723" "duplicate_function",
    AMBIGUOUS_FUNCTION "42725" "ambiguous_function",
    GROUPING_ERROR "42803" "grouping_error",
    DATATYPE_MISMATCH "42804" "datatype_mismatch",
    WRONG_OBJECT_TYPE "42809" "wrong_object_type",
    INVALID_FOREIGN_KEY "42830" "invalid_foreign_key",
    CANNOT_COERCE "42846" "cannot_coerce",
    UNDEFINED_FUNCTION "42883" "undefined_function",
    RESERVED_NAME "42939" "reserved_name",
    GENERATED_ALWAYS "428C9" "generated_always",
    UNDEFINED_TABLE "42P01" "undefined_table",
    UNDEFINED_PARAMETER "42P02" "undefined_parameter",
    DUPLICATE_CURSOR "42P03" "duplicate_cursor",
    DUPLICATE_DATABASE "42P04" "duplicate_database",
    DUPLICATE_PREPARED_STATEMENT "42P05" "duplicate_prepared_statement",
    DUPLICATE_SCHEMA "42P06" "duplicate_schema",
    DUPLICATE_TABLE "42P07" "duplicate_table",
    AMBIGUOUS_PARAMETER "42P08" "ambiguous_parameter",
    AMBIGUOUS_ALIAS "42P09" "ambiguous_alias",
    INVALID_COLUMN_REFERENCE "42P10" "invalid_column_reference",
    INVALID_TABLE_DEFINITION "42P16" "invalid_table_definition",
    INDETERMINATE_DATATYPE "42P18" "indeterminate_datatype",
    INVALID_OBJECT_DEFINITION "42P17" "invalid_object_definition",
    INSUFFICIENT_RESOURCES "53000" "insufficient_resources",
    DISK_FULL "53100" "disk_full",
    OUT_OF_MEMORY "53200" "out_of_memory",
    TOO_MANY_CONNECTIONS "53300" "too_many_connections",
    CONFIGURATION_LIMIT_EXCEEDED "53400" "configuration_limit_exceeded",
    PROGRAM_LIMIT_EXCEEDED "54000" "program_limit_exceeded",
    STATEMENT_TOO_COMPLEX "54001" "statement_too_complex",
    TOO_MANY_COLUMNS "54011" "too_many_columns",
    TOO_MANY_ARGUMENTS "54023" "too_many_arguments",
    OBJECT_NOT_IN_PREREQUISITE_STATE "55000" "object_not_in_prerequisite_state",
    OBJECT_IN_USE "55006" "object_in_use",
    CANT_CHANGE_RUNTIME_PARAM "55P02" "cant_change_runtime_param",
    LOCK_NOT_AVAILABLE "55P03" "lock_not_available",
    OPERATOR_INTERVENTION "57000" "operator_intervention",
    QUERY_CANCELED "57014" "query_canceled",
    ADMIN_SHUTDOWN "57P01" "admin_shutdown",
    CRASH_SHUTDOWN "57P02" "crash_shutdown",
    CANNOT_CONNECT_NOW "57P03" "cannot_connect_now",
    IDLE_SESSION_TIMEOUT "57P05" "idle_session_timeout",
    IO_ERROR "58030" "io_error",
    UNDEFINED_FILE "58P01" "undefined_file",
    INTERNAL_ERROR "XX000" "internal_error",
    DATA_CORRUPTED "XX001" "data_corrupted",
    INDEX_CORRUPTED "XX002" "index_corrupted",
}

/// What an error tells the client. Reached through [`Error`], which dereferences to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorFields {
    /// The code.
    pub sqlstate: SqlState,
    /// One line, PostgreSQL's wording where PostgreSQL has the same error.
    pub message: String,
    /// More about it.
    pub detail: Option<String>,
    /// What to do about it.
    pub hint: Option<String>,
    /// Where in the statement text, in characters from 1.
    pub position: Option<u32>,
    /// The schema concerned.
    pub schema: Option<String>,
    /// The table concerned.
    pub table: Option<String>,
    /// The column concerned.
    pub column: Option<String>,
    /// The constraint that was violated.
    pub constraint: Option<String>,
}

/// An SQL error: one word wide, so that results stay small.
#[derive(Clone, PartialEq, Eq)]
pub struct Error(Box<ErrorFields>);

impl std::ops::Deref for Error {
    type Target = ErrorFields;
    fn deref(&self) -> &ErrorFields {
        &self.0
    }
}

impl std::ops::DerefMut for Error {
    fn deref_mut(&mut self) -> &mut ErrorFields {
        &mut self.0
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.message, self.sqlstate)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::error::Error for Error {}

impl Error {
    /// An error with a code and a message.
    #[cold]
    pub fn new(sqlstate: SqlState, message: impl Into<String>) -> Error {
        Error(Box::new(ErrorFields {
            sqlstate,
            message: message.into(),
            detail: None,
            hint: None,
            position: None,
            schema: None,
            table: None,
            column: None,
            constraint: None,
        }))
    }

    /// Adds a detail.
    pub fn with_detail(mut self, detail: impl Into<String>) -> Error {
        self.0.detail = Some(detail.into());
        self
    }

    /// Adds a hint.
    pub fn with_hint(mut self, hint: impl Into<String>) -> Error {
        self.0.hint = Some(hint.into());
        self
    }

    /// Says where in the statement text, in characters from 1; a position that is already there stays.
    pub fn with_position(mut self, position: u32) -> Error {
        self.0.position.get_or_insert(position);
        self
    }

    /// Names the table concerned.
    pub fn with_table(mut self, schema: impl Into<String>, table: impl Into<String>) -> Error {
        self.0.schema = Some(schema.into());
        self.0.table = Some(table.into());
        self
    }

    /// Names the column concerned.
    pub fn with_column(mut self, column: impl Into<String>) -> Error {
        self.0.column = Some(column.into());
        self
    }

    /// Names the constraint that was violated.
    pub fn with_constraint(mut self, constraint: impl Into<String>) -> Error {
        self.0.constraint = Some(constraint.into());
        self
    }

    /// May the same transaction succeed when it is run again? True for class 40, except where the outcome is
    /// unknown (40003).
    pub fn is_retryable(&self) -> bool {
        self.0.sqlstate.0.starts_with("40") && self.0.sqlstate != SqlState::STATEMENT_COMPLETION_UNKNOWN
    }

    /// 0A000: `feature` is what the user asked for, such as `recursive queries`.
    #[cold]
    pub fn unsupported(feature: impl fmt::Display) -> Error {
        Error::new(SqlState::FEATURE_NOT_SUPPORTED, format!("{feature} is not supported"))
    }

    /// XX000: a fact of ours does not hold.
    #[cold]
    pub fn internal(message: impl Into<String>) -> Error {
        Error::new(SqlState::INTERNAL_ERROR, message)
    }

    /// XX001: stored bytes do not decode.
    #[cold]
    pub fn corrupted(message: impl Into<String>) -> Error {
        Error::new(SqlState::DATA_CORRUPTED, message)
    }

    /// 22P02: `input` is no value of the type with this name.
    #[cold]
    pub fn invalid_input(type_name: &str, input: &str) -> Error {
        Error::new(
            SqlState::INVALID_TEXT_REPRESENTATION,
            format!("invalid input syntax for type {type_name}: \"{input}\""),
        )
    }

    /// 22003: such as `integer out of range`.
    #[cold]
    pub fn out_of_range(type_name: &str) -> Error {
        Error::new(SqlState::NUMERIC_VALUE_OUT_OF_RANGE, format!("{type_name} out of range"))
    }

    /// 22012.
    #[cold]
    pub fn division_by_zero() -> Error {
        Error::new(SqlState::DIVISION_BY_ZERO, "division by zero")
    }

    /// 22023.
    #[cold]
    pub fn invalid_parameter(message: impl Into<String>) -> Error {
        Error::new(SqlState::INVALID_PARAMETER_VALUE, message)
    }

    /// 42601.
    #[cold]
    pub fn syntax(message: impl Into<String>) -> Error {
        Error::new(SqlState::SYNTAX_ERROR, message)
    }
}

impl From<isochrone_base::codec::DecodeError> for Error {
    fn from(e: isochrone_base::codec::DecodeError) -> Error {
        Error::corrupted(format!("stored value does not decode: {e}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_one_word_and_knows_its_table() {
        assert_eq!(size_of::<Error>(), 8);
        assert_eq!(SqlState::from_code("23505"), Some(SqlState::UNIQUE_VIOLATION));
        assert_eq!(SqlState::UNIQUE_VIOLATION.condition(), Some("unique_violation"));
        assert_eq!(SqlState::from_code("99999"), None);
        assert!(Error::new(SqlState::SERIALIZATION_FAILURE, "x").is_retryable());
        assert!(Error::new(SqlState::DEADLOCK_DETECTED, "x").is_retryable());
        assert!(!Error::new(SqlState::STATEMENT_COMPLETION_UNKNOWN, "x").is_retryable());
        assert!(!Error::division_by_zero().is_retryable());
    }
}
