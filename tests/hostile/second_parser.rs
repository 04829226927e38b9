//! A second parser for the same bytes: kawa, the parser of the reverse proxy Sōzu. A proxy and the server behind it
//! must never see different requests in the same bytes.

use crate::conversation::Request;
use kawa::{BodySize, Buffer, Kawa, Kind, SliceBuffer, StatusLine, Version, h1};
use stampede::http::head::{Framing, Method};
use std::io::Write;

/// Returns the first request in `bytes`, if kawa finds a complete one. Skips the empty line that may precede a request,
/// because kawa does not accept it.
pub fn read(bytes: &[u8]) -> Option<Request> {
    let empty_line = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
    let bytes = &bytes[empty_line..];
    let mut memory = vec![0; bytes.len()];
    let mut request = Kawa::new(Kind::Request, Buffer::new(SliceBuffer(&mut memory[..])));
    request.storage.write_all(bytes).expect("the buffer has room");
    h1::parse(&mut request, &mut h1::NoCallbacks);
    if !request.is_terminated() {
        return None;
    }
    let StatusLine::Request { method, path, version, .. } = &request.detached.status_line else { return None };
    assert!(matches!(version, Version::V10 | Version::V11));
    let buffer = request.storage.buffer();
    let path = String::from_utf8_lossy(path.data(buffer));
    Some(Request {
        method: match method.data(buffer) {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            _ => Method::Other,
        },
        target: target(&path),
        framing: match request.body_size {
            BodySize::Empty => Framing::Length(0),
            BodySize::Length(length) => Framing::Length(length as u64),
            BodySize::Chunked => Framing::Chunked,
        },
        end: empty_line + request.storage.head,
    })
}

/// Returns a target as Stampede reads it. An absolute target without a path has the path "/" (RFC 9110 §4.2.3), which
/// kawa leaves out before a query. In Stampede, an empty query is no query.
fn target(path: &str) -> String {
    let path = path.strip_suffix('?').filter(|path| !path.contains('?')).unwrap_or(path);
    if path.starts_with('?') || path.is_empty() { format!("/{path}") } else { path.to_owned() }
}
