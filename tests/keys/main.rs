//! Columns that depend on a key.

mod oracle;
mod rules;
mod versions;
