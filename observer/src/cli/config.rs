//! The configuration file of `record`: TOML, whose keys are the command's options. What is typed goes before what is in the file.

use std::{
    collections::BTreeMap,
    error::Error,
    ffi::OsString,
    fmt::Write,
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use clap::{
    Arg, ArgMatches, CommandFactory, FromArgMatches,
    error::{ContextKind, ContextValue},
    parser::ValueSource,
};
use toml::de::{DeTable, DeValue};

use super::{Cli, did_you_mean, exit::UsageError, record};
use crate::store;

/// Read where nobody names another file, if it is there.
pub(super) const DEFAULT: &str = "/etc/observer/observer.toml";
/// The command whose options they are.
const COMMAND: &str = "record";
/// Options that are no keys: they are about one call.
const NOT_KEYS: [&str; 10] =
    ["config", "print-config", "output", "for", "strict", "no-redact", "help", "verbose", "quiet", "version"];
/// The table in which filters are.
const FILTERS: &str = "filter";

/// Which store is read.
#[derive(Debug, Default, clap::Args)]
pub(super) struct OfTheStore {
    /// Use this store [default: that of /etc/observer/observer.toml, else /var/lib/observer/observer.db]
    #[arg(long, value_name = "PATH")]
    store: Option<PathBuf>,
}

impl OfTheStore {
    /// Where it is. A mistake in another key keeps nobody from reading; where the key itself cannot be read, no other store is taken for it.
    pub(super) fn path(&self) -> Result<PathBuf> {
        if let Some(path) = &self.store {
            return Ok(path.clone());
        }
        let configured = match read(Path::new(DEFAULT)) {
            Ok(text) => store_in(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.to_string()),
        };
        let hint = "name the store with --store";
        let configured = configured.map_err(|why| wrong(format!("cannot read `store` in {DEFAULT}: {why}"), hint))?;
        Ok(configured.unwrap_or_else(|| PathBuf::from(store::DEFAULT)))
    }
}

/// The store that a configuration names.
fn store_in(text: &str) -> Result<Option<PathBuf>, String> {
    let table = DeTable::parse(text).map_err(|error| error.message().trim_end().to_owned())?;
    let Some(value) = table.get_ref().get("store") else { return Ok(None) };
    value.get_ref().as_str().map(|path| Some(PathBuf::from(path))).ok_or_else(|| "it takes a text".to_owned())
}

/// Options that are in force: what was typed, what the file says, and defaults.
pub(super) struct InForce {
    /// The options.
    pub(super) args: record::Args,
    /// The file, if one was read.
    pub(super) file: Option<PathBuf>,
    /// Values by key, as they would be typed.
    values: BTreeMap<String, Vec<String>>,
    /// Lines of the file, by the long names of the options that it decides.
    lines: BTreeMap<String, usize>,
}

/// A value of the file, and the line in which it stands.
struct Value {
    key: String,
    text: String,
    line: usize,
}

impl InForce {
    /// Of what was typed, the name of the program first.
    pub(super) fn of(typed: &[OsString]) -> Result<Self> {
        let matches = of_record(typed.to_vec())?;
        let named = matches.get_one::<PathBuf>("config");
        let path = named.map_or_else(|| PathBuf::from(DEFAULT), Clone::clone);
        let text = match read(&path) {
            Ok(text) => Some(text),
            Err(error) if named.is_none() && error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => {
                let sentence = format!("cannot read {}: {error}", path.display());
                let hint = match error.kind() {
                    io::ErrorKind::PermissionDenied => "let all users read it: while recording observer is not root",
                    _ => "name a file in TOML with --config",
                };
                return Err(wrong(sentence, hint));
            }
        };
        let mut words = typed.to_vec();
        let mut lines = BTreeMap::new();
        for Value { key, text, line } in
            text.as_deref().map(|text| values(&path, text)).transpose()?.unwrap_or_default()
        {
            if matches.value_source(&id(&key)) != Some(ValueSource::CommandLine) {
                words.push(format!("--{key}={text}").into());
                lines.insert(key, line);
            }
        }
        let matches = of_record(words)?;
        let values = keys().into_iter().map(|key| {
            let raw = matches.get_raw(&id(key.get_long().unwrap_or_default())).into_iter().flatten();
            (name(&key), raw.map(|value| value.to_string_lossy().into_owned()).collect())
        });
        let mut values: BTreeMap<String, Vec<String>> = values.collect();
        let args = record::Args::from_arg_matches(&matches)?;
        // What is printed means the same wherever it is read.
        let store = std::path::absolute(&args.store).with_context(|| format!("cannot use {}", args.store.display()))?;
        values.insert("store".to_owned(), vec![store.to_string_lossy().into_owned()]);
        Ok(Self { values, args, file: text.is_some().then_some(path), lines })
    }

    /// The error of one of these options, with the file and the line that decide one of them.
    pub(super) fn at_fault(&self, options: &[&str], error: UsageError) -> UsageError {
        let line = options.iter().find_map(|option| self.lines.get(*option));
        match self.file.as_ref().zip(line) {
            Some((file, line)) => {
                UsageError { sentence: format!("{}:{line}: {}", file.display(), error.sentence), ..error }
            }
            None => error,
        }
    }

    /// Keys whose values are others than those of `other`.
    pub(super) fn differs_in(&self, other: &Self) -> Vec<String> {
        self.values
            .iter()
            .filter(|(key, value)| other.values.get(*key) != Some(value))
            .map(|(key, _)| key.clone())
            .collect()
    }

    /// These keys with their values, for a sentence.
    pub(super) fn words_for(&self, keys: &[&str]) -> String {
        let values = keys.iter().filter_map(|key| Some(format!("{key} {}", self.values.get(*key)?.join(", "))));
        values.collect::<Vec<_>>().join(", ")
    }

    /// All keys with their values, as a file that means the same.
    pub(super) fn toml(&self) -> Result<String> {
        let mut text =
            String::from("# Options of `observer record`: each key is an option too, as --max-size for max_size.\n");
        let (filters, others): (Vec<Arg>, Vec<Arg>) = keys().into_iter().partition(is_filter);
        for key in &others {
            self.write(&mut text, key)?;
        }
        let _ = write!(text, "\n# Record only what matches: one of the values of each key.\n[{FILTERS}]\n");
        for key in &filters {
            self.write(&mut text, key)?;
        }
        Ok(text)
    }

    /// What keeps the file from being read again while recording.
    pub(super) fn cannot_be_reloaded(&self) -> Option<String> {
        let path = self.file.as_ref()?;
        let is_for_all = |path: &Path, bit| fs::metadata(path).is_ok_and(|about| about.mode() & bit != 0);
        let closed =
            path.ancestors().skip(1).find(|folder| !folder.as_os_str().is_empty() && !is_for_all(folder, 0o001));
        let closed = closed.or_else(|| (!is_for_all(path, 0o004)).then_some(path));
        closed.map(|closed| {
            format!("{} cannot be reloaded: other users than root cannot read {}", path.display(), closed.display())
        })
    }

    fn write(&self, text: &mut String, key: &Arg) -> Result<()> {
        let name = name(key);
        let values = self.values.get(&name).map(Vec::as_slice).unwrap_or_default();
        // A text of JSON is one of TOML.
        let quoted: Vec<String> = values.iter().map(serde_json::to_string).collect::<Result<_, _>>()?;
        let mut help = key.get_help().map(ToString::to_string).unwrap_or_default();
        let possible = key.get_possible_values();
        if !possible.is_empty() {
            let names: Vec<&str> = possible.iter().map(clap::builder::PossibleValue::get_name).collect();
            let _ = write!(help, ": {}", names.join(", "));
        }
        let _ = match quoted.as_slice() {
            [] => writeln!(text, "\n# {help}\n# {} = []", last(&name)),
            _ if is_list(key) => writeln!(text, "\n# {help}\n{} = [{}]", last(&name), quoted.join(", ")),
            _ => writeln!(text, "\n# {help}\n{} = {}", last(&name), quoted.join(", ")),
        };
        Ok(())
    }
}

/// The text of a file, which must be a plain one: others may never end.
fn read(path: &Path) -> io::Result<String> {
    /// Far more than all keys take.
    const MOST: u64 = 1 << 20;
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut text = String::new();
    if file.take(MOST + 1).read_to_string(&mut text)? as u64 > MOST {
        return Err(io::Error::other("it is longer than 1 MiB"));
    }
    Ok(text)
}

/// What clap makes of the words, which begin with the name of the program.
fn of_record(words: Vec<OsString>) -> Result<ArgMatches> {
    let mut matches = Cli::command().try_get_matches_from(words)?;
    let (_, of_record) =
        matches.remove_subcommand().filter(|(name, _)| name == COMMAND).context("this is not `record`")?;
    Ok(of_record)
}

/// The options that are keys.
fn keys() -> Vec<Arg> {
    let command = Cli::command();
    let record = command.find_subcommand(COMMAND).into_iter().flat_map(clap::Command::get_arguments);
    record.filter(|arg| arg.get_long().is_some_and(|long| !NOT_KEYS.contains(&long))).cloned().collect()
}

fn is_filter(arg: &Arg) -> bool {
    arg.get_help_heading().is_some()
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), clap::ArgAction::Append)
}

/// A key with the table in which it is: `max_size`, `filter.dst`.
fn name(arg: &Arg) -> String {
    let own = arg.get_long().unwrap_or_default().replace('-', "_");
    if is_filter(arg) { format!("{FILTERS}.{own}") } else { own }
}

/// The key alone.
fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap_or(name)
}

/// clap's name of an option.
fn id(long: &str) -> String {
    long.replace('-', "_")
}

fn wrong(sentence: String, hint: &str) -> anyhow::Error {
    UsageError { sentence, hint: hint.to_owned() }.into()
}

/// All values of a file, each of which is one that its option takes.
fn values(path: &Path, text: &str) -> Result<Vec<Value>> {
    let hint = "`observer record --help` has all keys: its options, with `_` for `-`";
    let line = |at: usize| 1 + text.get(..at).unwrap_or(text).matches('\n').count();
    let at = |line: usize, what: &str| wrong(format!("{}:{line}: {what}", path.display()), hint);
    let table = DeTable::parse(text).map_err(|error| {
        let number = line(error.span().map_or(0, |span| span.start));
        let without_quotes = text.lines().nth(number - 1).and_then(without_quotes);
        at(number, without_quotes.as_deref().unwrap_or_else(|| error.message().trim_end()))
    })?;
    let known = keys();
    let mut found = Vec::new();
    let mut take = |table: &DeTable<'_>, prefix: &str| -> Result<()> {
        // The first mistake of the file is reported.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let full = format!("{prefix}{}", key.get_ref());
            let line = line(key.span().start);
            if full == FILTERS {
                if value.get_ref().is_table() {
                    continue;
                }
                return Err(at(line, &format!("`{FILTERS}` is a table: write `[{FILTERS}]`, and its keys below it")));
            }
            let Some(arg) = known.iter().find(|arg| name(arg) == full) else {
                return Err(at(line, &unknown(&full, value.get_ref(), &known)));
            };
            let texts = texts(value.get_ref(), is_list(arg)).map_err(|what| at(line, &format!("`{full}` {what}")))?;
            for text in texts {
                let long = arg.get_long().unwrap_or_default().to_owned();
                let relative = (long == "store" && !text.is_empty() && Path::new(&text).is_relative())
                    .then(|| format!("write an absolute path: `{text}` depends on where observer is started"));
                relative
                    .or_else(|| refused(&long, &text))
                    .map_or(Ok(()), |why| Err(at(line, &format!("`{full}`: {why}"))))?;
                found.push(Value { key: long, text, line });
            }
        }
        Ok(())
    };
    take(table.get_ref(), "")?;
    if let Some(DeValue::Table(filters)) = table.get_ref().get(FILTERS).map(toml::Spanned::get_ref) {
        take(filters, &format!("{FILTERS}."))?;
    }
    found.sort_by_key(|value| value.line);
    Ok(found)
}

/// The sentence for a line whose text has no quotes, which is what people forget most.
fn without_quotes(line: &str) -> Option<String> {
    let (key, value) = line.split_once('=')?;
    let (key, value) = (key.trim(), value.split('#').next().unwrap_or_default().trim());
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:".contains(&byte);
    (!value.is_empty() && value.bytes().all(is_plain)).then(|| format!("write a text in quotes: {key} = \"{value}\""))
}

/// That there is no such key, and which one was meant.
fn unknown(key: &str, value: &DeValue<'_>, known: &[Arg]) -> String {
    let meant = |words: &str| format!("there is no key `{key}`; {words}");
    if value.is_table() {
        return format!("there is no table `[{key}]`; the only one is `[{FILTERS}]`");
    }
    if let Some(filter) = known.iter().find(|arg| is_filter(arg) && last(&name(arg)) == key) {
        return meant(&format!("did you mean `{}` in the table `[{FILTERS}]`?", last(&name(filter))));
    }
    if let Some(other) = key.strip_prefix(FILTERS).and_then(|rest| rest.strip_prefix('.'))
        && known.iter().any(|arg| name(arg) == other)
    {
        return meant(&format!("`{other}` belongs before the table `[{FILTERS}]`"));
    }
    let long = key.replace('_', "-");
    if NOT_KEYS.contains(&long.as_str()) {
        return format!("`{key}` is no key: type `--{long}` where it is wanted");
    }
    let names: Vec<String> = known.iter().map(name).collect();
    match did_you_mean(key, names.iter().map(String::as_str)) {
        nearest if nearest.is_empty() => format!("there is no key `{key}`"),
        nearest => meant(&nearest),
    }
}

/// A value as it would be typed; what it should be, where it cannot be.
fn texts(value: &DeValue<'_>, is_list: bool) -> Result<Vec<String>, &'static str> {
    match value {
        DeValue::String(text) => Ok(vec![text.to_string()]),
        DeValue::Integer(number) if number.radix() == 10 => Ok(vec![number.as_str().to_owned()]),
        DeValue::Array(array) if is_list => {
            let of_each: Result<Vec<_>, _> = array.iter().map(|value| texts(value.get_ref(), false)).collect();
            Ok(of_each?.concat())
        }
        DeValue::Array(_) => Err("takes one text, not a list"),
        _ if is_list => Err("takes a list of texts"),
        _ => Err("takes a text"),
    }
}

/// Why an option does not take a value, if it does not.
fn refused(long: &str, text: &str) -> Option<String> {
    if text.is_empty() {
        return Some("must not be empty".to_owned());
    }
    let words = ["observer", COMMAND].map(str::to_owned).into_iter().chain([format!("--{long}={text}")]);
    let error = match Cli::command().try_get_matches_from(words) {
        Ok(mut matches) => {
            let (_, matches) = matches.remove_subcommand()?;
            let filters = record::Args::from_arg_matches(&matches).ok()?.filters;
            // While recording it is not root, and sees not what they name. They take effect after a restart.
            if !nix::unistd::geteuid().is_root() {
                return None;
            }
            return filters.verify().err().map(|error| error.to_string());
        }
        Err(error) => error,
    };
    Some(match (error.source(), error.get(ContextKind::ValidValue)) {
        (Some(why), _) => why.to_string(),
        (None, Some(ContextValue::Strings(valid))) => format!("`{text}` is none of {}", valid.join(", ")),
        _ => error.to_string().lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_force(text: &str, typed: &[&str]) -> Result<InForce> {
        let folder = tempfile::tempdir()?;
        let path = folder.path().join("observer.toml");
        fs::write(&path, text)?;
        let mut words: Vec<OsString> = ["observer", "record", "--config"].map(OsString::from).to_vec();
        words.push(path.into());
        words.extend(typed.iter().map(OsString::from));
        InForce::of(&words)
    }

    fn sentence(text: &str) -> String {
        let error = in_force(text, &[]).err().unwrap().to_string();
        error.rsplit_once(".toml").unwrap().1.lines().next().unwrap().to_owned()
    }

    #[test]
    fn what_is_typed_goes_before_the_file() {
        let text = "keep = \"7d\"\nmax_size = \"1GiB\"\n[filter]\nport = [443, \"https\"]\nuser = [0]\n";
        let found = in_force(text, &["--keep", "1d"]).unwrap();
        assert_eq!(found.values["keep"], ["1d"]);
        assert_eq!(found.values["max_size"], ["1GiB"]);
        assert_eq!(found.values["filter.port"], ["443", "https"]);
        assert_eq!(found.values["reserve"], ["16MiB"]);
        let other = in_force(text, &["--keep", "1d", "--port", "53"]).unwrap();
        assert_eq!(found.differs_in(&other), ["filter.port"]);
    }

    #[test]
    fn whoever_reads_reads_the_configured_store() {
        let named = store_in("kep = 3\nstore = \"/srv/o.db\"\n[filter]\nport = 1");
        assert_eq!((named, store_in("keep = \"7d\"")), (Ok(Some(PathBuf::from("/srv/o.db"))), Ok(None)));
        assert!(store_in("store = 3").is_err() && store_in("store = ").is_err());
    }

    #[test]
    fn what_is_printed_means_the_same() {
        let text = "keep = \"7d\"\n[filter]\ncomm = [\"a\\\"b\"]\nport = 53\n";
        let found = in_force(text, &[]).unwrap();
        let again = in_force(&found.toml().unwrap(), &[]).unwrap();
        assert_eq!(found.values, again.values, "{}", found.toml().unwrap());
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_key() {
        assert_eq!(sentence("keep = \"7d\"\nkep = 1\n"), ":2: there is no key `kep`; did you mean `keep`?");
        assert_eq!(sentence("\n\nkeep = \"soon\""), ":3: `keep`: write for example 30d, 12w or 36h");
        assert_eq!(sentence("prove = \"never\""), ":1: `prove`: `never` is none of on-demand, always");
        assert_eq!(sentence("[filter]\nport = [\"no\"]").split(':').nth(2), Some(" `filter.port`"));
        assert_eq!(sentence("keep = true"), ":1: `keep` takes a text");
        assert_eq!(sentence("keep = \"7d\"\nargs = none # why"), ":2: write a text in quotes: args = \"none\"");
        assert_eq!(sentence("keep = 7d"), ":1: write a text in quotes: keep = \"7d\"");
        assert_eq!(sentence("[filter]\nnetns = [\"a\"]"), ":2: `filter.netns` takes one text, not a list");
        assert_eq!(sentence("store = \"\""), ":1: `store`: must not be empty");
        assert_eq!(sentence("keep = \"0s\""), ":1: `keep`: the shortest time is 1h; `m` is minutes");
        assert!(sentence("store = \"o.db\"").starts_with(":1: `store`: write an absolute path"));
        let small = in_force("keep = \"7d\"\nmax_size = \"1MiB\"\n", &[]).unwrap();
        let small = small.limits().unwrap_err().to_string();
        assert!(small.contains(".toml:2: max_size (--max-size) is too small"), "{small}");
        assert_eq!(sentence("[filters]\nport = 3"), ":1: there is no table `[filters]`; the only one is `[filter]`");
        assert!(sentence("filter = 3").starts_with(":1: `filter` is a table"));
        assert!(sentence("netns = \"a\"").ends_with("did you mean `netns` in the table `[filter]`?"));
        assert!(sentence("[filter]\nkeep = \"1d\"").ends_with("`keep` belongs before the table `[filter]`"));
        assert!(sentence("strict = true").starts_with(":1: `strict` is no key: type `--strict`"));
        assert!(sentence("[filter]\nuser = [\"no-such-user\"]").starts_with(":2: `filter.user`: "));
        assert!(sentence("max_size = \"1X\"\nkep = \"1d\"").starts_with(":1: "));
        assert!(sentence("keep = ").starts_with(":1: "), "{}", sentence("keep = "));
        assert!(sentence("port = 53").starts_with(":1: there is no key `port`"));
    }
}
