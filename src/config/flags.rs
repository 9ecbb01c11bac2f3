//! kube-proxy's flags: their values as given, and as its configuration object (docs/semantics.md, K2 to
//! K6).

use std::collections::BTreeMap;

use clap::builder::{PossibleValuesParser, TypedValueParser, ValueParser};
use clap::{Arg, ArgAction, ArgMatches, Command};
use serde_json::{Value, json};

use super::component_config::{KIND, KubeProxyConfiguration};
use super::durations::GoDuration;
use super::errors::UsageError;
use super::table::{FLAGS, Flag, Takes};

/// The flags that were given, each with its value: a text, a boolean, a number or a list.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KubeProxyFlags(BTreeMap<&'static str, Value>);

/// As Go's `strconv.ParseBool` has it.
pub(super) fn go_bool() -> ValueParser {
    let all = [
        "true", "false", "1", "0", "t", "f", "T", "F", "TRUE", "FALSE", "True", "False",
    ];
    let values = PossibleValuesParser::new(all);
    ValueParser::new(values.map(|text| text.starts_with(['t', 'T', '1'])))
}

impl Flag {
    fn argument(&self) -> Arg {
        let argument = Arg::new(self.name)
            .long(self.name)
            .help(self.help)
            .help_heading(self.heading)
            .hide_short_help(self.idle)
            .action(ArgAction::Set);
        match self.takes {
            Takes::Text(what) => argument.value_name(what),
            Takes::OneOf(what, words) => {
                // Refused by `validate`, as the file's are: where there is a file they do not count.
                let words: Vec<&str> = words.iter().copied().filter(|w| !w.is_empty()).collect();
                let help = format!("{} [possible values: {}]", self.help, words.join(", "));
                argument.value_name(what).help(help)
            }
            Takes::Bool => argument
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true)
                .value_parser(go_bool()),
            Takes::Number | Takes::Port => argument
                .value_name(if self.takes == Takes::Port {
                    "PORT"
                } else {
                    "NUMBER"
                })
                .allow_negative_numbers(true)
                .value_parser(clap::value_parser!(i64)),
            Takes::Level => argument
                .short('v')
                .value_name("LEVEL")
                .value_parser(clap::value_parser!(i64).range(0..=i64::from(u32::MAX))),
            Takes::Float => argument
                .value_name("NUMBER")
                .allow_negative_numbers(true)
                .value_parser(clap::value_parser!(f64)),
            Takes::Duration => argument.value_name("DURATION").allow_hyphen_values(true),
            Takes::List(what) => argument.value_name(what).action(ArgAction::Append),
            Takes::Gates => argument
                .value_name("NAME=BOOL,...")
                .action(ArgAction::Append),
        }
    }

    fn given(&self, matches: &ArgMatches) -> Option<Value> {
        let name = self.name;
        match self.takes {
            Takes::Text(_) | Takes::OneOf(..) | Takes::Duration => {
                matches.get_one::<String>(name).map(|text| json!(text))
            }
            Takes::Bool => matches.get_one::<bool>(name).map(|is| json!(is)),
            Takes::Number | Takes::Port | Takes::Level => {
                matches.get_one::<i64>(name).map(|number| json!(number))
            }
            Takes::Float => matches.get_one::<f64>(name).map(|number| json!(number)),
            Takes::List(_) | Takes::Gates => {
                // One that is empty adds nothing.
                let lists = matches.get_many::<String>(name)?;
                let lists = lists.filter(|list| !list.is_empty());
                let all = lists.flat_map(|list| list.split(','));
                Some(Value::Array(all.map(|text| json!(text)).collect()))
            }
        }
    }

    /// A value as its field has it.
    fn as_field(&self, given: &Value) -> Result<Value, UsageError> {
        Ok(match (self.takes, given) {
            (Takes::Duration, Value::String(text)) => {
                let duration = text.parse::<GoDuration>();
                duration.map_err(|error| UsageError::flag(self.name, error.to_string()))?;
                given.clone()
            }
            (Takes::Gates, Value::Array(list)) => gates(self.name, list)?,
            _ => given.clone(),
        })
    }
}

impl clap::FromArgMatches for KubeProxyFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let given = FLAGS
            .iter()
            .filter_map(|flag| Some((flag.name, flag.given(matches)?)));
        self.0.extend(given);
        Ok(())
    }
}

impl clap::Args for KubeProxyFlags {
    fn augment_args(command: Command) -> Command {
        command.args(FLAGS.iter().map(Flag::argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl KubeProxyFlags {
    /// Whether a flag was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Whether a flag was given with nothing behind it.
    pub(super) fn has_empty(&self, name: &str) -> bool {
        self.0.get(name).and_then(Value::as_str) == Some("")
    }

    fn of(&self, wanted: impl Fn(&Flag) -> bool) -> impl Iterator<Item = (&'static Flag, &Value)> {
        FLAGS
            .iter()
            .filter(move |flag| wanted(flag))
            .filter_map(|flag| Some((flag, self.0.get(flag.name)?)))
    }

    /// The flags that were given although the configuration file decides (docs/semantics.md, K4).
    pub(super) fn ignored(&self) -> Vec<&'static str> {
        let decided = self.of(|flag| !flag.wins && !flag.fields.is_empty());
        decided.map(|(flag, _)| flag.name).collect()
    }

    /// The configuration that the flags describe, before defaults; and whether `/healthz` is off.
    ///
    /// # Errors
    ///
    /// A flag whose value cannot be read at all.
    pub(super) fn configuration(&self) -> Result<(KubeProxyConfiguration, bool), UsageError> {
        let mut config = KubeProxyConfiguration {
            kind: KIND.to_owned(),
            // What kube-proxy leaves to its platform is known here.
            mode: "nftables".to_owned(),
            ..KubeProxyConfiguration::default()
        };
        self.put(&mut config, |_| true)?;
        let healthz_off = self.ports(&mut config)?;
        Ok((config, healthz_off))
    }

    /// Puts in what counts even where there is a configuration file.
    ///
    /// # Errors
    ///
    /// A flag whose value cannot be read at all.
    pub(super) fn override_file(
        &self,
        config: &mut KubeProxyConfiguration,
    ) -> Result<(), UsageError> {
        self.put(config, |flag| flag.wins)
    }

    fn put(
        &self,
        config: &mut KubeProxyConfiguration,
        wanted: impl Fn(&Flag) -> bool,
    ) -> Result<(), UsageError> {
        let unreadable =
            |error: serde_json::Error| UsageError::field("the configuration", error.to_string());
        let mut tree = serde_json::to_value(&*config).map_err(unreadable)?;
        for (flag, given) in self.of(|flag| wanted(flag) && flag.takes != Takes::Port) {
            let value = flag.as_field(given)?;
            for field in flag.fields {
                let pointer = format!("/{}", field.replace('.', "/"));
                if let Some(place) = tree.pointer_mut(&pointer) {
                    *place = value.clone();
                }
            }
        }
        *config = serde_json::from_value(tree).map_err(unreadable)?;
        Ok(())
    }

    /// The deprecated ports count where the address has none; 0 means no server, which only
    /// `/healthz` can do without. Returns whether it does.
    fn ports(&self, config: &mut KubeProxyConfiguration) -> Result<bool, UsageError> {
        let mut healthz_off = false;
        for (name, address) in [
            ("healthz-port", &mut config.healthz_bind_address),
            ("metrics-port", &mut config.metrics_bind_address),
        ] {
            let given = self.0.get(name).and_then(Value::as_i64);
            match given.map(u16::try_from) {
                None => {}
                Some(Ok(0)) if name == "healthz-port" => healthz_off = true,
                Some(Ok(port)) if port > 0 => {
                    if let Ok(ip) = address.parse::<std::net::IpAddr>() {
                        *address = std::net::SocketAddr::new(ip, port).to_string();
                    }
                }
                Some(_) => {
                    return Err(UsageError::flag(name, "is not between 1 and 65535"));
                }
            }
        }
        Ok(healthz_off)
    }
}

fn gates(name: &str, list: &[Value]) -> Result<Value, UsageError> {
    let mut gates = serde_json::Map::new();
    for pair in list.iter().filter_map(Value::as_str) {
        if pair.is_empty() {
            continue;
        }
        let (gate, value) = pair.split_once('=').unwrap_or((pair, ""));
        let is: bool = value.trim().parse().map_err(|_| {
            UsageError::flag(name, format!("{pair:?} is not NAME=true or NAME=false"))
        })?;
        gates.insert(gate.trim().to_owned(), json!(is));
    }
    Ok(Value::Object(gates))
}
