//! Reads words as a command line: each in the light of those before it.

use super::{
    MASK, address, names,
    programs::{self, Program, has},
    script::{ends_command, is_sign},
    word,
};

/// Options whose value is `user:password`.
const USER_OPTIONS: &str =
    "--cert -auth -u --user -U --proxy-user --auth --userpwd --basic-auth --basic --login --credentials";
/// Options whose value is `[user:password@]host:port`.
const PROXY_OPTIONS: &str = "-x --proxy --preproxy";
/// Programs whose words are scripts.
const SHELLS: &str = "sh bash dash zsh ksh ash fish csh busybox ssh su eval watch xargs parallel script expect spawn \
                      tmux screen pwsh powershell cmd psql pg_dump pg_restore pg_basebackup pgbench ansible \
                      ansible-playbook";
/// Programs that write their arguments.
const WRITERS: &str = "echo printf yes print write-output";
/// Words before a name and a value.
const SETTERS: &str = "set setg --set setvar define --arg --arg-string";
/// Ends of names whose value is a command.
const COMMANDS: [&str; 5] = ["command", "cmd", "exec", "program", "rsh"];
/// Files that hold passwords, and whose names do not say so.
const SECRET_FILES: &str = ".netrc .pgpass .my.cnf .npmrc .pypirc .git-credentials .htpasswd .vault-token .boto .s3cfg";
/// Programs that are of interest at once. Who has more of them in one command has them to hide.
const MAX_ACTIVE: usize = 64;

/// Masks each word.
pub(super) fn mask(words: &[&str], depth: usize) -> Vec<String> {
    let piped = piped(words);
    let mut line = Line { depth, ..Line::default() };
    words.iter().zip(piped).map(|(word, piped)| line.next(word, piped)).collect()
}

/// A program of the command, and how much of what its entry wants has come.
struct Active {
    program: &'static Program,
    /// Words of `after` that came.
    matched: usize,
    /// Words but options since then.
    positions: usize,
}

impl Active {
    fn new(program: &'static Program) -> Self {
        Self { program, matched: 0, positions: 0 }
    }

    fn holds(&self) -> bool {
        self.program.after.split_ascii_whitespace().nth(self.matched).is_none()
    }

    /// Takes notice of a word.
    fn pass(&mut self, word: &str, is_value: bool) {
        match self.program.after.split_ascii_whitespace().nth(self.matched) {
            Some(wanted) => self.matched += usize::from(wanted == word),
            None if !word.starts_with('-') && !is_value => self.positions += 1,
            None => {}
        }
    }
}

/// A command line up to a word.
#[derive(Default)]
struct Line<'a> {
    active: Vec<Active>,
    previous: Option<&'a str>,
    before: Option<&'a str>,
    /// A word may be a script.
    shell: bool,
    /// All is masked up to the closing parenthesis.
    hidden: bool,
    depth: usize,
}

impl<'a> Line<'a> {
    fn next(&mut self, word: &'a str, piped: bool) -> String {
        if is_sign(word) {
            self.hidden = match word {
                "$(" | "<(" | "`" => self.hidden || self.promises(),
                ")" | "\n" => false,
                _ => self.hidden,
            };
            if ends_command(word) {
                self.active.clear();
                (self.previous, self.before, self.shell) = (None, None, false);
            }
            return word.to_owned();
        }
        let masked = if piped || self.hidden { MASK.to_owned() } else { self.one(word) };
        self.notice(word, masked == MASK);
        masked
    }

    /// What comes next is the value of a secret.
    fn promises(&self) -> bool {
        self.previous.is_some_and(|previous| {
            let name = previous.split('=').next().unwrap_or(previous);
            (previous.starts_with('-') || previous.contains('=')) && names::is_secret(name)
        })
    }

    /// Masks a word.
    fn one(&self, text: &str) -> String {
        if let Some(masked) = self.after_option(text) {
            return masked;
        }
        for program in self.programs() {
            let mut plain = program.plain.split_ascii_whitespace().filter(|option| option.starts_with("--"));
            if plain.any(|option| text.strip_prefix(option).is_some_and(|value| value.starts_with('='))) {
                return text.to_owned();
            }
            for option in program.secret.split_ascii_whitespace().chain(program.attached.split_ascii_whitespace()) {
                let Some(value) = text.strip_prefix(option).filter(|value| !value.is_empty()) else { continue };
                match value.strip_prefix('=') {
                    Some(value) if !value.is_empty() => return format!("{option}={MASK}"),
                    // A long option's name goes on.
                    None if option.len() <= 3 || option.ends_with(':') => return format!("{option}{MASK}"),
                    _ => {}
                }
            }
            for option in program.user.split_ascii_whitespace() {
                let Some(value) = text.strip_prefix(option).filter(|_| option.len() == 2 || text.contains('=')) else {
                    continue;
                };
                let (sign, value) = value.strip_prefix('=').map_or(("", value), |value| ("=", value));
                if let Some(masked) = address::user(value, &[':', '%', ',']) {
                    return format!("{option}{sign}{masked}");
                }
            }
            if program.slash
                && let Some(masked) = address::slash(text)
            {
                return masked;
            }
        }
        let positional = self
            .active
            .iter()
            .any(|active| active.holds() && active.program.positional.is_some_and(|keep| active.positions >= keep));
        if positional && !text.starts_with('-') && !self.after_plain() {
            return self.positional(text);
        }
        // `NAME=value with blanks` is no script where none is expected.
        if let Some((name, value)) = word::assignment(text)
            && !self.takes_script()
            && names::is_secret(name)
            && !value.is_empty()
            && word::spreads(text)
        {
            return format!("{name}={MASK}");
        }
        word::mask(text, self.depth + 1)
    }

    /// Masks a word for what the one before it asks.
    fn after_option(&self, text: &str) -> Option<String> {
        let option = self.previous?;
        let any = |list: fn(&Program) -> &'static str| self.programs().any(|program| has(list(program), option));
        if self.after_plain() {
            return None;
        }
        if (any(|program| program.user) || self.programs().any(|program| has(program.user, "-u")) && is_cluster(option))
            && let Some(masked) = address::user(text, &[':', '%', ','])
        {
            return Some(masked);
        }
        // The last of a cluster, as in `zip -rP`.
        let clustered = self.programs().any(|program| {
            let mut short = program.secret.split_ascii_whitespace().filter(|short| short.len() == 2);
            option.len() <= 4 && short.any(|short| is_cluster_of(option, short.as_bytes()[1]))
        });
        let secret = any(|program| program.secret)
            || clustered
            || any(|program| program.apart)
            || any(|program| program.words)
            || self.asks_for_a_secret(option)
            || self.programs().any(|program| program.named) && !option.contains('=') && names::is_secret(option);
        // SQL goes on after a name.
        let sql = ["by", "for"].iter().any(|word| text.eq_ignore_ascii_case(word)) && self.depth > 0;
        if secret && !sql && !text.starts_with("--") {
            // Where it lies, and not what it is.
            let elsewhere = ["env:", "file:", "fd:", "stdin"].iter().any(|place| text.starts_with(place));
            let named = text.strip_prefix("pass:").filter(|_| option.starts_with("-pass"));
            return Some(match named {
                _ if elsewhere => text.to_owned(),
                Some(_) => format!("pass:{MASK}"),
                None => MASK.to_owned(),
            });
        }
        let takes_login =
            has(USER_OPTIONS, option) || option.starts_with('-') && option.len() > 2 && names::is_login(option);
        if takes_login && !text.starts_with(['+', '/', '-', '.']) {
            return address::user(text, &[':', '%']).filter(|masked| *masked != text && !text.contains(":/"));
        }
        has(PROXY_OPTIONS, option).then(|| address::login(text)).filter(|masked| masked != text)
    }

    /// The word is the value of an option that has no secret.
    fn after_plain(&self) -> bool {
        self.previous.is_some_and(|previous| self.programs().any(|program| has(program.plain, previous)))
    }

    /// A word that is a secret for where it stands. Addresses and the names of values stay.
    fn positional(&self, text: &str) -> String {
        if text.contains("://") || is_host(text) {
            return word::mask(text, self.depth + 1);
        }
        match word::assignment(text) {
            Some((name, value)) if !value.is_empty() => format!("{name}={MASK}"),
            _ if text == "-" || text.starts_with('@') => text.to_owned(),
            _ => MASK.to_owned(),
        }
    }

    /// `--password` and the like, with the value in the next word.
    fn asks_for_a_secret(&self, option: &str) -> bool {
        // `configure set aws_secret_access_key VALUE`: a bare name, no option's value and no program.
        let is_name = option.contains('_')
            && option.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
            && self.before.is_some_and(|before| !before.starts_with('-'));
        // `set password VALUE`, `set-initial-password VALUE`
        let is_set = self.before.is_some_and(|before| has(SETTERS, before)) && !option.starts_with('-')
            || ["set-", "reset-", "change-"].iter().any(|start| option.starts_with(start))
                && ["password", "passphrase", "token"].iter().any(|end| option.ends_with(end));
        // `//registry/:_authToken VALUE`
        let is_setting = option.starts_with("//") && option.rsplit(':').next().is_some_and(names::is_secret);
        let is_option = option.starts_with('-') && option.len() > 2;
        (is_name || is_set || is_option) && !option.contains(['=', ':']) && names::is_secret(option) || is_setting
    }

    /// The word may be a script, and `NAME=value` its first word.
    fn takes_script(&self) -> bool {
        self.shell || self.previous.is_some_and(|previous| is_cluster_of(previous, b'c'))
    }

    /// Remembers a word for those after it.
    fn notice(&mut self, word: &'a str, masked: bool) {
        let after_option = self.previous.is_some_and(|previous| previous.starts_with('-'));
        let is_value = self.after_plain();
        for active in &mut self.active {
            active.pass(word, is_value);
        }
        let first = self.previous.is_none_or(|previous| word::assignment(previous).is_some());
        if !masked {
            let run = word::assignment(word).filter(|(name, _)| {
                let name = name.to_ascii_lowercase();
                COMMANDS.iter().any(|end| name.ends_with(end))
            });
            for program in programs::entries(run.map_or(word, |(_, program)| program)) {
                // What follows an option may be its value and no program.
                if program.ends && !after_option {
                    self.active.clear();
                }
                if (first || !program.first) && self.active.len() < MAX_ACTIVE {
                    self.active.push(Active::new(program));
                }
            }
            self.shell |= has(SHELLS, programs::name(word));
        }
        self.before = self.previous.replace(word);
        // In a command line that came as words, a sign may end one.
        if word.len() > 1 && word.ends_with([';', '|', '&']) && self.depth == 0 {
            self.active.clear();
            (self.previous, self.before) = (None, None);
        }
    }

    fn programs(&self) -> impl Iterator<Item = &'static Program> {
        self.active.iter().filter(|active| active.holds()).map(|active| active.program)
    }
}

/// Which words a program reads as a secret: those that `echo` writes to it, and those after `<<<`.
fn piped(words: &[&str]) -> Vec<bool> {
    let mut piped = vec![false; words.len()];
    // The words of the pipeline that are written, of which a reader makes secrets.
    let mut written: Vec<usize> = Vec::new();
    let (mut start, mut groups) = (0, 0_usize);
    while start < words.len() {
        let end = words[start..].iter().position(|word| ends_command(word)).map_or(words.len(), |found| start + found);
        let command = &words[start..end];
        let reads = reads(command);
        if reads {
            written.drain(..).for_each(|index| piped[index] = true);
            if let Some(at) = command.iter().position(|word| *word == "<<<") {
                piped[start + at + 1..end].fill(true);
            }
            if let Some(at) = command.iter().position(|word| *word == "<<") {
                here_document(words, &mut piped, start + at + 1);
            }
        }
        if let Some(at) = command.iter().position(|word| has(WRITERS, programs::name(word))) {
            let told = (start + at + 1..end)
                .filter(|index| !words[*index].starts_with(['-', '>']) && !words[*index - 1].ends_with(['>', '<']));
            written.extend(told);
        }
        if keeps_secret(command) {
            written.drain(..).for_each(|index| piped[index] = true);
        }
        // What is written for a file in the place of an option is one.
        let substituted = start > 0 && words[start - 1] == "<(";
        if substituted {
            written.drain(..).for_each(|index| piped[index] = true);
        }
        for word in command.iter().chain(words.get(end)) {
            match *word {
                "(" | "$(" | "<(" | ">(" | "{" => groups += 1,
                ")" | "}" => groups = groups.saturating_sub(1),
                _ => {}
            }
        }
        // What a group writes goes where its output goes.
        if groups == 0 && !matches!(words.get(end), Some(&("|" | "|&" | ")"))) && command.last() != Some(&"}") {
            written.clear();
        }
        start = end + 1;
    }
    piped
}

/// Marks what stands between a word and the next one that is the same.
fn here_document(words: &[&str], piped: &mut [bool], at: usize) {
    let Some(mark) = words.get(at).filter(|_| !piped[at]) else { return };
    let mark = mark.trim_start_matches('-');
    let end = words[at + 1..].iter().position(|word| *word == mark).map_or(words.len(), |found| at + 1 + found);
    piped[at + 1..end].fill(true);
}

/// The command writes to a file whose name promises a secret, as `echo X > ~/.pgpass` or `tee token`.
fn keeps_secret(command: &[&str]) -> bool {
    let tee = command.iter().any(|word| programs::name(word) == "tee");
    command.iter().enumerate().any(|(index, word)| {
        let to = word.trim_start_matches(['>', '&', '1']);
        let file = to.rsplit('/').next().unwrap_or(to);
        let written = tee || word.starts_with('>') || index > 0 && command[index - 1].ends_with('>');
        written
            && !file.is_empty()
            && (has(SECRET_FILES, file) || names::is_secret(file.split('.').next().unwrap_or(file)))
    })
}

/// The command reads a secret from its input.
fn reads(command: &[&str]) -> bool {
    let by_option = command.iter().any(|word| {
        word.starts_with("--")
            && (word.ends_with("-stdin")
                || word.starts_with("--stdin")
                || word.ends_with("/dev/stdin")
                || ["--with-token", "--passphrase-fd", "--key-file", "--passwd-on-stdin", "--pinentry-mode"]
                    .iter()
                    .any(|option| word.starts_with(option)))
    });
    let encodes = command.iter().any(|word| programs::name(word) == "base64")
        && !command.iter().any(|word| matches!(*word, "-d" | "-D" | "--decode" | "-di"));
    let mut active: Vec<Active> = Vec::new();
    by_option
        || encodes
        || command.iter().any(|word| {
            for active in &mut active {
                active.pass(word, false);
            }
            let free = MAX_ACTIVE.saturating_sub(active.len());
            let readers = programs::entries(word).iter().filter(|program| !program.reads.is_empty());
            active.extend(readers.take(free).map(|program| Active::new(program)));
            active
                .iter()
                .any(|active| active.holds() && (active.program.reads == "*" || has(active.program.reads, word)))
        })
}

/// An address of the network, maybe with a port.
fn is_host(text: &str) -> bool {
    let parsed = text.parse::<std::net::IpAddr>().is_ok() || text.parse::<std::net::SocketAddr>().is_ok();
    parsed || text == "localhost"
}

/// Short options in one word, the last of which is `-u`.
fn is_cluster(option: &str) -> bool {
    option.len() > 2 && is_cluster_of(option, b'u')
}

fn is_cluster_of(option: &str, last: u8) -> bool {
    let letters = option.strip_prefix('-').unwrap_or_default().as_bytes();
    (1..=5).contains(&letters.len()) && letters.last() == Some(&last) && letters.iter().all(u8::is_ascii_alphabetic)
}
