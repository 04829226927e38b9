//! Writes responses as bytes. Problems and the OpenAPI document are rendered once, when a shard starts.

use crate::http::head::Head;
use crate::http::openapi;
use crate::http::operation::Answer;
use crate::http::origin::Origins;
use crate::http::problem::Problem;
use crate::http::shop::ShopFile;
use crate::http::site::Site;
use std::cell::Cell;
use std::fmt;
use std::time::{Duration, UNIX_EPOCH};
use strum::VariantArray;

/// Form of a response, which depends on the request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Style {
    /// The connection stays open after the response.
    pub keep_alive: bool,
    /// The response has no body, because the method is HEAD.
    pub head_only: bool,
    /// JSON instead of text, if the operation offers both.
    pub json: bool,
}

/// How long an answer can be cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// For this number of seconds.
    Seconds(u64),
    /// Without end, because the answer never changes.
    Always,
}

/// Seconds of a year, which caches treat as without end.
const YEAR_S: u64 = 365 * 86400;
/// Header lines between the content type and the length of an answer that must not be cached.
const UNCACHED: &str = "\r\ncache-control: no-store\r\ncontent-length: ";
/// The same for an answer without a length.
const UNCACHED_HEAD: &str = "\r\ncache-control: no-store";

/// Header lines for a preflight. The browser may reuse the answer for 10 minutes.
const PREFLIGHT: &str = "access-control-allow-methods: GET, POST, DELETE\r\n\
    access-control-allow-headers: idempotency-key, x-request-id, traceparent\r\naccess-control-max-age: 600\r\n";
/// Begin of the header line `retry-after`, with the end of the line before.
const RETRY_AFTER_NAME: &str = "\r\nretry-after: ";
/// Values of `retry-after` in seconds, in turn, so that clients that were refused together do not come back together.
const RETRY_AFTER: [&str; 3] = ["1", "2", "3"];

/// A problem: its head up to the value of `date`, and its body.
struct Rendered {
    head: Vec<u8>,
    /// Offset of the value of `retry-after` in the head, if the problem has this header.
    retry_after_at: Option<usize>,
    body: Vec<u8>,
}

/// Writer of responses, with one instance for each shard.
pub struct Responder {
    api: &'static str,
    problems: Vec<Rendered>,
    second: u64,
    /// Value of the header `date` and what follows it in an answer that keeps the connection open, and in one that
    /// closes it: together, so that the header lines about the connection cost no second copy in each answer.
    date_if_kept: String,
    date_if_closed: String,
    idle_timeout: Duration,
    origins: Origins,
    site: Site,
    /// Index of the next value of `retry-after`.
    next_retry: Cell<usize>,
    /// Header lines that depend on the request: its id, and what a web page of its origin may do.
    extra: Vec<u8>,
    body: Vec<u8>,
}

impl Default for Responder {
    fn default() -> Self {
        Responder::new(Origins::None, Site::default(), Duration::from_secs(75))
    }
}

impl Responder {
    /// Creates a responder. Web pages of these `origins` may read its answers. `site` is what the server offers. Connections without a request are closed after `idle_timeout`, which answers state in whole seconds.
    pub fn new(origins: Origins, site: Site, idle_timeout: Duration) -> Self {
        let problems = Problem::VARIANTS.iter().map(|problem| render(*problem)).collect();
        let mut responder = Responder {
            api: openapi::text(),
            problems,
            second: 0,
            date_if_kept: String::new(),
            date_if_closed: String::new(),
            idle_timeout,
            origins,
            site,
            next_retry: Cell::new(0),
            extra: Vec::new(),
            body: Vec::new(),
        };
        responder.render_date();
        responder
    }
}

fn render(problem: Problem) -> Rendered {
    let about = problem.about();
    let body = serde_json::to_vec(&problem.details()).expect("the body serializes to JSON");
    let (status, headers, length) = (about.status, about.headers, body.len());
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: application/problem+json\r\ncontent-length: {length}\r\n{headers}date: "
    );
    let retry_after_at = head.find(RETRY_AFTER_NAME).map(|at| at + RETRY_AFTER_NAME.len());
    Rendered { head: head.into_bytes(), retry_after_at, body }
}

impl Responder {
    /// Sets the time for the `Date` header of the responses that follow.
    pub fn set_time(&mut self, unix_ms: u64) {
        let second = unix_ms / 1000;
        if second != self.second {
            self.second = second;
            self.render_date();
        }
    }

    fn render_date(&mut self) {
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.second));
        let idle_s = self.idle_timeout.as_secs();
        // RFC 9110 §7.6.1: `connection` names the field `keep-alive`. HTTP/1.0 needs it to keep the connection at all.
        self.date_if_kept = format!("{date}\r\nconnection: keep-alive\r\nkeep-alive: timeout={idle_s}");
        self.date_if_closed = format!("{date}\r\nconnection: close");
    }

    /// Returns the origins whose web pages may use the API.
    pub fn origins(&self) -> &Origins {
        &self.origins
    }

    /// Returns what the server offers.
    pub fn site(&self) -> Site {
        self.site
    }

    /// Sets the request to which the next response belongs, by its `X-Request-Id` and its `Origin`.
    pub fn set_request(&mut self, request_id: Option<&[u8]>, origin: Option<&[u8]>) {
        self.extra.clear();
        if let Some(id) = request_id {
            self.extra.extend_from_slice(b"\r\nx-request-id: ");
            self.extra.extend_from_slice(id);
        }
        self.origins.write(origin, &mut self.extra);
    }

    /// Writes the answer to OPTIONS: the methods that `other_methods` names, or all methods. A preflight of an allowed
    /// origin learns what its page may send.
    pub fn options(&self, other_methods: Option<Problem>, head: &Head<'_>, style: Style, out: &mut Vec<u8>) -> Answer {
        let allow = other_methods.map_or("allow: GET, HEAD, POST, DELETE\r\n", |problem| problem.about().headers);
        let is_allowed = head.is_preflight && self.origins.allow(head.origin);
        let preflight = if is_allowed { PREFLIGHT } else { "" };
        for part in ["HTTP/1.1 ", Answer::NoContent.status(), "\r\n", allow, preflight, "date: "] {
            out.extend_from_slice(part.as_bytes());
        }
        self.finish_head(style, out);
        Answer::NoContent
    }

    /// Writes a refusal with its problem.
    pub fn problem(&self, problem: Problem, style: Style, out: &mut Vec<u8>) -> Answer {
        let Rendered { head, retry_after_at, body } = &self.problems[problem as usize];
        let begin = out.len();
        out.extend_from_slice(head);
        if let Some(at) = retry_after_at {
            out[begin + at] = self.retry_after().as_bytes()[0];
        }
        self.finish_head(style, out);
        if !style.head_only {
            out.extend_from_slice(body);
        }
        Answer::Refused(problem)
    }

    /// Writes a refusal with `retry-after`. Its value is `seconds`, or up to two more.
    pub fn problem_until(&self, problem: Problem, seconds: u32, style: Style, out: &mut Vec<u8>) -> Answer {
        let Rendered { head, retry_after_at, body } = &self.problems[problem as usize];
        let at = retry_after_at.expect("the problem has `retry-after`");
        let more = u64::from(self.retry_after().as_bytes()[0] - b'1');
        out.extend_from_slice(&head[..at]);
        out.extend_from_slice(itoa::Buffer::new().format(u64::from(seconds) + more).as_bytes());
        out.extend_from_slice(&head[at + 1..]);
        self.finish_head(style, out);
        if !style.head_only {
            out.extend_from_slice(body);
        }
        Answer::Refused(problem)
    }

    /// Writes a response with a text body.
    pub fn text(&self, answer: Answer, body: &str, style: Style, out: &mut Vec<u8>) -> Answer {
        self.with_body(answer, "text/plain", UNCACHED, Some(body.as_bytes()), style, out)
    }

    /// Writes a response with the JSON body that `body` returns, as [`json_by`](Self::json_by) does.
    pub fn json<B: serde::Serialize>(
        &mut self,
        answer: Answer,
        body: impl FnOnce() -> B,
        style: Style,
        out: &mut Vec<u8>,
    ) -> Answer {
        let write = |out: &mut Vec<u8>| serde_json::to_writer(out, &body()).expect("the body serializes to JSON");
        self.json_by(answer, write, style, out)
    }

    /// Writes a response with the JSON body that `write` appends. It is not called for HEAD: it can cost much more than the
    /// request, and a client can send many requests at once. So this answer to HEAD has no `content-length` (RFC 9110 §8.6).
    pub fn json_by(
        &mut self,
        answer: Answer,
        write: impl FnOnce(&mut Vec<u8>),
        style: Style,
        out: &mut Vec<u8>,
    ) -> Answer {
        if style.head_only {
            return self.with_body(answer, "application/json", UNCACHED_HEAD, None, style, out);
        }
        self.body.clear();
        write(&mut self.body);
        self.with_body(answer, "application/json", UNCACHED, Some(&self.body), style, out)
    }

    /// Writes the OpenAPI document.
    pub fn api(&self, style: Style, out: &mut Vec<u8>) -> Answer {
        self.with_body(Answer::Ok, "application/json", UNCACHED, Some(self.api.as_bytes()), style, out)
    }

    /// Writes the head of an event stream, which ends when the connection is closed. `x-accel-buffering: no` keeps
    /// nginx from buffering the events.
    pub fn event_stream(&self, style: Style, out: &mut Vec<u8>) -> Answer {
        for part in ["HTTP/1.1 ", Answer::Ok.status(), "\r\ncontent-type: text/event-stream\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
        out.extend_from_slice(b"cache-control: no-store\r\nx-accel-buffering: no\r\ndate: ");
        self.finish_head(Style { keep_alive: false, ..style }, out);
        Answer::Ok
    }

    /// Writes a response without a body.
    pub fn empty(&self, answer: Answer, style: Style, out: &mut Vec<u8>) -> Answer {
        for part in ["HTTP/1.1 ", answer.status(), "\r\ndate: "] {
            out.extend_from_slice(part.as_bytes());
        }
        self.finish_head(style, out);
        answer
    }

    /// Writes an image that can be cached under the entity tag `tag`, as `freshness` says. Without `svg`, the client
    /// already has the image, and the response is 304 without a body. For HEAD, the image is not drawn.
    pub fn image(
        &self,
        svg: Option<impl fmt::Display>,
        tag: &str,
        freshness: Freshness,
        style: Style,
        out: &mut Vec<u8>,
    ) -> Answer {
        let (max_age_s, immutable) = match freshness {
            Freshness::Seconds(seconds) => (seconds, ""),
            Freshness::Always => (YEAR_S, ", immutable"),
        };
        let caching = format!("\r\ncache-control: public, max-age={max_age_s}{immutable}\r\netag: {tag}");
        let Some(svg) = svg else { return self.unchanged(&caching, style, out) };
        if style.head_only {
            return self.with_body(Answer::Ok, "image/svg+xml", &caching, None, style, out);
        }
        let (caching, svg) = (format!("{caching}\r\ncontent-length: "), svg.to_string());
        self.with_body(Answer::Ok, "image/svg+xml", &caching, Some(svg.as_bytes()), style, out)
    }

    /// Writes a file of the shop, or 304 if the client has it already.
    pub fn shop_file(&self, file: &ShopFile, is_known: bool, style: Style, out: &mut Vec<u8>) -> Answer {
        if is_known {
            return self.unchanged(&file.headers, style, out);
        }
        let caching = format!("{}\r\ncontent-length: ", file.headers);
        self.with_body(Answer::Ok, file.kind, &caching, Some(file.text.as_bytes()), style, out)
    }

    fn unchanged(&self, caching: &str, style: Style, out: &mut Vec<u8>) -> Answer {
        for part in ["HTTP/1.1 ", Answer::Unchanged.status(), caching, "\r\ndate: "] {
            out.extend_from_slice(part.as_bytes());
        }
        self.finish_head(style, out);
        Answer::Unchanged
    }

    /// Writes a response with a body, or the head of one whose body is not made. `caching` is the part of the head
    /// between the content type and the length.
    fn with_body(
        &self,
        answer: Answer,
        kind: &str,
        caching: &str,
        body: Option<&[u8]>,
        style: Style,
        out: &mut Vec<u8>,
    ) -> Answer {
        let mut digits = itoa::Buffer::new();
        let length = body.map_or("", |body| digits.format(body.len()));
        let mut write = |parts: &[&str]| parts.iter().for_each(|part| out.extend_from_slice(part.as_bytes()));
        write(&["HTTP/1.1 ", answer.status()]);
        if answer == Answer::Unready {
            write(&[RETRY_AFTER_NAME, self.retry_after()]);
        }
        write(&["\r\ncontent-type: ", kind, caching, length, "\r\ndate: "]);
        self.finish_head(style, out);
        if let Some(body) = body
            && !style.head_only
        {
            out.extend_from_slice(body);
        }
        answer
    }

    /// Returns the next value of `retry-after`.
    fn retry_after(&self) -> &'static str {
        let next = self.next_retry.get();
        self.next_retry.set((next + 1) % RETRY_AFTER.len());
        RETRY_AFTER[next]
    }

    fn finish_head(&self, style: Style, out: &mut Vec<u8>) {
        let date = if style.keep_alive { &self.date_if_kept } else { &self.date_if_closed };
        out.extend_from_slice(date.as_bytes());
        out.extend_from_slice(&self.extra);
        out.extend_from_slice(b"\r\n\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_problem_is_rendered_whole() {
        for problem in Problem::VARIANTS {
            let mut out = Vec::new();
            Responder::default().problem(*problem, Style { keep_alive: true, ..Style::default() }, &mut out);
            let text = String::from_utf8(out).unwrap();
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("content-length: {}\r\n", body.len())), "{head}");
            let comes_back =
                head.starts_with("HTTP/1.1 503") || matches!(problem, Problem::AllReserved | Problem::NotOpen);
            assert_eq!(head.contains("retry-after: "), comes_back, "{head}");
            assert!(body.contains(&format!("\"type\":\"/problems/{}\"", problem.about().slug)), "{body}");
        }
    }

    #[test]
    fn retry_after_varies_from_answer_to_answer() {
        let mut responder = Responder::default();
        let mut seconds = |write: &dyn Fn(&mut Responder, &mut Vec<u8>)| {
            // Behind the output for another client.
            let mut out = b"HTTP/1.1 200 OK\r\n\r\n".to_vec();
            write(&mut responder, &mut out);
            let text = String::from_utf8(out).unwrap();
            let (_, value) = text.split_once("\r\nretry-after: ").unwrap();
            value.split_once("\r\n").unwrap().0.parse::<u32>().unwrap()
        };
        let refused = [Problem::Overdue, Problem::NotReady, Problem::LogFull, Problem::Overdue];
        let values =
            refused.map(|problem| seconds(&|responder, out| _ = responder.problem(problem, Style::default(), out)));
        assert_eq!(values, [1, 2, 3, 1]);
        let unready: [u32; 3] = std::array::from_fn(|_| {
            seconds(&|responder, out| _ = responder.json(Answer::Unready, || "no", Style::default(), out))
        });
        assert_eq!(unready, [2, 3, 1]);
    }

    #[test]
    fn a_head_is_all_that_head_gets() {
        let mut responder = Responder::default();
        responder.set_time(784_111_777_000);
        let style = Style { keep_alive: true, head_only: true, json: false };
        let mut out = Vec::new();
        responder.text(Answer::Ok, "hello", style, &mut out);
        let expected = "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncache-control: no-store\r\ncontent-length: 5\r\n\
                        date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: keep-alive\r\n\
                        keep-alive: timeout=75\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        let mut out = Vec::new();
        let body = || -> u8 { panic!("the body is not needed") };
        responder.json(Answer::Ok, body, Style { head_only: true, ..Style::default() }, &mut out);
        let expected = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncache-control: no-store\r\n\
                        date: Sun, 06 Nov 1994 08:49:37 GMT\r\nconnection: close\r\n\r\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn only_an_answer_that_keeps_the_connection_states_the_idle_timeout() {
        let mut responder = Responder::new(Origins::None, Site::default(), Duration::from_millis(2900));
        let mut end = |keep_alive| {
            let mut out = Vec::new();
            responder.set_time(784_111_777_000);
            responder.set_request(Some(b"7"), None);
            responder.empty(Answer::NoContent, Style { keep_alive, ..Style::default() }, &mut out);
            let text = String::from_utf8(out).unwrap();
            text.split_once(" GMT\r\n").unwrap().1.to_owned()
        };
        // Rounded down, so that a client never relies on a connection for longer than the server keeps it.
        assert_eq!(end(true), "connection: keep-alive\r\nkeep-alive: timeout=2\r\nx-request-id: 7\r\n\r\n");
        assert_eq!(end(false), "connection: close\r\nx-request-id: 7\r\n\r\n");
    }
}
