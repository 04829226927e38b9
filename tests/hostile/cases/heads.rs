//! Cases of heads: malformed lines, request lines, and hosts.

use super::*;

pub fn lines() -> Vec<Case> {
    [
        refused_fields(
            MALFORMED,
            &[
                ("a bare line feed in a value", "A: b\nC: d"),
                ("a bare line feed before a length", "A: b\nContent-Length: 5"),
                ("a lone carriage return in a value", "A: b\rc"),
                ("a lone carriage return before a coding", "A: b\rTransfer-Encoding: chunked"),
                ("two carriage returns", "A: b\r"),
                ("a NUL in a value", "A: b\0c"),
                ("a NUL in a name", "A\0: b"),
                ("a control character in a value", "A: \u{1}"),
                ("a DEL character in a value", "A: \u{7f}"),
                ("a folded line", "A: b\r\n c"),
                ("a line folded with a tab", "A: b\r\n\tc"),
                ("a folded line of spaces", "A: b\r\n "),
                ("no colon", "A b"),
                ("a single word without a colon", "A"),
                ("no name", ": b"),
                ("only a colon", ":"),
                ("a space before the colon", "A : b"),
                ("a tab before the colon", "A\t: b"),
                ("a space in a name", "A B: c"),
                ("a tab before a name", "\tA: b"),
                ("a name that is not ASCII", "\u{c3}\u{a9}: b"),
                ("a name in brackets", "(A): b"),
                ("a name with a slash", "A/B: c"),
                ("a name in quotes", "\"A\": b"),
                ("a carriage return in a name", "A\rB: c"),
            ],
        ),
        refused(
            MALFORMED,
            &[
                ("bare line feeds only", "GET /livez HTTP/1.1\nHost: x\n\n"),
                ("a bare line feed after the request line", "GET /livez HTTP/1.1\nHost: x\r\n\r\n"),
                ("a bare line feed at the end of the head", "GET /livez HTTP/1.1\r\nHost: x\r\n\n"),
                ("a missing carriage return at the end of the head", "GET /livez HTTP/1.1\r\nHost: x\n\r\n"),
                ("a lone carriage return after the request line", "GET /livez HTTP/1.1\rHost: x\r\n\r\n"),
                ("a folded first field", "GET /livez HTTP/1.1\r\n Host: x\r\n\r\n"),
                ("a space before the request", " GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a tab before the request", "\tGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("two empty lines before the request", "\r\n\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a bare line feed before the request", "\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a lone carriage return before the request", "\rGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a NUL before the request", "\0GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a byte order mark before the request", "\u{ef}\u{bb}\u{bf}GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
            ],
        ),
        group(&[], Then::GoesOn, &[("no bytes", "")]),
        group(
            SHOWN,
            Then::GoesOn,
            &[
                ("an empty line before the request", "\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                (
                    "an empty value, a value after spaces and tabs, and a value that is not ASCII",
                    "GET /livez HTTP/1.1\r\nHost: x\r\nA:\r\nB: \t c\r\nD: \u{e9}\r\n\r\n",
                ),
            ],
        ),
        group(
            &[],
            Then::Waits,
            &[
                ("half a method", "PO"),
                ("a line end without its line feed", "GET /livez HTTP/1.1\r"),
                ("a head without the empty line", "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n"),
                (
                    "a head with half of the empty line",
                    "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n\r",
                ),
                (
                    "half a body",
                    "POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhell",
                ),
            ],
        ),
    ]
    .concat()
}

pub fn request_lines() -> Vec<Case> {
    let hello = "\u{16}\u{3}\u{1}\0\u{a5}\u{1}\0\0\u{a1}\u{3}\u{3}";
    let line = |line: &str| format!("{line}\r\nHost: x\r\n\r\n{CHECKOUT}\r\n");
    [
        dressed(
            MALFORMED,
            Then::Closes,
            &[
                ("a tab after the method", "GET\t/livez HTTP/1.1"),
                ("a tab before the version", "GET /livez\tHTTP/1.1"),
                ("a vertical tab after the method", "GET\u{b}/livez HTTP/1.1"),
                ("two spaces after the method", "GET  /livez HTTP/1.1"),
                ("two spaces before the version", "GET /livez  HTTP/1.1"),
                ("a space after the version", "GET /livez HTTP/1.1 "),
                ("a space in the target", "GET /livez x HTTP/1.1"),
                ("no target", "GET HTTP/1.1"),
                ("no target, only its spaces", "GET  HTTP/1.1"),
                ("no method", "/livez HTTP/1.1"),
                ("no method, only its space", " /livez HTTP/1.1"),
                ("a method with a bracket", "GE(T /livez HTTP/1.1"),
                ("a method with a colon", "GET: /livez HTTP/1.1"),
                ("a method that is not ASCII", "G\u{c9}T /livez HTTP/1.1"),
                ("a fragment", "GET /livez#x HTTP/1.1"),
                ("a fragment in the query", "GET /livez?a#b HTTP/1.1"),
                ("a backslash", "GET \\livez HTTP/1.1"),
                ("a backslash in the path", "GET /a\\..\\livez HTTP/1.1"),
                ("a target without a slash", "GET livez HTTP/1.1"),
                ("a target that is a query", "GET ?a=b HTTP/1.1"),
                ("a target that is not ASCII", "GET /\u{c3}\u{a9} HTTP/1.1"),
                ("a NUL in the target", "GET /livez\0 HTTP/1.1"),
                ("a DEL character in the target", "GET /livez\u{7f} HTTP/1.1"),
                ("a carriage return in the target", "GET /liv\rez HTTP/1.1"),
                ("HTTP/0.9", "GET /livez"),
                ("HTTP/0.9 with a space", "GET /livez "),
                ("a version in lower case", "GET /livez http/1.1"),
                ("a version in mixed case", "GET /livez Http/1.1"),
                ("a version with two digits", "GET /livez HTTP/1.10"),
                ("a version without a dot", "GET /livez HTTP/11"),
                ("a version without a minor number", "GET /livez HTTP/1"),
                ("a version with a comma", "GET /livez HTTP/1,1"),
                ("a version with a minus", "GET /livez HTTP/-1.1"),
                ("a version with a NUL", "GET /livez HTTP/1.1\0"),
                ("an unknown protocol", "GET /livez ICE/1.0"),
                ("HTTPS as the protocol", "GET /livez HTTPS/1.1"),
                ("a SIP request", "OPTIONS sip:x SIP/2.0"),
                ("CONNECT", "CONNECT x:443 HTTP/1.1"),
                ("CONNECT to a path", "CONNECT /checkout?user_id=66&item_id=66 HTTP/1.1"),
                ("an asterisk as the target of GET", "GET * HTTP/1.1"),
                ("an asterisk followed by a letter", "OPTIONS *x HTTP/1.1"),
                ("an absolute target of another scheme", "GET ftp://x/livez HTTP/1.1"),
                ("an absolute target without a host", "GET http:///livez HTTP/1.1"),
                ("an absolute target with user info", "GET http://u:p@x/livez HTTP/1.1"),
                ("an absolute target with a list of hosts", "GET http://x,y/livez HTTP/1.1"),
                ("an absolute target with one slash", "GET http:/x/livez HTTP/1.1"),
            ],
            line,
        ),
        dressed(
            UNKNOWN_VERSION,
            Then::Closes,
            &[
                ("HTTP/1.2", "GET /livez HTTP/1.2"),
                ("HTTP/2.0", "GET /livez HTTP/2.0"),
                ("HTTP/9.9", "GET /livez HTTP/9.9"),
                ("HTTP/0.9 with a version", "GET /livez HTTP/0.9"),
                ("HTTP/0.0", "GET /livez HTTP/0.0"),
            ],
            line,
        ),
        group(
            UNKNOWN_VERSION,
            Then::Closes,
            &[("the connection preface of HTTP/2", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0")],
        ),
        group(
            MALFORMED,
            Then::Closes,
            &[
                ("a TLS hello", hello),
                ("a TLS hello in the format of SSL 2.0", "\u{80}\u{2e}\u{1}\u{3}\u{1}"),
                ("an SSL request of the Postgres protocol", "\0\0\0\u{8}\u{4}\u{d2}\u{16}\u{2f}"),
                ("HTTP/0.9 without header fields", "GET /livez\r\n"),
                ("zeros", "\0\0\0\0\0\0\0\0"),
            ],
        ),
        group(
            NOT_ALLOWED,
            Then::GoesOn,
            &[
                ("TRACE", "TRACE /livez HTTP/1.1\r\nHost: x\r\nCookie: secret=1\r\n\r\n"),
                ("PUT", "PUT /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
                ("PATCH", "PATCH /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"),
            ],
        ),
        dressed(
            NOT_IMPLEMENTED,
            Then::Closes,
            &[
                ("an unknown method", "BREW /livez HTTP/1.1"),
                ("an unknown method and an unknown path", "BREW /nothing HTTP/1.1"),
                ("an unknown method and an asterisk", "BREW * HTTP/1.1"),
                ("a method in lower case", "get /livez HTTP/1.1"),
                ("a method in mixed case", "Post /checkout?user_id=66&item_id=66 HTTP/1.1"),
                ("a method that begins like another", "POSTS /checkout?user_id=66&item_id=66 HTTP/1.1"),
                ("a method of WebDAV", "PROPFIND /livez HTTP/1.1"),
                ("a method of punctuation", "!#$%&'*+-.^_`|~ /livez HTTP/1.1"),
                ("an unknown method in HTTP/1.0", "BREW /livez HTTP/1.0"),
            ],
            line,
        ),
        group(
            &["204"],
            Then::GoesOn,
            &[
                ("a body on OPTIONS", "OPTIONS /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
                ("OPTIONS for the whole server", "OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n"),
            ],
        ),
        dressed(
            NOT_FOUND,
            Then::GoesOn,
            &[
                ("an encoded NUL", "GET /livez%00 HTTP/1.1"),
                ("an encoded line end", "GET /livez%0d%0aHost:%20y HTTP/1.1"),
                ("an encoded letter", "GET /%6civez HTTP/1.1"),
                ("an encoded slash", "GET /%2flivez HTTP/1.1"),
                ("an incomplete percent encoding", "GET /livez% HTTP/1.1"),
                ("a path with dot segments", "GET /../livez HTTP/1.1"),
                ("two leading slashes", "GET //livez HTTP/1.1"),
                ("a slash at the end", "POST /checkout/?user_id=66&item_id=66 HTTP/1.1"),
                ("a path in capitals", "GET /LIVEZ HTTP/1.1"),
                ("a path parameter", "GET /livez;a=b HTTP/1.1"),
                ("an absolute target without a path", "GET http://x?/livez HTTP/1.1"),
            ],
            |line| format!("{line}\r\nHost: x\r\n\r\n"),
        ),
        group(
            SHOWN,
            Then::GoesOn,
            &[
                ("an absolute target", "GET http://x/livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("an absolute target of another host", "GET http://y:80/livez?z HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a query that is a path", "GET /livez?/../checkout?user_id=66 HTTP/1.1\r\nHost: x\r\n\r\n"),
            ],
        ),
    ]
    .concat()
}

pub fn hosts() -> Vec<Case> {
    let with = |fields: &str| format!("POST /checkout?user_id=66&item_id=66 HTTP/1.1\r\n{fields}\r\n{CHECKOUT}\r\n");
    [
        dressed(
            MALFORMED,
            Then::Closes,
            &[
                ("no host", ""),
                ("two hosts", "Host: x\r\nHost: y\r\n"),
                ("two identical hosts", "Host: x\r\nhost: x\r\n"),
                ("a list of hosts", "Host: x, y\r\n"),
                ("a list of hosts without a space", "Host: x,y\r\n"),
                ("a host with user info", "Host: u@x\r\n"),
                ("a host with a path", "Host: x/y\r\n"),
                ("a host with a query", "Host: x?y\r\n"),
                ("a host with a fragment", "Host: x#y\r\n"),
                ("a host with a backslash", "Host: x\\y\r\n"),
                ("a host with a space", "Host: x y\r\n"),
                ("a host with a tab", "Host: x\ty\r\n"),
                ("a host that is a URL", "Host: http://x\r\n"),
                ("a host that is not ASCII", "Host: \u{e9}\r\n"),
                ("a space before the host's colon", "Host : x\r\n"),
                ("a host on a folded line", "Host:\r\n x\r\n"),
            ],
            with,
        ),
        refused(MALFORMED, &[("two hosts in HTTP/1.0", "GET /livez HTTP/1.0\r\nHost: x\r\nHost: x\r\n\r\n")]),
        group(
            SHOWN,
            Then::GoesOn,
            &[
                ("an empty host", "GET /livez HTTP/1.1\r\nHost:\r\n\r\n"),
                ("a host with a port", "GET /livez HTTP/1.1\r\nHost: x:8080\r\n\r\n"),
                ("a host in brackets", "GET /livez HTTP/1.1\r\nHOST: [::1]:8080\r\n\r\n"),
            ],
        ),
        group(SHOWN, Then::Closes, &[("no host in HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\n")]),
    ]
    .concat()
}
