//! The address of the database, with the meaning that libpq gives to its keywords. A keyword or value that is not
//! supported is refused, and never ignored.

use crate::config::connection_string::{self, Pairs};
use crate::config::host_choice::HostChoice;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio_postgres::Config;
use tokio_postgres::config::{ChannelBinding, SslMode, SslNegotiation};

/// Default limit for the connection to one address of a host, its TLS and authentication included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// Default time after which a connection is closed whose peer does not confirm what was sent.
const TCP_USER_TIMEOUT: Duration = Duration::from_secs(10);
/// Default time without a packet before the first TCP keepalive. A wait for an answer sends nothing by itself.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// Default time between two keepalives. That of Linux is 75 s.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(2);
/// Default number of keepalives without an answer that end a connection.
const KEEPALIVE_COUNT: u32 = 3;
/// Default port of PostgreSQL.
const PORT: u16 = 5432;

/// Encryption of the connection, as libpq's `sslmode`. Connections over Unix sockets are never encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TlsMode {
    /// Not encrypted.
    Disable,
    /// Encrypted if the server supports it. The certificate is not checked.
    Prefer,
    /// Encrypted. The certificate is not checked.
    Require,
    /// Encrypted. The certificate must be trusted.
    VerifyCa,
    /// Encrypted. The certificate must be trusted and must match the host name.
    VerifyFull,
}

/// One host of the database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseHost {
    /// Host name or address, or the directory of a Unix socket. The certificate and the password file use this name.
    pub name: String,
    /// Address to connect to, if it is not to be looked up by the name.
    pub address: Option<IpAddr>,
    /// TCP port, or the number in the name of the Unix socket.
    pub port: u16,
}

impl DatabaseHost {
    /// Returns whether the host is a Unix socket on this machine.
    pub fn is_unix(&self) -> bool {
        self.name.starts_with('/')
    }
}

/// The state in which a server must be, as libpq's `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetSession {
    /// Any state.
    Any,
    /// The server is no standby, and transactions can write by default.
    ReadWrite,
    /// The server is no standby.
    Primary,
}

/// Certificate of the client with its key, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// File with the certificate, and the certificates between it and a trusted one.
    pub certificate: PathBuf,
    /// File with the private key.
    pub key: PathBuf,
}

/// Address of the database, with the parameters of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseUrl {
    /// User, database name, the password if one was given, and the parameters of the connection. No hosts.
    pub config: Config,
    /// The hosts, in the order in which the first connection tries them. There is at least one.
    pub hosts: Vec<DatabaseHost>,
    /// Host that the next connection tries first.
    pub choice: HostChoice,
    /// State that a server must have. A host in another state is skipped.
    pub target: TargetSession,
    /// Limit for the connection to one address of a host, its TLS and authentication included.
    pub connect_timeout: Duration,
    /// Encryption of connections over TCP.
    pub tls: TlsMode,
    /// File with the certificates that are trusted, in PEM. `None`: the certificates of the system.
    pub root_certificates: Option<PathBuf>,
    /// Certificate that the server may ask for.
    pub client_certificate: Option<ClientCertificate>,
}

impl DatabaseUrl {
    /// Parses `postgres://user@host:port/name?sslmode=…` or `host=… user=…`.
    ///
    /// # Errors
    /// The reason why the text is invalid. It never repeats the text, which may contain a password.
    pub fn parse(text: &str) -> Result<DatabaseUrl, String> {
        DatabaseUrl::from_pairs(connection_string::split(text)?)
    }

    /// Returns the address that keywords and values describe. The last value of a keyword is used.
    ///
    /// # Errors
    /// The reason why a keyword or a value is invalid.
    pub fn from_pairs(pairs: Pairs) -> Result<DatabaseUrl, String> {
        let mut options = Options::default();
        let mut config = Config::new();
        config.application_name("stampede").tcp_user_timeout(TCP_USER_TIMEOUT);
        config
            .keepalives_idle(KEEPALIVE_IDLE)
            .keepalives_interval(KEEPALIVE_INTERVAL)
            .keepalives_retries(KEEPALIVE_COUNT);
        for (keyword, value) in pairs {
            if !options.take(&keyword, &value)? {
                set(&mut config, &keyword, &value)?;
            }
        }
        options.complete(config)
    }

    /// Returns `user@host:port/name` of one host, without the password.
    pub fn place_of(&self, host: &DatabaseHost) -> String {
        let [host, port, name, user] = self.parts(host);
        format!("{user}@{host}:{port}/{name}")
    }

    /// Returns the hosts in the order in which the next connection tries them, with their numbers. With
    /// [`TargetSession::Any`], the order says which host is preferred, and stays.
    pub fn hosts_in_turn(&self) -> impl Iterator<Item = (usize, &DatabaseHost)> {
        let first = match self.target {
            TargetSession::Any => 0,
            TargetSession::ReadWrite | TargetSession::Primary => self.choice.first(),
        };
        let numbers = (first..self.hosts.len()).chain(0..first);
        numbers.map(|number| (number, &self.hosts[number]))
    }

    /// Returns `user@host:port,host:port/name` of all hosts, without the password.
    pub fn place(&self) -> String {
        let hosts: Vec<String> = self.hosts.iter().map(|host| format!("{}:{}", host.name, host.port)).collect();
        let [_, _, name, user] = self.parts(&self.hosts[0]);
        format!("{user}@{}/{name}", hosts.join(","))
    }

    /// Returns host, port, database and user of a connection, with the defaults of libpq.
    pub fn parts(&self, host: &DatabaseHost) -> [String; 4] {
        let user = self.config.get_user().unwrap_or_default();
        [host.name.clone(), host.port.to_string(), self.config.get_dbname().unwrap_or(user).into(), user.into()]
    }

    /// Returns how long a connection to each host in turn takes at most, if each host has one address.
    pub fn patience(&self) -> Duration {
        self.connect_timeout * self.hosts.len() as u32
    }
}

/// Options that must be known together before they can be checked.
#[derive(Default)]
struct Options {
    host: String,
    hostaddr: String,
    port: String,
    sslmode: Option<TlsMode>,
    sslrootcert: String,
    sslcert: String,
    sslkey: String,
    is_direct: bool,
    target: Option<TargetSession>,
    connect_timeout: Option<Duration>,
}

impl Options {
    /// Takes the value of a keyword, and returns whether the keyword is one of these options.
    fn take(&mut self, keyword: &str, value: &str) -> Result<bool, String> {
        match keyword {
            "host" => self.host = value.to_owned(),
            "hostaddr" => self.hostaddr = value.to_owned(),
            "port" => self.port = value.to_owned(),
            "sslrootcert" => self.sslrootcert = value.to_owned(),
            "sslcert" => self.sslcert = value.to_owned(),
            "sslkey" => self.sslkey = value.to_owned(),
            "sslmode" => {
                self.sslmode = Some(match value {
                    "disable" => TlsMode::Disable,
                    "prefer" => TlsMode::Prefer,
                    "require" => TlsMode::Require,
                    "verify-ca" => TlsMode::VerifyCa,
                    "verify-full" => TlsMode::VerifyFull,
                    _ => return Err("sslmode must be disable, prefer, require, verify-ca or verify-full".into()),
                });
            }
            "sslnegotiation" => {
                self.is_direct = match value {
                    "postgres" => false,
                    "direct" => true,
                    _ => return Err("sslnegotiation must be postgres or direct".into()),
                }
            }
            "target_session_attrs" => {
                self.target = Some(match value {
                    "any" => TargetSession::Any,
                    "read-write" => TargetSession::ReadWrite,
                    "primary" => TargetSession::Primary,
                    "read-only" | "standby" | "prefer-standby" => {
                        let why = "the server must write; set target_session_attrs to read-write, primary or any";
                        return Err(why.into());
                    }
                    _ => return Err("target_session_attrs must be read-write, primary or any".into()),
                });
            }
            "connect_timeout" => self.connect_timeout = Some(Duration::from_secs(number(keyword, value, 1, 600)?)),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Returns the address that the options describe.
    fn complete(self, mut config: Config) -> Result<DatabaseUrl, String> {
        let hosts = self.hosts()?;
        let file = |path: &str| Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
        let is_system = self.sslrootcert == "system";
        let root_certificates = file(&self.sslrootcert).filter(|_| !is_system);
        let tls = match self.sslmode {
            // As in libpq: whoever names the trusted certificates wants them to be checked.
            None if is_system => TlsMode::VerifyFull,
            Some(mode) if is_system && mode != TlsMode::VerifyFull => {
                return Err("sslrootcert=system requires sslmode verify-full".into());
            }
            Some(TlsMode::Require) if root_certificates.is_some() => TlsMode::VerifyCa,
            mode => mode.unwrap_or(TlsMode::Prefer),
        };
        if root_certificates.is_some() && matches!(tls, TlsMode::Disable | TlsMode::Prefer) {
            return Err("a root certificate requires sslmode require, verify-ca or verify-full".into());
        }
        if self.is_direct && matches!(tls, TlsMode::Disable | TlsMode::Prefer) {
            return Err("sslnegotiation=direct requires sslmode require, verify-ca or verify-full".into());
        }
        let client_certificate = match (file(&self.sslcert), file(&self.sslkey)) {
            (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
            (None, None) => None,
            _ => return Err("a client certificate needs both sslcert and sslkey".into()),
        };
        if client_certificate.is_some() && tls == TlsMode::Disable {
            return Err("a client certificate requires TLS: set another sslmode than disable".into());
        }
        if tls == TlsMode::VerifyFull && self.host.is_empty() {
            return Err("sslmode verify-full checks the host name: set host beside hostaddr".into());
        }
        config.ssl_negotiation(if self.is_direct { SslNegotiation::Direct } else { SslNegotiation::Postgres });
        let connect_timeout = self.connect_timeout.unwrap_or(CONNECT_TIMEOUT);
        let of_several = if hosts.len() > 1 { TargetSession::ReadWrite } else { TargetSession::Any };
        let target = self.target.unwrap_or(of_several);
        if config.get_dbname().is_some_and(is_odd) {
            return Err(ODD.into());
        }
        let choice = HostChoice::default();
        Ok(DatabaseUrl { config, hosts, choice, target, connect_timeout, tls, root_certificates, client_certificate })
    }

    /// Returns the hosts of the lists of names, addresses and ports.
    fn hosts(&self) -> Result<Vec<DatabaseHost>, String> {
        let list = |text: &str| text.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
        let (names, addresses, ports) = (list(&self.host), list(&self.hostaddr), list(&self.port));
        let count = if self.host.is_empty() { addresses.len() } else { names.len() };
        if !self.host.is_empty() && !self.hostaddr.is_empty() && addresses.len() != count {
            return Err("host and hostaddr must have the same number of entries".into());
        }
        if ports.len() != 1 && ports.len() != count {
            return Err("port must have one entry, or as many as there are hosts".into());
        }
        let host = |place: usize| {
            let address = addresses.get(place).filter(|text| !text.is_empty());
            let address = address.map(|text| text.parse().map_err(|_| "hostaddr must be an IP address"));
            let address: Option<IpAddr> = address.transpose()?;
            let name = names.get(place).filter(|name| !name.is_empty()).cloned();
            let name = name.or(address.map(|address| address.to_string())).ok_or("no host is set")?;
            if name.starts_with('@') || !name.starts_with('/') && is_odd(&name) {
                return Err(ODD.into());
            }
            let port = &ports[if ports.len() == 1 { 0 } else { place }];
            let port = if port.is_empty() { PORT } else { number("port", port, 1, 65535)? as u16 };
            Ok(DatabaseHost { name, address, port })
        };
        (0..count).map(host).collect()
    }
}

/// The message for a host or database name that is probably a part of a password.
const ODD: &str = "the host or database name contains @ or /; in a password, write them as %40 and %2F";

fn is_odd(name: &str) -> bool {
    name.contains(['@', '/'])
}

/// Sets the option of one keyword.
fn set(config: &mut Config, keyword: &str, value: &str) -> Result<(), String> {
    let seconds = |most| number(keyword, value, 1, most).map(Duration::from_secs);
    match keyword {
        // As in libpq, an empty value counts as not set.
        "user" | "password" | "dbname" | "options" if value.is_empty() => config,
        "user" => config.user(value),
        "password" => config.password(value),
        "dbname" => config.dbname(value),
        "options" => config.options(value),
        "application_name" => config.application_name(value),
        "tcp_user_timeout" => config.tcp_user_timeout(Duration::from_millis(number(keyword, value, 0, 3_600_000)?)),
        "keepalives" => config.keepalives(number(keyword, value, 0, 1)? == 1),
        "keepalives_idle" => config.keepalives_idle(seconds(32_767)?),
        "keepalives_interval" => config.keepalives_interval(seconds(32_767)?),
        "keepalives_count" => config.keepalives_retries(number(keyword, value, 1, 127)? as u32),
        "channel_binding" => config.channel_binding(match value {
            "disable" => ChannelBinding::Disable,
            "prefer" => ChannelBinding::Prefer,
            "require" => ChannelBinding::Require,
            _ => return Err("channel_binding must be disable, prefer or require".into()),
        }),
        // These values are what happens anyway.
        "gssencmode" if matches!(value, "disable" | "prefer") => config,
        "load_balance_hosts" if value == "disable" => config,
        "client_encoding" if matches!(value, "auto" | "UTF8" | "utf8") => config,
        known if UNSUPPORTED.contains(&known) => return Err(format!("the option {known} is not supported")),
        // Do not repeat the name of the option: it may be part of a password without quotes.
        _ => return Err("unknown option; put values with blanks in quotes".into()),
    };
    Ok(())
}

/// Options of libpq that are refused, or of which only the harmless values are accepted.
const UNSUPPORTED: [&str; 25] = [
    "client_encoding",
    "fallback_application_name",
    "gssdelegation",
    "gssencmode",
    "gsslib",
    "krbsrvname",
    "load_balance_hosts",
    "max_protocol_version",
    "min_protocol_version",
    "passfile",
    "replication",
    "require_auth",
    "requirepeer",
    "requiressl",
    "service",
    "ssl_max_protocol_version",
    "ssl_min_protocol_version",
    "sslcertmode",
    "sslcompression",
    "sslcrl",
    "sslcrldir",
    "sslkeylogfile",
    "sslpassword",
    "sslsni",
    "tty",
];

fn number(keyword: &str, value: &str, least: u64, most: u64) -> Result<u64, String> {
    let number = value.trim().parse().ok().filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{keyword} must be a whole number from {least} to {most}"))
}

/// Returns the mode in which tokio-postgres begins a connection over TCP.
pub fn ssl_mode(tls: TlsMode) -> SslMode {
    match tls {
        TlsMode::Disable => SslMode::Disable,
        TlsMode::Prefer => SslMode::Prefer,
        TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A wait for an answer sends nothing, so without keepalives a cut link would end only the whole transaction.
    #[test]
    fn a_silent_peer_is_noticed_unless_the_setting_says_otherwise() {
        let keepalives = |pairs: &str| {
            let config = DatabaseUrl::parse(&format!("host=h {pairs}")).unwrap().config;
            let (idle, interval) = (config.get_keepalives_idle(), config.get_keepalives_interval());
            (
                config.get_keepalives(),
                idle.as_secs(),
                interval.map(|time| time.as_secs()),
                config.get_keepalives_retries(),
            )
        };
        assert_eq!(keepalives(""), (true, 10, Some(2), Some(3)));
        assert_eq!(keepalives("keepalives_interval=7 keepalives_count=9"), (true, 10, Some(7), Some(9)));
        assert!(!keepalives("keepalives=0").0);
    }

    #[test]
    fn urls_and_pairs_say_the_same() {
        let url = DatabaseUrl::parse("postgres://u:p@h:7/n?sslmode=verify-full&connect_timeout=4&sslrootcert=%2Fa%20b");
        let pairs = "host=h port=7 user=u password=p dbname=n connect_timeout=4 sslmode=verify-full sslrootcert='/a b'";
        let url = url.unwrap();
        assert_eq!((url.tls, url.root_certificates.clone()), (TlsMode::VerifyFull, Some("/a b".into())));
        assert_eq!(url.connect_timeout, Duration::from_secs(4));
        assert_eq!(url, DatabaseUrl::parse(pairs).unwrap());
        assert_eq!(url.place(), "u@h:7/n");
    }

    #[test]
    fn every_mode_is_understood_and_nothing_else() {
        let tls = |options: &str| DatabaseUrl::parse(&format!("host=h {options}")).map(|url| url.tls);
        for (options, mode) in [
            ("", TlsMode::Prefer),
            ("sslmode=disable", TlsMode::Disable),
            ("sslmode=prefer", TlsMode::Prefer),
            ("sslmode = require", TlsMode::Require),
            ("sslmode=require sslrootcert=/x", TlsMode::VerifyCa),
            ("sslmode=verify-ca", TlsMode::VerifyCa),
            ("sslmode=verify-full", TlsMode::VerifyFull),
            ("sslrootcert=system", TlsMode::VerifyFull),
            ("sslmode=disable sslmode=verify-full", TlsMode::VerifyFull),
        ] {
            assert_eq!(tls(options), Ok(mode), "{options}");
        }
        for options in [
            "sslmode=allow",
            "sslmode=Require",
            "sslmode=",
            "sslmode=''",
            "sslrootcert=/x",
            "sslmode=prefer sslrootcert=/x",
            "sslmode=require sslrootcert=system",
            "sslcert=/c",
            "sslkey=/k",
            "sslmode=disable sslcert=/c sslkey=/k",
            "sslmode=prefer sslnegotiation=direct",
            "sslpassword=x",
            "ssl_min_protocol_version=TLSv1.3",
            "ssl_mode=require",
        ] {
            assert!(tls(options).is_err(), "{options}");
        }
        let of_address = |options: &str| DatabaseUrl::parse(&format!("hostaddr=127.0.0.1 {options}"));
        assert!(of_address("sslmode=verify-full").unwrap_err().contains("set host"));
        assert_eq!(of_address("host=h sslmode=verify-full").unwrap().tls, TlsMode::VerifyFull);
        assert_eq!(of_address("sslmode=require").unwrap().hosts[0].name, "127.0.0.1");
        assert_eq!(DatabaseUrl::parse("postgres://u:a?b@h/n?sslmode=require").unwrap().tls, TlsMode::Require);
    }

    #[test]
    fn later_connections_begin_with_the_host_in_use_unless_the_order_is_a_preference() {
        for (target, expected) in [("", [1, 2, 0]), ("&target_session_attrs=any", [0, 1, 2])] {
            let url = DatabaseUrl::parse(&format!("postgres://u@a,b,c/d?connect_timeout=1{target}")).unwrap();
            let numbers = || url.hosts_in_turn().map(|(number, _)| number).collect::<Vec<_>>();
            assert_eq!(numbers(), [0, 1, 2], "{target}");
            url.clone().choice.opened(1, 3);
            assert_eq!(numbers(), expected, "{target}");
        }
    }

    #[test]
    fn hosts_are_lists() {
        let hosts = |text: &str| {
            let url = DatabaseUrl::parse(text)?;
            let shown = |host: &DatabaseHost| format!("{} {:?} {}", host.name, host.address, host.port);
            Ok::<_, String>((url.hosts.iter().map(shown).collect::<Vec<_>>().join("; "), url.target))
        };
        let (any, read_write) = (TargetSession::Any, TargetSession::ReadWrite);
        for (text, expected, target) in [
            ("host=a", "a None 5432", any),
            ("host=a,b port=1", "a None 1; b None 1", read_write),
            ("host=a,/run port=1,", "a None 1; /run None 5432", read_write),
            ("postgres://a:1,[::1]/n", "a None 1; ::1 None 5432", read_write),
            ("host=a,b hostaddr=10.0.0.1,", "a Some(10.0.0.1) 5432; b None 5432", read_write),
            ("host=a,b target_session_attrs=any", "a None 5432; b None 5432", any),
            ("host=a target_session_attrs=primary", "a None 5432", TargetSession::Primary),
        ] {
            assert_eq!(hosts(text), Ok((expected.to_owned(), target)), "{text}");
        }
        for text in [
            "user=u",
            "postgres:///n",
            "host=,b",
            "host=a,b port=1,2,3",
            "host=a,b hostaddr=10.0.0.1",
            "hostaddr=name",
            "host=a port=0",
            "host=a port=65536",
            "host=a target_session_attrs=standby",
            "host=a target_session_attrs=prefer-standby",
            "host=a target_session_attrs=read-only",
            "host=a target_session_attrs=leader",
            "host=a load_balance_hosts=random",
            "host=a connect_timeout=0",
            "host=a connect_timeout=soon",
            "host=a service=x",
        ] {
            assert!(hosts(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_part_of_a_password_is_repeated() {
        for text in ["postgres://u:pa@ss@h/db", "postgres://u:pa@ss/w@h/db", "host=h password=my ss=x", "host=h ss=x"] {
            let error = DatabaseUrl::parse(text).unwrap_err();
            assert!(!error.contains("ss=") && !error.contains("ss@") && !error.contains("`ss`"), "{text}: {error}");
        }
    }
}
