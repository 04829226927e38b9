//! Where the database is and how to reach it: a URL or the parts of one, as libpq writes them.

use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// Whether the connection is encrypted, and whom it trusts. Unix sockets never are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// In the clear.
    Disable,
    /// Encrypted if the server can, whoever it is.
    Prefer,
    /// Encrypted, whoever the server is.
    Require,
    /// Encrypted, and the server's certificate must be good for its name.
    VerifyFull,
}

impl TlsMode {
    /// Every mode, as it is written.
    pub const NAMES: &[(&str, TlsMode)] = &[
        ("disable", TlsMode::Disable),
        ("prefer", TlsMode::Prefer),
        ("require", TlsMode::Require),
        ("verify-full", TlsMode::VerifyFull),
    ];

    /// Reads a name.
    pub fn parse(name: &str) -> Option<TlsMode> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, mode)| *mode)
    }
}

/// How to reach the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// Host, port, user, name, password if one was given.
    pub config: Config,
    /// Encryption.
    pub tls: TlsMode,
    /// Certificates trusted with `verify-full`, in PEM; the system's if none.
    pub root_certificates: Option<PathBuf>,
}

impl DatabaseUrl {
    /// Reads `postgres://user@host:port/name?sslmode=…` or `host=… user=…`.
    ///
    /// # Errors
    /// What cannot be understood. Never repeats the text, which may hold a password.
    pub fn parse(text: &str) -> Result<DatabaseUrl, String> {
        let (text, ours) = take_ours(text);
        let config = text.parse::<Config>().map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            // The name of the option may be a part of an unquoted password.
            if why.starts_with("unknown option") {
                "an unknown option; put values with blanks in quotes".into()
            } else {
                why
            }
        })?;
        let mut names = config.get_hosts().iter().filter_map(|host| match host {
            Host::Tcp(name) => Some(name.as_str()),
            Host::Unix(_) => None,
        });
        let is_odd = |name: &str| name.contains(['@', '/']);
        if names.any(is_odd) || config.get_dbname().is_some_and(is_odd) {
            return Err("the host or the name has an @ or a / in it; in a password write %40 and %2F for them".into());
        }
        let mut url = DatabaseUrl::new(config);
        for (key, value) in ours {
            match key {
                "sslmode" => {
                    let mode = TlsMode::parse(&value);
                    url.tls = mode.ok_or("sslmode is none of disable, prefer, require and verify-full")?;
                }
                // What libpq calls the system's certificates.
                "sslrootcert" if value == "system" => url.root_certificates = None,
                _ => url.root_certificates = Some(value.into()),
            }
        }
        url.settle()?;
        Ok(url)
    }

    /// A connection by `config`, encrypted if the server can.
    pub fn new(config: Config) -> DatabaseUrl {
        DatabaseUrl { config, tls: TlsMode::Prefer, root_certificates: None }
    }

    /// Fills in what every connection has.
    ///
    /// # Errors
    /// Two settings do not go together.
    pub fn settle(&mut self) -> Result<(), String> {
        if self.root_certificates.is_some() && self.tls != TlsMode::VerifyFull {
            return Err("a root certificate is used with sslmode verify-full only".into());
        }
        if self.config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_))) {
            self.tls = TlsMode::Disable;
        }
        self.config
            .ssl_mode(match self.tls {
                TlsMode::Disable => SslMode::Disable,
                TlsMode::Prefer => SslMode::Prefer,
                TlsMode::Require | TlsMode::VerifyFull => SslMode::Require,
            })
            .application_name("stampede")
            .connect_timeout(Duration::from_secs(5))
            .keepalives_idle(Duration::from_secs(10));
        Ok(())
    }

    /// Where it is, without anything secret.
    pub fn place(&self) -> String {
        let [host, port, name, user] = parts(&self.config);
        format!("{user}@{host}:{port}/{name}")
    }
}

/// Host, port, database and user of a connection, with libpq's defaults; of several hosts, the first.
pub fn parts(config: &Config) -> [String; 4] {
    let host = match config.get_hosts().first() {
        Some(Host::Tcp(name)) => name.clone(),
        Some(Host::Unix(dir)) => dir.display().to_string(),
        None => "localhost".into(),
    };
    let port = config.get_ports().first().copied().unwrap_or(5432).to_string();
    let user = config.get_user().unwrap_or_default();
    [host, port, config.get_dbname().unwrap_or(user).into(), user.into()]
}

type Pairs = Vec<(&'static str, String)>;

/// Takes the options out of a connection string that are answered here and that tokio-postgres does not know.
fn take_ours(text: &str) -> (String, Pairs) {
    let mut ours = Pairs::new();
    let mut is_ours = |word: &str| {
        let known = ["sslmode", "sslrootcert"].into_iter().find_map(|key| Some((key, word.strip_prefix(key)?)));
        let Some((key, value)) = known.and_then(|(key, rest)| Some((key, rest.strip_prefix('=')?))) else {
            return false;
        };
        let value = value.trim_matches('\'');
        ours.push((key, percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned()));
        true
    };
    if text.contains("://") {
        let Some((place, options)) = text.split_once('?') else { return (text.into(), ours) };
        let left: Vec<&str> = options.split('&').filter(|option| !is_ours(option)).collect();
        let mark = if left.is_empty() { "" } else { "?" };
        return (format!("{place}{mark}{}", left.join("&")), ours);
    }
    // Words, but not at spaces inside quotes.
    let mut is_quoted = false;
    let mut is_escaped = false;
    let words = text.split(|c: char| {
        is_quoted ^= c == '\'' && !is_escaped;
        is_escaped = c == '\\' && !is_escaped;
        c.is_whitespace() && !is_quoted
    });
    let left: Vec<&str> = words.filter(|word| !is_ours(word)).collect();
    (left.join(" "), ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_pairs_say_the_same() {
        let url = DatabaseUrl::parse("postgres://u:p@h:7/n?sslmode=verify-full&connect_timeout=3&sslrootcert=%2Fa%20b")
            .unwrap();
        let pairs = "host=h port=7 user=u password=p dbname=n connect_timeout=3 sslmode=verify-full";
        assert_eq!((url.tls, url.root_certificates.clone()), (TlsMode::VerifyFull, Some("/a b".into())));
        assert_eq!(url.config, DatabaseUrl::parse(pairs).unwrap().config);
        assert_eq!(url.place(), "u@h:7/n");
    }

    #[test]
    fn every_mode_is_understood_and_nothing_else() {
        for (name, mode) in TlsMode::NAMES {
            assert_eq!(DatabaseUrl::parse(&format!("postgres://h/n?sslmode={name}")).unwrap().tls, *mode);
        }
        assert_eq!(DatabaseUrl::parse("postgres://h/n").unwrap().tls, TlsMode::Prefer);
        assert!(DatabaseUrl::parse("postgres://h/n?sslmode=verify-ca").unwrap_err().contains("verify-full"));
        assert_eq!(DatabaseUrl::parse("host=/run/postgresql sslmode=require").unwrap().tls, TlsMode::Disable);
        assert_eq!(DatabaseUrl::parse("host=/run/postgresql,h sslmode=require").unwrap().tls, TlsMode::Require);
        assert!(
            DatabaseUrl::parse("postgres://h/n?sslrootcert=/x&sslmode=require").unwrap_err().contains("verify-full")
        );
        assert_eq!(DatabaseUrl::parse("postgres://h/n?sslrootcert=system").unwrap().root_certificates, None);
    }

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for text in ["postgres://u:pa@ss@h/db", "postgres://u:pa@ss/w@h/db", "host=h password=my ss=x"] {
            let error = DatabaseUrl::parse(text).unwrap_err();
            assert!(!error.contains("ss=") && !error.contains("ss@") && !error.contains("`ss`"), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_quoted_is_left_alone() {
        let url = DatabaseUrl::parse("host=h password='a sslmode=disable b' sslmode='require'").unwrap();
        assert_eq!((url.config.get_password(), url.tls), (Some(&b"a sslmode=disable b"[..]), TlsMode::Require));
        let url = DatabaseUrl::parse(r"host=h password='it\'s sslmode=disable'").unwrap();
        assert_eq!((url.config.get_password(), url.tls), (Some(&b"it's sslmode=disable"[..]), TlsMode::Prefer));
    }
}
