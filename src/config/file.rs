//! The TOML file: settings at the top level, named as the flags are.

use std::{fs, io::Read as _, path::Path, sync::Arc};

use toml::de::{DeTable, DeValue};

use super::{
    ConfigError,
    layers::{Assignment, Layer, Origin, check_each, keys, nearest},
};

/// Larger files are no configuration: a list of 1,000 static peers takes 200 KiB.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the file. An error says why it is no TOML; all wrong settings go to `errors`.
pub(super) fn read(path: &Path, errors: &mut Vec<ConfigError>) -> Result<Layer, ConfigError> {
    let failed = |problem: String| ConfigError::File { path: path.to_owned(), problem };
    let mut text = String::new();
    let mut file =
        fs::File::open(path).map_err(|error| failed(format!("cannot be read: {error}")))?.take(MAX_BYTES + 1);
    file.read_to_string(&mut text).map_err(|error| failed(format!("cannot be read: {error}")))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(failed(format!("is larger than {MAX_BYTES} bytes")));
    }
    parse(path, &text, errors)
}

/// Reads the text of the file at `path`.
fn parse(path: &Path, text: &str, errors: &mut Vec<ConfigError>) -> Result<Layer, ConfigError> {
    let path: Arc<Path> = path.into();
    let line_of = |offset: usize| text.bytes().take(offset).filter(|byte| *byte == b'\n').count() + 1;
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(1, |span| line_of(span.start));
        ConfigError::File { path: path.to_path_buf(), problem: format!("line {line}: {}", error.message()) }
    })?;
    let known = keys();
    let mut layer = Layer::default();
    for (key, value) in table.get_ref() {
        let line = line_of(key.span().start);
        let key = key.get_ref().as_ref();
        let wrong = |problem: String| ConfigError::Setting {
            place: format!("{}:{line}: {key}", path.display()),
            problem,
        };
        let Some((_, list)) = known.iter().find(|(name, _)| name == key) else {
            errors.push(wrong(match nearest(key) {
                _ if value.get_ref().is_table() => "no such setting; this file has no sections".to_owned(),
                Some(nearest) => format!("no such setting, did you mean {nearest}?"),
                None => "no such setting; devp2pd --help lists all of them".to_owned(),
            }));
            continue;
        };
        let values = match value.get_ref() {
            DeValue::Array(items) if *list => items.iter().map(|item| scalar(item.get_ref())).collect(),
            DeValue::Array(_) => {
                errors.push(wrong("takes one value, not a list".to_owned()));
                continue;
            }
            value => scalar(value).map(|value| vec![value]),
        };
        let Some(values) = values else {
            errors.push(wrong("takes strings, whole numbers, true and false".to_owned()));
            continue;
        };
        let origin = Origin::File(path.clone(), line);
        layer.0.insert(key.to_owned(), Assignment { values, origin });
    }
    check_each(&layer, errors);
    Ok(layer)
}

/// The value as one would type it after a flag.
fn scalar(value: &DeValue<'_>) -> Option<String> {
    match value {
        DeValue::String(text) => Some(text.clone().into_owned()),
        DeValue::Boolean(value) => Some(value.to_string()),
        // The digits as they stand: 0x10 is for the parser of the setting to refuse.
        DeValue::Integer(number) if number.radix() == 10 => Some(number.as_str().to_owned()),
        _ => None,
    }
}
