//! The syntax of libpq's connection strings: a URL, or keywords with values. What the keywords mean is in
//! [`crate::config::database_url`].
//!
//! Format: PostgreSQL manual, "Connection Strings". Where the manual leaves a case open, `fe-connect.c` decides, so that
//! a string means here what it means to psql.

use percent_encoding::percent_decode_str;

/// The keywords of a connection string with their values, in order.
pub type Pairs = Vec<(String, String)>;

/// Splits a connection string into keywords and values. The value of `host`, `hostaddr` and `port` may be a list with
/// commas.
///
/// # Errors
/// The reason why the syntax is wrong. It repeats no part of the text, which may contain a password.
pub fn split(text: &str) -> Result<Pairs, &'static str> {
    match text.strip_prefix("postgresql://").or(text.strip_prefix("postgres://")) {
        Some(rest) => split_url(rest),
        None if text.contains("://") => Err("a URL begins with postgres:// or postgresql://"),
        None => split_keywords(text),
    }
}

/// Splits `keyword = value …`. A value with blanks stands in single quotes, and a backslash takes the next character
/// literally.
fn split_keywords(text: &str) -> Result<Pairs, &'static str> {
    let mut pairs = Pairs::new();
    let mut rest = text.trim_start_matches(is_blank);
    while !rest.is_empty() {
        let (keyword, value) = rest.split_once('=').ok_or("a keyword has no =; put values with blanks in quotes")?;
        let keyword = keyword.trim_end_matches(is_blank);
        if keyword.is_empty() || keyword.contains(is_blank) {
            return Err("a keyword has no =; put values with blanks in quotes");
        }
        let (value, after) = take_value(value.trim_start_matches(is_blank))?;
        pairs.push((keyword.to_owned(), value));
        rest = after.trim_start_matches(is_blank);
    }
    Ok(pairs)
}

/// Returns the value at the beginning of `text`, and the text after it.
fn take_value(text: &str) -> Result<(String, &str), &'static str> {
    let (is_quoted, text) = text.strip_prefix('\'').map_or((false, text), |inner| (true, inner));
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.extend(characters.next().map(|(_, literal)| literal)),
            '\'' if is_quoted => return Ok((value, &text[at + 1..])),
            blank if is_blank(blank) && !is_quoted => return Ok((value, &text[at..])),
            other => value.push(other),
        }
    }
    if is_quoted { Err("a quote is not closed") } else { Ok((value, "")) }
}

/// The blanks of C's `isspace`.
fn is_blank(character: char) -> bool {
    character.is_ascii_whitespace() || character == '\x0b'
}

/// Splits `user:password@host:port,host:port/dbname?keyword=value&…`, without the scheme.
fn split_url(text: &str) -> Result<Pairs, &'static str> {
    let mut pairs = Pairs::new();
    let mut add = |keyword: &str, value: &str| {
        pairs.push((keyword.to_owned(), decode(value)?));
        Ok::<(), &'static str>(())
    };
    // The user ends at the first @, unless a / comes before. So a password may contain ? and : but not @ and /.
    let mut rest = text;
    if let Some(at) = text.find(['@', '/']).filter(|at| text[*at..].starts_with('@')) {
        let (user, password) = text[..at].split_once(':').unwrap_or((&text[..at], ""));
        for (keyword, value) in [("user", user), ("password", password)] {
            if !value.is_empty() {
                add(keyword, value)?;
            }
        }
        rest = &text[at + 1..];
    }
    let (authority, rest) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    let (hosts, ports) = split_hosts(authority)?;
    if !hosts.is_empty() {
        add("host", &hosts)?;
    }
    if !ports.is_empty() {
        add("port", &ports)?;
    }
    let (name, options) = rest.split_once('?').unwrap_or((rest, ""));
    if let Some(name) = name.strip_prefix('/').filter(|name| !name.is_empty()) {
        add("dbname", name)?;
    }
    for option in options.split('&').filter(|_| !options.is_empty()) {
        match option.split_once('=') {
            // The spelling of JDBC, which libpq understands too.
            Some(("ssl", "true")) => add("sslmode", "require")?,
            Some((keyword, value)) if !value.contains('=') => add(&decode(keyword)?, value)?,
            _ => return Err("a parameter after ? must have the form keyword=value, with = in a value written as %3D"),
        }
    }
    Ok(pairs)
}

/// Splits `host:port,host:port` into the list of hosts and the list of ports. An IPv6 address stands in brackets.
fn split_hosts(authority: &str) -> Result<(String, String), &'static str> {
    let (mut hosts, mut ports) = (Vec::new(), Vec::new());
    for part in authority.split(',') {
        let (host, port) = match part.strip_prefix('[') {
            Some(inner) => inner.split_once(']').ok_or("an IPv6 address has no ]")?,
            None => part.split_at(part.find(':').unwrap_or(part.len())),
        };
        if part.starts_with('[') && host.is_empty() {
            return Err("an IPv6 address is empty");
        }
        hosts.push(host);
        ports.push(match port.strip_prefix(':') {
            Some(port) => port,
            None if port.is_empty() => "",
            None => return Err("after the ] of an IPv6 address only a port may follow"),
        });
    }
    let list =
        |parts: Vec<&str>| if parts.iter().all(|part| part.is_empty()) { String::new() } else { parts.join(",") };
    Ok((list(hosts), list(ports)))
}

fn decode(text: &str) -> Result<String, &'static str> {
    let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
    let mut tokens = text.split('%').skip(1).map(|token| token.bytes());
    if !tokens.all(|mut token| is_hex(token.next()) && is_hex(token.next())) {
        return Err("after % two hexadecimal digits must follow; write % itself as %25");
    }
    let decoded = percent_decode_str(text).decode_utf8().map_err(|_| "a decoded value is not UTF-8")?;
    if decoded.contains('\0') { Err("%00 is not allowed") } else { Ok(decoded.into_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(text: &str) -> String {
        match split(text) {
            Ok(pairs) => {
                pairs.iter().map(|(keyword, value)| format!("{keyword}[{value}]")).collect::<Vec<_>>().join(" ")
            }
            Err(why) => format!("! {why}"),
        }
    }

    #[test]
    fn keywords_are_split_as_by_libpq() {
        for (text, expected) in [
            ("host=h port=7", "host[h] port[7]"),
            ("  host = h\tsslmode\n=  require ", "host[h] sslmode[require]"),
            ("sslmode='require'host=h", "sslmode[require] host[h]"),
            (r"password='it\'s \\ a' host=h", r"password[it's \ a] host[h]"),
            (r"password=a\ b\'c host=h", "password[a b'c] host[h]"),
            ("password='a sslmode=disable b' host=h", "password[a sslmode=disable b] host[h]"),
            ("password=a=b", "password[a=b]"),
            ("password='' host=h", "password[] host[h]"),
            ("password= host=h", "password[host=h]"),
            ("", ""),
            ("host", "! a keyword has no =; put values with blanks in quotes"),
            ("host=h my ss=x", "! a keyword has no =; put values with blanks in quotes"),
            ("=x", "! a keyword has no =; put values with blanks in quotes"),
            ("host='h", "! a quote is not closed"),
        ] {
            assert_eq!(pairs(text), expected, "{text}");
        }
    }

    #[test]
    fn urls_are_split_as_by_libpq() {
        for (text, expected) in [
            ("postgres://u:p@h:7/n?sslmode=require", "user[u] password[p] host[h] port[7] dbname[n] sslmode[require]"),
            ("postgresql://h", "host[h]"),
            ("postgres:///n", "dbname[n]"),
            ("postgres://u:a?b:c@h/n", "user[u] password[a?b:c] host[h] dbname[n]"),
            ("postgres://u:p%40%2F%25@h", "user[u] password[p@/%] host[h]"),
            ("postgres://a:1,b,[::1]:3/n", "host[a,b,::1] port[1,,3] dbname[n]"),
            ("postgres://%2Frun%2Fpg/n", "host[/run/pg] dbname[n]"),
            ("postgres://h?host=%2Frun&ssl=true", "host[h] host[/run] sslmode[require]"),
            ("postgres://h/n?%73slmode=dis%61ble", "host[h] dbname[n] sslmode[disable]"),
            ("postgres://h/a@b", "host[h] dbname[a@b]"),
            ("postgres://[::1/n", "! an IPv6 address has no ]"),
            ("postgres://[::1]7/n", "! after the ] of an IPv6 address only a port may follow"),
            (
                "postgres://h/n?sslmode",
                "! a parameter after ? must have the form keyword=value, with = in a value written as %3D",
            ),
            ("postgres://u:100%@h", "! after % two hexadecimal digits must follow; write % itself as %25"),
            ("postgres://u:%ff@h", "! a decoded value is not UTF-8"),
            ("postgres://u:%00@h", "! %00 is not allowed"),
            ("mysql://h/n", "! a URL begins with postgres:// or postgresql://"),
        ] {
            assert_eq!(pairs(text), expected, "{text}");
        }
    }
}
