//! Cases of bodies: ambiguous and invalid framing, chunks, and sizes.

use super::*;

pub fn framing() -> Vec<Case> {
    let request_in_body = format!("Content-Length: {}\r\n\r\n{CHECKOUT}\r\n", CHECKOUT.len() + 2);
    [
        refused_fields(
            MALFORMED,
            &[
                ("a length and a coding", "Content-Length: 5\r\nTransfer-Encoding: chunked"),
                ("a coding and a length", "Transfer-Encoding: chunked\r\nContent-Length: 5"),
                ("a length of zero and a coding", "Content-Length: 0\r\nTransfer-Encoding: chunked"),
                ("two identical lengths", "Content-Length: 5\r\nContent-Length: 5"),
                ("two lengths that differ", "Content-Length: 5\r\nContent-Length: 6"),
                ("two lengths, one in capitals", "Content-Length: 5\r\nCONTENT-LENGTH: 0"),
                ("a list of lengths", "Content-Length: 5, 5"),
                ("a list of lengths that differ", "Content-Length: 5,6"),
                ("an empty length", "Content-Length:"),
                ("a length of spaces", "Content-Length:   "),
                ("a length with a plus", "Content-Length: +5"),
                ("a length with a minus", "Content-Length: -5"),
                ("a hexadecimal length", "Content-Length: 0x5"),
                ("a length in letters", "Content-Length: five"),
                ("a length with a space in it", "Content-Length: 5 5"),
                ("a length with a fraction", "Content-Length: 5.0"),
                ("a length with an exponent", "Content-Length: 5e0"),
                ("a length in quotes", "Content-Length: \"5\""),
                ("a length with a separator", "Content-Length: 1_0"),
                ("a length in Arabic digits", "Content-Length: \u{d9}\u{a5}"),
                ("a length with a NUL", "Content-Length: 5\0"),
                ("a length after a vertical tab", "Content-Length: \u{b}5"),
                ("a length of 2^64", "Content-Length: 18446744073709551616"),
                ("a length of 2^64 + 5", "Content-Length: 18446744073709551621"),
                ("a length of thirty digits", "Content-Length: 100000000000000000000000000005"),
                ("a space before the length's colon", "Content-Length : 5"),
                ("two identical codings", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked"),
                ("chunked twice in a list", "Transfer-Encoding: chunked, chunked"),
                ("chunked before another coding", "Transfer-Encoding: chunked, gzip"),
                ("chunked after another coding", "Transfer-Encoding: gzip, chunked"),
                ("chunked with a comma", "Transfer-Encoding: chunked,"),
                ("a comma before chunked", "Transfer-Encoding: ,chunked"),
                ("chunked in quotes", "Transfer-Encoding: \"chunked\""),
                ("chunked with a parameter", "Transfer-Encoding: chunked;q=1"),
                ("chunked after a vertical tab", "Transfer-Encoding: \u{b}chunked"),
                ("chunked before a form feed", "Transfer-Encoding: chunked\u{c}"),
                ("chunked and a NUL", "Transfer-Encoding: chunked\0"),
                ("chunked and a no-break space", "Transfer-Encoding: chunked\u{a0}"),
                ("an empty coding", "Transfer-Encoding:"),
                ("a coding on a folded line", "Transfer-Encoding:\r\n chunked"),
                ("a space before the coding's colon", "Transfer-Encoding : chunked"),
                ("a tab before the coding's colon", "Transfer-Encoding\t: chunked"),
            ],
        ),
        refused_fields(
            UNKNOWN_CODING,
            &[
                ("an unknown coding", "Transfer-Encoding: gzip"),
                ("the coding identity", "Transfer-Encoding: identity"),
                ("a coding that ends like chunked", "Transfer-Encoding: xchunked"),
                ("a coding that begins like chunked", "Transfer-Encoding: chunkedx"),
                ("chunked with a dash", "Transfer-Encoding: -chunked"),
            ],
        ),
        refused(
            MALFORMED,
            &[
                ("a coding in HTTP/1.0", "POST /checkout HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
                (
                    "a coding in HTTP/1.0 with keep-alive",
                    "POST / HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                ),
                (
                    "a length and a coding in HTTP/1.0",
                    "POST / HTTP/1.0\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
                ),
            ],
        ),
        served(&[
            ("a length of zero", "Content-Length: 0\r\n\r\n"),
            ("a request in a body", &request_in_body),
            ("a length with leading zeros", "Content-Length: 005\r\n\r\nhello"),
            ("a length between spaces and tabs", "Content-Length: \t 5 \t\r\n\r\nhello"),
            ("fields whose names resemble Content-Length", "Content_Length: 5\r\nX-Content-Length: 5\r\n\r\n"),
            ("chunked in capitals", "TRANSFER-ENCODING: CHUNKED\r\n\r\n0\r\n\r\n"),
            ("a length named as a connection option", "Connection: content-length\r\nContent-Length: 5\r\n\r\nhello"),
        ]),
        group(
            SHOWN,
            Then::Closes,
            &[("a length in HTTP/1.0", "GET /livez HTTP/1.0\r\nContent-Length: 5\r\n\r\nhello")],
        ),
    ]
    .concat()
}

pub fn chunks() -> Vec<Case> {
    let long_extension = format!("1;{}\r\nx\r\n0\r\n\r\n", "x".repeat(300));
    let long_size = format!("{}1\r\nx\r\n0\r\n\r\n", "0".repeat(300));
    let zeros = format!("{}1\r\nx\r\n0\r\n\r\n", "0".repeat(200));
    let many_extensions = format!("1;{}\r\nx\r\n", "x".repeat(200)).repeat(50);
    let many_trailers = format!("0\r\n{}\r\n", "A: b\r\n".repeat(2_000));
    let endless_trailer = format!("0\r\nA: {}", "x".repeat(9 * 1024));
    let much = format!("8000\r\n{}\r\n8001\r\n", "x".repeat(0x8000));
    let head = "Transfer-Encoding: chunked\r\n\r\n";
    [
        dressed(
            MALFORMED,
            Then::Closes,
            &[
                ("no chunk size", "\r\n0\r\n\r\n"),
                ("a chunk size in letters", "g\r\n0\r\n\r\n"),
                ("a negative chunk size", "-1\r\n\r\n0\r\n\r\n"),
                ("a chunk size with a plus", "+1\r\nx\r\n0\r\n\r\n"),
                ("a chunk size with a prefix", "0x1\r\nx\r\n0\r\n\r\n"),
                ("a space before the chunk size", " 1\r\nx\r\n0\r\n\r\n"),
                ("a space after the chunk size", "1 \r\nx\r\n0\r\n\r\n"),
                ("a tab after the chunk size", "1\t\r\nx\r\n0\r\n\r\n"),
                ("a chunk size with a separator", "1_0\r\n0123456789abcdef\r\n0\r\n\r\n"),
                ("a chunk size with a fraction", "1.0\r\nx\r\n0\r\n\r\n"),
                ("a chunk size of 301 digits", &long_size),
                ("a bare line feed after the chunk size", "1\nx\r\n0\r\n\r\n"),
                ("a bare carriage return after the chunk size", "1\rx\r\n0\r\n\r\n"),
                ("a NUL after the chunk size", "1\0\r\nx\r\n0\r\n\r\n"),
                ("more data than the chunk size", "1\r\nxy\r\n0\r\n\r\n"),
                ("less data than the chunk size", "3\r\nx\r\n0\r\n\r\n!"),
                ("no line end after the data", "1\r\nx0\r\n\r\n"),
                ("a bare line feed after the data", "1\r\nx\n0\r\n\r\n"),
                ("a bare carriage return after the data", "1\r\nx\r0\r\n\r\n"),
                ("no empty line after the last chunk", "0\r\nPOST"),
                ("a bare line feed as the last line", "0\r\n\n"),
                ("a carriage return and a letter as the last line", "0\r\n\rx"),
                ("an extension without a size", ";a=b\r\n0\r\n\r\n"),
                ("an extension with a control character", "1;\u{1}\r\nx\r\n0\r\n\r\n"),
                ("an extension with a bare line feed", "1;a\nb\r\nx\r\n0\r\n\r\n"),
                ("an extension with a bare carriage return", "1;a\rb\r\nx\r\n0\r\n\r\n"),
                ("an extension that is not ASCII", "1;\u{e9}\r\nx\r\n0\r\n\r\n"),
                ("an extension of 300 bytes", &long_extension),
                ("a semicolon without an extension", "1;\r\nx\r\n0\r\n\r\n"),
                ("a semicolon and a space", "1; \r\nx\r\n0\r\n\r\n"),
                ("two semicolons", "1;;a\r\nx\r\n0\r\n\r\n"),
                ("an extension without a name", "1;=b\r\nx\r\n0\r\n\r\n"),
                ("an extension without a value", "1;a=\r\nx\r\n0\r\n\r\n"),
                ("an extension with a bracket in its name", "1;bad[=x\r\nx\r\n0\r\n\r\n"),
                ("an extension with a bracket in its value", "1;a=[\r\nx\r\n0\r\n\r\n"),
                ("an extension with two equals signs", "1;a==b\r\nx\r\n0\r\n\r\n"),
                ("an extension with a quoted name", "1;\"a\"=b\r\nx\r\n0\r\n\r\n"),
                ("an extension with two words as its name", "1;a b\r\nx\r\n0\r\n\r\n"),
                ("an extension with two words as its value", "1;a=b c\r\nx\r\n0\r\n\r\n"),
                ("an extension with a quote that does not end", "1;a=\"b\r\nx\r\n0\r\n\r\n"),
                ("an extension with a line end after a backslash", "1;a=\"\\\r\n\"\r\nx\r\n0\r\n\r\n"),
                ("an extension with a letter after its quote", "1;a=\"b\"c\r\nx\r\n0\r\n\r\n"),
                ("an extension with a quote in a token", "1;a=b\"c\"\r\nx\r\n0\r\n\r\n"),
                ("an extension with a control character in quotes", "1;a=\"\u{7f}\"\r\nx\r\n0\r\n\r\n"),
                ("an extension with a space at its end", "1;a=b \r\nx\r\n0\r\n\r\n"),
                ("an extension without a semicolon", "1 a=b\r\nx\r\n0\r\n\r\n"),
                ("an extension after a comma", "1,a=b\r\nx\r\n0\r\n\r\n"),
                ("a semicolon after the last chunk size", "0;\r\n\r\n"),
                ("a trailer without a name", "0\r\n: x\r\n\r\n"),
                ("a trailer without a colon", "0\r\nA\r\n\r\n"),
                ("a trailer with a space before its colon", "0\r\nA : b\r\n\r\n"),
                ("a trailer with a space before its name", "0\r\n A: b\r\n\r\n"),
                ("a trailer with a bracket in its name", "0\r\nA[: b\r\n\r\n"),
                ("a trailer with a name that is not ASCII", "0\r\n\u{e9}: b\r\n\r\n"),
                ("a trailer with a NUL", "0\r\nA: \0\r\n\r\n"),
                ("a trailer with a DEL character", "0\r\nA: \u{7f}\r\n\r\n"),
                ("a trailer with a bare line feed", "0\r\nA: b\n\r\n"),
                ("a trailer with a bare carriage return", "0\r\nA: b\rC: d\r\n\r\n"),
                ("a trailer with two carriage returns", "0\r\nA: b\r\r\n\r\n"),
                ("a trailer on a folded line", "0\r\nA: b\r\n c\r\n\r\n"),
                ("a trailer and a bare line feed", "0\r\nA: b\r\n\n"),
                ("a request as a trailer", "0\r\nGET /livez HTTP/1.1\r\nHost: x\r\n\r\n"),
            ],
            |body| format!("{CHECKOUT}{head}{body}{CHECKOUT}\r\n"),
        ),
        dressed(
            HEADER_TOO_LARGE,
            Then::Closes,
            &[("two thousand trailers", &many_trailers), ("an endless trailer", &endless_trailer)],
            |body| format!("{CHECKOUT}{head}{body}{CHECKOUT}\r\n"),
        ),
        dressed(
            BODY_TOO_LARGE,
            Then::Closes,
            &[
                ("a huge chunk", "ffffffff\r\n"),
                ("a chunk one byte too large", "10001\r\n"),
                ("chunks that are too large together", &much),
                ("a chunk one byte too large after zeros", "0000000000010001\r\n"),
                ("a chunk size of 2^32 + 1", "100000001\r\nx\r\n0\r\n\r\n"),
                ("a chunk size of 2^64 + 1", "10000000000000001\r\nx\r\n0\r\n\r\n"),
                ("a chunk size of 2^128 + 1", "100000000000000000000000000000001\r\nx\r\n0\r\n\r\n"),
                ("extensions that are too large together", &many_extensions),
            ],
            |body| format!("{CHECKOUT}{head}{body}{CHECKOUT}\r\n"),
        ),
        dressed(
            ASKED,
            Then::GoesOn,
            &[
                ("only the last chunk", "0\r\n\r\n"),
                ("a last chunk of many zeros", "000000000000000000\r\n\r\n"),
                ("a chunk size of nine digits", "000000001\r\nx\r\n0\r\n\r\n"),
                ("a chunk size of 201 digits", &zeros),
                ("an extension without a value after spaces", "1 \t; \ta\r\nx\r\n0\r\n\r\n"),
                ("an extension with spaces around its parts", "1 ;a = b ; c\t=\t\"d\" ;e\r\nx\r\n0\r\n\r\n"),
                ("an extension with an escaped quote", "1;a=\"\\\"\\\\;\u{e9}\t\"\r\nx\r\n0\r\n\r\n"),
                ("an extension with an empty quoted value", "1;a=\"\"\r\nx\r\n0\r\n\r\n"),
                ("an extension of punctuation", "1;!#$%&'*+-.^_`|~=1\r\nx\r\n0\r\n\r\n"),
                ("a trailer", "0\r\nA: b\r\n\r\n"),
                ("several trailers after data", "1\r\nx\r\n0\r\nA: b\r\nC:\r\nD:\te\u{e9} \r\n\r\n"),
                ("a trailer with a length", "0\r\nContent-Length: 5\r\n\r\n"),
                ("a trailer with a coding", "0\r\nTransfer-Encoding: chunked\r\n\r\n"),
                ("a trailer with a host", "0\r\nHost: y\r\n\r\n"),
                ("a trailer with close", "0\r\nConnection: close\r\n\r\n"),
                ("a trailer with an expectation", "0\r\nExpect: a-miracle\r\n\r\n"),
                ("chunk sizes in upper and lower case", "a\r\n0123456789\r\nA\r\n0123456789\r\n0\r\n\r\n"),
                ("chunks with extensions", "1;a=\"b;c\"\r\nx\r\n0;d\r\n\r\n"),
                ("chunks whose data are line ends", "2\r\n\r\n\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n"),
                ("a chunk whose data looks like a last chunk", "5\r\n0\r\n\r\n\r\n0\r\n\r\n"),
            ],
            |body| format!("{PURCHASE}{head}{body}"),
        ),
        dressed(
            &[],
            Then::Waits,
            &[
                ("half a chunk size", "1"),
                ("no chunk after the first one", "1\r\nx\r\n"),
                ("no final line end", "0\r\n\r"),
                ("no empty line after a trailer", "0\r\nA: b\r\n"),
                ("half a trailer", "0\r\nA"),
                ("no value of an extension", "1;a="),
                ("an incomplete chunk", "ff\r\nPOST /checkout?user_id=66&item_id=66 HTTP/1.1\r\nHost: x\r\n\r\n"),
            ],
            |body| format!("{CHECKOUT}{head}{body}"),
        ),
    ]
    .concat()
}

pub fn sizes() -> Vec<Case> {
    let host = "HTTP/1.1\r\nHost: x\r\n";
    let line = |bytes: usize| {
        let frame = "GET /livez? HTTP/1.1\r\n".len();
        format!("GET /livez?{} {host}", "x".repeat(bytes - frame))
    };
    let long_target = format!("GET /{} {host}\r\n", "x".repeat(64 * 1024));
    let endless_target = format!("GET /{}", "x".repeat(9 * 1024));
    let endless_version = format!("GET /livez {}", "x".repeat(9 * 1024));
    let endless_method = "X".repeat(9 * 1024);
    let long_method = format!("{} /livez {host}\r\n", "X".repeat(9 * 1024));
    let line_byte_too_many = format!("{}\r\n", line(8 * 1024 + 1));
    let bare_feed = line_byte_too_many.replacen("\r\n", "x\n", 1);
    let line_just_so = format!("{}\r\n", line(8 * 1024));
    let line_and_fields = format!("{}{}\r\n", line(8_000), "A: 0123456789abcdefghi\r\n".repeat(63));
    let long_value = format!("GET /livez {host}A: {}\r\n\r\n", "b".repeat(17 * 1024));
    let endless_value = format!("GET /livez {host}A: {}", "b".repeat(17 * 1024));
    let endless_name = format!("GET /livez {host}{}", "a".repeat(17 * 1024));
    let many_fields = format!("GET /livez {host}{}\r\n", "a: b\r\n".repeat(10_000));
    let field_too_many = format!("GET /livez {host}{}\r\n", "a: b\r\n".repeat(64));
    let fields_just_so = format!("GET /livez {host}{}\r\n", "a: b\r\n".repeat(63));
    let later_field_too_many = field_too_many.replace("HTTP/1.1", "HTTP/1.2");
    let frame = "GET /livez HTTP/1.1\r\nHost: x\r\nA: \r\n\r\n".len();
    let head_just_so = format!("GET /livez {host}A: {}\r\n\r\n", "b".repeat(16 * 1024 - frame));
    let byte_too_many = format!("GET /livez {host}A: {}\r\n\r\n", "b".repeat(16 * 1024 - frame + 1));
    let empty_line_too_many = format!("\r\n{head_just_so}");
    let body_just_so = format!("Content-Length: 65536\r\n\r\n{}", "x".repeat(65536));
    let empty_lines = "\r\n".repeat(5_000);
    [
        group(
            URI_TOO_LONG,
            Then::Closes,
            &[
                ("a target of 64 KiB", &long_target),
                ("an endless target", &endless_target),
                ("an endless version", &endless_version),
                ("a request line one byte too long", &line_byte_too_many),
                ("a bare line feed after a request line that is too long", &bare_feed),
            ],
        ),
        group(
            NOT_IMPLEMENTED,
            Then::Closes,
            &[("an endless method", &endless_method), ("a method of 9 KiB", &long_method)],
        ),
        group(
            HEADER_TOO_LARGE,
            Then::Closes,
            &[
                ("a value of 17 KiB", &long_value),
                ("an endless value", &endless_value),
                ("an endless name", &endless_name),
                ("ten thousand fields", &many_fields),
                ("one field too many", &field_too_many),
                ("one field too many in HTTP/1.2", &later_field_too_many),
                ("a head one byte too large", &byte_too_many),
                ("a head too large by the empty line before it", &empty_line_too_many),
            ],
        ),
        group(MALFORMED, Then::Closes, &[("five thousand empty lines", &empty_lines)]),
        group(
            SHOWN,
            Then::GoesOn,
            &[
                ("the maximum number of fields", &fields_just_so),
                ("a head of the maximum size", &head_just_so),
                ("a request line of the maximum length", &line_just_so),
                ("a request line of 8,000 bytes beside ordinary fields", &line_and_fields),
            ],
        ),
        served(&[("a body of the maximum size", &body_just_so)]),
        refused_fields(
            BODY_TOO_LARGE,
            &[
                ("a body one byte too large", "Content-Length: 65537"),
                ("a body of 1 GiB", "Content-Length: 1073741824"),
                ("a body of eighteen digits", "Content-Length: 999999999999999999"),
            ],
        ),
    ]
    .concat()
}
