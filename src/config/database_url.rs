//! The address of the database: a URL or a string of keywords, in the syntax of libpq.

use std::path::PathBuf;
use std::time::Duration;
use strum::EnumString;
use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

/// Encryption of the connection, as libpq's `sslmode`. Connections over Unix sockets are never encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, EnumString)]
#[strum(serialize_all = "kebab-case")]
pub enum TlsMode {
    /// Not encrypted.
    Disable,
    /// Encrypted if the server supports it. The certificate is not checked.
    Prefer,
    /// Encrypted. The certificate is not checked.
    Require,
    /// Encrypted. The certificate must be trusted and must match the host name.
    VerifyFull,
}

/// Address of the database, with the parameters of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// Host, port, user, database name, and the password if one was given.
    pub config: Config,
    /// Encryption of the connection.
    pub tls: TlsMode,
    /// File with the certificates that `verify-full` trusts, in PEM. `None`: the certificates of the system.
    pub root_certificates: Option<PathBuf>,
}

impl DatabaseUrl {
    /// Parses `postgres://user@host:port/name?sslmode=…` or `host=… user=…`.
    ///
    /// # Errors
    /// The reason why the text is invalid. It never repeats the text, which may contain a password.
    pub fn parse(text: &str) -> Result<DatabaseUrl, String> {
        let (text, ours) = split_tls_options(text);
        let config = text.parse::<Config>().map_err(|error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            // Do not repeat the name of the option: it may be part of a password without quotes.
            if why.starts_with("unknown option") {
                "unknown option; put values with spaces in quotes".into()
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
            return Err("the host or database name contains @ or /; in a password, write them as %40 and %2F".into());
        }
        let mut url = DatabaseUrl::new(config);
        for (key, value) in ours {
            match key {
                "sslmode" => {
                    let mode = value.parse().ok();
                    url.tls = mode.ok_or("sslmode must be disable, prefer, require or verify-full")?;
                }
                // The name of libpq for the certificates of the system.
                "sslrootcert" if value == "system" => url.root_certificates = None,
                _ => url.root_certificates = Some(value.into()),
            }
        }
        url.settle()?;
        Ok(url)
    }

    /// Returns the address of `config`, with encryption if the server supports it.
    pub fn new(config: Config) -> DatabaseUrl {
        DatabaseUrl { config, tls: TlsMode::Prefer, root_certificates: None }
    }

    /// Sets the parameters that every connection has.
    ///
    /// # Errors
    /// A root certificate is set without `verify-full`.
    pub fn settle(&mut self) -> Result<(), String> {
        if self.root_certificates.is_some() && self.tls != TlsMode::VerifyFull {
            return Err("a root certificate requires sslmode verify-full".into());
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

    /// Returns `user@host:port/name`, without the password.
    pub fn place(&self) -> String {
        let [host, port, name, user] = parts(&self.config);
        format!("{user}@{host}:{port}/{name}")
    }
}

/// Returns host, port, database and user of a connection, with the defaults of libpq. Of several hosts, the first is
/// used.
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

/// Removes `sslmode` and `sslrootcert` from a connection string, and returns them. tokio-postgres does not know all
/// their values.
fn split_tls_options(text: &str) -> (String, Pairs) {
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
    // Split at spaces, except inside quotes.
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
        for (name, mode) in [
            ("disable", TlsMode::Disable),
            ("prefer", TlsMode::Prefer),
            ("require", TlsMode::Require),
            ("verify-full", TlsMode::VerifyFull),
        ] {
            assert_eq!(DatabaseUrl::parse(&format!("postgres://h/n?sslmode={name}")).unwrap().tls, mode);
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
