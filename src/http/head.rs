//! Parses request heads. A head that two parsers could read in two ways is refused, because such a difference between a
//! proxy and the server allows request smuggling.
//!
//! In addition to the rules of httparse: no bare line feeds, at most one of `Content-Length` and `Transfer-Encoding`,
//! exactly one `Host` in HTTP/1.1 with a valid value, and one spelling of each number and expectation. Unlike httparse,
//! later minor versions are accepted.

use crate::http::authority::is_authority;
use crate::http::problem::Problem;
use std::mem::MaybeUninit;

/// Maximum length of a request line with its line end, in bytes. RFC 9112 §3 recommends at least 8,000.
const REQUEST_LINE_BYTES_MAX: usize = 8 * 1024;
/// Maximum length of a request head, in bytes: the request line, the header fields, and an empty line before them.
pub const HEAD_BYTES_MAX: usize = 16 * 1024;
/// Maximum number of header fields of a request.
pub const HEADERS_MAX: usize = 64;
/// Maximum length of an `X-Request-Id`, in bytes.
const REQUEST_ID_BYTES_MAX: usize = 128;
/// Maximum length of a `traceparent`, in bytes. Version 00 has 55; later versions may have more.
const TRACEPARENT_BYTES_MAX: usize = 128;
/// Maximum length of a request body, in bytes.
pub const BODY_BYTES_MAX: u64 = 64 * 1024;

/// Request method, as far as Stampede distinguishes methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// GET.
    Get,
    /// HEAD: GET without the body.
    Head,
    /// POST.
    Post,
    /// DELETE.
    Delete,
    /// OPTIONS.
    Options,
    /// PUT, PATCH or TRACE, which no path allows.
    Other,
}

/// Rule that determines the end of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// Length in bytes. It is 0 if the head announces no body.
    Length(u64),
    /// Chunked transfer coding.
    Chunked,
}

/// Parsed request head. It borrows from the received bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Method.
    pub method: Method,
    /// Path of the target.
    pub path: &'a str,
    /// Query of the target, without the question mark.
    pub query: &'a str,
    /// Whether the target has percent encoding.
    pub is_encoded: bool,
    /// Whether the client wants to keep the connection open after this request.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expects_continue: bool,
    /// Rule for the end of the body.
    pub framing: Framing,
    /// Whether `Accept` names `application/json`.
    pub accepts_json: bool,
    idempotency_key: Option<&'a [u8]>,
    invalid_key: bool,
    /// Value of `If-None-Match`. If the field is repeated, the last line is used: a tag that is ignored only costs a
    /// full response.
    pub if_none_match: Option<&'a [u8]>,
    /// Value of `Origin`: the origin of the web page that sends the request. `null` if the field is repeated.
    pub origin: Option<&'a [u8]>,
    /// Whether a web page of another origin sends the request: by `Sec-Fetch-Site`, or, without that field, because
    /// `Origin` and `Host` differ.
    pub is_cross_origin: bool,
    /// Whether a browser asks which requests a page may send.
    pub is_preflight: bool,
    /// Value of `X-Request-Id`, if it is valid: 1 to 128 visible ASCII characters.
    pub request_id: Option<&'a [u8]>,
    /// Value of `traceparent`, if it is valid (W3C Trace Context).
    pub traceparent: Option<&'a str>,
    /// Length of the head in bytes, including the empty line.
    pub bytes: usize,
}

impl<'a> Head<'a> {
    /// Returns the value of `Idempotency-Key`.
    ///
    /// # Errors
    /// [`Problem::InvalidKey`]: the field is empty or repeated.
    pub fn key(&self) -> Result<Option<&'a [u8]>, Problem> {
        if self.invalid_key { Err(Problem::InvalidKey) } else { Ok(self.idempotency_key) }
    }
}

/// Parses a head. Returns `Ok(None)` while the head is incomplete.
///
/// # Errors
/// The first reason to refuse the head. It is returned as soon as it is certain, also for an incomplete head.
pub fn parse_head(bytes: &[u8]) -> Result<Option<Head<'_>>, Problem> {
    // RFC 9112 §2.2: an empty line before the request is tolerated, once.
    let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let is_full = bytes.len() >= HEAD_BYTES_MAX;
    let bytes = &bytes[skipped..bytes.len().min(HEAD_BYTES_MAX)];
    let end = match find_end(bytes) {
        // A longer head can have a request line that is too long.
        Ok(Some(end)) if end <= REQUEST_LINE_BYTES_MAX || check_beginning(bytes).is_ok() => end,
        unfinished => {
            check_beginning(bytes)?;
            unfinished?;
            return if is_full { Err(Problem::HeadTooLarge) } else { Ok(None) };
        }
    };
    let mut fields = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(&bytes[..end], &mut fields);
    let line = (request.method.unwrap_or_default(), request.path.unwrap_or_default());
    match parsed {
        Ok(httparse::Status::Complete(length)) if length == end => {
            read(line, request.version == Some(0), request.headers, skipped + end).map(Some)
        }
        Ok(_) => Err(Problem::MalformedField),
        Err(error) => read_later_minor(error, line, &bytes[..end], skipped + end).map(Some),
    }
}

/// Returns the head, of `length` bytes, of an HTTP/1.2 to HTTP/1.9 request, which httparse refuses with `error` after
/// it has parsed the method and the target. RFC 9110 §2.5: a later minor version is read as the latest known one.
#[cold]
fn read_later_minor<'a>(
    error: httparse::Error,
    line: (&'a str, &'a str),
    bytes: &'a [u8],
    length: usize,
) -> Result<Head<'a>, Problem> {
    let fields_begin = later_minor_line(error, bytes).ok_or_else(|| reject(error, bytes))?;
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    match httparse::parse_headers(&bytes[fields_begin..], &mut fields) {
        Ok(httparse::Status::Complete((used, fields))) if fields_begin + used == bytes.len() => {
            read(line, false, fields, length)
        }
        Ok(_) => Err(Problem::MalformedField),
        Err(error) => Err(reject(error, bytes)),
    }
}

/// Returns the length of the request line with its line end, if its version, in which httparse found this error, is
/// HTTP/1.2 to HTTP/1.9.
fn later_minor_line(error: httparse::Error, bytes: &[u8]) -> Option<usize> {
    let line = &bytes[..memchr::memchr(b'\r', bytes)?];
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    let is_later = matches!(words.next()?, [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']);
    let is_whole = words.next().is_none() && bytes[line.len()..].starts_with(b"\r\n");
    (error == httparse::Error::Version && is_later && is_whole).then_some(line.len() + 2)
}

/// Returns a head of `length` bytes. `line` has the method and the target.
// Inlined, because it is on the path of every request, and returns a large struct.
#[inline(always)]
fn read<'a>(
    (method, target): (&'a str, &'a str),
    is_http10: bool,
    fields: &[httparse::Header<'a>],
    length: usize,
) -> Result<Head<'a>, Problem> {
    let method = match method {
        "GET" => Method::Get,
        "HEAD" => Method::Head,
        "POST" => Method::Post,
        "DELETE" => Method::Delete,
        "OPTIONS" => Method::Options,
        // After a CONNECT, the bytes on the connection would not be HTTP.
        "CONNECT" => return Err(Problem::MalformedTarget),
        "PUT" | "PATCH" | "TRACE" => Method::Other,
        // Method names are case-sensitive (RFC 9110 §9.1).
        _ => return Err(Problem::UnknownMethod),
    };
    // RFC 9112 §3.2.4: only OPTIONS can have the asterisk form.
    if target == "*" && method != Method::Options {
        return Err(Problem::MalformedTarget);
    }
    let (path, query) = split_target(target)?;
    let mut seen = Fields::default();
    for field in fields {
        seen.add(field.name, field.value)?;
    }
    seen.check(is_http10)?;
    Ok(Head {
        method,
        path,
        query,
        is_encoded: target.bytes().fold(false, |found, byte| found | (byte == b'%')),
        keep_alive: !seen.close && (!is_http10 || seen.keep_alive),
        expects_continue: seen.expects_continue && !is_http10,
        framing: if seen.chunked { Framing::Chunked } else { Framing::Length(seen.length.unwrap_or(0)) },
        accepts_json: seen.accepts_json,
        idempotency_key: seen.idempotency_key,
        invalid_key: seen.invalid_key,
        if_none_match: seen.if_none_match,
        origin: seen.origin,
        is_cross_origin: seen.is_cross_origin(),
        is_preflight: seen.is_preflight,
        request_id: seen.request_id,
        traceparent: seen.traceparent,
        bytes: length,
    })
}

/// Returns the length of the head including the empty line, or `None` if the empty line is missing. Refuses a line feed
/// without a carriage return.
fn find_end(bytes: &[u8]) -> Result<Option<usize>, Problem> {
    let mut line = 0;
    for feed in memchr::memchr_iter(b'\n', bytes) {
        if feed == line || bytes[feed - 1] != b'\r' {
            return Err(Problem::MalformedLine);
        }
        if feed == line + 1 {
            // This is the empty line. A head that begins with it has no request line.
            return if line == 0 { Err(Problem::MalformedLine) } else { Ok(Some(feed + 1)) };
        }
        line = feed + 1;
    }
    Ok(None)
}

/// Checks the beginning of an incomplete or long head: the first line if it is complete, otherwise its first byte and
/// its length. A client with another protocol may never send an empty line, so it is refused at once.
fn check_beginning(bytes: &[u8]) -> Result<(), Problem> {
    let line = &bytes[..bytes.len().min(REQUEST_LINE_BYTES_MAX)];
    let feed = memchr::memchr(b'\n', line);
    let beginning = feed.map_or(line.len().min(1), |feed| feed + 1);
    if let Err(error) = httparse::Request::new(&mut []).parse(&line[..beginning])
        && later_minor_line(error, line).is_none()
    {
        return Err(reject(error, line));
    }
    match feed {
        None if line.len() == REQUEST_LINE_BYTES_MAX && memchr::memchr(b' ', line).is_none() => {
            Err(Problem::UnknownMethod)
        }
        None if line.len() == REQUEST_LINE_BYTES_MAX => Err(Problem::TargetTooLong),
        _ => Ok(()),
    }
}

/// Returns the reason to refuse a head in which httparse found this error.
fn reject(error: httparse::Error, bytes: &[u8]) -> Problem {
    let line = bytes.split(|&byte| byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|&byte| byte == b' ').skip(2);
    match (error, words.next(), words.next()) {
        (httparse::Error::TooManyHeaders, ..) => Problem::HeadTooLarge,
        (
            httparse::Error::Version,
            Some([b'H', b'T', b'T', b'P', b'/', b'0' | b'2'..=b'9', b'.', b'0'..=b'9']),
            None,
        ) => Problem::UnknownVersion,
        (httparse::Error::HeaderName | httparse::Error::HeaderValue, ..) => Problem::MalformedField,
        _ => Problem::MalformedLine,
    }
}

/// Splits a target into path and query. Accepts the origin form and the absolute form, without its authority (RFC 9112
/// §3.2).
fn split_target(target: &str) -> Result<(&str, &str), Problem> {
    // Without early exits, so that the compiler examines many bytes at once.
    let odd = |byte: u8| !byte.is_ascii_graphic() | (byte == b'#') | (byte == b'\\');
    if target.bytes().fold(false, |found, byte| found | odd(byte)) {
        return Err(Problem::MalformedTarget);
    }
    let target = if target.starts_with('/') || target == "*" { target } else { strip_authority(target)? };
    Ok(match memchr::memchr(b'?', target.as_bytes()) {
        Some(0) => ("/", &target[1..]),
        Some(mark) => (&target[..mark], &target[mark + 1..]),
        None if target.is_empty() => ("/", ""),
        None => (target, ""),
    })
}

fn strip_authority(target: &str) -> Result<&str, Problem> {
    let (scheme, rest) = target.split_once("://").ok_or(Problem::MalformedTarget)?;
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    // RFC 3986 §3.1: a scheme is case-insensitive.
    let is_http = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    let is_valid = is_http && !authority.is_empty() && is_authority(authority.as_bytes());
    if is_valid { Ok(path) } else { Err(Problem::MalformedTarget) }
}

/// Checks a `traceparent`: version, trace id, parent id and flags in lower-case hexadecimal (W3C Trace Context §3.2).
/// Later versions may have more parts. Returns `None` if the value is invalid.
fn traceparent(value: &[u8]) -> Option<&str> {
    let text = str::from_utf8(value).ok().filter(|text| text.len() <= TRACEPARENT_BYTES_MAX)?;
    let mut parts = text.split('-');
    let mut part = |digits| {
        let is_hex = |part: &&str| part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        parts.next().filter(|part| part.len() == digits).filter(is_hex)
    };
    let (version, trace, parent, _flags) = (part(2)?, part(32)?, part(16)?, part(2)?);
    let means_something = |id: &str| id.bytes().any(|byte| byte != b'0');
    let is_valid = version != "ff" && means_something(trace) && means_something(parent);
    (is_valid && (version != "00" || parts.next().is_none())).then_some(text)
}

/// Returns whether a media range of `Accept` names `application/json` with a weight above 0 (RFC 9110 §12.4.2).
fn accepts_json(range: &[u8]) -> bool {
    let mut parts = range.split(|&byte| byte == b';').map(<[u8]>::trim_ascii);
    let is_json = parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(b"application/json"));
    let is_zero = |weight: &[u8]| weight.starts_with(b"0") && weight.iter().all(|byte| matches!(byte, b'0' | b'.'));
    is_json && !parts.filter_map(|part| part.strip_prefix(b"q=").or(part.strip_prefix(b"Q="))).any(is_zero)
}

/// Header fields that have an effect.
#[derive(Default)]
struct Fields<'a> {
    hosts: u32,
    host: &'a [u8],
    origin: Option<&'a [u8]>,
    fetch_site: Option<&'a [u8]>,
    is_preflight: bool,
    length: Option<u64>,
    has_coding: bool,
    chunked: bool,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    accepts_json: bool,
    idempotency_key: Option<&'a [u8]>,
    invalid_key: bool,
    if_none_match: Option<&'a [u8]>,
    request_id: Option<&'a [u8]>,
    traceparent: Option<&'a str>,
}

impl<'a> Fields<'a> {
    fn add(&mut self, name: &str, value: &'a [u8]) -> Result<(), Problem> {
        // Matching on the length first avoids most comparisons of names.
        match name.len() {
            4 if name.eq_ignore_ascii_case("host") => {
                (self.hosts, self.host) = (self.hosts + 1, value);
                if !is_authority(value) {
                    return Err(Problem::MalformedHost);
                }
            }
            // An invalid value is ignored: these two fields only help to identify a request in log lines and answers.
            11 if name.eq_ignore_ascii_case("traceparent") => {
                self.traceparent = self.traceparent.or(traceparent(value))
            }
            12 if name.eq_ignore_ascii_case("x-request-id") => {
                let is_id = (1..=REQUEST_ID_BYTES_MAX).contains(&value.len()) && value.iter().all(u8::is_ascii_graphic);
                self.request_id = self.request_id.or(is_id.then_some(value));
            }
            14 if name.eq_ignore_ascii_case("content-length") => {
                let digits = !value.is_empty() && value.len() <= 18 && value.iter().all(u8::is_ascii_digit);
                if !digits || self.length.is_some() {
                    return Err(Problem::MalformedLength);
                }
                self.length = Some(value.iter().fold(0, |length, digit| length * 10 + u64::from(digit - b'0')));
            }
            17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                if self.has_coding {
                    return Err(Problem::MalformedCoding);
                }
                self.has_coding = true;
                self.chunked = value.eq_ignore_ascii_case(b"chunked");
                if !self.chunked {
                    let token = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
                    let known_shape = !value.is_empty() && value.iter().all(token);
                    return Err(if known_shape { Problem::UnknownCoding } else { Problem::MalformedCoding });
                }
            }
            10 if name.eq_ignore_ascii_case("connection") => {
                for option in value.split(|&byte| byte == b',').map(<[u8]>::trim_ascii) {
                    self.close |= option.eq_ignore_ascii_case(b"close");
                    self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
                }
            }
            6 if name.eq_ignore_ascii_case("accept") => {
                self.accepts_json |= value.split(|&byte| byte == b',').any(accepts_json);
            }
            6 if name.eq_ignore_ascii_case("expect") => {
                // RFC 9110 §10.1.1: 417 tells the client to repeat the request without the field. An empty or doubled
                // expectation gets it too, because a proxy may have read another expectation than this server.
                if self.expects_continue || !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(Problem::UnknownExpectation);
                }
                self.expects_continue = true;
            }
            6 if name.eq_ignore_ascii_case("origin") => {
                self.origin = Some(if self.origin.is_some() { b"null" } else { value });
            }
            14 if name.eq_ignore_ascii_case("sec-fetch-site") => self.fetch_site = Some(value),
            29 if name.eq_ignore_ascii_case("access-control-request-method") => self.is_preflight = true,
            15 if name.eq_ignore_ascii_case("idempotency-key") => {
                // Not an error of the framing: the route refuses it where a key has an effect.
                self.invalid_key |= value.is_empty() || self.idempotency_key.is_some();
                self.idempotency_key = Some(value);
            }
            13 if name.eq_ignore_ascii_case("if-none-match") => self.if_none_match = Some(value),
            _ => {}
        }
        Ok(())
    }

    fn is_cross_origin(&self) -> bool {
        match (self.fetch_site, self.origin) {
            (Some(site), _) => ![&b"same-origin"[..], b"none"].contains(&site),
            (None, None) => false,
            (None, Some(origin)) => {
                let authority = origin.strip_prefix(b"https://").or(origin.strip_prefix(b"http://"));
                !authority.is_some_and(|authority| authority.eq_ignore_ascii_case(self.host))
            }
        }
    }

    fn check(&self, is_http10: bool) -> Result<(), Problem> {
        let two_framings = self.has_coding && (self.length.is_some() || is_http10);
        let hosts = if is_http10 { 0..=1 } else { 1..=1 };
        match hosts.contains(&self.hosts) {
            _ if two_framings => Err(Problem::MalformedCoding),
            true => Ok(()),
            false => Err(Problem::MalformedHost),
        }
    }
}

// The tests of refused heads are in `tests/hostile`.
#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<Option<Head<'_>>, Problem> {
        parse_head(head.as_bytes())
    }

    #[test]
    fn a_head_is_read_whole() {
        let text = "POST /checkout?user_id=1&item_id=2 HTTP/1.1\r\nHost: shop\r\nAccept: text/html, application/json\r\n\
                    Idempotency-Key: k\r\nIf-None-Match: *\r\nContent-Length: 3\r\n\r\nabc";
        let head = parse(text).unwrap().unwrap();
        assert_eq!((head.method, head.path, head.query), (Method::Post, "/checkout", "user_id=1&item_id=2"));
        assert_eq!((head.framing, head.keep_alive, head.accepts_json), (Framing::Length(3), true, true));
        assert_eq!((head.key(), head.if_none_match), (Ok(Some(&b"k"[..])), Some(&b"*"[..])));
        assert_eq!(head.bytes, text.len() - 3);
        for length in 0..text.len() - 3 {
            assert_eq!(parse(&text[..length]), Ok(None), "cut at {length}");
        }
    }

    #[test]
    fn only_what_is_a_name_is_kept_as_one() {
        let fields = |id: &str, parent: &str| {
            let text = format!("GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: {id}\r\nTraceParent: {parent}\r\n\r\n");
            let head = parse(&text).unwrap().unwrap();
            (head.request_id.is_some(), head.traceparent.is_some())
        };
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(fields("a", good), (true, true));
        assert_eq!(fields(&"~".repeat(128), &good.replacen("00", "cc", 1)), (true, true));
        assert_eq!(fields("", &format!("cc{}-more", &good[2..])), (false, true));
        for id in ["", "a b", "a\tb", "\u{e9}", &"a".repeat(129)] {
            assert!(!fields(id, good).0, "{id}");
        }
        for parent in [
            "",
            "00",
            &good[..54],
            &format!("{good}-more"),
            &good.to_uppercase(),
            &good.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &good.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &good.replacen("00", "ff", 1),
            &good.replace('f', "g"),
        ] {
            assert!(!fields("a", parent).1, "{parent}");
        }
        let twice = "GET / HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\nX-Request-Id: b\r\n\r\n";
        assert_eq!(parse(twice).unwrap().unwrap().request_id, Some(&b"a"[..]), "the first one counts");
    }

    #[test]
    fn keep_alive_follows_the_version() {
        for (head, keeps) in [
            ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", true),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: Close\r\n\r\n", false),
            ("GET / HTTP/1.1\r\nHost: x\r\nConnection: x, close\r\n\r\n", false),
            ("GET / HTTP/1.0\r\n\r\n", false),
            ("GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(parse(head).unwrap().unwrap().keep_alive, keeps, "{head:?}");
        }
    }

    #[test]
    fn targets_may_be_absolute() {
        for (target, path, query) in [
            ("http://shop/sale?x", "/sale", "x"),
            ("https://shop", "/", ""),
            ("HTTP://shop/sale", "/sale", ""),
            ("hTTps://[::1]:443?x", "/", "x"),
            ("http://shop?x=/purchase", "/", "x=/purchase"),
            ("/a?b?c", "/a", "b?c"),
        ] {
            let text = format!("GET {target} HTTP/1.1\r\nHost: x\r\n\r\n");
            let head = parse(&text).unwrap().unwrap();
            assert_eq!((head.path, head.query), (path, query));
        }
    }
}
