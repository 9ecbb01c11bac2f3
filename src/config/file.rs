//! Reads kube-proxy's configuration file, as strictly as it goes and as leniently as kube-proxy
//! does: a field that is unknown or given twice is a warning, a value of the wrong type an error.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use thiserror::Error;

use super::component_config::{API_VERSION, KIND, KubeProxyConfiguration};

/// A configuration file that cannot be used. Nothing has been done.
#[derive(Debug, Error)]
pub enum FileError {
    /// It cannot be read.
    #[error(
        "cannot read the configuration file {path}: {source}; check the path and its permissions"
    )]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It cannot be written.
    #[error("cannot write the configuration to {path}: {source}")]
    Unwritable {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not YAML or JSON.
    #[error("{path} is neither YAML nor JSON: {reason}")]
    Syntax {
        /// The file.
        path: PathBuf,
        /// Why, with the line.
        reason: String,
    },
    /// It is of another kind or version.
    #[error("{path}: {field} is {found:?}, but only {expected} is understood")]
    Kind {
        /// The file.
        path: PathBuf,
        /// `apiVersion` or `kind`.
        field: &'static str,
        /// What it says.
        found: String,
        /// What it should say.
        expected: &'static str,
    },
    /// A field has a value of the wrong type.
    #[error("{path}: {field}: {reason}")]
    Field {
        /// The file.
        path: PathBuf,
        /// The field's path.
        field: String,
        /// What is wrong.
        reason: String,
    },
}

/// A configuration as the file has it, and what was passed over.
#[derive(Debug)]
pub struct Loaded {
    /// The configuration, before defaults.
    pub configuration: KubeProxyConfiguration,
    /// What to tell the operator.
    pub warnings: Vec<String>,
    /// The file's text, to notice a change.
    pub text: String,
}

/// Reads a configuration file.
///
/// # Errors
///
/// If it cannot be read or means nothing.
pub fn load(path: &Path) -> Result<Loaded, FileError> {
    let text = fs::read_to_string(path).map_err(|source| FileError::Unreadable {
        path: path.to_owned(),
        source,
    })?;
    let mut warnings = Vec::new();
    let value = parse(path, &text, &mut warnings)?;
    for (field, expected) in [("apiVersion", API_VERSION), ("kind", KIND)] {
        let found = value.get(field).and_then(Value::as_str).unwrap_or_default();
        if found != expected {
            return Err(FileError::Kind {
                path: path.to_owned(),
                field,
                found: found.to_owned(),
                expected,
            });
        }
    }
    let mut track = serde_path_to_error::Track::new();
    let deserializer = serde_path_to_error::Deserializer::new(&value, &mut track);
    let read = serde_ignored::deserialize(deserializer, |field| {
        // A question mark stands for what may be null.
        let field = field.to_string().replace(".?", "");
        warnings.push(format!(
            "{}: {field} is no field of {KIND}; it is ignored",
            path.display()
        ));
    });
    let configuration = match read {
        Ok(configuration) => configuration,
        Err(error) => {
            return Err(FileError::Field {
                path: path.to_owned(),
                field: track.path().to_string(),
                reason: error.to_string(),
            });
        }
    };
    Ok(Loaded {
        configuration,
        warnings,
        text,
    })
}

fn parse(path: &Path, text: &str, warnings: &mut Vec<String>) -> Result<Value, FileError> {
    use serde_saphyr::DuplicateKeyPolicy;
    let with = |policy| {
        let options = serde_saphyr::options! { duplicate_keys: policy, with_snippet: false };
        serde_saphyr::from_str_with_options::<Value>(text, options)
    };
    match with(DuplicateKeyPolicy::Error) {
        Ok(value) => Ok(value),
        Err(strict) => {
            let first_line = |error: serde_saphyr::Error| {
                let text = error.to_string();
                text.lines().next().unwrap_or_default().to_owned()
            };
            let value = with(DuplicateKeyPolicy::LastWins).map_err(|error| FileError::Syntax {
                path: path.to_owned(),
                reason: first_line(error),
            })?;
            warnings.push(format!(
                "{}: {}; the last one counts",
                path.display(),
                first_line(strict)
            ));
            Ok(value)
        }
    }
}

/// Writes a configuration as YAML.
///
/// # Errors
///
/// If the file cannot be written.
pub fn write(path: &Path, configuration: &KubeProxyConfiguration) -> Result<(), FileError> {
    let failed = |source| FileError::Unwritable {
        path: path.to_owned(),
        source,
    };
    let text = serde_saphyr::to_string(configuration)
        .map_err(|error| failed(std::io::Error::other(error)))?;
    fs::write(path, text).map_err(failed)
}
