//! Every configuration key with its description, taken from the types.

use std::sync::OnceLock;

use schemars::generate::SchemaSettings;
use serde::Deserialize;
use serde::de::{Deserializer, Visitor};
use serde_json::Value;

use super::entries::{PathConfig, RemapConfig, SourceConfig};
use super::service::{Config, TlsConfig};
use crate::server::ccdb::CcdbServerConfig;
use crate::server::limits::Limits;
use crate::source::ccdb::CcdbOptions;

/// A section of the file: the top level, or the keys under one heading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Section {
    /// The name in the heading; empty for the top level.
    pub name: &'static str,
    /// Its form in the file.
    pub form: SectionForm,
    /// Its description; empty for the top level.
    pub text: String,
    /// Its keys, in reading order.
    pub keys: Vec<ConfigKey>,
}

/// The form of a section in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SectionForm {
    /// Without a heading.
    Top,
    /// Once: `[name]`.
    Once,
    /// Any number of times: `[[name]]`.
    List,
    /// Under names chosen by the user: `[name.NAME]`.
    Named,
}

/// A key that can be set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigKey {
    /// Its name with its section, as `memory`, `ccdb.retries` or `source.url`.
    pub name: String,
    /// Its description, with the unit.
    pub text: String,
    /// Its default value, in the notation of a file; `None`: not set.
    pub default: Option<String>,
}

impl ConfigKey {
    /// Its name within its section.
    pub fn field(&self) -> &str {
        self.name.rsplit_once('.').map_or(&self.name, |(_, field)| field)
    }
}

/// All sections of a configuration.
pub fn sections() -> &'static [Section] {
    static SECTIONS: OnceLock<Vec<Section>> = OnceLock::new();
    SECTIONS.get_or_init(|| {
        use SectionForm::{List, Named, Once, Top};
        let settings = SchemaSettings::draft2020_12();
        let settings = settings.with(|settings| settings.inline_subschemas = true);
        let schema = settings.into_generator().into_root_schema_for::<Config>();
        let defaults = toml::Table::try_from(Config::default()).unwrap_or_default();
        let section = |name: &'static str, form: SectionForm, fields: &[&str]| {
            let whole = match form {
                Top => schema.as_value(),
                _ => &schema.as_value()["properties"][name],
            };
            let properties = &if form == List { &whole["items"] } else { whole }["properties"];
            let values = match form {
                Top => Some(&defaults),
                _ => defaults.get(name).and_then(toml::Value::as_table),
            };
            let is_heading = |field: &str| form == Top && HEADINGS.contains(&field);
            let keys = fields.iter().filter(|field| !is_heading(field)).map(|field| ConfigKey {
                name: if form == Top { (*field).to_owned() } else { format!("{name}.{field}") },
                text: text_of(&properties[*field]),
                default: values.and_then(|values| Some(values.get(*field)?.to_string())),
            });
            let text = if form == Top { String::new() } else { text_of(whole) };
            Section { name, form, text, keys: keys.collect() }
        };
        const HEADINGS: [&str; 8] =
            ["source", "remap", "path", "tls", "limits", "ccdb", "ccdb_server", "tables"];
        vec![
            section("", Top, fields_of::<Config>()),
            section("source", List, fields_of::<SourceConfig>()),
            section("remap", List, fields_of::<RemapConfig>()),
            section("path", List, fields_of::<PathConfig>()),
            section("tls", Once, fields_of::<TlsConfig>()),
            section("limits", Once, fields_of::<Limits>()),
            section("ccdb", Once, fields_of::<CcdbOptions>()),
            section("ccdb_server", Once, fields_of::<CcdbServerConfig>()),
            section("tables", Named, &[]),
        ]
    })
}

fn text_of(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The names of a struct's fields as serde reads them, in the order of the source.
fn fields_of<T: for<'de> Deserialize<'de>>() -> &'static [&'static str] {
    struct FieldNames<'a>(&'a mut &'static [&'static str]);
    impl<'de> Deserializer<'de> for FieldNames<'_> {
        type Error = serde::de::value::Error;
        fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
            Err(serde::de::Error::custom("only the names are asked for"))
        }
        fn deserialize_struct<V: Visitor<'de>>(
            self,
            _: &'static str,
            fields: &'static [&'static str],
            visitor: V,
        ) -> Result<V::Value, Self::Error> {
            *self.0 = fields;
            self.deserialize_any(visitor)
        }
        serde::forward_to_deserialize_any! {
            bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
            unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
        }
    }
    let mut names: &'static [&'static str] = &[];
    let _ = T::deserialize(FieldNames(&mut names));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_has_its_text_and_its_default() {
        let keys = || sections().iter().flat_map(|section| &section.keys);
        let of = |name: &str| keys().find(|key| key.name == name).unwrap();
        assert_eq!(sections()[0].keys[0].name, "listen");
        assert_eq!(of("memory").default.as_deref(), Some("\"4GiB\""));
        assert_eq!(of("ccdb.retries").default.as_deref(), Some("3"));
        assert_eq!(of("not_after").default, None);
        assert!(of("path.timeout").text.contains("source"));
        for (name, text) in keys()
            .map(|key| (key.name.as_str(), &key.text))
            .chain(sections()[1..].iter().map(|section| (section.name, &section.text)))
        {
            assert!(text.len() > 8 && text.ends_with('.'), "{name}: {text:?}");
        }
        assert!(keys().count() > 50, "{}", keys().count());
        // Every section of the file must be listed here, or its keys would have no description.
        let whole = toml::Table::try_from(Config::default()).unwrap();
        for (name, value) in whole {
            let heading = sections().iter().any(|section| section.name == name);
            assert_eq!(heading, value.is_table() || ["source", "remap", "path"].contains(&&*name));
        }
    }
}
