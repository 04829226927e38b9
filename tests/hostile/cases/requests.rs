//! Cases of several requests on one connection, and of request parameters.

use super::*;

const TWENTY_AND_BAD: [&str; 21] = {
    let mut answers = ["200"; 21];
    answers[20] = "malformed-request";
    answers
};

pub fn connections() -> Vec<Case> {
    let then_poison = |poison: &str| format!("{PURCHASE}Content-Length: 0\r\n\r\n{poison}");
    let closing = |fields: &str| format!("{PURCHASE}{fields}\r\n\r\n{CHECKOUT}\r\n");
    let many = LIVE.repeat(20);
    let many_and_bad = format!("{many}GET\n");
    [
        dressed(
            &["code-unknown", "malformed-request"],
            Then::Closes,
            &[
                ("a NUL after an empty body", "\0"),
                ("a space after an empty body", " GET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("a bare line feed after an empty body", "\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
                ("an invalid request after a valid one", "rubbish\n\n"),
                ("an invalid line end after a valid request", "GET /livez HTTP/1.1\nHost: x\n\n"),
                ("no host in the request after a valid one", "GET /livez HTTP/1.1\r\n\r\n"),
                ("two empty lines after a valid request", "\r\n\r\n"),
            ],
            then_poison,
        ),
        dressed(
            &["code-unknown", "not-implemented"],
            Then::Closes,
            &[(
                "a letter before the method after an empty body",
                "XPOST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n\r\n",
            )],
            then_poison,
        ),
        dressed(
            &["code-unknown"],
            Then::Waits,
            &[
                ("a single letter after an empty body", "X"),
                ("half a request after a valid one", "POST /checkout?user_id=66&item_id=66 HTT"),
            ],
            then_poison,
        ),
        dressed(
            ASKED,
            Then::Closes,
            &[
                ("close", "Connection: close"),
                ("close in capitals", "Connection: CLOSE"),
                ("close in a list", "Connection: keep-alive, close"),
                ("close before another option", "Connection: close,keep-alive"),
                ("close in a second field", "Connection: keep-alive\r\nConnection: close"),
                ("close between spaces and tabs", "Connection: x ,\t close ,"),
            ],
            closing,
        ),
        served(&[
            ("keep-alive", "Connection: keep-alive\r\n\r\n"),
            ("options that only resemble close", "Connection: closed, \"close\"\r\n\r\n"),
            (
                "an upgrade to HTTP/2",
                "Connection: upgrade, http2-settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n\r\n",
            ),
            ("an upgrade to WebSocket", "Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"),
            ("an expectation and its body", "Expect: 100-continue\r\nContent-Length: 5\r\n\r\nhello"),
            ("an expectation in capitals", "Expect: 100-CONTINUE\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
            ("an expectation without a body", "Expect: 100-continue\r\n\r\n"),
        ]),
        refused_fields(
            &["unknown-expectation"],
            &[
                ("an unknown expectation", "Expect: a-miracle"),
                ("an expectation in a list", "Expect: 100-continue, a-miracle"),
                ("an empty expectation", "Expect:"),
                ("an expectation of spaces", "Expect: \t "),
                ("an expectation of a comma", "Expect: ,"),
                ("an expectation and a comma", "Expect: 100-continue,"),
                ("two expectations", "Expect: 100-continue\r\nExpect: 100-continue"),
                ("two expectations in a list", "Expect: 100-continue, 100-continue"),
                ("an expectation and an empty one", "Expect: 100-continue\r\nExpect:"),
                ("an expectation and an unknown one", "Expect: 100-continue\r\nExpect: a-miracle"),
                ("an expectation behind a word", "Expect: y 100-continue"),
                ("an expectation with a value", "Expect: 100-continue=1"),
                ("an expectation with a parameter", "Expect: 100-continue;q=1"),
            ],
        ),
        refused_fields(
            BODY_TOO_LARGE,
            &[("an expectation with a body that is too large", "Expect: 100-continue\r\nContent-Length: 65537")],
        ),
        group(
            SHOWN,
            Then::GoesOn,
            &[
                ("a body on GET", "GET /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
                (
                    "chunks on GET",
                    "GET /livez HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n",
                ),
                ("a body on HEAD", "HEAD /livez HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello"),
                ("HTTP/1.0 with keep-alive", "GET /livez HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n"),
            ],
        ),
        group(
            SHOWN,
            Then::Closes,
            &[
                ("HTTP/1.0", "GET /livez HTTP/1.0\r\n\r\nGET /livez HTTP/1.0\r\n\r\n"),
                ("HTTP/1.0 with keep-alive and close", "GET /livez HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n"),
                (
                    "an expectation in HTTP/1.0",
                    "GET /livez HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nok",
                ),
            ],
        ),
        group(&["200"; 20], Then::GoesOn, &[("twenty requests in one write", &many)]),
        group(&TWENTY_AND_BAD, Then::Closes, &[("twenty requests and an invalid one in one write", &many_and_bad)]),
    ]
    .concat()
}

pub fn parameters() -> Vec<Case> {
    const ODD_NUMBERS: &[(&str, &str)] = &[
        ("an empty value", ""),
        ("a plus", "+1"),
        ("a minus", "-1"),
        ("an exponent", "1e3"),
        ("leading zeros", "007"),
        ("two zeros", "00"),
        ("a fraction", "1.0"),
        ("a prefix", "0x1"),
        ("letters", "x"),
        ("an encoded space", "%201"),
        ("Arabic digits", "%D9%A1"),
        ("a full-width digit", "%EF%BC%91"),
        ("a separator", "1_0"),
        ("a plus for a space", "1+"),
        ("2^64", "18446744073709551616"),
        ("2^63", "9223372036854775808"),
        ("thirty digits", "100000000000000000000000000001"),
    ];
    let values = |before: &'static str, after: &'static str| {
        let named: Vec<_> = ODD_NUMBERS.iter().map(|(name, _)| format!("{name} in {before}")).collect();
        let table: Vec<_> = named.iter().zip(ODD_NUMBERS).map(|(name, (_, value))| (name.as_str(), *value)).collect();
        dressed(INVALID, Then::GoesOn, &table, |value| {
            format!("POST /checkout?{before}={value}{after} HTTP/1.1\r\nHost: x\r\n\r\n")
        })
    };
    [
        values("user_id", "&item_id=66"),
        values("user_id=66&item_id", ""),
        values("user_id=66&id", ""),
        dressed(
            INVALID,
            Then::GoesOn,
            &[
                ("no parameters", ""),
                ("only a question mark", "?"),
                ("no user", "?item_id=66"),
                ("two users", "?user_id=66&user_id=67&item_id=66"),
                ("two identical users", "?user_id=66&item_id=66&user_id=66"),
                ("two items", "?user_id=66&item_id=66&item_id=67"),
                ("an item under two names", "?user_id=66&item_id=66&id=66"),
                ("a user without a value", "?user_id&item_id=66"),
                ("a user in brackets", "?user_id[]=66&item_id=66"),
                ("a name in capitals", "?USER_ID=66&item_id=66"),
                ("an encoded reserved character in a name", "?user_id%3D66&item_id=66"),
                ("semicolons", "?user_id=66;item_id=66"),
                ("a second question mark", "?user_id=66?item_id=66"),
                ("an encoded separator", "?user_id=66%26item_id=66"),
                ("two equals signs", "?user_id==66&item_id=66"),
                ("an item that the sale does not have", "?user_id=66&item_id=4294967295"),
                ("an item of 2^32 + 66", "?user_id=66&item_id=4294967362"),
            ],
            |query| format!("POST /checkout{query} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        dressed(
            INVALID,
            Then::GoesOn,
            &[
                ("no code", ""),
                ("an empty code", "?code="),
                ("a code in braces", "?code={00027232-4538-87b2-840d-b281356ddb74}"),
                ("a code in encoded braces", "?code=%7b00027232-4538-87b2-840d-b281356ddb74%7d"),
                ("a code without hyphens", "?code=00027232453887b2840db281356ddb74"),
                ("a code with misplaced hyphens", "?code=000272324-538-87b2-840d-b281356ddb74"),
                ("a code as a URN", "?code=urn:uuid:00027232-4538-87b2-840d-b281356ddb74"),
                ("a code that is too short", "?code=00027232-4538-87b2-840d-b281356ddb7"),
                ("a code that is too long", "?code=00027232-4538-87b2-840d-b281356ddb740"),
                ("a code with a letter that is not hexadecimal", "?code=0002723g-4538-87b2-840d-b281356ddb74"),
                ("two identical codes", "?code=00027232-4538-87b2-840d-b281356ddb74&code=00027232-4538-87b2-840d-b281356ddb74"),
                ("a code and an empty one", "?code=00027232-4538-87b2-840d-b281356ddb74&code="),
            ],
            |query| format!("POST /purchase{query} HTTP/1.1\r\nHost: x\r\n\r\n"),
        ),
        group(NOT_ALLOWED, Then::GoesOn, &[
            ("a checkout by GET", "GET /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n\r\n"),
            ("a checkout by GET with a method override", "GET /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\nX-HTTP-Method-Override: POST\r\n\r\n"),
        ]),
        group(INVALID, Then::GoesOn, &[
            ("parameters in the body", "POST /checkout HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 21\r\n\r\nuser_id=66&item_id=66"),
        ]),
    ]
    .concat()
}
