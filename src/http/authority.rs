//! Checks the authority of a request, in `Host` or in an absolute target: a host and an optional port (RFC 3986 §3.2.2
//! and §3.2.3, RFC 9110 §7.2).
//!
//! Two differences to the grammar: a comma is refused, because two `Host` fields that a proxy has joined look like one
//! name with a comma; and a port without a host is refused (RFC 9110 §4.2.1).

use std::net::Ipv6Addr;

/// Whether a byte is part of a name as it is: unreserved characters and sub-delimiters of RFC 3986 §2, but no comma.
const IN_NAME: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = (byte as u8).is_ascii_alphanumeric();
        byte += 1;
    }
    let others = b"-._~!$&'()*+;=";
    let mut at = 0;
    while at < others.len() {
        table[others[at] as usize] = true;
        at += 1;
    }
    table
};

/// Returns whether `value` is a host with an optional port, or empty.
pub fn is_authority(value: &[u8]) -> bool {
    let name_bytes = value.iter().position(|byte| !IN_NAME[usize::from(*byte)]).unwrap_or(value.len());
    match &value[name_bytes..] {
        [] => true,
        [b':', port @ ..] => name_bytes > 0 && port.iter().all(u8::is_ascii_digit),
        _ => is_rare_authority(value),
    }
}

/// Returns whether `value` is an address in brackets or a name with percent encoding, with an optional port.
fn is_rare_authority(value: &[u8]) -> bool {
    let end_of = |mark: u8| value.iter().position(|byte| *byte == mark);
    let (is_host, port) = match value.strip_prefix(b"[").zip(end_of(b']')) {
        Some((_, end)) => (is_address(&value[1..end]), &value[end + 1..]),
        None => {
            let (name, port) = value.split_at(end_of(b':').unwrap_or(value.len()));
            (is_encoded_name(name), port)
        }
    };
    let is_port = |port: &[u8]| port.iter().all(u8::is_ascii_digit);
    is_host && (port.is_empty() || port.strip_prefix(b":").is_some_and(is_port))
}

/// Returns whether `text` is an IPv6 address without a zone, or an address of a later version.
fn is_address(text: &[u8]) -> bool {
    let Some((b'v' | b'V', future)) = text.split_first() else {
        return str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok());
    };
    let mut parts = future.splitn(2, |byte| *byte == b'.');
    let is_version = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_hexdigit);
    let is_text =
        |part: &[u8]| !part.is_empty() && part.iter().all(|byte| *byte == b':' || IN_NAME[usize::from(*byte)]);
    parts.next().is_some_and(is_version) && parts.next().is_some_and(is_text)
}

fn is_encoded_name(name: &[u8]) -> bool {
    let mut parts = name.split(|byte| *byte == b'%');
    let is_plain = |part: &[u8]| part.iter().all(|byte| IN_NAME[usize::from(*byte)]);
    let is_encoded = |part: &[u8]| matches!(part, [a, b, ..] if a.is_ascii_hexdigit() && b.is_ascii_hexdigit());
    !name.is_empty() && parts.next().is_some_and(is_plain) && parts.all(|part| is_encoded(part) && is_plain(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn authorities_follow_their_grammar() {
        for valid in [
            "",
            "x",
            "x:",
            "x:80",
            "x:99999",
            "shop.example.",
            "127.0.0.1:8080",
            "999.1",
            "a_b-c~d",
            "!$&'()*+;=",
            "a%41",
            "%c3%A9:1",
            "[::1]",
            "[::1]:",
            "[::1]:80",
            "[2001:DB8::1]",
            "[::ffff:1.2.3.4]",
            "[v1.x]",
            "[VF.a:b]:1",
        ] {
            assert!(is_authority(valid.as_bytes()), "{valid}");
        }
        for invalid in [
            ":",
            ":80",
            "::1",
            "a:b",
            "a:80:90",
            "a:-1",
            "a: 1",
            "a:1a",
            "1:2:3",
            "<a>",
            "a,b",
            "a b",
            "a\tb",
            "u@x",
            "x/",
            "x?",
            "x#",
            "x\\",
            "x\"",
            "{x}",
            "x|y",
            "x^y",
            "`x`",
            "x\0",
            "\u{e9}",
            "a%",
            "a%4",
            "a%zz",
            "%4g:1",
            "a%41:b",
            "a%41<",
            "[",
            "]",
            "[]",
            "[]:80",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]80",
            "[::1]:x",
            "[::1]:80:90",
            "[::1]]",
            "[[::1]]",
            "x[::1]",
            "[x]",
            "[1.2.3.4]",
            "[::g]",
            "[1::2::3]",
            "[fe80::1%25eth0]",
            "[fe80::1%eth0]",
            "[v1]",
            "[v1.]",
            "[v.x]",
            "[vg.x]",
            "[v1.<]",
            "[v1.x",
        ] {
            assert!(!is_authority(invalid.as_bytes()), "{invalid}");
        }
    }
}
