//! Checks parsed requests against the limits of a service.

use super::action::Register;
use super::column::{ColumnPath, ColumnRequest};
use super::limits::{RequestLimits, metadata_bytes, too_many};
use super::request::{Columns, Request, RequestError};

impl RequestLimits {
    /// Checks that a request keeps within these limits.
    ///
    /// # Errors
    /// [`RequestError::Field`], which names the limit that was exceeded.
    pub fn check(&self, request: &Request) -> Result<(), RequestError> {
        self.check_columns(&request.columns)?;
        let names = [("consumer", &request.consumer), ("session", &request.session)];
        for (field, name) in names {
            if let Some(name) = name {
                self.check_name(field, name)?;
            }
        }
        let bytes = request.schema_metadata.bytes();
        within("schema_metadata", bytes, self.metadata_bytes, "bytes of metadata")?;
        let entries = request.lock.as_ref().map_or(0, Vec::len);
        within("lock", entries, self.lock_entries, "entries")
    }

    /// Checks that the registration of a timeframe keeps within these limits.
    ///
    /// # Errors
    /// [`RequestError::Field`], which names the limit that was exceeded.
    #[doc(hidden)]
    pub fn check_registration(&self, register: &Register) -> Result<(), RequestError> {
        self.check_columns(&register.columns)?;
        within("consumers", register.consumers.len(), self.consumers, "consumers")?;
        register.consumers.iter().try_for_each(|name| self.check_name("consumers", name))
    }

    fn check_columns(&self, columns: &Columns) -> Result<(), RequestError> {
        match columns {
            Columns::Own(columns) => {
                within("columns", columns.len(), self.columns, "columns")?;
                columns.iter().try_for_each(|column| self.check_column(column))
            }
            Columns::Table(name) => self.check_name("table", name),
            Columns::Registered => Ok(()),
        }
    }

    fn check_column(&self, column: &ColumnRequest) -> Result<(), RequestError> {
        self.check_name("columns", &column.name)?;
        if let Some(used) = &column.key {
            self.check_name("columns", &used.key)?;
        }
        if let ColumnPath::ByRange(ranges) = &column.path {
            within("columns", ranges.len(), self.path_ranges, "ranges of a key")?;
        }
        let bytes = metadata_bytes(&column.metadata);
        within("columns", bytes, self.metadata_bytes, "bytes of metadata")
    }

    fn check_name(&self, field: &'static str, name: &str) -> Result<(), RequestError> {
        within(field, name.len(), self.name_bytes, "bytes in a name")
    }
}

fn within(
    field: &'static str,
    got: usize,
    most: usize,
    what: &'static str,
) -> Result<(), RequestError> {
    if got <= most {
        return Ok(());
    }
    Err(RequestError::Field { field, reason: too_many(got, most, what) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(columns: &str, extra: &str) -> Result<Request, String> {
        let json = format!(r#"{{"columns": {{{columns}}}, "timestamps": [1]{extra}}}"#);
        Request::parse(json.as_bytes()).map_err(|error| error.to_string())
    }

    fn columns(count: usize) -> String {
        let columns: Vec<String> = (0..count).map(|n| format!(r#""c{n}": "A""#)).collect();
        columns.join(", ")
    }

    #[test]
    fn a_request_has_at_most_ten_thousand_columns() {
        assert!(request(&columns(10_000), "").is_ok());
        assert!(request(&columns(10_001), "").unwrap_err().contains("10000"));
    }

    #[test]
    fn names_have_at_most_256_bytes_and_are_not_repeated_in_full() {
        let long = |count: usize| "x".repeat(count);
        assert!(request(&format!(r#""{}": "A""#, long(256)), "").is_ok());
        let error = request(&format!(r#""{}": "A""#, long(100_000)), "").unwrap_err();
        assert!(error.contains("256") && error.len() < 300, "{error}");
        for field in ["consumer", "session"] {
            let extra = |count| format!(r#", "{field}": "{}""#, long(count));
            assert!(request(r#""c": "A""#, &extra(256)).is_ok());
            let error = request(r#""c": "A""#, &extra(257)).unwrap_err();
            assert!(error.contains("256"), "{error}");
        }
        let table = format!(r#"{{"table": "{}", "timestamps": [1]}}"#, long(257));
        assert!(Request::parse(table.as_bytes()).unwrap_err().to_string().contains("256"));
    }

    #[test]
    fn the_metadata_of_a_column_has_at_most_64_kib() {
        let column = |count: usize| {
            format!(r#""c": {{"path": "A", "metadata": {{"k": "{}"}}}}"#, "v".repeat(count - 1))
        };
        assert!(request(&column(64 << 10), "").is_ok());
        assert!(request(&column((64 << 10) + 1), "").unwrap_err().contains("65536"));
    }

    #[test]
    fn a_lock_has_at_most_a_hundred_thousand_entries() {
        let entry = r#"{"path": "A", "object_id": "00000000-0000-4000-8000-000000000000",
            "valid_from": 0, "valid_until": 1, "created": 0}"#;
        let lock = |count| format!(r#", "lock": [{}]"#, vec![entry; count].join(","));
        assert!(request(r#""c": "A""#, &lock(100_000)).is_ok());
        assert!(request(r#""c": "A""#, &lock(100_001)).unwrap_err().contains("100000"));
    }

    #[test]
    fn a_timeframe_has_at_most_a_thousand_consumers() {
        let register = |count| {
            let names: Vec<String> = (0..count).map(|n| format!("\"c{n}\"")).collect();
            let names = names.join(",");
            Register::parse(format!(r#"{{"table": "t", "consumers": [{names}]}}"#).as_bytes())
        };
        assert!(register(1_000).is_ok());
        assert!(register(1_001).unwrap_err().to_string().contains("1000"));
    }

    #[test]
    fn a_service_can_be_set_to_allow_less() {
        let less = RequestLimits {
            columns: 2,
            consumers: 1,
            path_ranges: 1,
            key_values: 1,
            queries: 1,
            lock_entries: 0,
            name_bytes: 4,
            metadata_bytes: 3,
        };
        let refused = |columns: &str, extra: &str| {
            less.check(&request(columns, extra).unwrap()).map_err(|error| error.to_string())
        };
        assert_eq!(refused(&columns(2), ""), Ok(()));
        assert!(refused(&columns(3), "").unwrap_err().contains("at most 2"));
        assert!(refused(r#""abcde": "A""#, "").unwrap_err().contains("at most 4"));
        let metadata = r#""c": {"path": "A", "metadata": {"k": "vvv"}}"#;
        assert!(refused(metadata, "").unwrap_err().contains("at most 3"));
        assert!(refused(r#""c": "A""#, r#", "consumer": "abcde""#).is_err());
        let ranges = r#""c": {"path": [{"from": 1, "path": "A"}, {"path": "B"}], "key": "k"}"#;
        assert!(refused(ranges, r#", "keys": {"k": [1]}"#).unwrap_err().contains("at most 1"));
        let key = r#""c": {"path": "A", "key": "abcde"}"#;
        assert!(refused(key, r#", "keys": {"abcde": [1]}"#).unwrap_err().contains("at most 4"));
        let register = br#"{"table": "t", "consumers": ["a", "b"]}"#;
        let register = Register::parse(register).unwrap();
        assert!(less.check_registration(&register).is_err());
    }
}
